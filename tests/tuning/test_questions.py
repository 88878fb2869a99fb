"""Questions from documents: possible answers, questions by rules, the filters, stop and go on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from rag.errors import ConfigError, QuestionsError, UsageError
from rag.index import Index, sync
from rag.protocols import Message
from rag.questions import read_questions
from rag.retrieve import Retriever
from rag.types import Evidence, Question
from tests.fakes import FakeEncoder, FakeGenerator
from tuning.cloze import cloze_question
from tuning.questions import QuestionsConfig, make_questions, split_by_document
from tuning.spans import answer_spans
from tuning.wording import stands_alone

COUNT = Counter(["move", "open", "build", "replace", "carry", "write"])


def ask(text: str, answer: str) -> str | None:
    for span in answer_spans(text):
        if text[span.start : span.end] == answer:
            return cloze_question(text, span, COUNT)
    raise AssertionError(f"{answer!r} is no span of {text!r}: {[text[s.start : s.end] for s in answer_spans(text)]}")


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        (
            "The Orrin bridge was opened on 4 May 1911 by Mayor Tessa Vane.",
            {"4 May 1911": "date", "Mayor Tessa Vane": "name"},
        ),
        (
            "About 60 percent of its members paid $1.5 million in the 19th century.",
            {"60 percent": "number", "$1.5 million": "number", "19th century": "date"},
        ),
        ("The book is called “The Long Bridge” by most readers of it.", {"The Long Bridge": "quoted"}),
        (
            "The strike began because the railway workers had no contract.",
            {"railway workers": "phrase", "contract": "phrase"},
        ),
        ("锡安大桥于1911年5月4日开通，全长420米。", {"1911年5月4日": "date", "420米": "number", "锡安大桥": "name"}),
    ],
)
def test_possible_answers_have_their_kind(text: str, spans: dict[str, str]) -> None:
    found = {text[s.start : s.end]: s.kind for s in answer_spans(text)}
    assert spans.items() <= found.items()


def test_spans_stand_in_their_sentence_and_do_not_overlap() -> None:
    text = "In 1881, Tesla moved to Budapest. He worked for 3 years at the Budapest Telephone Exchange, a company."
    spans = answer_spans(text)
    assert spans and all(s.sentence[0] <= s.start < s.end <= s.sentence[1] for s in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))


@pytest.mark.parametrize(
    ("text", "answer", "question"),
    [
        (
            "The Orrin bridge was opened in 1911 by Mayor Tessa Vane.",
            "1911",
            "In what year was the Orrin bridge opened by Mayor Tessa Vane?",
        ),
        (
            "The Orrin bridge was opened in 1911 by Mayor Tessa Vane.",
            "Mayor Tessa Vane",
            "By whom was the Orrin bridge opened in 1911?",
        ),
        (
            "In 1881, Tesla moved to a small town in Hungary.",
            "1881",
            "In what year did Tesla move to a small town in Hungary?",
        ),
        ("The new bridge replaced a ferry in the autumn.", "ferry", "What did the new bridge replace in the autumn?"),
        (
            "Tessa Vane opened the Orrin bridge in the spring of that year.",
            "Tessa Vane",
            "Who opened the Orrin bridge in the spring of that year?",
        ),
        (
            "The bridge carries two tram lines across the river.",
            "two",
            "How many tram lines does the bridge carry across the river?",
        ),
        ("However, the bridge is 420 metres long.", "420 metres", "How long is the bridge?"),
        (
            "The company was founded in Norland by two brothers.",
            "Norland",
            "Where was the company founded by two brothers?",
        ),
        ("锡安大桥于1911年5月4日开通，全长420米。", "420米", "锡安大桥于1911年5月4日开通，全长多少米？"),
    ],
)
def test_questions_by_rules(text: str, answer: str, question: str) -> None:
    assert ask(text, answer) == question


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He moved to Budapest in 1881 to work there.", "1881"),  # who is "he"?
        ("Although it rained, the bridge was opened in 1911.", "1911"),
        ("The bridge lasted from 1911 to 1954 in that place.", "1911"),
        ("A bridge built in 1911 was replaced by a tunnel.", "1911"),
    ],
)
def test_sentences_that_fit_no_rule_give_nothing(text: str, answer: str) -> None:
    assert ask(text, answer) is None


@pytest.mark.parametrize(
    ("question", "good"),
    [
        ("When was the Orrin bridge opened?", True),
        ("When was this bridge of Orrin opened?", False),
        ("When did he open the Orrin bridge?", False),
        ("What does the passage say about the Orrin bridge?", False),
        ("Was the Orrin bridge opened in 1911?", False),  # gives the answer away
        ("When was the Eiffel tower of Paris painted?", False),  # about something else
        ("When?", False),
        ("Tell me about the Orrin bridge.", False),
        ("What did Mayor Vane open in her city?", True),
    ],
)
def test_a_question_stands_alone(question: str, good: bool) -> None:
    text = "The Orrin bridge was opened in 1911 by Mayor Vane of the city."
    assert stands_alone(question, "1911", text, "Orrin bridge") is good


# ------------------------------------------------------------------------------- the pipeline

PLACES = ("Orrin", "Norland", "Tessaly", "Brunnen", "Calvos", "Dermot", "Elbing", "Farrow", "Gaspar", "Hollin")


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    root = tmp_path_factory.mktemp("corpus")
    (root / "documents").mkdir()
    for i, place in enumerate(PLACES):
        text = (
            f"The {place} bridge was opened in {1900 + i} by Mayor Tessa {place}son. "
            f"The {place} bridge carries {['two', 'three', 'four'][i % 3]} tram lines across the river {place}ach. "
            f"In {1950 + i}, the {place} Transport Company moved its depot to the village of {place}dorf.\n"
        )
        (root / "documents" / f"{place.lower()}.txt").write_text(text)
    (root / "documents" / "quillon.txt").write_text(
        "The Quillon observatory counts meteors every August. Astronomers of the Quillon Society publish a yearly list.\n"
    )
    encoder = FakeEncoder(dimension=256)
    sync(root / "index", [root / "documents"], encoder)
    return Retriever(Index.open(root / "index", encoder))


def reader(messages: Sequence[Message]) -> str:
    """A generator that writes nothing useful, and answers any question by reading the whole passage aloud."""
    asked = messages[-2]["content"] if messages[-1]["role"] == "assistant" else messages[-1]["content"]
    if asked.startswith("Topic:"):
        return "colour is it"
    return asked.rsplit("\n\n", 1)[1].split("Passage: ", 1)[1].split("\nQuestion: ")[0]


CONFIG = QuestionsConfig(batch=8, fluent=1.0, written=0.0, unanswerable_share=0.1)


def test_kept_questions_have_answer_evidence_and_pass_the_round_trip(retriever: Retriever, tmp_path: Path) -> None:
    report = make_questions(retriever, FakeGenerator(reader), out=tmp_path / "q.jsonl", n=10, config=CONFIG)
    rows = read_questions(tmp_path / "q.jsonl")
    texts = {s.source: retriever.index.text(s.source) for s in retriever.index.sources}
    answered = [q for q in rows if not q.unanswerable]
    assert report.complete and report.kept == len(answered) == 9 and report.unanswerable == len(rows) - 9 == 1
    for q in answered:
        assert q.answers[0] in texts[q.evidence[0].source] and q.evidence[0].quote in texts[q.evidence[0].source]
        assert q.question.endswith("?") and q.answers[0] not in q.question
    assert len({q.question for q in rows}) == len(rows)
    assert set(report.filters) == {"stands_alone", "new", "fluent", "found", "returned"}
    assert report.asked >= report.kept and all(0 <= v <= 1 for v in report.filters.values())
    assert not (tmp_path / "q.jsonl.partial").exists()


def test_questions_that_the_answerer_cannot_answer_are_dropped(retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(QuestionsError, match="passed the filters"):
        make_questions(retriever, FakeGenerator("no idea at all"), out=tmp_path / "q.jsonl", n=5, config=CONFIG)
    assert not (tmp_path / "q.jsonl").exists()


def test_a_generator_that_writes_well_is_used(retriever: Retriever, tmp_path: Path) -> None:
    def writer(messages: Sequence[Message]) -> str:
        asked = messages[-2]["content"] if len(messages) > 1 else ""
        if asked.startswith("Topic:"):
            text = asked.split("Text: ")[1].split("\nAnswer: ")[0]
            answer = asked.split("\nAnswer: ")[1]
            return "of " + " ".join(w for w in text.split() if answer not in w and w.strip(".") not in answer)[:80]
        return reader(messages)

    config = QuestionsConfig(batch=8, written=1.0, min_f1=0.0, k=10)
    report = make_questions(retriever, FakeGenerator(writer), out=tmp_path / "q.jsonl", n=6, config=config)
    assert set(report.origins) == {"written"} and report.kept > 0


def test_an_interrupted_run_goes_on_to_the_same_file(retriever: Retriever, tmp_path: Path) -> None:
    make_questions(retriever, FakeGenerator(reader), out=tmp_path / "whole.jsonl", n=16, config=CONFIG)
    calls = 0

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_questions(
            retriever, FakeGenerator(reader), out=tmp_path / "parts.jsonl", n=16, config=CONFIG, progress=stop
        )
    partial = tmp_path / "parts.jsonl.partial"
    assert partial.exists() and not (tmp_path / "parts.jsonl").exists()
    with partial.open("a") as file:
        file.write('{"kept": [{"id"')  # as after a kill in the middle of a write
    make_questions(retriever, FakeGenerator(reader), out=tmp_path / "parts.jsonl", n=16, config=CONFIG)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_partial_file_of_other_settings_is_refused_by_name(retriever: Retriever, tmp_path: Path) -> None:
    head = {"partial": 1, "documents": "x", "generator": "y", "config": {}}
    (tmp_path / "q.jsonl.partial").write_text(json.dumps(head) + "\n")
    with pytest.raises(UsageError, match="another documents, generator, config"):
        make_questions(retriever, FakeGenerator(reader), out=tmp_path / "q.jsonl", n=4, config=CONFIG)
    make_questions(retriever, FakeGenerator(reader), out=tmp_path / "q.jsonl", n=4, config=CONFIG, resume=False)


def test_fewer_than_asked_for_is_said(retriever: Retriever, tmp_path: Path) -> None:
    report = make_questions(retriever, FakeGenerator(reader), out=tmp_path / "q.jsonl", n=5000, config=CONFIG)
    assert not report.complete and 0 < report.kept < 5000
    per_chunk = Counter(q.id.rsplit("-", 1)[0] for q in read_questions(tmp_path / "q.jsonl") if not q.unanswerable)
    assert max(per_chunk.values()) <= CONFIG.per_chunk


def test_bad_requests_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        make_questions(retriever, FakeGenerator(reader), out=tmp_path / "q.jsonl", n=0)
    with pytest.raises(ConfigError, match="min_f1"):
        QuestionsConfig(min_f1=2.0)


def test_a_split_has_no_document_on_both_sides() -> None:
    rows = [Question(f"q{i}", "?", ("a",), (Evidence(f"d{i % 7}.txt"),)) for i in range(40)]
    rows.append(Question("two", "?", ("a",), (Evidence("d0.txt"), Evidence("d1.txt"))))
    train, test = split_by_document(rows, test=0.3, seed=1)
    assert not {e.source for q in train for e in q.evidence} & {e.source for q in test for e in q.evidence}
    assert len(train) + len(test) == 41 and 0 < len(test) < 25


@pytest.mark.slow
def test_the_starter_makes_questions_of_real_documents(shared_data: Path, tmp_path: Path) -> None:
    from rag.models import load_encoder, load_generator

    corpus = tmp_path / "documents"
    corpus.mkdir()
    lines = (shared_data / "qa/squad_v1.1/corpus.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    for i, line in enumerate(lines):
        document = json.loads(line)
        (corpus / f"{i}.txt").write_text(f"{document['title']}\n\n{document['text']}\n", encoding="utf-8")
    encoder = load_encoder("starter")
    sync(tmp_path / "index", [corpus], encoder)
    retriever = Retriever(Index.open(tmp_path / "index", encoder))
    report = make_questions(retriever, load_generator("starter"), out=tmp_path / "q.jsonl", n=10)
    assert 8 <= report.kept <= 10 and report.filters["returned"] > 0.15
