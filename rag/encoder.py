"""The dense encoder: any sentence-transformers model, in batches of equal length, so that no time goes into padding."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rag.errors import ModelError, NumericalError
from rag.hardware import compute, pick_device, pick_dtype, uncollected
from rag.names import ModelFolder, resolve
from rag.protocols import Progress
from rag.starters import quiet, weights_fingerprint

if TYPE_CHECKING:
    import torch

WINDOW = 8192  # texts tokenised and sorted at a time: bounds memory on large corpora
CPU_BATCH_TOKENS = 1024  # larger activations leave the cache: 4096 is 15 % slower
BF16_BATCH_TOKENS = 2048  # half the bytes, and fewer, larger matrix products pay: 15 % faster than 1024 with AMX
GPU_BATCH_TOKENS = 65536
_PROMPTS = {"query": ("query",), "passage": ("document", "passage", "corpus")}


class LocalEncoder:
    """A sentence-transformers model on this machine; implements `rag.protocols.Encoder`.

    Texts longer than the model's window are cut at it; `max_tokens` is what fits beside special tokens and prompt.
    Vectors in bf16 and fp32 agree to a cosine of 0.999 or better, so the fingerprint does not depend on the format.
    """

    def __init__(self, found: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        with quiet():
            from sentence_transformers import SentenceTransformer

            try:
                self._model = SentenceTransformer(
                    str(found.folder),
                    device=str(device),
                    trust_remote_code=False,
                    local_files_only=True,
                    model_kwargs={"dtype": dtype, "use_safetensors": True},
                ).eval()
            except Exception as error:  # a damaged folder makes the libraries raise nearly anything
                raise ModelError(f"The encoder '{found.name}' in {found.folder} does not load: {error}") from error
        self.name = found.name
        self.fingerprint = weights_fingerprint(found.folder, _settings(found.folder))
        self.device = device
        self.dtype = dtype
        cpu_tokens = BF16_BATCH_TOKENS if dtype is torch.bfloat16 else CPU_BATCH_TOKENS
        self._batch_tokens = cpu_tokens if device.type == "cpu" else GPU_BATCH_TOKENS
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self._tokenizer = self._model.tokenizer
        self._prompts = {kind: self._prompt(kind) for kind in _PROMPTS}
        self._direct = hasattr(self._tokenizer, "pad_token_id") and self._tokenizer.is_fast
        self._specials = self._tokenizer.num_special_tokens_to_add() if self._direct else 0
        self._lock = threading.Lock()  # a tokenizer's truncation is state: counting and encoding must not interleave
        self._window = int(self._model.get_max_seq_length() or 1_000_000)
        longest_prompt = max(self.count_tokens(prompt) for prompt in self._prompts.values())
        self.max_tokens = self._window - self._specials - longest_prompt

    def _prompt(self, kind: str) -> str:
        prompts = self._model.prompts or {}
        named = next((prompts[name] for name in _PROMPTS[kind] if prompts.get(name)), None)
        return named or prompts.get(self._model.default_prompt_name or "", "") or ""

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as this encoder sees them, without special tokens and prompt."""
        if not text:
            return 0
        if not self._direct:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
            return len(getattr(encoded, "ids", encoded))
        with self._lock:
            return len(self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    def encode(
        self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage", progress: Progress | None = None
    ) -> np.ndarray:
        """float32 array [len(texts), dimension], rows of unit length.

        Raises:
            NumericalError: rows that are not finite or have no length, named by position; nothing is returned.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        done = 0
        for begin in range(0, len(texts), WINDOW):
            window = [self._prompts[kind] + text for text in texts[begin : begin + WINDOW]]
            for rows, values in self._run(window):
                vectors[[begin + row for row in rows]] = values
                done += len(rows)
                if progress is not None:
                    progress(done, len(texts))
        return unit_rows(vectors, self.name)

    def _run(self, texts: list[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """(positions, vectors) of one batch after the other."""
        import torch

        if not self._direct:  # static embeddings and the like bring a tokenizer of their own
            for start in range(0, len(texts), 256):
                rows = list(range(start, min(start + 256, len(texts))))
                with quiet():
                    values = self._model.encode(
                        [texts[r] for r in rows], show_progress_bar=False, convert_to_numpy=True
                    )
                yield rows, np.asarray(values, dtype=np.float32)
            return
        ids = self._ids(texts)
        budget = self._batch_tokens

        def vectors(rows: list[int]) -> np.ndarray:
            with torch.inference_mode():
                output = self._model(self._features([ids[row] for row in rows]))["sentence_embedding"]
            return np.asarray(output.float().cpu().numpy())

        for rows in length_batches([len(row) for row in ids], budget):
            yield rows, compute(self.device, vectors, rows)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        options = {"truncation": True, "max_length": self._window, "padding": False, "verbose": False}
        with self._lock:
            found: list[list[int]] = self._tokenizer(texts, return_attention_mask=False, **options)["input_ids"]
        return found

    def _features(self, ids: list[list[int]]) -> dict[str, Any]:
        """Token ids and mask [texts, longest], padded on the tokenizer's side."""
        import torch

        left = self._tokenizer.padding_side == "left"
        width = max(len(row) for row in ids)
        tokens = torch.full((len(ids), width), int(self._tokenizer.pad_token_id or 0), dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for at, row in enumerate(ids):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            tokens[at, span] = torch.tensor(row, dtype=torch.long)
            mask[at, span] = 1
        return {"input_ids": tokens.to(self.device), "attention_mask": mask.to(self.device)}

    @property
    def model(self) -> Any:
        """The sentence-transformers module, for training."""
        return self._model

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage") -> torch.Tensor:
        """As `encode`, in one batch and with gradients: float32 [len(texts), dimension], rows of unit length."""
        import torch

        given = [self._prompts[kind] + text for text in texts]
        features = self._features(self._ids(given)) if self._direct else self._model.preprocess(given)
        found = self._model(features)["sentence_embedding"].float()
        return torch.nn.functional.normalize(found, dim=-1)


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions sorted by length, longest first, cut where rows × longest would exceed `budget` tokens.

    Longest first, so that a run that does not fit into memory fails at once. Every batch has at least one row.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * max(1, lengths[batches[-1][0]]) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def unit_rows(vectors: np.ndarray, name: str) -> np.ndarray:
    """The rows divided by their length, float32.

    Raises:
        NumericalError: a row has NaN, infinity or no length: it would be found for every question, or for none.
    """
    norms = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-12))
    if bad.size:
        shown = ", ".join(str(i) for i in bad[:10]) + (" …" if bad.size > 10 else "")
        raise NumericalError(
            f"The encoder '{name}' gave no usable vector for {bad.size} of {len(vectors)} texts (positions {shown}): "
            "NaN, infinity or zero length. Nothing of this batch was kept. Try --dtype fp32 or another encoder."
        )
    return (vectors / norms[:, None]).astype(np.float32, copy=False)


def _settings(folder: Path) -> tuple[str, ...]:
    """Pooling, prompts and tokenizer of a sentence-transformers folder: they decide the vectors as the weights do."""
    names = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.json")
    paths = [folder / name for name in names] + sorted(folder.glob("*_Pooling/config.json"))
    return tuple(path.read_text(encoding="utf-8") for path in paths if path.is_file())


@uncollected()
def load_encoder(name: str = "starter", *, device: str | None = None, dtype: Any = None) -> LocalEncoder:
    """The encoder of this name: "starter", a folder, or a hub id.

    Raises:
        UnknownModel: the name resolves to nothing here.
        ModelError: the folder is refused or does not load.
    """
    found = resolve(name, "encoder")
    place = pick_device(device)
    return LocalEncoder(found, device=place, dtype=pick_dtype(place, dtype))
