"""Adapters on a loaded base: checked before they touch it, loaded once, switched in microseconds, off means off.

An attached LoRA adds two small products to every layer: up to a third more time on a processor. So an adapter whose
merged weights answer like the attached ones (`parity`) is served merged: its weights are swapped in, and the base's own
tensors, never written to, are swapped back.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.adapter_folder import AdapterFolder, check_fits, read_adapter
from rag.adapters_tokens import fold, load_onto, second_tree
from rag.engine import make_backend_factory
from rag.errors import AdapterMismatch
from rag.names import ModelFolder
from rag.prepacked import forget, prepack
from rag.protocols import Message
from rag.starters import quiet, read_cache, write_cache
from rag.types import content_hash

if TYPE_CHECKING:
    import torch

    from rag.generator import LocalGenerator

MERGED_BYTES = 2 << 30
_NOT_MERGED = ("modules_to_save", "trainable_token_indices", "lora_bias", "alora_invocation_tokens")
PARITY_TOKENS = 8
PARITY_VERSION = 1
_SUBJECTS = ("harbour", "library", "valley", "school", "engine", "festival", "museum", "river")
PARITY_PROMPTS: tuple[list[Message], ...] = tuple(
    [{"role": "user", "content": text.format(subject)}]
    for subject in _SUBJECTS
    for text in (
        "[1] The {0} was opened in 1931 by Ada Lowe.\n\nQuestion: Who opened the {0}?",
        "What is a {0}?",
    )
)


@dataclass(frozen=True, slots=True)
class Parity:
    """Merged against attached: `equal` when greedy tokens agree and no logit differs by more than `tolerance`."""

    equal: bool
    prompts: int
    different: int
    largest: float
    tolerance: float


def _compare(
    attached: tuple[list[list[int]], torch.Tensor], merged: tuple[list[list[int]], torch.Tensor], *, low_precision: bool
) -> Parity:
    tolerance = float(attached[1].max() - attached[1].min()) * (0.02 if low_precision else 1e-4)
    largest = float((attached[1] - merged[1]).abs().max())
    different = sum(a != b for a, b in zip(attached[0], merged[0], strict=True))
    return Parity(different == 0 and largest <= tolerance, len(attached[0]), different, largest, tolerance)


class AdapterSet:
    """The adapters of one generator. Its caller holds the generator's lock."""

    def __init__(self, generator: LocalGenerator) -> None:
        self._generator = generator
        self._peft: Any = None
        self._full: dict[str, Any] = {}  # models of their own: whole ones, and those of adapters that bring tokens
        self._loaded: dict[str, AdapterFolder] = {}
        self._active: str | None = None
        self._merged: dict[str, list[tuple[Any, torch.Tensor, torch.Tensor]]] = {}
        self._factories: dict[str | None, Callable[[int, int], Any]] = {}

    def load(self, folder: Path) -> str:
        """See `LocalGenerator.attach`."""
        found = read_adapter(folder)
        if found.key in self._loaded:
            return found.key
        check_fits(found, self._generator)
        if found.full:
            self._full[found.key] = self._load_full(found)
        elif found.tokens:
            self._load_with_tokens(found)
        else:
            self._load_peft(found)
        self._loaded[found.key] = found
        if found.key not in self._full and self.parity(found.key).equal:
            self._keep_merged(found.key)
        return found.key

    def tokens(self, key: str) -> dict[str, int]:
        """Tokens that a loaded adapter brings, with their ids."""
        return self._loaded[key].tokens

    def _load_with_tokens(self, found: AdapterFolder) -> None:
        """A second tree over the base's own tensors; its LoRA products are folded in where the answers stay the same.

        Attached and folded weights are compared as `parity` does, on this tree.
        """
        self._switch(None)
        with quiet():
            try:
                tree = second_tree(self._generator.model, self._peft, max(found.tokens.values()) + 1)
                loaded = load_onto(tree, found.folder)
            except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
                raise AdapterMismatch(
                    f"The adapter {found.folder} does not load on '{self._generator.name}': {error}"
                ) from error
        self._full[found.key] = loaded.get_base_model()
        attached = self._greedy(found.key, PARITY_PROMPTS)
        undo = fold(self._full[found.key], MERGED_BYTES)
        if undo is not None:
            folded = self._greedy(found.key, PARITY_PROMPTS)
            if not _compare(attached, folded, low_precision=self._generator.dtype.itemsize < 4).equal:
                undo()
        prepack(self._full[found.key])  # its own head is new

    def _load_full(self, found: AdapterFolder) -> Any:
        from rag.generator import load_causal

        generator = self._generator
        model, _ = load_causal(
            ModelFolder(str(found.folder), found.folder), device=generator.device, dtype=generator.dtype
        )
        prepack(model)
        return model

    def _load_peft(self, found: AdapterFolder) -> None:
        self._switch(None)  # what is loaded onto is the base, never the merged weights of another adapter
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
        for layer, _, own in self._merged.get(self._active or "", ()):
            layer.weight.data = own
        if key in self._merged or key is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(key)
        for layer, merged, _ in self._merged.get(key or "", ()):
            layer.weight.data = merged
        self._active = key

    # --- merged serving ----------------------------------------------------------------------------------------------

    def parity(self, key: str, prompts: Sequence[Sequence[Message]] = PARITY_PROMPTS) -> Parity:
        """Whether merged and attached weights give the same answers to these prompts; remembered in the cache.

        A model of its own was compared when it was loaded, or has nothing to merge.
        """
        if key in self._full:
            return Parity(True, 0, 0, 0.0, 0.0)
        generator = self._generator
        parts = (generator.fingerprint, key, str(generator.dtype), str(generator.device), str(PARITY_VERSION))
        name = content_hash(*parts, json.dumps([list(p) for p in prompts], sort_keys=True))
        known = read_cache("parity", name)
        if isinstance(known, dict) and set(known) == {f.name for f in fields(Parity)}:
            return Parity(**known)
        served = self._merged.pop(key, None) if key != self._active else None
        attached = self._greedy(key, prompts)
        kept = self._keep_merged(key)
        if kept:
            merged = self._greedy(key, prompts)
            self._drop_merged(key)
            result = _compare(attached, merged, low_precision=generator.dtype.itemsize < 4)
        else:
            result = Parity(False, len(prompts), 0, 0.0, 0.0)
        if served is not None:
            self._merged[key] = served
        write_cache("parity", name, asdict(result))
        return result

    def _greedy(self, key: str, prompts: Sequence[Sequence[Message]]) -> tuple[list[list[int]], torch.Tensor]:
        """Greedy tokens (also behind an end of turn) and the logits of the first of them."""
        import torch

        ids = [self._generator.prompt_ids(prompt) for prompt in prompts]
        make = self.backend_factory(key)
        tokens: list[list[int]] = []
        logits: list[torch.Tensor] = []
        with self.active(key):
            backend = make(max(map(len, ids)) + PARITY_TOKENS, len(ids))
            for begin in range(0, len(ids), backend.slots):
                found = backend.admit(list(enumerate(ids[begin : begin + backend.slots])))
                logits.append(found)
                rows = [[int(token)] for token in found.argmax(-1)]
                for _ in range(PARITY_TOKENS - 1):
                    found = backend.step([(slot, row[-1]) for slot, row in enumerate(rows)])
                    for row, token in zip(rows, found.argmax(-1).tolist(), strict=True):
                        row.append(token)
                tokens += rows
        return tokens, torch.cat(logits)

    def _keep_merged(self, key: str) -> bool:
        """Make the merged weights of an adapter; False where that is not possible or takes too much memory."""
        import torch
        from peft.tuners.lora import LoraLayer

        self._switch(None)
        config = self._peft.peft_config[key]
        layers = [m for m in self._peft.modules() if isinstance(m, LoraLayer) and key in m.r]
        bases = [layer.get_base_layer() for layer in layers]
        embedding = self._generator.model.get_input_embeddings().weight
        held = sum(merged.nbytes for entries in self._merged.values() for _, merged, _ in entries)
        simple = all(type(base) is torch.nn.Linear and base.weight is not embedding for base in bases)
        special = any(getattr(config, name, None) for name in _NOT_MERGED)
        small = held + sum(base.weight.nbytes for base in bases) <= MERGED_BYTES
        if not layers or not simple or special or not small or getattr(config, "bias", "none") != "none":
            return False
        entries: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for layer, base in zip(layers, bases, strict=True):
                own = base.weight.data
                base.weight.data = own.clone()
                layer.merge(adapter_names=[key])
                entries.append((base, base.weight.data, own))
                base.weight.data = own
                layer.merged_adapters.clear()  # the base holds its own weights again
        self._merged[key] = entries
        return True

    def _drop_merged(self, key: str) -> None:
        self._switch(None)
        for layer, merged, _ in self._merged.pop(key, ()):
            forget(layer, merged)

    def backend_factory(self, key: str | None) -> Callable[[int, int], Any]:
        """Backends on the model that serves this adapter."""
        own = key if key in self._full else None
        if own not in self._factories:
            self._factories[own] = make_backend_factory(self._full[own] if own else self._generator.model)
        return self._factories[own]

    def merged_model(self, key: str) -> Any:
        """A copy of the base with this adapter folded into its weights."""
        if key in self._full:
            return _without_lora(copy.deepcopy(self._full[key]))
        self._switch(None)
        peft = copy.deepcopy(self._peft)
        peft.base_model.enable_adapter_layers()
        peft.set_adapter(key)
        return peft.merge_and_unload(adapter_names=[key])


def _without_lora(model: Any) -> Any:
    """A whole model as it is, one with LoRA layers with these folded in and gone."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            if not module.merged:
                module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())
    return model
