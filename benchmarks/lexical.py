"""Lexical engines side by side: ours (postings in plain arrays), bm25s, tantivy, SQLite FTS5.

Synthetic chunks of about 150 words, Zipf-distributed (seeded), 10,000 and 100,000 of them; 1,000 queries of 3 to 8 words
drawn from the same distribution without its 100 commonest words, k = 100. Every engine gets the words of `rag.lexical.tokenize` and runs in a process of
its own: build and save, open, query, add one chunk durably, delete one chunk durably, then be killed (-9) while adding
and be opened again. "Text left" asks whether a word that only the deleted chunk held is still in some file.

What each engine needs for a durable change: ours and bm25s write a whole new set of files aside, tantivy and SQLite
commit in place. (bm25s has no add or delete: it is built again from the stored words. What it saves has no swap, either,
so its crash safety here is that of saving in place.)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rag import store
from rag.lexical import Bm25, build_postings, merge_postings, terms_blob, terms_from, tokenize

K = 100
WORDS = 200_000
RARE = "qqzzyx"  # in one chunk only


def corpus(chunks: int) -> list[str]:
    """Chunks of 120 to 180 words; word r has a probability in proportion to 1 / r^1.05."""
    rng = np.random.default_rng(1)
    cumulated = np.cumsum(1 / np.arange(1, WORDS + 1) ** 1.05)
    names = np.array([f"w{i:x}" for i in range(WORDS)])
    lengths = rng.integers(120, 181, chunks)
    words = names[np.searchsorted(cumulated, rng.random(int(lengths.sum())) * cumulated[-1])]
    return [" ".join(part) for part in np.split(words, np.cumsum(lengths)[:-1])]


def queries(count: int) -> list[str]:
    """Queries of 3 to 8 words of the same distribution, without the 100 commonest (stop words of a real text)."""
    rng = np.random.default_rng(2)
    weights = 1 / np.arange(101, WORDS + 1) ** 1.05
    cumulated = np.cumsum(weights)
    drawn = [np.searchsorted(cumulated, rng.random(rng.integers(3, 9)) * cumulated[-1]) + 100 for _ in range(count)]
    return [" ".join(f"w{i:x}" for i in row) for row in drawn]


class Engine(Protocol):
    """One engine over a folder."""

    def build(self, texts: list[str]) -> None: ...
    def open(self) -> None: ...
    def search(self, query: str) -> list[int]: ...
    def add(self, text: str) -> None: ...
    def delete(self, row: int) -> None: ...
    def count(self) -> int: ...


class Ours:
    """`rag.lexical` under `rag.store.commit`: the files that a commit of a whole index writes for its lexical half."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, postings: Any, generation: int) -> None:
        arrays = {"starts": "i64", "rows": "i32", "counts": "u16", "lengths": "i32"}
        contents: dict[str, store.Blocks] = {"lexicalterms.txt": lambda: [terms_blob(postings.terms)]}
        for name, kind in arrays.items():
            array = getattr(postings, name)
            contents[f"lexical{name}.{kind}"] = partial(store.array_blocks, array.dtype, [array])
        blank = store.Manifest(generation, "none", "none", 1, {}, 0, len(postings.lengths), (), {})
        store.commit(self.folder, blank, contents)
        self._postings = postings

    def build(self, texts: list[str]) -> None:
        self._save(build_postings(texts), 1)

    def open(self) -> None:
        from rag.lexical import Postings

        manifest = store.read_manifest(self.folder)
        self.generation = manifest.generation

        def array(stem: str, kind: str, size: int) -> np.ndarray:
            return store.load_array(store.file_of(self.folder, manifest, f"lexical{stem}"), np.dtype(kind), (size,))

        terms = terms_from(store.file_of(self.folder, manifest, "lexicalterms").read_bytes())
        starts = array("starts", "<i8", len(terms) + 1)
        size = int(starts[-1])
        rows, counts = array("rows", "<i4", size), array("counts", "<u2", size)
        self._postings = Postings(terms, starts, rows, counts, array("lengths", "<i4", manifest.chunks))
        self._bm25 = Bm25(self._postings)

    def search(self, query: str) -> list[int]:
        return [row for row, _ in self._bm25.search(query, K)]

    def add(self, text: str) -> None:
        n = len(self._postings.lengths)
        merged = merge_postings(self._postings, np.arange(n), build_postings([text]), np.array([n]))
        self._save(merged, store.read_manifest(self.folder).generation + 1)

    def delete(self, row: int) -> None:
        rows = np.arange(len(self._postings.lengths))
        rows = np.where(rows == row, -1, rows - (rows > row))
        merged = merge_postings(self._postings, rows, build_postings([]), np.zeros(0, np.int64))
        self._save(merged, store.read_manifest(self.folder).generation + 1)

    def count(self) -> int:
        return len(self._postings.lengths)


class Bm25s:
    """bm25s, numpy only, with the words of every chunk stored beside it so that it can be built again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._words: list[list[str]] = []

    def _save(self) -> None:
        import bm25s

        self._index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        self._index.index(self._words, show_progress=False)
        self._index.save(str(self.folder))
        (self.folder / "words.json").write_text(json.dumps(self._words))
        for path in self.folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def build(self, texts: list[str]) -> None:
        self._words = [tokenize(text) for text in texts]
        self._save()

    def open(self) -> None:
        import bm25s

        self._index = bm25s.BM25.load(str(self.folder), mmap=True)
        self._words = json.loads((self.folder / "words.json").read_text())

    def search(self, query: str) -> list[int]:
        k = min(K, len(self._words))
        return [int(row) for row in self._index.retrieve([tokenize(query)], k=k, show_progress=False).documents[0]]

    def add(self, text: str) -> None:
        self._words.append(tokenize(text))
        self._save()

    def delete(self, row: int) -> None:
        del self._words[row]
        self._save()

    def count(self) -> int:
        return int(self._index.scores["num_docs"])


class Tantivy:
    """tantivy; a delete marks, and the words go when segments are merged."""

    def __init__(self, folder: Path) -> None:
        import tantivy

        self._tantivy = tantivy
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("row", stored=True, indexed=True, fast=True)
        builder.add_text_field("body", tokenizer_name="whitespace", index_option="freq")
        self._schema = builder.build()
        self.folder = folder

    def _put(self, writer: Any, row: int, text: str) -> None:
        writer.add_document(self._tantivy.Document(row=row, body=" ".join(tokenize(text))))

    def build(self, texts: list[str]) -> None:
        self._index = self._tantivy.Index(self._schema, path=str(self.folder))
        writer = self._index.writer(heap_size=128_000_000, num_threads=1)
        for row, text in enumerate(texts):
            self._put(writer, row, text)
        writer.commit()
        writer.wait_merging_threads()

    def open(self) -> None:
        self._index = self._tantivy.Index.open(str(self.folder))
        self._index.reload()
        self._searcher = self._index.searcher()

    def search(self, query: str) -> list[int]:
        t = self._tantivy
        parts = [
            (t.Occur.Should, t.Query.term_query(self._schema, "body", word, index_option="freq"))
            for word in tokenize(query)
        ]
        hits = self._searcher.search(t.Query.boolean_query(parts), K, count=False).hits
        return [self._searcher.doc(address)["row"][0] for _, address in hits]

    def add(self, text: str) -> None:
        writer = self._index.writer(heap_size=15_000_000, num_threads=1)
        self._put(writer, 10**9, text)
        writer.commit()

    def delete(self, row: int) -> None:
        writer = self._index.writer(heap_size=15_000_000, num_threads=1)
        writer.delete_documents_by_term("row", row)
        writer.commit()
        writer.garbage_collect_files()
        writer.wait_merging_threads()

    def count(self) -> int:
        return int(self._searcher.num_docs)


class Fts5:
    """SQLite FTS5, with secure deletion switched on where SQLite has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _connect(self) -> None:
        self._db = sqlite3.connect(self.folder / "fts.db")
        self._db.execute("pragma secure_delete = on")
        self._db.execute("pragma synchronous = full")

    def build(self, texts: list[str]) -> None:
        self._connect()
        self._db.execute("create virtual table t using fts5(body, tokenize = 'unicode61', detail = column)")
        with contextlib.suppress(sqlite3.OperationalError):  # SQLite before 3.42 has no such option
            self._db.execute("insert into t(t, rank) values ('secure-delete', 1)")
        rows = ((row, " ".join(tokenize(text))) for row, text in enumerate(texts))
        self._db.executemany("insert into t(rowid, body) values (?, ?)", rows)
        self._db.commit()

    def open(self) -> None:
        self._connect()

    def search(self, query: str) -> list[int]:
        match = " OR ".join(f'"{word}"' for word in tokenize(query))
        sql = "select rowid from t where t match ? order by bm25(t) limit ?"
        return [row for (row,) in self._db.execute(sql, (match, K))]

    def add(self, text: str) -> None:
        self._db.execute("insert into t(body) values (?)", (" ".join(tokenize(text)),))
        self._db.commit()

    def delete(self, row: int) -> None:
        self._db.execute("delete from t where rowid = ?", (row,))
        self._db.commit()

    def count(self) -> int:
        return int(self._db.execute("select count(*) from t").fetchone()[0])


ENGINES: dict[str, Callable[[Path], Engine]] = {"ours": Ours, "bm25s": Bm25s, "tantivy": Tantivy, "SQLite FTS5": Fts5}


def timed(function: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def one(name: str, folder: Path, chunks: int, asked: int) -> dict[str, float | str]:
    """All figures of one engine, in this process."""
    texts = corpus(chunks)
    texts[chunks // 2] += f" {RARE}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine: Engine = ENGINES[name](folder)
    out: dict[str, float | str] = {"build": timed(engine.build, texts), "bytes": on_disk(folder)}
    engine = ENGINES[name](folder)
    out["open"] = timed(engine.open)
    times = [timed(engine.search, query) for query in queries(asked)]
    out["p50"], out["p99"] = (1000 * float(np.percentile(times, p)) for p in (50, 99))
    out["add"] = float(np.median([timed(engine.add, texts[0]) for _ in range(3)]))
    out["delete"] = timed(engine.delete, chunks // 2)
    out["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    left = any(RARE.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    out["left"] = "yes" if left else "no"
    return out


def add_for_ever(name: str, folder: Path) -> None:
    """The child that is killed: it adds one chunk after another."""
    engine: Engine = ENGINES[name](folder)
    engine.open()
    print("go", flush=True)
    for i in range(1_000_000):
        engine.add(f"added{i} w1 w2 w3")


def survive(name: str, folder: Path, kills: int) -> str:
    """How often the folder opened and answered after a kill -9 while adding."""
    rng = np.random.default_rng(3)
    whole = 0
    code = "from benchmarks.lexical import add_for_ever; import pathlib, sys; "
    code += "add_for_ever(sys.argv[1], pathlib.Path(sys.argv[2]))"
    for _ in range(kills):
        copy = folder.with_name(folder.name + "-killed")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        child = subprocess.Popen([sys.executable, "-c", code, name, str(copy)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(float(rng.uniform(0.0, 0.5)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        check = "from benchmarks.lexical import ENGINES; import pathlib, sys; "
        check += "e = ENGINES[sys.argv[1]](pathlib.Path(sys.argv[2])); e.open(); e.search('w100 w200 w300'); "
        check += "e.add('afterwards w1'); e.open(); assert e.count() > 0 and e.search('afterwards')"
        done = subprocess.run([sys.executable, "-c", check, name, str(copy)], stderr=subprocess.DEVNULL, timeout=600)
        whole += done.returncode == 0
    return f"{whole}/{kills}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lexical", description=__doc__.split("\n")[0])
    parser.add_argument("--chunks", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    given, _ = parser.parse_known_args()
    if given.child:
        print(json.dumps(one(given.child[0], Path(given.child[1]), given.chunks[0], given.queries)))
        return 0
    print("## Lexical engines\n")
    print(
        f"{given.queries:,} queries of 3–8 words, k = {K}; add and delete are durable changes of one chunk; memory is"
    )
    print("the peak above the corpus itself; 'killed' counts indexes whole after kill -9 while adding.\n")
    print(
        "| chunks | engine | build s | open s | query p50 ms | p99 ms | add one s | delete one s | peak MiB | disk MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    notes = []
    for chunks in given.chunks:
        for name in given.engines:
            print(f"  {name}, {chunks:,} chunks", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / "index"
                folder.mkdir()
                command = [sys.executable, "-m", "benchmarks.lexical", "--child", name, str(folder)]
                command += ["--chunks", str(chunks), "--queries", str(given.queries)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    print(f"| {chunks:,} | {name} | failed, see the messages above |", flush=True)
                    continue
                r = json.loads(done.stdout.splitlines()[-1])
                cells = [f"{r['build']:.1f}", f"{r['open']:.2f}", f"{r['p50']:.2f}", f"{r['p99']:.2f}"]
                cells += [f"{r['add']:.3f}", f"{r['delete']:.3f}", f"{r['memory']:.0f}", f"{r['bytes'] / 2**20:.0f}"]
                print(f"| {chunks:,} | {name} | {' | '.join(cells)} |", flush=True)
                if chunks == min(given.chunks):
                    notes.append(f"| {name} | {survive(name, folder, given.kills)} | {r['left']} |")
    print("\n| engine | whole after a kill | a deleted word left in the files |\n|---|---|---|")
    print("\n".join(notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
