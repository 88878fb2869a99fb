"""The agent: speed of its loop and of collecting, and what tuning on traces does, on the sample handbook.

    python -m benchmarks.agent                        quality
    python -m benchmarks.agent_speed                  speed, collect
    python -m benchmarks.agent_curve                  the share of traces: eta 0, 0.2, 0.5, 1
    python -m benchmarks.agent_hotpot                 HotpotQA-100 (RAGTUNE_SHARED), untouched and tuned

speed: recorded traces are replayed by the tuned agent, each side saying as many tokens at each step as the trace does.
"kept cache" reads only what is new; "whole transcript" reads everything again at every step, with the same model and
decoding (drafts included); the textbook loop is transformers' own `generate` on the whole transcript. Sides take turns
on each trace.
collect: the same questions, 16 runs side by side and one after another.
quality: held-out questions of the handbook about one document, made of two, and with arithmetic (documents of the test
side only). Adapters are trained here, on demonstrations from the training side, unless given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import shared_folder

HANDBOOK = Path(__file__).resolve().parents[1] / "samples" / "handbook"
PARTS = ("speed", "collect", "quality", "curve", "hotpot")


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
        sync(work / "index", [HANDBOOK / "documents"], encoder)
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
        from tuning.train import train

        traces = self.demonstrations()
        general = agent.own_rows(self.generator) if eta < 1 else []
        rows, report = agent.agent_rows(traces, general, eta=eta, count_tokens=self.generator.count_tokens)
        if self.given.adapter and eta == agent.ETA:
            return self.given.adapter, report
        out = self.work / f"agent-{eta}"
        config = replace(agent.TRAIN, max_minutes=self.given.minutes)
        log(f"training eta {eta}: {report}")
        done = train(rows, out=out, config=config, recipe="agent", progress=lambda *a: log(str(a)))
        log(f"{done.tokens} tokens in {done.seconds:.0f} s, {done.steps} of {done.planned_steps} steps")
        return out, report

    def rag_adapter(self) -> Path:
        from rag.answer import AnswerConfig
        from tuning.recipes import recipe
        from tuning.train import train

        if self.given.tuned_rag:
            return self.given.tuned_rag
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
        out = self.work / "tuned-rag"
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


# -------------------------------------------------------------------------- speed


def speed(bench: Bench) -> list[str]:
    """Seconds of replaying traces with the tuned agent, three ways, taking turns."""
    adapter, _ = bench.agent_adapter(0.2)
    with bench.generator.adapter(str(adapter)):
        return _speed(bench)


def _speed(bench: Bench) -> list[str]:
    traces = sorted(bench.demonstrations(), key=lambda t: (-len(t["steps"]), t["id"]))[: bench.given.traces]
    shot_tokens = [0, 3]
    lines = [
        "| worked traces before the question | steps | textbook `generate` | whole transcript | kept cache | gain |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for shots in shot_tokens:
        seconds = {"textbook": 0.0, "whole": 0.0, "kept": 0.0}
        asks = [_asks(trace, traces[-shots:] if shots else []) for trace in traces]
        _replay(bench, asks[0], "kept"), _replay(bench, asks[0], "textbook")  # warms up
        for turn, steps in enumerate(asks):
            ways = list(seconds)
            for way in [*ways[turn % 3 :], *ways[: turn % 3]]:
                seconds[way] += _replay(bench, steps, way)
        count = sum(map(len, asks)) / len(asks)
        each = {way: value / len(asks) for way, value in seconds.items()}
        lines.append(
            f"| {shots} | {count:.1f} | {each['textbook']:.2f} s | {each['whole']:.2f} s | {each['kept']:.2f} s | "
            f"{each['textbook'] / each['kept']:.1f}× textbook, {each['whole'] / each['kept']:.1f}× whole |"
        )
    return ["### Speed of the loop", "", *lines]


def _asks(trace: dict[str, Any], shots: Sequence[dict[str, Any]]) -> list[tuple[list[dict[str, str]], str]]:
    """(conversation so far, what is said next) of each step."""
    plain = [{"role": m["role"], "content": m["content"]} for m in trace["messages"]]
    before = [{"role": m["role"], "content": m["content"]} for s in shots for m in s["messages"][1:]]
    return [([plain[0], *before, *plain[1:i]], m["content"]) for i, m in enumerate(plain) if m["role"] == "assistant"]


def _replay(bench: Bench, steps: Sequence[tuple[list[dict[str, str]], str]], way: str) -> float:
    from agents.loop import Ask
    from agents.speakers import CachedSpeaker

    generator = bench.generator
    begun = time.perf_counter()
    if way == "textbook":
        import torch

        for messages, said in steps:
            ids = torch.tensor([generator.prompt_ids(messages)])
            size = generator.count_tokens(said)
            with torch.inference_mode(), generator.hold()():  # with the adapter on
                generator.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=size, min_new_tokens=size,
                    do_sample=False, pad_token_id=generator.tokenizer.pad_token_id,
                )  # fmt: skip
        return time.perf_counter() - begun
    talker = CachedSpeaker(generator, rows=1, capacity=2000)
    for messages, said in steps:
        if way == "whole":
            talker.stepper.tokens.clear()
        # as the loop asks: thought, then tool, then argument
        thought, _, action = said.partition("\nAction: ")
        tool, _, argument = action.partition("[")
        head = f"{thought}\nAction:"
        _say(talker, Ask(messages, "Thought:", generator.count_tokens(thought) - 2))
        if way == "whole":
            talker.stepper.tokens.clear()
        talker.complete(
            {0: Ask(messages, head, 8, options=(" ask[", " search[", " calculate[", " lookup[", " finish["))}
        )
        if way == "whole":
            talker.stepper.tokens.clear()
        _say(talker, Ask(messages, f"{head} {tool}[", generator.count_tokens(argument)))
    return time.perf_counter() - begun


def _say(talker: Any, ask: Any) -> None:
    """Exactly as many tokens as asked for: the end of the turn does not count."""
    ends, talker.generator.tokens.ends = talker.generator.tokens.ends, ()
    try:
        talker.complete({0: replace(ask, max_tokens=max(1, ask.max_tokens))})
    finally:
        talker.generator.tokens.ends = ends


# ------------------------------------------------------------------------ collect


def collecting(bench: Bench) -> list[str]:
    from agents.collect import CollectConfig, collect
    from agents.loop import AgentConfig
    from agents.react import ReactMode
    from agents.rewards import f1_reward
    from rag.answer import Answerer

    adapter, _ = bench.agent_adapter(0.2)
    mode = ReactMode(AgentConfig(seconds=3600))
    questions = bench.held_out()[0][: bench.given.collect]
    answerer = Answerer(bench.generator, bench.retriever, adapters={"agent": str(adapter)}, modes={"agent": mode})
    seconds = {}
    for rows in (16, 1):
        report = collect(
            answerer, mode, questions, bench.work / f"collected-{rows}.jsonl", reward=f1_reward,
            config=CollectConfig(rows=rows), resume=False,
        )  # fmt: skip
        seconds[rows] = report.seconds
        log(f"collect with {rows} rows: {report.seconds:.0f} s, {report.summary['reward']}")
    return [
        "### Collecting", "", "| questions | 16 side by side | one by one | gain |", "|---|---|---|---|",
        f"| {len(questions)} | {seconds[16]:.0f} s | {seconds[1]:.0f} s | {seconds[1] / seconds[16]:.1f}× |",
    ]  # fmt: skip


# ------------------------------------------------------------------------ quality


def quality(bench: Bench) -> list[str]:
    from agents.rewards import em_reward, f1_reward, format_errors
    from rag.prompt import strip_markers
    from rag.statistics import paired_bootstrap

    questions, kinds = bench.held_out()
    agent, report = bench.agent_adapter(0.2)
    tuned = bench.rag_adapter()
    arms = {
        "rag": bench.answers(questions, "rag", None),
        "tuned+rag": bench.answers(questions, "tuned+rag", tuned),
        "agent, untouched, free": bench.answers(questions, "agent", None, constrain=False),
        "agent, untouched": bench.answers(questions, "agent", None),
        "agent, tuned, free": bench.answers(questions, "agent", agent, constrain=False),
        "agent, tuned": bench.answers(questions, "agent", agent),
        "iterative": bench.answers(questions, "iterative", tuned),
    }
    names = sorted(set(kinds))
    lines = [f"| arm | {' | '.join(f'{k} F1 / EM' for k in names)} | format errors | s/question |"]
    lines.append("|---" * (len(names) + 3) + "|")
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for arm, answers in arms.items():
        texts = [strip_markers(a.text) for a in answers]
        f1 = np.array([f1_reward(t, q) for t, q in zip(texts, questions, strict=True)])
        em = np.array([em_reward(t, q) for t, q in zip(texts, questions, strict=True)])
        scores[arm] = f1, em
        cells = []
        for kind in names:
            mine = np.array([k == kind for k in kinds])
            cells.append(f"{f1[mine].mean():.3f} / {em[mine].mean():.3f} ({mine.sum()})")
        traces = [a.details["trace"] for a in answers if "trace" in a.details]
        wrong = f"{format_errors(traces):.1%}" if traces else ""
        lines.append(f"| {arm} | {' | '.join(cells)} | {wrong} | {np.mean([a.seconds for a in answers]):.2f} |")
    hard = np.array([k != "one document" for k in kinds])
    pairs = zip(scores["agent, tuned"], scores["tuned+rag"], strict=True)
    f1_gain, em_gain = (paired_bootstrap(one[hard], two[hard]) for one, two in pairs)
    return [
        "### Tuned on demonstrations", "", *lines, "",
        f"Tuned agent minus tuned+rag on {hard.sum()} two-hop and calculation questions: F1 {f1_gain.mean:+.3f} "
        f"({f1_gain.low:+.3f} to {f1_gain.high:+.3f}), EM {em_gain.mean:+.3f} ({em_gain.low:+.3f} to "
        f"{em_gain.high:+.3f}). eta {report.eta}: traces are {report.token_share:.0%} of the tokens, "
        f"{report.trained_share:.0%} of those trained on.",
    ]  # fmt: skip


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
    for eta in (0.0, 0.2, 0.5, 1.0):
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


def hotpot(bench: Bench) -> list[str]:
    """HotpotQA-100: its own pooled paragraphs as the corpus, untouched and tuned on the handbook's demonstrations."""
    import json

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


def main(default: str = "quality", title: str = "Agent") -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=default, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=6.0, help="of each training")
    parser.add_argument("--composed", type=int, default=220, help="training questions made of others")
    parser.add_argument("--held-out", type=int, default=100, help="test questions made of others")
    parser.add_argument("--plain", type=int, default=60, help="test questions about one document")
    parser.add_argument("--traces", type=int, default=12, help="traces that are replayed")
    parser.add_argument("--collect", type=int, default=100, help="questions that are collected for")
    parser.add_argument("--hotpot", type=int, default=100)
    parser.add_argument("--adapter", type=Path, help="agent adapter, instead of training it")
    parser.add_argument("--tuned-rag", type=Path, help="adapter of tuned+rag, instead of training it")
    parser.add_argument("--work", type=Path, help="folder for index and adapters (default: a temporary one)")
    given = parser.parse_args()
    parts = given.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"no part called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    work = given.work or Path(tempfile.mkdtemp(prefix="ragtune-agent-"))
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, given)
    sections = {"speed": speed, "collect": collecting, "quality": quality, "curve": curve, "hotpot": hotpot}
    out = [f"## {title}", ""]
    for part in parts:
        out += [*sections[part](bench), ""]
    print("<!-- results -->\n" + "\n".join(out) + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
