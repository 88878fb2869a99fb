"""The agent on HotpotQA-100 (RAGTUNE_SHARED), untouched and tuned on demonstrations from the sample handbook."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.agent import Bench, main
from benchmarks.bench import shared_folder


def hotpot(bench: Bench) -> list[str]:
    """HotpotQA-100: its own pooled paragraphs as the corpus, untouched and tuned on the handbook's demonstrations."""
    from agents.rewards import em_reward, f1_reward, format_errors
    from rag.index import Index, sync
    from rag.prompt import strip_markers
    from rag.retrieve import Retriever
    from rag.types import Question

    shared = shared_folder()
    if shared is None:
        return ["### HotpotQA-100", "", "Skipped: the shared data were not found (RAGTUNE_SHARED)."]
    source = shared / "data/multihop/hotpotqa100"
    folder = bench.work / "hotpot"
    folder.mkdir(exist_ok=True)
    for i, line in enumerate((source / "corpus.jsonl").read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        (folder / f"{i:05}.md").write_text(f"# {row['title']}\n\n{row['text']}\n", encoding="utf-8")
    records = [json.loads(line) for line in (source / "qa.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [Question(r["id"], r["question"], tuple(r["answers"])) for r in records][: bench.given.hotpot]
    encoder = bench.encoder
    sync(bench.work / "hotpot-index", [folder], encoder)
    adapter, _ = bench.agent_adapter(0.2)
    tuned = bench.rag_adapter()
    bench.retriever, before = Retriever(Index.open(bench.work / "hotpot-index", encoder)), bench.retriever
    lines = ["| arm | F1 | EM | format errors |", "|---|---|---|---|"]
    try:
        for name, arm, folder_of, options in (
            ("rag", "rag", None, {}), ("tuned+rag", "tuned+rag", tuned, {}), ("iterative", "iterative", tuned, {}),
            ("agent, untouched, free", "agent", None, {"constrain": False}),
            ("agent, tuned, free", "agent", adapter, {"constrain": False}), ("agent, tuned", "agent", adapter, {}),
        ):  # fmt: skip
            answers = bench.answers(questions, arm, folder_of, **options)
            pairs = [(strip_markers(a.text), q) for a, q in zip(answers, questions, strict=True)]
            traces = [a.details["trace"] for a in answers if "trace" in a.details]
            wrong = f"{format_errors(traces):.1%}" if traces else ""
            f1, em = (np.mean([rule(t, q) for t, q in pairs]) for rule in (f1_reward, em_reward))
            lines.append(f"| {name} | {f1:.3f} | {em:.3f} | {wrong} |")
    finally:
        bench.retriever = before
    return ["### HotpotQA-100", "", *lines]


if __name__ == "__main__":
    raise SystemExit(main("Agent: HotpotQA-100", hotpot))
