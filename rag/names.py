"""From a model's name to a folder on this machine: a starter, a folder, or a hub id; and what is refused on the way.

No file of a model folder is executed or unpickled: weights are safetensors, and a config that asks for code from
outside is refused before any library reads it (transformers CVE-2026-4372 is of this kind).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from rag.errors import ModelError, UnknownModel
from rag.starters import quiet, starter_encoder_folder, starter_generator_folder

STARTER = "starter"
ENDPOINT_PREFIX = "openai:"
HUB_PROBE_SECONDS = 1.2


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A resolved model: `name` as the user gave it, the folder with its files, and where it came from."""

    name: str
    folder: Path
    starter: bool = False


def alternatives(kind: str, *, starter: bool = True) -> str:
    """A sentence with what can be named on this machine without a network."""
    options = [f"'{STARTER}' (comes with the installation)"] if starter and kind != "reranker" else []
    options.append("a folder with config.json and *.safetensors")
    if kind == "generator":
        options.append("an endpoint, 'openai:MODEL@http://127.0.0.1:11434/v1'")
    cached = cached_hub_models()
    text = "Allowed here: " + "; ".join(options) + "."
    if cached:
        text += " Downloaded before: " + ", ".join(cached[:8]) + "."
    return text


def cached_hub_models() -> list[str]:
    """Hub ids whose snapshot is already on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    if not folder.is_dir():
        return []
    names = {p.parts[-3] for p in folder.glob("models--*/snapshots/*")}
    return sorted(name.removeprefix("models--").replace("--", "/") for name in names)


def resolve(name: str, kind: str) -> ModelFolder:
    """Turn a model name into a folder on this machine: a starter, a folder, or a hub id (downloaded when reachable).

    Answers within about two seconds when the hub cannot be reached.

    Raises:
        UnknownModel: the name resolves to nothing here; lists what would.
        ModelError: the model is refused (remote code, no safetensors, a starter with wrong bytes).
    """
    if name == STARTER:
        folder = starter_encoder_folder() if kind == "encoder" else starter_generator_folder()
        return ModelFolder(name, folder, starter=True)
    if not name.strip() or name.startswith(ENDPOINT_PREFIX):
        raise UnknownModel(f"'{name}' names no model with weights on this machine. {alternatives(kind)}")
    path = Path(name).expanduser()
    if path.is_dir():
        check_folder(path)
        return ModelFolder(name, path)
    if path.exists():
        raise UnknownModel(f"'{name}' is a file; a {kind} is a folder. {alternatives(kind)}")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UnknownModel(f"'{name}' is no folder here and cannot be a hub id. {alternatives(kind)}")
    folder = _hub_folder(name, kind)
    check_folder(folder)
    return ModelFolder(name, folder)


def check_folder(folder: Path) -> None:
    """Refuse a model folder that would run code or that has no safetensors weights; nothing of it is executed.

    Raises:
        UnknownModel: there is no config.json.
        ModelError: remote code is asked for, a sub-model path leaves the folder, or weights are pickles only.
    """
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise UnknownModel(f"{folder} is no model folder: it has neither config.json nor modules.json.")
    for path in sorted(folder.rglob("*.json")):
        if path.name.startswith(("config", "tokenizer_config", "processor_config", "preprocessor_config", "modules")):
            _check_config(path)
    if not any(folder.rglob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors weights. Pickled weights (*.bin, *.pt) can run code and are refused; "
            "convert them with save_pretrained(..., safe_serialization=True) on a machine you trust."
        )


_ALWAYS_CODE = ("auto_map", "_attn_implementation_internal", "custom_generate")
_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation")
_ATTENTION = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
)  # what transformers itself has


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); the model folder is damaged.") from error
    pending = [config]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            for key in (*_ALWAYS_CODE, *_ATTENTION_KEYS):
                value = item.get(key)
                if value and not (key in _ATTENTION_KEYS and value in _ATTENTION):
                    raise ModelError(
                        f"{path} is refused: its key '{key}' asks for code from outside ({value!r}). "
                        "Models run only with the code of the installed libraries; use one without custom code."
                    )
            kind = item.get("type")
            if path.name == "modules.json" and isinstance(kind, str) and not kind.startswith("sentence_transformers."):
                raise ModelError(f"{path} is refused: module type {kind!r} is not part of sentence-transformers.")
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/config.json"]


def _hub_folder(name: str, kind: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, OSError, ValueError):
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_PATTERNS))
        if any(folder.rglob("*.safetensors")):
            return folder
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON") or constants.HF_HUB_OFFLINE
    if offline:
        raise UnknownModel(f"'{name}' is not on this machine and HF_HUB_OFFLINE is set. {alternatives(kind)}")
    if not hub_reachable(constants.ENDPOINT):
        raise UnknownModel(
            f"'{name}' is not on this machine and {constants.ENDPOINT} cannot be reached. {alternatives(kind)}"
        )
    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS, etag_timeout=5))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = _first_line(error)
        raise UnknownModel(f"'{name}' could not be fetched from the hub ({reason}). {alternatives(kind)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def hub_reachable(endpoint: str, seconds: float = HUB_PROBE_SECONDS) -> bool:
    """Whether a TCP connection to the hub (or the proxy in front of it) opens within `seconds`.

    In a thread of its own, because a name server that does not answer holds getaddrinfo for much longer than any
    time limit given to the socket.
    """
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or os.environ.get("ALL_PROXY")
    url = urlparse(proxy or endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    answer: list[bool] = []

    def probe() -> None:
        try:
            with socket.create_connection((url.hostname or "", port), timeout=seconds):
                answer.append(True)
        except (OSError, RuntimeError, UnicodeError):  # RuntimeError: sockets are blocked in tests
            answer.append(False)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds + 0.2)
    return bool(answer and answer[0])
