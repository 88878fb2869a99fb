"""The agent: the speed of its loop and of collecting, on the sample handbook.

speed: recorded traces are replayed by the tuned agent, each side saying as many tokens at each step as the trace does.
"kept cache" reads only what is new; "whole transcript" reads everything again at every step, with the same model and
decoding (drafts included); the textbook loop is transformers' own `generate` on the whole transcript. Sides take turns
on each trace.
collect: the same questions, 16 runs side by side and one after another, with the reader that an agent is served with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.agent import Bench, log, main


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


def collecting(bench: Bench) -> list[str]:
    from agents.collect import CollectConfig, collect
    from agents.loop import AgentConfig
    from agents.react import ReactMode
    from agents.rewards import f1_reward
    from rag.answer import Answerer

    adapter, _ = bench.agent_adapter(0.2)
    mode = ReactMode(AgentConfig(seconds=3600))
    questions = bench.held_out()[0][: bench.given.collect]
    adapters = {"agent": str(adapter), "tuned+rag": str(bench.rag_adapter())}
    answerer = Answerer(bench.generator, bench.retriever, adapters=adapters, modes={"agent": mode})
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


if __name__ == "__main__":
    raise SystemExit(main("Agent: speed", speed, collecting))
