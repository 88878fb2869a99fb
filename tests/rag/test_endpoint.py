"""Endpoints: names, retries, streams, scoring, and sentences for what a server refuses or lacks. A stub on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from rag.endpoint import EndpointConfig, EndpointGenerator, cut_at_stop, parse_endpoint
from rag.errors import ConfigError, EndpointError, UnknownModel
from rag.models import load_generator
from rag.protocols import Decoding
from tests.conformance import Stub, ask, stub_endpoint

QUICK = EndpointConfig(backoff=0.001, longest_wait=0.01)


@pytest.fixture()
def stub() -> Iterator[Stub]:
    with stub_endpoint() as server:
        yield server


@pytest.fixture()
def generator(stub: Stub) -> EndpointGenerator:
    return EndpointGenerator(f"openai:stub@{stub.url}", QUICK)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:gpt-x", ("gpt-x", "https://api.openai.com/v1")),
        ("openai:a/b:7b@http://127.0.0.1:11434/v1/", ("a/b:7b", "http://127.0.0.1:11434/v1")),
        ("openai:m@https://host/x", ("m", "https://host/x")),
    ],
)
def test_names_are_model_and_url(name: str, expected: tuple[str, str]) -> None:
    assert parse_endpoint(name) == expected


@pytest.mark.parametrize(
    "name", ["openai:", "openai:@http://x", "openai:m@ftp://x", "openai:m@http://", "openai:m@host"]
)
def test_a_broken_name_shows_how_to_write_it(name: str) -> None:
    with pytest.raises(UnknownModel, match="openai:MODEL@BASE_URL"):
        load_generator(name)


def test_a_request_carries_the_decoding_and_the_key(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-general")
    monkeypatch.setenv("RAGTUNE_API_KEY", "sk-own")
    generator = EndpointGenerator(f"openai:stub@{stub.url}", QUICK)
    (answer,) = generator.generate([ask("abc")], Decoding(max_new_tokens=50, stop=("b",), temperature=0.5, seed=3))
    assert answer.text == "Say: c" and answer.tokens_in == 7 and answer.logprob is None
    path, body, headers = stub.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-own"
    assert body["messages"] == ask("abc") and body["stop"] == ["b"]
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (50, 0.5, 3)
    assert "sk-own" not in repr(generator.__dict__["name"]) + generator.fingerprint


def test_answers_come_in_order_whatever_the_order_of_the_replies(stub: Stub, generator: EndpointGenerator) -> None:
    stub.reply = lambda messages: time.sleep(0.05 * (messages[-1]["content"] == "0")) or messages[-1]["content"]
    answers = generator.generate([ask(str(i)) for i in range(12)], Decoding(max_new_tokens=9))
    assert [a.text for a in answers] == [str(i) for i in range(12)]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_trouble_is_tried_again(stub: Stub, generator: EndpointGenerator, status: int) -> None:
    stub.failures = [(status, {"Retry-After": "0.001"}), (status, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})]
    assert generator.generate([ask("abc")])[0].text == "Say: cba"
    assert len(stub.requests) == 3
    stub.failures = [(status, {})]
    assert "".join(generator.stream(ask("abc"))) == "Say: cba"


def test_lasting_trouble_is_a_sentence(stub: Stub, generator: EndpointGenerator) -> None:
    stub.failures = [(503, {})] * 9
    with pytest.raises(EndpointError, match=r"answered 503: refused with 503.*after 4 attempts"):
        generator.generate([ask("abc")])
    stub.failures = [(401, {})]
    with pytest.raises(EndpointError, match=r"401.*RAGTUNE_API_KEY"):
        generator.generate([ask("abc")])
    assert not stub.failures, "a refusal is not tried again"


def test_an_unknown_model_and_an_absent_server_are_named(stub: Stub) -> None:
    with pytest.raises(EndpointError, match=r"404: no model other.*Is there a model 'other'"):
        EndpointGenerator(f"openai:other@{stub.url}", QUICK).generate([ask("x")])
    begin = time.monotonic()
    with pytest.raises(EndpointError, match="cannot be reached"):
        EndpointGenerator("openai:m@http://127.0.0.1:9/v1", QUICK).generate([ask("x")])
    assert time.monotonic() - begin < 20


def test_the_window_is_what_the_server_says(generator: EndpointGenerator) -> None:
    assert generator.context_window == 2048


def test_streams_carry_any_script_and_stop_the_server_when_closed(stub: Stub, generator: EndpointGenerator) -> None:
    stub.reply = lambda messages: "渡船每天 🗼 é"
    assert "".join(generator.stream(ask("?"))) == "渡船每天 🗼 é"
    stub.endless = True
    stream: Any = generator.stream(ask("?"))
    next(stream)
    stream.close()
    assert stub.closed.wait(20), "the server noticed that nobody listens"


def test_scores_are_those_of_the_completion_and_its_end(generator: EndpointGenerator) -> None:
    (values,) = generator.score([ask("abc")], ["twelve ch"])
    assert values.tolist() == pytest.approx([-0.3, -0.3, -0.3, -0.5])  # twe|lve| ch and <end>, 0.1 for each character


def test_what_a_server_lacks_is_said(stub: Stub, generator: EndpointGenerator) -> None:
    stub.prompt_logprobs = False
    with pytest.raises(EndpointError, match="prompt_logprobs"):
        generator.score([ask("abc")], ["x"])
    with pytest.raises(EndpointError, match="token ids"):
        generator.prompt_ids(ask("abc"))
    with pytest.raises(EndpointError, match="copy decoding"):
        generator.generate([ask("abc")], Decoding(copy_from=("abc",)))
    with pytest.raises(EndpointError, match="cannot load the adapter"), generator.adapter("some/folder"):
        pass
    with pytest.raises(ConfigError, match="concurrency is 0"):
        EndpointConfig(concurrency=0)


def test_stop_strings_are_cut_even_if_the_server_keeps_them() -> None:
    assert cut_at_stop("a\nb;c", ("\n", ";")) == "a"
    assert cut_at_stop("abc", ("x",)) == "abc"


@pytest.mark.parametrize("text", ["Where is the ferry?", "渡船每天七点", "a-b-c", ""])
def test_the_token_estimate_is_no_less_than_the_starter_counts_words(text: str) -> None:
    generator = EndpointGenerator("openai:m@http://127.0.0.1:9/v1")
    assert generator.count_tokens(text) >= len(text.split())
