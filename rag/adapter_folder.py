"""Adapter folders on disk: what is in one, and whether it belongs to this base; nothing is loaded onto a model here.

An adapter folder is PEFT's own (adapter_config.json, adapter_model.safetensors) or, for method "full", a whole model;
`ragtune.json` beside it names the base and the tokenizer it was trained with.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.adapters_tokens import TOKENIZER, brought, check_ids, token_indices
from rag.errors import AdapterMismatch, ModelError, UnknownModel
from rag.names import check_folder
from rag.starters import file_sha256
from rag.types import content_hash

if TYPE_CHECKING:
    from rag.generator import LocalGenerator

RECORD = "ragtune.json"


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A checked adapter folder: `key` identifies its bytes, `full` says that it holds a whole model.

    `tokens` are those whose embedding rows it brings, with their ids.
    """

    folder: Path
    key: str
    full: bool
    record: dict[str, Any]
    tokens: dict[str, int] = field(default_factory=dict)


def read_adapter(folder: Path) -> AdapterFolder:
    """Look at an adapter folder without loading anything from it.

    Raises:
        UnknownModel: there is no adapter here.
        ModelError: its weights are pickles, or it asks for code from outside.
    """
    if not folder.is_dir():
        raise UnknownModel(
            f"There is no adapter folder {folder}. Train one: ragtune tune INDEX --questions FILE --out {folder}"
        )
    record: dict[str, Any] = {}
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
    config = folder / "adapter_config.json"
    full = not config.is_file()
    if full and not (folder / "config.json").is_file():
        raise UnknownModel(f"{folder} holds neither adapter_config.json nor config.json: it is no adapter folder.")
    if full:
        check_folder(folder)
        weights = sorted(folder.glob("*.safetensors"))
    else:
        mapping = read_json(config).get("auto_mapping") or {}
        library = str(mapping.get("parent_library") or "transformers")
        if library.split(".")[0] != "transformers":
            raise ModelError(f"{config} is refused: auto_mapping names code of {library!r}; allowed: transformers.")
        weights = [folder / "adapter_model.safetensors"]
        if not weights[0].is_file():
            raise ModelError(f"{folder} has no adapter_model.safetensors; pickled adapters (*.bin) are refused.")
    tokens: dict[str, int] = {}
    parts = [*(file_sha256(w) for w in weights), *(p.read_text() for p in (config,) if p.is_file())]
    if full:
        tokens = {str(token): int(number) for token, number in (record.get("added_tokens") or {}).items()}
    elif indices := token_indices(read_json(config)):
        tokens = brought(folder, indices, read_json)
        parts.append(file_sha256(folder / TOKENIZER))
    return AdapterFolder(folder, content_hash(*parts)[:16], full, record, tokens)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelError names the file where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); the adapter folder is damaged.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object; the adapter folder is damaged.")
    return value


def check_fits(found: AdapterFolder, generator: LocalGenerator) -> None:
    """Raises AdapterMismatch, naming both sides, where the adapter belongs to another base or tokenizer."""
    record = found.record
    for name, mine in (("base_fingerprint", generator.fingerprint), ("tokenizer_hash", generator.tokenizer_hash)):
        if record.get(name) not in (None, mine):
            base = record.get("base", "unknown")
            raise AdapterMismatch(
                f"The adapter {found.folder} was trained on '{base}' ({name} {record[name]}), and the generator "
                f"is '{generator.name}' ({name} {mine}). Load the adapter's base with --generator, or tune anew."
            )
    check_ids(found.folder, found.tokens, generator.tokenizer, generator.name)
    if found.full:
        return
    named = str(read_json(found.folder / "adapter_config.json").get("base_model_name_or_path") or "")
    if "base_fingerprint" not in record:
        known = {generator.name, str(getattr(generator.model.config, "_name_or_path", ""))}
        if named not in known:
            warnings.warn(
                f"The adapter {found.folder} has no {RECORD} and names the base '{named}', while the generator is "
                f"'{generator.name}': only its shapes could be checked.",
                stacklevel=4,
            )
    _check_shapes(found, generator)


def _check_shapes(found: AdapterFolder, generator: LocalGenerator) -> None:
    """Every weight of the adapter finds its layer in the same shape, so that nothing is ever half loaded."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = found.folder / "adapter_model.safetensors"
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable ({error}); the adapter folder is damaged.") from error
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"The adapter {found.folder} holds NaN or infinity in {name}; tune anew.")
        for part, axis, side in ((".lora_A.", 1, "in_features"), (".lora_B.", 0, "out_features")):
            if part not in name or tensor.dim() != 2:
                continue
            layer = name.split(part)[0].removeprefix("base_model.model.")
            try:
                size = getattr(generator.model.get_submodule(layer), side, None)
            except AttributeError:
                size = "missing"
            if size is not None and size != tensor.shape[axis]:
                raise AdapterMismatch(
                    f"The adapter {found.folder} does not fit '{generator.name}': layer {layer} has "
                    f"{side} {size}, and the adapter was made for {tensor.shape[axis]}."
                )
