"""Self-RAG's decoding: retrieve or not, several passages side by side, the best segments kept, and so on.

Algorithm 1 of Asai et al. 2024 (arXiv 2310.11511) with their segment-level beam search, over one key-value cache: the
question runs once, its passages are continued together, and of the logits only the 13 reflection tokens are read (the
likeliest token and the normaliser come with every step of greedy decoding).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag.reflection import (
    CONTINUE,
    IRRELEVANT,
    IS_REL,
    IS_SUP,
    IS_USE,
    NO_RETRIEVAL,
    RETRIEVAL,
    RETRIEVE,
    plain,
    retrieval_ratio,
    select,
    wants_retrieval,
    within,
)
from rag.reflection_tokens import TokenIds, family
from rag.self_rag_parts import (
    LEAST,
    RESERVE,
    Beam,
    Candidate,
    Run,
    SelfRagConfig,
    judged,
    likeliest,
    passage_text,
    reminder,
)
from rag.stepping import Stepper
from rag.types import Step

if TYPE_CHECKING:
    import torch

    from rag.generator import LocalGenerator


class Tree:
    """Answers several questions at once with one model and its tokens; see `run`."""

    def __init__(self, generator: LocalGenerator, ids: TokenIds, config: SelfRagConfig, *, segment_tokens: int) -> None:
        self.generator, self.ids, self.config = generator, ids, config
        self.segment = config.segment_tokens or segment_tokens
        self.ends = set(generator.tokens.ends)
        self.special = {*ids.ids.values(), *self.ends}
        self._support = {ids[token] for token in IS_SUP}
        self._unit = config.passage_tokens + self.segment + RESERVE + 3

    def run(self, runs: Sequence[Run]) -> Iterator[tuple[int, Step]]:
        """Fill in `beams` (best first) of each run; yields (number of the run, what was decided)."""
        for number, run in enumerate(runs):
            run.beams = [Beam(number)]
        for level in range(self.config.depth):
            live = [n for n, run in enumerate(runs) if any(not beam.ended for beam in run.beams)]
            if not live:
                return
            if level < 2:
                stepper = self._stepper(runs, live, level)
            yield from self._level(stepper, runs, live, level)

    # ----------------------------------------------------------------------------------------------------------- rows

    def _stepper(self, runs: Sequence[Run], live: Sequence[int], level: int) -> Stepper:
        """At level 0 a row for each passage; from level 1 on, for an answer that goes on, also one for each beam."""
        k, beam = self.config.k, self.config.beam
        beams = [b for n in live for b in runs[n].beams if not b.ended]
        longest = max(len(self._tokens(runs, b)) for b in beams)
        rows = len(live) * (k if level == 0 else (k + 1) * beam)
        deeper = 1 if level == 0 else self.config.depth - 1
        stepper = Stepper(self.generator, rows=rows, capacity=longest + deeper * self._unit)
        prompts: dict[int, list[int]] = {}
        for place, n in enumerate(live):
            for b, each in enumerate(beam_ for beam_ in runs[n].beams if not beam_.ended):
                each.row = place * k if level == 0 else len(live) * beam * k + place * beam + b
                prompts[each.row] = self._tokens(runs, each)
        logits = stepper.start(prompts)
        for n in live:
            runs[n].fed += sum(len(prompts[b.row]) for b in runs[n].beams if b.row in prompts)
        if level == 0:
            for each, read in zip(beams, self.ids.read(logits), strict=True):
                each.next = within(read, RETRIEVE)
        return stepper

    def _tokens(self, runs: Sequence[Run], beam: Beam) -> list[int]:
        out = list(runs[beam.run].prompt)
        for said in beam.said:
            out += [*said.opening, *([self.ids[likeliest(said.relevant)]] if said.relevant else []), *said.ids]
            out += [self.ids[said.support]] if said.support else []
        return out

    def _opening(self, candidate: Candidate, question: str, room: int) -> list[int]:
        """The Retrieve token, and the passage between its tags, with the question after it; where that is too long,
        the passage is cut."""
        if candidate.passage is None:
            return [self.ids[candidate.retrieve]]
        ids, limit = self.generator.tokens.ids, min(self.config.passage_tokens, room)
        passage, again = passage_text(candidate.passage.chunk), reminder(question)
        text = ids(passage + again)
        if len(text) > limit:
            end = ids(again)[:limit]
            text = ids(passage)[: limit - len(end)] + end
        return [self.ids[RETRIEVAL], self.ids.opening, *text, self.ids.closing]

    # ---------------------------------------------------------------------------------------------------------- levels

    def _level(self, stepper: Stepper, runs: Sequence[Run], live: Sequence[int], level: int) -> Iterator[Any]:
        begin = time.perf_counter()
        fresh: dict[int, list[Candidate]] = {}
        for place, n in enumerate(live):
            fresh[n] = []
            for b, beam in enumerate(each for each in runs[n].beams if not each.ended):
                found, step = self._branch(runs[n], beam, level)
                yield n, replace(step, seconds=time.perf_counter() - begin)
                if stepper.room(beam.row) < LEAST + RESERVE:
                    found = []
                base = (place if level == 0 else place * self.config.beam + b) * self.config.k
                for j, candidate in enumerate(found):
                    candidate.row = base + j
                fresh[n] += found
                if not found:
                    beam.ended = True
        flat = [candidate for n in live for candidate in fresh[n]]
        if flat:
            self._decode(stepper, flat, runs)
        last = level == self.config.depth - 1
        for place, n in enumerate(live):
            kept = self._choose(runs[n], fresh[n], last)
            yield from ((n, judged(candidate, kept, last)) for candidate in fresh[n])
            for b, beam in enumerate(beam for beam in kept if not beam.ended and not last):
                spare = len(live) * self.config.beam * self.config.k + place * self.config.beam + b
                if level > 0:
                    stepper.copy(beam.row, spare)
                    beam.row = spare
            runs[n].beams = kept

    def _branch(self, run: Run, beam: Beam, level: int) -> tuple[list[Candidate], Step]:
        """The candidates that follow a beam, and the decision that led to them."""
        ratio = retrieval_ratio(beam.next)
        wanted = wants_retrieval(beam.next, self.config.delta)
        if level == 0:
            run.ratio, run.retrieved = ratio, False
        found = list(run.find(beam.said[-1].text if beam.said else ""))[: self.config.k] if wanted else []
        run.retrieved |= wanted
        data = {"r": round(ratio, 6), "delta": self.config.delta, "retrieve": wanted, "level": level}
        if wanted:
            text = f"retrieve: r = {ratio:.2f}, {len(found)} passages" if found else "retrieve: nothing was found"
            made = [Candidate(beam, RETRIEVAL, passage, phase="relevance") for passage in found]
        else:
            again = beam.has_passage and likeliest(beam.next) == CONTINUE
            text = f"go on with the same passage: r = {ratio:.2f}" if again else f"answer without: r = {ratio:.2f}"
            made = [Candidate(beam, CONTINUE if again else NO_RETRIEVAL, None)]
        return made, Step("retrieve", text, {**data, "passages": len(found)})

    def _choose(self, run: Run, fresh: Sequence[Candidate], last: bool) -> list[Beam]:
        """The best beams among those that ended before and those that grew; ends what is at its last segment."""
        grown: list[tuple[Beam, float, str | None]] = [(b, b.score, None) for b in run.beams if b.ended and b.said]
        for c in fresh:
            c.text = plain(str(self.generator.tokenizer.decode(c.ids, skip_special_tokens=True)))
            c.own = c.judgement(last).score(self.config.weights)
            c.score = c.beam.score + c.own
            beam = Beam(c.beam.run, (*c.beam.said, c), c.score, c.next, c.row, c.ended or last)
            grown.append((beam, c.score, c.support))
        run.tried += fresh
        # A closed set adds the scores of all candidates that name the same option, so none may be dropped before.
        width = len(grown) if last and self.config.options else self.config.beam
        return select(grown, max(1, width), hard=self.config.hard)[0]

    # -------------------------------------------------------------------------------------------------------- decoding

    def _decode(self, stepper: Stepper, candidates: Sequence[Candidate], runs: Sequence[Run]) -> None:
        """Decode the segments of these candidates together, greedily, each until it ends."""
        texts: dict[int, list[int]] = {}
        for candidate in candidates:
            if candidate.row != candidate.beam.row:
                stepper.copy(candidate.beam.row, candidate.row)
        for candidate in candidates:
            candidate.opening = self._opening(
                candidate, runs[candidate.beam.run].question, stepper.room(candidate.row) - LEAST - RESERVE
            )
            texts[candidate.row] = candidate.opening
            runs[candidate.beam.run].fed += len(texts[candidate.row])
        limits = {c.row: min(self.segment, stepper.room(c.row) - len(texts[c.row]) - RESERVE) for c in candidates}
        logits = extend(stepper, texts)
        active = list(candidates)
        while active:
            tokens: dict[int, int] = {}
            for candidate, read in zip(active, self._read(logits), strict=True):
                token = self._advance(candidate, *read, limit=limits[candidate.row])
                if token is not None:
                    tokens[candidate.row] = token
            active = [candidate for candidate in active if candidate.row in tokens]
            if active:
                logits = stepper.step(tokens)

    def _read(self, logits: torch.Tensor) -> Iterator[tuple[int, float, dict[str, float]]]:
        """For each row the likeliest token, its log-probability, and the logits of the reflection tokens."""
        import torch

        best, at = logits.max(dim=-1)
        logprobs = (best - torch.logsumexp(logits, dim=-1)).tolist()
        return zip(at.tolist(), logprobs, self.ids.read(logits), strict=True)

    def _advance(self, c: Candidate, best: int, logprob: float, read: Mapping[str, float], *, limit: int) -> int | None:
        """The next token of a candidate, None where its segment has ended.

        A segment that is as long as it may be is judged where it stands, as if it had ended there.
        """
        if c.phase == "relevance":
            c.relevant, token = family(read, IS_REL)
            c.irrelevant, c.phase = token == IRRELEVANT, "text"
            return self.ids[token]
        if c.phase == "text":
            full = len(c.ids) >= limit
            if best not in self.special and not full:
                c.ids.append(best)
                c.logprobs.append(logprob)
                return best
            c.phase = "end"
            judged_now = full and (c.passage is not None or c.retrieve == CONTINUE)
            if (best in self._support or judged_now) and not c.irrelevant and c.retrieve != NO_RETRIEVAL:
                c.supported, c.support = family(read, IS_SUP)
                return self.ids[c.support]
        c.useful, c.next = within(read, IS_USE), within(read, RETRIEVE)
        stopped = best in self.ends
        c.ended = stopped or max(read[t] for t in IS_USE) >= max(read[t] for t in RETRIEVE)
        if stopped:
            c.useful = {}  # it ended without a word on that
        return None


def extend(stepper: Stepper, texts: Mapping[int, Sequence[int]]) -> torch.Tensor:
    """`Stepper.extend` in passes of a bounded number of tokens; logits in the order of `texts`."""
    import torch

    limit = int(getattr(stepper._backend, "prefill_tokens", 2048))
    groups: list[dict[int, Sequence[int]]] = []
    room = 0
    for row, ids in texts.items():
        if not groups or room < len(ids):
            groups.append({})
            room = limit
        groups[-1][row] = ids
        room -= len(ids)
    return torch.cat([stepper.extend(group) for group in groups])
