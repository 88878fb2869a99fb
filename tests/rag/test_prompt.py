"""The prompt, citation markers, abstention, and follow-up questions."""

from __future__ import annotations

import pytest

from rag.cite import cite, content_words, find_quote, support
from rag.prompt import (
    ABSTAIN,
    completion,
    is_abstention,
    neutralise,
    parse_citations,
    render,
    search_query,
    strip_markers,
)
from rag.types import Chunk, Passage, Turn


def passage(rank: int, text: str, *, start: int = 0) -> Passage:
    return Passage(Chunk(f"c{rank}", "d", f"doc{rank}.md", start, start + len(text), text, page=rank), rank, 1 / rank)


def count(text: str) -> int:
    return len(text.split())


def test_the_best_passage_stands_next_to_the_question_and_keeps_its_number() -> None:
    passages = [passage(1, "alpha"), passage(2, "beta")]
    assert render("Who?", passages, count_tokens=count).messages == [
        {"role": "text", "content": "Passage: beta\nPassage: alpha\nQuestion: Who?\nAnswer:"}
    ]
    system, user = render("Who?", passages, count_tokens=count, style="cited").messages
    assert user["content"] == "[2] beta\n\n[1] alpha\n\nQuestion: Who?"
    assert system["role"] == "system" and ABSTAIN in system["content"]


def test_passages_beyond_the_budget_are_cut_and_counted() -> None:
    passages = [passage(1, "a " * 10), passage(2, "b " * 10), passage(3, "c " * 10)]
    # a block costs its marker and ten words, and two for the blank line: 13 each
    rendered = render("q", passages, count_tokens=count, budget=26)
    assert [p.rank for p in rendered.shown] == [1, 2] and rendered.cut == 1


def test_the_first_passage_is_shown_even_when_it_exceeds_the_budget() -> None:
    rendered = render("q", [passage(1, "a " * 50), passage(2, "b")], count_tokens=count, budget=5)
    assert [p.rank for p in rendered.shown] == [1] and rendered.cut == 1


def test_closed_book_prompts_hold_no_passages_and_no_abstention() -> None:
    (message,) = render("Who?", [], count_tokens=count, closed_book=True).messages
    assert message["content"] == "Question: Who?\nAnswer:"
    system, user = render("Who?", [], count_tokens=count, closed_book=True, style="cited").messages
    assert user["content"] == "Question: Who?" and ABSTAIN not in system["content"]


def test_a_retrieval_that_found_nothing_is_said() -> None:
    assert "(no passages were found)" in render("Who?", [], count_tokens=count).messages[-1]["content"]


def test_history_stands_before_the_question_without_markers() -> None:
    text = render("And now?", [], count_tokens=count, history=[Turn("Who?", "Ada [1]")]).messages[-1]["content"]
    assert "Q: Who?\nA: Ada\nQuestion: And now?" in text


def test_examples_are_one_text_that_is_the_same_for_every_question_and_begins_the_answer() -> None:
    (one,) = render("Q1", [passage(1, "x"), passage(2, "z")], count_tokens=count, style="examples").messages
    (two,) = render("Q2", [passage(1, "y")], count_tokens=count, style="examples").messages
    assert one["role"] == two["role"] == "text"
    worked, asked = one["content"].rsplit("\n\n", 1)
    assert asked == "Passage: z\nPassage: x\nQuestion: Q1\nAnswer:"
    assert two["content"] == f"{worked}\n\nPassage: y\nQuestion: Q2\nAnswer:"
    assert worked.count("\nAnswer: ") == 4 and worked.startswith("Passage: The Orrin bridge")
    (closed,) = render("Q1", count_tokens=count, style="examples", closed_book=True).messages
    assert closed["content"].endswith("\n\nQuestion: Q1\nAnswer:") and "Passage" not in closed["content"]


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "<|im_start|>system", "</s>", "<s>", "[INST] x [/INST]", "[Relevant]", "[Utility:5]"]
)
def test_control_tokens_of_documents_are_broken(text: str) -> None:
    assert text not in neutralise(f"before {text} after")
    assert text.replace(" ", "") == neutralise(text).replace(" ", "")


def test_harmless_text_is_left_alone() -> None:
    text = "if a < b: x[1] = [2] # [Note] 3 <b>bold</b>"
    assert neutralise(text) == text


@pytest.mark.parametrize(
    ("written", "clean", "numbers"),
    [
        ("Ada [1].", "Ada [1].", [1]),
        ("Ada[1][2]", "Ada[1][2]", [1, 2]),
        ("Ada [1, 2]", "Ada [1][2]", [1, 2]),
        ("Ada 【2】", "Ada [2]", [2]),
        ("Ada [^1]", "Ada [1]", [1]),
        ("Ada [Passage 2]", "Ada [2]", [2]),
        ("Ada (passage 1)", "Ada [1]", [1]),
        ("Ada (sources 1, 2)", "Ada [1][2]", [1, 2]),
        ("in 1911 (see below)", "in 1911 (see below)", []),
    ],
)
def test_markers_are_read_leniently(written: str, clean: str, numbers: list[int]) -> None:
    parsed = parse_citations(written, [passage(1, "x"), passage(2, "y")])
    assert parsed.text == clean
    assert [n for _, _, n in parsed.marks] == numbers
    assert all(parsed.text[a:b] == f"[{n}]" for a, b, n in parsed.marks)


def test_markers_of_no_passage_are_dropped_and_reported() -> None:
    parsed = parse_citations("Ada [7] and Bob [1].", [passage(1, "x")])
    assert parsed.text == "Ada and Bob [1]." and parsed.unknown == (7,)


def test_completion_and_strip_markers_are_inverse() -> None:
    assert completion(" 420 metres ", [2, 1]) == "420 metres [2] [1]"
    assert strip_markers(completion("420 metres", [2, 1])) == "420 metres"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ABSTAIN,
        "not in the documents",
        "I don’t know.",
        "文档中没有这个信息。",
        "The answer is not mentioned in the passages.",
    ],
)
def test_abstentions(text: str) -> None:
    assert is_abstention(text)


@pytest.mark.parametrize("text", ["420 metres", "no", "The bridge was not built in 1911."])
def test_answers_are_no_abstentions(text: str) -> None:
    assert not is_abstention(text)


def test_a_follow_up_is_searched_with_what_it_is_about() -> None:
    history = [Turn("Who opened the Orrin bridge?", "Tessa Vane [1]")]
    assert search_query("When was it opened?", history) == "Who opened the Orrin bridge? Tessa Vane When was it opened?"
    assert search_query("为什么？", history).endswith("为什么？") and "Orrin" in search_query("为什么？", history)
    assert search_query("What does the ferry to Skarn cost?", history) == "What does the ferry to Skarn cost?"
    assert search_query("When was it opened?", []) == "When was it opened?"
    assert "Not in" not in search_query("Why is that?", [Turn("Who?", ABSTAIN)])


TEXT = "The hut has 24 beds. The Orrin bridge is 420 metres long. Dogs stay outside."


def test_a_quote_is_the_sentence_that_holds_the_answer() -> None:
    start, end = find_quote("420 metres", TEXT)
    assert TEXT[start:end] == "The Orrin bridge is 420 metres long."


def test_citations_open_at_document_offsets() -> None:
    p = passage(2, TEXT, start=100)
    text, citations = cite(parse_citations("It is 420 metres long [2].", [p]), [p])
    assert text == "It is 420 metres long [2]."
    (c,) = citations
    assert (c.number, c.source, c.page) == (2, "doc2.md", 2)
    assert TEXT[c.start - 100 : c.end - 100] == c.quote == "The Orrin bridge is 420 metres long."
    assert c.support == 1.0  # content words: 420, metres, long — all in the quote


def test_an_answer_without_markers_is_cited_where_it_stands() -> None:
    passages = [passage(1, "Nothing of use here."), passage(2, TEXT)]
    text, citations = cite(parse_citations("420 metres", passages), passages, "How long is the bridge?")
    assert text == "420 metres [2]" and [c.number for c in citations] == [2]


def test_an_answer_that_stands_nowhere_stays_uncited() -> None:
    passages = [passage(1, TEXT)]
    assert cite(parse_citations("Montevideo harbour", passages), passages) == ("Montevideo harbour", ())


def test_support_is_the_share_of_content_words() -> None:
    assert content_words("The bridge is 420 metres") == ["bridge", "420", "metres"]
    assert support("The bridge is 420 metres", "a bridge of 420 feet") == pytest.approx(2 / 3)
    assert support("the of", "anything") == 0.0
    assert support("渡船", "渡船时刻表") == 1.0
