"""The server for programs, driven by the official clients: OpenAI's and LangChain's."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.api import PATHS, Deps, build_api
from apps.auth import Door, set_password
from apps.metrics import Gate, Metrics
from apps.service import Loaders, Service, ServiceConfig
from apps.walls import Bounded, Forked, Guarded, Logged, Walled
from rag.index import sync
from tests.apps import calls
from tests.conftest import CORPUS
from tests.fakes import FakeEncoder, FakeGenerator

openai = pytest.importorskip("openai")


class Server:
    """The walls and the API on a port, with an empty page; `lines` is its log."""

    def __init__(self, service: Service, *, door: Door | None = None, gate: Gate | None = None) -> None:
        import uvicorn

        self.service, self.lines, self.metrics = service, list[str](), Metrics()
        self.gate = gate or service.gate

        async def page(scope: Any, receive: Any, send: Any) -> None:
            user = dict(scope["headers"]).get(b"x-ragtune-user", b"")
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"page for " + user})

        app: Any = Forked(page, api=build_api(Deps(service, self.gate, self.metrics, door or Door())), paths=PATHS)
        app = Guarded(Bounded(app, upload_bytes=2**20), door=door or Door())
        app = Walled(Logged(app, metrics=self.metrics, log=self.lines.append))
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def line(self, text: str) -> str:
        """The last line of the log with this text; it is written just after the client has its answer."""
        until = time.monotonic() + calls.PATIENCE
        while not (found := [line for line in self.lines if text in line]) and time.monotonic() < until:
            time.sleep(0.02)
        return found[-1]

    def stop(self) -> None:
        self.server.should_exit = True


def make_service(folder: Path, reply: Any = "The ferry leaves at 07:40 [1]. See [7].", **settings: Any) -> Service:
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for name in ("ferry.md", "kitchen.txt"):
        (corpus / name).write_text(CORPUS[name], encoding="utf-8")
    encoder = FakeEncoder()
    sync(folder / "idx", [corpus], encoder)
    service = Service.open(
        folder / "idx", loaders=Loaders(lambda _: encoder, lambda _: FakeGenerator(reply)), encoder="fake-encoder",
        **settings,
    )  # fmt: skip
    service.start()
    assert service.wait(30).phase == "ready"
    return service


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(make_service(tmp_path_factory.mktemp("api")))
    yield made
    made.stop()


ASK: list[Any] = [{"role": "user", "content": "When does the ferry leave?"}]


def test_a_completion_by_the_official_client(server: Server) -> None:
    done = server.client().chat.completions.create(model="rag", messages=ASK)
    assert done.choices[0].message.content == "The ferry leaves at 07:40 [1]. See."
    assert done.choices[0].finish_reason == "stop" and done.object == "chat.completion" and done.model == "rag"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens > 0
    ours = done.model_extra["ragtune"]
    assert ours["arm"] == "rag" and ours["citations"][0]["source"] == "ferry.md" and ours["citations"][0]["number"] == 1
    assert ours["passages"] and ours["ignored"] == []


def test_a_streamed_completion_adds_up_and_ends(server: Server) -> None:
    stream = server.client().chat.completions.create(
        model="rag", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "The ferry leaves at 07:40 [1]. See."
    ends = [c for c in chunks if c.choices and c.choices[0].finish_reason]
    assert len(ends) == 1 and ends[0].model_extra["ragtune"]["citations"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({c.id for c in chunks}) == 1


def test_the_events_are_as_documented(server: Server) -> None:
    body = {"model": "rag", "messages": ASK, "stream": True}
    with calls.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    assert json.loads(lines[0][6:])["object"] == "chat.completion.chunk"


def test_models_are_the_arms_that_can_answer(server: Server) -> None:
    names = [m.id for m in server.client().models.list()]
    assert names == ["auto", "base", "rag", "fake-encoder"] or {"auto", "base", "rag", "fake-encoder"} <= set(names)
    assert "tuned+rag" not in names
    assert server.client().models.retrieve("rag").id == "rag"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("gpt-9")


def test_history_reaches_the_model_and_a_system_message_is_named_as_ignored(server: Server) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be a pirate."},
        {"role": "user", "content": "When does the ferry leave?"},
        {"role": "assistant", "content": "At 07:40."},
        {"role": "user", "content": [{"type": "text", "text": "And what does it cost?"}]},
    ]
    done = server.client().chat.completions.create(model="rag", messages=messages, top_p=0.5)
    ours = done.model_extra["ragtune"]
    assert "When does the ferry leave?" in ours["query"] and ours["query"].endswith("And what does it cost?")
    assert ours["ignored"] == ["top_p", "messages: system"]


def test_temperature_seed_stop_and_length(server: Server) -> None:
    client = server.client()
    done = client.chat.completions.create(
        model="base", messages=ASK, max_tokens=2, temperature=0.7, seed=5, stop=["\n\n"]
    )
    assert done.choices[0].finish_reason == "length" and done.choices[0].message.content == "The ferry"
    generator: Any = server.service.answerer.generator  # type: ignore[union-attr]
    decoding = generator.calls[-1].decoding
    assert (decoding.max_new_tokens, decoding.temperature, decoding.seed) == (2, 0.7, 5) and "\n\n" in decoding.stop


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": "   "}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_bad_requests_name_the_parameter(server: Server, change: dict[str, Any], param: str) -> None:
    reply = calls.post(f"{server.url}/v1/chat/completions", json={"model": "rag", "messages": ASK, **change})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"} and error["message"]


def test_what_is_no_json_and_what_is_no_path(server: Server) -> None:
    assert (
        calls.post(f"{server.url}/v1/chat/completions", content=b"{").json()["error"]["message"].startswith("The body")
    )
    assert calls.post(f"{server.url}/v1/chat/completions", content=b"[]").status_code == 400
    assert calls.get(f"{server.url}/v1/nothing").json()["error"]["code"] == "unknown_url"
    assert calls.get(f"{server.url}/v1/chat/completions").status_code == 405


def test_unknown_and_unavailable_models_are_404_for_the_client(server: Server) -> None:
    for name, code in (("gpt-9", "model_not_found"), ("tuned+rag", "model_not_available")):
        with pytest.raises(openai.NotFoundError) as missing:
            server.client().chat.completions.create(model=name, messages=ASK)
        assert missing.value.code == code


def test_embeddings_by_the_official_client(server: Server) -> None:
    client = server.client()
    made = client.embeddings.create(model="fake-encoder", input=["the ferry", "the kitchen"])  # base64 inside
    plain = client.embeddings.create(model="fake-encoder", input="the ferry", encoding_format="float")
    assert len(made.data) == 2 and len(made.data[0].embedding) == 64 and made.usage.prompt_tokens == 4
    assert made.data[0].embedding == pytest.approx(plain.data[0].embedding)
    assert sum(x * x for x in made.data[1].embedding) == pytest.approx(1.0, abs=1e-5)
    for wrong in (
        {"input": []},
        {"input": [[1, 2]]},
        {"input": "x", "dimensions": 3},
        {"input": "x", "encoding_format": "z"},
    ):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="fake-encoder", **wrong)  # type: ignore[arg-type]


def test_langchain_chats_and_embeds(server: Server) -> None:
    models = pytest.importorskip("langchain_openai")
    chat = models.ChatOpenAI(model="rag", base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)
    said = chat.invoke([("system", "x"), ("human", "When does the ferry leave?")])
    assert said.content == "The ferry leaves at 07:40 [1]. See." and said.usage_metadata["total_tokens"] > 0
    assert "".join(c.content for c in chat.stream("When does the ferry leave?")) == said.content
    vectors = models.OpenAIEmbeddings(
        model="fake-encoder", base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_query("ferry")) == 64


def test_health_metrics_and_the_log_without_a_word_of_text(server: Server) -> None:
    server.client().chat.completions.create(model="rag", messages=ASK)
    health = calls.get(f"{server.url}/health").json()
    assert health["status"] == "ok" and health["documents"] == 2 and health["waiting"] == 0
    text = calls.get(f"{server.url}/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['ragtune_answers_total{arm="rag",outcome="answered"}']) >= 1
    assert float(samples["ragtune_first_token_seconds_count"]) >= 1 and "process_resident_memory_bytes" in samples
    assert 'ragtune_requests_total{code="200",route="/v1/chat/completions"}' in samples
    line = server.line("/v1/chat/completions 200")
    assert "POST" in line and "arm=rag" in line and "user=local" in line
    assert "ferry" not in "\n".join(server.lines).lower()


# ------------------------------------------------------------------------- load, leaving, limits


class Slow(FakeGenerator):
    """Writes a word now and then until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.closed, self.begun = threading.Event(), threading.Event(), threading.Event()

    def stream(self, messages: Sequence[Any], decoding: Any = None) -> Iterator[str]:
        try:
            self.begun.set()
            yield "so "
            for _ in range(400):
                if self.go.wait(0.05):
                    break
                yield "slow "
            yield "done"
        finally:
            self.closed.set()


@pytest.fixture()
def slow(tmp_path: Path) -> Iterator[tuple[Server, Slow]]:
    model = Slow()
    service = make_service(tmp_path, "x", config=ServiceConfig(answer_seconds=20, waiting=1))
    service.answerer.generator = model  # type: ignore[union-attr]
    made = Server(service)
    yield made, model
    model.go.set()
    made.stop()


def test_a_full_queue_is_429_with_retry_after_at_once(slow: tuple[Server, Slow]) -> None:
    server, model = slow
    results: list[Any] = []

    def one() -> None:
        results.append(server.client().chat.completions.create(model="base", messages=ASK))

    threads = [threading.Thread(target=one) for _ in range(2)]  # one runs, one waits
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while server.gate.load != (1, 1) and time.monotonic() < until:
        time.sleep(0.02)
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError) as full:
        server.client().chat.completions.create(model="base", messages=ASK)
    assert time.monotonic() - began < 20  # at once; an answer would never come
    assert int(full.value.response.headers["retry-after"]) >= 1 and full.value.code == "queue_full"
    model.go.set()
    for thread in threads:
        thread.join(20)
    assert len(results) == 2 and server.gate.load == (0, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(slow: tuple[Server, Slow], stream: bool) -> None:
    server, model = slow
    body = {"model": "base", "messages": ASK, "stream": stream}
    if stream:
        with calls.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
            next(reply.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=1.0)
    assert model.begun.wait(30) and model.closed.wait(30) and not model.go.is_set()
    until = time.monotonic() + calls.PATIENCE
    while server.gate.load != (0, 0) and time.monotonic() < until:
        time.sleep(0.02)
    assert server.gate.load == (0, 0)


def test_an_answer_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    service = make_service(tmp_path, "x", config=ServiceConfig(answer_seconds=0.3))
    service.answerer.generator = Slow()  # type: ignore[union-attr]
    server = Server(service)
    with pytest.raises(openai.InternalServerError) as late:
        server.client().chat.completions.create(model="base", messages=ASK)
    assert late.value.code == "timeout"
    server.stop()


def test_bodies_are_bounded(server: Server) -> None:
    big = calls.post(f"{server.url}/v1/chat/completions", content=b"x" * (5 * 2**20))
    assert big.status_code == 413 and big.json()["error"]["code"] == "request_too_large"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=calls.PATIENCE) as raw:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {2 * 2**30}\r\n\r\n"
        raw.sendall(head.encode())
        assert b" 413 " in raw.recv(100)  # two gigabytes are refused before a byte of them comes

    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b"x" * 100_000

    try:
        grown = calls.post(f"{server.url}/v1/chat/completions", content=chunks())
        assert grown.status_code == 413
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        pass  # closed while we still wrote: also refused


# ------------------------------------------------------------------------------------- the door


@pytest.fixture()
def locked(tmp_path: Path) -> Iterator[Server]:
    file = tmp_path / "people"
    set_password(file, "anna", "correct horse")
    made = Server(make_service(tmp_path), door=Door(passwords=file))
    yield made
    made.stop()


def test_a_login_is_asked_for_and_the_key_is_name_and_password(locked: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        locked.client("sk-whatever").models.list()
    with pytest.raises(openai.AuthenticationError):
        locked.client("anna:wrong password").models.list()
    assert locked.client("anna:correct horse").chat.completions.create(model="rag", messages=ASK).choices
    assert "user=anna" in locked.line("/v1/chat/completions 200")
    assert calls.get(f"{locked.url}/health").status_code == 200
    assert calls.get(f"{locked.url}/metrics").status_code == 401


def test_a_browser_logs_in_and_out(locked: Server) -> None:
    with httpx.Client(base_url=locked.url, timeout=calls.PATIENCE) as browser:
        assert browser.get("/").headers["location"] == "/login"
        assert "<form" in browser.get("/login").text
        wrong = browser.post("/login", data={"name": "<b>anna", "password": "nope nope"})
        assert wrong.status_code == 401 and "<b>anna" not in wrong.text
        right = browser.post("/login", data={"name": "anna", "password": "correct horse"})
        assert right.status_code == 303
        cookie = right.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie
        assert browser.get("/").text == "page for anna"
        browser.post("/logout")
        assert browser.get("/").status_code == 303
    forged = {"cookie": "ragtune_session=WyJhbm5hIiwgOTk5OTk5OTk5OV0=.00", "x-ragtune-user": "anna"}
    assert calls.get(locked.url, headers=forged).status_code == 303


def test_the_user_header_of_a_stranger_is_dropped(server: Server) -> None:
    assert calls.get(server.url, headers={"x-ragtune-user": "root"}).text == "page for local"


def test_ten_wrong_passwords_and_the_eleventh_waits(locked: Server) -> None:
    for _ in range(10):
        assert calls.post(f"{locked.url}/login", data={"name": "anna", "password": "guess guess"}).status_code == 401
    late = calls.post(f"{locked.url}/login", data={"name": "anna", "password": "correct horse"})
    assert late.status_code == 429 and int(late.headers["retry-after"]) > 1
    with pytest.raises(openai.RateLimitError):
        locked.client("anna:guess number 12").models.list()
