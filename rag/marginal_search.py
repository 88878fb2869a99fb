"""Beam search over several prompts at once, in one step loop, for one question or hundreds.

A group is one output that its prompts choose together: each prompt gives a distribution over the next token, the
distributions are averaged with the group's weights, and the chosen token is appended to all of them (REPLUG,
RAG-Token). A group of one prompt is an ordinary beam search (RAG-Sequence has one for each passage).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rag.copying import CopyState
from rag.decode import MIN_SHARED, common_prefix
from rag.engine import CPU_KV_BYTES, CPU_SLOTS, GPU_KV_BYTES, GPU_SLOTS, kv_bytes_per_token
from rag.stepping import Stepper

if TYPE_CHECKING:
    import torch

    from rag.generator import LocalGenerator


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts (token ids) that choose one output together, and their log weights [prompts].

    `copying` restricts the output to spans of texts (see `rag.copying`); None does not.
    """

    prompts: Sequence[Sequence[int]]
    weights: np.ndarray
    copying: CopyState | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One finished output: its tokens without the end of the turn, the log-probability of tokens and end under the
    group's mixture, and under each prompt by itself [prompts]. `closed`: the model ended it (not a stop string or the
    token limit)."""

    tokens: tuple[int, ...]
    text: str
    logprob: float
    by_prompt: np.ndarray
    closed: bool


@dataclass(slots=True)
class _Beam:
    """An output under way; `block` is its place among the rows of its group."""

    block: int
    logprob: float
    by_prompt: np.ndarray
    copying: CopyState | None
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Active:
    """A group under way: `rows[b][k]` is the stepper's row of beam block b and prompt k."""

    index: int
    group: Group
    rows: list[list[int]]
    live: list[_Beam] = field(default_factory=list)
    finished: list[Hypothesis] = field(default_factory=list)


def search(
    generator: LocalGenerator, groups: Sequence[Group], *, beams: int, limit: int, stop: Sequence[str] = ()
) -> Iterator[tuple[int, str, list[Hypothesis]]]:
    """(number of the group, its best text, its hypotheses, best first, at most `beams`) as each group is done; before
    that, after each step, the same for one of the groups under way, without hypotheses: there a caller may stop.

    One beam is greedy. Groups enter as rows become free; the beginning that all prompts share is run once.
    """
    if not groups:
        return
    limit = min(limit, generator.context_window - max(len(p) for g in groups for p in g.prompts))
    capacity = max(len(p) for g in groups for p in g.prompts) + limit
    need = max(len(g.prompts) for g in groups) * beams
    rows = max(need, min(_most_rows(generator, capacity), sum(len(g.prompts) for g in groups) * beams))
    stepper = Stepper(generator, rows=rows, capacity=capacity)
    everything = [p for g in groups for p in g.prompts]
    shared = common_prefix(everything) if len(everything) > 1 else 0
    if shared >= MIN_SHARED:
        stepper.share(everything[0][:shared])
    work = _Search(generator, stepper, beams, limit, tuple(stop))
    free, waiting, active = list(range(rows)), list(enumerate(groups)), list[_Active]()
    while waiting or active:
        entered: list[_Active] = []
        while waiting and len(free) >= len(waiting[0][1].prompts) * beams:
            index, group = waiting.pop(0)
            entered.append(_enter(index, group, beams, free))
        active += entered
        if entered:
            work.begin(entered)
        for state in [a for a in active if not a.live]:
            active.remove(state)
            free = sorted([*free, *(row for block in state.rows for row in block)])
            found = sorted(state.finished, key=lambda h: -h.logprob)[:beams]
            yield state.index, found[0].text, found
        if active and not (waiting and len(free) >= len(waiting[0][1].prompts) * beams):
            work.step(active)
            yield active[0].index, work.so_far(active[0]), []


def _most_rows(generator: LocalGenerator, capacity: int) -> int:
    """As many rows as the memory limit of batches allows."""
    cpu = generator.device.type == "cpu"
    each = max(1, kv_bytes_per_token(generator.model.config, generator.dtype.itemsize) * capacity)
    return min(CPU_SLOTS if cpu else GPU_SLOTS, (CPU_KV_BYTES if cpu else GPU_KV_BYTES) // each)


def _enter(index: int, group: Group, beams: int, free: list[int]) -> _Active:
    """Takes the lowest free rows: a step costs as much as its highest row says."""
    count = len(group.prompts)
    rows = [[free.pop(0) for _ in range(count)] for _ in range(beams)]
    return _Active(index, group, rows)


class _Search:
    """One step of all active groups, and what follows from its logits."""

    def __init__(
        self, generator: LocalGenerator, stepper: Stepper, beams: int, limit: int, stop: tuple[str, ...]
    ) -> None:
        self.stepper, self.beams, self.limit, self.stop = stepper, beams, limit, stop
        self.ends = generator.tokens.ends
        self.tokenizer = generator.tokenizer

    def begin(self, entered: Sequence[_Active]) -> None:
        """Run the prompts of new groups and choose their first tokens."""
        logits = self.stepper.start(
            {row: prompt for a in entered for row, prompt in zip(a.rows[0], a.group.prompts, strict=True)}
        )
        values = logits.log_softmax(dim=-1)
        at = 0
        for state in entered:
            count = len(state.group.prompts)
            root = _Beam(0, 0.0, np.zeros(count), state.group.copying)
            self._choose(state, [root], values[at : at + count])
            at += count

    def step(self, active: Sequence[_Active]) -> None:
        """Append the last chosen token of every beam to all its rows, and choose the next ones."""
        tokens = {row: beam.tokens[-1] for a in active for beam in a.live for row in a.rows[beam.block]}
        values = self.stepper.step(tokens).log_softmax(dim=-1)
        at = 0
        for state in active:
            size = len(state.live) * len(state.group.prompts)
            self._choose(state, list(state.live), values[at : at + size])
            at += size

    def _choose(self, state: _Active, parents: Sequence[_Beam], values: torch.Tensor) -> None:
        """The best continuations of a group's beams; `values` are log-probabilities [beams × prompts, vocabulary]."""
        import torch

        count = len(state.group.prompts)
        each = values.reshape(len(parents), count, -1)
        weights = torch.tensor(state.group.weights, dtype=torch.float32, device=each.device)
        mixed = torch.logsumexp(each + weights[:, None], dim=1) if count > 1 else each[:, 0]
        state.live = []
        children: list[_Beam] = []
        for score, parent, token in self._best(parents, mixed):
            if len(children) == self.beams:
                break
            beam = parents[parent]
            by_prompt = beam.by_prompt + each[parent, :, token].cpu().numpy().astype(np.float64)
            if token in self.ends:
                state.finished.append(self._done(beam, score, by_prompt, closed=True))
                continue
            child = _Beam(beam.block, score, by_prompt, copy.copy(beam.copying), [*beam.tokens, token])
            if child.copying is not None:
                child.copying.advance(token)
            if len(child.tokens) >= self.limit or self._stopped(child):
                state.finished.append(self._done(child, score, by_prompt, closed=False))
                continue
            children.append(child)
        self._keep(state, children)

    def _best(self, parents: Sequence[_Beam], mixed: torch.Tensor) -> list[tuple[float, int, int]]:
        """(log-probability so far, parent, token), best first; as many as can be needed with every end among them."""
        import torch

        if any(p.copying is not None for p in parents):
            mixed = torch.stack([self._allowed(p, row) for p, row in zip(parents, mixed, strict=True)])
        if len(parents) == 1 and self.beams == 1:
            value, place = mixed[0].max(dim=-1)
            return [(parents[0].logprob + float(value), 0, int(place))] if value > -np.inf else []
        wanted = self.beams * (1 + len(self.ends)) + self.beams
        width = mixed.shape[-1]
        before = torch.tensor([p.logprob for p in parents], dtype=torch.float64, device=mixed.device)
        values, places = (mixed.double() + before[:, None]).reshape(-1).topk(min(wanted, mixed.numel()))
        found = zip(values.tolist(), places.tolist(), strict=True)
        return [(score, place // width, place % width) for score, place in found if score > -np.inf]

    def _allowed(self, beam: _Beam, row: torch.Tensor) -> torch.Tensor:
        """The row with −inf where copying allows no token; the end only where a word ends."""
        import torch

        assert beam.copying is not None
        kept = torch.full_like(row, -np.inf)
        ids = np.setdiff1d(beam.copying.allowed(), self.ends)
        if beam.copying.can_end:
            ids = np.append(ids, max(self.ends, key=lambda e: float(row[e])))
        at = torch.tensor(ids, device=row.device, dtype=torch.long)
        kept[at] = row[at]
        return kept

    def _keep(self, state: _Active, children: list[_Beam]) -> None:
        """Give every child the rows of its parent, or a copy of them; end the search where nothing can get better."""
        best = max((c.logprob for c in children), default=-np.inf)
        ranked = sorted((h.logprob for h in state.finished), reverse=True)
        if len(ranked) >= self.beams and ranked[self.beams - 1] >= best:
            return  # log-probabilities only fall
        taken: set[int] = set()
        later: list[_Beam] = []
        for child in children:
            later += [child] if child.block in taken else []
            taken.add(child.block)
        free = [b for b in range(self.beams) if b not in taken]
        for child in later:
            block = free.pop(0)
            for source, target in zip(state.rows[child.block], state.rows[block], strict=True):
                self.stepper.copy(source, target)
            child.block = block
        state.live = children

    def so_far(self, state: _Active) -> str:
        """What is sure of a group's text: with several beams nothing, and no half characters."""
        if self.beams > 1 or not state.live:
            return ""
        beam = state.live[0]
        text = self._text(beam.tokens) if beam.copying is None else beam.copying.text
        return "" if text.endswith("\ufffd") or any(s[:1] in text for s in self.stop) else text

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _stopped(self, beam: _Beam) -> bool:
        return bool(self.stop) and any(s in self._text(beam.tokens) for s in self.stop)

    def _done(self, beam: _Beam, score: float, by_prompt: np.ndarray, *, closed: bool) -> Hypothesis:
        if beam.copying is not None:
            text, tokens = beam.copying.text, beam.tokens[: beam.copying.kept]
        else:
            text, tokens = self._text(beam.tokens), beam.tokens
        found = [at for at in map(text.find, self.stop) if at >= 0]
        return Hypothesis(tuple(tokens), text[: min(found, default=len(text))], score, by_prompt, closed)
