"""Who answers the questions of agents' runs: a local model that keeps its cache between steps, or any generator.

A local model never reads a conversation twice. Each row of its cache holds one run; what is asked next begins with what
stands there already, and only the new tokens, an observation and the marks around it, go through the model. A row that
is given a new question keeps the instruction it shares with the old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from agents.loop import Ask, Said, Traits
from rag.errors import ConfigError
from rag.protocols import Decoding, Message
from rag.protocols import Generator as Model

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rag.decode import Job
    from rag.generator import LocalGenerator

DRAFT, DRAFTING_ROWS = 8, 2
"""Most tokens of a draft, and most rows for which drafts are made."""


class Speaker(Protocol):
    """Answers several runs' questions at once, each known by a row."""

    traits: Traits
    rows: int

    def complete(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        """What the model says to each."""
        ...


def speaker(generator: Model, *, rows: int = 1, context_tokens: int = 1536) -> Speaker:
    """The best way to talk to this generator; made within the context of the adapter that is to be used."""
    if hasattr(generator, "hold"):
        return CachedSpeaker(generator, rows=rows, capacity=context_tokens)  # type: ignore[arg-type]
    return PlainSpeaker(generator, rows=rows)


class PlainSpeaker:
    """Any generator, by whole prompts; it is not asked to continue a beginning or to keep to options."""

    def __init__(self, generator: Model, *, rows: int = 1) -> None:
        self.generator, self.rows = generator, rows
        self.traits = Traits(generator.count_tokens)

    def complete(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        decodings = [Decoding(a.max_tokens, a.stop, a.temperature, a.seed) for a in asks.values()]
        made = self.generator.generate([list(a.messages) for a in asks.values()], decodings)
        return {row: Said(g.text.strip(), g.tokens_in, g.tokens_out) for row, g in zip(asks, made, strict=True)}


class CachedSpeaker:
    """A local model on a `Stepper`: rows side by side, each token step for all of them at once."""

    def __init__(self, generator: LocalGenerator, *, rows: int, capacity: int) -> None:
        from rag.stepping import Stepper

        self.generator, self.rows = generator, rows
        self.traits = Traits(generator.count_tokens, continues=True, chooses=True)
        self.stepper = Stepper(generator, rows=rows, capacity=capacity)
        self.read = 0  # tokens that went through the model as text

    def complete(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        choosing = {row: ask for row, ask in asks.items() if ask.options}
        speaking = {row: ask for row, ask in asks.items() if not ask.options}
        return {**self._choose(choosing), **self._speak(speaking)}

    def _ids(self, ask: Ask, more: str = "") -> list[int]:
        begun: list[Message] = [{"role": "assistant", "content": ask.begun + more}] if ask.begun + more else []
        return self.generator.prompt_ids([*ask.messages, *begun])

    def _sync(self, wanted: Mapping[int, Sequence[int]]) -> tuple[Any, dict[int, int]]:
        """Bring rows to these tokens; the logits behind them, in order, and how many tokens each had to read."""
        import torch

        held = self.stepper.tokens
        fresh = {row: ids for row, ids in wanted.items() if row not in held}
        more: dict[int, list[int]] = {}
        for row, ids in wanted.items():
            if row in fresh:
                continue
            same = _shared(held[row], ids)
            same = min(same, len(ids) - 1)  # the last token is run again where nothing is new: its logits are asked
            if same == 0:
                fresh[row] = ids
                continue
            if same < len(held[row]):
                self.stepper.cut(row, same)
            more[row] = list(ids[same:])
        parts: dict[int, Any] = {}
        for group, feed in ((fresh, self.stepper.start), (more, self.stepper.extend)):
            if group:
                logits = feed(group)
                parts.update({row: logits[i] for i, row in enumerate(group)})
        read = {row: len(more.get(row, fresh.get(row, ()))) for row in wanted}
        self.read += sum(read.values())
        return torch.stack([parts[row] for row in wanted]), read

    def _choose(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        """The option that the model's next token names; options that begin alike are told apart further on."""
        out: dict[int, Said] = {}
        left = {row: {o: self._ids(ask, o) for o in ask.options} for row, ask in asks.items()}
        total = dict.fromkeys(asks, 0)
        while left:
            places = {
                row: min(_all_shared(list(ids.values())), min(map(len, ids.values())) - 1) for row, ids in left.items()
            }
            logits, read = self._sync({row: next(iter(ids.values()))[: places[row]] for row, ids in left.items()})
            for i, (row, ids) in enumerate(list(left.items())):
                total[row] += read[row]
                at = places[row]
                best = max(ids, key=lambda o: float(logits[i][ids[o][at]]))
                kept = {o: v for o, v in ids.items() if v[at] == ids[best][at]}
                if len(kept) == 1 or len(kept) == len(ids):
                    out[row] = Said(best, total[row], 1)
                    del left[row]
                else:
                    left[row] = kept
        return out

    def _speak(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        from rag.decode import Job, TextStream

        if not asks:
            return {}
        import numpy as np

        jobs: dict[int, Job] = {}
        prompts = {row: self._ids(ask) for row, ask in asks.items()}
        for row, ask in asks.items():
            room = self.stepper.capacity - len(prompts[row])
            if room < 1:
                raise ConfigError(
                    f"The conversation has {len(prompts[row])} tokens; at most {self.stepper.capacity - 1} fit here. "
                    "Ask a shorter question, or raise context_tokens."
                )
            random = np.random.default_rng(ask.seed) if ask.temperature > 0 else None
            decoding = Decoding(ask.max_tokens, ask.stop, ask.temperature, ask.seed)
            jobs[row] = Job(
                row,
                prompts[row],
                decoding,
                min(ask.max_tokens, room),
                TextStream(self.generator.tokenizer),
                random=random,
            )
        logits, read = self._sync(prompts)
        self._take_all(jobs, asks, logits)
        while active := {row: job for row, job in jobs.items() if not job.done}:
            drafts = self._drafts(active)
            if drafts:
                said = self.stepper.check({row: [job.out[-1], *drafts[row]] for row, job in active.items()})
                for (row, job), behind in zip(active.items(), said, strict=True):
                    self._accept(job, asks[row], drafts[row], behind)
            else:
                self._take_all(active, asks, self.stepper.step({row: job.out[-1] for row, job in active.items()}))
        return {row: Said(job.text.strip(), read[row], len(job.out)) for row, job in jobs.items()}

    def _take_all(self, jobs: Mapping[int, Job], asks: Mapping[int, Ask], logits: torch.Tensor) -> None:
        """The next token of each job, from [jobs, vocabulary]."""
        for (row, job), best, behind in zip(jobs.items(), logits.argmax(dim=-1).tolist(), logits, strict=True):
            self._take(job, asks[row], best, behind)

    def _take(self, job: Job, ask: Ask, best: int, logits: torch.Tensor) -> None:
        row: np.ndarray | None = logits.cpu().numpy() if job.random is not None else None
        job.take(row, best, 0.0, 0.0, self.generator.tokens.ends)
        if ask.bracket and (end := closing(job.text)) is not None:
            job.text, job.done = job.text[:end], True

    def _drafts(self, active: Mapping[int, Job]) -> dict[int, list[int]]:
        """What each row may say next, because the conversation had it before; {} where nothing is worth checking.

        Agents repeat questions, names and what they read. A pass over a few tokens costs hardly more than over one, as
        long as few rows share it.
        """
        if len(active) > DRAFTING_ROWS or not self.stepper.can_check:
            return {}
        drafts = {}
        for row, job in active.items():
            most = min(DRAFT, job.limit - len(job.out) - 1, self.stepper.room(row) - 1)
            drafts[row] = repeated([*self.stepper.tokens[row], job.out[-1]], most) if job.random is None else []
        return drafts if any(drafts.values()) else {}

    def _accept(self, job: Job, ask: Ask, draft: Sequence[int], logits: torch.Tensor) -> None:
        """Take tokens as long as the draft foresaw them, and the one behind; `logits` are [1 + draft, vocabulary]."""
        right, best = 0, logits.argmax(dim=-1).tolist()
        self._take(job, ask, best[0], logits[0])
        while not job.done and right < len(draft) and job.out[-1] == draft[right]:
            right += 1
            self._take(job, ask, best[right], logits[right])
        if right < len(draft):
            self.stepper.cut(job.index, len(self.stepper.tokens[job.index]) - (len(draft) - right))


def closing(text: str) -> int | None:
    """Where the bracket closes that was opened before `text` began; None while it is open."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return i
    return None


def repeated(tokens: Sequence[int], most: int) -> list[int]:
    """What followed, up to `most` tokens, when the last three (else two) tokens last stood together before.

    Prompt lookup decoding (Saxena 2023): a draft that costs no model.
    """
    for size in (3, 2):
        end = list(tokens[-size:])
        for at in range(len(tokens) - size - 1, -1, -1):
            if tokens[at] == end[0] and list(tokens[at : at + size]) == end:
                return list(tokens[at + size : at + size + max(0, most)])
    return []


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def _all_shared(sequences: Sequence[Sequence[int]]) -> int:
    return min((_shared(sequences[0], other) for other in sequences[1:]), default=len(sequences[0]))
