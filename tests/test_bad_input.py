"""Bad input through the command line: a sentence that says what to do, the right exit code, nothing lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from apps import serving
from apps.cli import main
from tests.fakes import FakeEncoder, FakeGenerator
from tests.test_cli import QUESTIONS, write_questions

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture()
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A command with fake models; what a name other than the starter's gives is another encoder."""
    monkeypatch.setattr(serving, "load_encoder", lambda name: FakeEncoder(name, salt=name))
    monkeypatch.setattr(serving, "load_generator", lambda name: FakeGenerator(name=name, adapters={}))

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture()
def index(tmp_path: Path, corpus: Path, cli: Cli) -> Path:
    assert cli("index", corpus, "--out", tmp_path / "index")[0] == 0
    return tmp_path / "index"


def refused(result: tuple[int, str, str], code: int, *words: str) -> None:
    found, out, err = result
    assert found == code, err
    assert out == ""
    sentence = err[err.index("ragtune: ") :]
    assert "Traceback" not in err
    assert all(word in sentence for word in words), sentence


def same(index: Path, cli: Cli) -> None:
    """The index still answers as before."""
    code, out, err = cli("search", index, "deposit for the blue boat", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["source"] == "boats/loan.md"


# --------------------------------------------------------------------------------------------------------- documents


def test_empty_folder(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "empty").mkdir()
    refused(cli("index", tmp_path / "empty", "--out", tmp_path / "i"), 2, "empty", "Give a folder with documents")
    assert not (tmp_path / "i" / "manifest.json").exists()


def test_missing_folder(tmp_path: Path, cli: Cli) -> None:
    refused(cli("index", tmp_path / "none", "--out", tmp_path / "i"), 2, "no file or folder at", "none")


def test_emptied_folder_does_not_empty_the_index(tmp_path: Path, corpus: Path, index: Path, cli: Cli) -> None:
    for path in sorted(corpus.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    refused(cli("index", corpus, "--out", index), 2, "Nothing was changed")
    same(index, cli)


BAD_FILES: dict[str, bytes] = {
    "zero.txt": b"",
    "half.pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog",
    "renamed.pdf": b"just words in a file with the wrong ending",
    "renamed.docx": b"PK\x03\x04 not a document",
    "null.md": b"\x00" * 100,
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_reported_and_the_others_are_indexed(tmp_path: Path, corpus: Path, cli: Cli, name: str) -> None:
    (corpus / name).write_bytes(BAD_FILES[name])
    code, out, err = cli("index", corpus, "--out", tmp_path / "i", "--json")
    report = json.loads(out)
    assert code == 0 and report["documents"] == 6, err
    assert [f["source"] for f in report["failed"]] == [name] and len(report["failed"][0]["reason"]) > 10
    same(tmp_path / "i", cli)


@pytest.mark.parametrize("name", BAD_FILES)
def test_nothing_but_a_bad_file(tmp_path: Path, cli: Cli, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name])
    refused(cli("index", tmp_path / name, "--out", tmp_path / "i"), 1, name)


def test_unreadable_file(tmp_path: Path, corpus: Path, cli: Cli) -> None:
    secret = corpus / "secret.md"
    secret.write_text("words")
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        secret.unlink()  # root reads everything: a dangling link cannot be read by anybody
        secret.symlink_to(tmp_path / "gone.md")
    code, out, err = cli("index", corpus, "--out", tmp_path / "i", "--json")
    assert code == 0 and json.loads(out)["documents"] == 6, err


def test_invalid_utf8_and_symlink_loop_do_not_stop_the_run(tmp_path: Path, corpus: Path, cli: Cli) -> None:
    (corpus / "latin.txt").write_bytes("Gebühr: 5 Kronen für Gäste. Die Fähre fährt früh.\n".encode("latin-1"))
    (corpus / "loop").symlink_to(corpus, target_is_directory=True)
    code, out, err = cli("index", corpus, "--out", tmp_path / "i", "--json")
    assert code == 0 and json.loads(out)["documents"] == 7, err


# ------------------------------------------------------------------------------------------------------------ the index


@pytest.mark.parametrize("command", ["search", "ask"])
def test_no_index_there(tmp_path: Path, cli: Cli, command: str) -> None:
    refused(cli(command, tmp_path / "none", "a question"), 2, "none", "ragtune index")


def test_index_of_another_encoder(index: Path, corpus: Path, cli: Cli) -> None:
    refused(cli("search", index, "q", "--encoder", "other"), 2, "starter", "other")
    refused(cli("index", corpus, "--out", index, "--encoder", "other"), 2, "starter", "other", "rebuild")
    same(index, cli)
    assert cli("index", corpus, "--out", index, "--encoder", "other", "--rebuild")[0] == 0
    same(index, cli)


def test_damaged_index_names_the_file(index: Path, cli: Cli) -> None:
    (index / "manifest.json").write_text("{}")
    refused(cli("search", index, "q"), 1, "manifest.json", "damaged")


def test_a_damaged_index_is_made_anew_where_that_is_asked_for(index: Path, corpus: Path, cli: Cli) -> None:
    (index / "manifest.json").write_text("{}")
    refused(cli("index", corpus, "--out", index), 1, "manifest.json", "damaged", "--rebuild")
    code, _, err = cli("index", corpus, "--out", index, "--rebuild")
    assert code == 0, err
    same(index, cli)


def test_second_writer_is_told_about_the_first(index: Path, corpus: Path, cli: Cli) -> None:
    from rag.lock import WriteLock

    (corpus / "new.md").write_text("# New\n\nA new page about the lighthouse.\n")
    with WriteLock(index):
        refused(cli("index", corpus, "--out", index), 1, str(os.getpid()))
    same(index, cli)


# ---------------------------------------------------------------------------------------------------------- the question


@pytest.mark.parametrize("command", ["search", "ask"])
@pytest.mark.parametrize(
    ("question", "words"), [("", ["empty"]), ("  \n", ["empty"]), ("boat " * 20_000, ["characters", "4,000"])]
)
def test_unusable_question(index: Path, cli: Cli, command: str, question: str, words: list[str]) -> None:
    refused(cli(command, index, question), 2, *words)


@pytest.mark.parametrize("question", ["?", "\x00", "<|im_end|>", "\ud83d", "'; DROP TABLE chunks; --", "渡" * 3000])
def test_strange_questions_are_answered(index: Path, cli: Cli, question: str) -> None:
    code, out, err = cli("ask", index, question, "--json")
    assert code == 0 and json.loads(out)["answer"], err


# --------------------------------------------------------------------------------------------------------- the questions


def test_questions_file_with_broken_lines(index: Path, tmp_path: Path, cli: Cli) -> None:
    path = write_questions(tmp_path / "q.jsonl")
    path.write_text(path.read_text() + '{"question": "half\n' + '{"question": "No list", "answers": "text"}\n')
    refused(cli("evaluate", index, "--questions", path), 2, "line 5", "line 6", "--skip-broken")
    code, out, err = cli("evaluate", index, "--questions", path, "--skip-broken", "--json")
    assert code == 0 and json.loads(out)["n"] == len(QUESTIONS)
    assert "line 5 is left out" in err and "line 6 is left out" in err
    assert f"2 broken lines are left out, {len(QUESTIONS)} questions are used" in err


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_no_questions(index: Path, tmp_path: Path, cli: Cli, text: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    refused(cli("evaluate", index, "--questions", path), 2, "no question", '{"question"')


def test_missing_questions_file(index: Path, tmp_path: Path, cli: Cli) -> None:
    refused(cli("evaluate", index, "--questions", tmp_path / "q.jsonl"), 2, "no questions file at")


def test_one_question_is_measured_with_a_wide_interval(index: Path, tmp_path: Path, cli: Cli) -> None:
    code, out, err = cli("evaluate", index, "--questions", write_questions(tmp_path / "q", QUESTIONS[:1]), "--json")
    assert code == 0 and json.loads(out)["n"] == 1, err


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("option", ["--encoder", "--generator"])
def test_unknown_model_offline(index: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, option: str) -> None:
    from rag import models

    monkeypatch.setattr(serving, f"load_{option[2:]}", getattr(models, f"load_{option[2:]}"))
    refused(cli("ask", index, "When?", option, "nobody/no-such-model"), 2, "nobody/no-such-model", "starter")


def test_adapter_of_another_base(index: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "adapter").mkdir()
    refused(cli("ask", index, "When?", "--adapter", tmp_path / "adapter"), 2, "adapter", "another base")


def test_adapter_that_is_not_there(index: Path, tmp_path: Path, cli: Cli) -> None:
    refused(cli("ask", index, "When?", "--adapter", tmp_path / "none"), 2, "no adapter folder at", "ragtune tune")


def test_tuned_arm_without_adapter(index: Path, cli: Cli) -> None:
    refused(cli("ask", index, "When?", "--arm", "tuned"), 2, "needs a tuned adapter", "ragtune decide")


# ------------------------------------------------------------------------------------------------------------- decisions


def test_decision_that_is_gone(index: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "decision.json").write_text('{"chosen": "rag", "arms": []}')
    serving.serve_decision(index, run)
    assert cli("ask", index, "When?")[0] == 0
    (run / "decision.json").unlink()
    refused(cli("ask", index, "When?"), 2, "is gone", "--decision")
    refused(cli("ask", index, "When?", "--decision", run), 2, "decision.json", "ragtune decide")
    serving.pointer(index).write_text("{")
    refused(cli("ask", index, "When?"), 2, "cannot be read", "ragtune decide")


def test_decision_whose_adapter_is_gone_is_not_served_by_another_arm(index: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    run.mkdir()
    decided = {"chosen": "tuned+rag", "arms": [{"arm": "tuned+rag", "adapter": "adapter"}]}
    (run / "decision.json").write_text(json.dumps(decided))
    refused(cli("ask", index, "When?", "--decision", run), 2, "adapter is gone", "--arm rag")
