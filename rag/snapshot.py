"""One committed generation of an index, open for reading: chunk table, texts, vectors, words. Never changes.

Everything large is memory-mapped; a generation stays readable while it is held, even after a writer has replaced it.
Files (stem → content): `documents` JSON lines, `texts` UTF-8 one after another, `chunks` a table of `CHUNK` records,
`vectors` float32 [n, d], the five `lexical…` arrays of `rag.lexical`, and above a size `approximate`, a FAISS file.
Documents are sorted by source and chunks by document and place, so the same documents make the same bytes however the
index came to hold them.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from rag import store, vectors
from rag.errors import IndexCorrupt, IndexError_, UsageError
from rag.lexical import Bm25, Postings, terms_from, top
from rag.types import Chunk, Document, Heading, content_hash

CHUNK = np.dtype(
    [
        ("id", "S32"),
        ("key", "S32"),  # hash of the embedded text: equal keys share a vector
        ("document", "<i4"),
        ("start", "<i8"),  # code points in the document's text
        ("end", "<i8"),
        ("first", "<i8"),  # bytes in the document's stored text
        ("last", "<i8"),
        ("page", "<i4"),  # 0: none
        ("path", "<i4"),  # heading path: a number in the document's list
    ]
)
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """One indexed document as a list shows it. `pages` is 0 for formats without pages."""

    source: str
    document_id: str
    title: str
    pages: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Record:
    """One document as stored: everything but its text, which lies at bytes `offset:offset + size` of `texts`.

    `root` is a number in the manifest's roots, −1 for a document that was added by itself. Its chunks are the rows
    `row:row + chunks`; `paths` are the heading paths that they refer to.
    """

    document: Document
    root: int
    offset: int
    size: int
    row: int
    chunks: int
    paths: tuple[tuple[str, ...], ...]

    def to_json(self) -> str:
        """One line, without what follows from the lines before (offset and row)."""
        d = self.document
        data = {
            "id": d.id,
            "source": d.source,
            "title": d.title,
            "page_starts": d.page_starts,
            "headings": [(h.start, h.level, h.text) for h in d.headings],
            "warnings": d.warnings,
            "root": self.root,
            "size": self.size,
            "chunks": self.chunks,
            "paths": self.paths,
        }
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, line: bytes, *, offset: int, row: int) -> Record:
        """The inverse of `to_json`; the document has an empty text."""
        data: Mapping[str, Any] = json.loads(line)
        document = Document(
            id=data["id"],
            source=data["source"],
            text="",
            title=data["title"],
            page_starts=tuple(data["page_starts"]),
            headings=tuple(Heading(*h) for h in data["headings"]),
            warnings=tuple(data["warnings"]),
        )
        paths = tuple(tuple(p) for p in data["paths"])
        return cls(document, data["root"], offset, data["size"], row, data["chunks"], paths)


class ChunkTable(Sequence[Chunk]):
    """The chunks of a generation in row order, each made when it is asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot.table)

    @overload
    def __getitem__(self, row: int) -> Chunk: ...
    @overload
    def __getitem__(self, row: slice) -> list[Chunk]: ...
    def __getitem__(self, row: int | slice) -> Chunk | list[Chunk]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"chunk row {row} of {len(self)}")
        return self._snapshot.chunk_at(row % len(self))


class Snapshot:
    """Readable state of one generation; safe to use from several threads."""

    def __init__(self, folder: Path, manifest: store.Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        documents = self._file("documents").read_bytes()
        self._texts = _map(self._file("texts"))
        self.table = store.load_array(self._file("chunks"), CHUNK, (manifest.chunks,))
        self.vectors = store.load_array(self._file("vectors"), np.dtype("<f4"), (manifest.chunks, manifest.dimension))
        self.records = self._parse(documents)
        self.postings = self._open_postings()
        self.approximate = self._open_approximate()
        self.chunks = ChunkTable(self)

    @classmethod
    def open(cls, folder: Path) -> Snapshot:
        """The committed generation of `folder`; tries again when a writer swaps it in the meantime."""
        for _ in range(_ATTEMPTS):
            manifest = store.read_manifest(folder)
            try:
                return cls(folder, manifest)
            except (FileNotFoundError, IndexCorrupt) as error:
                if store.read_manifest(folder).generation == manifest.generation:
                    # one damage shows in several places: the checksums say which file it is
                    found = store.damaged_files(folder, manifest) or [str(error)]
                    raise IndexCorrupt(" ".join(found)) from error
        raise IndexError_(f"The index {folder} changed {_ATTEMPTS} times while it was opened. Try again.")

    def _file(self, stem: str) -> Path:
        return store.file_of(self.folder, self.manifest, stem)

    def _damaged(self, stem: str, reason: object) -> IndexCorrupt:
        path = self.folder / self.manifest.files[stem][0]
        return IndexCorrupt(f"{path} is damaged: {reason}. {store.AGAIN}")

    def _parse(self, blob: bytes) -> list[Record]:
        records: list[Record] = []
        offset = row = 0
        try:
            for line in blob.splitlines():
                record = Record.from_json(line, offset=offset, row=row)
                records.append(record)
                offset, row = offset + record.size, row + record.chunks
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged("documents", f"line {len(records) + 1} is not readable ({error})") from error
        if len(records) != self.manifest.documents or row != self.manifest.chunks or offset != len(self._texts):
            raise self._damaged("documents", "its counts do not match the manifest")
        t = self.table
        if len(t) and not (
            np.array_equal(t["document"], np.repeat(np.arange(len(records)), [r.chunks for r in records]))
            and (t["first"] >= 0).all()
            and (t["first"] <= t["last"]).all()
            and (t["last"] <= np.asarray([r.size for r in records])[t["document"]]).all()
            and (t["path"] >= 0).all()
            and (t["path"] < np.asarray([len(r.paths) for r in records])[t["document"]]).all()
        ):
            raise self._damaged("chunks", "its offsets do not match the documents")
        return records

    def _open_postings(self) -> Postings:
        blob = self._file("lexicalterms").read_bytes()
        try:
            terms = terms_from(blob)
        except UnicodeDecodeError as error:
            raise self._damaged("lexicalterms", error) from error
        starts = store.load_array(self._file("lexicalstarts"), np.dtype("<i8"), (len(terms) + 1,))
        size = int(starts[-1])
        if starts[0] != 0 or size < 0 or (np.diff(starts) <= 0).any():
            raise self._damaged("lexicalstarts", "its offsets do not ascend")
        return Postings(
            terms,
            starts,
            store.load_array(self._file("lexicalrows"), np.dtype("<i4"), (size,)),
            store.load_array(self._file("lexicalcounts"), np.dtype("<u2"), (size,)),
            store.load_array(self._file("lexicallengths"), np.dtype("<i4"), (self.manifest.chunks,)),
        )

    def _open_approximate(self) -> vectors.Approximate | None:
        if self.manifest.approximate is None:
            return None
        path = self._file("approximate")
        if store.checksum_file(path) != self.manifest.files["approximate"][1].sha256:
            raise self._damaged("approximate", "its sha256 does not match the manifest")
        index = vectors.Approximate.open(path)
        if index.rows != self.manifest.chunks:
            raise self._damaged("approximate", f"it holds {index.rows} vectors, expected {self.manifest.chunks}")
        return index

    @cached_property
    def by_source(self) -> dict[str, int]:
        """Source → position in `records`."""
        return {r.document.source: i for i, r in enumerate(self.records)}

    @cached_property
    def _rows(self) -> dict[bytes, int]:
        return {bytes(chunk_id): row for row, chunk_id in enumerate(self.table["id"])}

    @cached_property
    def _bm25(self) -> Bm25:
        return Bm25(self.postings)

    def _decode(self, start: int, end: int) -> str:
        try:
            return self._texts[start:end].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self._damaged("texts", error) from error

    def text_bytes(self, position: int) -> bytes:
        """The stored text of one document, UTF-8."""
        record = self.records[position]
        return self._texts[record.offset : record.offset + record.size]

    def chunk_at(self, row: int) -> Chunk:
        """The chunk of one row."""
        r = self.table[row]
        record = self.records[r["document"]]
        return Chunk(
            id=bytes(r["id"]).decode("ascii", "replace"),
            document_id=record.document.id,
            source=record.document.source,
            start=int(r["start"]),
            end=int(r["end"]),
            text=self._decode(record.offset + int(r["first"]), record.offset + int(r["last"])),
            page=int(r["page"]) or None,
            headings=record.paths[r["path"]],
        )

    def chunk(self, chunk_id: str) -> Chunk:
        """The chunk with this id; UsageError where there is none."""
        row = self._rows.get(chunk_id.encode("ascii", "replace"))
        if row is None:
            raise UsageError(f"No chunk {chunk_id!r} in {self.folder}: it was replaced or deleted. Search again.")
        return self.chunk_at(row)

    def document_at(self, position: int) -> Document:
        """A stored document with its text."""
        record = self.records[position]
        return replace(record.document, text=self._decode(record.offset, record.offset + record.size))

    def document(self, source: str) -> Document:
        """The document of this source; UsageError where there is none."""
        position = self.by_source.get(source)
        if position is None:
            raise UsageError(f"No document {source!r} in {self.folder}. Sources are listed by `Index.sources`.")
        return self.document_at(position)

    @property
    def sources(self) -> list[SourceInfo]:
        """All documents, sorted by source."""
        return [
            SourceInfo(r.document.source, r.document.id, r.document.title, len(r.document.page_starts), r.chunks)
            for r in self.records
        ]

    def dense(self, queries: np.ndarray, k: int) -> list[vectors.Hits]:
        """For each unit vector of `queries` [q, d] the best `k` (row, cosine), best first, equal scores by row."""
        if self.approximate is not None:
            return self.approximate.search(self.vectors, queries, k)
        return vectors.exact(self.vectors, queries, k)

    def lexical(self, query: str, k: int) -> vectors.Hits:
        """The best `k` (row, BM25 score above 0), best first, equal scores by row."""
        return self.lexical_scores(query, k)[0]

    def lexical_scores(self, query: str, k: int) -> tuple[vectors.Hits, np.ndarray]:
        """As `lexical`, and the scores of all chunks, float32 [n]."""
        try:
            scores = self._bm25.scores(query)
        except IndexError as error:  # a row beyond the table
            raise self._damaged("lexicalrows", error) from error
        return top(scores, k), scores

    def verify(self) -> list[str]:
        """One sentence for every damage found: all checksums, then that the parts belong together."""
        problems = store.damaged_files(self.folder, self.manifest)
        if problems:
            return problems
        if not np.isfinite(self.vectors).all():
            problems.append(f"{self.folder}: the vectors hold NaN or infinity.")
        if len(self.postings.rows) and not 0 <= self.postings.rows.min() <= self.postings.rows.max() < len(self.table):
            problems.append(f"{self.folder}: the lexical index names chunks that do not exist.")
        for position, record in enumerate(self.records):
            text = self.document_at(position).text
            for row in range(record.row, record.row + record.chunks):
                chunk = self.chunk_at(row)
                same = text[chunk.start : chunk.end] == chunk.text
                if not same or content_hash(chunk.embedded_text).encode() != bytes(self.table[row]["key"]):
                    problems.append(f"{self.folder}: a chunk of {record.document.source} does not match its document.")
                    break
        return problems


def _map(path: Path) -> mmap.mmap | bytes:
    with open(path, "rb") as file:
        # an empty file cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
