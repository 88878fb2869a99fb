"""The rest of the page in Chromium: conversations that outlive a tab, votes, chunks, tuning, deciding, keys, languages."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.decision import decision_view
from tests.apps.browser import Site, ask, choose, fits, shot, tab
from tests.apps.test_page import CONTRAST, nothing_leaves_the_machine, site  # noqa: F401
from tests.apps.test_recommend import EQUAL

pytestmark = pytest.mark.browser

QUESTIONS = [
    {"id": f"q{i}", "question": question, "answers": [answer], "evidence": [{"source": source, "quote": answer}]}
    for i, (question, answer, source) in enumerate(
        [
            ("What does a return ticket cost?", "18 crowns", "ferry.md"),
            ("When does the kitchen close?", "21:15", "kitchen.txt"),
            ("How long may members borrow the blue boat?", "3 days", "boats/loan.md"),
            ("How many books does the library lend?", "nine", "library.html"),
        ]
    )
]


def open_page(site: Site, **how: Any) -> Any:  # noqa: F811
    site.model.loaded.set()
    site.model.gate.set()
    return site.open(**how)


def ask_slowly(site: Site, page: Any) -> None:  # noqa: F811
    """An answer that stays in its middle until the gate opens."""
    site.model.gate.clear()
    page.fill("#question textarea", "Tell me slowly about the blue boat")
    page.keyboard.press("Enter")
    page.wait_for_selector("#live-answers [data-status=writing]")


def job(site: Site, name: str, kind: str, state: str, **more: Any) -> Path:  # noqa: F811
    """A job as it lies on disk; a running one is this process."""
    folder = site.service.library.folder
    place = folder.with_name(folder.name + ".jobs") / name
    place.mkdir(parents=True, exist_ok=True)
    argv = [kind, str(folder), "--questions", "q.jsonl", "--out", "x"]
    order = {"id": name, "kind": kind, "argv": argv, "user": "local", "created": time.time(), "cwd": "."}
    (place / "job.json").write_text(json.dumps(order))
    me = psutil.Process()
    status = {"state": state, "pid": os.getpid(), "process": me.create_time(), "beat": time.time(),
              "started": time.time() - 30, **more}  # fmt: skip
    (place / "status.json").write_text(json.dumps(status))
    (place / "log.txt").write_text("loading the generator\n<script>window.pwned=1</script>\n")
    return place


def test_conversations_are_listed_renamed_resumed_exported_and_deleted(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    ask(page, "When does the kitchen close?")
    page.click(".rt-new")
    page.wait_for_selector("#welcome h2")
    ask(page, "What does a return ticket cost?")
    page.wait_for_function("document.querySelectorAll('.rt-talk').length >= 2")
    current = page.query_selector(".rt-talk.rt-current")
    assert "return ticket" in current.inner_text()

    page.click(".rt-talk.rt-current .rt-menu > summary")
    page.fill(".rt-talk.rt-current .rt-rename input", "Fares <b>2026</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector(".rt-talk.rt-current >> text=Fares <b>2026</b>")
    shot(page, "conversations-1400-light")

    page.click(".rt-talk:has-text('kitchen') .rt-talk-open")
    page.wait_for_selector("#live-answers .rt-question >> text=When does the kitchen close?")
    assert "21:15" in page.inner_text("#live-answers")
    ask(page, "And who cooks the last warm meal?")
    assert "kitchen close" in page.inner_text("#earlier")

    page.click(".rt-talk.rt-current .rt-menu > summary")
    with page.expect_download() as saved:
        page.click(".rt-talk.rt-current button[data-form=markdown]")
    assert "## When does the kitchen close?" in Path(saved.value.path()).read_text()
    with page.expect_download() as saved:
        page.click(".rt-talk.rt-current button[data-form=json]")
    assert len(json.loads(Path(saved.value.path()).read_text())["turns"]) == 2

    page.click(".rt-talk.rt-current .rt-sure > summary")
    page.click(".rt-talk.rt-current .rt-sure button[data-event=delete]")
    page.wait_for_selector("#welcome h2")
    assert "kitchen" not in page.inner_text("#rail")


def test_an_answer_survives_a_reload_and_a_closed_tab(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    ask_slowly(site, page)
    page.reload()
    page.wait_for_selector("#live-answers [data-status=writing] .rt-answer")
    assert page.is_visible("#stop")
    page.close()
    context = page.context
    site.model.gate.set()
    _wait_for_all(site)
    again = context.new_page()
    again.goto(site.url)
    again.wait_for_selector("#live-answers [data-status=done]")
    assert "blue boat" in again.inner_text("#live-answers .rt-answer") and again.is_visible("#ask")


def test_a_second_tab_goes_on_to_what_the_first_asks_next(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    ask_slowly(site, page)
    second = page.context.new_page()
    second.goto(site.url)
    second.wait_for_selector("#live-answers [data-status=writing] .rt-answer")
    page.fill("#question textarea", "When does the kitchen close?")
    page.keyboard.press("Enter")
    for tab_ in (page, second):
        tab_.wait_for_selector("#earlier >> text=Stopped.")
        tab_.wait_for_selector("#live-answers .rt-question >> text=When does the kitchen close?")
    site.model.gate.set()
    for tab_ in (page, second):
        tab_.wait_for_selector("#live-answers [data-status=done]")
        assert "21:15" in tab_.inner_text("#live-answers") and "blue boat" not in tab_.inner_text("#live-answers")
        assert tab_.is_visible("#ask") and not tab_.is_visible("#stop")


def test_an_answer_is_not_written_into_a_conversation_opened_meanwhile(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    ask(page, "What does a return ticket cost?")
    page.click(".rt-new")
    page.wait_for_selector("#welcome h2")
    ask_slowly(site, page)
    page.reload()  # what is followed from here on was not asked by this page
    page.wait_for_selector("#live-answers [data-status=writing] .rt-answer")
    page.click(".rt-talk:has-text('return ticket') .rt-talk-open")
    page.wait_for_selector("#live-answers >> text=18 crowns")
    site.model.gate.set()
    _wait_for_all(site)
    page.wait_for_timeout(1500)  # the page would have drawn it by now
    assert "18 crowns" in page.inner_text("#live-answers") and "boat" not in page.inner_text("#live-answers")


def _wait_for_all(site: Site) -> None:  # noqa: F811
    for _ in range(100):
        if all(not row.running for row in _rows(site)):
            return
        time.sleep(0.1)
    raise AssertionError("an answer is still running")


def _rows(site: Site) -> list[Any]:  # noqa: F811
    from apps.store import Store

    folder = site.service.library.folder
    store = Store.beside(folder)
    views = [v for c in store.conversations() for v in store.exchanges(c.id)]
    store.close()
    return views


def test_votes_stay_and_count(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    ask(page, "What does a late book cost?")
    page.click("#live-answers .rt-act-up")
    page.wait_for_selector("#live-answers .rt-act-up[aria-pressed=true]")
    assert "1 rating" in page.inner_text("#counter")
    page.reload()
    page.wait_for_selector("#live-answers .rt-act-up[aria-pressed=true]")
    page.click("#live-answers .rt-down > summary")
    page.check("#live-answers .rt-why input[value='wrong source']")
    page.check("#live-answers .rt-why input[value=incomplete]")
    page.fill("#live-answers .rt-why textarea", "2 crowns per week </textarea><script>window.pwned=1</script>")
    shot(page, "vote-1400-light")
    page.click("#live-answers .rt-why button[type=submit]")
    page.wait_for_selector("#live-answers .rt-down[data-voted=true]")
    assert "1 correction" in page.inner_text("#counter")
    page.click("#live-answers .rt-down > summary")
    assert page.input_value("#live-answers .rt-why textarea").startswith("2 crowns per week </textarea>")
    assert page.is_checked("#live-answers .rt-why input[value=incomplete]")
    assert page.evaluate("window.pwned") is None


def test_the_last_question_is_asked_again_and_edited(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    ask(page, "What does a return ticket cost?")
    choose(page, "arm", "base")
    page.click("#live-answers .rt-act-retry")
    page.wait_for_selector("#live-answers [data-arm=base][data-status=done]")
    assert page.query_selector("#earlier .rt-question") is None
    page.click("#live-answers .rt-act-edit")
    page.wait_for_selector("#notice >> text=replaces the last one")
    assert page.input_value("#question textarea") == "What does a return ticket cost?"
    ask(page, "What does a single ticket cost?")
    assert page.query_selector("#earlier .rt-question") is None


def test_one_of_two_answers_is_preferred(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    choose(page, "arm", "base")
    choose(page, "compare", "rag")
    ask(page, "What does a return ticket cost?", replies=2)
    page.click("#live-answers [data-arm=rag] .rt-act-prefer")
    page.wait_for_selector("#live-answers [data-arm=rag] .rt-act-prefer[aria-pressed=true]")
    assert "comparison" in page.inner_text("#counter")


def test_chunks_are_shown_and_a_file_is_read_again(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    tab(page, "Documents")
    page.click("#table tr:has-text('ferry.md') .rt-chunks-open")
    page.wait_for_selector("dialog[open] .rt-chunk >> text=leaves at 07:40")
    page.click("dialog .rt-close")
    page.click("#table tr:has-text('ferry.md') button[data-event=retry]")
    page.wait_for_selector("#verdicts >> text=Its file has not changed.")
    page.click("#table tr:has-text('staff.csv') button[data-event=delete]")
    page.wait_for_selector("#deleted >> text=staff.csv")
    page.click("#delete-keep")
    page.wait_for_selector("#deleted >> text=staff.csv", state="hidden")


def test_questions_rows_forecast_and_command(site: Site, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "harbour <b>.jsonl"
    file.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    page = open_page(site)
    tab(page, "Tune")
    page.wait_for_selector("#tune-command >> text=Choose questions")
    page.set_input_files("#questions-file input[type=file], input[type=file][accept*=jsonl]", str(file))
    page.wait_for_selector("#tune-note >> text=4 questions taken")
    page.wait_for_selector("#tune-command pre >> text=ragtune tune")
    page.click("#look")
    page.wait_for_selector("#preview .rt-card")
    page.click("#preview .rt-card >> nth=0 >> summary")
    said = page.inner_text("#preview")
    assert "What it learns to say" in said and "Question:" in said and "4 questions" in said
    page.fill("#minutes :is(input, textarea)", "3")
    page.keyboard.press("Tab")
    page.wait_for_selector("#tune-command pre >> text=--minutes 3")
    assert "--recipe rag" in page.inner_text("#tune-command")
    page.fill("#epochs :is(input, textarea)", "many <b>")
    page.keyboard.press("Tab")
    page.wait_for_selector("#tune-command >> text=is no number of epochs")
    page.fill("#epochs :is(input, textarea)", "")
    shot(page, "tune-full-1400-light")
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    page.set_input_files(
        "#questions-file input[type=file], input[type=file][accept*=jsonl]", str(tmp_path / "broken.jsonl")
    )
    page.wait_for_selector("#tune-note [role=alert]")


def test_a_job_is_watched_found_again_and_its_result_is_read(site: Site) -> None:  # noqa: F811
    place = job(site, "20261122-100000-aaaa", "tune", "running", stage="training", done=3, total=12,
                detail="loss 1.500, 420 tokens/s")  # fmt: skip
    points = [{"step": i, "loss": 3 - 0.4 * i, "tokens_per_second": 420.0} for i in range(1, 5)]
    (place / "series.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points) + '{"step": 5, "lo')
    page = open_page(site)
    tab(page, "Tune")
    page.wait_for_selector("#tune-job .rt-job[data-state=running]")
    text = page.inner_text("#tune-job")
    assert "training 3/12" in text and "420 tokens/s" in text and "loss 2.60 → 1.40" in text
    page.click("#tune-job .rt-log:has-text('loading the generator') summary")
    page.wait_for_timeout(2500)  # the panel is drawn anew each second; what was opened stays open
    assert page.is_visible("#tune-job .rt-log pre >> text=loading the generator")
    two = page.context.new_page()  # another tab on the same job, after a reload of the first
    two.goto(site.url)
    tab(two, "Tune")
    two.wait_for_selector("#tune-job .rt-job[data-state=running]")
    page.reload()
    tab(page, "Tune")
    page.wait_for_selector("#tune-job .rt-curve polyline")
    shot(page, "job-1400-light")
    figure = {"mean": 0.25, "low": 0.125, "high": 0.375}
    result = {"before": {"n": 40, "f1": figure}, "after": {"n": 40, "f1": {"mean": 0.5, "low": 0.4, "high": 0.6}}}
    (place / "result.json").write_text(json.dumps(result))
    job(site, place.name, "tune", "done", ended=time.time())
    for each in (page, two):
        each.wait_for_selector("#tune-result >> text=Before and after")
        told = each.inner_text("#tune-result")
        assert "0.125 – 0.375" in told and "+0.250" in told and "40 held-out" in told
    assert page.evaluate("window.pwned") is None


def test_a_dead_job_says_so_and_can_be_resumed_or_removed(site: Site) -> None:  # noqa: F811
    broken = job(site, "20261122-090000-cccc", "tune", "running")
    place = job(site, "20261122-110000-bbbb", "tune", "running", process=1.0)
    (broken / "status.json").write_text('{"state": "run')
    page = open_page(site)
    tab(page, "Tune")
    page.wait_for_selector("#tune-job .rt-job[data-state=dead]")
    assert "was killed" in page.inner_text("#tune-job") and page.is_visible("#tune-job button[data-event=play]")
    page.click("#tune-job button[data-event=clear]")
    page.wait_for_selector("#tune-jobs button[data-job='20261122-110000-bbbb']", state="detached")
    assert not place.exists()
    page.click("#tune-jobs button[data-job='20261122-090000-cccc']")
    page.wait_for_selector("#tune-job >> text=cannot be read")


def test_an_adapter_is_used_with_one_click_and_given_back(site: Site) -> None:  # noqa: F811
    folder = site.service.library.folder
    adapter = folder.with_name(folder.name + ".tuning") / "adapters" / "fresh"
    adapter.mkdir(parents=True)
    record = {"format": 1, "recipe": "rag", "rows": 12, "base_fingerprint": site.model.fingerprint,
              "before": {"f1": 0.2}, "after": {"f1": 0.4}}  # fmt: skip
    (adapter / "ragtune.json").write_text(json.dumps(record))
    page = open_page(site)
    tab(page, "Tune")
    page.wait_for_selector("#adapters >> text=F1 0.20 → 0.40")
    page.click("#adapters li:has-text('fresh') button[data-event=apply]")
    page.wait_for_selector("#tune-note >> text=answers with fresh")
    page.wait_for_selector(".rt-head >> text=adapter fresh")
    tab(page, "Chat")
    ask(page, "What does a return ticket cost?")
    assert "adapter fresh" in page.inner_text("#live-answers")
    tab(page, "Tune")
    page.click("#adapters li:has-text('fresh') button[data-event=undo]")
    page.wait_for_selector("#tune-note >> text=answers as before")
    page.wait_for_selector(".rt-head >> text=adapter adapter")


def test_sliders_move_the_recommendation_and_the_arms_can_be_compared(site: Site, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "equal"
    run.mkdir()
    (run / "decision.json").write_text(json.dumps({**EQUAL, "reason": "Equally good."}))
    for name, text, score in (("base", "seventeen <img src=http://evil.example/x>", 0.0), ("tuned", "eighteen", 1.0)):
        row = {
            "id": "a",
            "question": "How much?",
            "answers": ["18"],
            "metrics": {"f1": score},
            "answer": {"text": text},
        }
        (run / f"rows-{name}.jsonl").write_text(json.dumps(row) + "\n")
    before = site.service.decision
    site.service.decision = decision_view(run)
    try:
        page = open_page(site)
        tab(page, "Decide")
        page.wait_for_selector(".rt-use[data-chosen=base]")
        slider = page.locator("#sliders input[data-name=queries]")
        slider.focus()
        for _ in range(30):  # by the keyboard, 0.05 of a power of ten at a time
            page.keyboard.press("ArrowRight")
        page.wait_for_selector(".rt-use[data-chosen=tuned]")
        assert "32,000 questions a month" in page.inner_text(".rt-use")
        page.locator("#sliders input[data-name=price]").fill("2")
        page.wait_for_selector("#recommendation >> text=a month.")
        page.click("#drill summary")
        assert "eighteen" in page.inner_text("#drill") and "<img src=http://evil.example/x>" in page.inner_text(
            "#drill"
        )
        assert page.query_selector(".rt-plots svg.scatter") and "base" in page.inner_text("#decision-details")
        shot(page, "decide-full-1400-light")
    finally:
        site.service.decision = before


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1024, "dark"), (1400, "light")])
@pytest.mark.parametrize("path", ["", "zh"])
def test_every_tab_in_both_languages_fits_and_is_named(site: Site, width: int, scheme: str, path: str) -> None:  # noqa: F811
    page = open_page(site, width=width, height=844, scheme=scheme)
    if path:
        page.click(".rt-lang")
        page.wait_for_selector(".rt-head >> text=个文档")
        page.wait_for_selector(".rt-model.rt-ready")
        assert page.evaluate("document.documentElement.lang") == "zh"
    ask(page, "What does a return ticket cost?")
    for i, within in enumerate(("#chat-frame", "#shelf", "#bench", "#decision")):
        page.click(f"button[role=tab] >> nth={i}")
        page.wait_for_selector(f"{within} >> visible=true")
        page.wait_for_timeout(300)
        assert fits(page), within
        assert page.evaluate(CONTRAST, within) == []
        assert page.evaluate(NAMELESS) == []
        shot(page, f"{within[1:]}-full-{width}-{scheme}{path and '-' + path}")


def test_the_keyboard_reaches_everything(site: Site) -> None:  # noqa: F811
    page = open_page(site)
    ask(page, "What does a return ticket cost?")
    page.focus("#question textarea")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(e => e.className + ' ' + e.id + ' ' + e.tagName)(document.activeElement)"))
    reached = " ".join(seen)
    for what in ("rt-new", "rt-talk-open", "rt-act-up", "rt-act-down", "rt-act-retry", "rt-lang"):
        assert what in reached, what
    page.focus("#live-answers .rt-act-down")
    page.keyboard.press("Enter")
    page.wait_for_selector("#live-answers .rt-down[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#live-answers .rt-down[open]", state="detached")


# Controls that a screen reader could not name.
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, select, summary, a[href], [role=tab]')]
  .filter(e => e.checkVisibility() && !e.closest('[inert]') && e.type !== 'file' && e.type !== 'hidden')
  .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.title
    || e.placeholder || (e.labels && [...e.labels].some(l => l.textContent.trim()))))
  .map(e => e.outerHTML.slice(0, 120))"""
