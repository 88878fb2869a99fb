"""What a commit promises: old state or new state after every fault, every damage named, one writer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from rag import generation, store
from rag.errors import IndexCorrupt, IndexError_, IndexLocked, IndexMissing, RagtuneError
from rag.index import Index, sync
from rag.journal import Journal
from rag.lock import WriteLock
from rag.retrieve import Retriever
from tests.fakes import FakeEncoder

State = dict[str, str]


def write_corpus(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


OLD = {f"d{i}.txt": f"Document {i} of the old state. " + f"pebble{i} " * 40 for i in range(8)}
NEW = {**{k: OLD[k] for k in list(OLD)[:5]}, "d5.txt": "Changed words about herons.", "d9.txt": "A new one about owls."}


def state_of(folder: Path) -> State:
    index = Index.open(folder)
    assert index.verify() == []
    return {info.source: index.text(info.source) for info in index.sources}


def expected(files: dict[str, str]) -> State:
    return {name: text.strip() for name, text in files.items()}


def stripped(state: State) -> State:
    return {name: text.strip() for name, text in state.items()}


class FaultyDisk(store.Disk):
    """Fails the n-th operation: as a full disk does, with half of a write done, or as death does (all later ones, too)."""

    def __init__(self, fail_at: int, kind: str) -> None:
        self.left = fail_at
        self.kind = kind
        self.fired = False

    def _step(self) -> bool:
        self.left -= 1
        if self.left == 0 or (self.fired and self.kind == "death"):
            self.fired = True
            return True
        return False

    def put(self, handle: int, view: memoryview) -> int:
        if self._step():
            if self.kind != "refused":
                os.write(handle, view[: len(view) // 2])
            raise OSError(28, "No space left on device")
        return super().put(handle, view)

    def sync(self, handle: int) -> None:
        if self._step():
            raise OSError(5, "Input/output error")
        super().sync(handle)

    def rename(self, source: Path, target: Path) -> None:
        if self._step():
            raise OSError(5, "Input/output error")
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        if self._step():
            raise OSError(5, "Input/output error")
        super().remove(path)


@pytest.mark.parametrize("kind", ["refused", "short", "death"])
def test_every_failing_file_operation_leaves_the_old_or_the_new_state(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "EMBED_BLOCK", 1)  # so that the journal takes part
    encoder, corpus = FakeEncoder(), tmp_path / "corpus"
    sync(tmp_path / "before", [write_corpus(corpus, OLD)], encoder)
    write_corpus(corpus, NEW)
    reached = 0
    for n in range(1, 500):
        index = shutil.copytree(tmp_path / "before", tmp_path / f"index{n}")
        disk = FaultyDisk(n, kind)
        try:
            sync(index, [corpus], encoder, disk=disk)
        except IndexError_ as error:
            assert str(index) in str(error)
        state = stripped(state_of(index))
        assert state in (expected(OLD), expected(NEW))
        sync(index, [corpus], encoder)
        assert stripped(state_of(index)) == expected(NEW)
        names = {name for name, _ in Index.open(index).manifest.files.values()}
        assert {p.name for p in index.iterdir()} - {"lock"} == names | {"manifest.json"}
        if not disk.fired:
            break
        reached = n
    assert reached > 30  # each file is written and flushed, then the manifest, the folder, the rename, the removals


def test_a_full_disk_is_a_sentence_with_the_file_and_nothing_is_left_behind(tmp_path: Path) -> None:
    encoder, corpus, index = FakeEncoder(), tmp_path / "c", tmp_path / "index"
    sync(index, [write_corpus(corpus, OLD)], encoder)
    before = sorted(p.name for p in index.iterdir())
    with pytest.raises(IndexError_, match=r"texts-2\.txt.*No space left.*MiB are free.*state before this run"):
        sync(index, [write_corpus(corpus, NEW)], encoder, disk=FaultyDisk(3, "short"))
    assert sorted(p.name for p in index.iterdir()) == before


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from rag import generation
from rag.index import sync
from tests.fakes import FakeEncoder
from tests.rag.test_store import NEW, OLD, write_corpus
generation.EMBED_BLOCK = 2
index, corpus = Path({index!r}), Path({corpus!r})
print("go", flush=True)
for turn in range(1_000_000):
    for name, files in (("new", NEW), ("old", OLD)):
        sync(index, [write_corpus(corpus / name, files)], FakeEncoder())
"""


def _kill_while_writing(tmp_path: Path, root: Path, times: int) -> None:
    """A child alternates between two corpora (as two roots, so that each commit changes the whole index)."""
    index, corpus = tmp_path / "index", tmp_path / "corpus"
    random = np.random.default_rng(7)
    code = CHILD.format(root=str(root), index=str(index), corpus=str(corpus))
    seen = set()
    for _ in range(times):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root)
        assert child.stdout is not None and child.stdout.readline() == b"go\n"
        time.sleep(float(random.uniform(0.0, 0.4)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if not (index / "manifest.json").exists():  # killed before the first commit
            continue
        state = stripped(state_of(index))
        whole_new, whole_old = expected(NEW), expected(OLD)
        new = {s.removeprefix("new/"): t for s, t in state.items() if "old" not in s.split("/")[0]}
        assert new == whole_new
        old = {s.removeprefix("old/"): t for s, t in state.items() if s.startswith("old/")}
        assert old in ({}, whole_old)
        seen.add(Index.open(index).generation)
        for folder, files in (("new", NEW), ("old", OLD)):
            sync(index, [write_corpus(corpus / folder, files)], FakeEncoder())
        assert not [p for p in index.iterdir() if p.suffix == ".tmp"]
    assert seen


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_kill_9_at_ten_random_moments_leaves_a_whole_index(tmp_path: Path, root: Path) -> None:
    _kill_while_writing(tmp_path, root, 10)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_kill_9_at_fifty_random_moments_leaves_a_whole_index(tmp_path: Path, root: Path) -> None:
    _kill_while_writing(tmp_path, root, 50)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("pristine")
    files = {
        "a.md": "# Boats\n\nThe blue boat is 七 metres long.\n",
        "b.txt": "Nine books for 28 days, say the librarians.",
    }
    sync(folder / "index", [write_corpus(folder / "corpus", files)], FakeEncoder())
    return {p.name: p.read_bytes() for p in (folder / "index").iterdir() if p.name != "lock"}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def must_name(folder: Path, name: str) -> None:
    """`open` or `verify` says which file is damaged, and nothing but our own errors comes out of a search."""
    try:
        index = Index.open(folder, FakeEncoder())
        with contextlib.suppress(RagtuneError):  # a search may meet the damage first
            Retriever(index).search("blue boat 七 books")
        problems = " ".join(index.verify())
    except (IndexCorrupt, IndexMissing, IndexError_) as error:
        problems = str(error)
    assert name in problems, problems


def damaged(data: bytes) -> Iterable[bytes]:
    for offset in np.unique(np.linspace(0, len(data) - 1, 64).astype(int)):
        bit = 1 << int(offset) % 8
        yield data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :]
    yield data[: len(data) // 2]
    yield b""
    yield bytes(len(data))
    yield data + b"\0"


def test_every_damage_to_every_file_is_named(tmp_path: Path, pristine: dict[str, bytes]) -> None:
    assert len(pristine) == 10
    for name, data in pristine.items():
        for broken in damaged(data):
            if broken == data:
                continue
            must_name(put(tmp_path / "index", {**pristine, name: broken}), name)
        (tmp_path / "index" / name).unlink()
        must_name(tmp_path / "index", name if name != "manifest.json" else "No index at")


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path, pristine: dict[str, bytes]) -> None:
    folder = put(tmp_path / "index", pristine)
    (tmp_path / "elsewhere").write_bytes(pristine["texts-1.txt"])
    (folder / "texts-1.txt").unlink()
    (folder / "texts-1.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IndexCorrupt, match=r"texts-1\.txt is not a plain file"):
        Index.open(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "texts-1.pkl", "manifest.json", "a b-1.txt"])
def test_a_manifest_that_points_elsewhere_is_refused(tmp_path: Path, pristine: dict[str, bytes], name: str) -> None:
    data = json.loads(pristine["manifest.json"])
    del data["checksum"]
    data["files"]["texts"]["name"] = name
    data["checksum"] = store._checksum(data)
    folder = put(tmp_path / "index", {**pristine, "manifest.json": json.dumps(data).encode()})
    with pytest.raises(IndexCorrupt, match=r"manifest\.json"):
        Index.open(folder)


def test_a_pickle_inside_an_array_file_is_never_loaded(tmp_path: Path, pristine: dict[str, bytes]) -> None:
    import io

    sink = io.BytesIO()
    np.save(sink, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    data = json.loads(pristine["manifest.json"])
    del data["checksum"]
    data["files"]["chunks"]["bytes"] = len(sink.getvalue())
    data["checksum"] = store._checksum(data)
    files = {**pristine, "chunks-1.table": sink.getvalue(), "manifest.json": json.dumps(data).encode()}
    with pytest.raises(IndexCorrupt, match=r"chunks-1\.table"):
        Index.open(put(tmp_path / "index", files))


def test_a_newer_format_is_refused_with_both_numbers(tmp_path: Path, pristine: dict[str, bytes]) -> None:
    data = {**json.loads(pristine["manifest.json"]), "format": 99}
    folder = put(tmp_path / "index", {**pristine, "manifest.json": json.dumps(data).encode()})
    with pytest.raises(IndexError_, match=r"format 99; this version reads up to 1"):
        Index.open(folder)


def test_no_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing, match=r"no such folder.*ragtune index"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(IndexMissing, match="holds no committed index"):
        Index.open(tmp_path)


def test_the_second_writer_is_told_who_the_first_is_within_a_second(tmp_path: Path) -> None:
    with WriteLock(tmp_path):
        started = time.monotonic()
        with pytest.raises(IndexLocked, match=rf"being written by process {os.getpid()} on .+ since 2"):
            WriteLock(tmp_path).__enter__()
        assert time.monotonic() - started < 20  # generous: 0.5 s of patience on a busy machine
    with WriteLock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_lock_whose_holder_was_killed_does_not_block(tmp_path: Path, root: Path) -> None:
    code = (
        "import sys, time, pathlib; from rag.lock import WriteLock; lock = WriteLock(pathlib.Path(sys.argv[1])); "
        "lock.__enter__(); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    with pytest.raises(IndexLocked, match=f"process {child.pid} on"):
        WriteLock(tmp_path, patience=0).__enter__()
    child.kill()
    child.wait()
    child.stdout.close()
    with WriteLock(tmp_path, patience=0):
        pass


def test_readers_see_one_generation_each_while_a_writer_commits(tmp_path: Path) -> None:
    corpus, folder = tmp_path / "c", tmp_path / "index"

    def edition(n: int) -> dict[str, str]:
        return {f"d{i}.txt": f"heron report number {i} edition{n}" for i in range(6 if n < 10 else 3)}

    sync(folder, [write_corpus(corpus, edition(0))], FakeEncoder())
    stop, errors, answers = threading.Event(), [], []

    def read() -> None:
        retriever = Retriever(Index.open(folder, FakeEncoder()))
        while not stop.is_set():
            try:
                texts = [p.chunk.text for p in retriever.search("heron report", 6)]
                answers.append({t.rsplit("edition", 1)[1] for t in texts})
                Index.open(folder)
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(1, 20):
        sync(folder, [write_corpus(corpus, edition(n))], FakeEncoder())
        retriever = Retriever(Index.open(folder, FakeEncoder()))
        assert {p.chunk.text.rsplit("edition", 1)[1] for p in retriever.search("heron report", 6)} == {str(n)}
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert answers and all(len(editions) == 1 for editions in answers)


def test_the_journal_gives_back_whole_records_and_drops_a_torn_tail(tmp_path: Path) -> None:
    keys = [f"{i:032x}" for i in range(3)]
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    Journal(tmp_path, "e", 4).append(keys[:2], vectors[:2])
    with open(tmp_path / store.JOURNAL, "ab") as file:
        file.write(b"torn")
    journal = Journal(tmp_path, "e", 4)
    assert {k: v.tolist() for k, v in journal.read().items()} == {keys[0]: [0, 1, 2, 3], keys[1]: [4, 5, 6, 7]}
    journal.append(keys[2:], vectors[2:])
    assert list(Journal(tmp_path, "e", 4).read()) == keys
    data = bytearray((tmp_path / store.JOURNAL).read_bytes())
    data[32 + 32 + 1] ^= 1  # in the first vector
    (tmp_path / store.JOURNAL).write_bytes(data)
    assert Journal(tmp_path, "e", 4).read() == {}
    assert Journal(tmp_path, "another encoder", 4).read() == {}
