"""The whole loop by browser alone, with the real starters and the sample handbook: upload, make questions, tune, use the
adapter, decide, chat, vote, tune on the votes, compare. Jobs are real processes of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.service import Service
from rag.index import sync
from tests.apps.browser import Site, choose, served, settled, shot, tab

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(3600)]

LONG = 1_500_000  # milliseconds that a job may take on a small, busy machine


@pytest.fixture()
def site(tmp_path: Path, root: Path, chromium: str) -> Iterator[Site]:
    from apps.serving import load_encoder

    documents = sorted((root / "samples" / "handbook" / "documents").rglob("*.md"))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / documents[0].name).write_bytes(documents[0].read_bytes())
    sync(tmp_path / "handbook", [tmp_path / "first"], load_encoder("starter"))
    service = Service.open(tmp_path / "handbook")
    with served(service, chromium) as made:
        yield made


def pick(page: Any, what: str, name: str) -> None:
    """Choose an entry of a dropdown by a part of its name."""
    page.click(f"#{what} input")
    page.click(f"ul[role=listbox] li:has-text('{name}') >> nth=0")


def answer(page: Any, question: str) -> None:
    page.fill("#question textarea", question)
    page.click("#ask")
    page.wait_for_function(
        "q => document.querySelector('#live-answers .rt-question')?.textContent === q"
        " && !document.querySelector('#live-answers [aria-busy=true]')",
        arg=question, timeout=LONG,
    )  # fmt: skip


def test_the_whole_loop(site: Site, root: Path) -> None:
    page = site.open(wait=False)
    page.set_default_timeout(120_000)
    page.wait_for_selector(".rt-model.rt-ready", timeout=LONG)
    assert "SmolLM2-135M-Instruct (starter)" in page.inner_text(".rt-model")

    tab(page, "Documents")
    files = sorted((root / "samples" / "handbook" / "documents").rglob("*.md"))[1:5]
    page.set_input_files("#upload input[type=file]", [str(f) for f in files])
    page.wait_for_selector(f"#verdicts >> text={len(files)} of {len(files)} files done", timeout=LONG)
    assert "5 documents" in page.inner_text(".rt-head")

    tab(page, "Tune")
    page.fill("#questions-count input", "12")
    page.click("#questions-make")
    settled(page, "#tune-job")
    tab(page, "Chat")
    tab(page, "Tune")
    pick(page, "train", "made-")
    page.wait_for_selector("#tune-command pre >> text=ragtune tune")
    page.click("#look")
    page.wait_for_selector("#preview .rt-card", timeout=LONG)
    page.click("#estimate")
    page.wait_for_selector("#forecast dd", timeout=LONG)
    page.fill("#minutes :is(input, textarea)", "0.5")
    page.fill("#adapter-name :is(input, textarea)", "first")
    page.keyboard.press("Tab")
    page.wait_for_selector("#tune-command pre >> text=adapters/first")
    page.click("#tune-start")
    page.wait_for_selector("#tune-job .rt-job[data-state=running], #tune-job .rt-job[data-state=queued]")
    page.reload()  # the job is found again
    tab(page, "Tune")
    settled(page, "#tune-job")
    page.wait_for_selector("#tune-result .rt-table, #tune-result:has-text('Not measured')")
    shot(page, "loop-tune-full")
    tab(page, "Chat")
    tab(page, "Tune")
    page.click("#adapters li:has-text('first') button[data-event=apply]")
    page.wait_for_selector(".rt-head >> text=adapter first")

    tab(page, "Chat")
    titles = [json.loads(line) for line in (root / "samples/handbook/test.jsonl").read_text().splitlines()]
    asked = [q["question"] for q in titles if q.get("answers") and q["question"].isascii()][:3]
    for i, question in enumerate(asked):
        answer(page, question)
        assert page.query_selector("#live-answers [data-status=done]"), page.inner_text("#live-answers")
        assert "adapter first" in page.inner_text("#live-answers .rt-facts")
        if i == 0:
            page.click("#live-answers .rt-act-up")
            page.wait_for_selector("#live-answers .rt-act-up[aria-pressed=true]")
        else:
            page.click("#live-answers .rt-down > summary")
            page.check("#live-answers .rt-why input[value='wrong answer']")
            page.fill("#live-answers .rt-why textarea", "ask the harbour office")
            page.click("#live-answers .rt-why button[type=submit]")
            page.wait_for_selector("#live-answers .rt-down[data-voted=true]")
    assert "3 ratings" in page.inner_text("#counter")
    shot(page, "loop-chat")

    tab(page, "Tune")
    pick(page, "recipe", "preference")
    page.click("#questions-votes")
    page.wait_for_selector("#tune-note >> text=taken from votes")
    page.fill("#minutes :is(input, textarea)", "0.5")
    page.fill("#adapter-name :is(input, textarea)", "voted")
    page.keyboard.press("Tab")
    page.wait_for_selector("#tune-command pre >> text=--recipe preference")
    page.wait_for_selector("#tune-command pre >> text=adapters/voted")
    page.click("#tune-start")
    page.wait_for_selector("#tune-job .rt-job:not([data-state=done])")
    settled(page, "#tune-job")
    tab(page, "Chat")
    choose(page, "compare", "base")
    page.fill("#question textarea", asked[0] + " ")
    page.click("#ask")
    page.wait_for_function(
        "document.querySelectorAll('#live-answers .rt-reply[data-status=done]').length === 2", timeout=LONG
    )
    shot(page, "loop-compare")

    tab(page, "Decide")
    pick(page, "decide-test", "made-")
    page.wait_for_selector("#decide-command pre >> text=ragtune decide")
    page.click("#decide-start")
    page.wait_for_selector("#decide-job .rt-job")
    settled(page, "#decide-job")
    page.wait_for_selector(".rt-decision h2", timeout=LONG)
    page.wait_for_selector("#recommendation .rt-use")
    shot(page, "loop-decide-full")
