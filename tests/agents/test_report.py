"""The report is one file: nothing remote, nothing that runs, and every text of a document or a model escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.compare import ArmCost
from agents.explain import p_value, seconds, signed
from agents.plots import Mark, interval_plot, scatter_plot
from agents.report import render_report
from agents.rule import DecideConfig, decide
from agents.tables import pick_examples
from rag.evaluate import Evaluation, Item, summarise
from rag.statistics import Interval
from rag.types import to_dict

EVIL = '</bdi><script>alert(1)</script><img src="http://example.test/x.png" onerror=alert(1)> "quoted" \ud83d'
VOID = {"meta", "br", "img", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags are balanced and keeps what a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    assert page.open == []
    return page


def made(
    *, means: dict[str, float] | None = None, config: DecideConfig = DecideConfig(resamples=200), n: int = 40
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """decision.json and rows of four made-up arms, every text in them hostile."""
    means = means or {"base": 0.1, "rag": 0.3, "tuned": 0.2, "tuned+rag": 0.6, "oracle": 0.8}
    rng = np.random.default_rng(0)
    runs, rows = {}, {}
    for arm, mean in means.items():
        scores = np.clip(rng.normal(mean, 0.1, n), 0, 1)
        items = [
            Item(
                f"q{i}",
                f"d{i}",
                {"f1": float(s), "answer_words": 3.0, "seconds": 1.0, "abstained": 0.0, "unanswerable": 0.0},
            )
            for i, s in enumerate(scores)
        ]
        runs[arm] = Evaluation(tuple(items), summarise(items, resamples=100))
        rows[arm] = [
            {
                "id": f"q{i}", "question": f"Why {i}? {EVIL}", "answers": [EVIL], "kind": EVIL, "unanswerable": False,
                "metrics": {"f1": float(s)}, "answer": {"text": EVIL, "citations": [{"source": EVIL}]},
            }
            for i, s in enumerate(scores)
        ]  # fmt: skip
    costs = {arm: ArmCost(1.0 + i / 10, training_seconds=60.0 * i, index_seconds=5) for i, arm in enumerate(means)}
    whole = to_dict(decide(runs, costs, config))
    for arm in whole["arms"]:
        arm |= {"adapters": [EVIL], "training_seconds": 60.0, "index_seconds": 5.0}
        arm |= {"f1": arm.pop("quality"), "seconds_p50": arm.pop("p50"), "seconds_p95": arm.pop("p95")}
        arm |= {"answer_words": {"mean": 3.0, "low": 3.0, "high": 3.0}, "abstention": None}
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    forgot = {"arm": "tuned", "questions": 30, "before": interval, "after": interval, "difference": interval}
    data = {
        **whole,
        "kinds": {EVIL: {"n": 4, "arms": {"base": interval}}},
        "forgetting": [{**forgot, "logprob_before": None, "logprob_after": None, "logprob_difference": None}],
        "retrieved": {"recall@5": interval},
        "warnings": [EVIL],
        "config": to_dict(config), "retrieval_config": {"k": 5}, "answer_config": {"k": 3}, "prompt_version": "1",
        "generator": EVIL, "generator_fingerprint": "abc", "encoder": "starter", "index": EVIL, "index_generation": 2,
        "versions": {"python": "3.11"}, "machine": {"cores": 2}, "date": "2026-01-02T03:04:05", "seconds": 12.0,
    }  # fmt: skip
    return data, rows


def test_nothing_remote_nothing_that_runs_all_text_escaped() -> None:
    page = parse(render_report(*made()))
    allowed = {
        "html", "head", "meta", "title", "style", "body", "main", "section", "div", "span", "p", "h1", "h2", "h3", "ul",
        "li", "b", "strong", "small", "bdi", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "dl", "dt",
        "dd", "svg", "g", "line", "circle", "polyline", "text",
    }  # fmt: skip
    assert {tag for tag, _ in page.tags} <= allowed
    for _, attributes in page.tags:
        assert not {"src", "href", "onerror", "onload", "srcset"} & set(attributes)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert '<script>alert(1)</script><img src="http://example.test/x.png" onerror=alert(1)>' in page.text
    style = re.search(r"<style>(.*?)</style>", render_report(*made()), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1] and "prefers-color-scheme: dark" in style[1]


def test_it_says_what_was_decided() -> None:
    data, rows = made()
    text = parse(render_report(data, rows)).text
    assert "Use tuned+rag" in text and data["reason"] in text
    assert "40 questions about 40 documents" in text
    assert "Arm against arm" in text and "p, adjusted" in text and "What tuning made the model forget" in text


@pytest.mark.parametrize(
    ("means", "config", "head"),
    [
        ({"base": 0.3, "rag": 0.3}, DecideConfig(resamples=200), "No arm proved better"),
        ({"base": 0.3, "rag": 0.9}, DecideConfig(resamples=200, min_support=0.5), "No arm keeps the limits"),
        ({"base": 0.3, "oracle": 0.9}, DecideConfig(resamples=200, price_per_hour=1.0), "Only base could be chosen"),
        ({"base": 0.9, "rag": 0.3}, DecideConfig(resamples=200, price_per_hour=2.0), "Use base"),
    ],
)
def test_every_outcome_has_a_page(means: dict[str, float], config: DecideConfig, head: str) -> None:
    assert head in parse(render_report(*made(means=means, config=config))).text


def test_a_page_without_rows_kinds_or_adapters() -> None:
    data, _ = made()
    text = parse(render_report({**data, "kinds": {}, "forgetting": [], "warnings": []}, {})).text
    assert "Where the arms disagree" not in text and "Before you rely on it" not in text


def test_examples_are_half_losses_and_half_wins_of_the_chosen_arm() -> None:
    mine = [0.0] * 30 + [1.0] * 30 + [0.5] * 40
    rows = {
        "base": [{"metrics": {"f1": 0.5}} for _ in mine],
        "rag": [{"metrics": {"f1": s}} for s in mine],
    }
    picked = pick_examples(rows, "f1", "rag")
    assert len(picked) == 20
    assert sum(i < 30 for i in picked) == 10 and sum(30 <= i < 60 for i in picked) == 10
    assert pick_examples({"base": rows["base"]}, "f1", "base") == []
    assert len(pick_examples({k: v[:35] for k, v in rows.items()}, "f1", "rag")) == 20  # 5 wins, 15 losses


@pytest.mark.parametrize("costs", [(0.0, 0.0), (1e-4, 2e-4), (0.3, 40.0), (1.0, 1.0)])
def test_plots_stay_inside_their_frame(costs: tuple[float, float]) -> None:
    marks = [
        Mark("base", Interval(0.0, 0.0, 0.0), costs[0]),
        Mark("tuned+rag", Interval(1.0, 0.99, 1.0), costs[1], "chosen"),
    ]
    page = parse(scatter_plot(marks, ["base", "tuned+rag"], "F1") + interval_plot(marks, "F1"))
    for tag, attributes in page.tags:
        if tag == "circle":
            assert 0 <= float(attributes["cx"] or -1) <= 420 and 0 <= float(attributes["cy"] or -1) <= 300
    shares = [float(v) for _, a in page.tags for v in re.findall(r"(?:left|width):([\d.]+)%", a.get("style") or "")]
    assert shares and all(0 <= share <= 100 for share in shares)


def test_figures_are_printed_honestly() -> None:
    assert (signed(0.123), signed(-0.05), signed(-0.002), signed(0.0)) == ("+0.12", "−0.05", "−0.002", "+0.00")
    assert (p_value(0.0001), p_value(0.0414)) == ("< 0.001", "0.041")
    assert [seconds(s) for s in (0.0012, 0.5, 1.234, 1234.0)] == ["1.2 ms", "500 ms", "1.23 s", "1,234 s"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_does_not_scroll_sideways(chromium: str, tmp_path: Path, width: int) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "report.html"
    path.write_text(render_report(*made()), encoding="utf-8")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert asked == [path.as_uri()]
        browser.close()
