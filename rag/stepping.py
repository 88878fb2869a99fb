"""Several sequences of one model, fed by the caller: choose each next token, append texts, copy a sequence.

What beam search over segments, ensembles over passages and agents need, and `generate` hides: the log-probabilities of
the next token of every sequence, and a cache that is kept between calls, so that nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rag.decode import MIN_SHARED, common_prefix
from rag.engine import PlainBackend
from rag.errors import ConfigError, NumericalError
from rag.packed import PackedBackend, Segment

if TYPE_CHECKING:
    import torch

    from rag.generator import LocalGenerator


class Stepper:
    """Up to `rows` sequences of at most `capacity` tokens each, on the adapter that is active where it is made.

    Rows are numbered from 0. Every method returns float32 logits of the next token, [rows asked about, vocabulary], in
    the order asked. Not for two threads at once; the model is locked only while it runs.

    Raises:
        ConfigError: a row beyond `rows`, or more than `capacity` tokens in one.
        NumericalError: the model returned NaN.
    """

    def __init__(self, generator: LocalGenerator, *, rows: int, capacity: int) -> None:
        self.generator, self.rows = generator, rows
        self.capacity = min(capacity, generator.context_window)
        self.tokens: dict[int, list[int]] = {}
        self._shared: list[int] = []
        self._run = generator.hold()
        with self._run() as make:
            self._backend: Any = make(self.capacity + 1, rows)
        if self._backend.slots < rows and not isinstance(self._backend, PlainBackend):
            # asked for more than the memory limit of batches: the caller needs them all at once
            self._backend = PackedBackend(self._backend.model, slots=rows, capacity=self.capacity + 1)
        self._packed = isinstance(self._backend, PackedBackend)

    def share(self, prefix: Sequence[int]) -> None:
        """Run a beginning that prompts of several later `start`s have in common; they then take only what follows."""
        self._shared = list(prefix)
        if self._packed:
            with self._run():
                self._backend.share(self._shared)

    def start(self, prompts: Mapping[int, Sequence[int]]) -> torch.Tensor:
        """Begin each row with these tokens; what the prompts have in common at their beginning is run once."""
        rows = list(prompts)
        shared = len(self._shared)
        ready = bool(shared) and all(
            len(prompts[row]) > shared and list(prompts[row][:shared]) == self._shared for row in rows
        )
        if not ready:
            shared = common_prefix([prompts[row] for row in rows]) if len(rows) > 1 else 0
            shared = shared if shared >= MIN_SHARED and self._packed else 0
        for row in rows:
            self._check(row, 0, len(prompts[row]))
            self.tokens[row] = list(prompts[row])
        if not self._packed:
            return self._again(rows)
        if not ready:
            self.share(prompts[rows[0]][:shared])
        with self._run():
            return self._checked(self._backend.admit([(row, list(prompts[row][shared:])) for row in rows]))

    def step(self, tokens: Mapping[int, int]) -> torch.Tensor:
        """Append one token to each of these rows; other rows stay as they are."""
        for row, token in tokens.items():
            self._check(row, len(self.tokens[row]), 1)
            self.tokens[row].append(token)
        if not self._packed:
            return self._again(list(tokens))
        with self._run():
            return self._checked(self._backend.step(list(tokens.items()), park=True))

    def extend(self, texts: Mapping[int, Sequence[int]]) -> torch.Tensor:
        """Append several tokens to each of these rows, in one pass: a passage, an observation."""
        self._append(texts)
        if not self._packed:
            return self._again(list(texts))
        return self._grow(texts, every=False)

    @property
    def can_check(self) -> bool:
        """Whether `check` is there: the textbook pass gives the logits behind the last token only."""
        return self._packed

    def check(self, texts: Mapping[int, Sequence[int]]) -> list[torch.Tensor]:
        """As `extend`, with the logits behind every appended token: one [tokens, vocabulary] for each row, in order.

        For text that may turn out to be wrong: `cut` takes back what is.
        """
        import torch

        self._append(texts)
        sizes = [len(ids) for ids in texts.values()]
        return list(torch.split(self._grow(texts, every=True), sizes))

    def _append(self, texts: Mapping[int, Sequence[int]]) -> None:
        for row, ids in texts.items():
            if not ids:
                raise ConfigError(f"Row {row} was to be extended by no tokens; leave it out.")
            self._check(row, len(self.tokens[row]), len(ids))
        for row, ids in texts.items():
            self.tokens[row].extend(ids)

    def _grow(self, texts: Mapping[int, Sequence[int]], *, every: bool) -> torch.Tensor:
        """Run what was appended; the logits behind every token, or behind the last one of each row."""
        segments: list[Segment] = []
        keep: list[int] = []
        end = 0
        for row, ids in texts.items():
            segments.append(Segment(list(ids), len(self.tokens[row]) - len(ids), row, row))
            keep += range(end if every else end + len(ids) - 1, end + len(ids))
            end += len(ids)
        with self._run():
            return self._checked(self._backend.grow(segments, keep))

    def copy(self, source: int, target: int) -> None:
        """Row `target` becomes a copy of row `source`; whatever it held is gone."""
        self._check(target, 0, 0)
        self.tokens[target] = list(self.tokens[source])
        if self._packed and source != target:
            with self._run():
                self._backend.copy(source, target)

    def cut(self, row: int, length: int) -> None:
        """Keep only the first `length` tokens of a row. The next call on it must append something."""
        if not 0 < length <= len(self.tokens[row]):
            raise ConfigError(f"Row {row} has {len(self.tokens[row])} tokens and cannot be cut to {length}.")
        del self.tokens[row][length:]
        if self._packed:
            self._backend.cut(row, length)

    def room(self, row: int) -> int:
        """How many tokens can still be appended."""
        return self.capacity - len(self.tokens[row])

    def _check(self, row: int, length: int, more: int) -> None:
        if not 0 <= row < self.rows:
            raise ConfigError(f"There is no row {row}; this stepper has rows 0 to {self.rows - 1}.")
        if length + more > self.capacity:
            raise ConfigError(
                f"Row {row} would have {length + more} tokens; at most {self.capacity} are allowed here. "
                "Give fewer or shorter passages."
            )

    def _again(self, rows: Sequence[int]) -> torch.Tensor:
        """The textbook way, for models that the packed pass does not fit: every sequence from its beginning."""
        with self._run():
            return self._checked(self._backend.admit([(row, self.tokens[row]) for row in rows]))

    @staticmethod
    def _checked(logits: torch.Tensor) -> torch.Tensor:
        if not bool(logits.isfinite().any(dim=-1).all()) or bool(logits.isnan().any()):
            raise NumericalError("The model returned NaN. Try --dtype fp32.")
        return logits
