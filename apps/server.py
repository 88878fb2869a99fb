"""The page and its API on a port of this machine, closed to everything else unless a login says who may come.

Loopback by default, no share link, no analytics, no file serving, bounded uploads and queue; every response carries a
Content-Security-Policy under which a browser can reach nothing but this server, whatever a document or a model says.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.auth import Door
from apps.imports import quick_imports
from apps.metrics import Metrics
from apps.service import Service
from apps.walls import POLICY, Bounded, Forked, Guarded, Logged, Walled, to_stderr
from rag.errors import RagtuneError, UsageError

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["HOST", "POLICY", "Access", "choose_port", "is_free", "launch", "serve"]

HOST = "127.0.0.1"
FIRST_PORT = 7860
PATIENCE = 1.5  # seconds
SWITCH = 1e-4  # seconds; see `launch`
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Access:
    """Who may reach the server: the address it listens on, and the door. Without a door only this machine may.

    `log` takes the line of each request; None drops it.
    """

    host: str = HOST
    door: Door | None = None
    log: Callable[[str], None] | None = to_stderr

    def __post_init__(self) -> None:
        if not _is_loopback(self.host) and (self.door is None or self.door.open):
            raise UsageError(
                f"--host {self.host} lets other machines in, so the server must know who asks: add --auth FILE "
                "(made by `ragtune password NAME --auth FILE`), or --user-header NAME behind a proxy that logs in."
            )

    @property
    def asks(self) -> bool:
        """Whether people must log in."""
        return self.door is not None and not self.door.open

    @property
    def near(self) -> bool:
        """Whether only browsers on this machine come: with a login, a proxy here may stand for others."""
        return _is_loopback(self.host) and not self.asks

    @property
    def hosts(self) -> list[str]:
        """Names under which a browser may call the server; any, where a login protects it."""
        return ["127.0.0.1", "localhost", "[::1]"] if _is_loopback(self.host) else ["*"]


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def is_free(port: int, host: str = HOST) -> bool:
    """Whether this machine's `port` can be bound now."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
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


@quick_imports()
def launch(
    service: Service, *, port: int | None = None, open_browser: bool = False, access: Access | None = None
) -> tuple[gr.Blocks, str]:
    """Serve page and API and return the page with its address, once it answers.

    The models begin to load when a first visitor's page stands, or after `PATIENCE` seconds without one: both at once
    make the page wait for more than a second.

    Sets the interpreter's switch interval to `SWITCH`: the model's thread gives the interpreter up at each of the
    thousand products of a pass, and by default may wait 5 ms to have it back while a thread that sends answers has it.

    Raises as `choose_port`. `blocks.close()` ends it.
    """
    chosen = choose_port(port)
    access = access or Access()
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from apps import theme
    from apps.api import PATHS, Deps, build_api
    from apps.ui import build_page
    from rag.hardware import compute_in_one_thread

    page = build_page(service)
    page.queue(default_concurrency_limit=4, max_size=64, api_open=False)
    metrics, door = Metrics(), access.door or Door()
    api = build_api(Deps(service, service.gate, metrics, door))
    walls = [
        Middleware(TrustedHostMiddleware, allowed_hosts=access.hosts),  # against DNS rebinding
        Middleware(Walled, near=access.near),
        Middleware(Logged, metrics=metrics, log=access.log),
        Middleware(Guarded, door=door),
        Middleware(Bounded, upload_bytes=service.library.limits.batch_bytes),
        Middleware(Forked, api=api, paths=PATHS),
    ]
    # `_frontend=False` leaves out one thing: a look at the page that gives up, and blames a proxy, after three seconds.
    _, address, _ = page.launch(
        server_name=access.host, server_port=chosen, share=False, inbrowser=open_browser, prevent_thread_lock=True,
        quiet=True, _frontend=False,
        show_error=False, theme=theme.theme(), css=theme.css(), footer_links=[], run_history=False, allowed_paths=[],
        max_file_size=service.library.limits.file_bytes, enable_monitoring=False, ssr_mode=False, pwa=False,
        mcp_server=False, strict_cors=True, app_kwargs={"middleware": walls, "docs_url": None, "redoc_url": None},
    )  # fmt: skip
    sys.setswitchinterval(SWITCH)
    compute_in_one_thread()
    service.start(PATIENCE)
    return page, address


def serve(
    service: Service,
    *,
    port: int | None = None,
    open_browser: bool = False,
    on_ready: Callable[[str], None] | None = None,
    access: Access | None = None,
) -> None:
    """Serve until Ctrl-C. `on_ready` gets the address once the page answers; without it the address goes to stderr."""
    page, address = launch(service, port=port, open_browser=open_browser, access=access)
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
