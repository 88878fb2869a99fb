"""The page as a server: its port, its walls, and what it refuses to hand out."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.auth import Door, set_password
from apps.server import HOST, POLICY, SWITCH, Access, choose_port, is_free, launch
from apps.service import Loaders, Service
from rag.errors import RagtuneError, UsageError
from rag.index import sync
from tests.apps import calls
from tests.conftest import CORPUS
from tests.fakes import FakeEncoder, FakeGenerator


@pytest.fixture()
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_in_use_is_named_with_a_free_one(taken: int) -> None:
    assert not is_free(taken)
    with pytest.raises(RagtuneError, match=rf"Port {taken} is in use.*--port (\d+)") as refused:
        choose_port(taken)
    offered = int(str(refused.value).split("--port ")[1].split(",")[0])
    assert offered != taken and is_free(offered)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_an_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match="1 to 65535"):
        choose_port(port)


def test_without_a_port_a_free_one_is_taken() -> None:
    assert is_free(choose_port(None))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "ferry.md").write_text(CORPUS["ferry.md"])
    encoder = FakeEncoder()
    sync(folder / "idx", [folder / "corpus"], encoder)
    service = Service.open(folder / "idx", loaders=Loaders(lambda _: encoder, lambda _: FakeGenerator()))
    page, url = launch(service)
    yield url, folder
    page.close(verbose=False)


def test_it_listens_on_this_machine_alone_and_walls_every_response(server: tuple[str, Path]) -> None:
    url, _ = server
    assert url.startswith("http://127.0.0.1:")
    for path in ("", "config", "gradio_api/info", "static/fonts/IBMPlexSans/IBMPlexSans-Regular.woff2"):
        headers = calls.get(url + path).headers
        assert headers["content-security-policy"] == POLICY and headers["x-content-type-options"] == "nosniff"


def test_what_stays_on_this_machine_is_not_compressed(server: tuple[str, Path]) -> None:
    reply = calls.get(server[0] + "theme.css", headers={"accept-encoding": "br, gzip"})
    assert reply.headers["content-encoding"] == "identity"
    assert len(reply.content) == int(reply.headers["content-length"]) > 10_000 and "--" in reply.text


def test_a_login_may_stand_before_a_proxy(tmp_path: Path) -> None:
    set_password(tmp_path / "people", "anna", "a long password")
    door = Door(passwords=tmp_path / "people")
    assert Access().near
    assert not Access(door=door).near and not Access(host="0.0.0.0", door=door).near


def test_the_model_is_not_kept_waiting_by_those_who_send(server: tuple[str, Path]) -> None:
    assert sys.getswitchinterval() == pytest.approx(SWITCH) and SWITCH < 0.005 / 10


def test_the_policy_lets_nothing_out() -> None:
    assert "http" not in POLICY and "*" not in POLICY and "default-src 'self'" in POLICY


def test_another_host_name_is_refused(server: tuple[str, Path]) -> None:
    assert calls.get(server[0], headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "idx/manifest.json",
        "corpus/ferry.md",
        "../corpus/ferry.md",
        "%2e%2e/etc/passwd",
        "http://127.0.0.1:1/x",
    ],
)
def test_no_file_is_handed_out(server: tuple[str, Path], file: str) -> None:
    url, folder = server
    for name in (file, f"{folder}/{file}"):
        for route in ("gradio_api/file=", "file=", "gradio_api/proxy=", "gradio_api/file/"):
            response = calls.get(f"{url}{route}{name}")
            assert response.status_code >= 400 or not ("Korr" in response.text or "root:" in response.text)


def test_no_handler_is_offered_as_an_interface(server: tuple[str, Path]) -> None:
    info = calls.get(server[0] + "gradio_api/info").json()
    assert info["named_endpoints"] == {} and info["unnamed_endpoints"] == {}
