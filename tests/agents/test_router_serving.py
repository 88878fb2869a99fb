"""From a measured run to a routed answer: outcomes read back, `ragtune route`, and `auto` in the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.decide import DecideConfig, run
from agents.router import Router, load_router
from agents.router_features import uncertainty
from agents.router_mode import AUTO, RoutedMode
from agents.router_outcomes import load_outcomes
from agents.router_training import RouterConfig, fit_router
from agents.rows import read_rows, rows_path
from apps import serving
from apps.cli import main
from rag.answer import AnswerConfig, Answerer
from rag.chunk import ChunkConfig
from rag.errors import ConfigError, ModelError, UsageError
from rag.index import Index, sync
from rag.protocols import Generation, Message
from rag.retrieve import RetrievalConfig, Retriever
from rag.types import Evidence, Finished, Question, Step
from tests.fakes import FakeEncoder, FakeGenerator

COUNT = 60
"""Documents with a fact each, and as many riddles that no document answers and the model knows."""
ENCODER = FakeEncoder("starter", dimension=256)


def fact(i: int) -> tuple[str, str]:
    return f"station{i:02d}", f"{700 + i} metres"


def reply(messages: Sequence[Message]) -> str:
    """Reads a height out of the passages; knows every riddle, unless passages distract it."""
    text, _, question = "\n".join(m["content"] for m in messages).rpartition("Question:")
    question = question.split("\n")[0].strip()
    if "Passage:" in text or "[1]" in text:
        name = next((w for w in question.replace("?", "").split() if w.startswith("station")), "nothing")
        at = text.find(f"{name} stands")
        return " ".join(text[at:].split()[2:4]) if at >= 0 else "a wrong thing"
    return question.split()[-1].rstrip("?")[::-1] if "riddle" in question else "no idea"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("routed")
    corpus = folder / "corpus"
    corpus.mkdir()
    for i in range(COUNT):
        name, height = fact(i)
        (corpus / f"{name}.md").write_text(f"The weather post {name} stands {height} above the sea, with a keeper.\n")
    sync(folder / "index", [corpus], ENCODER, chunk=ChunkConfig(words=30, max_words=40))
    return Index.open(folder / "index", ENCODER)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    asked = []
    for i in range(COUNT):
        name, height = fact(i)
        asked.append(Question(f"f{i}", f"How high is the weather post {name}?", (height,), (Evidence(f"{name}.md"),)))
        word = "".join("abcdefghij"[int(digit)] for digit in f"{i * 7919:05d}")
        asked.append(Question(f"r{i}", f"Solve my riddle {word}?", (word[::-1],)))
    return asked


@pytest.fixture(scope="module")
def measured(index: Index, questions: list[Question]) -> Path:
    out = index.folder.parent / "run"
    kinds = {q.id: "fact" if q.id[0] == "f" else "riddle" for q in questions}
    run(
        index, [], questions, out, generator=FakeGenerator(reply, name="fake"), config=DecideConfig(resamples=200),
        kinds=kinds, timed=2, index_seconds=3.0,
    )  # fmt: skip
    return out


@pytest.fixture()
def copied(measured: Path) -> Path:
    """A run folder of its own, beside the index as the original is."""
    out = measured.with_name("copy")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(measured, out)
    return out


@pytest.fixture()
def models(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    fake = FakeGenerator(reply, name="fake")
    monkeypatch.setattr(serving, "load_encoder", lambda name: ENCODER)
    monkeypatch.setattr(serving, "load_generator", lambda name: fake)
    return fake


def json_of(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    assert main([*argv, "--json", "-q"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


# -------------------------------------------------------------------------------------------------------- outcomes


def test_outcomes_are_what_the_rows_say(measured: Path, questions: list[Question]) -> None:
    outcomes = load_outcomes([measured], embed=ENCODER.encode)
    assert outcomes.arms == ("base", "rag") and outcomes.metric == "f1" and len(outcomes) == 2 * COUNT
    facts = np.array([kind == "fact" for kind in outcomes.kinds])
    assert outcomes.quality[facts].mean(axis=0).tolist() == [0.0, 1.0]
    assert outcomes.quality[~facts].mean(axis=0).tolist() == [1.0, 0.0]
    assert len(set(outcomes.groups.tolist())) == 2 * COUNT
    assert outcomes.vectors is not None and outcomes.vectors.shape == (2 * COUNT, 256)
    assert outcomes.fixed.tolist() == [0.0, 3.0] and outcomes.fixed_all == 3.0
    assert len(outcomes.passages[0]) > 2  # deeper than what the arm read


def test_a_question_of_two_runs_counts_once(measured: Path, copied: Path) -> None:
    assert len(load_outcomes([measured, copied])) == 2 * COUNT


def test_runs_that_do_not_fit_together_are_refused(measured: Path, copied: Path) -> None:
    with pytest.raises(UsageError, match="agent was not measured in every run"):
        load_outcomes([measured], arms=("rag", "agent"))
    data = json.loads((copied / "decision.json").read_text())
    (copied / "decision.json").write_text(json.dumps({**data, "encoder": "another"}))
    with pytest.raises(UsageError, match="differ in encoder"):
        load_outcomes([measured, copied])
    (copied / "decision.json").write_text(json.dumps({**data, "index": "../elsewhere"}))
    with pytest.raises(UsageError, match="measured other index"):
        load_outcomes([measured, copied])


def test_rows_that_are_gone_old_or_broken_are_named(copied: Path) -> None:
    path = rows_path(copied, "rag")
    rows = read_rows(path)
    old = [{k: v for k, v in row.items() if k != "sources"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    with pytest.raises(UsageError, match="earlier version"):
        load_outcomes([copied])
    path.write_text("{broken\n")
    with pytest.raises(ConfigError, match="damaged"):
        load_outcomes([copied])
    path.unlink()
    with pytest.raises(UsageError, match="does not hold the questions"):
        load_outcomes([copied])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(copied / "retrievals")
    with pytest.raises(ConfigError, match="retrievals of this run"):
        load_outcomes([copied])


# ------------------------------------------------------------------------------------------------------ uncertainty


def test_uncertainty_is_the_mean_logprob_of_the_first_tokens(measured: Path) -> None:
    outcomes = load_outcomes([measured])
    generator = FakeGenerator(reply)
    found = uncertainty(generator, outcomes.questions[:3], outcomes.passages[:3])
    assert found.shape == (3, 2) and (found < 0).all()
    assert all(call.decoding.max_new_tokens == 4 for call in generator.calls)


def test_a_generator_without_probabilities_is_refused(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = FakeGenerator(reply, name="remote")
    monkeypatch.setattr(generator, "generate", lambda prompts, decoding: [Generation("x", 1, 1)] * len(prompts))
    with pytest.raises(ModelError, match="remote gives no token probabilities"):
        uncertainty(generator, ["who?"], [()])


# ------------------------------------------------------------------------------------------------------- answering


@pytest.fixture(scope="module")
def router(measured: Path) -> Router:
    outcomes = load_outcomes([measured], embed=ENCODER.encode)
    return fit_router(outcomes, RouterConfig(folds=3, inner_folds=2, resamples=200))


def answerer(index: Index, router: Router, generator: FakeGenerator) -> Answerer:
    return Answerer(generator, Retriever(index, RetrievalConfig(k=2)), AnswerConfig(), modes={AUTO: RoutedMode(router)})


def test_each_question_goes_to_its_arm_and_the_reason_is_told(index: Index, router: Router) -> None:
    generator = FakeGenerator(reply)
    ENCODER.encoded.clear()
    events = list(answerer(index, router, generator).stream("How high is the weather post station07?", arm=AUTO))
    assert isinstance(events[0], Step) and events[0].kind == "route" and events[0].text.startswith("rag: ")
    assert events[0].data["expected"]["rag"] > events[0].data["expected"]["base"]
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    assert answer.arm == "rag" and answer.text.startswith("707 metres") and len(answer.passages) == 2
    assert answer.details["route"]["arm"] == "rag" and answer.details["route"]["reason"]
    assert len(ENCODER.encoded) == 1  # searched and embedded once, by the router, not again by the arm
    riddle = answerer(index, router, generator).answer("Solve my riddle abcde?", arm=AUTO)
    assert riddle.arm == "base" and riddle.text == "edcba" and riddle.details["route"]["arm"] == "base"


def test_many_questions_are_answered_in_their_order(index: Index, router: Router) -> None:
    asked = ["Solve my riddle abc?", "How high is the weather post station03?", "Solve my riddle xyz?"]
    told: list[tuple[int, int]] = []
    routed = answerer(index, router, FakeGenerator(reply))
    answers = routed.answer_many(asked, arm=AUTO, progress=lambda done, total: told.append((done, total)))
    assert [a.arm for a in answers] == ["base", "rag", "base"]
    assert [a.question for a in answers] == asked and answers[1].text.startswith("703 metres")
    assert told[-1] == (3, 3)
    frozen = Retriever(index).search_many(asked, 20)
    assert [a.text for a in routed.answer_many(asked, arm=AUTO, retrievals=frozen)] == [a.text for a in answers]


def test_without_an_index_the_router_says_what_it_lacks(router: Router) -> None:
    alone = Answerer(FakeGenerator(reply), modes={AUTO: RoutedMode(router)})
    with pytest.raises(UsageError, match="no index was given"):
        alone.answer("Solve my riddle abc?", arm=AUTO)


# ---------------------------------------------------------------------------------------------------- command line


def test_route_then_ask_auto(
    index: Index, copied: Path, models: FakeGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(capsys, "route", str(copied))
    assert found["better"] and found["questions"] == 2 * COUNT and found["router"] == str(copied / "router.json")
    assert [p["policy"] for p in found["policies"]][-2:] == ["router", "oracle"]
    assert set(found["kinds"]) == {"fact", "riddle"}
    asked = json_of(
        capsys, "ask", str(index.folder), "How high is the weather post station07?", "--decision", str(copied)
    )
    assert asked["arm"] == "rag" and asked["details"]["route"]["reason"]
    riddle = json_of(capsys, "ask", str(index.folder), "Solve my riddle abcde?", "--decision", str(copied))
    assert riddle["arm"] == "base" and riddle["answer"] == "edcba"
    capsys.readouterr()
    assert main(["ask", str(index.folder), "Solve my riddle abcde?", "--decision", str(copied), "-q"]) == 0
    assert "why base: " in capsys.readouterr().out
    plain = json_of(
        capsys, "ask", str(index.folder), "Solve my riddle abcde?", "--decision", str(copied), "--arm", "rag"
    )
    assert plain["arm"] == "rag" and "route" not in plain["details"]


def test_route_prints_its_table(copied: Path, models: FakeGenerator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", str(copied), "--uncertainty", "-q"]) == 0
    out = capsys.readouterr().out
    for words in (
        "always base",
        "always rag",
        "random",
        "retrieval score",
        "oracle",
        "gap closed",
        "The router is better",
    ):
        assert words in out
    assert "first tokens' probability" in out
    saved = load_router(copied)
    assert saved is not None and saved.asks_generator


def test_a_router_that_does_not_fit_is_not_used_and_why_is_said(
    index: Index, copied: Path, models: FakeGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    json_of(capsys, "route", str(copied))
    ask = ["ask", str(index.folder), "Solve my riddle abcde?", "--decision", str(copied)]
    capsys.readouterr()
    assert main([*ask, "--generator", "another"]) == 0
    assert "The router was learnt with the generator fake, not another" in capsys.readouterr().err
    data = json.loads((copied / "decision.json").read_text())
    (copied / "decision.json").write_text(json.dumps({**data, "date": "2099-01-01"}))
    assert main(ask) == 0
    assert "The decision is newer than its router" in capsys.readouterr().err
    (copied / "decision.json").write_text(json.dumps(data))
    router = json.loads((copied / "router.json").read_text())
    router["report"]["better"] = False
    (copied / "router.json").write_text(json.dumps(router))
    assert main(ask) == 0
    captured = capsys.readouterr()
    assert "router" not in captured.err and "why " not in captured.out
    (copied / "router.json").write_text("{")
    assert main(ask) == 2
    assert "ragtune route" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["route", "nowhere"], ["no run folder at nowhere", "ragtune decide"]),
        (["route", "RUN", "--choose-from", "rag"], ["Only rag can be chosen", "two arms or more"]),
        (["route", "RUN", "--choose-from", "rag,agent"], ["agent was not measured", "base, rag"]),
        (["route", "RUN", "--worth", "-1"], ["worth is -1.0"]),
    ],
)
def test_route_asked_wrongly(
    argv: list[str], words: list[str], copied: Path, models: FakeGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(copied) if a == "RUN" else a for a in argv]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


def test_too_few_questions_are_refused_before_a_model_is_loaded(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(name: str) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(serving, "load_encoder", never)
    for arm in ("base", "rag"):
        path = rows_path(copied, arm)
        path.write_text("".join(json.dumps(row) + "\n" for row in read_rows(path)[:40]))
    assert main(["route", str(copied)]) == 2
    assert "at least 100 measured questions" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- page


def test_the_chat_routes_and_tells_why(
    index: Index, copied: Path, models: FakeGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    from apps.service import Loaders, Service

    json_of(capsys, "route", str(copied))
    loaders = Loaders(encoder=lambda name: ENCODER, generator=lambda name: models)
    service = Service.open(index.folder, decision=copied, loaders=loaders)
    service.start()
    assert service.wait(20).phase == "ready"
    auto = service.auto()
    assert auto.arm == AUTO and "The router is better than always " in auto.reason
    for question, arm in (("How high is the weather post station07?", "rag"), ("Solve my riddle abcde?", "base")):
        last = list(service.ask(question))[-1].replies[0]
        assert last.status == "done" and last.answer is not None and last.answer.arm == arm
        assert last.steps[0].kind == "route" and last.steps[0].text.startswith(f"{arm}: ")
        assert last.answer.details["route"]["reason"]
