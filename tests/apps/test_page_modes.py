"""Arms with a way of their own on the page, with the real starters: chips of self-rag, steps of an agent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from apps.service import Service
from rag.index import sync
from tests.apps.browser import Site, choose, fits, served, shot
from tests.conftest import CORPUS

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]

LONG = 600_000
ASKED = "When does the ferry to Korr leave?"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Site]:
    from apps.serving import load_encoder
    from tuning.recipes import agent
    from tuning.rows import Row
    from tuning.train import train

    folder = tmp_path_factory.mktemp("modes")
    for name, text in CORPUS.items():
        path = folder / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sync(folder / "idx", [folder / "corpus"], load_encoder("starter"))
    rows = [Row("one", "trace", ({"role": "user", "content": "Question: Why?"},), "Thought: a\nAction: finish[b]")]
    train(rows, out=folder / "agent", recipe="agent", config=replace(agent.TRAIN, num_train_epochs=1.0))
    service = Service.open(folder / "idx", adapters={"agent": folder / "agent"})
    with served(service, chromium) as made:
        yield made


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1024, "light"), (390, "dark")])
def test_judgements_are_chips_and_actions_are_steps(site: Site, width: int, scheme: str) -> None:
    page = site.open(width=width, scheme=scheme, wait=False)
    page.set_default_timeout(LONG)
    page.wait_for_selector(".rt-model.rt-ready")
    page.wait_for_selector("#armnote p, #armnote summary")
    for arm in ("self-rag", "agent"):
        choose(page, "arm", arm)
        page.fill("#question textarea", f"{ASKED} {' ' * len(arm)}")
        page.click("#ask")
        page.wait_for_selector(f"#live-answers .rt-reply[data-arm={arm}][data-status=done]")
        assert fits(page)
        if arm == "self-rag":
            shown = page.inner_text("#live-answers .rt-segments")
            assert re.search(r"relevant \d+%", shown) and re.search(r"supported \d+%", shown)
            tried = page.query_selector_all("#live-answers .rt-candidates .rt-tried")
            assert len(tried) >= 2 and page.query_selector("#live-answers .rt-kept")
        else:
            page.click("#live-answers .rt-steps > summary")
            kinds = page.eval_on_selector_all(
                "#live-answers .rt-steps > ol > li .rt-kind", "nodes => nodes.map(n => n.textContent)"
            )
            assert len(kinds) >= 2 and page.query_selector("#live-answers .rt-steps .rt-time")
        shot(page, f"mode-{arm}-{width}-{scheme}")
