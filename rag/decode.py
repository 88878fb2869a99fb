"""The decoding loop: many prompts through a few slots, each with its own rules, stopped as soon as it is done.

A prompt enters when a slot is free and leaves when its answer ends, so no row waits for the longest of its batch.
What a row may say is decided here: greedy or sampled, stop strings, or spans of given texts (`rag.copying`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.copying import CopyState
from rag.engine import PlainBackend
from rag.errors import NumericalError
from rag.packed import PackedBackend
from rag.protocols import Decoding

if TYPE_CHECKING:
    import torch

MIN_SHARED = 16  # a common beginning shorter than this costs more to arrange than it saves


class TextStream:
    """Token ids to text as they come; holds back what the next token can still change (half a character)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = self._read = 0
        self.text = ""

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def push(self, token: int, *, last: bool = False) -> str:
        """The new text that this token settles; the tokens since the last settled place are decoded together,
        because a tokenizer writes a token differently at the beginning of a text (a space, half a character)."""
        self._ids.append(token)
        return self.flush(last=last)

    def flush(self, *, last: bool = True) -> str:
        """What is left; with `last`, half characters too (as the tokenizer writes them)."""
        before = self._decode(self._ids[self._from : self._read])
        after = self._decode(self._ids[self._from :])
        if len(after) <= len(before) or (after.endswith("\ufffd") and not last):
            return ""
        self._from, self._read = self._read, len(self._ids)
        self.text += after[len(before) :]
        return after[len(before) :]


@dataclass(eq=False)
class Job:
    """One prompt on its way to an answer. `text` grows; `settled` characters of it can no longer change."""

    index: int
    prompt: Sequence[int]
    decoding: Decoding
    limit: int
    stream: TextStream
    copying: CopyState | None = None
    out: list[int] = field(default_factory=list)
    logprob: float = 0.0
    done: bool = False
    slot: int = -1
    settled: int = 0
    text: str = ""
    random: np.random.Generator | None = None

    def take(self, logits: np.ndarray | None, best: int, best_logprob: float, norm: float, ends: Sequence[int]) -> None:
        """Choose the next token from the logits (None: `best` is already known) and update the text."""
        token, logprob = best, best_logprob
        if logits is not None:
            token = self._choose(logits, ends)
            logprob = float(logits[token]) - norm
        self.logprob += logprob
        if token in ends:
            self.finish()
            return
        self.out.append(token)
        if self.copying is not None:
            self.copying.advance(token)
            self.text = self.copying.text
            self.settled = len(self.text)
        else:
            self.stream.push(token)
            self._look_for_stop()
        if len(self.out) >= self.limit:
            self.finish()

    def _choose(self, logits: np.ndarray, ends: Sequence[int]) -> int:
        allowed: np.ndarray | None = None
        if self.copying is not None:
            allowed = self.copying.allowed()
            if self.copying.can_end:
                end = max(ends, key=lambda e: float(logits[e]))
                allowed = np.append(allowed[~np.isin(allowed, ends)], end)
        values = logits if allowed is None else logits[allowed]
        if self.random is None:
            pick = int(values.argmax())
        else:
            scaled = values.astype(np.float64) / self.decoding.temperature
            weights = np.exp(scaled - scaled.max())
            pick = int(np.searchsorted(np.cumsum(weights), self.random.random() * weights.sum(), side="right"))
            pick = min(pick, len(values) - 1)
        return pick if allowed is None else int(allowed[pick])

    def _look_for_stop(self) -> None:
        self.text = self.stream.text
        self.settled = len(self.text)
        for stop in self.decoding.stop:
            at = self.text.find(stop)
            if at >= 0:
                self.text, self.settled, self.done = self.text[:at], at, True
                return
            for size in range(min(len(stop) - 1, len(self.text)), 0, -1):
                if self.text.endswith(stop[:size]):  # may become the stop string: not to be shown yet
                    self.settled = min(self.settled, len(self.text) - size)
                    break

    def finish(self) -> None:
        """No further token comes."""
        if self.copying is None and not self.done:
            self.stream.flush()
            self._look_for_stop()
        elif self.copying is not None:
            found = [at for at in map(self.text.find, self.decoding.stop) if at >= 0]
            self.text = self.text[: min(found, default=len(self.text))]
            self.out = self.out[: self.copying.kept]
        self.settled, self.done = len(self.text), True


def run(
    make_backend: Callable[[int, int], PackedBackend | PlainBackend], jobs: Sequence[Job], ends: Sequence[int]
) -> Iterator[list[Job]]:
    """Work on the jobs until all are done; yields after each step the jobs that got a token in it.

    Whoever iterates may stop at any time. Order of work: longest prompt first.
    """
    pending = sorted((job for job in jobs if not job.done), key=lambda job: -len(job.prompt))
    if not pending:
        return
    backend = make_backend(max(len(job.prompt) + job.limit for job in pending) + 1, len(pending))
    shared = common_prefix([job.prompt for job in pending]) if len(pending) > 1 and backend.continuous else 0
    shared = shared if shared >= MIN_SHARED else 0
    if shared:
        backend.share(pending[0].prompt[:shared])
    active: list[Job] = []
    while pending or active:
        entered = _enter(backend, pending, active, shared)
        if entered:
            logits = backend.admit([(job.slot, job.prompt[shared:]) for job in entered])
            _advance(entered, logits, ends)
            yield entered
        active = [job for job in [*active, *entered] if not job.done]
        if not active:
            continue
        if not pending and isinstance(backend, PackedBackend) and max(j.slot for j in active) + 1 > 2 * len(active):
            moved = backend.compact([job.slot for job in active])
            for job in active:
                job.slot = moved.get(job.slot, job.slot)
        if pending and backend.continuous and len(active) < backend.slots:
            continue
        stepping = list(active)
        _advance(stepping, backend.step([(job.slot, job.out[-1]) for job in stepping]), ends)
        active = [job for job in active if not job.done]
        yield stepping


def _enter(backend: PackedBackend | PlainBackend, pending: list[Job], active: list[Job], shared: int) -> list[Job]:
    """Give free slots to the next jobs, as many as one prefill takes."""
    if active and not backend.continuous:
        return []
    taken = {job.slot for job in active}
    free = [slot for slot in range(backend.slots) if slot not in taken]
    entered: list[Job] = []
    tokens = 0
    while pending and free:
        tokens += len(pending[0].prompt) - shared
        if entered and tokens > backend.prefill_tokens and backend.continuous:
            break
        job = pending.pop(0)
        job.slot = free.pop(0)
        entered.append(job)
    return entered


def _advance(jobs: Sequence[Job], logits: torch.Tensor, ends: Sequence[int]) -> None:
    import torch

    norms = torch.logsumexp(logits, dim=-1).tolist()
    if not all(map(math.isfinite, norms)):
        bad = [job.index for job, norm in zip(jobs, norms, strict=True) if not math.isfinite(norm)]
        raise NumericalError(f"The model returned NaN or infinity for prompts {bad[:10]}. Try --dtype fp32.")
    values, best = logits.max(dim=-1)
    tops, picks = values.tolist(), best.tolist()
    rows: np.ndarray | None = None
    if any(job.copying is not None or job.random is not None for job in jobs):
        rows = logits.cpu().numpy()
    for at, job in enumerate(jobs):
        own = rows[at] if rows is not None and (job.copying is not None or job.random is not None) else None
        job.take(own, picks[at], tops[at] - norms[at], norms[at], ends)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many first items all sequences share; at least one item of each is left over."""
    ordered = sorted(map(list, sequences))
    first, last = ordered[0], ordered[-1]  # in this order, the two that differ first
    length = 0
    limit = min(map(len, sequences)) - 1
    while length < limit and first[length] == last[length]:
        length += 1
    return length
