"""Adapters on a loaded base: checked before they touch it, loaded once, switched in microseconds, off means off.

An adapter folder is PEFT's own (adapter_config.json, adapter_model.safetensors) or, for method "full", a whole model;
`ragtune.json` beside it names the base and the tokenizer it was trained with.
"""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.engine import make_backend_factory
from rag.errors import AdapterMismatch, ModelError, UnknownModel
from rag.names import ModelFolder, check_folder
from rag.starters import file_sha256, quiet
from rag.types import content_hash

if TYPE_CHECKING:
    from rag.generator import LocalGenerator

RECORD = "ragtune.json"


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A checked adapter folder: `key` identifies its bytes, `full` says that it holds a whole model."""

    folder: Path
    key: str
    full: bool
    record: dict[str, Any]


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
    key = content_hash(*(file_sha256(w) for w in weights), *(p.read_text() for p in (config,) if p.is_file()))[:16]
    return AdapterFolder(folder, key, full, record)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelError names the file where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); the adapter folder is damaged.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object; the adapter folder is damaged.")
    return value


class AdapterSet:
    """The adapters of one generator. Its caller holds the generator's lock."""

    def __init__(self, generator: LocalGenerator) -> None:
        self._generator = generator
        self._peft: Any = None
        self._full: dict[str, Any] = {}
        self._loaded: dict[str, AdapterFolder] = {}
        self._active: str | None = None
        self._factories: dict[str | None, Callable[[int, int], Any]] = {}

    def load(self, folder: Path) -> str:
        """See `LocalGenerator.attach`."""
        found = read_adapter(folder)
        if found.key in self._loaded:
            return found.key
        self._check(found)
        if found.full:
            self._full[found.key] = self._load_full(found)
        else:
            self._load_peft(found)
        self._loaded[found.key] = found
        return found.key

    def _check(self, found: AdapterFolder) -> None:
        generator, record = self._generator, found.record
        for field, mine in (("base_fingerprint", generator.fingerprint), ("tokenizer_hash", generator.tokenizer_hash)):
            if record.get(field) not in (None, mine):
                base = record.get("base", "unknown")
                raise AdapterMismatch(
                    f"The adapter {found.folder} was trained on '{base}' ({field} {record[field]}), and the generator "
                    f"is '{generator.name}' ({field} {mine}). Load the adapter's base with --generator, or tune anew."
                )
        if found.full:
            return
        named = str(read_json(found.folder / "adapter_config.json").get("base_model_name_or_path") or "")
        if "base_fingerprint" not in record:
            known = {generator.name, str(getattr(generator.model.config, "_name_or_path", ""))}
            if named not in known:
                warnings.warn(
                    f"The adapter {found.folder} has no {RECORD} and names the base '{named}', while the generator is "
                    f"'{generator.name}': only its shapes could be checked.",
                    stacklevel=2,
                )
        self._check_shapes(found)

    def _check_shapes(self, found: AdapterFolder) -> None:
        """Every weight of the adapter finds its layer in the same shape, so that nothing is ever half loaded."""
        import torch
        from safetensors import safe_open

        with safe_open(str(found.folder / "adapter_model.safetensors"), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    raise ModelError(f"The adapter {found.folder} holds NaN or infinity in {name}; tune anew.")
                for part, axis, side in ((".lora_A.", 1, "in_features"), (".lora_B.", 0, "out_features")):
                    if part not in name or tensor.dim() != 2:
                        continue
                    path = name.split(part)[0].removeprefix("base_model.model.")
                    try:
                        size = getattr(self._generator.model.get_submodule(path), side, None)
                    except AttributeError:
                        size = "missing"
                    if size is not None and size != tensor.shape[axis]:
                        raise AdapterMismatch(
                            f"The adapter {found.folder} does not fit '{self._generator.name}': layer {path} has "
                            f"{side} {size}, and the adapter was made for {tensor.shape[axis]}."
                        )

    def _load_full(self, found: AdapterFolder) -> Any:
        from rag.generator import load_causal

        generator = self._generator
        model, _ = load_causal(
            ModelFolder(str(found.folder), found.folder), device=generator.device, dtype=generator.dtype
        )
        return model

    def _load_peft(self, found: AdapterFolder) -> None:
        with quiet():
            from peft import PeftModel

            try:
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(
                        self._generator.model, str(found.folder), adapter_name=found.key, is_trainable=False
                    )
                else:
                    self._peft.load_adapter(str(found.folder), adapter_name=found.key, is_trainable=False)
            except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
                self._forget(found.key)
                raise AdapterMismatch(
                    f"The adapter {found.folder} does not load on '{self._generator.name}': {error}"
                ) from error
            self._peft.eval()
        self._active = found.key  # PEFT switches a new adapter on
        self._switch(None)

    def _forget(self, key: str) -> None:
        if self._peft is not None and key in self._peft.peft_config:
            self._peft.delete_adapter(key)
        self._active = "unknown"
        self._switch(None)

    @contextlib.contextmanager
    def active(self, key: str | None) -> Iterator[None]:
        """Within the block the base model's layers carry this adapter."""
        if key is None or key not in self._full:
            self._switch(key)
        yield

    def _switch(self, key: str | None) -> None:
        if self._peft is None or key == self._active:
            return
        if key is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(key)
        self._active = key

    def backend_factory(self, key: str | None) -> Callable[[int, int], Any]:
        """Backends on the model that serves this adapter."""
        own = key if key in self._full else None
        if own not in self._factories:
            self._factories[own] = make_backend_factory(self._full[own] if own else self._generator.model)
        return self._factories[own]

    def merged_model(self, key: str) -> Any:
        """A copy of the base with this adapter folded into its weights."""
        if key in self._full:
            return copy.deepcopy(self._full[key])
        self._switch(key)
        peft = copy.deepcopy(self._peft)
        self._switch(None)
        peft.base_model.enable_adapter_layers()
        peft.set_adapter(key)
        return peft.merge_and_unload(adapter_names=[key])
