"""The page on a port of this machine, closed to everything else.

Loopback only, no share link, no analytics, no file serving, bounded uploads and queue; every response carries a
Content-Security-Policy under which a browser can reach nothing but this server, whatever a document or a model says.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from apps.service import Service
from rag.errors import RagtuneError, UsageError

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
FIRST_PORT = 7860
_TRIES = 100

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

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Walled:
    """ASGI middleware that adds the headers above to every response."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        async def walled(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        await self.app(scope, receive, walled if scope["type"] == "http" else send)


def is_free(port: int) -> bool:
    """Whether this machine's `port` can be bound now."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_port(port: int | None) -> int:
    """`port` if it is free; without one, the first free port from 7860.

    Raises UsageError for an impossible number, RagtuneError naming a free port when it is taken.
    """
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"Port {port} cannot be: ports are 1 to 65535. Leave --port away to take the first free one.")
    if port is not None and is_free(port):
        return port
    free = next((p for p in range(FIRST_PORT, FIRST_PORT + _TRIES) if p != port and is_free(p)), None)
    if port is not None:
        other = f"Port {free} is free: use --port {free}, or" if free else "End what uses it, or"
        raise RagtuneError(f"Port {port} is in use (or not allowed to you). {other} leave --port away.")
    if free is None:
        raise RagtuneError(f"No port from {FIRST_PORT} to {FIRST_PORT + _TRIES - 1} is free; give one with --port.")
    return free


def launch(service: Service, *, port: int | None = None, open_browser: bool = False) -> tuple[gr.Blocks, str]:
    """Serve the page and return it with its address, once it answers; then the models begin to load.

    Raises as `choose_port`. `blocks.close()` ends it.
    """
    chosen = choose_port(port)
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from apps import theme
    from apps.ui import build_page

    page = build_page(service)
    page.queue(default_concurrency_limit=4, max_size=64, api_open=False)
    walls = [
        Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),  # against DNS rebinding
        Middleware(Walled),
    ]
    _, address, _ = page.launch(
        server_name=HOST, server_port=chosen, share=False, inbrowser=open_browser, prevent_thread_lock=True, quiet=True,
        show_error=False, theme=theme.theme(), css=theme.css(), footer_links=[], run_history=False, allowed_paths=[],
        max_file_size=service.library.limits.file_bytes, enable_monitoring=False, ssr_mode=False, pwa=False,
        mcp_server=False, strict_cors=True, app_kwargs={"middleware": walls, "docs_url": None, "redoc_url": None},
    )  # fmt: skip
    service.start()
    return page, address


def serve(
    service: Service,
    *,
    port: int | None = None,
    open_browser: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C. `on_ready` gets the address once the page answers; without it the address goes to stderr."""
    page, address = launch(service, port=port, open_browser=open_browser)
    try:
        if on_ready is not None:
            on_ready(address)
        else:
            print(
                f"ragtune: the page is at {address} (only from this machine; Ctrl-C ends it)",
                file=sys.stderr,
                flush=True,
            )
        page.block_thread()
    finally:
        page.close(verbose=False)
