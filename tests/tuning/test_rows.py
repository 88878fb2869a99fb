"""Training rows: what the retriever found, the gold passage present or not, and the very tokens that serving feeds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rag.errors import ConfigError, TrainingError
from rag.prompt import ABSTAIN, render
from rag.types import Chunk, Evidence, Passage, Question
from tests.fakes import words
from tests.tuning.tiny import tiny_tokenizer
from tuning.recipes import recipe
from tuning.rows import (
    Row,
    RowsConfig,
    best_answer,
    build_rows,
    closed_book_rows,
    data_hash,
    find_span,
    read_rows,
    write_rows,
)
from tuning.train import encode_rows


def count(text: str) -> int:
    return len(words(text))


def chunk(name: str, text: str, source: str | None = None) -> Chunk:
    return Chunk(name, source or f"{name}.txt", source or f"{name}.txt", 0, len(text), text)


GOLD = chunk("gold", "The Orrin bridge was opened in 1911 by Mayor Tessa Vane.")
OTHERS = [chunk(f"other{i}", f"Ferry number {i} sank in a storm near the northern shore.") for i in range(9)]
QUESTION = Question("q1", "When was the Orrin bridge opened?", ("1911",), (Evidence("gold.txt", "opened in 1911"),))


def found(*chunks: Chunk) -> list[Passage]:
    return [Passage(c, i, 1.0 / i) for i, c in enumerate(chunks, 1)]


def only(rows: list[Row]) -> Row:
    assert len(rows) == 1
    return rows[0]


def test_a_row_shows_what_retrieval_found_in_serving_order() -> None:
    retrieved = found(OTHERS[0], GOLD, *OTHERS[1:])
    rows, report = build_rows([QUESTION], [retrieved], count_tokens=count, config=RowsConfig(k=3))
    row = only(rows)
    assert row.chunks == ("other0", "gold", "other1") and row.gold == (2,) and row.kind == "answer"
    assert row.completion == "1911"
    assert list(row.prompt) == render(QUESTION.question, retrieved[:3], count_tokens=count).messages
    assert (report.gold_retrieved, report.gold_inserted, report.answer) == (1, 0, 1)
    assert row.to_trl() == {"prompt": row.prompt[0]["content"], "completion": " 1911"}


def test_a_missed_gold_passage_is_put_in_from_the_index_for_the_weakest() -> None:
    rows, report = build_rows(
        [QUESTION], [found(*OTHERS)], count_tokens=count, chunks=[GOLD, *OTHERS], config=RowsConfig(k=3)
    )
    row = only(rows)
    assert set(row.chunks) == {"gold", "other0", "other1"} and report.gold_inserted == 1
    assert row.chunks[row.gold[0] - 1] == "gold"


def test_put_in_gold_passages_stand_at_every_rank() -> None:
    questions = [Question(f"q{i}", QUESTION.question, ("1911",), QUESTION.evidence) for i in range(60)]
    rows, _ = build_rows(questions, [found(*OTHERS)] * 60, count_tokens=count, chunks=[GOLD], config=RowsConfig(k=3))
    assert set(Counter(r.gold[0] for r in rows)) == {1, 2, 3}


def test_gold_is_put_in_with_the_given_probability_and_the_rest_abstains() -> None:
    questions = [Question(f"q{i}", QUESTION.question, ("1911",), QUESTION.evidence) for i in range(400)]
    config = RowsConfig(k=3, insert=0.7, abstain_share=0.9)
    rows, report = build_rows(questions, [found(*OTHERS)] * 400, count_tokens=count, chunks=[GOLD], config=config)
    assert report.abstain / 400 == pytest.approx(0.3, abs=0.06)
    for row in rows:
        assert (row.completion == ABSTAIN) == (row.kind == "abstain") == ("gold" not in row.chunks)


def test_abstain_rows_are_capped_and_the_others_keep_their_answer() -> None:
    questions = [Question(f"q{i}", QUESTION.question, ("1911",), QUESTION.evidence) for i in range(100)]
    retrieved = [found(GOLD, *OTHERS)] * 100
    config = RowsConfig(k=3, withhold=0.5, abstain_share=0.1)
    rows, report = build_rows(questions, retrieved, count_tokens=count, config=config)
    assert (report.rows, report.abstain) == (100, 10)
    assert {r.id for r in rows} == {q.id for q in questions}
    assert report.shares()["abstain"] == pytest.approx(0.1)


def test_an_unanswerable_question_abstains_before_any_other() -> None:
    lost = Question("lost", "Who built the Orrin tunnel?", unanswerable=True)
    questions = [lost, *(Question(f"q{i}", QUESTION.question, ("1911",), QUESTION.evidence) for i in range(9))]
    rows, report = build_rows(
        questions,
        [found(GOLD, *OTHERS)] * 10,
        count_tokens=count,
        config=RowsConfig(k=3, withhold=0.9, abstain_share=0.1),
    )
    assert [r.id for r in rows if r.kind == "abstain"] == ["lost"] and report.unanswerable == 1


def test_no_abstain_row_shows_the_answer_in_another_document() -> None:
    spoiler = chunk("spoiler", "In 1911 the bridge was the longest of the country.")
    config = RowsConfig(k=2, insert=0.0, abstain_share=0.9)
    questions = [QUESTION, Question("q2", "Who?", ("Tessa",), (Evidence("gold.txt", "Tessa"),))]
    answered = [Question(f"a{i}", QUESTION.question, ("1911",), QUESTION.evidence) for i in range(4)]
    retrieved = [found(spoiler, *OTHERS)] * 2 + [found(GOLD, *OTHERS)] * 4
    rows, _ = build_rows([*questions, *answered], retrieved, count_tokens=count, config=config)
    assert all("spoiler" not in r.chunks for r in rows if r.id == "q1")
    assert "spoiler" in next(r for r in rows if r.id == "q2").chunks


def test_two_pieces_of_evidence_are_both_shown() -> None:
    second = chunk("second", "The Vane family came from Norland.")
    q = Question(
        "q",
        "Where did the mayor's family come from?",
        ("Norland",),
        (*QUESTION.evidence, Evidence("second.txt", "Norland")),
    )
    rows, _ = build_rows([q], [found(*OTHERS)], count_tokens=count, chunks=[GOLD, second], config=RowsConfig(k=3))
    assert {"gold", "second"} < set(only(rows).chunks)


def test_a_distractor_gives_way_when_the_gold_passage_does_not_fit() -> None:
    long = chunk("long", "word " * 40)
    config = RowsConfig(k=2, context_tokens=40)
    rows, _ = build_rows([QUESTION], [found(long, GOLD)], count_tokens=count, config=config)
    assert only(rows).chunks == ("gold",)


def test_citations_carry_the_number_of_the_gold_passage() -> None:
    config = RowsConfig(k=2, citations=True, style="cited")
    rows, _ = build_rows([QUESTION], [found(OTHERS[0], GOLD)], count_tokens=count, config=config)
    assert only(rows).completion == "1911 [2]"


def test_shuffled_rows_are_numbered_anew_and_seeded() -> None:
    config = RowsConfig(k=5, shuffle=True, seed=2)
    args = ([QUESTION], [found(GOLD, *OTHERS)])
    first, _ = build_rows(*args, count_tokens=count, config=config)
    again, _ = build_rows(*args, count_tokens=count, config=config)
    other, _ = build_rows(*args, count_tokens=count, config=RowsConfig(k=5, shuffle=True, seed=3))
    assert first == again and first[0].chunks != other[0].chunks
    assert first[0].chunks[first[0].gold[0] - 1] == "gold"


def test_the_worked_examples_of_untuned_models_are_not_trained_on() -> None:
    retrieved = [found(GOLD, *OTHERS)]
    examples, _ = build_rows([QUESTION], retrieved, count_tokens=count, config=RowsConfig(style="examples"))
    short, _ = build_rows([QUESTION], retrieved, count_tokens=count, config=RowsConfig(style="short"))
    assert examples == short and examples[0].prompt[0]["content"].count("Question: ") == 1


def test_questions_that_no_document_answers_are_refused_together() -> None:
    q = Question("q", "Who?", ("Nobody",), (Evidence("missing.txt", "Nobody"),))
    with pytest.raises(TrainingError, match="relative to the indexed folder"):
        build_rows([q], [[]], count_tokens=count)


def test_closed_book_rows_have_no_passages() -> None:
    rows, report = closed_book_rows([QUESTION, Question("u", "?", unanswerable=True)], count_tokens=count)
    assert only(rows).kind == "closed-book" and report.unanswerable == 1
    assert only(rows).prompt == tuple(render(QUESTION.question, (), count_tokens=count, closed_book=True).messages)
    with pytest.raises(TrainingError, match="nothing to train on"):
        closed_book_rows([Question("u", "?", unanswerable=True)], count_tokens=count)


def test_frozen_rows_come_back_and_their_hash_changes_with_any_of_them(tmp_path: Path) -> None:
    rows, _ = build_rows([QUESTION], [found(GOLD, *OTHERS)], count_tokens=count)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    changed = [Row(r.id, r.kind, r.prompt, "1912", r.gold, r.chunks, r.sources) for r in rows]
    assert data_hash(rows) == data_hash(read_rows(tmp_path / "rows.jsonl")) != data_hash(changed)


@pytest.mark.parametrize(
    ("text", "quote", "span"),
    [
        ("It cost 15 crowns.", "15", (8, 10)),
        ("It cost 150 crowns.", "15", None),
        ("the  Orrin\nbridge", "The Orrin Bridge", (0, 17)),
        ("大桥全长420米。", "420米", (4, 8)),
        ("大桥全长420米。", "全长", (2, 4)),
        ("price: $15.", "$15", (7, 10)),
        ("anything", "  ", None),
    ],
)
def test_spans_are_whole_words(text: str, quote: str, span: tuple[int, int] | None) -> None:
    assert find_span(text, quote) == span


def test_the_taught_answer_is_the_commonest_one_as_it_stands_in_the_passage() -> None:
    assert best_answer(("in 1911", "1911", "1911"), [GOLD.text]) == "1911"
    assert best_answer(("mayor tessa vane",), [GOLD.text]) == "Mayor Tessa Vane"
    assert best_answer(("forty-two",), [GOLD.text]) == "forty-two"


def test_config_and_recipe_refuse_what_is_not_allowed() -> None:
    for bad in ({"k": 0}, {"insert": 1.5}, {"withhold": -0.1}, {"abstain_share": 1.0}):
        with pytest.raises(ConfigError):
            RowsConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="allowed: rag, closed-book"):
        recipe("raft")
    with pytest.raises(ConfigError, match="one for each"):
        build_rows([QUESTION], [], count_tokens=count)
    assert recipe("closed-book").NEEDS_PASSAGES is False and recipe("rag").NEEDS_PASSAGES is True


def test_training_and_serving_see_the_same_token_ids() -> None:
    """Golden: ids of a row are those the generator feeds for the rendered prompt, then the answer and the end of turn."""
    from rag.generator import LocalGenerator
    from tests.tuning.tiny import tiny_model

    tokenizer = tiny_tokenizer()
    generator = LocalGenerator(tiny_model(), tokenizer, name="tiny", fingerprint="tiny")
    tricky = chunk("gold", "The Orrin bridge <|im_end|> was opened in 1911 .")
    retrieved = found(tricky, *OTHERS[:2])
    rows, _ = build_rows([QUESTION], [retrieved], count_tokens=generator.count_tokens, config=RowsConfig(k=3))
    encoded, _ = encode_rows(rows, tokenizer, max_seq_length=512)
    row = encoded[0]
    served = generator.prompt_ids(render(QUESTION.question, retrieved, count_tokens=generator.count_tokens).messages)
    assert list(row.ids[: len(row.ids) - row.answer]) == served
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert list(row.ids[-row.answer :]) == generator.completion_ids(" 1911") and row.ids[-1] == end
    assert row.ids.count(end) == 1  # the end of the answer: the one in the document is text
