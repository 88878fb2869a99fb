"""The agent: what tuning on traces does to answers, on the sample handbook.

    python -m benchmarks.agent                        quality
    python -m benchmarks.agent_speed                  speed of the loop, and of collecting
    python -m benchmarks.agent_curve                  the share of traces: eta 0, 0.2, 0.5, 1
    python -m benchmarks.agent_hotpot                 HotpotQA-100, untouched and tuned

Held-out questions of the handbook are about one document, made of two, or with arithmetic (documents of the test side
only). Adapters are trained here, on demonstrations from the training side; those in --work are used again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HANDBOOK = Path(__file__).resolve().parents[1] / "samples" / "handbook"


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """What the parts share: index, model, demonstrations; adapters trained once each."""

    def __init__(self, work: Path, given: argparse.Namespace) -> None:
        from rag.index import Index, sync
        from rag.models import load_encoder, load_generator
        from rag.questions import read_kinds, read_questions
        from rag.retrieve import Retriever

        self.work, self.given = work, given
        self.encoder = encoder = load_encoder("starter")
        # a copy, for an index is of the folders it was made from: another checkout's would be documents of their own
        shutil.copytree(HANDBOOK / "documents", work / "documents", dirs_exist_ok=True)
        sync(work / "index", [work / "documents"], encoder)
        self.retriever = Retriever(Index.open(work / "index", encoder))
        self.generator: Any = load_generator("starter")
        self.train = read_questions(HANDBOOK / "train.jsonl")
        self.test = read_questions(HANDBOOK / "test.jsonl")
        self.kinds = {**read_kinds(HANDBOOK / "train.jsonl"), **read_kinds(HANDBOOK / "test.jsonl")}
        self._demonstrations: list[dict[str, Any]] = []

    def demonstrations(self) -> list[dict[str, Any]]:
        from agents.demonstrations import Demonstrator, compose, demonstrate, plain_tasks
        from agents.loop import AgentConfig
        from agents.tools import Corpus, Toolkit

        if not self._demonstrations:
            corpus = Corpus(self.retriever)
            names = AgentConfig().tools
            maker = Demonstrator(
                lambda reader: Toolkit(corpus, names=names, reader=reader),
                observation_tokens=160,
                count_tokens=self.generator.count_tokens,
            )
            tasks = [*plain_tasks(self.train, self.kinds), *compose(self.train, self.given.composed, seed=0)]
            self._demonstrations, counts = demonstrate(tasks, maker)
            log(f"demonstrations: {counts}")
        return self._demonstrations

    def held_out(self) -> tuple[list[Any], list[str]]:
        """Questions and kinds: plain ones of the test side, and composed ones."""
        from agents.demonstrations import compose

        plain = [q for q in self.test if self.kinds[q.id] != "chinese"]
        natural = [q for q in plain if self.kinds[q.id] == "comparison"]
        others = [q for q in plain if self.kinds[q.id] != "comparison"][: self.given.plain]
        made = compose(self.test, self.given.held_out, seed=1)
        return (
            [*natural, *others, *(t.question for t in made)],
            ["two-hop"] * len(natural) + ["one document"] * len(others) + [t.kind for t in made],
        )

    def agent_adapter(self, eta: float) -> tuple[Path, Any]:
        from tuning.recipes import agent
        from tuning.train import encode_rows, train
        from tuning.trainer import plan_steps

        traces = self.demonstrations()
        general = agent.own_rows(self.generator) if eta < 1 else []
        rows, report = agent.agent_rows(traces, general, eta=eta, count_tokens=self.generator.count_tokens)
        steps = self.given.steps
        out = self.work / f"agent-{eta}-{f'{steps}steps' if steps else f'{self.given.minutes:g}min'}"
        if (out / "ragtune.json").is_file():
            return out, report
        config = replace(agent.TRAIN, max_minutes=None if steps else self.given.minutes)
        if steps:  # of equally many tokens, so that how fast the machine is does not show
            encoded, _ = encode_rows(rows, self.generator.tokenizer, max_seq_length=config.max_seq_length)
            epoch = len(plan_steps([len(r.ids) for r in encoded], config.tokens_per_step, 1, config.seed))
            config = replace(config, num_train_epochs=(steps - 0.5) / epoch)
        log(f"training eta {eta}: {report}")
        done = train(rows, out=out, config=config, recipe="agent", progress=lambda *a: log(str(a)))
        log(f"{done.tokens} tokens in {done.seconds:.0f} s, {done.steps} of {done.planned_steps} steps")
        return out, report

    def rag_adapter(self) -> Path:
        from rag.answer import AnswerConfig
        from tuning.recipes import recipe
        from tuning.train import train

        out = self.work / f"rag-{self.given.minutes:g}min"
        if (out / "ragtune.json").is_file():
            return out
        made, answer = recipe("rag"), AnswerConfig()
        found = self.retriever.search_many([q.question for q in self.train], 20)
        config = replace(made.ROWS, k=answer.k, context_tokens=answer.context_tokens, style=answer.style)
        rows, _ = made.rows(
            self.train,
            found,
            config=config,
            count_tokens=self.generator.count_tokens,
            chunks=self.retriever.index.chunks,
        )
        train(rows, out=out, config=replace(made.TRAIN, max_minutes=self.given.minutes), recipe="rag")
        return out

    def answers(self, questions: Sequence[Any], arm: str, adapter: Path | None, **options: Any) -> list[Any]:
        from agents.loop import AgentConfig
        from agents.react import ReactMode
        from rag.answer import AnswerConfig, Answerer

        adapters = {arm: str(adapter)} if adapter else {}
        if adapter and arm == "agent":  # what its questions are answered with; without an adapter it is plain rag
            adapters["tuned+rag"] = str(self.rag_adapter())
        answerer = Answerer(
            self.generator, self.retriever, AnswerConfig(), adapters=adapters,
            modes={"agent": ReactMode(AgentConfig(**options))},
        )  # fmt: skip
        began = time.perf_counter()
        made = answerer.answer_many([q.question for q in questions], arm=arm)
        log(f"{arm} {adapter} {options}: {len(questions)} questions in {time.perf_counter() - began:.0f} s")
        return made


def quality(bench: Bench) -> list[str]:
    from agents.rewards import em_reward, f1_reward, format_errors
    from rag.prompt import strip_markers
    from rag.statistics import paired_bootstrap

    questions, kinds = bench.held_out()
    agent, report = bench.agent_adapter(0.2)
    tuned = bench.rag_adapter()
    few = slice(None, None, max(1, round(len(questions) / bench.given.untouched)))  # the untouched agent is slow
    arms = {
        "rag": bench.answers(questions, "rag", None),
        "tuned+rag": bench.answers(questions, "tuned+rag", tuned),
        "agent, tuned, free": bench.answers(questions, "agent", agent, constrain=False),
        "agent, tuned": bench.answers(questions, "agent", agent),
        "iterative": bench.answers(questions, "iterative", tuned),
        "agent, untouched, free": bench.answers(questions[few], "agent", None, constrain=False),
        "agent, untouched": bench.answers(questions[few], "agent", None),
    }
    names = sorted(set(kinds))
    lines = [f"| arm | {' | '.join(f'{k} F1 / EM' for k in names)} | format errors | s/question |"]
    lines.append("|---" * (len(names) + 3) + "|")
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for arm, answers in arms.items():
        texts = [strip_markers(a.text) for a in answers]
        part = few if "untouched" in arm else slice(None)
        pairs = list(zip(texts, questions[part], strict=True))
        f1, em = (np.array([rule(t, q) for t, q in pairs]) for rule in (f1_reward, em_reward))
        scores[arm] = f1, em
        cells = []
        for kind in names:
            mine = np.array([k == kind for k in kinds[part]])
            cells.append(f"{f1[mine].mean():.3f} / {em[mine].mean():.3f} ({mine.sum()})")
        traces = [a.details["trace"] for a in answers if "trace" in a.details]
        wrong = f"{format_errors(traces):.1%}" if traces else ""
        lines.append(f"| {arm} | {' | '.join(cells)} | {wrong} | {np.mean([a.seconds for a in answers]):.2f} |")
    hard = np.array([k != "one document" for k in kinds])
    clusters = [q.evidence[0].source for q, one in zip(questions, hard, strict=True) if one]
    f1_gain, em_gain = (
        paired_bootstrap(one[hard], two[hard], clusters=clusters)
        for one, two in zip(scores["agent, tuned"], scores["tuned+rag"], strict=True)
    )
    return [
        "### Tuned on demonstrations", "", *lines, "",
        f"Tuned agent minus tuned+rag on {hard.sum()} two-hop and calculation questions (drawn by their first document, "
        f"of {len(set(clusters))}): F1 {f1_gain.mean:+.3f} "
        f"({f1_gain.low:+.3f} to {f1_gain.high:+.3f}), EM {em_gain.mean:+.3f} ({em_gain.low:+.3f} to "
        f"{em_gain.high:+.3f}). eta {report.eta}: traces are {report.token_share:.0%} of the tokens, "
        f"{report.trained_share:.0%} of those trained on.",
    ]  # fmt: skip


def main(title: str, *sections: Callable[[Bench], list[str]]) -> int:
    """What the agent's benchmarks share: flags, the bench, and the section that they print."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--minutes", type=float, default=6.0, help="of each training")
    parser.add_argument("--steps", type=int, help="optimizer steps of each training of the agent, instead of minutes")
    parser.add_argument("--composed", type=int, default=220, help="training questions made of others")
    parser.add_argument("--held-out", type=int, default=100, help="test questions made of others")
    parser.add_argument("--plain", type=int, default=60, help="test questions about one document")
    parser.add_argument("--untouched", type=int, default=100, help="about so many for the untouched agent")
    parser.add_argument("--etas", nargs="*", type=float, default=[0.0, 0.2, 0.5, 1.0], help="shares of traces")
    parser.add_argument("--traces", type=int, default=12, help="traces that are replayed")
    parser.add_argument("--collect", type=int, default=100, help="questions that are collected for")
    parser.add_argument("--hotpot", type=int, default=100, help="questions of HotpotQA")
    parser.add_argument("--work", type=Path, help="folder for index and adapters (default: a temporary one)")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="ragtune-agent-"))
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, given)
    out = [f"## {title}", ""]
    for section in sections:
        out += [*section(bench), ""]
    print("<!-- results -->\n" + "\n".join(out) + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main("Agent", quality))
