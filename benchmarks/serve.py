"""Many people at once: our server against a plain `gr.ChatInterface` over `generate`, turn by turn in one process.

Each client asks `--turns` questions, one after the other with its history, about the sample handbook; both sides get
the same five passages in the same prompt, greedy, up to `--max-new-tokens`. Their side is what a user would write: the
model as `from_pretrained` gives it, one `model.generate` for each message, Gradio's own queue with its defaults, asked
through `gradio_client`. Ours is `ragtune chat`, asked through `/v1/chat/completions` with `stream`. Loading is not
counted. As the plain side answers one after the other, it is measured with fewer clients (`--plain-clients`).
`--minutes` keeps our server under load for that long and tells whether its memory grows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

K = 5
SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "handbook"


@dataclass
class Side:
    """What was seen of one side; times in seconds."""

    seconds: float = 0.0
    answers: int = 0
    lost: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, first: float, whole: float, prompt: int, new: int) -> None:
        with self.lock:
            self.answers += 1
            self.prompt_tokens += prompt
            self.new_tokens += new
            self.first.append(first)
            self.whole.append(whole)


def at(values: Sequence[float], share: float) -> float:
    """A percentile, by the nearest rank."""
    ordered = sorted(values) or [float("nan")]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def crowd(clients: int, side: Side, talk: Callable[[int], None]) -> None:
    """All clients at once, each in its own thread."""

    def one(i: int) -> None:
        try:
            talk(i)
        except Exception as error:
            side.lost += 1
            print(f"client {i}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    began = time.perf_counter()
    threads = [threading.Thread(target=one, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    side.seconds += time.perf_counter() - began


def plain_page(retriever: Any, answer: Any, max_new_tokens: int) -> tuple[Any, str, Any]:
    """The textbook page: retrieve, template, generate. Returns it, its address and the tokenizer."""
    import gradio as gr
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rag.names import resolve
    from rag.prompt import render
    from rag.types import Turn

    folder = str(resolve("starter", "generator").folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model.eval()

    def text_of(content: Any) -> str:
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

    def respond(message: str, history: list[dict[str, Any]]) -> str:
        said = [text_of(m["content"]) for m in history]
        turns = [Turn(q, a) for q, a in zip(said[::2], said[1::2], strict=False)]
        messages = render(
            message,
            retriever.search(message, K),
            count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            budget=answer.context_tokens,
            history=turns,
            style=answer.style,
        ).messages
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[0, ids["input_ids"].shape[1] :]
        counted.append((int(ids["input_ids"].shape[1]), len(new)))
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip() or "-"

    counted: list[tuple[int, int]] = []
    page = gr.ChatInterface(respond, api_name="chat", analytics_enabled=False)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, share=False)
    return page, url, counted


def ask_plain(url: str, questions: Sequence[str], turns: int, side: Side, i: int, ready: threading.Barrier) -> None:
    """One visitor of the plain page."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    ready.wait(600)
    for turn in range(turns):
        began = time.perf_counter()
        client.predict(questions[(i * turns + turn) % len(questions)], api_name="/chat")
        took = time.perf_counter() - began
        side.add(took, took, 0, 0)  # it shows nothing before the whole answer


def ask_ours(url: str, questions: Sequence[str], turns: int, side: Side, i: int) -> None:
    """One client of our API."""
    import httpx

    messages: list[dict[str, str]] = []
    with httpx.Client(timeout=1200) as client:
        for turn in range(turns):
            messages.append({"role": "user", "content": questions[(i * turns + turn) % len(questions)]})
            body = {"model": "rag", "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
            began, first, text, usage = time.perf_counter(), None, "", {}
            with client.stream("POST", f"{url}v1/chat/completions", json=body) as reply:
                if reply.status_code != 200:
                    raise RuntimeError(f"status {reply.status_code}: {reply.read()[:200]!r}")
                for line in reply.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    usage = event.get("usage") or usage
                    for choice in event.get("choices", ()):
                        piece = choice["delta"].get("content") or ""
                        if piece and first is None:
                            first = time.perf_counter() - began
                        text += piece
            took = time.perf_counter() - began
            side.add(first or took, took, usage["prompt_tokens"], usage["completion_tokens"])
            messages.append({"role": "assistant", "content": text})


def memory() -> float:
    """Resident memory of this process, MiB."""
    import psutil

    return float(psutil.Process().memory_info().rss / 2**20)


def steady(url: str, questions: Sequence[str], minutes: float) -> list[float]:
    """Memory every ten seconds while eight clients ask without a pause."""
    end, side, seen = time.monotonic() + 60 * minutes, Side(), [memory()]

    def talk(i: int) -> None:
        turn = 0
        while time.monotonic() < end:
            ask_ours(url, questions[i + turn :] or questions, 1, side, 0)
            turn += 1

    watcher = threading.Thread(target=crowd, args=(8, side, talk))
    watcher.start()
    while watcher.is_alive():
        watcher.join(10)
        seen.append(memory())
    print(f"{side.answers} answers, {side.lost} lost in {minutes:g} minutes", file=sys.stderr)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--plain-clients", type=int, default=10)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="each side takes this many turns, alternating")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=0.0, help="afterwards: our server under load for this long")
    given = parser.parse_args()

    from apps.server import Access, launch
    from apps.service import Service, ServiceConfig
    from rag.answer import AnswerConfig
    from rag.index import sync
    from rag.models import load_encoder
    from rag.questions import read_questions

    answer = AnswerConfig(k=K, context_tokens=2048, max_new_tokens=given.max_new_tokens, style="cited")
    questions = [q.question for q in read_questions(SAMPLE / "test.jsonl")]
    with tempfile.TemporaryDirectory() as folder:
        sync(Path(folder) / "idx", [SAMPLE / "documents"], load_encoder("starter"))
        config = ServiceConfig(waiting=10 * given.clients, answer_seconds=3600)
        service = Service.open(Path(folder) / "idx", answer=answer, config=config)
        page, url = launch(service, access=Access(log=None))
        service.wait(600)
        assert service.answerer is not None, service.state.message
        plain, plain_url, counted = plain_page(service.answerer.retriever, answer, given.max_new_tokens)
        ours, theirs = Side(), Side()
        ask_ours(url, questions, 1, Side(), 0)  # warm-up
        for turn in range(given.rounds):
            sides = ("ours", "theirs") if turn % 2 else ("theirs", "ours")
            for name in sides:
                if name == "ours":
                    crowd(given.clients, ours, lambda i: ask_ours(url, questions, given.turns, ours, i))
                else:
                    ready = threading.Barrier(given.plain_clients)
                    crowd(
                        given.plain_clients,
                        theirs,
                        lambda i, ready=ready: ask_plain(plain_url, questions, given.turns, theirs, i, ready),
                    )
                print(f"round {turn + 1}: {name} done, {memory():.0f} MiB", file=sys.stderr, flush=True)
        theirs.prompt_tokens, theirs.new_tokens = (sum(c[i] for c in counted) for i in (0, 1))
        plain.close(verbose=False)
        seen = steady(url, questions, given.minutes) if given.minutes else []
        page.close(verbose=False)
    report(given, ours, theirs, seen)
    return 1 if ours.lost else 0


def report(given: Any, ours: Side, theirs: Side, seen: Sequence[float]) -> None:
    """The Markdown."""
    print("<!-- results -->")
    print(
        f"## Serving: {given.clients} clients, {given.turns} turns each, {K} passages, up to {given.max_new_tokens} "
        "new tokens\n"
    )
    print(
        "| | clients | answers | lost | seconds | answers/s | prompt + new tokens/s | new tokens/s | first token p50 / "
        "p95 | whole answer p50 / p95 |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, clients, side in (
        ("`gr.ChatInterface` over `generate`", given.plain_clients, theirs),
        ("`ragtune chat`", given.clients, ours),
    ):
        total = side.prompt_tokens + side.new_tokens
        print(
            f"| {name} | {clients} | {side.answers} | {side.lost} | {side.seconds:.0f} | "
            f"{side.answers / side.seconds:.2f} | {total / side.seconds:.0f} | {side.new_tokens / side.seconds:.1f} | "
            f"{at(side.first, 0.5):.1f} / {at(side.first, 0.95):.1f} s | {at(side.whole, 0.5):.1f} / "
            f"{at(side.whole, 0.95):.1f} s |"
        )
    mine = (ours.prompt_tokens + ours.new_tokens) / ours.seconds
    other = (theirs.prompt_tokens + theirs.new_tokens) / theirs.seconds
    print(
        f"\nTokens per second, prompts and answers together: {mine / other:.1f} times the plain page's; answers per "
        f"second: {ours.answers / ours.seconds / (theirs.answers / theirs.seconds):.1f} times."
    )
    if seen:
        half = seen[len(seen) // 2 :]
        print(
            f"\nMemory of our process under {given.minutes:g} minutes of load by 8 clients: {seen[0]:.0f} MiB at the "
            f"beginning, {statistics.mean(half):.0f} MiB over the second half, {max(seen):.0f} MiB at most, "
            f"{seen[-1]:.0f} MiB at the end."
        )
    print("<!-- /results -->")


if __name__ == "__main__":
    raise SystemExit(main())
