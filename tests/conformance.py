"""One suite for each model protocol, run over every implementation and the fakes (tests/rag/test_models_conformance.py).

Subclass, give the fixture `encoder` or `generator`, and pytest collects the rules. What an implementation cannot do it
says with an EndpointError; that is conforming, anything else is not.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.errors import EndpointError
from rag.protocols import Decoding, Encoder, Generation, Generator, Message

TEXTS = ("The ferry leaves at seven.", "A deposit of 250 crowns.", "渡船每天七点四十分出发。", "ferry", "x " * 700)


def ask(text: str) -> list[Message]:
    """The messages of one question."""
    return [{"role": "user", "content": text}]


PROMPTS = [ask("Where is the ferry?"), ask("What does a return ticket to Korr cost, and who sells it?"), ask("Why?")]


class EncoderConformance:
    """Rules for `rag.protocols.Encoder`."""

    def test_is_an_encoder(self, encoder: Encoder) -> None:
        assert isinstance(encoder, Encoder)
        assert encoder.name and encoder.fingerprint and encoder.dimension > 0 and encoder.max_tokens > 0

    def test_rows_are_unit_float32_in_order(self, encoder: Encoder) -> None:
        vectors = encoder.encode(TEXTS)
        assert vectors.shape == (len(TEXTS), encoder.dimension) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        for i in (0, 3):
            np.testing.assert_allclose(encoder.encode([TEXTS[i]])[0], vectors[i], atol=2e-2)

    def test_nothing_gives_an_empty_array(self, encoder: Encoder) -> None:
        assert encoder.encode([]).shape == (0, encoder.dimension)

    def test_an_empty_text_still_has_a_vector(self, encoder: Encoder) -> None:
        assert np.isfinite(encoder.encode([""])).all()

    def test_counts_tokens_without_special_ones(self, encoder: Encoder) -> None:
        assert encoder.count_tokens("") == 0
        assert 0 < encoder.count_tokens("ferry") <= encoder.count_tokens("ferry to Korr")

    def test_progress_ends_with_the_total(self, encoder: Encoder) -> None:
        seen: list[tuple[int, int]] = []
        encoder.encode(TEXTS, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (len(TEXTS), len(TEXTS))
        assert [d for d, _ in seen] == sorted(d for d, _ in seen)

    def test_queries_are_encoded_too(self, encoder: Encoder) -> None:
        assert encoder.encode(["ferry"], kind="query").shape == (1, encoder.dimension)


class GeneratorConformance:
    """Rules for `rag.protocols.Generator`."""

    decoding = Decoding(max_new_tokens=6)

    def test_is_a_generator(self, generator: Generator) -> None:
        assert isinstance(generator, Generator)
        assert generator.name and generator.fingerprint and generator.context_window > 0

    def test_one_generation_for_each_prompt_in_order(self, generator: Generator) -> None:
        together = generator.generate(PROMPTS, self.decoding)
        assert len(together) == len(PROMPTS)
        for prompt, generation in zip(PROMPTS, together, strict=True):
            assert isinstance(generation, Generation) and generation.tokens_in > 0
            assert generation.logprob is None or (math.isfinite(generation.logprob) and generation.logprob <= 0)
            assert generator.generate([prompt], self.decoding)[0].text == generation.text

    def test_nothing_gives_nothing(self, generator: Generator) -> None:
        assert generator.generate([]) == []
        assert generator.score([], []) == []

    def test_each_prompt_may_have_its_own_decoding(self, generator: Generator) -> None:
        each = [Decoding(max_new_tokens=n) for n in (1, 3, 6)]
        generations = generator.generate(PROMPTS, each)
        for prompt, decoding, generation in zip(PROMPTS, each, generations, strict=True):
            assert generator.generate([prompt], decoding)[0].text == generation.text

    def test_streamed_pieces_are_the_generated_text(self, generator: Generator) -> None:
        for prompt in PROMPTS:
            pieces = list(generator.stream(prompt, self.decoding))
            assert all(pieces)
            assert "".join(pieces) == generator.generate([prompt], self.decoding)[0].text

    def test_a_stream_can_be_closed_before_its_end(self, generator: Generator) -> None:
        stream = generator.stream(PROMPTS[0], self.decoding)
        next(stream, None)
        stream.close()  # type: ignore[attr-defined]
        assert list(stream) == []

    def test_text_ends_before_a_stop_string(self, generator: Generator) -> None:
        text = generator.generate([PROMPTS[1]], self.decoding)[0].text
        if len(text) < 3:
            pytest.skip("the answer is too short to be stopped")
        stop = text[len(text) // 2 :][:2]
        stopped = generator.generate([PROMPTS[1]], Decoding(max_new_tokens=6, stop=(stop,)))[0].text
        assert stopped == text[: text.find(stop)]
        assert "".join(generator.stream(PROMPTS[1], Decoding(max_new_tokens=6, stop=(stop,)))) == stopped

    def test_progress_ends_with_the_total(self, generator: Generator) -> None:
        seen: list[tuple[int, int]] = []
        generator.generate(PROMPTS, self.decoding, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (len(PROMPTS), len(PROMPTS))

    def test_counts_tokens(self, generator: Generator) -> None:
        assert generator.count_tokens("") == 0
        assert 0 < generator.count_tokens("ferry") <= generator.count_tokens("ferry to Korr")

    def test_prompt_ids_are_ints_or_refused(self, generator: Generator) -> None:
        try:
            ids = generator.prompt_ids(PROMPTS[0])
        except EndpointError:
            return
        assert ids and all(type(token) is int for token in ids)
        assert ids == generator.prompt_ids(PROMPTS[0])

    def test_scores_have_one_value_for_each_token_and_the_end(self, generator: Generator) -> None:
        try:
            scores = generator.score(PROMPTS[:2], ["18 crowns", "Korr"])
        except EndpointError:
            return
        assert len(scores) == 2
        for values, completion in zip(scores, ["18 crowns", "Korr"], strict=True):
            assert values.ndim == 1 and (values <= 0).all() and np.isfinite(values).all()
            assert len(values) >= 2 and len(values) <= len(completion) + 1

    def test_no_adapter_is_the_base(self, generator: Generator) -> None:
        before = generator.generate([PROMPTS[0]], self.decoding)[0].text
        with generator.adapter(None):
            assert generator.generate([PROMPTS[0]], self.decoding)[0].text == before


# --- starters, tiny models and a stub server -----------------------------------------------------------------------------------


@functools.cache
def starter_generator() -> Any:
    """The real starter in fp32, loaded once for each test process."""
    from rag.models import load_generator

    return load_generator(device="cpu", dtype="fp32")


@functools.cache
def starter_encoder() -> Any:
    """The real starter encoder, loaded once for each test process."""
    from rag.models import load_encoder

    return load_encoder(device="cpu", dtype="fp32")


def tiny_model(vocabulary: int, *, seed: int = 0, layers: int = 2, **changes: Any) -> Any:
    """A random Llama of a few thousand weights beside its embedding; logits far enough apart to have no ties."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.4,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def tiny_folder(folder: Path, tokenizer: Any, **settings: Any) -> Path:
    """A model folder on disk with a real tokenizer and tiny random weights."""
    tiny_model(len(tokenizer), **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Stub:
    """What the stub server does and has seen. `failures` are (status, headers) answered first, one for each request."""

    url: str = ""
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    prompt_logprobs: bool = True
    reply: Callable[[list[Message]], str] = lambda messages: f"Say: {messages[-1]['content'][::-1]}"
    closed: threading.Event = field(default_factory=threading.Event)
    endless: bool = False


def _tokens(text: str) -> list[str]:
    """Pieces of three characters: a tokenizer that anyone can follow."""
    return [text[i : i + 3] for i in range(0, len(text), 3)]


def _answer(stub: Stub, body: dict[str, Any]) -> list[str]:
    pieces = _tokens(stub.reply(body["messages"]))[: body["max_tokens"]]
    text = "".join(pieces)
    for stop in body.get("stop") or ():
        text = text.split(stop)[0]
    return _tokens(text)


def _prompt_entries(body: dict[str, Any]) -> list[Any]:
    tokens = [t for m in body["messages"] for t in (f"<{m['role']}>", *_tokens(m["content"]), "<end>", "\n")]
    tokens += ["<assistant>"] if body.get("add_generation_prompt", True) else []
    return [None, *({str(i): {"logprob": -0.1 * len(t), "decoded_token": t}} for i, t in enumerate(tokens[1:]))]


@contextmanager
def stub_endpoint() -> Iterator[Stub]:
    """An OpenAI-compatible server on loopback that answers by a rule."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "stub", "max_model_len": 2048}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append((self.path, body, dict(self.headers)))
            if stub.failures:
                status, headers = stub.failures.pop(0)
                return self._send(status, {"error": {"message": f"refused with {status}"}}, headers)
            if body["model"] != "stub":
                return self._send(404, {"error": {"message": f"no model {body['model']}"}})
            if "prompt_logprobs" in body and stub.prompt_logprobs:
                return self._send(200, {"choices": [{"message": {}}], "prompt_logprobs": _prompt_entries(body)})
            pieces = _answer(stub, body)
            if not body.get("stream"):
                usage = {"prompt_tokens": 7, "completion_tokens": len(pieces)}
                return self._send(200, {"choices": [{"message": {"content": "".join(pieces)}}], "usage": usage})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                while True:
                    for piece in pieces:
                        line = json.dumps({"choices": [{"delta": {"content": piece}}]}, ensure_ascii=False)
                        self.wfile.write(f"data: {line}\n\n".encode())
                        self.wfile.flush()
                    if not stub.endless:
                        self.wfile.write(b"data: [DONE]\n\n")
                        return None
            except OSError:
                stub.closed.set()
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
