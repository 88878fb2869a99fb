"""An index folder as a durable thing: make, bring up to date, add, delete, open, verify.

`sync` reads the given folders and files, keeps what did not change (by content hash), embeds only texts that the index
has not embedded yet, and commits one new generation (`rag.store`), or nothing when nothing changed. Readers hold a
`Snapshot` and are never blocked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rag import vectors
from rag.chunk import ChunkConfig, chunk_document
from rag.errors import EncoderMismatch, IndexCorrupt, IndexError_, IndexMissing, LoadError, UsageError
from rag.generation import Fresh, Kept, StageProgress, write_generation
from rag.load import SUFFIXES, LoadFailure, SourceFile
from rag.lock import WriteLock
from rag.plan import Plan, find, keep_others, name_sources, read_files, unlisted_below
from rag.protocols import Encoder
from rag.snapshot import Snapshot, SourceInfo
from rag.store import MANIFEST, Disk, Manifest, remove_leftovers
from rag.types import Chunk, Document


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What one change did. `documents` and `chunks` are totals after it; the other counts are documents, and `embedded`
    counts texts sent to the encoder. `failed` files are not in the index, except where an earlier version still is."""

    documents: int
    chunks: int
    added: int = 0
    updated: int = 0
    deleted: int = 0
    embedded: int = 0
    failed: tuple[LoadFailure, ...] = ()
    seconds: float = 0.0


def sync(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    encoder: Encoder,
    *,
    chunk: ChunkConfig | None = None,
    progress: StageProgress | None = None,
    rebuild: bool = False,
    disk: Disk | None = None,
) -> IndexReport:
    """Make the index in `folder` agree with these folders and files: add, update, and delete what vanished from them.

    Documents of roots that are not among `paths` stay. `chunk=None` keeps the settings of the index; other settings cut
    every document anew, from the stored texts. `rebuild=True` embeds all of it again, which another encoder needs; a
    damaged index is then made anew from `paths` alone.
    A killed or interrupted run leaves the state before it, and its vectors in a journal that the next run goes on from.

    Raises:
        UsageError: a path does not exist, or there is nothing to read below the paths (nothing is deleted then).
        LoadError: there was no index, and not one file could be read.
        EncoderMismatch: the index was made with another encoder.
        IndexLocked, IndexCorrupt, IndexError_: another writer; damage; the disk refuses.
        NumericalError: the encoder returned NaN; names the documents.
    """
    started = time.perf_counter()
    folder = Path(folder)
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found, failed = find(folder, paths)
    if not found and not failed:
        raise UsageError(
            f"Nothing to read in {', '.join(str(p) for p in paths) or 'no path'}: no file ends in "
            f"{', '.join(SUFFIXES)}. Give a folder with documents. (Nothing was changed.)"
        )
    with _writing(folder, ignore_damage=rebuild) as old:
        if old is not None and not rebuild:
            check_encoder(folder, old, encoder)
        settings = chunk or (ChunkConfig(**old.manifest.chunking) if old else ChunkConfig())
        roots, files = name_sources(old, found)
        plan = Plan(failed=list(failed))
        given = {i for i, root in enumerate(roots) if root["path"] in {r.path for r in found}}
        keep_others(plan, old, given, set(files), unlisted_below(roots, found))
        read_files(plan, old, files, progress)
        if not plan.entries and plan.failed:
            raise LoadError(_none_readable(plan.failed))
        again = rebuild or (old is not None and asdict(settings) != dict(old.manifest.chunking))
        return _write(folder, old, plan, encoder, settings, roots, again, progress, disk, started)


def reencode(
    folder: str | os.PathLike[str],
    encoder: Encoder,
    *,
    progress: StageProgress | None = None,
    disk: Disk | None = None,
) -> IndexReport:
    """Embed every document of the index with another encoder, from the stored texts, and swap it in by one commit.

    Until the commit readers are served by the old generation and its encoder. A killed run leaves its vectors in a
    journal that the next one goes on from. Does nothing where the index has this encoder already.
    Raises IndexMissing, IndexLocked, IndexCorrupt, IndexError_, NumericalError as `sync` does.
    """
    started = time.perf_counter()
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        raise IndexMissing(f"No index at {folder}. Make one: ragtune index PATH --out {folder}")
    with _writing(folder) as old:
        if old is None:
            raise IndexMissing(f"No index at {folder} any more.")
        plan = Plan()
        for position, record in enumerate(old.records):
            plan.entries[record.document.source] = Kept(position, record.root)
        settings = ChunkConfig(**old.manifest.chunking)
        again = old.manifest.fingerprint != encoder.fingerprint
        return _write(folder, old, plan, encoder, settings, old.manifest.roots, again, progress, disk, started)


class Index:
    """An open index. `dense`, `lexical`, `chunks` … answer from one generation, `snapshot`, until `refresh`, `add` or
    `delete` moves on to a newer one. Safe to use from several threads."""

    def __init__(self, folder: Path, snapshot: Snapshot, encoder: Encoder | None) -> None:
        self.folder = folder
        self.encoder = encoder
        self.snapshot = snapshot
        self._stamp = _stamp(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], encoder: Encoder | None = None) -> Index:
        """Open the committed generation; sizes and shapes are checked, `verify` checks every byte.

        Raises IndexMissing, IndexCorrupt (naming the file), EncoderMismatch (naming both encoders).
        """
        folder = Path(folder)
        index = cls(folder, Snapshot.open(folder), encoder)
        if encoder is not None:
            check_encoder(folder, index.snapshot, encoder)
        return index

    def refresh(self) -> bool:
        """Move on to the newest generation when another writer committed one. Costs one `stat` when none did."""
        stamp = _stamp(self.folder)
        if stamp == self._stamp:
            return False
        snapshot = Snapshot.open(self.folder)
        if self.encoder is not None:
            check_encoder(self.folder, snapshot, self.encoder)
        self.snapshot, self._stamp = snapshot, stamp
        return True

    @property
    def generation(self) -> int:
        """Counts commits, from 1."""
        return self.snapshot.manifest.generation

    @property
    def manifest(self) -> Manifest:
        """What the generation says about itself ."""
        return self.snapshot.manifest

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks in row order."""
        return self.snapshot.chunks

    @property
    def sources(self) -> list[SourceInfo]:
        """All documents, sorted by source."""
        return self.snapshot.sources

    def text(self, source: str) -> str:
        """The whole text of a document; UsageError where there is none of this source."""
        return self.snapshot.document(source).text

    def document(self, source: str) -> Document:
        """A document as it was loaded; UsageError where there is none of this source."""
        return self.snapshot.document(source)

    def chunk(self, chunk_id: str) -> Chunk:
        """The chunk with this id; UsageError where there is none."""
        return self.snapshot.chunk(chunk_id)

    def embed_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [len(queries), dimension]. UsageError without an encoder, NumericalError for NaN."""
        if self.encoder is None:
            raise UsageError(f"The index {self.folder} was opened without an encoder; dense search needs one.")
        found = np.asarray(self.encoder.encode(list(queries), kind="query"), np.float32)
        dimension = self.snapshot.manifest.dimension
        vectors.check_vectors(found, len(queries), dimension, self.encoder.name, lambda i: repr(queries[i][:60]))
        return found

    def dense(self, queries: Sequence[str], k: int) -> list[vectors.Hits]:
        """For each query the best `k` (row, cosine), best first, equal scores by row."""
        return self.snapshot.dense(self.embed_queries(queries), k)

    def lexical(self, queries: Sequence[str], k: int) -> list[vectors.Hits]:
        """For each query the best `k` (row, BM25 score above 0), best first, equal scores by row."""
        snapshot = self.snapshot
        return [snapshot.lexical(query, k) for query in queries]

    def verify(self) -> list[str]:
        """One sentence for every damage found; empty when all is well."""
        return self.snapshot.verify()

    def delete(self, sources: Sequence[str], *, disk: Disk | None = None) -> IndexReport:
        """Remove documents. Their chunks are never returned again, and their text is gone from the folder's files."""
        started = time.perf_counter()
        with _writing(self.folder) as old:
            if old is None:
                raise IndexMissing(f"No index at {self.folder} any more.")
            unknown = [s for s in sources if s not in old.by_source]
            if unknown:
                raise UsageError(f"No document {unknown[0]!r} in {self.folder}. Sources are listed by `Index.sources`.")
            plan = Plan(deleted=len(set(sources)))
            for position, record in enumerate(old.records):
                if record.document.source not in set(sources):
                    plan.entries[record.document.source] = Kept(position, record.root)
            settings = ChunkConfig(**old.manifest.chunking)
            report = _write(self.folder, old, plan, None, settings, old.manifest.roots, False, None, disk, started)
        self.refresh()
        return report

    def add(
        self,
        files: Sequence[SourceFile],
        encoder: Encoder | None = None,
        *,
        progress: StageProgress | None = None,
        disk: Disk | None = None,
    ) -> IndexReport:
        """Add single files, or replace those of the same source; they stay until they are deleted."""
        started = time.perf_counter()
        encoder = encoder or self.encoder
        if encoder is None:
            raise UsageError(f"The index {self.folder} was opened without an encoder; adding needs one.")
        with _writing(self.folder) as old:
            if old is None:
                raise IndexMissing(f"No index at {self.folder} any more.")
            check_encoder(self.folder, old, encoder)
            plan, named = Plan(), {file.source: (-1, file) for file in files}
            keep_others(plan, old, set(), set(named))
            read_files(plan, old, named, progress)
            settings = ChunkConfig(**old.manifest.chunking)
            report = _write(
                self.folder, old, plan, encoder, settings, old.manifest.roots, False, progress, disk, started
            )
        self.refresh()
        return report


def check_encoder(folder: Path, snapshot: Snapshot, encoder: Encoder) -> None:
    """EncoderMismatch, naming both, unless the index was made with this encoder."""
    m = snapshot.manifest
    if m.fingerprint != encoder.fingerprint:
        raise EncoderMismatch(
            f"The index {folder} was made with the encoder {m.encoder} (fingerprint {m.fingerprint[:12]}, dimension "
            f"{m.dimension}); you gave {encoder.name} (fingerprint {encoder.fingerprint[:12]}, dimension "
            f"{encoder.dimension}). Use {m.encoder}, or index the documents again with {encoder.name} into a new "
            "folder."
        )


class _writing:
    """The write lock, and within it the committed state (None where there is none yet), left-overs removed."""

    def __init__(self, folder: Path, *, ignore_damage: bool = False) -> None:
        self.folder = folder
        self.ignore_damage = ignore_damage

    def __enter__(self) -> Snapshot | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = WriteLock(self.folder)
            self._lock.__enter__()
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{self.folder} is a file; give a folder for the index.") from error
        except OSError as error:
            raise IndexError_(
                f"The index folder {self.folder} cannot be written: {error.strerror or error}. "
                "Check permissions and free space."
            ) from error
        try:
            old = Snapshot.open(self.folder) if (self.folder / MANIFEST).exists() else None
            remove_leftovers(self.folder, old.manifest if old else None)
            return old
        except IndexCorrupt:
            if self.ignore_damage:
                return None
            self._lock.__exit__()
            raise
        except BaseException:
            self._lock.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__()


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    try:
        info = os.stat(folder / MANIFEST)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_ino, info.st_size


def _none_readable(failed: Sequence[LoadFailure]) -> str:
    shown = "; ".join(f"{f.source}: {f.reason}" for f in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"None of the {len(failed)} files could be read, so no index was written: {shown}{more}."


def _write(
    folder: Path,
    old: Snapshot | None,
    plan: Plan,
    encoder: Encoder | None,
    settings: ChunkConfig,
    roots: Sequence[Mapping[str, str]],
    again: bool,
    progress: StageProgress | None,
    disk: Disk | None,
    started: float,
) -> IndexReport:
    """Cut what is new, commit, and report; no commit when the documents are those of the last generation."""
    entries = [plan.entries[source] for source in sorted(plan.entries)]
    if old is not None and not again:
        same = [(e.position, e.root) for e in entries if isinstance(e, Kept)]
        if same == [(i, r.root) for i, r in enumerate(old.records)] and len(same) == len(entries):
            remove_leftovers(folder, old.manifest, disk=disk, journal=True)
            seconds = time.perf_counter() - started
            return IndexReport(len(old.records), len(old.table), failed=tuple(plan.failed), seconds=seconds)
    if again and old is not None:
        entries = [Fresh(old.document_at(e.position), e.root) if isinstance(e, Kept) else e for e in entries]
    if encoder is not None:
        for entry in entries:
            if isinstance(entry, Fresh):
                entry.chunks = chunk_document(
                    entry.document, settings, count_tokens=encoder.count_tokens, max_tokens=encoder.max_tokens
                )
    manifest, embedded = write_generation(
        folder,
        old,
        entries,
        encoder,
        chunking=asdict(settings),
        roots=roots,
        progress=progress,
        disk=disk,
        started=started,
    )
    return IndexReport(
        manifest.documents,
        manifest.chunks,
        plan.added,
        plan.updated,
        plan.deleted,
        embedded,
        tuple(plan.failed),
        time.perf_counter() - started,
    )
