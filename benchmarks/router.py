"""The router on a mixture of kinds: what it is worth beside one arm for all, chance, single signals and the oracle.

The mixture is built from the shared sets: answerable and unanswerable questions of SQuAD 2.0, general knowledge that no
document holds, two-hop questions of HotpotQA, calculations over the tables of TAT-QA, and arithmetic over figures that
two questions of SQuAD ask for; all their documents stand in one corpus, and training and test share none. The arms are
trained and measured by `ragtune decide`, the router learns by `ragtune route` (nested cross-validation by document on
the test questions). Then the time of choosing is taken, each question searched and routed in turn.

    python -m benchmarks.router --work DIR [--arms iterative,flare] [--agent-minutes M] [--run RUN]

With `--run` an existing run folder of the mixture is routed, and nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import shared_folder
from benchmarks.loop import command

SHARES = {
    "answerable": 0.35,
    "unanswerable": 0.15,
    "general": 0.15,
    "two-hop": 0.15,
    "calculation": 0.10,
    "arithmetic": 0.10,
}
"""Share of each kind in the test questions, as far as the sets reach."""
OF_SUITE = 30
"""Questions of the general suite that are in the mixture, as when the recorded figures were taken."""
TRAINED = ("answerable", "unanswerable", "two-hop", "calculation")
"""Kinds that the arms are trained on: general knowledge has no documents to train on."""


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _file_name(prefix: str, name: str) -> str:
    return f"{prefix}-{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[:60]}-{zlib.crc32(name.encode('utf-8')):08x}.txt"


def _labelled(folder: Path, prefix: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Documents by file name, and the questions of a set in corpus.jsonl and qa.jsonl."""
    names, documents = {}, {}
    for row in _lines(folder / "corpus.jsonl"):
        names[row["_id"]] = _file_name(prefix, row["_id"])
        documents[names[row["_id"]]] = f"{row.get('title') or ''}\n\n{row['text']}\n".lstrip()
    questions = []
    for row in _lines(folder / "qa.jsonl"):
        evidence = []
        for source in row["doc_ids"]:
            quote = next((a for a in row["answers"] if a in documents[names[source]]), "")
            evidence.append({"source": names[source], **({"quote": quote} if quote else {})})
        impossible = bool(row.get("is_impossible"))
        kind = "two-hop" if prefix == "hotpot" else "unanswerable" if impossible else "answerable"
        questions.append(
            {
                "id": f"{prefix}-{row['id']}",
                "question": row["question"],
                "answers": [] if impossible else row["answers"],
                "evidence": evidence,
                "kind": kind,
                **({"unanswerable": True} if impossible else {}),
            }
        )
    return documents, questions


def _calculations(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Tables of TAT-QA as text, and the questions over them that want a number from two others."""
    documents, questions = {}, []
    for context in json.loads(path.read_text(encoding="utf-8")):
        source = _file_name("tatqa", context["table"]["uid"])
        rows = [" | ".join(cell.strip() for cell in row) for row in context["table"]["table"]]
        texts = [paragraph["text"] for paragraph in sorted(context["paragraphs"], key=lambda p: p["order"])]
        documents[source] = "\n\n".join([*texts, "\n".join(rows)]) + "\n"
        for q in context["questions"]:
            if q["answer_type"] == "arithmetic" and q["scale"] != "percent":
                value = float(q["answer"])
                exact = f"{value:g}"
                forms = list(dict.fromkeys([exact, f"{value:,.10g}", f"{value:.2f}".rstrip("0").rstrip(".")]))
                questions.append(
                    {
                        "id": f"tatqa-{q['uid']}",
                        "question": q["question"],
                        "answers": forms,
                        "evidence": [{"source": source}],
                        "kind": "calculation",
                    }
                )
    return documents, questions


def _general(shared: Path) -> list[dict[str, Any]]:
    """Questions of general knowledge: our own suite, and open questions that models are said to know without search."""
    from agents.checks import GENERAL

    found = [(question, list(answers)) for question, answers in GENERAL[:OF_SUITE]]
    for row in _lines(shared / "data/rag_robust/skr_adaptive_retrieval.jsonl"):
        if row["judgement"] != "ir_better":
            found.append((row["question"], [answer for answer in row["golden_answers"] if answer.strip()]))
    return [
        {"id": f"general-{i}", "question": question, "answers": answers, "kind": "general"}
        for i, (question, answers) in enumerate(found)
    ]


def _arithmetic(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Sums, differences and multiples of figures that these questions ask for, two documents each where they can."""
    from agents.demonstrations import compose
    from rag.types import Evidence, Question

    asked = [
        Question(r["id"], r["question"], tuple(r["answers"]), tuple(Evidence(**e) for e in r["evidence"])) for r in rows
    ]
    tasks = [task for task in compose(asked, 10 * count, seed=seed) if task.kind == "calculation"][:count]
    return [
        {
            "id": f"arithmetic-{task.question.id}",
            "question": task.question.question,
            "answers": list(task.question.answers),
            "evidence": [{"source": e.source, "quote": e.quote} for e in task.question.evidence],
            "kind": "arithmetic",
        }
        for task in tasks
    ]


def mixture(shared: Path, out: Path, *, train: int = 400, test: int = 600, seed: int = 0) -> Mapping[str, int]:
    """Writes `out`/corpus, train.jsonl and test.jsonl; returns how many test questions there are of each kind.

    Questions that share a document are all on one side. Every second group of documents is for training. A question
    that is asked twice, word for word, is taken once.
    """
    from agents.router_outcomes import group_by_source
    from rag.metrics import normalise

    squad, first = _labelled(shared / "data/qa/squad_v2.0", "squad")
    hotpot, second = _labelled(shared / "data/multihop/hotpotqa100", "hotpot")
    tables, third = _calculations(shared / "data/qa/tatqa/tatqa_dataset_dev.json")
    rows = [*first, *second, *third, *_general(shared)]
    groups = group_by_source([[e["source"] for e in row.get("evidence", ())] for row in rows]).tolist()
    chance = random.Random(seed)
    order = sorted(set(groups))
    chance.shuffle(order)
    side = {group: i % 2 for i, group in enumerate(order)}
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {kind: [] for kind in SHARES} for name in ("train", "test")
    }
    known: set[str] = set()
    for row, group in zip(rows, groups, strict=True):
        unanswered = not row["answers"] and not row.get("unanswerable")  # SKR has a row whose answer is empty
        if unanswered or normalise(row["question"]) in known:
            continue
        known.add(normalise(row["question"]))
        name = "test" if side[group] or row["kind"] not in TRAINED else "train"
        parts[name][row["kind"]].append(row)
    parts["test"]["arithmetic"] = _arithmetic(parts["test"]["answerable"], round(test * SHARES["arithmetic"]), seed)
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    for name, text in {**squad, **hotpot, **tables}.items():
        (out / "corpus" / name).write_text(text, encoding="utf-8")
    counts: dict[str, int] = {}
    for name, wanted in (("train", train), ("test", test)):
        kinds = TRAINED if name == "train" else tuple(SHARES)
        whole = sum(SHARES[kind] for kind in kinds)
        chosen = []
        for kind in kinds:
            pool = parts[name][kind]
            chance.shuffle(pool)
            chosen += pool[: round(wanted * SHARES[kind] / whole)]
        chance.shuffle(chosen)
        (out / f"{name}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8"
        )
        counts = {kind: sum(row["kind"] == kind for row in chosen) for kind in kinds}
    return counts


def choosing_times(run: Path, index: Path, questions: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of searching and of choosing, question by question in turn; the first question only warms up."""
    from agents.router import load_router
    from agents.router_features import DEPTH
    from rag.index import Index
    from rag.models import load_encoder
    from rag.retrieve import Retriever

    router = load_router(run)
    assert router is not None, "ragtune route has written it"
    opened = Index.open(index)
    opened = Index.open(index, load_encoder(opened.manifest.encoder))
    retriever = Retriever(opened)
    times: dict[str, list[float]] = {"search": [], "choose": []}
    for turn, question in enumerate([questions[0], *questions]):
        begin = time.perf_counter()
        vectors = opened.embed_queries([question])
        passages = retriever.search_many([question], DEPTH, vectors=vectors)[0]
        middle = time.perf_counter()
        router.choose(question, passages, vector=vectors[0], sure=(-1.0, -1.0) if router.asks_generator else ())
        end = time.perf_counter()
        if turn:
            times["search"].append(1000 * (middle - begin))
            times["choose"].append(1000 * (end - middle))
    return times


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in body),
    ]


def show(found: Mapping[str, Any], times: Mapping[str, Sequence[float]], counts: Mapping[str, int]) -> str:
    """The section of RESULTS.md."""
    import numpy as np

    from agents.router_report import shown

    kinds: list[Sequence[str]] = [("kind", "n", "best single", "router", "oracle", "the router takes")]
    for kind, row in found["kinds"].items():
        shares = sorted(((share, arm) for arm, share in row["shares"].items() if share >= 0.05), reverse=True)
        figures = [f"{row[name]:.3f}" for name in ("best_single", "router", "oracle")]
        kinds.append((kind, str(row["n"]), *figures, ", ".join(f"{arm} {share:.0%}" for share, arm in shares)))
    mixed = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    timed = [
        f"{name} p50 {np.percentile(values, 50):.1f} ms, p95 {np.percentile(values, 95):.1f} ms"
        for name, values in times.items()
    ]
    lines = [
        f"## Router: {found['questions']} questions of {len(counts) or 'several'} kinds"
        + (f" ({mixed})" if mixed else ""),
        "",
        f"{found['reason']} A second is worth {found['worth_of_a_second']:.4f} of F1; choosing was charged with "
        f"{1000 * (found['search_seconds'] + found['choose_seconds']):.0f} ms for arms that do not search themselves. "
        f"Calibration error {found['calibration_error']:.3f}; model: {found['recipe']}. * best single arm, in hindsight.",
        "",
        *_markdown(shown(found)),
        "",
        *_markdown(kinds),
        "",
        f"Choosing, over {len(times['choose'])} questions: {'; '.join(timed)}.",
    ]
    return "\n".join(lines)


def agent_adapter(work: Path, minutes: float, composed: int) -> Path:
    """An agent's adapter, tuned on right runs that are built from the evidence of the mixture's training questions."""
    index, traces, out = work / "index", work / "traces.jsonl", work / "agent"
    if not (out / "ragtune.json").is_file():
        made = ("--demonstrate", "--compose", str(composed), "--restart")
        command("collect", index, "--questions", work / "train.jsonl", "--out", traces, *made)
        command("tune", index, "--questions", traces, "--out", out, "--recipe", "agent", "--minutes", str(minutes))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, help="keep the mixture, the index and the run here, and go on from them")
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=15.0, help="longest training of each tuned arm")
    parser.add_argument("--arms", default="", help="further arms, as `ragtune decide --arms` takes them")
    parser.add_argument("--adapters", default="", help="their adapters, as `ragtune decide --adapters` takes them")
    parser.add_argument("--agent-minutes", type=float, help="tune an agent for so long, and measure it as one more arm")
    parser.add_argument("--composed", type=int, default=200, help="questions made of others that it is tuned on, too")
    parser.add_argument("--run", type=Path, help="route this run folder; nothing is trained or answered")
    parser.add_argument("--uncertainty", action="store_true", help="the router also looks at the model's first tokens")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("The shared data sets are not here; set RAGTUNE_SHARED to their folder.")
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        counts: Mapping[str, int] = {}
        run = given.run or work / "run"
        if given.run is None:
            counts = mixture(shared, work, train=given.train, test=given.test, seed=given.seed)
            command("index", work / "corpus", "--out", work / "index")
            if given.agent_minutes:
                given.arms = ",".join(filter(None, (given.arms, "agent")))
                made = f"agent={agent_adapter(work, given.agent_minutes, given.composed)}"
                given.adapters = ",".join(filter(None, (given.adapters, made)))
            more = [x for name in ("arms", "adapters") if (value := getattr(given, name)) for x in (f"--{name}", value)]
            command(
                *("decide", work / "index", "--train", work / "train.jsonl", "--questions", work / "test.jsonl"),
                *("--out", run, "--minutes", str(given.minutes), *more),
            )
        found = command("route", run, *(["--uncertainty"] if given.uncertainty else []))
        from agents.record import load_decision

        asked = [row["question"] for row in _lines(run / "rows-rag.jsonl")]
        times = choosing_times(run, load_decision(run).index, asked[:100])
        print("<!-- results -->\n" + show(found, times, counts) + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
