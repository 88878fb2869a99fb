"""An index agrees with its folders after every change, embeds nothing twice, and forgets what was deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from rag import generation, vectors
from rag.chunk import ChunkConfig
from rag.errors import EncoderMismatch, IndexCorrupt, IndexLocked, LoadError, NumericalError, UsageError
from rag.index import Index, sync
from rag.load import SourceFile
from rag.lock import WriteLock
from rag.protocols import Progress
from rag.retrieve import Retriever
from rag.types import content_hash
from tests.fakes import FakeEncoder


def generation_bytes(folder: Path) -> dict[str, bytes]:
    manifest = Index.open(folder).manifest
    return {stem: (folder / name).read_bytes() for stem, (name, _) in manifest.files.items()}


def test_what_was_indexed_comes_back(tmp_path: Path, corpus: Path) -> None:
    report = sync(tmp_path / "i", [corpus], FakeEncoder())
    assert (report.documents, report.added, report.updated, report.deleted, report.failed) == (6, 6, 0, 0, ())
    index = Index.open(tmp_path / "i", FakeEncoder())
    assert report.chunks == report.embedded == len(index.chunks) == index.manifest.chunks >= 6
    assert [info.source for info in index.sources] == sorted(
        ["ferry.md", "boats/loan.md", "kitchen.txt", "library.html", "staff.csv", "zh.md"]
    )
    assert sum(info.chunks for info in index.sources) == len(index.chunks)
    for row, chunk in enumerate(index.chunks):
        assert index.text(chunk.source)[chunk.start : chunk.end] == chunk.text
        assert chunk.id == content_hash(chunk.document_id, str(chunk.start), str(chunk.end))
        assert index.chunk(chunk.id) == chunk == index.chunks[row] == index.chunks[row - len(index.chunks)]
        assert index.document(chunk.source).id == chunk.document_id
    assert index.chunks[:2] == [index.chunks[0], index.chunks[1]]
    with pytest.raises(IndexError):
        index.chunks[len(index.chunks)]
    assert any(chunk.headings == ("Ferry",) for chunk in index.chunks)
    assert index.verify() == []


def test_dense_and_lexical_find_the_row(tmp_path: Path, corpus: Path) -> None:
    sync(tmp_path / "i", [corpus], FakeEncoder(dimension=512))
    index = Index.open(tmp_path / "i", FakeEncoder(dimension=512))
    (dense,), (lexical,) = index.dense(["return ticket costs 18 crowns"], 3), index.lexical(["ticket"], 3)
    assert index.chunks[dense[0][0]].source == index.chunks[lexical[0][0]].source == "ferry.md"
    assert len(dense) == 3 and [s for _, s in dense] == sorted((s for _, s in dense), reverse=True)
    (chinese,) = index.lexical(["往返票价是多少"], 3)
    assert index.chunks[chinese[0][0]].source == "zh.md"
    assert index.lexical(["no such word: xylophone"], 3) == [[]]


def test_the_same_corpus_twice_changes_nothing(tmp_path: Path, corpus: Path) -> None:
    encoder = FakeEncoder()
    sync(tmp_path / "i", [corpus], encoder)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "i").iterdir() if p.name != "lock"}
    calls = len(encoder.encoded)
    report = sync(tmp_path / "i", [corpus], encoder)
    assert (report.added, report.updated, report.deleted, report.embedded) == (0, 0, 0, 0)
    assert report.documents == 6 and report.chunks == Index.open(tmp_path / "i").manifest.chunks
    assert len(encoder.encoded) == calls
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "i").iterdir() if p.name != "lock"}


def test_edit_one_delete_one_add_one(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "i"
    sync(folder, [corpus], FakeEncoder())
    (corpus / "kitchen.txt").write_text("The kitchen now closes at 22:30, says the zanzibar cook.")
    (corpus / "ferry.md").unlink()
    (corpus / "new.txt").write_text("A quokka lives in the harbour.")
    report = sync(folder, [corpus], FakeEncoder())
    assert (report.documents, report.added, report.updated, report.deleted, report.embedded) == (6, 1, 1, 1, 2)
    index = Index.open(folder, FakeEncoder())
    assert index.verify() == [] and index.generation == 2
    assert "22:30" in index.text("kitchen.txt")
    with pytest.raises(UsageError, match=r"ferry\.md"):
        index.text("ferry.md")
    for query in ("ferry Korr 07:40 pier 4 return ticket", "kitchen closes 21:15 warm meal"):
        found = [p.chunk.text for p in Retriever(index).search(query, 100)]
        assert not any("Korr" in text or "21:15" in text for text in found)


def test_deleted_words_are_in_no_file_of_the_folder(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "i"
    (corpus / "secret.md").write_text("# Zyzzogeton\n\nThe password is flibbertigibbet, 机密文件.\n")
    sync(folder, [corpus], FakeEncoder())
    words = [w.encode() for w in ("zyzzogeton", "flibbertigibbet", "机密文件", "机密", "secret.md")]
    everything = b"".join(p.read_bytes().lower() for p in folder.iterdir())
    assert all(w in everything for w in words)
    report = Index.open(folder).delete(["secret.md"])
    assert (report.documents, report.deleted, report.embedded) == (6, 1, 0)
    everything = b"".join(p.read_bytes().lower() for p in folder.iterdir())
    assert not any(w in everything for w in words)


def test_changes_step_by_step_make_the_same_bytes_as_indexing_anew(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "i"
    sync(folder, [corpus], FakeEncoder())
    (corpus / "ferry.md").write_text("# Ferry\n\nNo ferry any more. 船停了\n")
    (corpus / "a.txt").write_text("First in order, with naïve words.")
    sync(folder, [corpus], FakeEncoder())
    (corpus / "staff.csv").unlink()
    (corpus / "kitchen.txt").rename(corpus / "canteen.txt")
    sync(folder, [corpus], FakeEncoder())
    sync(tmp_path / "anew", [corpus], FakeEncoder())
    assert generation_bytes(folder) == generation_bytes(tmp_path / "anew")


def test_a_random_walk_of_edits_always_agrees_with_the_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    corpus, folder = tmp_path / "c", tmp_path / "i"
    corpus.mkdir()
    (corpus / "stay.txt").write_text("This one stays.")
    for step in range(12):
        before = {p.name: p.read_text() for p in corpus.iterdir()} if step else {}
        for _ in range(rng.integers(0, 5)):
            path = corpus / f"{rng.integers(0, 6)}.txt"
            if path.exists() and rng.random() < 0.4:
                path.unlink()
            else:
                path.write_text(" ".join(f"word{w}" for w in rng.integers(0, 50, rng.integers(1, 300))))
        now = {p.name: p.read_text() for p in corpus.iterdir()}
        report = sync(folder, [corpus], FakeEncoder())
        assert report.added == len(now.keys() - before.keys()) and report.deleted == len(before.keys() - now.keys())
        assert report.updated == sum(before[name] != now[name] for name in now.keys() & before.keys())
        index = Index.open(folder)
        assert {i.source: index.text(i.source) for i in index.sources} == now and index.verify() == []
    sync(tmp_path / "anew", [corpus], FakeEncoder())
    assert generation_bytes(folder) == generation_bytes(tmp_path / "anew")


def test_a_renamed_file_and_a_copied_paragraph_reuse_their_vectors(tmp_path: Path) -> None:
    corpus, encoder = tmp_path / "c", FakeEncoder()
    corpus.mkdir()
    parts = [" ".join(f"{w}{i}" for i in range(170)) + "." for w in ("owl", "elk", "eel")]
    parts[0] = "# Beasts\n\n" + parts[0]  # so that the title is not the name of the file
    (corpus / "a.md").write_text("\n\n".join(parts))
    first = sync(tmp_path / "i", [corpus], encoder)
    assert first.embedded == first.chunks >= 3
    (corpus / "a.md").rename(corpus / "b.md")
    assert sync(tmp_path / "i", [corpus], encoder).embedded == 0
    (corpus / "b.md").write_text("\n\n".join([parts[0], parts[1].replace("elk7 ", "elephant "), parts[2]]))
    assert sync(tmp_path / "i", [corpus], encoder).embedded == 1 < first.chunks
    shutil.copy(corpus / "b.md", corpus / "c.md")
    report = sync(tmp_path / "i", [corpus], encoder)
    assert (report.embedded, report.chunks) == (0, 2 * first.chunks)


def test_add_and_delete_single_files(tmp_path: Path, corpus: Path) -> None:
    folder, encoder = tmp_path / "i", FakeEncoder()
    sync(folder, [corpus], encoder)
    upload = tmp_path / "upload.txt"
    upload.write_text("An uploaded note on narwhals.")
    index = Index.open(folder, encoder)
    report = index.add([SourceFile(upload, "uploads/note.txt"), SourceFile(tmp_path / "gone.txt", "gone.txt")])
    assert (report.documents, report.added) == (7, 1)
    assert [f.source for f in report.failed] == ["gone.txt"]
    assert index.text("uploads/note.txt").strip() == "An uploaded note on narwhals."  # the open index moved on
    upload.write_text("A changed note on narwhals.")
    assert index.add([SourceFile(upload, "uploads/note.txt")]).updated == 1
    upload.unlink()
    assert sync(folder, [corpus], encoder).deleted == 0  # it belongs to no root
    assert index.delete(["uploads/note.txt", "ferry.md"]).deleted == 2
    assert len(index.sources) == 5
    with pytest.raises(UsageError, match=r"No document 'ferry\.md'"):
        index.delete(["ferry.md"])
    assert index.delete([s.source for s in index.sources]).documents == 0
    assert Index.open(folder, encoder).dense(["narwhal"], 5) == [[]] == index.lexical(["narwhal"], 5)
    assert Retriever(index).search("narwhal") == [] and index.verify() == []
    assert sync(folder, [corpus], encoder).added == 6


def test_an_open_index_follows_another_writer_when_asked(tmp_path: Path, corpus: Path) -> None:
    sync(tmp_path / "i", [corpus], FakeEncoder())
    index = Index.open(tmp_path / "i", FakeEncoder())
    old = index.snapshot
    assert not index.refresh()
    Index.open(tmp_path / "i").delete(["ferry.md"])
    assert old.document("ferry.md").text and index.text("ferry.md")  # still readable: the files are held open
    assert index.refresh() and not index.refresh()
    assert index.generation == 2 and "ferry.md" not in {s.source for s in index.sources}


class TestRoots:
    def make(self, tmp_path: Path) -> tuple[Path, Path]:
        for name in ("north", "south"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "readme.txt").write_text(f"The {name} harbour.")
        return tmp_path / "north", tmp_path / "south"

    def sources(self, folder: Path) -> list[str]:
        return [info.source for info in Index.open(folder).sources]

    def test_equal_paths_under_two_roots_stay_distinct(self, tmp_path: Path) -> None:
        north, south = self.make(tmp_path)
        sync(tmp_path / "i", [north, south], FakeEncoder())
        assert self.sources(tmp_path / "i") == ["north/readme.txt", "south/readme.txt"]

    def test_a_second_root_later_keeps_the_names_of_the_first(self, tmp_path: Path) -> None:
        north, south = self.make(tmp_path)
        sync(tmp_path / "i", [north], FakeEncoder())
        report = sync(tmp_path / "i", [south], FakeEncoder())
        assert (report.documents, report.added, report.deleted) == (2, 1, 0)
        assert self.sources(tmp_path / "i") == ["readme.txt", "south/readme.txt"]
        again = sync(tmp_path / "i", [south, north], FakeEncoder())
        assert (again.added, again.updated, again.deleted, again.embedded) == (0, 0, 0, 0)

    def test_only_the_given_roots_lose_what_vanished(self, tmp_path: Path) -> None:
        north, south = self.make(tmp_path)
        (south / "more.txt").write_text("More of the south.")
        sync(tmp_path / "i", [north, south], FakeEncoder())
        (south / "more.txt").unlink()
        (north / "readme.txt").unlink()
        (north / "other.txt").write_text("Other.")
        assert sync(tmp_path / "i", [south], FakeEncoder()).deleted == 1
        assert self.sources(tmp_path / "i") == ["north/readme.txt", "south/readme.txt"]

    def test_two_roots_of_one_name(self, tmp_path: Path) -> None:
        for parent in ("x", "y"):
            (tmp_path / parent / "docs").mkdir(parents=True)
            (tmp_path / parent / "docs" / "a.txt").write_text(f"In {parent}.")
        sync(tmp_path / "i", [tmp_path / "x/docs", tmp_path / "y/docs"], FakeEncoder())
        assert self.sources(tmp_path / "i") == ["docs-2/a.txt", "docs/a.txt"]

    def test_files_given_by_themselves(self, tmp_path: Path) -> None:
        north, south = self.make(tmp_path)
        report = sync(tmp_path / "i", [north / "readme.txt", south / "readme.txt"], FakeEncoder())
        assert report.documents == 2
        assert self.sources(tmp_path / "i") == ["readme.txt", "south/readme.txt"]

    def test_the_index_inside_the_corpus_is_not_indexed(self, tmp_path: Path, corpus: Path) -> None:
        sync(corpus / "index", [corpus], FakeEncoder())
        report = sync(corpus / "index", [corpus], FakeEncoder())
        assert (report.documents, report.added, report.updated) == (6, 0, 0)

    def test_a_folder_given_twice_counts_once(self, tmp_path: Path, corpus: Path) -> None:
        assert sync(tmp_path / "i", [corpus, corpus / "boats", corpus], FakeEncoder()).documents == 6


class TestBadInput:
    def test_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        with pytest.raises(UsageError, match=r"Nothing to read in .*\.txt"):
            sync(tmp_path / "i", [tmp_path / "c"], FakeEncoder())
        assert not (tmp_path / "i").exists()

    def test_a_folder_that_became_empty_deletes_nothing(self, tmp_path: Path, corpus: Path) -> None:
        sync(tmp_path / "i", [corpus], FakeEncoder())
        shutil.rmtree(corpus)
        with pytest.raises(UsageError, match="does not exist"):
            sync(tmp_path / "i", [corpus], FakeEncoder())
        corpus.mkdir()  # as an unmounted drive leaves it
        with pytest.raises(UsageError, match="Nothing was changed"):
            sync(tmp_path / "i", [corpus], FakeEncoder())
        assert len(Index.open(tmp_path / "i").sources) == 6

    def test_one_bad_file_is_reported_and_the_rest_indexed(self, tmp_path: Path, corpus: Path) -> None:
        (corpus / "empty.txt").touch()
        (corpus / "broken.pdf").write_bytes(b"%PDF-1.7\nhalf")
        report = sync(tmp_path / "i", [corpus], FakeEncoder())
        assert report.documents == 6
        assert sorted(f.source for f in report.failed) == ["broken.pdf", "empty.txt"]
        assert all(f.reason for f in report.failed)

    def test_a_file_that_became_unreadable_leaves_its_earlier_version(self, tmp_path: Path, corpus: Path) -> None:
        sync(tmp_path / "i", [corpus], FakeEncoder())
        (corpus / "ferry.md").write_bytes(b"")
        report = sync(tmp_path / "i", [corpus], FakeEncoder())
        assert (report.documents, report.deleted) == (6, 0) and report.failed[0].source == "ferry.md"
        assert "Korr" in Index.open(tmp_path / "i").text("ferry.md")

    def test_nothing_readable_writes_no_index(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "a.txt").touch()
        with pytest.raises(LoadError, match=r"None of the 1 files could be read.*a\.txt: is empty"):
            sync(tmp_path / "i", [tmp_path / "c"], FakeEncoder())
        assert not (tmp_path / "i" / "manifest.json").exists()

    def test_the_output_is_a_file(self, tmp_path: Path, corpus: Path) -> None:
        (tmp_path / "i").write_text("x")
        with pytest.raises(UsageError, match="is a file; give a folder"):
            sync(tmp_path / "i", [corpus], FakeEncoder())

    def test_a_locked_index_is_not_written_but_read(self, tmp_path: Path, corpus: Path) -> None:
        sync(tmp_path / "i", [corpus], FakeEncoder())
        with WriteLock(tmp_path / "i"):
            with pytest.raises(IndexLocked, match=f"process {os.getpid()}"):
                sync(tmp_path / "i", [corpus], FakeEncoder())
            assert len(Index.open(tmp_path / "i").sources) == 6

    def test_another_encoder_is_refused_naming_both(self, tmp_path: Path, corpus: Path) -> None:
        sync(tmp_path / "i", [corpus], FakeEncoder("first"))
        for other in (
            FakeEncoder("second"),
            FakeEncoder("first", salt="other weights"),
            FakeEncoder("first", dimension=8),
        ):
            for attempt in (lambda e: Index.open(tmp_path / "i", e), lambda e: sync(tmp_path / "i", [corpus], e)):
                with pytest.raises(
                    EncoderMismatch, match=rf"encoder first .*you gave {other.name} .*index the documents"
                ):
                    attempt(other)
        report = sync(tmp_path / "i", [corpus], FakeEncoder("second"), rebuild=True)
        assert report.embedded == report.chunks
        assert Index.open(tmp_path / "i", FakeEncoder("second")).manifest.encoder == "second"

    def test_dense_search_without_an_encoder(self, tmp_path: Path, corpus: Path) -> None:
        sync(tmp_path / "i", [corpus], FakeEncoder())
        with pytest.raises(UsageError, match="opened without an encoder"):
            Index.open(tmp_path / "i").dense(["x"], 1)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
    def test_bad_vectors_are_refused_naming_the_document(self, tmp_path: Path, corpus: Path, value: float) -> None:
        class Broken(FakeEncoder):
            def encode(
                self,
                texts: Sequence[str],
                *,
                kind: Literal["query", "passage"] = "passage",
                progress: Progress | None = None,
            ) -> np.ndarray:
                out = super().encode(texts, kind=kind, progress=progress)
                out[[i for i, text in enumerate(texts) if "ferry" in text.lower()]] = value
                return out

        sync(tmp_path / "i", [corpus], FakeEncoder())
        (corpus / "ferry.md").write_text("The ferry is new.")
        with pytest.raises(NumericalError, match=r"fake-encoder returned NaN, infinite or zero.*ferry\.md"):
            sync(tmp_path / "i", [corpus], Broken())
        index = Index.open(tmp_path / "i", Broken())
        assert index.verify() == [] and index.generation == 1
        with pytest.raises(NumericalError, match="ferry"):
            index.dense(["ferry"], 1)

    def test_a_damaged_index_is_made_anew_on_request(self, tmp_path: Path, corpus: Path) -> None:
        sync(tmp_path / "i", [corpus], FakeEncoder())
        (tmp_path / "i" / "manifest.json").write_text("{}")
        with pytest.raises(IndexCorrupt):
            sync(tmp_path / "i", [corpus], FakeEncoder())
        assert sync(tmp_path / "i", [corpus], FakeEncoder(), rebuild=True).documents == 6
        assert Index.open(tmp_path / "i").verify() == []


def test_other_chunk_settings_cut_anew_from_the_stored_texts(tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    corpus.mkdir()
    for name in ("a", "b"):
        (corpus / f"{name}.txt").write_text(" ".join(f"Sentence {name} number {i} ends here." for i in range(60)))
    first = sync(tmp_path / "i", [corpus], FakeEncoder())
    report = sync(tmp_path / "i", [corpus], FakeEncoder(), chunk=ChunkConfig(words=40, max_words=60))
    assert report.chunks > first.chunks and (report.added, report.updated) == (0, 0)
    assert sync(tmp_path / "i", [corpus], FakeEncoder()).embedded == 0  # the settings of the index are kept
    assert Index.open(tmp_path / "i").manifest.chunking["words"] == 40


def test_an_interrupted_run_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "EMBED_BLOCK", 4)
    corpus = tmp_path / "c"
    corpus.mkdir()
    for i in range(20):
        (corpus / f"{i}.txt").write_text(f"Note {i} on pebbles.")

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "embed" and done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(tmp_path / "i", [corpus], FakeEncoder(), progress=stop)
    assert not (tmp_path / "i" / "manifest.json").exists()
    encoder = FakeEncoder()
    report = sync(tmp_path / "i", [corpus], encoder)
    assert report.documents == 20 and report.embedded == len(encoder.encoded) == 12
    assert not (tmp_path / "i" / "journal.bin").exists()
    sync(tmp_path / "anew", [corpus], FakeEncoder())
    assert generation_bytes(tmp_path / "i") == generation_bytes(tmp_path / "anew")


def test_progress_tells_stages_in_order(tmp_path: Path, corpus: Path) -> None:
    calls: list[tuple[str, int, int, str]] = []
    sync(tmp_path / "i", [corpus], FakeEncoder(), progress=lambda *call: calls.append(call))
    stages = [stage for stage, *_ in calls]
    assert list(dict.fromkeys(stages)) == ["read", "embed", "write"]
    for stage in ("read", "embed", "write"):
        done = [d for s, d, _, _ in calls if s == stage]
        assert done == sorted(done) and done[-1] == [t for s, _, t, _ in calls if s == stage][-1]


def test_odd_characters_survive(tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    corpus.mkdir()
    text = "Line\u2028separator, naïve 渡船 𝔘𝔫𝔦 🛶 \u202eRTL. "
    (corpus / "ünï 渡.md").write_text(f"# Ü 🛶\n\n{text * 30}\n\n## 渡船\n\n{text * 30}", encoding="utf-8")
    sync(tmp_path / "i", [corpus], FakeEncoder())
    index = Index.open(tmp_path / "i")
    assert index.verify() == []
    for chunk in index.chunks:
        assert index.text(chunk.source)[chunk.start : chunk.end] == chunk.text


class TestApproximate:
    @pytest.fixture()
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(vectors, "EXACT_ROWS", 300)
        rng = np.random.default_rng(5)
        words = [f"word{i}" for i in range(150)]
        (tmp_path / "c").mkdir()
        for i in range(600):
            topic = rng.integers(0, 15)
            chosen = rng.choice(words[topic * 10 : topic * 10 + 10], 12)
            (tmp_path / "c" / f"{i:03}.txt").write_text(" ".join(chosen))
        sync(tmp_path / "i", [tmp_path / "c"], FakeEncoder())
        return tmp_path / "i"

    def test_finds_nearly_what_exact_search_finds_with_the_same_scores(self, folder: Path) -> None:
        index = Index.open(folder, FakeEncoder())
        assert index.manifest.approximate == {"lists": 97, "trained_on": 600} and index.verify() == []
        queries = [index.chunks[row].text for row in range(0, 600, 20)]
        near = index.dense(queries, 10)
        exact = vectors.exact(index.snapshot.vectors, index.embed_queries(queries), 10)
        shares = []
        for found, true in zip(near, exact, strict=True):
            edge = true[-1][1] - 1e-5  # of rows that tie with the tenth, any is right
            shares.append(sum(score >= edge for _, score in found) / len(true))
            assert found == sorted(found, key=lambda hit: (-hit[1], hit[0]))
        assert np.mean(shares) > 0.9

    def test_follows_changes_and_goes_below_the_size(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "c" / "owl.txt").write_text("owl owl heron")
        sync(folder, [tmp_path / "c"], FakeEncoder())
        index = Index.open(folder, FakeEncoder())
        assert index.manifest.approximate == {"lists": 97, "trained_on": 600}  # cells are kept, vectors are new
        assert index.chunks[index.dense(["owl heron"], 1)[0][0][0]].source == "owl.txt"
        index.delete([info.source for info in index.sources[:400]])
        assert index.manifest.approximate is None and not list(folder.glob("*.faiss"))
        assert index.chunks[index.dense(["owl heron"], 1)[0][0][0]].source == "owl.txt"

    def test_damage_is_noticed_before_faiss_reads_the_file(self, folder: Path) -> None:
        path = next(folder.glob("*.faiss"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(IndexCorrupt, match=r"approximate-1\.faiss"):
            Index.open(folder)
