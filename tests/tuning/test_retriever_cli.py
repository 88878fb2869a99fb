"""The retriever's half from the command line: tune, search, ask, evaluate, decide, reencode; and the ways to go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps import serving
from apps.cli import main
from rag.questions import write_questions
from rag.types import Question
from tests.fakes import FakeGenerator
from tests.tuning.tiny_encoder import FACTS, questions, save_encoder

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.fixture()
def index(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.setattr(serving, "load_generator", lambda name: FakeGenerator("seven [1]"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for file, text in FACTS.items():
        (corpus / file).write_text(text, encoding="utf-8")
    assert main(["index", str(corpus), "--out", str(tmp_path / "index"), "--encoder", str(tiny), "-q"]) == 0
    write_questions(tmp_path / "train.jsonl", questions())
    held_out = [replace(q, id=f"t{q.id}", question="Say: " + q.question) for q in questions()[:2]]
    write_questions(
        tmp_path / "test.jsonl", [Question("t9", "What stands behind the old mill ?", ("shed",), ()), *held_out]
    )
    capsys.readouterr()
    return tmp_path / "index"


@pytest.fixture()
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: object, code: int = 0) -> Any:
        found = main([str(a) for a in argv])
        shown = capsys.readouterr()
        assert found == code, shown.err
        return json.loads(shown.out) if code == 0 and "--json" in argv else shown.err

    return run


def tune(index: Path, out: Path, cli: Run, *more: object, recipe: str = "retriever", code: int = 0) -> Any:
    return cli(
        "tune", index, "--questions", index.with_name("train.jsonl"), "--out", out, "--recipe", recipe,
        "--learning-rate", "5e-3", "--epochs", "3", "--json", "-q", *more, code=code,
    )  # fmt: skip


def test_from_questions_to_a_served_query_encoder(index: Path, tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "query"
    told = tune(index, out, cli, "--test", tmp_path / "test.jsonl")
    assert told["kind"] == "query-encoder" and told["origins"]["question"] > 0
    assert set(told["before"]) == set(told["after"]) == set(told["difference"])
    assert {"dense recall@1", "hybrid ndcg@10"} <= set(told["difference"])
    record = json.loads((out / "ragtune.json").read_text())
    assert set(record["before"]) == set(told["before"]) and record["recipe"] == "retriever"
    assert "| dense recall@1 |" in (out / "README.md").read_text()
    assert tune(index, out, cli)["reused"]

    asked = "When does the ferry to Korr leave ?"
    plain = cli("search", index, asked, "--mode", "dense", "--json", "-q")
    tuned = cli("search", index, asked, "--mode", "dense", "--query-encoder", out, "--json", "-q")
    assert tuned[0]["source"] == "ferry.txt"
    assert [p["score"] for p in tuned] != [p["score"] for p in plain]
    answer = cli("ask", index, asked, "--query-encoder", out, "--json", "-q")
    assert answer["answer"]
    measured = cli("evaluate", index, "--questions", tmp_path / "train.jsonl", "--query-encoder", out, "--json", "-q")
    assert measured["recall@1"]["mean"] > 0

    run = tmp_path / "run"
    cli("decide", index, "--questions", tmp_path / "train.jsonl", "--out", run, "--query-encoder", out, "--json", "-q")
    assert serving.served_query_encoder(index) == out.resolve()
    served = cli("search", index, asked, "--mode", "dense", "--json", "-q")
    assert [p["score"] for p in served] == [p["score"] for p in tuned]


def test_both_sides_are_measured_aside_and_take_effect_by_reencode(index: Path, tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "both"
    told = tune(index, out, cli, "--test", tmp_path / "test.jsonl", recipe="retriever-both")
    assert told["kind"] == "encoder" and told["after"]["dense recall@1"]["mean"] >= 0
    assert "holds an encoder of both sides" in cli("search", index, "ferry", "--query-encoder", out, code=2)
    before = cli("search", index, "ferry", "--json", "-q")
    assert before, "the index serves as it was"
    done = cli("reencode", index, "--encoder", out, "--json", "-q")
    assert done["embedded"] == done["chunks"] == len(FACTS)
    assert json.loads((index / "manifest.json").read_text())["encoder"] == str(out.resolve())
    assert cli("search", index, "ferry", "--json", "-q")
    assert cli("reencode", index, "--encoder", out, "--json", "-q")["embedded"] == 0


def test_training_questions_in_the_test_set_are_refused_and_listed(index: Path, tmp_path: Path, cli: Run) -> None:
    leaked = [
        replace(questions()[0], id="same"),
        replace(questions()[3], id="nearly", question="Who serves the last warm meals ?"),
    ]
    write_questions(tmp_path / "leak.jsonl", leaked)
    said = tune(index, tmp_path / "t", cli, "--test", tmp_path / "leak.jsonl", code=2)
    assert "same" in said and "nearly" in said and "take them out" in said
    assert not (tmp_path / "t").exists()


def test_dry_run_and_unknown_folders(index: Path, tmp_path: Path, cli: Run) -> None:
    told = tune(index, tmp_path / "t", cli, "--dry-run")
    assert told["dry_run"] and told["examples"] >= 5 and told["steps"] >= 1
    assert not (tmp_path / "t").exists()
    assert "no query encoder" in cli("search", index, "ferry", "--query-encoder", tmp_path / "nothing", code=2)


def test_a_query_encoder_that_is_gone_is_not_served_without(index: Path, tmp_path: Path, cli: Run) -> None:
    serving.pointer(index).write_text(json.dumps({"format": 1, "query_encoder": "gone"}))
    assert "which is gone" in cli("search", index, "ferry", code=2)


def test_a_query_encoder_cannot_take_the_documents_place(index: Path, tmp_path: Path, cli: Run) -> None:
    tune(index, tmp_path / "query", cli)
    assert "--query-encoder" in cli("reencode", index, "--encoder", tmp_path / "query", code=2)


def test_a_teacher_is_asked_once_and_kept(index: Path, tmp_path: Path, cli: Run) -> None:
    told = tune(index, tmp_path / "lsr", cli, recipe="ra-dit-retriever")
    assert told["kind"] == "query-encoder"
    assert (tmp_path / "lsr.preferences.jsonl").read_text().count("\n") >= 5


def test_attention_cannot_be_read_behind_an_endpoint(index: Path, tmp_path: Path, cli: Run) -> None:
    assert "atlas-pdist" in tune(index, tmp_path / "t", cli, recipe="atlas-adist", code=1)
