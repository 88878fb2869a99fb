"""What the server remembers of open pages."""

from __future__ import annotations

import pytest

from apps import pages
from apps.pages import Pages


def test_the_same_question_within_a_second_is_a_second_press(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(
        pages.time, "monotonic", lambda: clock[0] + 0.0
    )  # another float at each reading, as the real clock
    known = Pages()
    assert not known.twice("p1", "When?")
    assert known.twice("p1", "When?")
    assert not known.twice("p2", "When?") and not known.twice("p1", "Where?")
    clock[0] += pages.TWICE_SECONDS + 0.01
    assert not known.twice("p1", "When?")


def test_updates_end_when_the_page_shows_something_else() -> None:
    known = Pages()
    known.turn("p1", "a")
    known.turn("p2", "a")
    mine, other = known.while_shown("p1", "a", iter("123"), "-"), known.while_shown("p2", "a", iter("123"), "-")
    assert (next(mine), next(other)) == ("1", "1")
    known.turn("p1", "b")
    assert list(mine) == ["-"] and list(other) == ["2", "3", "-"]


def test_only_the_newest_pages_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_PAGES", 2)
    known = Pages()
    for page in ("p1", "p2", "p1", "p3"):  # p1 has been used after p2
        known.turn(page, "a")
    shown = {page: list(known.while_shown(page, "a", iter("x"), "-")) for page in ("p1", "p2", "p3")}
    assert shown == {"p1": ["x", "-"], "p2": ["-"], "p3": ["x", "-"]}
