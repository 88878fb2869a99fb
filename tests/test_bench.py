"""The runner of `make bench`: sections are kept, replaced, and left alone when a script fails."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import bench


def test_a_section_is_added_in_order_and_replaced() -> None:
    text = bench.replace_section(bench.HEAD, "lexical", "## L\n\nfirst")
    text = bench.replace_section(text, "index", "## I")
    text = bench.replace_section(text, "training", "## T")
    assert [text.index(f"<!-- begin {name} -->") for name in ("index", "lexical", "training")] == sorted(
        text.index(f"<!-- begin {name} -->") for name in ("index", "lexical", "training")
    )
    again = bench.replace_section(text, "lexical", r"## L with \1 and \n")
    assert "first" not in again and r"\1 and \n" in again and again.count("<!-- begin lexical -->") == 1
    assert bench.replace_section(again, "lexical", "## L\n\nfirst") == text


def test_only_what_stands_between_the_markers_is_kept() -> None:
    assert bench.body("noise\n<!-- results -->\n## A\n<!-- /results -->\nmore") == "## A"
    assert bench.body("## B\n") == "## B"


def test_a_failing_script_leaves_the_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text(bench.replace_section(bench.HEAD, "index", "## kept"))
    monkeypatch.setattr(bench, "run", lambda name, arguments: None)
    assert bench.main(["index", "--out", str(results)]) == 1
    assert "## kept" in results.read_text()
    monkeypatch.setattr(bench, "run", lambda name, arguments: f"## new {list(arguments)}")
    assert bench.main(["index", "--out", str(results), "--", "--pairs", "1"]) == 0
    assert "## new ['--pairs', '1']" in results.read_text() and "## kept" not in results.read_text()


def test_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bench.main(["nonsense"])
    assert stop.value.code == 2 and "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("name", bench.scripts())
def test_every_script_can_be_imported_without_effects(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ and callable(module.main)


def test_machine_and_versions_are_named() -> None:
    assert "cores" in bench.machine() and "torch" in bench.versions()
