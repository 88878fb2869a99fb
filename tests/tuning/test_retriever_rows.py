"""Examples for the retriever: gold rows, corpus tasks, mixtures, and mined negatives against the library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.errors import ConfigError, TrainingError
from rag.types import Evidence, Question
from tests.fakes import FakeEncoder
from tests.tuning.tiny_encoder import make_index, questions
from tuning.retriever_config import RetrieverConfig
from tuning.retriever_rows import (
    Corpus,
    Example,
    cloze_examples,
    gold_rows,
    halves_examples,
    mine_negatives,
    mix,
    question_examples,
    statement_examples,
)
from tuning.retriever_trainer import plan_batches


@pytest.fixture()
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(make_index(tmp_path, FakeEncoder()).snapshot)


def source(corpus: Corpus, row: int) -> str:
    return corpus.snapshot.chunk_at(row).source


def test_gold_rows_hold_the_quote_else_an_answer_else_are_all_of_the_document(corpus: Corpus) -> None:
    by_quote = Question("a", "?", ("seven",), (Evidence("ferry.txt", "leaves  at SEVEN"),))
    assert [source(corpus, r) for r in gold_rows(corpus, by_quote)] == ["ferry.txt"]
    by_answer = Question("b", "?", ("nine books",), (Evidence("library.txt", "words that stand nowhere"),))
    assert [source(corpus, r) for r in gold_rows(corpus, by_answer)] == ["library.txt"]
    by_source = Question("c", "?", (), (Evidence("boat.txt"),))
    assert gold_rows(corpus, by_source) == tuple(corpus.rows_of("boat.txt"))
    assert gold_rows(corpus, Question("d", "?", ("x",), (Evidence("gone.txt"),))) == ()


def test_questions_that_cannot_teach_are_left_out(corpus: Corpus) -> None:
    mixed = [*questions(), Question("u", "Who ?", (), (), True), Question("g", "?", ("x",), (Evidence("gone.txt"),))]
    assert [e.id for e in question_examples(corpus, mixed)] == ["q1", "q2", "q3", "q4", "q5"]
    with pytest.raises(TrainingError, match="None of the 1 questions"):
        question_examples(corpus, mixed[-1:])


def test_corpus_tasks(corpus: Corpus) -> None:
    asked = cloze_examples(corpus, 50)
    assert asked and all(e.answers[0].lower() in corpus.plain(e.positive[0]) for e in asked)
    assert [e.question for e in asked] == [e.question for e in cloze_examples(corpus, 50)]
    halves = halves_examples(corpus, 50, words=5)
    assert len(halves) == 6
    for e in halves:
        said = corpus.snapshot.chunk_at(e.ignored[0]).text.split()
        assert (e.question.split(), e.answers[0].split()) == (said[:5], said[-5:]) and e.positive == ()
    assert halves_examples(corpus, 50, words=40) == []
    stated = statement_examples(corpus, 3)
    assert len(stated) == 3
    assert all(
        e.question == f"<p> {e.answers[0]}" and e.answers[0].lower() in corpus.plain(e.positive[0]) for e in stated
    )


def test_mixture_has_the_share_asked_for() -> None:
    labelled = [Example(f"q{i}", "?") for i in range(3)]
    found = [Example(f"c{i}", "?", origin="halves") for i in range(95)]
    mixed = mix(labelled, found, 0.95)
    assert len(mixed) == 100 and sum(e.origin == "question" for e in mixed) == 5
    assert mix(labelled, [], 0.95) == labelled and mix(labelled, found, 0.0) == labelled
    assert mix(labelled, found, 0.95) == mixed


def test_negatives_are_those_of_mine_hard_negatives(corpus: Corpus) -> None:
    """With answers that stand nowhere, so that only the margin counts; the library embeds, we have the vectors."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    encoder = FakeEncoder()
    texts = [corpus.snapshot.chunk_at(row).text for row in range(len(corpus))]
    examples = [
        Example(e.id, e.question, (), e.positive) for e in question_examples(corpus, questions()) if e.id != "q2"
    ]
    queries = encoder.encode([e.question for e in examples], kind="query")

    class Stored:
        device = "cpu"

        def encode_document(self, given: list[str], **_: Any) -> np.ndarray:
            return encoder.encode(given)

        def encode_query(self, given: list[str], **_: Any) -> np.ndarray:
            return encoder.encode(given, kind="query")

        def similarity(self, a: Any, b: Any) -> Any:
            import torch

            return torch.as_tensor(a) @ torch.as_tensor(b).T

        def similarity_pairwise(self, a: Any, b: Any) -> Any:
            import torch

            return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=-1)

    mined = mine_hard_negatives(
        Dataset.from_dict({"anchor": [e.question for e in examples], "positive": [texts[e.positive[0]] for e in examples]}),
        Stored(), corpus=texts, relative_margin=0.2, num_negatives=2, range_max=5, output_format="triplet", verbose=False,
    )  # fmt: skip
    theirs: dict[str, set[str]] = {}
    for line in mined:
        theirs.setdefault(line["anchor"], set()).add(line["negative"])
    ours = mine_negatives(corpus, examples, queries, encoder.encode(texts), count=2, margin=0.2, window=5)
    for example in ours:
        scores = encoder.encode(texts) @ encoder.encode([example.question], kind="query")[0]
        lowest = sorted(float(scores[texts.index(t)]) for t in theirs.get(example.question, set()))
        assert sorted(float(scores[row]) for row in example.negative) == pytest.approx(lowest)


def test_false_negatives_are_ignored(corpus: Corpus) -> None:
    ferry, library = corpus.rows_of("ferry.txt")[0], corpus.rows_of("library.txt")[0]
    vectors = np.eye(len(corpus), dtype=np.float32)
    query = np.full((1, len(corpus)), 0.1, np.float32)
    query[0, ferry], query[0, library] = 0.9, 0.89
    one = mine_negatives(corpus, [Example("a", "?", (), (ferry,))], query, vectors, count=9, margin=0.05)[0]
    assert library in one.ignored and library not in one.negative  # within 5 % of the right one
    told = mine_negatives(corpus, [Example("a", "?", ("seven",), (ferry,))], query, vectors, count=9, margin=0.05)[0]
    assert library in told.negative  # it does not hold the answer
    holds = mine_negatives(
        corpus, [Example("a", "?", ("two crowns",), (ferry,))], query * 0 + vectors[ferry], vectors, count=9, margin=0.0
    )[0]
    assert library in holds.ignored and len(holds.negative) == 4  # it says "two crowns"
    among = mine_negatives(
        corpus, [Example("a", "?", (), (ferry,))], vectors[[ferry]], vectors, count=9, margin=0.0, among={library}
    )[0]
    assert among.negative == (library,)


def test_every_example_once_in_an_epoch_and_settings_checked() -> None:
    steps = plan_batches(10, 4, 2.5, seed=0)
    assert sorted(i for batch in steps[:3] for i in batch) == list(range(10))
    assert [len(b) for b in steps] == [4, 4, 2, 4, 4, 2, 4, 4]
    with pytest.raises(ConfigError, match=r"objective.*learning_rate"):
        RetrieverConfig(objective="magic", learning_rate=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cloze"):
        RetrieverConfig(corpus_task="halves")
    config = RetrieverConfig(warmup_ratio=0.5)
    assert [config.factor(s, 4) for s in range(4)] == [0.5, 1.0, 1.0, 0.5]
