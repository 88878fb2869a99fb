"""Tokens of several scripts, BM25 against hand-worked values and a reference, merging against building anew."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.lexical import Bm25, Postings, build_postings, merge_postings, terms_blob, terms_from, tokenize, top


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The ferries were leaving at 07:40", ["ferri", "leav", "07", "40"]),
        ("渡船每天", ["渡船", "船每", "每天"]),
        ("猫", ["猫"]),
        ("第4号码头", ["第", "4", "号码", "码头"]),
        ("ひらがなカタ", ["ひら", "らが", "がな", "なカ", "カタ"]),
        ("부산 항구", ["부산", "항구"]),
        ("GPT模型 runs", ["gpt", "模型", "run"]),
        ("Ｆｕｌｌ ｗｉｄｔｈ １２", ["full", "width", "12"]),
        ("Straße STRASSE", ["strass", "strass"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("snake_case x-ray", ["snake_cas", "x", "ray"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ของไทย", ["ขอ", "อง", "งไ", "ไท", "ทย"]),
        ("What is it?", []),
        ("", []),
        ("…—!?。、", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


@given(st.text())
def test_any_text_gives_tokens_without_line_ends(text: str) -> None:
    tokens = tokenize(text)
    assert all(token and "\n" not in token for token in tokens)
    assert tokenize(text) == tokens


def test_a_query_of_a_hundred_thousand_characters_is_answered() -> None:
    bm25 = Bm25(build_postings(["ferry pier", "boat"]))
    assert [row for row, _ in bm25.search("ferry " * 20_000, 5)] == [0]
    assert [row for row, _ in bm25.search("码" * 100_000 + " boat", 5)] == [1]


def test_scores_are_the_formula() -> None:
    # N = 3, lengths 2, 3, 1, mean 2; "owl" in chunks 0 (once) and 1 (twice): df = 2
    bm25 = Bm25(build_postings(["owl tree", "owl owl lake", "lake"]), k1=1.2, b=0.75)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    first = idf * 1 / (1 + 1.2 * (0.25 + 0.75 * 2 / 2))
    second = idf * 2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2))
    assert bm25.search("owl", 5) == [(1, pytest.approx(second)), (0, pytest.approx(first))]
    assert bm25.search("owl owl", 5)[0] == (1, pytest.approx(2 * second))
    assert bm25.search("zebra", 5) == [] == bm25.search("the", 5)


def test_scores_equal_those_of_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    rng = np.random.default_rng(3)
    texts = [" ".join(f"w{int(i)}" for i in rng.zipf(1.3, rng.integers(5, 60)) if i < 500) for _ in range(200)]
    reference = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    reference.index([tokenize(t) for t in texts], show_progress=False)
    ours = Bm25(build_postings(texts), k1=0.9, b=0.4)
    for query in ("w1 w2 w3", "w7 w19 w7", "w150 w4", "w11 w12 w13 w14 w15 w16"):
        np.testing.assert_allclose(ours.scores(query), reference.get_scores(tokenize(query)), rtol=1e-4, atol=1e-6)


def test_equal_scores_are_ordered_by_row_even_at_the_edge() -> None:
    scores = np.array([1, 2, 1, 0, 2, 1, -1], np.float32)
    assert top(scores, 4) == [(1, 2.0), (4, 2.0), (0, 1.0), (2, 1.0)]
    assert top(scores, 99) == [(1, 2.0), (4, 2.0), (0, 1.0), (2, 1.0), (5, 1.0)]
    assert top(np.zeros(3, np.float32), 2) == []
    assert top(np.zeros(0, np.float32), 2) == []


def same(a: Postings, b: Postings) -> bool:
    return a.terms == b.terms and all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("starts", "rows", "counts", "lengths")
    )


TEXTS = st.lists(st.text(alphabet="ab 渡船c", max_size=12), max_size=8)


@settings(deadline=None)
@given(TEXTS, st.data())
def test_merging_equals_building_anew(texts: list[str], data: st.DataObject) -> None:
    """Whatever is taken away and put in between, the postings are those of the final texts."""
    keep = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    added = data.draw(TEXTS)
    kept = [t for t, k in zip(texts, keep, strict=True) if k]
    total = len(kept) + len(added)
    new_rows = np.array(sorted(data.draw(st.permutations(range(total)))[: len(added)]), np.int64)
    free = [row for row in range(total) if row not in set(new_rows.tolist())]
    old_rows = np.full(len(texts), -1, np.int64)
    old_rows[np.flatnonzero(keep)] = free
    final = [""] * total
    for row, text in [*zip(free, kept, strict=True), *zip(new_rows.tolist(), added, strict=True)]:
        final[row] = text
    merged = merge_postings(build_postings(texts), old_rows, build_postings(added), new_rows)
    assert same(merged, build_postings(final))


def test_words_of_removed_chunks_are_gone() -> None:
    merged = merge_postings(
        build_postings(["secret owl", "lake"]), np.array([-1, 0]), build_postings([]), np.zeros(0, np.int64)
    )
    assert merged.terms == ["lake"]


def test_terms_survive_their_file() -> None:
    for terms in ([], ["a"], ["a", "渡船", "z\u2028y"]):
        assert terms_from(terms_blob(terms)) == terms


def test_search_from_several_threads_is_that_of_one() -> None:
    texts = [f"pebble{i % 7} heron{i % 11} leaving" for i in range(300)]
    bm25 = Bm25(build_postings(texts))
    queries = [f"leaves heron{i % 11} pebble{i % 7}" for i in range(100)]
    alone = [bm25.search(q, 10) for q in queries]
    results: dict[int, list[list[tuple[int, float]]]] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: [bm25.search(q, 10) for q in queries]}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(results) and all(found == alone for found in results.values()) and len(results) == 4
