"""The long commands with fakes for the models and for the trainer: what they call, print, leave behind and reuse."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from apps import deciding, demo, jobs, serving
from apps.cli import main
from rag.protocols import Message
from tests.fakes import FakeEncoder, FakeGenerator, words
from tests.test_cli import QUESTIONS, write_questions

ROOT = Path(__file__).resolve().parents[1]
Json = Callable[..., Any]


def best_sentence(messages: Sequence[Message]) -> str:
    """The sentence of the prompt that shares most words with its question."""
    lines = [line for message in messages for line in message["content"].splitlines()]
    asked = set(words(next((line for line in reversed(lines) if line.startswith("Question:")), "")))
    sentences = [
        s for line in lines if not line.startswith(("Question:", "Answer")) for s in line.split(". ") if s.strip()
    ]
    return max(sentences or ["nothing"], key=lambda s: len(asked & set(words(s))))


class Models:
    """Fake models and a fake trainer; counts how often each was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoders = self.generators = 0
        self.trained: list[tuple[str, int]] = []
        self.generator = FakeGenerator(best_sentence)
        monkeypatch.setattr(serving, "load_encoder", self.load_encoder)
        monkeypatch.setattr(serving, "load_generator", self.load_generator)
        monkeypatch.setattr(jobs, "train_adapter", self.train)
        monkeypatch.setattr(deciding, "train_adapter", self.train)

    def load_encoder(self, name: str) -> FakeEncoder:
        self.encoders += 1
        return FakeEncoder(name)

    def load_generator(self, name: str) -> FakeGenerator:
        self.generators += 1
        return self.generator

    def train(self, plan: Any, rows: Any, out: Path, console: Any, **more: Any) -> Any:
        from tuning.record import write_record
        from tuning.train import TrainReport

        self.trained.append((plan.recipe, len(rows)))
        out.mkdir(parents=True, exist_ok=True)
        (out / "adapter_model.safetensors").write_bytes(plan.recipe.encode())
        loss = [2.0, 1.0]
        write_record(out, {"base": plan.base, "recipe": plan.recipe, "seconds": 1.0, "rows": len(rows), "loss": loss})
        return TrainReport(out, len(rows), 0, 100, 1.0, tuple(loss), 2, 2)


@pytest.fixture()
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    return Models(monkeypatch)


@pytest.fixture()
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture()
def as_json(cli: Callable[..., tuple[int, str, str]]) -> Json:
    def run(*argv: object) -> Any:
        code, out, err = cli(*argv, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.fixture()
def index(tmp_path: Path, corpus: Path, models: Models, as_json: Json) -> Path:
    as_json("index", corpus, "--out", tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture()
def train_file(tmp_path: Path) -> Path:
    rows = [
        {"id": "t1", "question": "From which pier does the ferry to Korr leave?", "answers": ["pier 4"],
         "evidence": [{"source": "ferry.md", "quote": "from pier 4"}]},
        {"id": "t2", "question": "How many books does the library lend?", "answers": ["nine"],
         "evidence": [{"source": "library.html", "quote": "lends nine books"}]},
    ]  # fmt: skip
    return write_questions(tmp_path / "train.jsonl", rows)


# ------------------------------------------------------------------------------------------------------------------ tune


def test_tune_makes_rows_from_what_the_serving_retriever_finds(
    index: Path, tmp_path: Path, train_file: Path, models: Models, as_json: Json
) -> None:
    found = as_json("tune", index, "--questions", train_file, "--out", tmp_path / "adapter")
    assert {"adapter", "rows", "tokens", "seconds", "loss", "before", "after"} <= set(found)
    assert found["rows"] == 2 and found["loss"] == [2.0, 1.0] and found["before"] is None
    assert models.trained == [("rag", 2)]
    assert not list(tmp_path.glob(".*retrievals")), "frozen texts do not lie around after a finished run"


def test_tune_measures_before_and_after_on_held_out_questions(
    index: Path, tmp_path: Path, train_file: Path, models: Models, as_json: Json, cli: Any
) -> None:
    test = write_questions(tmp_path / "test.jsonl")
    argv = ("tune", index, "--questions", train_file, "--out", tmp_path / "adapter", "--test", test)
    found = as_json(*argv)
    assert found["before"]["arm"] == "rag" and found["after"]["arm"] == "tuned+rag"
    assert found["before"]["n"] == found["after"]["n"] == len(QUESTIONS)
    record = json.loads((tmp_path / "adapter" / "ragtune.json").read_text())
    assert record["after"]["f1"] == pytest.approx(found["after"]["f1"]["mean"])
    assert str(tmp_path / "adapter") in models.generator.activated
    code, out, err = cli(*argv)
    assert code == 0 and "f1: " in out and "share" in err, "documents on both sides are a warning"


def test_closed_book_rows_need_no_retrieval(
    index: Path, tmp_path: Path, train_file: Path, models: Models, as_json: Json
) -> None:
    argv = ("tune", index, "--questions", train_file, "--out", tmp_path / "a", "--recipe", "closed-book")
    assert as_json(*argv)["rows"] == 2 and models.trained == [("closed-book", 2)]


def test_tune_dry_run_trains_nothing(
    index: Path, tmp_path: Path, train_file: Path, models: Models, as_json: Json, cli: Any
) -> None:
    argv = ("tune", index, "--questions", train_file, "--out", tmp_path / "adapter", "--dry-run")
    found = as_json(*argv)
    assert found["dry_run"] and found["rows"] == 2 and found["tokens"] > 0 and not models.trained
    assert not (tmp_path / "adapter").exists()
    assert "would train starter by lora on 2 rows" in cli(*argv)[1]


def test_tune_without_a_usable_question_says_what_to_check(
    index: Path, tmp_path: Path, models: Models, cli: Any
) -> None:
    rows = [
        {"id": "x", "question": "Who?", "answers": ["Nobody"], "evidence": [{"source": "elsewhere.md", "quote": "x"}]}
    ]
    argv = ("tune", index, "--questions", write_questions(tmp_path / "q", rows), "--out", tmp_path / "a")
    code, out, err = cli(*argv)
    assert code == 1 and out == "" and "relative to the indexed folder" in err


# ---------------------------------------------------------------------------------------------------------------- decide


def decide_argv(index: Path, tmp_path: Path, train_file: Path) -> tuple[object, ...]:
    test = write_questions(tmp_path / "test.jsonl")
    return ("decide", index, "--train", train_file, "--questions", test, "--out", tmp_path / "run")


def test_decide_measures_four_arms_and_serves_the_choice(
    index: Path, tmp_path: Path, train_file: Path, models: Models, as_json: Json
) -> None:
    found = as_json(*decide_argv(index, tmp_path, train_file))
    assert {"chosen", "reason", "arms", "pairs", "warnings"} <= set(found)
    assert {arm["arm"] for arm in found["arms"]} == {"base", "rag", "tuned", "tuned+rag", "oracle"}
    for arm in found["arms"]:
        assert {"f1", "em", "seconds_per_question", "cost"} <= set(arm)
    assert sorted(models.trained) == [("closed-book", 2), ("rag", 2)]
    assert any("questions" in warning for warning in found["warnings"]), "four questions are too few, and it says so"
    assert (tmp_path / "run" / "report.html").is_file()
    assert serving.find_run(index) == (tmp_path / "run").resolve()
    assert as_json("ask", index, "What does a return ticket to Korr cost?")["arm"] == found["chosen"]


def test_decide_again_reuses_what_is_finished(
    index: Path, tmp_path: Path, train_file: Path, models: Models, as_json: Json, cli: Any
) -> None:
    argv = decide_argv(index, tmp_path, train_file)
    first = as_json(*argv)
    asked = len(models.generator.calls)
    second = as_json(*argv)
    assert second["chosen"] == first["chosen"]
    assert len(models.generator.calls) == asked
    code, out, _ = cli(*argv)
    assert code == 0 and "chosen: " in out and "arm" in out.splitlines()[0] and "report.html" in out


def test_decide_without_training_questions_measures_what_there_is(
    index: Path, tmp_path: Path, models: Models, as_json: Json
) -> None:
    test = write_questions(tmp_path / "test.jsonl")
    found = as_json("decide", index, "--questions", test, "--out", tmp_path / "run")
    assert {arm["arm"] for arm in found["arms"]} == {"base", "rag", "oracle"}
    assert any("tuned+rag was not measured" in warning for warning in found["warnings"])


def test_decide_takes_given_adapters(index: Path, tmp_path: Path, models: Models, as_json: Json, cli: Any) -> None:
    test = write_questions(tmp_path / "test.jsonl")
    (tmp_path / "mine").mkdir()
    argv = ("decide", index, "--questions", test, "--out", tmp_path / "run")
    found = as_json(*argv, "--tuned-rag", tmp_path / "mine")
    assert "tuned+rag" in {arm["arm"] for arm in found["arms"]} and not models.trained
    code, _, err = cli(*argv, "--tuned", tmp_path / "none")
    assert code == 2 and "no adapter folder at" in err


def test_decide_dry_run_says_how_long(
    index: Path, tmp_path: Path, train_file: Path, models: Models, as_json: Json, cli: Any
) -> None:
    argv = (*decide_argv(index, tmp_path, train_file), "--dry-run")
    found = as_json(*argv)
    assert [step["step"].split()[0] for step in found["steps"]] == ["train", "train", "answer"] and not models.trained
    assert not (tmp_path / "run" / "decision.json").exists()
    assert "in all about" in cli(*argv)[1]


def test_decide_refuses_test_questions_that_were_trained_on(
    index: Path, tmp_path: Path, models: Models, cli: Any
) -> None:
    both = write_questions(tmp_path / "both.jsonl")
    code, _, err = cli("decide", index, "--train", both, "--questions", both, "--out", tmp_path / "run")
    assert code == 2 and "also in the training file" in err and not models.trained


def test_decide_on_one_question_warns_and_does_not_fail(
    index: Path, tmp_path: Path, models: Models, as_json: Json
) -> None:
    one = write_questions(tmp_path / "one.jsonl", QUESTIONS[:1])
    found = as_json("decide", index, "--questions", one, "--out", tmp_path / "run")
    assert found["questions"] == 1 and found["warnings"]


@pytest.mark.parametrize("gain", ["-1", "-0.01"])
def test_decide_refuses_an_impossible_gain(index: Path, tmp_path: Path, models: Models, cli: Any, gain: str) -> None:
    test = write_questions(tmp_path / "test.jsonl")
    code, _, err = cli("decide", index, "--questions", test, "--out", tmp_path / "run", f"--gain={gain}")
    assert code == 2 and "minimal_gain" in err


# ------------------------------------------------------------------------------------------------------------------ chat


def test_chat_on_a_taken_port_names_a_free_one_before_loading(index: Path, models: Models, cli: Any) -> None:
    loaded = models.generators
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = cli("chat", index, "--port", port)
    assert code == 1 and out == "" and f"Port {port} is in use" in err and "--port" in err
    assert models.generators == loaded


def test_chat_serves_the_index_and_prints_its_address(
    index: Path, models: Models, monkeypatch: pytest.MonkeyPatch, as_json: Json
) -> None:
    from apps import server

    seen = {}

    def serve(
        service: Any, *, port: int | None, open_browser: bool, on_ready: Callable[[str], None], access: Any
    ) -> None:
        assert access.host == "127.0.0.1" and not access.asks
        seen.update(name=service.library.name, port=port, browser=open_browser)
        on_ready("http://127.0.0.1:1")

    monkeypatch.setattr(server, "serve", serve)
    assert as_json("chat", index) == {"url": "http://127.0.0.1:1"}
    assert seen["name"] == "index" and not seen["browser"], "nobody sits in front of a test"


# ------------------------------------------------------------------------------------------------------------------ demo


@pytest.fixture()
def sample(tmp_path: Path, corpus: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "handbook"
    folder.mkdir()
    corpus.rename(folder / "documents")
    train_file.rename(folder / "train.jsonl")
    write_questions(folder / "test.jsonl")
    monkeypatch.setattr(demo, "SAMPLE", folder)
    return folder


def test_demo_runs_through_and_a_second_time_reuses_everything(
    sample: Path, tmp_path: Path, models: Models, as_json: Json, cli: Any
) -> None:
    folder = tmp_path / "demo"
    code, out, err = cli("demo", "--folder", folder, "--no-chat")
    assert code == 0 and "chosen: " in out
    assert "1/3" in err and "2/3" in err and "3/3" not in err
    assert len(models.trained) == 2
    loaded = (models.encoders, models.generators, len(models.trained))
    found = as_json("demo", "--folder", folder, "--no-chat")
    assert (models.encoders, models.generators, len(models.trained)) == loaded, "no model is loaded for finished steps"
    assert found["decide"]["chosen"] and found["index"]["documents"] == 6
    (sample / "documents" / "ferry.md").write_text("# Ferry\n\nThe ferry leaves at 09:00.\n")
    assert as_json("demo", "--folder", folder, "--no-chat")["index"]["updated"] == 1, "a changed sample is done again"


def test_demo_ends_in_the_chat_with_the_decision(
    sample: Path, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    asked: dict[str, Any] = {}

    def chat(index: Path, **options: Any) -> int:
        asked.update(options, index=index)
        return 0

    monkeypatch.setattr(jobs, "chat", chat)
    folder = tmp_path / "demo"
    code, _, err = cli("demo", "--folder", folder, "--port", 7999)
    assert code == 0 and "3/3" in err
    assert asked["index"] == folder / "index" and asked["decision"] == folder / "run" and asked["port"] == 7999
    assert asked["examples"] and set(asked["examples"]) <= {q["question"] for q in QUESTIONS}


def test_demo_outside_a_clone_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    monkeypatch.setattr(demo, "SAMPLE", tmp_path / "nowhere")
    code, _, err = cli("demo", "--folder", tmp_path / "demo")
    assert code == 2 and "Clone the repository" in err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_demo_from_end_to_end(tmp_path: Path) -> None:
    """What `make demo` runs, with the starters, up to the page; and again, reusing all of it."""
    command = [sys.executable, "-m", "apps.cli", "demo", "--no-chat", "--json", "--folder", str(tmp_path / "demo")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    arms = {arm["arm"]: arm["f1"]["mean"] for arm in found["decide"]["arms"]}
    assert arms["tuned+rag"] > arms["base"] and found["decide"]["chosen"] in arms
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "already decided" in again.stderr


# ------------------------------------------------------------------------------------------------------------- questions


@pytest.fixture()
def maker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In place of the pipeline, which has its own tests: writes two questions for each of the named documents."""
    from rag.questions import write_questions as write
    from rag.types import Evidence, Question
    from tuning import questions as pipeline

    def make(sources: Sequence[str]) -> None:
        def fake(retriever: Any, generator: Any, *, out: Path, n: int, progress: Any, **more: Any) -> Any:
            progress("questions", n, n, "")
            evidence = [Evidence(source, "words") for source in sources for _ in range(2)]
            made = [Question(f"q{i}", f"What is {i}?", (str(i),), (e,)) for i, e in enumerate(evidence)]
            write(out, made)
            return pipeline.QuestionsReport(
                Path(out), 2 * len(made), len(made), 0, {"found": 0.5}, {"rule": len(made)}, 1.0, True
            )

        monkeypatch.setattr(pipeline, "make_questions", fake)

    return make


def test_questions_are_made_split_by_document_and_never_overwritten(
    index: Path, tmp_path: Path, maker: Any, as_json: Json, cli: Any
) -> None:
    from rag.questions import read_questions

    maker(["ferry.md", "kitchen.txt", "library.html", "staff.csv"])
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    argv = ("questions", index, "--out", train, "--test-out", test, "-n", "8")
    found = as_json(*argv)
    assert {"asked", "kept", "filters"} <= set(found) and found["kept"] == 8
    one, two = read_questions(train), read_questions(test)
    assert len(one) + len(two) == 8 and len(two) == found["held_out"] > 0
    assert not {e.source for q in one for e in q.evidence} & {e.source for q in two for e in q.evidence}
    before = train.read_text()
    code, _, err = cli(*argv)
    assert code == 2 and "may have been edited" in err and train.read_text() == before
    code, out, err = cli(*argv, "--restart")
    assert code == 0 and "8 questions kept of 16 asked" in out and "Read some of them" in out, err


def test_questions_about_one_document_are_kept_whole(index: Path, tmp_path: Path, maker: Any, cli: Any) -> None:
    maker(["ferry.md"])
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    code, _, err = cli("questions", index, "--out", train, "--test-out", test)
    assert code == 0 and "one document only" in err and train.exists() and not test.exists()
