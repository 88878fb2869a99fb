"""The documents behind the page: what is indexed, and the ways to look at it and to change it.

One `Index` serves all visitors. It is safe to share: every call answers from one generation, a change is one commit,
and a question that has its passages keeps them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apps.serving import put_query_encoder
from apps.uploads import PREFIX, UploadLimits, keep, megabytes, refusal, safe_name
from apps.views import ChunkRow, DocumentRow, OpenDocument, SearchColumn, Upload
from rag.errors import RagtuneError, UsageError

if TYPE_CHECKING:
    from rag.protocols import Encoder, Reranker
    from rag.retrieve import RetrievalConfig, Retriever

SHOWN_CHARACTERS = 60_000  # of an opened document, around the span; more makes a phone stutter
MAX_QUERY = 4_000
_SHOW_EVERY = 0.2  # seconds between two states of a file that is worked on
_STAGE = {"read": "reading", "load": "reading", "embed": "embedding", "write": "saving"}
_STAGES: tuple[tuple[Literal["dense", "lexical", "fused", "rerank"], Literal["dense", "lexical", "hybrid"]], ...] = (
    ("dense", "dense"),
    ("lexical", "lexical"),
    ("fused", "hybrid"),
    ("rerank", "hybrid"),
)


class Library:
    """The documents of one index folder; safe to use from many threads.

    Raises IndexMissing or IndexCorrupt when `folder` holds no usable index.
    """

    def __init__(
        self, folder: Path, *, retrieval: RetrievalConfig | None = None, limits: UploadLimits = UploadLimits()
    ) -> None:
        from rag.index import Index
        from rag.retrieve import RetrievalConfig

        self.folder = folder
        place = folder.resolve()  # "." has no name to put beside
        self.name = place.name
        self.uploads = place.with_name(place.name + ".uploads")
        self.limits = limits
        self.retrieval = retrieval or RetrievalConfig()
        self.index = Index.open(folder)
        self.encoder_name = self.index.manifest.encoder
        self.retriever: Retriever | None = None
        self._reranker: Reranker | None = None
        self._writing = threading.Lock()

    @property
    def reranks(self) -> bool:
        """Whether a reranker has the last word."""
        return self._reranker is not None or self.retrieval.reranker is not None

    @property
    def ready(self) -> bool:
        """Whether the encoder is there, so that documents can be added and searched by meaning."""
        return self.retriever is not None

    def attach(self, encoder: Encoder, reranker: Reranker | None = None) -> None:
        """Make the library searchable. Raises EncoderMismatch when the index was made with another encoder."""
        from rag.index import Index
        from rag.retrieve import Retriever

        self.index = Index.open(self.folder, encoder)
        put_query_encoder(self.index)
        self._reranker = reranker
        self.retriever = Retriever(self.index, self.retrieval, reranker=reranker)

    # ------------------------------------------------------------------ reading

    def counts(self) -> tuple[int, int]:
        """Documents and chunks of the current generation."""
        self.index.refresh()  # another process may have committed
        return len(self.index.sources), len(self.index.chunks)

    def documents(self, containing: str = "") -> list[DocumentRow]:
        """What is indexed, by name; only names or titles with `containing` in them when it is given."""
        wanted = containing.strip().casefold()
        self.index.refresh()
        rows = [DocumentRow(s.source, s.title, s.pages, s.chunks, _uploaded(s.source)) for s in self.index.sources]
        found = [r for r in rows if not wanted or wanted in r.source.casefold() or wanted in r.title.casefold()]
        return sorted(found, key=lambda r: (not r.uploaded, r.source))

    def examples(self, n: int = 3) -> list[str]:
        """Questions to begin with, about headings of documents far apart; fewer where there are no headings."""
        chunks = self.index.chunks
        titles = {s.source: s.title or s.source for s in self.index.sources}
        topics: dict[str, str] = {}
        for row in range(0, len(chunks), max(1, len(chunks) // 300)):  # a sample: a table may have a million rows
            chunk = chunks[row]
            if len(chunk.headings) > 1 and len(chunk.headings[-1]) <= 50 and len(titles.get(chunk.source, "")) <= 60:
                topics[chunk.source] = chunk.headings[-1].strip()
        found = list(topics.items())
        step = max(1, len(found) // max(1, n))
        return [f"What does “{titles[source]}” say about “{topic}”?" for source, topic in found[step // 2 :: step][:n]]

    def open(self, source: str, start: int, end: int) -> OpenDocument:
        """The text of a document around [start, end). Raises UsageError when it is no longer indexed."""
        if source not in self._present():
            raise UsageError(f"“{source}” is not in the index any more: it was deleted or renamed.")
        text = self.index.text(source)
        start, end = max(0, min(start, len(text))), max(0, min(end, len(text)))
        begin = max(0, min(start - SHOWN_CHARACTERS // 2, len(text) - SHOWN_CHARACTERS))
        return OpenDocument(source, text[begin : begin + SHOWN_CHARACTERS], begin, start, max(start, end), len(text))

    def chunks(self, source: str, most: int = 200) -> tuple[tuple[ChunkRow, ...], int]:
        """The first `most` chunks of a document in order, and how many it has. UsageError when it is not indexed."""
        if source not in self._present():
            raise UsageError(f"“{source}” is not in the index any more: it was deleted or renamed.")
        found = sorted((c for c in self.index.chunks if c.source == source), key=lambda c: c.start)
        rows = tuple(
            ChunkRow(i, c.start, c.end, c.page, c.headings, c.text) for i, c in enumerate(found[:most], start=1)
        )
        return rows, len(found)

    def search(self, query: str, k: int = 5) -> tuple[SearchColumn, ...]:
        """What each stage of retrieval finds for `query`, without a chat model. UsageError for an unusable query."""
        from rag.retrieve import Retriever

        query = query.strip()
        if not query:
            raise UsageError("Type words to search for.")
        if len(query) > MAX_QUERY:
            raise UsageError(f"The search has {len(query):,} characters; at most {MAX_QUERY:,} are taken. Shorten it.")
        columns: list[SearchColumn] = []
        for stage, mode in _STAGES:
            if stage == "rerank" and not self.reranks:
                columns.append(
                    SearchColumn("rerank", note="No reranker is in use: start with `--reranker NAME` to have one.")
                )
            elif stage != "lexical" and not self.ready:
                columns.append(SearchColumn(stage, note="The encoder is still loading."))
            else:
                config = replace(
                    self.retrieval, mode=mode, reranker=self.retrieval.reranker if stage == "rerank" else None
                )
                retriever = Retriever(self.index, config, reranker=self._reranker if stage == "rerank" else None)
                columns.append(SearchColumn(stage, tuple(retriever.search(query, k))))
        return tuple(columns)

    # ----------------------------------------------------------------- changing

    def upload(self, files: Sequence[tuple[Path, str]]) -> Iterator[tuple[Upload, ...]]:
        """Index files given as (path, name the person gave it); yields all verdicts so far after every change of one.

        A file that cannot be used is reported and never stops the others. A file of a name that was uploaded before
        replaces it. Each file is committed by itself, so that leaving early keeps what was finished.
        """
        items, paths = self._admit(files)
        yield tuple(items)
        for i, path in enumerate(paths):
            if path is None:
                continue
            for state in self._watched(path, items[i]):
                items[i] = state
                yield tuple(items)
        if any(item.status == "indexed" for item in items):
            present = self._present()
            for i, item in enumerate(items):  # a file is indexed only when it can be read back
                if item.status == "indexed" and item.source not in present:
                    items[i] = replace(item, status="failed", note="It was indexed, but is not in the index now.")
        yield tuple(items)

    def _admit(self, files: Sequence[tuple[Path, str]]) -> tuple[list[Upload], list[Path | None]]:
        """A row for each file, and the path of those that may be tried."""
        from rag.load import SUFFIXES

        items: list[Upload] = []
        paths: list[Path | None] = []
        total, taken = 0, set()
        for path, given in files:
            name = safe_name(given)
            size = path.stat().st_size
            total += size
            why = refusal(name, size, SUFFIXES, self.limits)
            if not why and name.casefold() in taken:
                why = "Another file of this upload has the same name; rename one of them."
            if not why and len(items) >= self.limits.files:
                why = f"At most {self.limits.files} files are taken at once; upload the rest afterwards."
            if not why and total > self.limits.batch_bytes:
                why = f"This upload has more than {megabytes(self.limits.batch_bytes)}; upload the rest afterwards."
            taken.add(name.casefold())
            items.append(Upload(given or name, PREFIX + name, "failed" if why else "queued", why))
            paths.append(None if why else path)
        return items, paths

    def _watched(self, path: Path, item: Upload) -> Iterator[Upload]:
        """One file while it is worked on, a few times a second with its stage, and last its verdict."""
        told: queue.SimpleQueue[Upload | None] = queue.SimpleQueue()
        working = replace(item, status="working", stage="waiting for its turn")
        yield working

        def report(stage: str, done: int, total: int) -> None:
            told.put(replace(working, stage=_STAGE.get(stage, stage), share=done / total if total else 0.0))

        def work() -> None:
            try:
                told.put(self._index_one(path, item, report))
            finally:
                told.put(None)

        threading.Thread(target=work, name="ragtune-upload", daemon=True).start()
        last = replace(item, status="failed", note="It could not be indexed; the terminal says why.")
        shown = 0.0
        while (state := told.get()) is not None:
            if state.finished:
                last = state
            elif time.monotonic() - shown > _SHOW_EVERY:
                shown = time.monotonic()
                yield state
        yield last

    def _index_one(self, path: Path, item: Upload, report: Callable[[str, int, int], None]) -> Upload:
        """The verdict on one file, after its commit. The kept copy appears only when the file was indexed."""
        name = item.source.removeprefix(PREFIX)
        try:
            with self._writing:
                return self._commit(path, name, item, report)
        except RagtuneError as error:
            return replace(item, status="failed", note=str(error))
        except OSError as error:
            return replace(item, status="failed", note=f"It could not be stored: {error.strerror or error}.")

    def _commit(self, path: Path, name: str, item: Upload, report: Callable[[str, int, int], None]) -> Upload:
        from rag.load import SourceFile

        incoming = keep(path, self.uploads / ".incoming", name)
        try:
            found = self.index.add(
                [SourceFile(incoming, item.source)],
                progress=lambda stage, done, total, _detail: report(stage, done, total),
            )
            if found.failed:
                return replace(item, status="failed", note=_as_sentence(found.failed[0].reason))
            incoming.replace(self.uploads / name)
        finally:
            incoming.unlink(missing_ok=True)
        return self._verdict(item, bool(found.added or found.updated), bool(found.updated))

    def _verdict(self, item: Upload, changed: bool, replaced: bool) -> Upload:
        """What became of a file that was read, from the index itself."""
        info = next((s for s in self.index.sources if s.source == item.source), None)
        if info is None or not info.chunks:
            return replace(item, status="failed", note="No text was found in it.")
        item = replace(item, pages=info.pages, chunks=info.chunks)
        if not changed:
            return replace(item, status="unchanged", note="The same file was indexed before.")
        note = "It replaces the earlier file of this name." if replaced else ""
        return replace(item, status="indexed", note=note)

    def reindex(self, source: str) -> Upload:
        """Read a document's file again and take over what changed; the verdict. UsageError when it is not indexed."""
        from rag.index import sync
        from rag.load import SourceFile

        if source not in self._present():
            raise UsageError(f"“{source}” is not in the index any more: it was deleted or renamed.")
        item = Upload(source, source)
        file, root = self._file(source)
        if file is None or self.index.encoder is None:
            why = "Its file is not where it was." if file is None else "The encoder is still loading."
            return replace(item, status="failed", note=why)
        try:
            with self._writing:
                if root is None:
                    found = self.index.add([SourceFile(file, source)])
                else:
                    found = sync(self.folder, [root], self.index.encoder)
                    self.index.refresh()
            reason = next((f.reason for f in found.failed if f.source == source), "")
        except (RagtuneError, OSError) as error:
            return replace(item, status="failed", note=str(error))
        if reason:
            return replace(item, status="failed", note=_as_sentence(reason))
        changed = bool(found.added or found.updated)
        return replace(self._verdict(item, changed, False), note="" if changed else "Its file has not changed.")

    def _file(self, source: str) -> tuple[Path | None, Path | None]:
        """Where a document's file lies, and the indexed folder it belongs to (None for uploads)."""
        if _uploaded(source):
            kept = self.uploads / safe_name(source.removeprefix(PREFIX))
            return (kept if kept.is_file() else None), None
        for root in self.index.manifest.roots:
            path, prefix = Path(root["path"]), str(root["prefix"])
            rest = source.removeprefix(prefix).lstrip("/") if source.startswith(prefix) else None
            if rest is None:
                continue
            for file in (path / rest if rest else path, path):
                if file.is_file():
                    return file, path
        return None, None

    def delete(self, sources: Sequence[str]) -> str:
        """Remove documents from the index, and the kept copies of uploaded ones; says what was done.

        Raises UsageError when none is named or one is not there.
        """
        if not sources:
            raise UsageError("Choose the documents to delete first.")
        with self._writing:
            present = self._present()
            gone = [s for s in sources if s not in present]
            if gone:
                raise UsageError(f"“{gone[0]}” is not in the index any more; reload the page to see what is.")
            self.index.delete(list(sources))
            for source in filter(_uploaded, sources):
                (self.uploads / safe_name(source.removeprefix(PREFIX))).unlink(missing_ok=True)
        if len(sources) == 1:
            return "1 document is deleted: no answer can use it any more."
        return f"{len(sources)} documents are deleted: no answer can use them any more."

    def _present(self) -> set[str]:
        self.index.refresh()
        return {s.source for s in self.index.sources}


def _uploaded(source: str) -> bool:
    return source.startswith(PREFIX)


def _as_sentence(reason: str) -> str:
    """A loader's reason ("is encrypted; …") with its subject and its full stop."""
    text = f"The file {reason}" if reason[:1].islower() else reason
    return text if text.endswith((".", "!", "?")) else text + "."
