"""Many people at once: our server against a plain `gr.ChatInterface` over `generate`, turn by turn.

Each client asks `--turns` questions, one after the other with its history, about the sample handbook; both sides get
the same five passages in the same prompt, greedy, up to `--max-new-tokens`. Their side is what a user would write: the
model as `from_pretrained` gives it, one `model.generate` for each message, Gradio's own queue with its defaults, asked
through `gradio_client`. Ours is what `ragtune chat` serves, asked through `/v1/chat/completions` with `stream`. Each is
a process of its own, started as its users start it: ours requests large pages of memory (apps/huge_pages.py), a plain
script does not. Loading is not counted. As the plain side answers one after the other, it is measured with fewer
clients (`--plain-clients`).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from apps.huge_pages import VARIABLE, request_huge_pages

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


def serve_plain(index: Path, port: int, max_new_tokens: int) -> None:
    """The textbook page: retrieve, template, generate. Each answer prints the tokens of its prompt and its own."""
    import gradio as gr
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rag.index import Index
    from rag.models import load_encoder
    from rag.names import resolve
    from rag.prompt import render
    from rag.retrieve import Retriever
    from rag.types import Turn

    retriever, answer = Retriever(Index.open(index, load_encoder("starter"))), answering(max_new_tokens)
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
        print(json.dumps([int(ids["input_ids"].shape[1]), len(new)]), flush=True)
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip() or "-"

    page = gr.ChatInterface(respond, api_name="chat", analytics_enabled=False)
    page.launch(server_name="127.0.0.1", server_port=port, quiet=True, share=False)


def serve_ours(index: Path, port: int, max_new_tokens: int) -> None:
    """What `ragtune chat` does, with room for all clients in the queue."""
    from apps.server import Access, launch
    from apps.service import Service, ServiceConfig

    config = ServiceConfig(waiting=1000, answer_seconds=3600)
    service = Service.open(index, answer=answering(max_new_tokens), config=config)
    page, _ = launch(service, port=port, access=Access(log=None))
    page.block_thread()


def answering(max_new_tokens: int) -> Any:
    """How both sides answer."""
    from rag.answer import AnswerConfig

    return AnswerConfig(k=K, context_tokens=2048, max_new_tokens=max_new_tokens, style="cited")


@contextmanager
def process_of(side: str, index: Path, max_new_tokens: int) -> Iterator[tuple[str, IO[str]]]:
    """(address, what it printed) of a side in a process of its own, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    environ = {k: v for k, v in os.environ.items() if k != VARIABLE}
    line = [sys.executable, "-m", "benchmarks.serve", "--side", side, "--index", str(index), "--port", str(port)]
    line += ["--max-new-tokens", str(max_new_tokens)]
    url = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(line, env=environ, stdout=said)
        try:
            while not _answers(url + ("health" if side == "ours" else "")):
                if process.poll() is not None:
                    raise RuntimeError(f"the server of {side} ended with {process.returncode}")
                time.sleep(0.5)
            yield url, said
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:  # not there yet, or (503) still loading
        return False


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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--plain-clients", type=int, default=10)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="each side takes this many turns, alternating")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side == "ours":
        request_huge_pages()
        serve_ours(given.index, given.port, given.max_new_tokens)
        return 0
    if given.side == "theirs":
        serve_plain(given.index, given.port, given.max_new_tokens)
        return 0

    from rag.index import sync
    from rag.models import load_encoder
    from rag.questions import read_questions

    questions = [q.question for q in read_questions(SAMPLE / "test.jsonl")]
    ours, theirs = Side(), Side()
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "idx"
        sync(index, [SAMPLE / "documents"], load_encoder("starter"))
        with (
            process_of("ours", index, given.max_new_tokens) as (url, _),
            process_of("theirs", index, given.max_new_tokens) as (plain_url, said),
        ):
            ask_ours(url, questions, 1, Side(), 0)  # warm-up
            for turn in range(given.rounds):
                for name in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
                    if name == "ours":
                        crowd(given.clients, ours, lambda i: ask_ours(url, questions, given.turns, ours, i))
                    else:
                        ready = threading.Barrier(given.plain_clients)
                        crowd(
                            given.plain_clients,
                            theirs,
                            lambda i, ready=ready: ask_plain(plain_url, questions, given.turns, theirs, i, ready),
                        )
                    print(f"round {turn + 1}: {name} done", file=sys.stderr, flush=True)
            said.seek(0)
            counted = [json.loads(line) for line in said if line.startswith("[")]
            theirs.prompt_tokens, theirs.new_tokens = (sum(c[i] for c in counted) for i in (0, 1))
    report(given, ours, theirs)
    return 1 if ours.lost else 0


def report(given: Any, ours: Side, theirs: Side) -> None:
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
    print("<!-- /results -->")


if __name__ == "__main__":
    raise SystemExit(main())
