"""The tuning room without a page: files, commands, a look at rows, a forecast, adapters used and given back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.desk import Desk
from apps.options import COMMANDS, resolve
from apps.processes import check_command
from apps.service import Loaders, Service
from apps.serving import find_serving, serve_decision
from apps.workshop import Knobs
from rag.errors import AdapterMismatch, RagtuneError, UsageError
from rag.index import sync
from tests.apps.test_page_work import QUESTIONS
from tests.fakes import FakeEncoder, FakeGenerator

ENCODER = FakeEncoder(dimension=256)


@pytest.fixture()
def desk(tmp_path: Path, corpus: Path) -> Iterator[Desk]:
    sync(tmp_path / "idx", [corpus], ENCODER)
    service = Service.open(tmp_path / "idx", loaders=Loaders(lambda _: ENCODER, lambda _: FakeGenerator("18 crowns")))
    service.start()
    assert service.wait(30).phase == "ready"
    desk = Desk(service)
    yield desk
    desk.store.close()


@pytest.fixture()
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "my questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return path


def test_uploaded_questions_are_checked_and_kept(desk: Desk, questions: Path, tmp_path: Path) -> None:
    kept, n = desk.workshop.take(questions, "../<b>my.jsonl")
    assert n == 4 and kept.parent == desk.workshop.folder / "questions" and "/" not in kept.stem
    assert desk.workshop.files() == [(kept.stem, str(kept))]
    again, _ = desk.workshop.take(questions, "../<b>my.jsonl")
    assert again != kept and kept.is_file()
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(RagtuneError, match="line 1"):
        desk.workshop.take(tmp_path / "bad.jsonl", "bad.jsonl")


def test_the_command_is_one_that_the_command_line_takes(desk: Desk, questions: Path) -> None:
    knobs = Knobs(str(questions), minutes=3, learning_rate=1e-4, k=3, name="a b/c")
    argv = desk.workshop.tune_command(knobs)
    check_command(argv)
    given = dict(zip(argv[2::2], argv[3::2], strict=True))
    assert given["--minutes"] == "3" and given["--learning-rate"] == "0.0001" and given["-k"] == "3"
    assert Path(given["--out"]).parent == desk.workshop.folder / "adapters"
    check_command(desk.workshop.questions_command(60, 2))
    check_command(desk.workshop.decide_command(str(questions), "other.jsonl", minutes=2, queries=500))
    assert resolve and COMMANDS["tune"]


def test_what_is_missing_or_the_same_is_said(desk: Desk, questions: Path) -> None:
    for knobs, says in (
        (Knobs(), "Choose questions"),
        (Knobs(str(questions), test=str(questions)), "are those to train on"),
        (Knobs(str(questions), recipe="preference"), "Collect from votes"),
    ):
        with pytest.raises(UsageError, match=says):
            desk.workshop.tune_command(knobs)
    with pytest.raises(UsageError, match="are those to train on"):
        desk.workshop.decide_command("a", "a", minutes=None, queries=5)
    with pytest.raises(UsageError, match="held-out"):
        desk.workshop.decide_command("", "", minutes=None, queries=5)


def test_rows_are_those_that_training_would_see(desk: Desk, questions: Path) -> None:
    found = desk.workshop.preview(Knobs(str(questions)))
    assert found.questions == 4 and {r.completion for r in found.rows} <= {q["answers"][0] for q in QUESTIONS}
    row = next(r for r in found.rows if r.completion == "18 crowns")
    assert row.question == "What does a return ticket cost?" and row.tokens > 10
    assert "A return ticket costs 18 crowns" in " ".join(m["content"] for m in row.prompt)


def test_a_forecast_scales_with_the_questions(desk: Desk, questions: Path) -> None:
    found = desk.workshop.forecast(Knobs(str(questions), epochs=2))
    assert found.rows == 4 and found.tokens > 50 and found.memory_bytes > 2**20 and found.free_bytes > 0
    assert desk.workshop.forecast(Knobs(str(questions), minutes=0.001)).seconds <= 0.06


def adapter(folder: Path, **record: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "ragtune.json").write_text(json.dumps({"format": 1, "recipe": "rag", **record}))
    return folder


def test_an_adapter_is_used_kept_over_a_restart_and_given_back(desk: Desk) -> None:
    service = desk.service
    place = adapter(desk.workshop.folder / "adapters" / "one", rows=9, after={"f1": 0.5})
    (row,) = desk.workshop.adapters()
    assert (row.name, row.arm, row.rows, row.after, row.served, row.fits) == ("one", "tuned+rag", 9, 0.5, False, True)
    service.use_adapter("tuned+rag", place)
    assert service.auto().arm == "tuned+rag" and "adapter you chose" in service.auto().reason
    assert find_serving(service.library.folder).adapters == {"tuned+rag": str(place.resolve())}
    assert desk.workshop.adapters()[0].served
    *_, view = service.ask("What does a ticket cost?")
    assert view.replies[0].answer is not None and view.replies[0].answer.adapter == str(place.resolve())
    service.use_adapter("tuned+rag", None)
    assert service.auto().arm == "rag" and not desk.workshop.adapters()[0].served


def test_an_adapter_of_another_model_is_refused(desk: Desk) -> None:
    place = adapter(desk.workshop.folder / "adapters" / "other", base_fingerprint="x")
    assert not desk.workshop.adapters()[0].fits
    with pytest.raises(AdapterMismatch, match="another model"):
        desk.service.use_adapter("tuned+rag", place)
    with pytest.raises(AdapterMismatch):
        desk.service.use_adapter("tuned+rag", desk.workshop.folder)
    with pytest.raises(UsageError, match="no arm"):
        desk.service.use_adapter("<b>", None)


def test_a_new_decision_takes_the_place_back(desk: Desk, tmp_path: Path) -> None:
    run = tmp_path / "run"
    place = adapter(tmp_path / "chosen")
    adapter(run / "a1")
    data = {"format": 1, "chosen": "tuned+rag", "reason": "r", "arms": [{"arm": "tuned+rag", "adapter": "a1"}],
            "index": "../idx"}  # fmt: skip
    (run / "decision.json").write_text(json.dumps(data))
    desk.service.use_adapter("tuned+rag", place)
    serve_decision(desk.service.library.folder, run)
    desk.service.reload()
    assert desk.service.adapters == {"tuned+rag": str(run / "a1")} and not desk.service.picked
    assert desk.service.auto().arm == "tuned+rag"


def test_votes_become_questions_and_ratings(desk: Desk) -> None:
    with pytest.raises(UsageError, match="no rated answers"):
        desk.workshop.from_feedback()
    run = desk.talks.ask("What does a ticket cost?", ["rag"])
    list(run.watch())
    desk.talks.vote(run.talk, "t1", "rag", False, reasons=["incomplete"], correction="18 crowns for a return")
    kept, n = desk.workshop.from_feedback()
    assert n == 1 and json.loads(kept.read_text())["answers"] == ["18 crowns for a return"]
    rated, n = desk.workshop.preferences()
    assert n == 2 and [json.loads(line)["label"] for line in rated.read_text().splitlines()] == [False, True]
    check_command(desk.workshop.tune_command(Knobs(str(rated), recipe="preference")))
    shown = desk.workshop.preview(Knobs(str(rated), recipe="preference"))
    assert [r.kind for r in shown.rows] == ["bad", "good"] and shown.rows[0].question == "What does a ticket cost?"
