"""The command line from argv to stdout, stderr and exit code; models are fakes."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apps import serving
from apps.cli import build_parser, main
from apps.console import Console, duration, plain, table
from apps.options import COMMANDS, OPTIONS, resolve
from rag.errors import ConfigError, UsageError
from tests.fakes import FakeEncoder, FakeGenerator

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture()
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    fake = FakeEncoder("starter")
    monkeypatch.setattr(
        serving, "load_encoder", lambda name: fake if name == "starter" else FakeEncoder(name, salt=name)
    )
    return fake


@pytest.fixture()
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    fake = FakeGenerator("18 crowns [1]")
    monkeypatch.setattr(serving, "load_generator", lambda name: fake)
    return fake


@pytest.fixture()
def built(tmp_path: Path, corpus: Path, encoder: FakeEncoder, capsys: pytest.CaptureFixture[str]) -> Path:
    index = tmp_path / "index"
    assert main(["index", str(corpus), "--out", str(index), "-q"]) == 0
    capsys.readouterr()
    return index


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def json_of(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    code, out, err = run(capsys, *argv, "--json")
    assert code == 0, err
    assert out.count("\n") == 1, "stdout must carry one JSON value and nothing else"
    return json.loads(out)


# ------------------------------------------------------------------------------------------------ help and mistakes


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_every_option_and_imports_no_torch(command: str) -> None:
    code = (
        "import sys; from apps.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code in (0, None), stop.code\n"
        "assert not {'torch', 'transformers', 'numpy', 'gradio', 'faiss'} & set(sys.modules)"
    )
    argv = [*([command] if command else []), "--help"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = [f"--{o.replace('_', '-')}" for o in COMMANDS[command].options if o not in "kn"] if command else COMMANDS
    assert all(name in done.stdout for name in wanted)


def test_no_command_prints_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 2 and "commands:" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["frobnicate"], ["frobnicate", "choose from", "decide"]),
        (["search", "x"], ["required", "query", "ragtune search --help"]),
        (["index", "docs"], ["needs --out", "ragtune index --help"]),
        (["decide", "x"], ["needs --questions and --out"]),
        (["search", "x", "q", "-k", "0"], ["-k", "0"]),
        (["search", "x", "q", "-k", "many"], ["-k", "many"]),
        (["ask", "x", "q", "--arm", "best"], ["best", "tuned+rag"]),
        (["tune", "x", "--method", "magic"], ["magic", "qlora"]),
        (["search", "x", "q", "--unknown"], ["--unknown", "--help"]),
    ],
)
def test_asked_wrongly_exits_2_with_one_sentence(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2 and out == ""
    assert err.startswith("ragtune: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.startswith("ragtune ")


def test_every_command_names_a_function_and_known_options() -> None:
    import importlib
    import inspect

    for name, command in COMMANDS.items():
        module, _, function = command.function.partition(":")
        parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        needed = {n for n, p in parameters.items() if p.default is p.empty}
        given = {*command.positionals, *command.options, "console"}
        assert needed <= given <= set(parameters), name
        assert set(command.required) <= set(command.options) <= set(OPTIONS), name


# --------------------------------------------------------------------------------------------------- where values come from


def given(*argv: str) -> dict[str, Any]:
    return vars(build_parser().parse_args(list(argv)))


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = tmp_path / "ragtune.yaml"
    config.write_text("encoder: from-file\nsearch:\n  k: 7\nlearning-rate: 0.5\n")
    argv = ["search", "i", "q", "--config", str(config)]
    assert resolve("search", given(*argv), {})["encoder"] == "from-file"
    assert resolve("search", given(*argv), {})["k"] == 7
    assert resolve("search", given(*argv), {"RAGTUNE_K": "8"})["k"] == 8
    assert resolve("search", given(*argv, "-k", "9"), {"RAGTUNE_K": "8"})["k"] == 9
    assert resolve("search", given("search", "i", "q"), {})["k"] is None  # the command's own default
    assert resolve("search", given("search", "i", "q"), {})["mode"] == "hybrid"
    assert resolve("search", given("search", "i", "q"), {"RAGTUNE_CONFIG": str(config)})["k"] == 7


def test_required_options_may_come_from_the_file(tmp_path: Path) -> None:
    config = tmp_path / "ragtune.yaml"
    config.write_text("out: index\nskip_broken: true\nquestions: q.jsonl\n")
    assert resolve("index", given("index", "docs", "--config", str(config)), {})["out"] == Path("index")
    assert resolve("evaluate", given("evaluate", "i", "--config", str(config)), {})["skip_broken"] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k: many", ["'k'", "many"]),
        ("k: -1", ["'k'", "-1"]),
        ("mode: best", ["'mode'", "best", "hybrid"]),
        ("colour: red", ["colour", "unknown", "encoder"]),
        ("- k", ["list"]),
        ("k: [", ["not YAML"]),
        ("skip_broken: perhaps\n", []),
    ],
)
def test_bad_configuration_names_the_file_and_the_option(tmp_path: Path, text: str, words: list[str]) -> None:
    config = tmp_path / "ragtune.yaml"
    config.write_text(text)
    command = "evaluate" if "skip" in text else "search"
    argv = [command, "i", *(["q"] if command == "search" else ["--questions", "q"]), "--config", str(config)]
    with pytest.raises(ConfigError) as caught:
        resolve(command, given(*argv), {})
    assert str(config) in str(caught.value) and all(word in str(caught.value) for word in words)


def test_bad_environment_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="RAGTUNE_K is 'many'"):
        resolve("search", given("search", "i", "q"), {"RAGTUNE_K": "many"})


def test_missing_configuration_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        resolve("search", given("search", "i", "q", "--config", str(tmp_path / "none.yaml")), {})


# ---------------------------------------------------------------------------------------------------------- the console


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_progress_is_a_line_every_few_seconds_with_the_time_left() -> None:
    clock, err = Clock(), io.StringIO()
    console = Console(err=err, clock=clock)
    for i in range(1, 101):
        clock.now += 0.25
        console.progress("embedding", i, 100, "a.md")
    lines = err.getvalue().splitlines()
    assert 5 <= len(lines) <= 8
    assert "left: a.md" in lines[0] and lines[-1].startswith("embedding 100/100 (100 %), ")


def test_the_time_left_is_told_when_there_is_something_to_tell_it_from() -> None:
    """The first answers of a batch come after all of it was read; from them alone the end would seem far."""
    clock, err = Clock(), io.StringIO()
    console = Console(err=err, clock=clock)
    console.progress("answering", 0, 120)
    for clock.now, done in ((8.0, 1), (14.0, 33)):
        console.progress("answering", done, 120)
    assert err.getvalue().splitlines()[-2:] == [
        "answering 1/120 (0 %), 8.0 s", "answering 33/120 (27 %), 14 s, about 37 s left",
    ]  # fmt: skip
    console.progress("training", 0, 1000)
    clock.now += 25.0
    console.progress("training", 1, 1000)  # slow work tells, too
    assert err.getvalue().splitlines()[-1] == "training 1/1000 (0 %), 25 s, about 6 h 56 min left"


def test_the_time_left_follows_the_recent_pace() -> None:
    """A resumed job begins far ahead; one that slows down is not as near its end as its first minutes say."""
    clock, err = Clock(), io.StringIO()
    console = Console(err=err, clock=clock)
    console.progress("asking", 50, 100)
    clock.now = 10.0
    console.progress("asking", 60, 100)
    assert err.getvalue().splitlines()[-1] == "asking 60/100 (60 %), 10 s, about 40 s left"
    for clock.now, done in ((100.0, 61), (200.0, 62)):
        console.progress("asking", done, 100)
    assert "about 1 h 03 min left" in err.getvalue().splitlines()[-1]  # 100 s each, 38 to go


def test_short_stages_are_no_news_in_a_log() -> None:
    clock, err = Clock(), io.StringIO()
    Console(err=err, clock=clock).progress("reading", 3, 3)
    assert err.getvalue() == ""


def test_a_stage_that_cannot_be_counted_is_announced_at_once() -> None:
    err = io.StringIO()
    Console(err=err, clock=Clock()).progress("loading the generator", 0, 0, "starter")
    assert err.getvalue() == "loading the generator: starter\n"


def test_terminal_progress_rewrites_one_line() -> None:
    clock, err = Clock(), Terminal()
    console = Console(err=err, clock=clock)
    console.progress("reading", 0, 2, "a very long file name.md")
    clock.now = 0.5
    console.progress("reading", 1, 2, "b")
    console.progress("reading", 2, 2, "c")
    assert err.getvalue().count("\n") == 1 and err.getvalue().count("\r") == 3


def test_quiet_console_says_nothing_but_the_result() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(quiet=True, out=out, err=err)
    console.progress("reading", 1, 1)
    console.say("remark")
    console.result({"a": float("nan"), "p": Path("x")}, str)
    console.as_json = True
    console.result({"a": float("nan"), "p": Path("x")}, str)
    assert err.getvalue() == "" and out.getvalue().splitlines()[1] == '{"a": null, "p": "x"}'


def test_plain_converts_numpy_and_dataclasses() -> None:
    import numpy as np

    from rag.types import Scores

    assert plain({"a": np.float32(0.5), "b": np.arange(2), "c": Scores(dense=1.0)}) == {
        "a": 0.5,
        "b": [0, 1],
        "c": {"dense": 1.0, "lexical": None, "fused": None, "rerank": None},
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (12.4, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_duration_reads_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_table_sets_numbers_right_and_counts_wide_characters() -> None:
    lines = table([("arm", "f1"), ("rag", "0.1"), ("渡船", "10.25")]).splitlines()
    assert lines == ["arm      f1", "rag     0.1", "渡船  10.25"]


# --------------------------------------------------------------------------------------------------------- the commands


def test_index_twice_then_edit_and_delete(
    tmp_path: Path, corpus: Path, encoder: FakeEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    first = json_of(capsys, "index", str(corpus), "--out", index)
    assert {
        "documents",
        "chunks",
        "added",
        "updated",
        "deleted",
        "embedded",
        "failed",
        "seconds",
        "chunks_per_second",
    } <= set(first)
    assert (first["documents"], first["added"], first["failed"]) == (6, 6, [])
    assert json_of(capsys, "index", str(corpus), "--out", index)["embedded"] == 0
    (corpus / "ferry.md").write_text("# Ferry\n\nThe ferry leaves at 08:55 now.\n")
    (corpus / "staff.csv").unlink()
    second = json_of(capsys, "index", str(corpus), "--out", index)
    assert (second["documents"], second["added"], second["updated"], second["deleted"]) == (5, 0, 1, 1)
    texts = [row["text"] for row in json_of(capsys, "search", index, "night cook harbour master 07:40", "-k", "20")]
    assert texts and not any("07:40 from pier" in text or "Tomas Vey" in text for text in texts)


def test_index_says_when_a_moved_folder_is_indexed_twice(
    tmp_path: Path, corpus: Path, encoder: FakeEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "i")
    assert "holds them twice" not in run(capsys, "index", str(corpus), "--out", index)[2]
    shutil.copytree(corpus, tmp_path / "moved")
    code, _, err = run(capsys, "index", str(tmp_path / "moved"), "--out", index)
    assert code == 0 and "The 6 added documents say only what stood in the index already" in err and "--out" in err
    (tmp_path / "moved" / "new.md").write_text("# News\n\nThe mill opens on 9 March.\n")
    assert "holds them twice" not in run(capsys, "index", str(tmp_path / "moved"), "--out", index)[2]


def test_index_reports_bad_files_and_strict_makes_them_an_error(
    tmp_path: Path, corpus: Path, encoder: FakeEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "broken.pdf").write_bytes(b"not a pdf")
    code, out, err = run(capsys, "index", str(corpus), "--out", str(tmp_path / "i"), "--json")
    assert code == 0 and json.loads(out)["failed"][0]["source"].endswith("broken.pdf")
    assert "not indexed: " in err and "broken.pdf" in err
    assert run(capsys, "index", str(corpus), "--out", str(tmp_path / "i"), "--strict")[0] == 1


def test_search_finds_the_right_document_with_offsets(
    built: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json_of(capsys, "search", str(built), "deposit for the blue boat", "-k", "3")
    assert rows[0]["source"] == "boats/loan.md" and [row["rank"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) >= {"rank", "score", "scores", "source", "page", "start", "end", "text"}
    text = (corpus / "boats/loan.md").read_text()
    assert rows[0]["text"] in text
    assert json_of(capsys, "search", str(built), "四号码头", "--mode", "lexical")[0]["source"] == "zh.md"
    code, out, _ = run(capsys, "search", str(built), "deposit", "-k", "1")
    assert code == 0 and out.startswith("[1] boats/loan.md  (score ")


def test_ask_answers_with_citations(built: Path, generator: FakeGenerator, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "ask", str(built), "What does a return ticket to Korr cost?")
    assert set(found) >= {
        "question",
        "answer",
        "arm",
        "abstained",
        "citations",
        "passages",
        "tokens_in",
        "tokens_out",
        "seconds",
    }
    assert found["arm"] == "rag" and found["answer"].startswith("18 crowns") and found["passages"]
    assert found["citations"][0]["source"] == "ferry.md" and "18 crowns" in found["citations"][0]["quote"]
    code, out, _ = run(capsys, "ask", str(built), "What does a return ticket to Korr cost?")
    assert code == 0 and out.startswith("18 crowns") and "ferry.md" in out
    assert json_of(capsys, "ask", str(built), "What?", "--arm", "base")["passages"] == []


def test_ask_serves_the_decision_beside_the_index(
    built: Path, tmp_path: Path, generator: FakeGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = tmp_path / "runs" / "first"
    (run_folder / "adapter").mkdir(parents=True)
    decided = {"chosen": "tuned+rag", "reason": "better", "arms": [{"arm": "tuned+rag", "adapter": "adapter"}]}
    (run_folder / "decision.json").write_text(json.dumps(decided))
    serving.serve_decision(built, run_folder)
    assert serving.pointer(built) == tmp_path / "index.serving.json"
    found = json_of(capsys, "ask", str(built), "What does a ticket cost?")
    assert found["arm"] == "tuned+rag" and found["adapter"] == str(run_folder / "adapter")
    assert generator.calls[-1].adapter == str(run_folder / "adapter")
    assert json_of(capsys, "ask", str(built), "What does a ticket cost?", "--arm", "rag")["arm"] == "rag"
    decided["chosen"] = "base"
    other = tmp_path / "runs" / "second"
    other.mkdir()
    (other / "decision.json").write_text(json.dumps(decided))
    assert json_of(capsys, "ask", str(built), "What?", "--decision", str(other))["arm"] == "base"


def test_evaluate_prints_every_metric_with_its_interval(
    built: Path, tmp_path: Path, generator: FakeGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write_questions(tmp_path / "q.jsonl")
    found = json_of(capsys, "evaluate", str(built), "--questions", str(questions))
    assert found["arm"] == "rag" and found["n"] == 4
    for metric in ("em", "f1", "match", "recall@5", "mrr", "ndcg@10"):
        assert set(found[metric]) >= {"mean", "low", "high"}, metric
        assert found[metric]["low"] <= found[metric]["mean"] <= found[metric]["high"]
    code, out, _ = run(capsys, "evaluate", str(built), "--questions", str(questions))
    assert code == 0 and out.startswith("rag, 4 questions") and "recall@5" in out


QUESTIONS = (
    {"id": "a", "question": "What does a return ticket to Korr cost?", "answers": ["18 crowns"],
     "evidence": [{"source": "ferry.md", "quote": "A return ticket costs 18 crowns."}]},
    {"id": "b", "question": "How long may the blue boat be borrowed?", "answers": ["3 days"],
     "evidence": [{"source": "boats/loan.md", "quote": "for 3 days"}]},
    {"id": "c", "question": "When does the kitchen close?", "answers": ["21:15"],
     "evidence": [{"source": "kitchen.txt", "quote": "closes at 21:15"}]},
    {"id": "d", "question": "Who owns the lighthouse?", "answers": [], "unanswerable": True},
)  # fmt: skip


def write_questions(path: Path, rows: Any = QUESTIONS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------------------------------- when it goes wrong


def test_errors_are_one_sentence_and_never_a_traceback(
    tmp_path: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> Any:
        raise ZeroDivisionError("secret\ndetails")

    monkeypatch.setattr(serving, "load_encoder", broken)
    (tmp_path / "a.txt").write_text("text")
    code, out, err = run(capsys, "index", str(tmp_path / "a.txt"), "--out", str(tmp_path / "i"), "-q")
    assert code == 1 and out == "" and err.count("\n") == 1
    assert "ZeroDivisionError" in err and "RAGTUNE_DEBUG=1" in err
    monkeypatch.setenv("RAGTUNE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["index", str(tmp_path / "a.txt"), "--out", str(tmp_path / "i")])


def test_ctrl_c_exits_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "load_encoder", stop)
    (tmp_path / "a.txt").write_text("text")
    code, _, err = run(capsys, "index", str(tmp_path / "a.txt"), "--out", str(tmp_path / "i"), "-q")
    assert code == 130 and err.startswith("ragtune: stopped. ") and "type the same command to go on" in err


def test_full_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(name: str) -> Any:
        raise OSError(28, "No space left on device", "/index/vectors")

    monkeypatch.setattr(serving, "load_encoder", full)
    (tmp_path / "a.txt").write_text("text")
    code, _, err = run(capsys, "index", str(tmp_path / "a.txt"), "--out", str(tmp_path / "i"), "-q")
    assert code == 1 and "No space left on device" in err and "/index/vectors" in err


def test_what_a_library_prints_does_not_reach_stdout(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = serving.load_encoder("starter")

    def noisy(name: str) -> Any:
        print("downloading shards")
        return fake

    monkeypatch.setattr(serving, "load_encoder", noisy)
    assert isinstance(json_of(capsys, "search", str(built), "boat"), list)


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m apps.cli --help | head -1"], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_interrupting_a_real_process_exits_130(tmp_path: Path) -> None:
    """Through the real signal: an import hook sends SIGINT where the command would begin its work."""
    code = (
        "import os, signal, sys\nfrom apps import serving\nfrom apps.cli import main\n"
        "serving.load_encoder = lambda name: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['index', sys.argv[1], '--out', sys.argv[1] + '.index']))"
    )
    (tmp_path / "a.txt").write_text("text")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "stopped" in done.stderr


def test_env_is_complete_and_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    found = json_of(capsys, "env")
    assert {"ragtune", "python", "platform", "machine", "packages", "starters"} <= set(found)
    assert "secret" not in json.dumps(found)
    code, out, _ = run(capsys, "env")
    assert code == 0 and "torch: " in out and "secret" not in out
