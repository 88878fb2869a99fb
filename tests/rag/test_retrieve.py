"""Fusion against hand-worked values, ranking properties, reranking, frozen retrievals, and quality on real questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import ConfigError, NumericalError, UsageError
from rag.index import Index, sync
from rag.retrieve import RetrievalConfig, Retriever, freeze, fuse
from tests.fakes import FakeEncoder


@pytest.fixture()
def index(tmp_path: Path, corpus: Path) -> Index:
    sync(tmp_path / "index", [corpus], FakeEncoder(dimension=512))
    return Index.open(tmp_path / "index", FakeEncoder(dimension=512))


NAN = float("nan")


def test_minmax_is_the_mean_of_scaled_scores() -> None:
    rows = np.array([1, 3, 7, 9])
    dense, lexical = np.array([0.1, 0.5, 0.9, NAN]), np.array([NAN, 12.0, 4.0, 8.0])
    # (0 + –) / 2, (0.5 + 1) / 2, (1 + 0) / 2, (– + 0.5) / 2
    assert fuse(rows, [dense, lexical], "minmax").tolist() == pytest.approx([0.0, 0.75, 0.5, 0.25])


def test_rrf_sums_reciprocal_ranks_and_ranks_ties_by_row() -> None:
    rows = np.array([3, 7, 9])
    fused = fuse(rows, [np.array([0.5, 0.9, NAN]), np.array([12.0, NAN, 12.0])], "rrf")
    assert fused.tolist() == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_halves_of_ties_or_of_nothing() -> None:
    rows = np.array([2, 5])
    assert fuse(rows, [np.array([1.0, 1.0]), np.array([NAN, NAN])], "minmax").tolist() == [0.5, 0.5]
    assert fuse(rows, [np.array([0.3, 0.3]), np.array([0.0, 0.0])], "minmax").tolist() == [0.5, 0.5]
    assert fuse(np.zeros(0, int), [np.zeros(0), np.zeros(0)], "rrf").tolist() == []


HALF = st.lists(st.one_of(st.floats(-5, 5), st.just(NAN)), min_size=8, max_size=8).map(np.array)


@given(HALF, HALF, st.sampled_from(["minmax", "rrf"]))
def test_fusion_does_not_mind_the_order_of_halves_and_a_higher_score_never_hurts(a, b, fusion) -> None:  # type: ignore[no-untyped-def]
    rows = np.arange(8)
    fused = fuse(rows, [a, b], fusion)
    assert np.isfinite(fused).all() and (fused >= 0).all() and (fused <= 1).all()
    np.testing.assert_allclose(fuse(rows, [b, a], fusion), fused)
    alone = fuse(rows, [a], fusion)
    known = np.flatnonzero(~np.isnan(a))
    for i in known:
        assert all(alone[i] >= alone[j] for j in known if a[i] > a[j])


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@pytest.mark.parametrize("fusion", ["minmax", "rrf"])
def test_passages_are_ranked_and_carry_their_scores(index: Index, mode: str, fusion: str) -> None:
    retriever = Retriever(index, RetrievalConfig(mode=mode, fusion=fusion))  # type: ignore[arg-type]
    passages = retriever.search("What does a return ticket for the ferry cost?", 3)
    assert passages[0].chunk.source == "ferry.md"
    assert [p.rank for p in passages] == list(range(1, len(passages) + 1))
    assert [p.score for p in passages] == sorted((p.score for p in passages), reverse=True)
    for p in passages:
        if mode == "hybrid":
            assert p.score == p.scores.fused
            if fusion == "minmax":  # both halves score every passage
                assert p.scores.dense is not None and p.scores.lexical is not None
        else:
            assert p.score == (p.scores.dense if mode == "dense" else p.scores.lexical)
            assert p.scores.fused is None
        assert p.scores.rerank is None
    assert passages == retriever.search_many(["boat", "What does a return ticket for the ferry cost?"], 3)[1]


def test_stage_scores_are_those_of_the_halves(index: Index) -> None:
    query = "boat deposit 250 crowns"
    passages = Retriever(index).search(query, 6)
    dense, lexical = dict(index.dense([query], 6)[0]), dict(index.lexical([query], 6)[0])
    ids = {chunk.id: row for row, chunk in enumerate(index.chunks)}
    for p in passages:
        row = ids[p.chunk.id]
        assert p.scores.dense == pytest.approx(dense[row], abs=1e-6)
        assert p.scores.lexical == pytest.approx(lexical.get(row, 0.0), abs=1e-6)


def test_chinese_questions_find_the_chinese_document(index: Index) -> None:
    for mode in ("hybrid", "lexical"):
        retriever = Retriever(index, RetrievalConfig(mode=mode))  # type: ignore[arg-type]
        assert retriever.search("渡船几点出发？")[0].chunk.source == "zh.md"


def test_k_and_candidates(index: Index) -> None:
    assert len(Retriever(index, RetrievalConfig(k=2)).search("boat")) == 2
    assert len(Retriever(index).search("boat", 1)) == 1
    every = Retriever(index, RetrievalConfig(candidates=1)).search("boat", 1000)
    assert len(every) == len(index.chunks)  # more passages than candidates widen the pool


def test_the_same_words_in_two_documents_are_shown_once(tmp_path: Path, corpus: Path) -> None:
    (corpus / "copy.txt").write_text((corpus / "kitchen.txt").read_text().replace(" ", "  ").upper())
    sync(tmp_path / "i", [corpus], FakeEncoder())
    passages = Retriever(Index.open(tmp_path / "i", FakeEncoder())).search("kitchen closes warm meal", 20)
    assert len([p for p in passages if "kitchen" in p.chunk.text.lower()]) == 1
    assert [p.rank for p in passages] == list(range(1, len(passages) + 1))


def test_the_retriever_follows_commits(index: Index, corpus: Path) -> None:
    retriever = Retriever(index)
    assert retriever.search("ferry Korr")[0].chunk.source == "ferry.md"
    Index.open(index.folder).delete(["ferry.md"])
    assert all(p.chunk.source != "ferry.md" for p in retriever.search("ferry Korr", 100))


class Backwards:
    """Prefers what the halves put last: texts with fewer words of the query."""

    name = "backwards"

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        return [-float(sum(word in text for word in query.split())) for text in texts]


def test_a_reranker_has_the_last_word(index: Index) -> None:
    config = RetrievalConfig(reranker="backwards")
    passages = Retriever(index, config, reranker=Backwards()).search("ferry ticket pier", 6)
    assert passages[-1].chunk.source == "ferry.md"
    assert all(p.score == p.scores.rerank is not None and p.scores.fused is not None for p in passages)


def test_a_reranker_that_returns_nan_is_an_error(index: Index) -> None:
    class Broken(Backwards):
        def score(self, query: str, texts: Sequence[str]) -> list[float]:
            return [float("nan")] * len(texts)

    with pytest.raises(NumericalError, match="backwards returned NaN"):
        Retriever(index, reranker=Broken()).search("ferry")


def test_questions_that_cannot_be_searched(index: Index) -> None:
    for query in ("", "  \n", "\u3000"):
        with pytest.raises(UsageError, match="empty"):
            Retriever(index).search(query)
    assert Retriever(index).search_many([]) == []
    assert Retriever(index).search("?!")  # no word in it: dense alone
    assert Retriever(index).search("ferry " * 16_667)[0].chunk.source == "ferry.md"


@pytest.mark.parametrize(
    ("field", "value"), [("k", 0), ("candidates", -1), ("k", 2.5), ("mode", "magic"), ("fusion", "sum")]
)
def test_settings_are_checked_and_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        RetrievalConfig(**{field: value})  # type: ignore[arg-type]


def test_frozen_retrievals_are_read_back(index: Index, tmp_path: Path) -> None:
    questions = ["Where is the ferry?", "渡船", "Where is the ferry?", "Which boat?"]
    first = freeze(Retriever(index), questions, tmp_path / "run", 3)
    assert first == Retriever(index).search_many(questions, 3)

    class Unused(FakeEncoder):
        def encode(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
            raise AssertionError("frozen retrievals must not search")

    again = Retriever(Index.open(index.folder, Unused(dimension=512)))
    assert freeze(again, questions, tmp_path / "run", 3) == first
    assert freeze(again, questions[1:2], tmp_path / "run", 3) == first[1:2]
    lines = (tmp_path / "run" / "retrievals.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and {json.loads(line)["question"] for line in lines} == set(questions)


def test_frozen_retrievals_of_other_settings_or_another_corpus_are_others(
    index: Index, tmp_path: Path, corpus: Path
) -> None:
    folder = tmp_path / "run"

    def lines() -> int:
        return len((folder / "retrievals.jsonl").read_text(encoding="utf-8").splitlines())

    config = RetrievalConfig()
    freeze(Retriever(index, config), ["ferry"], folder, 3)
    for n, other in enumerate([replace(config, mode="dense"), replace(config, fusion="rrf")], 2):
        freeze(Retriever(index, other), ["ferry"], folder, 3)
        assert lines() == n
    assert len(freeze(Retriever(index, config), ["ferry"], folder, 2)[0]) == 2 and lines() == 4
    index.delete(["ferry.md"])
    found = freeze(Retriever(index, config), ["ferry"], folder, 3)[0]
    assert found and all(p.chunk.source != "ferry.md" for p in found) and lines() == 5


def test_a_damaged_file_of_frozen_retrievals_is_named(index: Index, tmp_path: Path) -> None:
    freeze(Retriever(index), ["ferry"], tmp_path, 3)
    with open(tmp_path / "retrievals.jsonl", "a") as file:
        file.write('{"key": \n')
    with pytest.raises(UsageError, match=r"retrievals\.jsonl, line 2 is damaged.*Remove the file"):
        freeze(Retriever(index), ["ferry"], tmp_path, 3)
