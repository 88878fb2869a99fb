"""A causal language model on this machine: prompts in, answers or log-probabilities out, adapters on and off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.adapters import PARITY_PROMPTS, AdapterSet, Parity
from rag.copying import CopyState, CopyTable, SpanTokens
from rag.decode import Job, TextStream, run
from rag.errors import ConfigError, ModelError
from rag.hardware import pick_device, pick_dtype, uncollected
from rag.names import ModelFolder, resolve
from rag.prepacked import prepack
from rag.protocols import Decoding, Generation, Message, Progress, is_begun
from rag.scoring import score_rows
from rag.starters import quiet, weights_fingerprint
from rag.tokens import ChatTokens, tokenizer_hash
from rag.types import content_hash

if TYPE_CHECKING:
    import torch

TABLES_KEPT = 512


class LocalGenerator:
    """A transformers model with its chat template; implements `rag.protocols.Generator`.

    Several threads may use it at once: they take turns at each decoding step, and each run keeps the adapter that was
    active when it was called. Enter `adapter(...)` and call `stream` or `generate` in the same thread.

    Attributes:
        model: the transformers model (with adapters attached inside once one was used).
        tokenizer: its tokenizer.
        device, dtype: where and in which format it runs.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, fingerprint: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint
        self.tokens = ChatTokens(tokenizer, getattr(model, "generation_config", None))
        self.tokenizer_hash = tokenizer_hash(tokenizer)
        self.context_window = context_window(model.config)
        self._spans = SpanTokens(tokenizer, self.tokens.controls)
        self._tables: dict[str, CopyTable] = {}
        self._lock = threading.RLock()
        self._selected: dict[int, list[tuple[object, str | None]]] = {}
        self._adapters = AdapterSet(self)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` alone, without special tokens or template."""
        return len(self.tokens.ids(text))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat template over `messages`, ready for the assistant's turn."""
        return self.tokens.prompt_ids(messages)

    def completion_ids(self, text: str) -> list[int]:
        """Token ids of an answer as `score` and training see it: the text and the end of the turn."""
        return self.tokens.completion_ids(text)

    # --- generation --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        decoding: Decoding | Sequence[Decoding] = Decoding(),
        *,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """One generation for each prompt, in order; no prompt waits for a longer one.

        Raises:
            ConfigError: a prompt does not fit into the context window, or a Decoding has impossible values.
            NumericalError: the model returned NaN.
        """
        each = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        if len(each) != len(prompts):
            raise ConfigError(f"{len(prompts)} prompts and {len(each)} decodings were given; give one, or one each.")
        jobs = [self._job(i, prompt, d) for i, (prompt, d) in enumerate(zip(prompts, each, strict=True))]
        done = 0
        for stepped in self._run(jobs, self._current()):
            finished = sum(job.done for job in stepped)
            done += finished
            if progress is not None and finished:
                progress(done, len(jobs))
        return [Generation(job.text, len(job.prompt), len(job.out), job.logprob) for job in jobs]

    def stream(self, messages: Sequence[Message], decoding: Decoding = Decoding()) -> Iterator[str]:
        """Pieces of one generation as they come; their sum is the text that `generate` returns.

        The adapter active at the time of this call is used to the end. Closing the iterator stops the model.
        """
        job = self._job(0, messages, decoding)
        return self._pieces(job, self._current())

    def _pieces(self, job: Job, adapter: str | None) -> Iterator[str]:
        shown = 0
        for _ in self._run([job], adapter):
            if job.settled > shown:
                yield job.text[shown : job.settled]
                shown = job.settled

    def _run(self, jobs: Sequence[Job], adapter: str | None) -> Iterator[list[Job]]:
        """The decoding loop, holding the model only while it steps."""
        with self._lock:
            factory = self._adapters.backend_factory(adapter)
            steps = run(factory, jobs, self.tokens.ends)
        while True:
            with self._lock, self._adapters.active(adapter):
                stepped = next(steps, None)
            if stepped is None:
                return
            yield stepped

    def hold(self) -> Callable[[], AbstractContextManager[Callable[[int, int], Any]]]:
        """For `rag.stepping`: contexts in which the model is locked, with the adapter that is active now."""
        adapter = self._current()

        @contextlib.contextmanager
        def held() -> Iterator[Callable[[int, int], Any]]:
            with self._lock:
                factory = self._adapters.backend_factory(adapter)
                with self._adapters.active(adapter):
                    yield factory

        return held

    def _job(self, index: int, messages: Sequence[Message], decoding: Decoding) -> Job:
        check_decoding(decoding)
        prompt = self.prompt_ids(messages)
        room = self.context_window - len(prompt)
        if room < 1:
            raise ConfigError(
                f"The prompt has {len(prompt)} tokens, and the context window of '{self.name}' is "
                f"{self.context_window}. Give fewer or shorter passages (context_tokens)."
            )
        limit = min(decoding.max_new_tokens, room)
        copying = self.copying(messages, decoding, limit)
        random = np.random.default_rng(decoding.seed) if decoding.temperature > 0 else None
        return Job(index, prompt, decoding, limit, TextStream(self.tokenizer), copying, random=random)

    def copying(self, messages: Sequence[Message], decoding: Decoding, limit: int) -> CopyState | None:
        """What an answer of at most `limit` tokens may be, where the decoding restricts it; None where it does not."""
        if decoding.copy_from is None and not decoding.copy_options:
            return None
        lead = " " if is_begun(messages) else ""
        tables = [self._table(text, lead, whole=False) for text in decoding.copy_from or ()]
        return CopyState([*tables, *(self._table(o, lead, whole=True) for o in decoding.copy_options)], limit)

    def _table(self, text: str, lead: str, *, whole: bool) -> CopyTable:
        key = f"{'whole' if whole else 'spans'}:{lead}:{text}"
        table = self._tables.get(key)
        if table is None:
            if not self.tokenizer.is_fast and not whole:
                raise ModelError(f"copy_from needs a fast tokenizer, which '{self.name}' does not have.")
            table = self._spans.option(text, lead) if whole else self._spans.table(text, lead)
            if len(self._tables) >= TABLES_KEPT:
                self._tables.clear()
            self._tables[key] = table
        return table

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score(self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]) -> list[np.ndarray]:
        """Teacher-forced natural log-probability of each token of each completion, end of turn included; float32.

        Raises:
            ConfigError: prompt and completion together do not fit into the context window.
            NumericalError: the model returned NaN.
        """
        if len(prompts) != len(completions):
            raise ConfigError(f"{len(prompts)} prompts and {len(completions)} completions were given; give one each.")
        rows = [(self.prompt_ids(p), self.completion_ids(c)) for p, c in zip(prompts, completions, strict=True)]
        for prompt, completion in rows:
            if len(prompt) + len(completion) > self.context_window:
                raise ConfigError(
                    f"Prompt and completion have {len(prompt) + len(completion)} tokens, and the context window of "
                    f"'{self.name}' is {self.context_window}."
                )
        adapter = self._current()
        with self._lock, self._adapters.active(adapter):
            return score_rows(self._adapters.backend_factory(adapter), rows)

    # --- adapters ----------------------------------------------------------------------------------------------------

    def attach(self, folder: str | Path) -> str:
        """Load an adapter without switching it on; returns its key. A second call with the same files does nothing.

        Raises:
            AdapterMismatch: it was trained on another base or tokenizer; nothing was loaded.
        """
        with self._lock:
            return self._adapters.load(Path(folder))

    def added_tokens(self, folder: str | Path | None) -> dict[str, int]:
        """Tokens that this adapter brings, with their ids (none for an ordinary one); loads it."""
        if folder is None:
            return {}
        with self._lock:
            return dict(self._adapters.tokens(self.attach(folder)))

    @contextlib.contextmanager
    def adapter(self, folder: str | None) -> Iterator[None]:
        """Within the context the adapter of this folder is active for calls from this thread (None: the base alone)."""
        key = self.attach(folder) if folder is not None else None
        entry = (object(), key)  # contexts of suspended generators may end in another order, and in another thread
        stack = self._selected.setdefault(threading.get_ident(), [])
        stack.append(entry)
        try:
            yield
        finally:
            stack.remove(entry)

    def _current(self) -> str | None:
        stack = self._selected.get(threading.get_ident())
        return stack[-1][1] if stack else None

    def parity_check(self, folder: str | Path, prompts: Sequence[Sequence[Message]] = PARITY_PROMPTS) -> Parity:
        """Whether the adapter's merged weights answer like the attached ones (greedy tokens, logits within tolerance).

        `attach` does this once for each adapter and serves it merged, which is faster, only where they do.
        """
        with self._lock:
            return self._adapters.parity(self._adapters.load(Path(folder)), prompts)

    def merge(self, folder: str | Path) -> LocalGenerator:
        """A new generator whose weights have the adapter folded in; this one stays as it is."""
        with self._lock:
            key = self._adapters.load(Path(folder))
            model = self._adapters.merged_model(key)
            tokenizer = self.tokenizer
            if tokens := self._adapters.tokens(key):
                from rag.reflection_tokens import extended

                tokenizer = extended(tokenizer, sorted(tokens, key=lambda token: tokens[token]))[0]
        name = f"{self.name}+{Path(folder).name}"
        return LocalGenerator(model, tokenizer, name=name, fingerprint=content_hash(self.fingerprint, key))


def check_decoding(decoding: Decoding) -> None:
    """Raises ConfigError, naming the field, for values that no model can follow."""
    if decoding.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {decoding.max_new_tokens}; it must be at least 1.")
    if not 0 <= decoding.temperature <= 10:
        raise ConfigError(f"temperature is {decoding.temperature}; it must be between 0 (greedy) and 10.")
    if any(not stop for stop in decoding.stop):
        raise ConfigError("stop holds an empty string; every stop string needs at least one character.")


def context_window(config: Any) -> int:
    """How many tokens prompt and answer may have together."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    return next((int(v) for v in (getattr(text, name, None) for name in names) if v), 4096)


def load_causal(found: ModelFolder, *, device: torch.device, dtype: torch.dtype, quantize: str | None = None) -> Any:
    """(model, tokenizer) of a resolved folder, by transformers, safetensors only, no remote code.

    Raises:
        ModelError: it does not load, with the library's reason.
    """
    with quiet():
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        options: dict[str, Any] = {"dtype": dtype}
        if quantize is not None:
            if quantize != "nf4":
                raise ConfigError(f"quantize is {quantize!r}; allowed: nf4, or None.")
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
            options["device_map"] = {"": device}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(found.folder), trust_remote_code=False, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                str(found.folder), trust_remote_code=False, local_files_only=True, use_safetensors=True, **options
            )
        except Exception as error:  # a damaged folder makes the libraries raise nearly anything
            raise ModelError(f"The generator '{found.name}' in {found.folder} does not load: {error}") from error
    if quantize is None:
        model = model.to(device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def base_fingerprint(found: ModelFolder) -> str:
    """Identity of a base model: its weights and its shape; adapters name it."""
    config = found.folder / "config.json"
    return weights_fingerprint(found.folder, (config.read_text(encoding="utf-8"),) if config.is_file() else ())


@uncollected()
def base_model(
    name: str = "starter", *, dtype: Any = None, device: str | None = None, quantize: str | None = None
) -> tuple[Any, Any, str]:
    """(model, tokenizer, fingerprint) for trainers, in eval mode; `quantize="nf4"` loads 4-bit weights (bitsandbytes).

    Raises:
        UnknownModel: the name resolves to nothing here, or is an endpoint, whose weights are elsewhere.
        ModelError: it does not load.
    """
    found = resolve(name, "generator")
    place = pick_device(device)
    model, tokenizer = load_causal(found, device=place, dtype=pick_dtype(place, dtype), quantize=quantize)
    return model, tokenizer, base_fingerprint(found)


@uncollected()
def load_local_generator(name: str = "starter", *, device: str | None = None, dtype: Any = None) -> LocalGenerator:
    """The generator of this name on this machine."""
    found = resolve(name, "generator")
    place = pick_device(device)
    model, tokenizer = load_causal(found, device=place, dtype=pick_dtype(place, dtype))
    prepack(model)
    return LocalGenerator(model, tokenizer, name=name, fingerprint=base_fingerprint(found))
