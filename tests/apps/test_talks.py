"""Answers that belong to the server: left, found again, replaced, voted on, kept when the disk or the person says no."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.service import Loaders, Service
from apps.store import INTERRUPTED, Store
from apps.talks import Talks, position
from rag.answer import AnswerConfig
from rag.errors import StoreError, UsageError
from rag.index import sync
from tests.apps.test_service import Gated
from tests.fakes import FakeEncoder, FakeGenerator

ENCODER = FakeEncoder(dimension=256)
Make = Callable[..., Talks]


@pytest.fixture()
def make(tmp_path: Path, corpus: Path) -> Make:
    sync(tmp_path / "idx", [corpus], ENCODER)

    def make(generator: FakeGenerator | None = None) -> Talks:
        loaders = Loaders(lambda _: ENCODER, lambda _: generator or FakeGenerator("18 crowns [1]"))
        service = Service.open(tmp_path / "idx", loaders=loaders, answer=AnswerConfig(style="cited"))
        service.start()
        assert service.wait(30).phase == "ready"
        return Talks(service, Store.beside(tmp_path / "idx"))

    return make


def end(talks: Talks, question: str = "What does a ticket cost?", **more: object) -> str:
    run = talks.ask(question, ["rag"], **more)  # type: ignore[arg-type]
    *_, last = run.watch()
    assert not last.running
    return run.talk


def test_an_answer_is_stored_and_listed(make: Make) -> None:
    talks = make()
    talk = end(talks)
    (view,) = talks.exchanges(talk)
    assert view.replies[0].text == "18 crowns [1]" and view.replies[0].answer is not None
    (row,) = talks.rows()
    assert (row.id, row.title, row.turns, row.running) == (talk, "What does a ticket cost?", 1, False)


def test_nobody_watches_and_the_answer_is_finished_all_the_same(make: Make) -> None:
    generator = Gated("18 crowns [1]")
    talks = make(generator)
    run = talks.ask("What does a ticket cost?", ["rag"])
    watcher = run.watch()
    next(v for v in watcher if v.replies[0].text)
    watcher.close()  # type: ignore[attr-defined]
    again = talks.running(run.talk)
    assert again is run and talks.rows()[0].running
    generator.gate.set()
    *_, last = again.watch()
    assert last.replies[0].status == "done" and talks.running(run.talk) is None
    assert talks.exchanges(run.talk)[0].replies[0].status == "done"


def test_a_server_that_died_keeps_what_was_written(make: Make, tmp_path: Path) -> None:
    generator = Gated("18 crowns [1]")
    talks = make(generator)
    run = talks.ask("What does a ticket cost?", ["rag"])
    view = next(v for v in run.watch() if v.replies[0].text)
    talks.store.save(run.talk, 0, view)
    later = Talks(talks.service, Store.beside(tmp_path / "idx"))  # as a new server finds it
    (found,) = later.exchanges(run.talk)
    assert (found.replies[0].status, found.replies[0].note) == ("stopped", INTERRUPTED)
    assert found.replies[0].text == view.replies[0].text
    generator.gate.set()
    list(run.watch())


def test_asking_again_replaces_the_last_turn_only(make: Make) -> None:
    talks = make(FakeGenerator(["one [1]", "two [1]", "three [1]"]))
    talk = end(talks, "first?")
    end(talks, "second?", talk=talk)
    end(talks, "second, better?", talk=talk, again=True)
    views = talks.exchanges(talk)
    assert [(v.id, v.question, v.replies[0].text) for v in views] == [
        ("t1", "first?", "one [1]"), ("t2", "second, better?", "three [1]"),
    ]  # fmt: skip


def test_asking_again_while_the_first_is_written_leaves_one_answer(make: Make) -> None:
    generator = Gated("18 crowns [1]")
    talks = make(generator)
    first = talks.ask("first?", ["rag"])
    next(v for v in first.watch() if v.replies[0].text)
    second = talks.ask("second?", ["rag"], talk=first.talk, again=True)
    generator.gate.set()
    list(first.watch())
    list(second.watch())
    assert [v.question for v in talks.exchanges(first.talk)] == ["second?"]


def test_stop_keeps_what_was_written(make: Make) -> None:
    generator = Gated("18 crowns [1]")
    talks = make(generator)
    run = talks.ask("first?", ["rag"])
    next(v for v in run.watch() if v.replies[0].text)
    talks.stop(run.talk)
    *_, last = run.watch()
    assert last.replies[0].status == "stopped" and talks.exchanges(run.talk)[0].replies[0].text
    generator.gate.set()


def test_one_user_does_not_see_another(make: Make) -> None:
    talks = make()
    talk = end(talks, user="ida")
    assert talks.rows("tomas") == [] and not talks.exists(talk, "tomas") and talks.exists(talk, "ida")
    for act in (lambda: talks.exchanges(talk, "tomas"), lambda: talks.delete(talk, "tomas"),
                lambda: talks.vote(talk, "t1", "rag", True, user="tomas"),
                lambda: talks.ask("more?", ["rag"], talk=talk, user="tomas")):  # fmt: skip
        with pytest.raises(UsageError):
            act()


def test_votes_are_restored_taken_back_and_not_carried_to_another_answer(make: Make) -> None:
    talks = make(FakeGenerator(["one [1]", "two [1]"]))
    talk = end(talks)
    talks.vote(talk, "t1", "rag", True)
    assert talks.votes(talk)["t1", "rag"].up is True
    talks.vote(talk, "t1", "rag", True)  # the same thumb again
    assert talks.votes(talk) == {}
    talks.vote(talk, "t1", "rag", False, reasons=["incomplete"], correction="20 crowns")
    vote = talks.votes(talk)["t1", "rag"]
    assert (vote.up, vote.reasons, vote.correction) == (False, ("incomplete",), "20 crowns")
    end(talks, talk=talk, again=True)
    assert talks.votes(talk) == {} and talks.feedback.counts().bad == 1  # kept for tuning all the same


def test_a_preference_between_two_replies_is_restored(make: Make) -> None:
    talks = make(FakeGenerator(["one [1]", "two"]))
    run = talks.ask("What?", ["rag", "base"])
    list(run.watch())
    talks.prefer(run.talk, "t1", "base")
    assert talks.votes(run.talk)["t1", "base"].preferred and ("t1", "rag") not in talks.votes(run.talk)


def test_a_disk_that_refuses_is_told_and_the_answer_is_still_shown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Gated("18 crowns [1]")
    talks = make(generator)
    run = talks.ask("What?", ["rag"])

    def full(*_: object, **__: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(talks.store, "save", full)
    generator.gate.set()
    *_, last = run.watch()
    assert last.replies[0].status == "done" and "not saved: The disk is full" in run.error


def test_a_locked_file_refuses_a_question_before_it_is_asked(make: Make, tmp_path: Path) -> None:
    talks = make()
    talks.store.close()
    talks.store = Store(tmp_path / "idx.chat.sqlite3", busy_seconds=0.1)
    other = sqlite3.connect(tmp_path / "idx.chat.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="in use"):
        talks.ask("What?", ["rag"])
    other.execute("ROLLBACK")
    other.close()
    assert end(talks)


@pytest.mark.parametrize("turn", ["", "x", "t", "t0", "t-1", "t1.5", "1"])
def test_an_id_that_is_none_is_refused(turn: str) -> None:
    with pytest.raises(UsageError):
        position(turn)


def test_the_next_question_of_a_conversation_supersedes_the_one_under_way(make: Make) -> None:
    generator = Gated("18 crowns [1]")
    talks = make(generator)
    first = talks.ask("What does a ticket cost?", ["rag"])
    next(v for v in first.watch() if v.replies[0].text)
    assert first.superseded_by is None
    second = talks.ask("And for a child?", ["rag"], talk=first.talk, page="p2")
    assert first.superseded_by == "p2" and second.superseded_by is None
    assert talks.newer(first) is second
    before, now = talks.exchanges(first.talk)  # whoever asked may show at once how the first has ended
    assert before.replies[0].status == "stopped" and before.replies[0].text and now.running
    generator.gate.set()
    *_, last = second.watch()
    *_, stopped = first.watch()
    assert not last.running and stopped.replies[0].status == "stopped"
    assert talks.newer(first) is None
    assert [v.question for v in talks.exchanges(first.talk)] == ["What does a ticket cost?", "And for a child?"]
