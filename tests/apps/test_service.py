"""The object behind the page, with a real index and fake models: asking, stopping, waiting, uploading, deleting."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.asking import follow, history
from apps.service import Loaders, Service, ServiceConfig
from apps.uploads import UploadLimits, safe_name
from apps.views import Exchange, Reply, Upload
from rag.answer import AnswerConfig
from rag.errors import ConfigError, IndexMissing, ModelError, UnknownModel, UsageError
from rag.index import Index, sync
from rag.protocols import Decoding, Message
from rag.retrieve import RetrievalConfig
from rag.types import Answer, Finished, Token
from tests.fakes import FakeEncoder, FakeGenerator, FakeReranker
from tests.fakes import Reply as Reply_

ENCODER = FakeEncoder(dimension=256)


class Gated(FakeGenerator):
    """Writes one piece, then waits until `gate` is opened (or the test has waited long enough to fail)."""

    def __init__(self, reply: Reply_) -> None:
        super().__init__(reply)
        self.gate, self.began, self.closed = threading.Event(), threading.Event(), threading.Event()

    def stream(self, messages: Sequence[Message], decoding: Decoding = Decoding()) -> Iterator[str]:
        pieces = super().stream(messages, decoding)
        try:
            yield next(pieces)
            self.began.set()
            self.gate.wait(20)
            yield from pieces
        finally:
            self.closed.set()


@pytest.fixture()
def index(tmp_path: Path, corpus: Path) -> Path:
    sync(tmp_path / "idx", [corpus], ENCODER)
    return tmp_path / "idx"


Make = Callable[..., Service]


@pytest.fixture()
def make(index: Path) -> Make:
    """A started service over the corpus, its models loaded."""

    def make(generator: FakeGenerator | None = None, **settings: object) -> Service:
        loaders = Loaders(
            lambda _: ENCODER, lambda _: generator or FakeGenerator("18 crowns [1]"), lambda _: FakeReranker()
        )
        service = Service.open(index, loaders=loaders, answer=AnswerConfig(style="cited"), **settings)  # type: ignore[arg-type]
        service.start()
        assert service.wait(30).phase == "ready", service.state
        return service

    return make


def last(views: Iterator[Exchange]) -> Exchange:
    *_, view = views
    return view


def reply(views: Iterator[Exchange]) -> Reply:
    return last(views).replies[0]


# --------------------------------------------------------------------- asking


def test_an_answer_comes_with_its_citation(make: Make) -> None:
    view = last(make().ask("What does a return ticket to Korr cost?"))
    (said,) = view.replies
    assert (said.status, said.arm, said.text) == ("done", "rag", "18 crowns [1]")
    assert said.answer is not None and said.answer.citations[0].source in {p.chunk.source for p in said.passages}
    assert said.answer.model == "fake-generator" and not view.running


def test_sources_are_shown_before_the_answer(make: Make) -> None:
    generator = Gated("18 crowns [1]")
    views = make(generator).ask("What does a return ticket cost?")
    early = next(v for v in views if v.replies[0].passages)
    assert early.replies[0].status in ("reading", "writing") and early.replies[0].answer is None
    generator.gate.set()
    assert last(views).replies[0].status == "done"


def test_the_page_is_updated_far_less_often_than_tokens_come() -> None:
    """1,000 pieces without a pause between them end in a handful of states."""
    answer = Answer("q", "x" * 1000, "base")

    def work(report: Callable[[int, Callable[[Reply], Reply]], None]) -> None:
        for _ in range(1000):
            report(0, lambda r: r.after(Token("x")))
        report(0, lambda r: r.after(Finished(answer)))

    views = list(follow(Exchange("t1", "q", (Reply("base"),)), work, threading.Event(), limit=60))
    assert len(views) < 200 and views[-1].replies[0].text == "x" * 1000


def test_stop_ends_at_once_keeps_what_was_written_and_closes_the_model(make: Make) -> None:
    generator = Gated("18 crowns and some more [1]")
    service = make(generator)
    views = service.ask("What does a return ticket cost?", session="a")
    next(v for v in views if v.replies[0].text)
    service.stop("a")
    final = last(views)  # the gate is still closed: this does not wait for the model
    assert final.replies[0].status == "stopped" and final.replies[0].text == "18 c" and not generator.closed.is_set()
    generator.gate.set()
    assert generator.closed.wait(20)
    assert reply(service.ask("And now?", session="a")).status == "done"


def test_closing_the_iterator_stops_the_model(make: Make) -> None:
    generator = Gated("18 crowns [1]")
    views = make(generator).ask("What does a return ticket cost?")
    next(v for v in views if v.replies[0].text)
    views.close()  # type: ignore[attr-defined]
    generator.gate.set()
    assert generator.closed.wait(20) and generator.calls


def test_a_second_visitor_waits_is_told_so_and_gets_an_answer_of_their_own(make: Make) -> None:
    generator = Gated(lambda messages: messages[-1]["content"].rsplit("Question: ", 1)[1].removesuffix("\nAnswer:"))
    service = make(generator)
    first = service.ask("first question", session="a")
    next(v for v in first if v.replies[0].text)
    second = service.ask("second question", session="b")
    waiting = next(v for v in second if v.replies[0].note)
    assert waiting.replies[0].status == "waiting" and "Another question" in waiting.replies[0].note
    generator.gate.set()
    assert (reply(first).text, reply(second).text) == ("first question", "second question")


def test_a_waiting_visitor_can_stop(make: Make) -> None:
    generator = Gated("x")
    service = make(generator)
    first = service.ask("first", session="a")
    next(first)
    next(first)
    assert generator.began.wait(20)
    second = service.ask("second", session="b")
    next(v for v in second if v.replies[0].note)
    service.stop("b")
    assert reply(second).status == "stopped"
    generator.gate.set()
    assert reply(first).status == "done"


def test_a_new_question_of_the_same_visitor_replaces_the_old(make: Make) -> None:
    generator = Gated("x")
    service = make(generator)
    old = service.ask("old", session="a")
    next(v for v in old if v.replies[0].text)
    new = service.ask("new", session="a")
    assert reply(old).status == "stopped"
    generator.gate.set()
    assert reply(new).status == "done"


def test_two_arms_answer_side_by_side_and_one_that_fails_does_not_stop_the_other(make: Make) -> None:
    def say(messages: Sequence[Message]) -> str:
        if "Passage:" in messages[0]["content"] or "[1]" in messages[-1]["content"]:
            raise ModelError("The model lost its weights.")
        return "from memory"

    view = last(make(FakeGenerator(say)).ask("What does a ticket cost?", ["rag", "base"]))
    assert [(r.arm, r.status) for r in view.replies] == [("rag", "failed"), ("base", "done")]
    assert view.replies[0].note == "The model lost its weights." and view.replies[1].text == "from memory"


def test_the_same_arm_twice_is_one(make: Make) -> None:
    assert len(last(make().ask("What?", ["auto", "rag"])).replies) == 1


def test_an_unplanned_failure_is_a_sentence_and_its_details_go_to_the_terminal(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(_: Sequence[Message]) -> str:
        raise ZeroDivisionError("secret detail")

    said = reply(make(FakeGenerator(say)).ask("What?"))
    assert said.status == "failed" and "ZeroDivisionError" in said.note and "secret" not in said.note
    assert "secret detail" in capsys.readouterr().err


def test_an_answer_that_takes_too_long_is_ended(make: Make) -> None:
    generator = Gated("x")
    said = reply(make(generator, config=ServiceConfig(answer_seconds=0.3)).ask("What?"))
    assert said.status == "failed" and "longer than 0 seconds" in said.note
    generator.gate.set()


def test_follow_up_questions_carry_the_conversation(make: Make) -> None:
    generator = FakeGenerator("18 crowns [1]")
    service = make(generator)
    first = last(service.ask("What does a return ticket to Korr cost?"))
    second = reply(service.ask("And what time does it leave?", past=(first,)))
    prompt = generator.calls[-1].messages[-1]["content"]
    assert "What does a return ticket to Korr cost?" in prompt and "18 crowns" in prompt
    assert "return ticket to Korr" in second.query


def test_history_is_of_the_same_arm_and_bounded() -> None:
    def past(i: int, **texts: str) -> Exchange:
        replies = tuple(Reply(a.replace("_", "+")).after(Finished(Answer(f"q{i}", t, a))) for a, t in texts.items())
        return Exchange(f"t{i}", f"q{i}", replies)

    turns = [past(1, rag="a", base="b"), past(2, rag="c"), Exchange("t3", "stopped", (Reply("rag", "stopped"),))]
    assert [t.answer for t in history(turns, "base", 3)] == ["b", "c"]
    assert [t.question for t in history(turns, "rag", 1)] == ["q2"]
    assert history(turns, "rag", 0) == ()


@pytest.mark.parametrize(
    ("question", "arms", "says"),
    [
        ("", ["auto"], "empty"),
        (" \n\t ", ["auto"], "empty"),
        ("x" * 100_000, ["auto"], "100,000 characters"),
        ("What?", ["tuned+rag"], "needs an adapter"),
        ("What?", ["rag", "self-destruct"], "self-destruct"),
        ("What?", [], "no arm"),
    ],
)
def test_a_bad_question_is_refused_before_anything_starts(
    make: Make, question: str, arms: list[str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        make().ask(question, arms)


# --------------------------------------------------------------- models and arms


def test_questions_asked_while_the_model_loads_wait_for_it(index: Path) -> None:
    arrives = threading.Event()

    def load(_: str) -> FakeGenerator:
        arrives.wait(20)
        return FakeGenerator("18 crowns")

    service = Service.open(index, loaders=Loaders(lambda _: ENCODER, load))
    assert service.state.phase == "waiting" and service.library.counts()[0] == 6  # documents are shown meanwhile
    views = service.ask("What?")
    loading = next(v for v in views if v.replies[0].note)
    assert loading.replies[0].status == "loading" and "Loading" in loading.replies[0].note
    arrives.set()
    assert reply(views).status == "done" and service.state.phase == "ready"


def test_the_models_wait_for_the_page_and_not_for_ever(index: Path) -> None:
    loads = threading.Event()

    def load(_: str) -> FakeEncoder:
        loads.set()
        return ENCODER

    def opened() -> Service:
        return Service.open(index, loaders=Loaders(load, lambda _: FakeGenerator(), lambda _: FakeReranker()))

    service = opened()
    service.start(60)
    assert service.wait(0.3).phase == "waiting" and not loads.is_set()
    service.opened.set()  # a page stands
    assert service.wait(20).phase == "ready" and loads.is_set()
    alone = opened()
    alone.start(0.1)  # nobody comes
    assert alone.wait(20).phase == "ready"


def test_a_model_that_cannot_be_loaded_is_told_where_it_is_asked(index: Path) -> None:
    def load(_: str) -> FakeGenerator:
        raise UnknownModel("There is no model here called “giant”; local: starter.")

    service = Service.open(index, generator="giant", loaders=Loaders(lambda _: ENCODER, load))
    service.start()
    assert service.wait(20).phase == "failed" and "giant" in service.state.message
    assert reply(service.ask("What?")).note == service.state.message
    assert service.library.search("ferry")  # the documents still work


def test_an_encoder_of_another_kind_is_told(index: Path, tmp_path: Path) -> None:
    service = Service.open(
        index, loaders=Loaders(lambda _: FakeEncoder("other", salt="x", dimension=256), lambda _: FakeGenerator())
    )
    service.start()
    assert (
        service.wait(20).phase == "failed"
        and "other" in service.state.message
        and "fake-encoder" in service.state.message
    )
    (tmp_path / "new.md").write_text("# New\n\nNew things are said here.\n")
    *_, items = service.upload([(tmp_path / "new.md", "new.md")])
    assert items[0].status == "failed" and items[0].note == service.state.message


def test_no_index_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing):
        Service.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="arm"):
        Service.open(tmp_path, adapters={"nonsense": "x"})
    with pytest.raises(ConfigError, match="answer_seconds"):
        ServiceConfig(answer_seconds=0)


def test_the_index_may_be_the_working_folder(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(index)
    library = Service.open(".").library
    assert (library.name, library.uploads) == ("idx", index.with_name("idx.uploads"))


def test_arms_that_are_missing_say_what_they_lack(make: Make, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    service = make(adapters={"tuned+rag": tmp_path / "adapter"})
    arms = {a.arm: a for a in service.arms()}
    assert [a.available for a in arms.values()][:4] == [True, True, False, True]
    assert "ragtune tune" in arms["tuned"].reason
    assert service.auto().arm == "rag" and "Nothing has been measured" in service.auto().reason


def decide(folder: Path, chosen: str | None, **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"chosen": chosen, "reason": "It is better by 0.2.", "arms": [], **more}
    (folder / "decision.json").write_text(json.dumps(data))
    return folder


def test_auto_is_the_measured_choice_with_its_reason(make: Make, tmp_path: Path) -> None:
    run = decide(tmp_path / "run", "tuned+rag", arms=[{"arm": "tuned+rag", "adapter": "adapter"}])
    (run / "adapter").mkdir()
    service = make(decision=run)
    auto = service.auto()
    assert (auto.arm, auto.label) == ("tuned+rag", "auto (tuned+rag)") and "It is better by 0.2." in auto.reason
    said = reply(service.ask("What?"))
    assert said.arm == "tuned+rag" and said.answer is not None and said.answer.adapter == str(run / "adapter")


def test_a_decision_without_a_winner_is_served_by_rag_and_says_so(make: Make, tmp_path: Path) -> None:
    auto = make(decision=decide(tmp_path / "run", None)).auto()
    assert auto.arm == "rag" and "no arm to prefer" in auto.reason


@pytest.mark.parametrize("text", ["{", "[]", '{"chosen": "everything"}', '{"chosen": "rag", "format": 99}'])
def test_a_broken_decision_is_refused_with_a_sentence(make: Make, tmp_path: Path, text: str) -> None:
    run = decide(tmp_path / "run", "rag")
    (run / "decision.json").write_text(text)
    with pytest.raises(ConfigError, match=r"decision\.json"):
        make(decision=run)


# ------------------------------------------------------------------- documents


def put(service: Service, *files: tuple[Path, str]) -> list[tuple[Upload, ...]]:
    return list(service.upload(files))


def test_an_upload_is_indexed_found_and_kept(make: Make, tmp_path: Path, index: Path) -> None:
    service = make()
    path = tmp_path / "anything.md"
    path.write_text("# Boats\n\nThe blue boat is called Hilde and carries nine people.\n")
    steps = put(service, (path, "notes on boats.md"))
    assert list(dict.fromkeys(s[0].status for s in steps)) == ["queued", "working", "indexed"]
    assert (steps[-1][0].chunks, steps[-1][0].note) == (1, "")
    assert [r.source for r in service.library.documents() if r.uploaded] == ["uploads/notes on boats.md"]
    assert (index.with_name("idx.uploads") / "notes on boats.md").read_text() == path.read_text()
    found = service.library.search("Hilde nine people")
    assert all(c.passages[0].chunk.source == "uploads/notes on boats.md" for c in found[:3])
    assert "Hilde" in service.library.open("uploads/notes on boats.md", 0, 5).text


def test_each_file_has_its_own_verdict_and_none_stops_the_others(make: Make, tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> tuple[Path, str]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.up"
        path = path.with_suffix(Path(name).suffix or ".bin")
        path.write_bytes(data)
        return path, name

    service = make(limits=UploadLimits(file_bytes=1000))
    before = service.library.counts()
    items = put(
        service,
        file("broken.pdf", b"this is no pdf"),
        file("program.exe", b"MZ"),
        file("README", b"no suffix"),
        file("empty.txt", b""),
        file("large.txt", b"x" * 1001),
        file("good.md", b"# Good\n\nThe good file says that pears are ripe.\n"),
        file("GOOD.md", b"# Other\n\nThe other file.\n"),
        file("nothing.html", b"<html><body><script>1</script></body></html>"),
    )[-1]
    assert [i.status for i in items] == ["failed"] * 5 + ["indexed"] + ["failed"] * 2
    for item, says in zip(items, ("pdf", ".exe", "suffix", "empty", "1,001 bytes", "", "same name", ""), strict=True):
        assert says in item.note and (item.note.endswith(".") or item.status == "indexed"), item
    assert service.library.counts()[0] == before[0] + 1
    kept = [p.name for p in service.library.uploads.rglob("*") if p.is_file()]
    assert kept == ["good.md"]


def test_the_same_file_again_changes_nothing_and_a_new_version_replaces_it(make: Make, tmp_path: Path) -> None:
    service = make()
    path = tmp_path / "a.md"
    path.write_text("# A\n\nThe gate is painted in vermilion.\n")
    put(service, (path, "a.md"))
    assert put(service, (path, "a.md"))[-1][0].status == "unchanged"
    path.write_text("# A\n\nThe gate is painted in turquoise.\n")
    item = put(service, (path, "a.md"))[-1][0]
    assert item.status == "indexed" and "replaces" in item.note
    assert "vermilion" not in service.library.open("uploads/a.md", 0, 1).text
    assert not service.library.search("vermilion")[1].passages


def test_a_broken_new_version_leaves_the_old_one(make: Make, tmp_path: Path) -> None:
    service = make()
    path = tmp_path / "a.html"
    path.write_text("<html><body><h1>A</h1><p>The gate is painted in vermilion.</p></body></html>")
    put(service, (path, "a.html"))
    path.write_text("<html><body><script>1</script></body></html>")
    assert put(service, (path, "a.html"))[-1][0].status == "failed"
    assert "vermilion" in service.library.open("uploads/a.html", 0, 1).text
    assert "vermilion" in (service.library.uploads / "a.html").read_text()


def test_batches_are_bounded(make: Make, tmp_path: Path) -> None:
    paths = []
    for i in range(3):
        path = tmp_path / f"{i}.md"
        path.write_text(f"# Page {i}\n\nNumber {i} is written here.\n")
        paths.append((path, path.name))
    service = make(limits=UploadLimits(files=2))
    assert [i.status for i in put(service, *paths)[-1]] == ["indexed", "indexed", "failed"]
    service = make(limits=UploadLimits(batch_bytes=paths[0][0].stat().st_size))
    assert "more than" in put(service, *paths)[-1][1].note
    with pytest.raises(ConfigError, match="files"):
        UploadLimits(files=0)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd.md", "passwd.md"), ("C:\\temp\\a.md", "a.md"), ("CON.md", "_CON.md"), ("nul", "_nul"),
        (".hidden.md", "hidden.md"), ("..", "file"), ("", "file"), ("a\x00b.md", "a_b.md"), ("a\nb.md", "a_b.md"),
        ("<img src=x onerror=alert(1)>.md", "_img src=x onerror=alert(1)_.md"), ("报告 2024.pdf", "报告 2024.pdf"),
        ("\u202egnp.md", "_gnp.md"), ("a" * 300 + ".md", "a" * 147 + ".md"),
    ],
)  # fmt: skip
def test_names_are_made_safe(given: str, kept: str) -> None:
    assert safe_name(given) == kept


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=400))
def test_any_name_is_one_plain_component(name: str) -> None:
    safe = safe_name(name)
    assert safe not in ("", ".", "..") and not set(safe) & set('/\\\x00<>:"|?*') and not safe.startswith(".")
    assert len(safe.encode()) <= 160 and Path(safe).name == safe and safe_name(safe) == safe


def test_a_deleted_document_is_never_returned_again(make: Make, tmp_path: Path, index: Path) -> None:
    service = make()
    path = tmp_path / "secret.md"
    path.write_text("# Secret\n\nThe password of the lighthouse is heliotrope.\n")
    put(service, (path, "secret.md"))
    assert service.library.delete(["uploads/secret.md", "ferry.md"]).startswith("2 documents are deleted")
    for column in service.library.search("heliotrope lighthouse ferry Korr")[:3]:
        assert not {p.chunk.source for p in column.passages} & {"uploads/secret.md", "ferry.md"}
    assert not (service.library.uploads / "secret.md").exists()
    assert not any(b"heliotrope" in p.read_bytes() for p in index.rglob("*") if p.is_file())
    with pytest.raises(UsageError, match="not in the index any more"):
        service.library.open("ferry.md", 0, 1)


def test_deleting_needs_names_that_are_there(make: Make) -> None:
    service = make()
    for sources in ([], ["nothing.md"], ["../ferry.md"]):
        with pytest.raises(UsageError):
            service.library.delete(sources)
    assert service.library.counts()[0] == 6


def test_a_deletion_while_another_visitor_asks(make: Make) -> None:
    generator = Gated("18 crowns [1]")
    service = make(generator)
    views = service.ask("What does a return ticket to Korr cost?", session="a")
    view = next(v for v in views if v.replies[0].text)
    service.library.delete([view.replies[0].passages[0].chunk.source])
    generator.gate.set()
    said = reply(views)
    assert said.status == "done" and said.answer is not None and said.answer.citations  # it keeps what it had read
    again = reply(service.ask("What does a return ticket to Korr cost?", session="b"))
    assert view.replies[0].passages[0].chunk.source not in {p.chunk.source for p in again.passages}


def test_what_another_process_commits_is_seen(make: Make, index: Path, tmp_path: Path) -> None:
    service = make()
    Index.open(index, ENCODER).delete(["kitchen.txt"])
    assert "kitchen.txt" not in {r.source for r in service.library.documents()}
    assert service.library.counts()[0] == 5


def test_an_emptied_index_still_answers_from_memory(make: Make) -> None:
    service = make()
    service.library.delete([r.source for r in service.library.documents()])
    assert service.auto().arm == "base" and service.library.counts() == (0, 0)
    assert reply(service.ask("What?")).status == "done"
    with pytest.raises(UsageError, match="Documents"):
        service.ask("What?", ["rag"])


def test_search_shows_every_stage(make: Make) -> None:
    columns = make(retrieval=RetrievalConfig(reranker="fake")).library.search("blue boat deposit", 2)
    assert [c.stage for c in columns] == ["dense", "lexical", "fused", "rerank"]
    assert all(c.passages[0].chunk.source == "boats/loan.md" and len(c.passages) <= 2 for c in columns)
    scores = columns[3].passages[0].scores
    assert None not in (scores.dense, scores.lexical, scores.fused, scores.rerank)
    assert "--reranker" in make().library.search("boat")[3].note


@pytest.mark.parametrize("query", ["", "  ", "x" * 5000])
def test_a_bad_search_is_refused(make: Make, query: str) -> None:
    with pytest.raises(UsageError):
        make().library.search(query)


def test_the_list_can_be_filtered_and_examples_are_questions(make: Make) -> None:
    service = make(examples=("What is it?",))
    assert [r.source for r in service.library.documents("LOAN")] == ["boats/loan.md"]
    assert service.examples() == ["What is it?"]
    assert all(q.endswith("?") for q in make().examples())


def test_a_long_document_is_opened_around_its_span(make: Make, tmp_path: Path) -> None:
    service = make()
    path = tmp_path / "long.txt"
    path.write_text("\n".join(f"Line {i} of the long file." for i in range(6000)))
    put(service, (path, "long.txt"))
    whole = service.library.index.text("uploads/long.txt")
    at = whole.index("Line 3000 ")
    view = service.library.open("uploads/long.txt", at, at + 9)
    assert view.text == whole[view.offset : view.offset + len(view.text)] and view.total == len(whole)
    assert view.text[view.start - view.offset : view.end - view.offset] == "Line 3000"
    wild = service.library.open("uploads/long.txt", -5, 10**9)
    assert (wild.start, wild.end, wild.offset) == (0, len(whole), 0)


def test_an_arm_of_its_own_adapter_is_offered_before_the_model_is_there(index: Path, tmp_path: Path) -> None:
    """A first visitor's page is drawn while the model loads."""
    loaders = Loaders(lambda _: ENCODER, lambda _: FakeGenerator())

    def offered(adapters: dict[str, Path]) -> set[str]:
        service = Service.open(index, loaders=loaders, adapters=adapters)
        assert service.state.phase != "ready"
        return {choice.arm for choice in service.arms() if choice.available}

    assert {"rag", "self-rag"} <= offered({}) and not {"agent", "ra-dit"} & offered({})
    assert "agent" in offered({"agent": tmp_path}) and "ra-dit" not in offered({"agent": tmp_path})
