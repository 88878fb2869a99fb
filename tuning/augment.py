"""Questions with answers become streams with reflection tokens, once and offline: Self-RAG's training corpus.

After Asai et al. 2024 (arXiv 2310.11511), section 3.2.2 and their data scripts: the answer is cut into segments, each
gets the best passage that retrieval really finds for it, and critique tokens say what that passage is worth. Two things
differ, because here answers come from documents alone: from an irrelevant passage the model learns to abstain (theirs
answers from memory), and each answered question also gives a row about a passage that does not help.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag.chunk import sentences
from rag.errors import ConfigError, TrainingError
from rag.prompt import ABSTAIN, render
from rag.protocols import Decoding, Generator
from rag.reflection import (
    CONTINUE,
    FULL,
    IRRELEVANT,
    IS_USE,
    NO_RETRIEVAL,
    NO_SUPPORT,
    PARTIAL,
    RELEVANT,
    RETRIEVAL,
)
from rag.reflection_stream import Part, Stream
from rag.types import Chunk, Passage, Question, content_hash
from tuning.critic import Asked, Labels, gold
from tuning.rows import best_answer

SHORT = 30  # characters: a shorter sentence joins the one before it, where an answer has more than two


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How streams are made; the shares are those of the authors' scripts.

    keep_partial, keep_none: with which probability a segment keeps a passage that supports it partially, or not at all.
    keep_closed: share kept of the rows without retrieval. contrast: passages that do not help, for each question.
    depth: how many of the retrieved passages are looked at. abstain_share: at most this share of the rows abstains,
    drawn evenly from all that do; None keeps all. Where half of the questions have no answer, three rows of four would,
    and a small model then abstains always.
    """

    keep_partial: float = 0.7
    keep_none: float = 0.25
    keep_closed: float = 0.4
    contrast: int = 1
    depth: int = 10
    abstain_share: float | None = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.abstain_share is not None and not 0 <= self.abstain_share < 1:
            raise ConfigError(f"abstain_share is {self.abstain_share}: at least 0 and less than 1, or None, is needed.")
        for name in ("keep_partial", "keep_none", "keep_closed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it is a probability, between 0 and 1.")
        if self.contrast < 0 or self.depth < 1:
            raise ConfigError(f"contrast is {self.contrast} and depth {self.depth}; at least 0 and 1 are needed.")


@dataclass(frozen=True, slots=True)
class Augmented:
    """One training example before it is written: its stream, and the chunks that stand in it, in order."""

    question: Question
    stream: Stream
    chunks: tuple[Chunk, ...] = ()

    @property
    def abstains(self) -> bool:
        return self.stream.text == ABSTAIN


@dataclass(frozen=True, slots=True)
class AugmentReport:
    """Rows by what they teach, questions without a row, and labels by source."""

    rows: int
    kinds: Mapping[str, int]
    without: int
    labels: Mapping[str, int]


def segments(answer: str) -> list[str]:
    """The sentences of an answer, English or CJK; of more than two, a short one joins the one before."""
    found = [answer[start:end].strip() for start, end in sentences(answer)] or [answer.strip()]
    if len(found) <= 2:
        return found
    out: list[str] = []
    for text in found:
        if out and len(text) < SHORT:
            out[-1] = f"{out[-1]} {text}" if text.isascii() else out[-1] + text
        else:
            out.append(text)
    return out


def answer_of(question: Question) -> str:
    """What a question's row teaches: the answer given most often, or to abstain."""
    return best_answer(question.answers, ()) if question.answers and not question.unanswerable else ABSTAIN


def queries(question: Question) -> list[str]:
    """What is searched for a question: itself, as in serving, and it with each segment of its answer."""
    if not question.answers or question.unanswerable:
        return [question.question]
    return [question.question, *(f"{question.question} {text}" for text in segments(answer_of(question)))]


def closed_book(questions: Sequence[Question], generator: Generator, folder: Path | None = None) -> list[str]:
    """What the base model answers without passages, kept in `folder` from run to run."""
    path = folder / "closed_book.jsonl" if folder is not None else None
    known: dict[str, str] = {}
    if path is not None and path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:
            row = json.loads(line)
            known[row["key"]] = row["answer"]
    keys = [content_hash(generator.fingerprint, q.question) for q in questions]
    new = [i for i, key in enumerate(keys) if key not in known]
    for begin in range(0, len(new), 64):
        part = new[begin : begin + 64]
        prompts = [
            render(
                questions[i].question, (), count_tokens=generator.count_tokens, style="examples", closed_book=True
            ).messages
            for i in part
        ]
        said = generator.generate(prompts, Decoding(24, ("\n",)))
        known.update({keys[i]: generation.text.strip() for i, generation in zip(part, said, strict=True)})
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                for i in part:
                    file.write(json.dumps({"key": keys[i], "answer": known[keys[i]]}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
    return [known[key] for key in keys]


def augment(
    questions: Sequence[Question],
    found: Sequence[Sequence[Sequence[Passage]]],
    *,
    config: AugmentConfig = AugmentConfig(),
    labels: Labels | None = None,
    chunks: Iterable[Chunk] = (),
    answers: Sequence[str] | None = None,
) -> tuple[list[Augmented], AugmentReport]:
    """Streams in the order of the questions; the same arguments give the same streams.

    `found[i]` are the passages for each of `queries(questions[i])`, best first. `chunks` is where a gold passage that
    retrieval missed is taken from. `answers` are those without passages (see `closed_book`), where retrieval may be
    unnecessary. Raises TrainingError when no question gives a stream.
    """
    if len(questions) != len(found):
        raise ConfigError(f"{len(questions)} questions, but retrievals for {len(found)}: one each is needed.")
    maker = _Maker(config, labels or Labels(), chunks)
    out: list[tuple[str, Augmented]] = []
    without = 0
    for n, question in enumerate(questions):
        made = maker.rows(question, found[n], answers[n] if answers else None)
        without += not made
        out += made
    if not out:
        raise TrainingError(
            f"None of the {len(questions)} questions gives a training row: retrieval found nothing for them. "
            "Check that the questions are about the documents of this index."
        )
    kept = _thinned(out, config)
    kinds = Counter(kind for kind, _ in kept)
    return [row for _, row in kept], AugmentReport(len(kept), dict(kinds), without, dict(maker.labels.counts))


def _thinned(rows: list[tuple[str, Augmented]], config: AugmentConfig) -> list[tuple[str, Augmented]]:
    """No more rows that abstain than their share allows, in the same order; all of them where nothing else is."""
    abstaining = [i for i, (_, row) in enumerate(rows) if row.abstains]
    others = len(rows) - len(abstaining)
    if config.abstain_share is None or not others:
        return rows
    most = int(others * config.abstain_share / (1 - config.abstain_share))
    kept = set(random.Random(f"{config.seed}:abstain").sample(abstaining, min(most, len(abstaining))))
    return [row for i, row in enumerate(rows) if not row[1].abstains or i in kept]


class _Maker:
    def __init__(self, config: AugmentConfig, labels: Labels, chunks: Iterable[Chunk]) -> None:
        self.config, self.labels = config, labels
        self.by_source: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            self.by_source.setdefault(chunk.source, []).append(chunk)

    def rows(
        self, question: Question, found: Sequence[Sequence[Passage]], closed: str | None
    ) -> list[tuple[str, Augmented]]:
        """(what it teaches, row) of one question."""
        rng = random.Random(f"{self.config.seed}:{question.id}")
        if not question.answers and not question.unanswerable:
            return []
        whole = answer_of(question)
        first = self._one(Asked("retrieve", question.question), question, closed=closed)
        useful = self._one(Asked("useful", question.question, answer=whole), question)
        utility = IS_USE.index(useful) + 1 if useful else None
        if utility is None:
            return []
        if first == NO_RETRIEVAL:
            if rng.random() >= self.config.keep_closed:
                return []
            return [("without", Augmented(question, Stream((Part(NO_RETRIEVAL, whole),), utility)))]
        out: list[tuple[str, Augmented]] = []
        if not question.unanswerable:
            row = self._answered(question, found, utility, rng)
            out += [("answer", row)] if row else []
        shown = found[0][: self.config.depth] if found else ()
        return out + [("abstain", row) for row in self._contrast(question, shown, rng)]

    def _answered(
        self, question: Question, found: Sequence[Sequence[Passage]], utility: int, rng: random.Random
    ) -> Augmented | None:
        """The answer, segment by segment, each from the passage that supports it best."""
        parts: list[Part] = []
        used: list[Chunk] = []
        texts = segments(best_answer(question.answers, [c.text for c in self._gold_chunks(question)]))
        for i, text in enumerate(texts):
            again = None
            if used:
                before = " ".join(part.text for part in parts)
                asked = Asked("again", question.question, used[-1].text, before, text)
                again = self._one(asked, question, used[-1])
            if again == CONTINUE:
                support = self._support(question, used[-1], text)
                parts.append(Part(CONTINUE, text, support=support))
                continue
            if again == NO_RETRIEVAL:
                parts.append(Part(NO_RETRIEVAL, text))
                continue
            passages = found[min(i + 1, len(found) - 1)] if found else ()
            part = self._choose(question, passages[: self.config.depth], text, rng, alone=len(texts) == 1)
            if part is None:
                return None
            parts.append(part[0])
            used.append(part[1])
        return Augmented(question, Stream(tuple(parts), utility), tuple(used))

    def _choose(
        self, question: Question, passages: Sequence[Passage], text: str, rng: random.Random, *, alone: bool
    ) -> tuple[Part, Chunk] | None:
        """The passage of a segment: fully supporting, else partially, else not, else an irrelevant one; best first.

        What retrieval missed is taken from the index. A lone answer from an irrelevant passage would teach to invent.
        """
        judged = self._judged(question, [p.chunk for p in passages], text)
        if not any(support == FULL for _, _, support in judged):
            judged += self._judged(question, self._gold_chunks(question)[:1], text)
        shares = ((FULL, 1.0), (PARTIAL, self.config.keep_partial), (NO_SUPPORT, self.config.keep_none))
        for wanted, share in shares:
            for chunk, relevant, support in judged:
                if relevant == RELEVANT and support == wanted and (share == 1 or rng.random() < share):
                    return _part(chunk, text, RELEVANT, support), chunk
        for chunk, relevant, _ in judged:
            if relevant == IRRELEVANT and not alone:
                return _part(chunk, text, IRRELEVANT, None), chunk
        return None

    def _contrast(self, question: Question, passages: Sequence[Passage], rng: random.Random) -> list[Augmented]:
        """Passages that retrieval finds and that do not help: the first one and, of an unanswerable question, another.

        For a question that has an answer they are drawn from the whole list, as the candidates of an answer are.
        """
        useful = self._one(Asked("useful", question.question, answer=ABSTAIN), question)
        if useful is None:
            return []
        empty = []
        for passage in passages:
            asked = Asked("relevant", question.question, passage.chunk.text)
            if self._one(asked, question, passage.chunk) == IRRELEVANT:
                empty.append(passage.chunk)
        if question.unanswerable:
            chosen = [*empty[:1], *rng.sample(empty[1:], min(len(empty[1:]), self.config.contrast))]
        else:
            near = empty[: max(5, self.config.contrast)]
            chosen = rng.sample(near, min(len(near), self.config.contrast))
        utility = IS_USE.index(useful) + 1
        return [
            Augmented(question, Stream((_part(chunk, ABSTAIN, IRRELEVANT, None),), utility), (chunk,))
            for chunk in chosen
        ]

    # ---------------------------------------------------------------------------------------------------------- labels

    def _one(
        self, asked: Asked, question: Question, chunk: Chunk | None = None, closed: str | None = None
    ) -> str | None:
        return self.labels.label([asked], [gold(asked, question, chunk, closed)])[0]

    def _support(self, question: Question, chunk: Chunk, text: str) -> str | None:
        return self._one(Asked("supported", question.question, chunk.text, answer=text), question, chunk)

    def _judged(
        self, question: Question, chunks: Sequence[Chunk], text: str
    ) -> list[tuple[Chunk, str | None, str | None]]:
        relevant = [Asked("relevant", question.question, c.text) for c in chunks]
        supported = [Asked("supported", question.question, c.text, answer=text) for c in chunks]
        one = self.labels.label(relevant, [gold(a, question, c) for a, c in zip(relevant, chunks, strict=True)])
        two = self.labels.label(supported, [gold(a, question, c) for a, c in zip(supported, chunks, strict=True)])
        return list(zip(chunks, one, two, strict=True))

    def _gold_chunks(self, question: Question) -> list[Chunk]:
        """Chunks of the index that are gold for the question, in order of shared words."""
        asked = set(question.question.lower().split())
        sources = dict.fromkeys(evidence.source for evidence in question.evidence)
        inside = [
            c
            for source in sources
            for c in self.by_source.get(source, ())
            if gold(Asked("relevant", question.question, c.text), question, c) == RELEVANT
        ]
        return sorted(inside, key=lambda c: -len(asked & set(c.text.lower().split())))


def _part(chunk: Chunk, text: str, relevant: str, support: str | None) -> Part:
    return Part(RETRIEVAL, text, (" › ".join(chunk.headings), chunk.text), relevant, support)
