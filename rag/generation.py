"""The next generation of an index from kept and fresh documents: embed what is new, lay out the files, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rag import lexical, store, vectors
from rag.journal import Journal
from rag.protocols import Encoder
from rag.snapshot import CHUNK, Record, Snapshot
from rag.types import Chunk, Document, content_hash

EMBED_BLOCK = 512  # texts between two entries of the journal: what a killed run loses at most
_TRAINED_SAMPLE = 64  # vectors per cell of an approximate index
_BLOCK = 65_536


@dataclass(slots=True)
class Kept:
    """A document of the last generation that did not change: its position there, and the root it belongs to."""

    position: int
    root: int


@dataclass(slots=True)
class Fresh:
    """A document that was read in this run, and its chunks."""

    document: Document
    root: int
    chunks: Sequence[Chunk] = field(default=())


Entry: TypeAlias = Kept | Fresh
StageProgress: TypeAlias = Callable[[str, int, int, str], None]
"""Called as progress(stage, done, total, detail) with stage "read", "embed" or "write"; may raise to stop."""


def write_generation(
    folder: Path,
    old: Snapshot | None,
    entries: Sequence[Entry],
    encoder: Encoder | None,
    *,
    chunking: Mapping[str, Any],
    roots: Sequence[Mapping[str, str]],
    progress: StageProgress | None,
    disk: store.Disk | None,
    started: float | None = None,
) -> tuple[store.Manifest, int]:
    """Commit `entries` (sorted by source) as the generation after `old`; returns the manifest and the texts embedded.

    The caller holds the write lock. `encoder` may be None when no entry is fresh. `started` is when the whole run began
    (`time.perf_counter`), so that its pace is kept in the manifest.
    """
    layout = _Layout(old, entries)
    fingerprint = encoder.fingerprint if encoder else _known(old).manifest.fingerprint
    dimension = encoder.dimension if encoder else _known(old).manifest.dimension
    reusable = old if old is not None and old.manifest.fingerprint == fingerprint else None
    fresh = np.zeros((0, dimension), np.float32)
    embedded = 0
    take = layout.kept_rows.copy()
    if encoder is not None and layout.fresh:
        fresh, take, embedded = _embed(folder, reusable, layout, encoder, take, progress, disk)
    if progress:
        progress("write", 0, 1, "")
    matrix = _Matrix(reusable, fresh, take, dimension)
    contents: dict[str, store.Blocks] = {
        "documents.jsonl": layout.documents,
        "texts.txt": layout.texts,
        "chunks.table": lambda: store.array_blocks(CHUNK, [layout.table]),
        "vectors.f32": lambda: store.array_blocks(np.dtype("<f4"), matrix.blocks()),
        **_lexical_files(old, layout),
    }
    approximate = None
    if len(take) > vectors.EXACT_ROWS:
        index, approximate = _approximate(reusable, matrix)
        contents["approximate.faiss"] = lambda: [index.to_bytes()]
    manifest = store.Manifest(
        generation=store.next_generation(folder),
        encoder=encoder.name if encoder else _known(old).manifest.encoder,
        fingerprint=fingerprint,
        dimension=dimension,
        chunking=dict(chunking),
        documents=len(entries),
        chunks=len(take),
        roots=tuple(roots),
        files={},
        approximate=approximate,
        built=_built(reusable, embedded, started),
    )
    manifest = store.commit(folder, manifest, contents, disk=disk)
    if progress:
        progress("write", 1, 1, "")
    return manifest, embedded


def _built(old: Snapshot | None, embedded: int, started: float | None) -> dict[str, float] | None:
    """Seconds and texts of this run, or of the earlier one (with the same encoder) that embedded more."""
    before = old.manifest.built if old is not None else None
    if started is None or not embedded or (before and before["embedded"] > embedded):
        return dict(before) if before else None
    return {"seconds": round(time.perf_counter() - started, 3), "embedded": embedded}


def _known(old: Snapshot | None) -> Snapshot:
    assert old is not None, "a first generation needs an encoder"
    return old


class _Layout:
    """Where everything stands in the next generation."""

    def __init__(self, old: Snapshot | None, entries: Sequence[Entry]) -> None:
        self.old = old
        self.entries = entries
        self.records: list[Record] = []
        self.fresh: list[Chunk] = []
        fresh_rows: list[int] = []
        kept: list[np.ndarray] = []
        self._tables: list[np.ndarray] = []
        self._texts: list[bytes | None] = []  # None: copied from the last generation
        row = offset = 0
        for number, entry in enumerate(entries):
            if isinstance(entry, Kept):
                was = _known(old).records[entry.position]
                record = Record(was.document, entry.root, offset, was.size, row, was.chunks, was.paths)
                table = np.array(_known(old).table[was.row : was.row + was.chunks])
                table["document"] = number
                kept.append(np.arange(was.row, was.row + was.chunks))
                self._texts.append(None)
            else:
                text = entry.document.text.encode("utf-8", "surrogatepass")
                table, paths = _table(number, entry.document, entry.chunks, len(text))
                record = Record(entry.document, entry.root, offset, len(text), row, len(entry.chunks), paths)
                fresh_rows.extend(range(row, row + len(entry.chunks)))
                self.fresh.extend(entry.chunks)
                kept.append(np.full(len(entry.chunks), -1))
                self._texts.append(text)
            self.records.append(record)
            self._tables.append(table)
            row, offset = row + record.chunks, offset + record.size
        self.fresh_rows = np.asarray(fresh_rows, np.int64)
        self.kept_rows = np.concatenate([np.zeros(0, np.int64), *kept]).astype(np.int64)  # new row → old row or −1
        self.table = np.concatenate([np.zeros(0, CHUNK), *self._tables])

    def documents(self) -> Iterator[bytes]:
        for record in self.records:
            yield record.to_json().encode("utf-8", "surrogatepass")

    def texts(self) -> Iterator[bytes]:
        for entry, text in zip(self.entries, self._texts, strict=True):
            if isinstance(entry, Kept):
                yield _known(self.old).text_bytes(entry.position)
            elif text is not None:
                yield text


def _table(
    number: int, document: Document, chunks: Sequence[Chunk], size: int
) -> tuple[np.ndarray, tuple[tuple[str, ...], ...]]:
    """The chunk records of one document, and the heading paths that they number."""
    paths: dict[tuple[str, ...], int] = {}
    table = np.zeros(len(chunks), CHUNK)
    at_byte = _byte_offsets(document.text, size, [c.start for c in chunks] + [c.end for c in chunks])
    for i, c in enumerate(chunks):
        path = paths.setdefault(c.headings, len(paths))
        key = content_hash(c.embedded_text)
        table[i] = (c.id, key, number, c.start, c.end, at_byte[c.start], at_byte[c.end], c.page or 0, path)
    return table, tuple(paths)


def _byte_offsets(text: str, size: int, offsets: Sequence[int]) -> dict[int, int]:
    """Offset in code points → offset in UTF-8 bytes."""
    if len(text) == size:
        return {at: at for at in offsets}
    out: dict[int, int] = {}
    done = byte = 0
    for at in sorted(set(offsets)):
        byte += len(text[done:at].encode("utf-8", "surrogatepass"))
        out[at], done = byte, at
    return out


def _embed(
    folder: Path,
    reusable: Snapshot | None,
    layout: _Layout,
    encoder: Encoder,
    take: np.ndarray,
    progress: StageProgress | None,
    disk: store.Disk | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Vectors of the fresh chunks: from the last generation or the journal where the same text was embedded, else new.

    Returns the new vectors [m, d], for each row of the generation its old row or −1 − (its place in them), and how many
    texts were sent to the encoder.
    """
    keys = [bytes(k).decode() for k in layout.table["key"][layout.fresh_rows]]
    wanted = dict(zip(keys, layout.fresh, strict=True))
    known: dict[str, int] = {}
    if reusable is not None:
        rows = {bytes(k): row for row, k in enumerate(reusable.table["key"])}
        known = {k: rows[k.encode()] for k in wanted if k.encode() in rows}
    journal = Journal(folder, encoder.fingerprint, encoder.dimension, disk=disk)
    saved = journal.read()
    new = [k for k in wanted if k not in known]
    place = {k: i for i, k in enumerate(new)}
    fresh = np.zeros((len(new), encoder.dimension), np.float32)
    for key in new:
        if key in saved:
            fresh[place[key]] = saved[key]
    pending = [k for k in new if k not in saved]
    for start in range(0, len(pending), EMBED_BLOCK):
        block = pending[start : start + EMBED_BLOCK]
        places = [place[k] for k in block]
        fresh[places] = _embed_block(encoder, [wanted[k] for k in block], start, len(pending), progress)
        if len(pending) > EMBED_BLOCK:  # a short run is quicker to repeat than to journal
            journal.append(block, fresh[places])
    if progress:
        progress("embed", len(pending), len(pending), "")
    take = take.copy()
    take[layout.fresh_rows] = [known[k] if k in known else -1 - place[k] for k in keys]
    return fresh, take, len(pending)


def _embed_block(
    encoder: Encoder, chunks: Sequence[Chunk], done: int, total: int, progress: StageProgress | None
) -> np.ndarray:
    def report(count: int, _: int) -> None:
        if progress:
            progress("embed", done + count, total, "")

    report(0, 0)
    found = np.asarray(encoder.encode([c.embedded_text for c in chunks], kind="passage", progress=report), np.float32)
    vectors.check_vectors(found, len(chunks), encoder.dimension, encoder.name, lambda i: chunks[i].source)
    return found


class _Matrix:
    """The vectors of the next generation, gathered block by block from the old ones on disk and the new ones."""

    def __init__(self, old: Snapshot | None, fresh: np.ndarray, take: np.ndarray, dimension: int) -> None:
        self._old = old.vectors if old is not None else np.zeros((0, dimension), np.float32)
        self._fresh = fresh
        self.take = take

    def __len__(self) -> int:
        return len(self.take)

    def rows(self, take: np.ndarray) -> np.ndarray:
        out = np.empty((len(take), self._fresh.shape[1]), np.float32)
        was = take >= 0
        out[was] = self._old[take[was]]
        out[~was] = self._fresh[-1 - take[~was]]
        return out

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.take), _BLOCK):
            yield self.rows(self.take[start : start + _BLOCK])


def _lexical_files(old: Snapshot | None, layout: _Layout) -> dict[str, store.Blocks]:
    postings = lexical.build_postings(c.embedded_text for c in layout.fresh)
    if old is not None:
        old_rows = np.full(len(old.table), -1, np.int64)
        kept = np.flatnonzero(layout.kept_rows >= 0)
        old_rows[layout.kept_rows[kept]] = kept
        postings = lexical.merge_postings(old.postings, old_rows, postings, layout.fresh_rows)

    def blocks(array: np.ndarray, kind: str) -> store.Blocks:
        return lambda: store.array_blocks(np.dtype(kind), [array])

    return {
        "lexicalterms.txt": lambda: [lexical.terms_blob(postings.terms)],
        "lexicalstarts.i64": blocks(postings.starts, "<i8"),
        "lexicalrows.i32": blocks(postings.rows, "<i4"),
        "lexicalcounts.u16": blocks(postings.counts, "<u2"),
        "lexicallengths.i32": blocks(postings.lengths, "<i4"),
    }


def _approximate(old: Snapshot | None, matrix: _Matrix) -> tuple[vectors.Approximate, dict[str, int]]:
    """An approximate index over the matrix; cells of the last generation are used again until the size has doubled."""
    rows = len(matrix)
    last = old.manifest.approximate if old is not None else None
    if (
        old is not None
        and old.approximate is not None
        and last
        and last["trained_on"] / 2 <= rows <= 2 * last["trained_on"]
    ):
        return old.approximate.refilled(matrix.blocks()), dict(last)
    lists = vectors.lists_for(rows)
    chosen = np.random.default_rng(0).choice(rows, min(rows, lists * _TRAINED_SAMPLE), replace=False)
    sample = matrix.rows(matrix.take[np.sort(chosen)])
    return vectors.Approximate.build(matrix.blocks(), sample, lists=lists), {"lists": lists, "trained_on": rows}
