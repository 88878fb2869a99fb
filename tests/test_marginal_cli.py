"""Recipe and arm `ra-dit` from the command line, with fake models: rows, measured before and after, settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_jobs import Models, as_json, cli, index, models, train_file  # noqa: F401

Json = Callable[..., Any]


@pytest.fixture()
def instructions(tmp_path: Path) -> Path:
    path = tmp_path / "instructions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i}.", "output": f"{i}"}) + "\n" for i in range(40)))
    return path


def test_tune_and_measure_with_the_arm_of_the_recipe(
    index: Path,  # noqa: F811
    tmp_path: Path,
    train_file: Path,  # noqa: F811
    models: Models,  # noqa: F811
    as_json: Json,  # noqa: F811
) -> None:
    out = tmp_path / "a"
    argv = ("tune", index, "--questions", train_file, "--test", train_file, "--out", out, "--recipe", "ra-dit")
    found = as_json(*argv, "-k", "3")
    assert models.trained == [("ra-dit", 6)]
    assert found["before"]["f1"] and found["after"]["f1"]
    asked = [call.messages for call in models.generator.calls if call.adapter]
    assert asked and all(m[0]["content"].startswith("Background: ") for m in asked)


def test_instructions_are_mixed_in_and_only_here(
    index: Path,  # noqa: F811
    tmp_path: Path,
    train_file: Path,  # noqa: F811
    models: Models,  # noqa: F811
    as_json: Json,  # noqa: F811
    cli: Any,  # noqa: F811
    instructions: Path,
) -> None:
    argv = ("tune", index, "--questions", train_file, "--out", tmp_path / "a", "--instructions", instructions)
    as_json(*argv, "--recipe", "ra-dit", "-k", "6")
    assert models.trained == [("ra-dit", 2 * 6 + 1)]  # 5 % of all, besides 10 % of text, which six short files lack
    code, _, err = cli(*argv)
    assert code == 2 and "--instructions goes with --recipe ra-dit" in err


def test_ask_and_evaluate_take_the_temperature(
    index: Path,  # noqa: F811
    train_file: Path,  # noqa: F811
    models: Models,  # noqa: F811
    as_json: Json,  # noqa: F811
    cli: Any,  # noqa: F811
) -> None:
    given = as_json("ask", index, "When does the ferry leave?", "--arm", "ra-dit", "-k", "3", "--temperature", "0.02")
    plain = as_json("ask", index, "When does the ferry leave?", "--arm", "ra-dit", "-k", "3")
    assert given["details"]["temperature"] == 0.02 and plain["details"]["temperature"] == 0.1
    assert max(given["details"]["weights"]) > max(plain["details"]["weights"])
    assert sum(given["details"]["weights"]) == pytest.approx(1, abs=1e-4)
    found = as_json("evaluate", index, "--questions", train_file, "--arm", "ra-dit", "--temperature", "0.5")
    assert found["arm"] == "ra-dit" and found["n"] == 2
    code, _, err = cli("ask", index, "Why?", "--arm", "ra-dit", "--temperature", "0")
    assert code == 2 and "temperature is 0" in err
    code, _, err = cli("ask", index, "Why?", "--arm", "replug")
    assert code == 2 and "probabilities of next tokens" in err
