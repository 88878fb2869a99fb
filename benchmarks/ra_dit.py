"""RA-DIT from the command line: both halves tuned on a set, over seeds, against the recipe `rag` and apart.

    python -m benchmarks.ra_dit --work DIR                                         qa/covidqa_longdoc, three seeds
    python -m benchmarks.ra_dit --sets qa/squad_v1.1 multihop/hotpotqa100:70+29    sizes of training and test for a set

Every step is our own command and goes on where it stopped when the same --work is given again: index, retriever half
(scoring included), generator half and recipe `rag` with the same number of training tokens, then the decision over all
seeds, which takes the two halves apart. Training and test questions share no document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.loop import command, make_task


def cut(file: Path, count: int) -> Path:
    """The first questions of a file, in a file of their own."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    made = file.with_name(f"{file.stem}-{count}.jsonl")
    made.write_text("".join(lines), encoding="utf-8")
    return made


def train(given: argparse.Namespace, index: Path, questions: Path, work: Path) -> dict[str, list[dict[str, Any]]]:
    """What was trained, by recipe and seed: {"adapter", "tokens", "seconds", …}."""
    made: dict[str, list[dict[str, Any]]] = {"rag": [], "ra-dit": []}
    for seed in given.seeds:
        for recipe, found in made.items():
            out, epochs = work / f"{recipe}-{seed}", given.epochs
            common = (
                index,
                "--questions",
                questions,
                "--out",
                out,
                "--recipe",
                recipe,
                "--seed",
                str(seed),
                "-k",
                str(given.k),
            )
            if recipe == "ra-dit":  # as many tokens as the recipe rag had
                planned = command("tune", *common, "--epochs", "1", "--dry-run")["tokens"]
                epochs = round(made["rag"][-1]["tokens"] / planned, 2)
            command("tune", *common, "--epochs", str(epochs))
            found.append({**json.loads((out / "ragtune.json").read_text(encoding="utf-8")), "adapter": out})
    return made


def decided(
    given: argparse.Namespace, index: Path, query: Path, files: tuple[Path, Path], out: Path, made: dict[str, Any]
) -> dict[str, Any]:
    """The decision over all seeds, with the tuned query encoder; read back from its file."""
    from agents.decide import DecideConfig, load_decision, run
    from apps.serving import make_retriever, put_query_encoder
    from rag.answer import AnswerConfig
    from rag.index import Index
    from rag.models import load_encoder, load_generator
    from rag.questions import read_questions

    answer = AnswerConfig(k=given.k)
    opened = Index.open(index, load_encoder())
    put_query_encoder(opened, query)
    retriever = make_retriever(opened, k=answer.k)
    folders = {recipe: [run["adapter"] for run in runs] for recipe, runs in made.items()}
    run(
        opened, read_questions(files[0]), read_questions(files[1]), out, generator=load_generator(), more=("ra-dit",),
        adapters={"tuned+rag": folders["rag"], "ra-dit": folders["ra-dit"]}, retrieval=retriever.config,
        answer=answer, config=DecideConfig(), timed=0,
        progress=lambda stage, done, total, detail: print(f"{stage} {done}/{total} {detail}", file=sys.stderr),
    )  # fmt: skip
    return dict(load_decision(out).data)


def told(value: dict[str, float]) -> str:
    return f"{value['mean']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"


def report(made: dict[str, list[dict[str, Any]]], half: dict[str, Any], data: dict[str, Any], k: int) -> list[str]:
    """The tables."""
    lines = ["| retrieval | before | after | difference |", "|---|---|---|---|"]
    for key, gain in half["difference"].items():
        before, after = (half[side][key]["mean"] for side in ("before", "after"))
        lines.append(f"| {key} | {before:.3f} | {after:.3f} | {told(gain)} |")
    lines += ["", f"| arm (k = {k}, tuned query encoder) | F1 | 95 % | EM | tokens, s of training, each seed |"]
    lines.append("|---|---|---|---|---|")
    for arm in data["arms"]:
        runs = made.get({"tuned+rag": "rag", "ra-dit": "ra-dit"}.get(arm["arm"], ""), [])
        spent = "; ".join(f"{run['tokens']:,} in {run['seconds']:.0f} s" for run in runs)
        f1 = arm["f1"]
        lines.append(
            f"| {arm['arm']} | {f1['mean']:.3f} | {f1['low']:.3f} to {f1['high']:.3f} | {arm['em']['mean']:.3f} | {spent} |"
        )
    for pair in data["pairs"]:
        if {pair["a"], pair["b"]} <= {"rag", "tuned+rag", "ra-dit"}:
            lines.append(
                f"\n{pair['a']} − {pair['b']}: {told(pair['difference'])}, adjusted p {pair['p_adjusted']:.3f}"
            )
    halves = data["halves"]
    cells = halves["cells"]
    lines += [
        "", f"| {halves['arm']}, F1 | retriever untouched | retriever tuned |", "|---|---|---|",
        f"| generator untouched | {cells['neither']:.3f} | {cells['retriever']:.3f} |",
        f"| generator tuned | {cells['generator']:.3f} | {cells['both']:.3f} |",
        "", "Over neither: " + "; ".join(f"{n} {told(halves[n])}" for n in ("retriever", "generator", "both"))
        + f". Interaction {told(halves['interaction'])}.",
    ]  # fmt: skip
    return lines


def measured(name: str, given: argparse.Namespace, work: Path) -> list[str]:
    """Every step on one set; its part of the section."""
    name, _, sizes = name.partition(":")
    training, tests = map(int, sizes.split("+")) if sizes else (given.train, given.tests)
    task = make_task(name, work)
    index, every = task / "index", task / "test.jsonl"
    files = cut(task / "train.jsonl", training), cut(every, tests)
    command("index", task / "corpus", "--out", index)
    began = time.perf_counter()
    shared = ("tune", index, "--questions", files[0], "--recipe", "ra-dit-retriever", "--out", task / "query")
    half = command(*shared, "--test", every)
    print(f"retriever half: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    made = train(given, index, files[0], task)
    data = decided(given, index, task / "query", files, task / "run", made)
    asked = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files[1:])
    trained = len(files[0].read_text(encoding="utf-8").splitlines())
    seeds = ", ".join(map(str, given.seeds))
    return [
        f"## RA-DIT on {name}: {trained} training questions, {asked} answered, seeds {seeds}",
        "",
        *report(made, half, data, given.k),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--sets", nargs="*", default=["qa/covidqa_longdoc"], help="folders below shared/data, each with :TRAIN+TESTS"
    )
    parser.add_argument("--train", type=int, default=200, help="training questions, where a set does not say")
    parser.add_argument("--tests", type=int, default=100, help="questions that are answered, where a set does not say")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=2.0, help="of the recipe rag")
    parser.add_argument("-k", type=int, default=3, help="passages read by each arm")
    parser.add_argument("--work", type=Path, help="keep everything here, and go on from it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        for name in given.sets:
            lines += [*([""] if lines else []), *measured(name, given, work)]
    print("<!-- results -->\n" + "\n".join(lines) + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
