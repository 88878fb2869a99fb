"""The agent: what each share of traces gives (eta 0, 0.2, 0.5, 1), on the sample handbook."""

from __future__ import annotations

import numpy as np

from benchmarks.agent import Bench, main


def curve(bench: Bench) -> list[str]:
    """What each share of traces gives on held-in and held-out questions, and on general ones."""
    from agents.checks import GeneralSuite
    from agents.rewards import f1_reward, format_errors
    from rag.answer import AnswerConfig
    from rag.prompt import strip_markers

    questions, kinds = bench.held_out()
    suite = GeneralSuite(bench.generator, AnswerConfig())
    lines = [
        "| eta | token share | two-hop and calculation F1 | one document F1 | format errors, free | general before → after |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for eta in bench.given.etas:
        adapter, report = bench.agent_adapter(eta)
        answers = bench.answers(questions, "agent", adapter, constrain=False)
        f1 = np.array([f1_reward(strip_markers(a.text), q) for a, q in zip(answers, questions, strict=True)])
        hard = np.array([k != "one document" for k in kinds])
        general = suite.compare("agent", str(adapter))
        wrong = format_errors([a.details["trace"] for a in answers])
        lines.append(
            f"| {eta} | {report.token_share:.0%} | {f1[hard].mean():.3f} | {f1[~hard].mean():.3f} | {wrong:.1%} | "
            f"{general.before.mean:.0%} → {general.after.mean:.0%} |"
        )
    return ["### Share of traces", "", *lines]


if __name__ == "__main__":
    raise SystemExit(main("Agent: share of traces", curve))
