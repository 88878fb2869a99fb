"""The page's server for programs: OpenAI's chat completions and embeddings, health, metrics, and the login page.

    POST /v1/chat/completions    an arm answers; citations in the extra field `ragtune`
    GET  /v1/models              the arms that can answer here, and the encoder
    POST /v1/embeddings          vectors of the index's encoder
    GET  /health  /metrics       for whoever watches the server
    GET  /login  POST /login  POST /logout     where the server has a password file

An answer takes a place in the gate that page and programs share; when the line is full the reply is 429 with
Retry-After. A client that leaves frees its place at the next token.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from apps.auth import COOKIE, COOKIE_SECONDS, Door, Refused
from apps.chat_api import (
    Ask,
    BadRequest,
    Deltas,
    chunk_body,
    completion_body,
    error_body,
    extra,
    finish_of,
    new_id,
    read_ask,
    usage_of,
)
from apps.metrics import Full, Gate, Metrics
from rag.errors import RagtuneError, UsageError
from rag.types import Answer, Finished, Retrieved, Token

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from apps.service import Service
    from rag.answer import Answerer
    from rag.protocols import Decoding, Message

PATHS = ("/v1/", "/health", "/metrics", "/login", "/logout")
MAX_INPUTS = 2048
MAX_INPUT_CHARACTERS = 100_000
_POLL = 0.2


@dataclass(frozen=True, slots=True)
class Deps:
    """What the routes work with."""

    service: Service
    gate: Gate
    metrics: Metrics
    door: Door


def build_api(deps: Deps) -> Starlette:
    """The application for the paths above; the page has all others."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        return await _chat(deps, request)

    async def embeddings(request: Request) -> Response:
        return await _embeddings(deps, request)

    async def models(request: Request) -> Response:
        return _models(deps, str(request.path_params.get("name", "")))

    async def health(request: Request) -> Response:
        return _health(deps)

    async def metrics(request: Request) -> Response:
        from starlette.responses import PlainTextResponse

        text = deps.metrics.text(_gauges(deps))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def login(request: Request) -> Response:
        return await _login(deps, request)

    async def logout(request: Request) -> Response:
        from starlette.responses import RedirectResponse

        reply = RedirectResponse("/login", status_code=303)
        reply.delete_cookie(COOKIE)
        return reply

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", models),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/login", login, methods=["GET", "POST"]),
            Route("/logout", logout, methods=["POST"]),
        ]
    )
    app.add_exception_handler(BadRequest, _bad)
    app.add_exception_handler(404, _missing)
    app.add_exception_handler(405, _missing)
    return app


def _json(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import Response

    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(text, status_code=status, headers=dict(headers or {}), media_type="application/json")


async def _bad(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return _json(error.status, error_body(str(error), param=error.param, code=error.code))


async def _missing(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    told = f"{request.method} {request.url.path} is not known here."
    return _json(status, error_body(told, code="unknown_url"))


async def _body(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ValueError as error:
        raise BadRequest(f"The body is not JSON ({error}).") from None


# ------------------------------------------------------------------------------- models, health


def _models(deps: Deps, name: str) -> Response:
    arms = [choice.arm for choice in deps.service.arms() if choice.available]
    created = int(deps.metrics.started)
    rows = [{"id": n, "object": "model", "created": created, "owned_by": "ragtune"} for n in ("auto", *arms)]
    rows.append({"id": deps.service.library.encoder_name, "object": "model", "created": created, "owned_by": "ragtune"})
    if not name:
        return _json(200, {"object": "list", "data": rows})
    for row in rows:
        if row["id"] == name:
            return _json(200, row)
    raise _no_model(name, [str(r["id"]) for r in rows])


def _no_model(name: str, known: Sequence[str]) -> BadRequest:
    told = f"There is no model {name[:80]!r}; the arms that can answer here are {', '.join(known)}."
    return BadRequest(told, param="model", code="model_not_found", status=404)


def _health(deps: Deps) -> Response:
    state = deps.service.state
    documents, chunks = deps.service.library.counts()
    running, waiting = deps.gate.load
    body = {
        "status": {"ready": "ok", "failed": "failed"}.get(state.phase, "loading"), "message": state.message,
        "generator": state.generator, "encoder": state.encoder, "documents": documents, "chunks": chunks,
        "running": running, "waiting": waiting,
    }  # fmt: skip
    return _json(200 if state.phase == "ready" else 503, body)


def _gauges(deps: Deps) -> dict[str, float]:
    import psutil

    documents, chunks = deps.service.library.counts()
    running, waiting = deps.gate.load
    return {
        "ragtune_answers_running": running, "ragtune_answers_waiting": waiting, "ragtune_documents": documents,
        "ragtune_chunks": chunks, "ragtune_ready": float(deps.service.state.phase == "ready"),
        "process_resident_memory_bytes": psutil.Process().memory_info().rss,
        "process_start_time_seconds": deps.metrics.started,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------- chat


class _Adjusted:
    """A generator that decodes as one request wants it; everything else is the generator's own."""

    def __init__(self, inner: Any, ask: Ask) -> None:
        self._inner, self._ask = inner, ask

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _changed(self, decoding: Decoding) -> Decoding:
        ask = self._ask
        heat = decoding.temperature if ask.temperature is None else ask.temperature
        return replace(decoding, temperature=heat, seed=ask.seed, stop=(*decoding.stop, *ask.stop))

    def stream(self, messages: Sequence[Message], decoding: Decoding) -> Iterator[str]:
        pieces: Iterator[str] = self._inner.stream(messages, self._changed(decoding))
        return pieces

    def generate(self, prompts: Any, decoding: Any, **more: Any) -> Any:
        each = [self._changed(d) for d in decoding] if isinstance(decoding, list) else self._changed(decoding)
        return self._inner.generate(prompts, each, **more)


def _answerer(deps: Deps, ask: Ask) -> tuple[Answerer, str, int]:
    """Who answers this request, as which arm, and with at most how many tokens."""
    from rag.answer import MAX_QUESTION, Answerer, check_question

    auto = deps.service.auto()
    choices = {c.arm: c for c in (*deps.service.arms(), auto)}
    arm = auto.arm if ask.model == "auto" else ask.model
    if arm not in choices:
        raise _no_model(ask.model, ["auto", *(c.arm for c in choices.values() if c.available)])
    if not choices[arm].available:
        told = f"The arm {arm} {choices[arm].reason}"
        raise BadRequest(told, param="model", code="model_not_available", status=404)
    try:
        check_question(ask.question)
    except UsageError as error:
        code = "context_length_exceeded" if len(ask.question) > MAX_QUESTION else None
        raise BadRequest(str(error), param="messages", code=code) from None
    shared = deps.service.answerer
    if shared is None:
        failed = deps.service.state.phase == "failed"
        told = deps.service.state.message if failed else "The model is still loading. Try again in a few seconds."
        raise BadRequest(told, code="model_loading", status=503)
    plain = ask.temperature is None and not ask.stop
    generator: Any = shared.generator if plain else _Adjusted(shared.generator, ask)
    config = replace(shared.config, max_new_tokens=ask.max_new_tokens or shared.config.max_new_tokens)
    made = Answerer(generator, shared.retriever, config, adapters=shared.adapters, modes=shared.modes)
    return made, arm, config.max_new_tokens


@dataclass(frozen=True, slots=True)
class _Failed:
    """The end of an answer that failed."""

    message: str
    status: int
    retry_after: int | None = None


def _work(
    deps: Deps, ask: Ask, answerer: Answerer, arm: str, stop: threading.Event, out: queue.SimpleQueue[Any]
) -> None:
    """Answer in a thread: "begin", pieces of text, then the Answer or a failure."""
    began = time.monotonic()
    outcome = "failed"
    passages: Sequence[Any] = ()
    deltas, first = Deltas(), True
    limit = deps.service.config.answer_seconds
    try:
        with deps.gate.place(stop.is_set) as mine:
            out.put("begin")
            if not mine:
                outcome = "left"
                return
            turns = ask.history[-deps.service.config.history :] if deps.service.config.history else ()
            with closing(answerer.stream(ask.question, arm=arm, history=turns)) as events:  # type: ignore[type-var]
                for event in events:
                    if stop.is_set():
                        outcome = "left"
                        return
                    if time.monotonic() - began > limit:
                        out.put(_Failed(f"The answer took longer than {limit:.0f} seconds and was ended.", 504))
                        return
                    if isinstance(event, Retrieved):
                        passages = event.passages
                    elif isinstance(event, Token):
                        if first:
                            deps.metrics.observe("ragtune_first_token_seconds", time.monotonic() - began)
                            first = False
                        if piece := deltas.push(event.text, passages):
                            out.put(piece)
                    elif isinstance(event, Finished):
                        if rest := deltas.end(event.answer.text):
                            out.put(rest)
                        deps.metrics.count("ragtune_tokens_total", event.answer.tokens_in, direction="in")
                        deps.metrics.count("ragtune_tokens_total", event.answer.tokens_out, direction="out")
                        outcome = "abstained" if event.answer.abstained else "answered"
                        out.put(event.answer)
    except Full as error:
        outcome = "refused"
        deps.metrics.count("ragtune_refused_total")
        out.put(_Failed(str(error), 429, error.retry_after))
    except UsageError as error:
        out.put(_Failed(str(error), 400))
    except RagtuneError as error:
        out.put(_Failed(str(error), 500))
    except Exception as error:
        from apps.service import _unexpected

        out.put(_Failed(_unexpected(error), 500))
    finally:
        deps.metrics.count("ragtune_answers_total", arm=arm, outcome=outcome)
        deps.metrics.observe("ragtune_answer_seconds", time.monotonic() - began)
        out.put(None)


async def _events(request: Request, stop: threading.Event, out: queue.SimpleQueue[Any]) -> AsyncIterator[Any]:
    """What the thread says, until it ends or the client leaves; then the thread is stopped in any case."""
    try:
        checked = time.monotonic()
        while True:
            try:
                item = out.get_nowait()
            except queue.Empty:
                await asyncio.sleep(0.01)
                if time.monotonic() - checked > _POLL:
                    checked = time.monotonic()
                    if await request.is_disconnected():
                        return
                continue
            if item is None:
                return
            yield item
    finally:
        stop.set()


async def _chat(deps: Deps, request: Request) -> Response:
    ask = read_ask(await _body(request))
    answerer, arm, limit = await asyncio.to_thread(_answerer, deps, ask)
    request.state.note = f"arm={arm}"
    stop, out = threading.Event(), queue.SimpleQueue[Any]()
    args = (deps, ask, answerer, arm, stop, out)
    threading.Thread(target=_work, args=args, name="ragtune-api", daemon=True).start()
    events = _events(request, stop, out)
    id, created = new_id(), int(time.time())
    first = await anext(events, None)
    if isinstance(first, _Failed):
        return _refusal(first)
    if not ask.stream:
        async for item in events:
            if isinstance(item, _Failed):
                return _refusal(item)
            if isinstance(item, Answer):
                return _json(200, completion_body(item, ask, id=id, created=created, limit=limit))
        return _json(499, error_body("The client left.", kind="server_error"))
    from starlette.responses import StreamingResponse

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    lines = _lines(ask, events, id=id, created=created, limit=limit)
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


def _refusal(failed: _Failed) -> Response:
    kind = {429: "rate_limit_error", 400: "invalid_request_error"}.get(failed.status, "server_error")
    code = {429: "queue_full", 504: "timeout"}.get(failed.status)
    headers = {"retry-after": str(failed.retry_after)} if failed.retry_after else {}
    return _json(failed.status, error_body(failed.message, kind=kind, code=code), headers)


async def _lines(ask: Ask, events: AsyncIterator[Any], *, id: str, created: int, limit: int) -> AsyncIterator[bytes]:
    """Server-sent events: role, text, the end with the extra field, usage where it was asked for, [DONE]."""

    def line(body: Mapping[str, Any]) -> bytes:
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode("utf-8", "replace")

    async with contextlib.aclosing(events):  # type: ignore[type-var]
        yield line(chunk_body(ask, id=id, created=created, delta={"role": "assistant", "content": ""}))
        async for item in events:
            if isinstance(item, str):
                yield line(chunk_body(ask, id=id, created=created, delta={"content": item}))
            elif isinstance(item, _Failed):
                yield line(error_body(item.message, kind="server_error"))
            elif isinstance(item, Answer):
                end = chunk_body(ask, id=id, created=created, delta={}, finish=finish_of(item, limit))
                yield line({**end, "ragtune": extra(item, ask.ignored)})
                if ask.usage:
                    last = chunk_body(ask, id=id, created=created, delta={})
                    yield line({**last, "choices": [], "usage": usage_of(item)})
        yield b"data: [DONE]\n\n"


# ----------------------------------------------------------------------------------- embeddings


async def _embeddings(deps: Deps, request: Request) -> Response:
    body = await _body(request)
    texts = _inputs(body)
    encoder = deps.service.library.index.encoder
    if encoder is None:
        raise BadRequest("The encoder is still loading. Try again in a few seconds.", code="model_loading", status=503)
    name = str(body.get("model") or encoder.name)
    if name not in (encoder.name, deps.service.library.encoder_name):
        raise _no_model(name, [encoder.name])
    if body.get("dimensions") not in (None, encoder.dimension):
        raise BadRequest(f"'dimensions' must be {encoder.dimension} with this encoder.", param="dimensions")
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise BadRequest("'encoding_format' must be float or base64.", param="encoding_format")
    kind = body.get("input_type") or "passage"
    if kind not in ("query", "passage"):
        raise BadRequest("'input_type' must be query or passage.", param="input_type")
    try:
        rows = await asyncio.to_thread(encoder.encode, texts, kind="query" if kind == "query" else "passage")
    except RagtuneError as error:
        return _json(500, error_body(str(error), kind="server_error"))
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if form == "base64" else row.tolist(),
        }
        for i, row in enumerate(rows)
    ]
    tokens = sum(encoder.count_tokens(text) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json(200, {"object": "list", "data": data, "model": name, "usage": usage})


def _inputs(body: Any) -> list[str]:
    given = body.get("input") if isinstance(body, Mapping) else None
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        told = "'input' must be a text or a list of texts, none of them empty (no token numbers: send the text)."
        raise BadRequest(told, param="input")
    if len(texts) > MAX_INPUTS:
        raise BadRequest(f"'input' has {len(texts)} texts; at most {MAX_INPUTS} are taken.", param="input")
    if max(map(len, texts)) > MAX_INPUT_CHARACTERS:
        raise BadRequest(f"A text of 'input' has more than {MAX_INPUT_CHARACTERS:,} characters.", param="input")
    return texts


# ---------------------------------------------------------------------------------------- login

_LOGIN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Log in · ragtune</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;
min-height:100vh;margin:0}}form{{width:min(20rem,90vw);display:grid;gap:.75rem}}h1{{font-size:1.25rem;margin:0}}
label{{display:grid;gap:.25rem}}input,button{{font:inherit;padding:.5rem .6rem;border-radius:.4rem;
border:1px solid color-mix(in srgb,currentColor 40%,transparent)}}p{{margin:0;color:light-dark(#a4161a,#ff9b9b)}}
</style></head><body><form method="post" action="/login"><h1>Log in</h1>{note}
<label>Name<input name="name" autocomplete="username" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button type="submit">Log in</button></form></body></html>"""


async def _login(deps: Deps, request: Request) -> Response:
    from urllib.parse import parse_qs

    from starlette.responses import HTMLResponse, RedirectResponse

    if not deps.door.asks:
        return RedirectResponse("/", status_code=303)
    if request.method == "GET":
        return HTMLResponse(_LOGIN.format(note=""))
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    name, password = (form.get(key, [""])[0] for key in ("name", "password"))
    try:
        user = await asyncio.to_thread(deps.door.check, name, password)
    except Refused as error:
        deps.metrics.count("ragtune_logins_total", outcome="refused" if error.retry_after else "wrong")
        headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
        note = f'<p role="alert">{escape(str(error))}</p>'
        return HTMLResponse(_LOGIN.format(note=note), status_code=429 if error.retry_after else 401, headers=headers)
    deps.metrics.count("ragtune_logins_total", outcome="right")
    reply = RedirectResponse("/", status_code=303)
    secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
    reply.set_cookie(COOKIE, deps.door.cookie(user), COOKIE_SECONDS, httponly=True, samesite="lax", secure=secure)
    return reply
