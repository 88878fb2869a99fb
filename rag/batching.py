"""Many conversations on one model: every stream joins the batch at the next step and leaves it when its answer ends.

A thread runs the model. In each round it takes in what one prefill holds, then moves all streams on by one token: a new
question waits for a prefill, not for the longest answer. Streams with different adapters run in lanes that take turns.
What prompts have in common at their beginning (instruction, worked examples) is kept and run once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rag.decode import MIN_SHARED, Job, _advance
from rag.errors import ConfigError
from rag.generator import LocalGenerator
from rag.hardware import compute
from rag.packed import PackedBackend, Segment
from rag.protocols import Decoding, Message

_KEPT_PREFIXES = 4
_ROUND = 256  # capacities are multiples of this many tokens, so that few requests make a lane begin again
_FIRST_CAPACITY = 1024
_YIELD = 1e-4  # seconds between two rounds in which others, who wait for the model's lock, get it


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """`idle_seconds`: how long the keys and values of a lane without work stay in memory."""

    idle_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.idle_seconds <= 0:
            raise ConfigError(f"BatchConfig.idle_seconds is {self.idle_seconds}; it must be above 0.")


@dataclass(eq=False)
class _Ticket:
    """One stream: its job, where its pieces go (None: the end; an exception: a failure), and whether it was left."""

    job: Job
    pieces: queue.SimpleQueue[str | BaseException | None] = field(default_factory=queue.SimpleQueue)
    left: bool = False
    shown: int = 0

    def publish(self) -> None:
        """Hand on what can no longer change."""
        if self.job.settled > self.shown:
            self.pieces.put(self.job.text[self.shown : self.job.settled])
            self.shown = self.job.settled
        if self.job.done:
            self.pieces.put(None)


@dataclass(eq=False)
class _Lane:
    """The streams of one adapter, and the slots they have.

    `prefixes` are the tokens that the kept slots hold, the one used last at the end, with its slot; `recent` are the
    last prompts, to see what prompts have in common.
    """

    adapter: str | None
    waiting: deque[_Ticket] = field(default_factory=deque)
    active: list[_Ticket] = field(default_factory=list)
    backend: Any = None
    slots: int = 0
    capacity: int = 0
    prefixes: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    recent: deque[Sequence[int]] = field(default_factory=lambda: deque(maxlen=8))
    used: float = 0.0


class BatchedGenerator(LocalGenerator):
    """A `LocalGenerator` whose streams, from any number of threads, run as one batch; the rest is as it was.

    It takes over the model of `inner`. Models that the packed pass does not fit stream as before, turn by turn.
    """

    def __init__(self, inner: LocalGenerator, config: BatchConfig = BatchConfig()) -> None:
        vars(self).update(vars(inner))
        self._config = config
        self._wake = threading.Condition()
        self._arrived: list[tuple[str | None, _Ticket]] = []
        self._lanes: dict[str | None, _Lane] = {}
        self._thread: threading.Thread | None = None
        self._together = isinstance(self._adapters.backend_factory(None)(16, 1), PackedBackend)

    @property
    def together(self) -> bool:
        """Whether streams share the model's passes."""
        return self._together

    @property
    def load(self) -> tuple[int, int]:
        """Streams that are being written, and that wait for a place."""
        lanes = list(self._lanes.values())
        running = sum(not t.job.done and not t.left for lane in lanes for t in list(lane.active))
        return running, sum(len(lane.waiting) for lane in lanes) + len(self._arrived)

    def stream(self, messages: Sequence[Message], decoding: Decoding = Decoding()) -> Iterator[str]:
        """Pieces of one generation as they come, equal to those of an unbatched stream; closing the iterator frees its
        place. The adapter active at the time of this call is used to the end."""
        if not self._together:
            return super().stream(messages, decoding)
        ticket = _Ticket(self._job(0, messages, decoding))
        return self._follow(ticket, self._current())

    def _follow(self, ticket: _Ticket, adapter: str | None) -> Iterator[str]:
        with self._wake:
            self._arrived.append((adapter, ticket))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="ragtune-batch", daemon=True)
                self._thread.start()
            self._wake.notify()
        try:
            while True:
                piece = ticket.pieces.get()
                if piece is None:
                    return
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            ticket.left = True

    # ------------------------------------------------------------ the thread's side

    def _serve(self) -> None:
        while True:
            with self._wake:
                idle = not self._arrived and not any(lane.waiting or lane.active for lane in self._lanes.values())
                if idle and not self._wake.wait(self._config.idle_seconds) and not self._arrived:
                    self._lanes.clear()
                    self._thread = None
                    return
                for adapter, ticket in self._arrived:
                    self._lanes.setdefault(adapter, _Lane(adapter)).waiting.append(ticket)
                self._arrived.clear()
            for lane in list(self._lanes.values()):
                try:
                    compute(self.device, self._round, lane)
                except BaseException as error:  # whatever it is, those who wait must hear of it
                    for ticket in (*lane.active, *lane.waiting):
                        ticket.pieces.put(error)
                    del self._lanes[lane.adapter]

    def _round(self, lane: _Lane) -> None:
        """Let streams leave, let streams in, and move all on by one token."""
        self._leave(lane)
        lane.waiting = deque(t for t in lane.waiting if not t.left)
        if not lane.active and not lane.waiting:
            if time.monotonic() - lane.used > self._config.idle_seconds:
                del self._lanes[lane.adapter]
            return
        lane.used = time.monotonic()
        with self._lock, self._adapters.active(lane.adapter):
            self._enter(lane)
            self._leave(lane)
            self._compact(lane)
            if lane.active:
                jobs = [ticket.job for ticket in lane.active]
                logits = lane.backend.step([(job.slot, job.out[-1]) for job in jobs], park=True)
                _advance(jobs, logits, self.tokens.ends)
        for ticket in lane.active:
            ticket.publish()
        self._leave(lane)
        time.sleep(_YIELD)

    def _leave(self, lane: _Lane) -> None:
        """Streams that ended or were left give their slots back."""
        for ticket in [t for t in lane.active if t.job.done or t.left]:
            lane.active.remove(ticket)
            lane.backend.cut(ticket.job.slot, 0)

    def _enter(self, lane: _Lane) -> None:
        """Prefill the next streams, in the order they came, as many as one pass holds."""
        entered: list[_Ticket] = []
        segments: list[Segment] = []
        tokens = 0
        while lane.waiting and self._fits(lane, lane.waiting[0]):
            taken = {t.job.slot for t in (*lane.active, *entered)}
            slot = next((s for s in range(lane.slots) if s not in taken), None)
            if slot is None:
                break
            job = lane.waiting[0].job
            known = self._known(lane, job.prompt)
            fresh = len(job.prompt) - (known[1] if known else 0)
            if entered and tokens + fresh > lane.backend.prefill_tokens:
                break
            entered.append(lane.waiting.popleft())
            job.slot, past = slot, 0
            if known:
                source, past = known
                lane.backend.copy(source, slot)
                lane.backend.cut(slot, past)
            segments.append(Segment(job.prompt[past:], past, slot, slot))
            tokens += fresh
        if not entered:
            return
        lane.active += entered  # before anything can fail: those who wait must hear of it
        logits = self._prefill(lane, segments)
        jobs = [ticket.job for ticket in entered]
        for job in jobs:
            self._keep(lane, job)
        _advance(jobs, logits, self.tokens.ends)
        for ticket in entered:
            ticket.publish()

    def _prefill(self, lane: _Lane, segments: list[Segment]) -> Any:
        """The logits after each segment. One that is longer than a pass comes alone, and is run in pieces."""
        limit = lane.backend.prefill_tokens
        first = segments[0]
        while len(first.ids) > limit:
            piece = Segment(first.ids[:limit], first.past, first.past_slot, first.keep_slot)
            lane.backend.grow([piece], [limit - 1])
            first = Segment(first.ids[limit:], first.past + limit, first.past_slot, first.keep_slot)
        segments = [first, *segments[1:]]
        keep, end = [], 0
        for segment in segments:
            end += len(segment.ids)
            keep.append(end - 1)
        return lane.backend.grow(segments, keep)

    def _fits(self, lane: _Lane, ticket: _Ticket) -> bool:
        """Whether the lane's slots are long enough; where not, it is made anew as soon as it is empty."""
        need = len(ticket.job.prompt) + ticket.job.limit + 1
        if lane.backend is not None and need <= lane.capacity:
            return True
        if lane.active:
            return False
        lane.capacity = max(_FIRST_CAPACITY, lane.capacity, -(-need // _ROUND) * _ROUND)
        made = self._adapters.backend_factory(lane.adapter)(lane.capacity, 10**6)
        lane.slots = made.slots
        lane.backend = PackedBackend(made.model, slots=lane.slots + _KEPT_PREFIXES, capacity=lane.capacity)
        lane.prefixes = []
        lane.recent.clear()
        return True

    @staticmethod
    def _known(lane: _Lane, prompt: Sequence[int]) -> tuple[int, int] | None:
        """(slot, tokens) of the longest beginning of a prompt that a kept slot holds."""
        best = max(lane.prefixes, key=lambda kept: _common(kept[0], prompt), default=None)
        if best is None or _common(best[0], prompt) < MIN_SHARED:
            return None
        lane.prefixes.remove(best)
        lane.prefixes.append(best)
        return best[1], _common(best[0], prompt)

    @staticmethod
    def _keep(lane: _Lane, job: Job) -> None:
        """A beginning that two prompts share, and that no kept slot holds, is kept: the one used longest ago goes."""
        shared = max((_common(other, job.prompt) for other in lane.recent), default=0)
        lane.recent.append(job.prompt)
        held = max((_common(prefix, job.prompt) for prefix, _ in lane.prefixes), default=0)
        if shared < MIN_SHARED or shared <= held:
            return
        full = len(lane.prefixes) >= _KEPT_PREFIXES
        slot = lane.prefixes.pop(0)[1] if full else lane.slots + len(lane.prefixes)
        lane.backend.copy(job.slot, slot)
        lane.backend.cut(slot, shared)
        lane.prefixes.append((tuple(job.prompt[:shared]), slot))

    def _compact(self, lane: _Lane) -> None:
        """Move streams into lower slots when most below the highest are empty: a step runs all up to the highest."""
        used = [t.job.slot for t in lane.active]
        if used and max(used) + 1 > 2 * len(used):
            moved = lane.backend.compact(used)
            for ticket in lane.active:
                ticket.job.slot = moved.get(ticket.job.slot, ticket.job.slot)


def _common(known: Sequence[int], prompt: Sequence[int]) -> int:
    """How many first tokens are equal; at least the last of the prompt is left over."""
    length = 0
    for a, b in zip(known, prompt[:-1], strict=False):
        if a != b:
            break
        length += 1
    return length
