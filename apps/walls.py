"""What every request passes on its way in, outermost first: host, headers, log, size, door, and then page or API.

Each is a small ASGI application around the next. No body is kept, and no line of the log holds text of a document, a
question or an answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from apps.auth import HEADER, Door, Refused
from apps.chat_api import error_body
from apps.metrics import Metrics

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# Gradio's own scripts need 'unsafe-inline' and 'unsafe-eval'; what keeps foreign text from acting is that it is
# escaped. The rest of the policy is the second wall: no image, font, frame or request leaves this machine.
POLICY = "; ".join(
    (
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self'", "frame-src 'self'",
        "worker-src 'self' blob:", "object-src 'none'", "base-uri 'self'", "form-action 'self'",
        "frame-ancestors 'none'",
    )
)  # fmt: skip
_HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
SMALL_BODY = 4 * 2**20
"""Bytes of a request that brings no files: a long conversation fits a hundred times."""
_SLACK = 2**20
UPLOAD = "/gradio_api/upload"


class Walled:
    """Adds the headers above to every response.

    `near`: only browsers on this machine come. Then nothing is compressed: Gradio would compress each script anew for
    every browser, which takes longer here than handing it over as it is.
    """

    def __init__(self, app: App, *, near: bool = False) -> None:
        self.app = app
        self.headers = {**_HEADERS, "content-encoding": "identity"} if near else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def walled(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in self.headers.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        await self.app(scope, receive, walled if scope["type"] == "http" else send)


def to_stderr(line: str) -> None:
    """Where the log goes unless something else is given."""
    print(line, file=sys.stderr, flush=True)


class Logged:
    """One line for each request that does something: method, path, status, seconds, user; and the counters."""

    def __init__(self, app: App, *, metrics: Metrics, log: Callable[[str], None] | None) -> None:
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), [0]
        state: dict[str, Any] = {}  # filled by those inside: who asked, which arm answered
        scope = {**scope, "state": state}

        async def seen(message: Any) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            path, seconds = str(scope["path"]), time.monotonic() - began
            self.metrics.count("ragtune_requests_total", route=route_of(path), code=str(status[0] or 499))
            if self.log is not None and (path.startswith("/v1/") or scope["method"] != "GET"):
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                line = f"{stamp} {scope['method']} {_plain(path)} {status[0] or 499} {seconds:.3f}s"
                self.log(f"{line} user={_plain(str(state.get('user', '-')))} {state.get('note', '')}".rstrip())


def route_of(path: str) -> str:
    """A path as one of a few names, so that a stranger cannot make labels without end."""
    for name in ("/v1/chat/completions", "/v1/embeddings", "/v1/models", "/health", "/metrics", "/login", "/logout"):
        if path == name or path.startswith(name + "/"):
            return name
    return "upload" if path.startswith(UPLOAD) else "page"


def _plain(text: str) -> str:
    """A path or a name on one line, without control characters, and not long."""
    return "".join(c if c.isprintable() and c != " " else "?" for c in text)[:120]


class Bounded:
    """Refuses bodies that are too large with 413, by their announced length or when they grow beyond it."""

    def __init__(self, app: App, *, upload_bytes: int) -> None:
        self.app, self.upload_bytes = app, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.upload_bytes + _SLACK if str(scope["path"]).startswith(UPLOAD) else SMALL_BODY
        told = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if not told.isdigit() or int(told) > most:
            await reply(send, 413, _too_large(most))
            return
        taken, begun, refused = 0, False, False

        async def counted() -> Any:
            nonlocal taken, refused
            message = await receive()
            taken += len(message.get("body", b"")) if message["type"] == "http.request" else 0
            if taken <= most:
                return message
            if not begun and not refused:
                refused = True
                await reply(send, 413, _too_large(most))
            return {"type": "http.disconnect"}  # for those inside the client has left

        async def started(message: Any) -> None:
            nonlocal begun
            if not refused:
                begun = True
                await send(message)

        try:
            await self.app(scope, counted, started)
        except Exception:
            if not refused:
                raise


def _too_large(most: int) -> dict[str, Any]:
    return error_body(f"The request is too large; at most {most // 2**20} MB are taken.", code="request_too_large")


class Guarded:
    """Lets in who the door lets in, under the header that names the user; others get 401, or the login page."""

    OPEN = ("/health", "/login", "/gradio_api/startup-events")

    def __init__(self, app: App, *, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        kept = [(k, v) for k, v in scope["headers"] if k != HEADER.encode()]
        scope = {**scope, "headers": kept, "state": scope.get("state", {})}
        path = str(scope["path"])
        if path not in self.OPEN:
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in kept}
            client = (scope.get("client") or ("",))[0]
            try:
                user = await asyncio.to_thread(self.door.who, headers, client)
            except Refused as error:
                more = [(b"retry-after", str(error.retry_after).encode())] if error.retry_after else []
                kind = "rate_limit_error" if error.retry_after else "authentication_error"
                status = 429 if error.retry_after else 401
                await reply(send, status, error_body(str(error), kind=kind, code="invalid_api_key"), more)
                return
            if user is None:
                await self._login(scope, path, send)
                return
            scope["headers"] = [*kept, (HEADER.encode(), user.encode())]
            scope["state"]["user"] = user
        await self.app(scope, receive, send)

    @staticmethod
    async def _login(scope: Scope, path: str, send: Send) -> None:
        wants_page = scope.get("method") == "GET" and not path.startswith(("/v1/", "/metrics", "/gradio_api/"))
        if wants_page:
            await send({"type": "http.response.start", "status": 303, "headers": [(b"location", b"/login")]})
            await send({"type": "http.response.body", "body": b""})
            return
        told = "Log in first: send `Authorization: Bearer name:password` (the API key of an OpenAI client)."
        body = error_body(told, kind="authentication_error", code="invalid_api_key")
        await reply(send, 401, body, [(b"www-authenticate", b'Bearer realm="ragtune"')])


class Forked:
    """The paths of the API to the API, all others to the page."""

    def __init__(self, app: App, *, api: App, paths: tuple[str, ...]) -> None:
        self.app, self.api, self.paths = app, api, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        mine = scope["type"] == "http" and any(
            path == p or (p.endswith("/") and path.startswith(p)) for p in self.paths
        )
        await (self.api if mine else self.app)(scope, receive, send)


async def reply(
    send: Send, status: int, body: dict[str, Any], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A whole JSON response."""
    text = json.dumps(body, ensure_ascii=False).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": text})
