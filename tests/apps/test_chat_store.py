"""Conversations and ratings on disk: what is saved, who may see it, and what a locked or full disk does."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.feedback import ENOUGH, Counts, Feedback, prompt_of
from apps.store import ANYONE, INTERRUPTED, MAX_TITLE, Store, exchange_from_dict
from apps.views import Exchange, Reply
from rag.errors import StoreError, UsageError
from rag.types import Answer, Chunk, Citation, Evidence, Passage, Scores, Step, to_dict

TEXT = "The ferry to Korr leaves at 07:40 from pier 4."


def passage(source: str = "ferry.md", rank: int = 1, text: str = TEXT) -> Passage:
    chunk = Chunk("c" + source, "d" + source, source, 0, len(text), text, 3, ("Ferry",))
    return Passage(chunk, rank, 0.5, Scores(0.4, 3.0, 0.5))


def reply(arm: str = "rag", text: str = "At 07:40 [1].", **more: Any) -> Reply:
    passages = (passage(), passage("boat.md", 2, "A boat."))
    cited = (Citation(1, "cferry.md", "ferry.md", 3, 0, 9, TEXT[:9], 1.0),)
    answer = Answer("When?", text, arm, False, cited, passages, 1, (7,), "When?", 10, 3, 0.2, "m", "a/b", {"x": 1})
    steps = (Step("judge", "useful", {"p": 0.9}, 0.1),)
    made = Reply(arm, "done", passages=passages, text=text, answer=answer, steps=steps, cut=1)
    return replace(made, **more)


def exchange(question: str = "When does the ferry leave?", *replies: Reply, id: str = "t1") -> Exchange:
    return Exchange(id, question, replies or (reply(),))


@pytest.fixture()
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "x.chat.sqlite3", busy_seconds=0.2)
    yield made
    made.close()


# ------------------------------------------------------------------------------------ conversations


def test_a_turn_comes_back_as_it_was(store: Store) -> None:
    talk = store.create()
    view = exchange()
    store.save(talk.id, 0, view)
    assert store.exchanges(talk.id) == (view,)
    assert exchange_from_dict(json.loads(json.dumps({**to_dict(view), "new": 1}))) == view


def test_the_list_is_newest_first_named_by_the_first_question(store: Store) -> None:
    first, second = store.create(), store.create(title="  Boats\n and ferries ")
    store.save(first.id, 0, exchange("When " * 60))
    rows = store.conversations()
    assert [r.id for r in rows] == [first.id, second.id] and rows[1].title == "Boats and ferries"
    assert len(rows[0].title) == MAX_TITLE and rows[0].turns == 1 and rows[1].turns == 0
    assert [r.id for r in store.conversations(containing="BOATS")] == [second.id]


def test_rename_delete_and_cut(store: Store) -> None:
    talk = store.create()
    for i in range(3):
        store.save(talk.id, i, exchange(f"q{i}", id=f"t{i + 1}"))
    assert store.rename(talk.id, " New  name ").title == "New name" == store.get(talk.id).title
    with pytest.raises(UsageError, match="empty"):
        store.rename(talk.id, "  ")
    store.cut(talk.id, 1)
    assert [v.question for v in store.exchanges(talk.id)] == ["q0"]
    store.delete(talk.id)
    assert store.conversations() == [] and store.read("SELECT * FROM turns") == []
    with pytest.raises(UsageError, match="deleted"):
        store.exchanges(talk.id)
    with pytest.raises(UsageError, match="deleted"):
        store.save(talk.id, 0, exchange())


def test_nobody_sees_or_changes_what_is_another_users(store: Store) -> None:
    talk = store.create("anna")
    store.save(talk.id, 0, exchange(), "anna")
    assert store.conversations("bert") == []
    for act in (
        lambda: store.exchanges(talk.id, "bert"),
        lambda: store.rename(talk.id, "x", "bert"),
        lambda: store.delete(talk.id, "bert"),
        lambda: store.cut(talk.id, 0, "bert"),
        lambda: store.save(talk.id, 0, exchange(), "bert"),
        lambda: store.export_json(talk.id, "bert"),
        lambda: Feedback(store).rate(talk.id, 0, "rag", True, user="bert"),
    ):
        with pytest.raises(UsageError):
            act()
    assert len(store.exchanges(talk.id, "anna")) == 1


def test_exports(store: Store) -> None:
    talk = store.create(title="Ferries")
    store.save(talk.id, 0, exchange("When?\n# not a heading", reply(), reply("base", "Never.")))
    store.save(talk.id, 1, exchange("And?", replace(reply(), answer=None, status="stopped", text="At")))
    text = store.export_markdown(talk.id)
    assert text.startswith("# Ferries\n\n## When? # not a heading\n\nAt 07:40 [1].\n")
    assert "*rag, m, b*" in text and "- [1] ferry.md, page 3" in text and "1 more passages were found" in text
    assert "*rag: stopped*" in text
    found = json.loads(store.export_json(talk.id))
    assert found["title"] == "Ferries" and found["turns"][0]["replies"][0]["answer"]["citations"][0]["quote"]


def test_a_deleted_document_takes_its_text_with_it(store: Store) -> None:
    talk = store.create()
    store.save(talk.id, 0, exchange())
    feedback = Feedback(store)
    feedback.rate(talk.id, 0, "rag", True)
    assert store.forget_source("ferry.md") == 2 and store.forget_source("ferry.md") == 0
    answer = store.exchanges(talk.id)[0].replies[0].answer
    assert answer is not None and answer.text == "At 07:40 [1]." and answer.citations[0].source == "ferry.md"
    assert [p.chunk.text for p in answer.passages] == ["", "A boat."] and answer.citations[0].quote == ""
    assert feedback.unpaired() == [] and feedback.counts().good == 1


def test_what_a_killed_server_was_writing_is_found_again(tmp_path: Path) -> None:
    """A process that is killed with -9 in the middle of an answer leaves what it had saved."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from apps.store import Store; from apps.views import Exchange, Reply\n"
        "s = Store(Path(sys.argv[1])); t = s.create()\n"
        "s.save(t.id, 0, Exchange('t1', 'q', (Reply('rag', 'writing', text='At 07'), Reply('base', 'waiting'))))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.db")], cwd=root, timeout=60)
    assert done.returncode == -9
    store = Store(tmp_path / "s.db")
    assert store.recover() == 1 and store.recover() == 0
    (talk,) = store.conversations()
    view = store.exchanges(talk.id)[0]
    assert [r.text for r in view.replies] == ["At 07", ""] and not view.running
    assert {r.note for r in view.replies} == {INTERRUPTED}


def test_many_threads_and_two_processes_worth_of_connections(tmp_path: Path) -> None:
    stores = [Store(tmp_path / "s.db"), Store(tmp_path / "s.db")]
    talks = [stores[i % 2].create(f"u{i}") for i in range(6)]

    def work(i: int) -> None:
        for n in range(10):
            stores[i % 2].save(talks[i].id, n, exchange(f"q{n}"), f"u{i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(stores[0].exchanges(t.id, f"u{i}")) for i, t in enumerate(talks)] == [10] * 6


# ------------------------------------------------------------------------------------------ failures


def test_a_locked_file_is_told_and_the_next_try_works(store: Store) -> None:
    talk = store.create()
    store.save(talk.id, 0, exchange())
    feedback = Feedback(store)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="in use by another program"):
        feedback.rate(talk.id, 0, "rag", True)
    assert store.exchanges(talk.id)  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    feedback.rate(talk.id, 0, "rag", True)
    assert feedback.counts().good == 1


def test_a_full_disk_keeps_the_old_vote_and_says_so(store: Store) -> None:
    talk = store.create()
    store.save(talk.id, 0, exchange())
    feedback = Feedback(store)
    feedback.rate(talk.id, 0, "rag", False, reasons=["incomplete"])
    pages = store.read("PRAGMA page_count")[0][0]
    store.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"full. Nothing was saved"):
        feedback.rate(talk.id, 0, "rag", True, note="x" * 2000, correction="y" * 2000)
        for i in range(1, 50):
            store.save(talk.id, i, exchange("q" * 3000))
    assert len(feedback.ratings()) == 1
    store.read("PRAGMA max_page_count = 1073741823")
    feedback.rate(talk.id, 0, "rag", True)
    assert [v.good for v in feedback.ratings()] == [True]


def test_a_damaged_file_and_a_newer_format_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is no database, only text " * 100)
    with pytest.raises(StoreError, match="damaged"):
        Store(tmp_path / "a.db")
    newer = sqlite3.connect(tmp_path / "b.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StoreError, match="format 99"):
        Store(tmp_path / "b.db")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        Store(tmp_path / "file" / "c.db")


# ------------------------------------------------------------------------------------------ feedback


@pytest.fixture()
def rated(store: Store) -> tuple[Feedback, str]:
    talk = store.create()
    store.save(talk.id, 0, exchange("When?", reply(), reply("tuned+rag", "Seven forty.")))
    store.save(talk.id, 1, exchange("And back?", reply(text="At noon."), id="t2"))
    return Feedback(store), talk.id


def test_a_vote_keeps_everything_and_a_second_one_replaces_it(rated: tuple[Feedback, str]) -> None:
    feedback, talk = rated
    feedback.rate(talk, 1, "rag", True)
    feedback.rate(
        talk, 1, "rag", False, reasons=["wrong answer", "wrong answer", "style"], note=" n ", correction=" At one. "
    )
    (vote,) = feedback.ratings()
    assert (vote.good, vote.reasons, vote.note, vote.correction) == (False, ("wrong answer", "style"), "n", "At one.")
    shown = vote.shown
    assert (shown.question, shown.answer, shown.arm, shown.model, shown.adapter) == (
        "And back?",
        "At noon.",
        "rag",
        "m",
        "a/b",
    )
    assert len(shown.passages) == 2 and [t.question for t in shown.history] == ["When?"]
    feedback.unrate(talk, 1, "rag")
    feedback.unrate(talk, 1, "rag")
    assert feedback.counts() == Counts()


def test_what_cannot_be_rated_is_refused(rated: tuple[Feedback, str]) -> None:
    feedback, talk = rated
    for position, arm, told in ((0, "base", "finished"), (9, "rag", "2 turns"), (-1, "rag", "2 turns")):
        with pytest.raises(UsageError, match=told):
            feedback.rate(talk, position, arm, True)
    with pytest.raises(UsageError, match="no reason"):
        feedback.rate(talk, 0, "rag", True, reasons=["boring"])
    with pytest.raises(UsageError, match="two replies"):
        feedback.choose(talk, 1, "rag")


def test_exports_in_trls_forms(rated: tuple[Feedback, str], tmp_path: Path) -> None:
    feedback, talk = rated
    feedback.rate(talk, 0, "rag", True)
    feedback.rate(talk, 1, "rag", False, correction="At one.")
    feedback.choose(talk, 0, "tuned+rag")
    feedback.choose(talk, 0, "rag")
    rows = feedback.unpaired()
    assert [(r["completion"].removeprefix(" "), r["label"]) for r in rows] == [
        ("At 07:40 [1].", True), ("At noon.", False), ("At one.", True), ("At 07:40 [1].", True), ("Seven forty.", False),
    ]  # fmt: skip
    assert rows[0]["prompt"] == prompt_of(feedback.ratings()[0].shown)[0]["content"]
    assert TEXT in rows[0]["prompt"] and "When?" in rows[1]["prompt"]
    pairs = [(p["chosen"], p["rejected"]) for p in feedback.pairs()]
    assert pairs == [(" At one.", " At noon."), (" At 07:40 [1].", " Seven forty.")]
    assert [c["completion"] for c in feedback.corrections()] == [" At one."]
    cited = feedback.unpaired(style="cited")[0]
    assert cited["prompt"][0]["role"] == "system" and cited["completion"] == [
        {"role": "assistant", "content": "At 07:40 [1]."}
    ]
    assert feedback.export(tmp_path / "out" / "votes.jsonl") == 5
    lines = [json.loads(line) for line in (tmp_path / "out" / "votes.jsonl").read_text().splitlines()]
    assert lines == rows and list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "votes.jsonl"]
    assert feedback.forget(conversation=talk) == 3
    with pytest.raises(UsageError, match="no ratings"):
        feedback.export(tmp_path / "none.jsonl")


def test_trl_reads_the_export(rated: tuple[Feedback, str], tmp_path: Path) -> None:
    from tuning.preference_train import objective, read_preferences

    feedback, talk = rated
    feedback.rate(talk, 0, "rag", True)
    feedback.rate(talk, 1, "rag", False)
    feedback.export(tmp_path / "v.jsonl")
    rows = read_preferences(tmp_path / "v.jsonl")
    assert [(r.completion, r.good) for r in rows] == [("At 07:40 [1].", True), ("At noon.", False)] and objective(
        rows
    ) == "kto"


def test_rated_answers_become_questions(rated: tuple[Feedback, str]) -> None:
    feedback, talk = rated
    feedback.rate(talk, 0, "rag", False, correction="07:40")
    feedback.rate(talk, 1, "rag", True)
    first, second = feedback.questions()
    assert first.answers == ("07:40",) and first.evidence == (Evidence("ferry.md", "07:40"),)
    assert second.answers == ("At noon.",) and second.evidence == ()


@pytest.mark.parametrize(
    ("counts", "told", "can"),
    [
        (Counts(), f"No ratings yet. From {ENOUGH} on", False),
        (Counts(good=1), "1 rating: export them; 15 more ratings and they can tune the model.", False),
        (Counts(good=30, bad=12), "42 ratings: export them, or tune with them.", True),
        (Counts(good=42), "42 ratings: export them; tuning also needs bad ones", False),
        (Counts(bad=42, corrections=1), "42 ratings, 1 correction: export them; tuning also needs good ones", False),
        (Counts(choices=8), "8 comparisons: export them, or tune with them.", True),
    ],
)
def test_the_counter_says_what_votes_can_do(counts: Counts, told: str, can: bool) -> None:
    assert counts.sentence().startswith(told) and counts.can_tune is can
    assert ANYONE == "local"
