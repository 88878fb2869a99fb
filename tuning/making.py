"""The steps from chunks to kept questions: candidates in a fixed order, batches, filters, unanswerable questions."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError, EndpointError
from rag.prompt import is_abstention
from rag.protocols import Decoding, Generator
from rag.sentences import sentences
from rag.types import Chunk, Evidence, Passage, Question, content_hash
from tuning.cloze import cloze_question
from tuning.partial import Origin, State
from tuning.rows import find_span
from tuning.spans import Span, SpanKind, answer_spans
from tuning.wording import content_words, stands_alone, writing_prompt

if TYPE_CHECKING:
    from rag.retrieve import Retriever

_WEIGHT: dict[SpanKind, float] = {"date": 1.5, "number": 2.0, "name": 1.5, "quoted": 1.0, "phrase": 1.0}


@dataclass(frozen=True, slots=True)
class QuestionsConfig:
    """How questions are made.

    `k`: the chunk must be among the first k that retrieval finds for the question.
    `min_f1`: between the span and what the answerer says.
    `written`: share of the questions that the generator writes (None: by its size).
    `fluent`: share of the questions by rules that is kept, the likelier ones to the generator.
    `per_chunk`: at most so many are kept of one chunk.
    `unanswerable_share`: share of the rows whose question the documents do not answer. Small: made questions repeat the
        words of their passage, so that a model learns to abstain from every question that does not. With a share of
        0.1 a tuned starter abstained on 25 % of 300 answerable SQuAD questions, most of which it could answer.
    `similar`: rapidfuzz ratio (0-100) from which two questions count as one.
    """

    k: int = 3
    min_f1: float = 0.5
    written: float | None = None
    fluent: float = 0.6
    per_chunk: int = 2
    unanswerable_share: float = 0.03
    similar: float = 88.0
    batch: int = 64
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("k", "per_chunk", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("min_f1", "unanswerable_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed is 0 up to, but not including, 1.")


@dataclass(frozen=True, slots=True)
class Candidate:
    chunk: Chunk
    span: Span
    topic: str

    @property
    def answer(self) -> str:
        return " ".join(self.chunk.text[self.span.start : self.span.end].split())

    @property
    def sentence(self) -> str:
        return " ".join(self.chunk.text[slice(*self.span.sentence)].split())


class Maker:
    """The steps of the pipeline over one index and one generator."""

    def __init__(self, retriever: Retriever, generator: Generator, config: QuestionsConfig) -> None:
        self.retriever = retriever
        self.generator = generator
        self.config = config
        self.index = retriever.index
        self.chunks: list[Chunk] = list(self.index.chunks)
        self.titles = {s.source: s.title for s in self.index.sources}
        self.written_share = _written_share(generator) if config.written is None else config.written
        self.words = Counter(w for c in self.chunks for w in set(re.findall(r"\b[a-z]+\b", c.text)))

    def identity(self) -> dict[str, Any]:
        """What a partial file must agree with to be continued."""
        return {
            "documents": content_hash(*sorted(c.id for c in self.chunks)),
            "generator": self.generator.fingerprint,
            "config": asdict(self.config),
        }

    # ------------------------------------------------------------- candidates

    def batches(self, state: State) -> Iterator[list[tuple[Candidate, Origin, str]]]:
        """Candidates in batches, those that were drawn before left out; the same order for the same seed."""
        batch: list[tuple[Candidate, Origin, str]] = []
        skip = drawn = state.tried["drawn"]
        for number, item in enumerate(self._drawn()):
            if number < skip:
                continue
            drawn += 1
            if item is not None:
                batch.append(item)
            if len(batch) == self.config.batch:
                state.tried["drawn"] = drawn
                yield batch
                batch = []
        if batch:
            state.tried["drawn"] = drawn
            yield batch

    def _drawn(self) -> Iterator[tuple[Candidate, Origin, str] | None]:
        """All candidates with the way their question comes about; None where a candidate is left for the second time.

        The first time round, rules and generator take turns in the share that is wanted; the second time the generator
        writes questions for the sentences that fit no rule.
        """
        share = self.written_share
        fits = self._share_with_rule()
        left = []
        for candidate in self._rounds():
            draw = random.Random(f"{self.config.seed}:{candidate.chunk.id}:{candidate.span.start}").random()
            made = cloze_question(candidate.chunk.text, candidate.span, self.words) if share < 1 else None
            if made is not None:
                yield candidate, "rule", made
            elif draw * (1 - fits) * (1 - share) < fits * share:
                yield candidate, "written", ""
            else:
                left.append(candidate)
                yield None
        for candidate in left:
            yield candidate, "written", ""

    def _share_with_rule(self) -> float:
        """Share of the candidates that fit a rule, from a sample of chunks."""
        rng = random.Random(self.config.seed)
        chunks = rng.sample(self.chunks, min(60, len(self.chunks)))
        found = [cloze_question(c.text, s, self.words) is not None for c in chunks for s in self._ranked(c)]
        return sum(found) / max(1, len(found))

    def _rounds(self) -> Iterator[Candidate]:
        rng = random.Random(self.config.seed)
        order = [c for c in self.chunks if len(c.text) > 40]
        rng.shuffle(order)
        spans = {c.id: self._ranked(c) for c in order}
        for number in range(max((len(s) for s in spans.values()), default=0)):
            for chunk in order:
                if number < len(spans[chunk.id]):
                    title = chunk.headings[-1] if chunk.headings else self.titles.get(chunk.source, "")
                    topic = _topic(title or chunk.source)
                    yield Candidate(chunk, spans[chunk.id][number], topic)

    def _ranked(self, chunk: Chunk) -> list[Span]:
        """Spans of a chunk in random order with the likelier answers in front; an answer said twice only once."""
        rng = random.Random(f"{self.config.seed}:{chunk.id}")
        keyed = []
        for span in answer_spans(chunk.text):
            words = chunk.text[span.start : span.end].split()
            weight = _WEIGHT[span.kind] * (1.0 if span.kind != "phrase" or len(words) > 1 else 0.3)
            if span.kind == "phrase" and len(words) == 1 and self.words[words[0].lower()] > 0.05 * len(self.chunks) + 3:
                continue  # a word of every other chunk is nobody's answer
            keyed.append((rng.random() ** (1 / weight), span))
        seen: set[str] = set()
        out = []
        for _, span in sorted(keyed, key=lambda pair: -pair[0]):
            words_said = chunk.text[span.start : span.end].lower()
            if words_said not in seen:
                seen.add(words_said)
                out.append(span)
        return out

    # ------------------------------------------------------------------ a batch

    def run(self, batch: Sequence[tuple[Candidate, Origin, str]], state: State, wanted: int) -> None:
        """Ask, filter, keep."""
        asked = self._write(batch)
        state.tried["asked"] += len(asked)
        for _, origin, _ in asked:
            state.tried[origin] += 1
        cheap = self._pass(state, "stands_alone", asked, [self._alone(c, q) for c, _, q in asked])
        fresh = self._pass(state, "new", cheap, self._new(cheap, state))
        fluent = self._pass(state, "fluent", fresh, self._fluent(fresh))
        found = self._pass(state, "found", fluent, self._found(fluent))
        for candidate, origin, question in self._pass(state, "returned", found, self._returned(found)):
            state.passed[origin] += 1
            if len(state.kept) < wanted:
                state.kept.append(_question(candidate, question))
                state.origins.append(origin)

    def _pass(self, state: State, name: str, items: Sequence[Any], verdicts: Sequence[bool]) -> list[Any]:
        passed = [item for item, good in zip(items, verdicts, strict=True) if good]
        state.tried[name] += len(items)
        state.passed[name] += len(passed)
        return passed

    def _write(self, batch: Sequence[tuple[Candidate, Origin, str]]) -> list[tuple[Candidate, Origin, str]]:
        """The batch with its missing questions written; prompts of one kind go together: they share their examples."""
        texts = {i: q for i, (_, _, q) in enumerate(batch) if q}
        missing = [i for i in range(len(batch)) if i not in texts]
        for kind in dict.fromkeys(batch[i][0].span.kind for i in missing):
            rows = [i for i in missing if batch[i][0].span.kind == kind]
            prompts = []
            words = []
            for i in rows:
                c = batch[i][0]
                rng = random.Random(f"{self.config.seed}:{c.chunk.id}:{c.span.start}")
                prompt, word = writing_prompt(c.topic, c.sentence, c.answer, kind, rng)
                prompts.append(prompt)
                words.append(word)
            decoding = Decoding(32, ("\n", "?", "？"), self.config.temperature, self.config.seed)
            for i, word, generation in zip(rows, words, self.generator.generate(prompts, decoding), strict=True):
                texts[i] = _tidy(f"{word} {generation.text.strip()}")
        return [(c, origin, texts[i]) for i, (c, origin, _) in enumerate(batch)]

    def _alone(self, candidate: Candidate, question: str) -> bool:
        chunk = candidate.chunk
        return find_span(chunk.text, candidate.answer) is not None and stands_alone(
            question, candidate.answer, chunk.text, candidate.topic
        )

    def _fluent(self, items: Sequence[tuple[Candidate, Origin, str]]) -> list[bool]:
        """Whether a question by rules is among the likelier ones of its batch, to the generator, per token.

        All pass where the generator gives no log-probabilities (some endpoints).
        """
        rules = [i for i, (_, origin, _) in enumerate(items) if origin == "rule"]
        if not rules or self.config.fluent >= 1:
            return [True] * len(items)
        prompts = [[{"role": "user", "content": f"Ask a question about {items[i][0].topic}."}] for i in rules]
        try:
            scores = self.generator.score(prompts, [items[i][2] for i in rules])
        except EndpointError:
            return [True] * len(items)
        means = {i: float(score.mean()) for i, score in zip(rules, scores, strict=True)}
        best = sorted(means.values(), reverse=True)
        bar = best[max(0, math.ceil(self.config.fluent * len(best)) - 1)]
        return [i not in means or means[i] >= bar for i in range(len(items))]

    def _found(self, items: Sequence[tuple[Candidate, Origin, str]]) -> list[bool]:
        results = self.retriever.search_many([q for _, _, q in items], self.config.k) if items else []
        return [any(p.chunk.id == c.chunk.id for p in found) for (c, _, _), found in zip(items, results, strict=True)]

    def _returned(self, items: Sequence[tuple[Candidate, Origin, str]]) -> list[bool]:
        """Whether the answerer, shown the sentence and its neighbours, says the span.

        A small model rambles on after the answer, so an answer that begins with the span counts; and for a question by
        rules, whose answer is right by construction, one that holds it.
        """
        if not items:
            return []
        from rag.answer import AnswerConfig, Answerer
        from rag.metrics import f1, normalise

        config = AnswerConfig(k=1, max_new_tokens=24)
        answerer = Answerer(self.generator, self.retriever, config)
        shown = [[Passage(_around(c), 1, 1.0)] for c, _, _ in items]
        answers = answerer.answer_many([q for _, _, q in items], arm="rag", retrievals=shown)
        good = []
        for (c, origin, _), answer in zip(items, answers, strict=True):
            said, span = f" {normalise(answer.text)} ", f" {normalise(c.answer)} "
            begins = said.startswith(span) or (origin == "rule" and span in said)
            same = f1(answer.text, [c.answer]) >= self.config.min_f1
            good.append(bool(span.strip()) and not is_abstention(answer.text) and (begins or same))
        return good

    def _new(self, items: Sequence[tuple[Candidate, Origin, str]], state: State) -> list[bool]:
        from rapidfuzz import fuzz, process, utils

        known = [q.question for q in state.kept]
        of_chunk = Counter(q.id.rsplit("-", 1)[0] for q in state.kept)
        out = []
        for c, _, question in items:
            near = process.extractOne(
                question,
                known,
                scorer=fuzz.token_sort_ratio,
                processor=utils.default_process,
                score_cutoff=self.config.similar,
            )
            good = near is None and of_chunk[c.chunk.id[:12]] < self.config.per_chunk
            if good:
                known.append(question)
                of_chunk[c.chunk.id[:12]] += 1
            out.append(good)
        return out

    # ------------------------------------------------------------- don't know

    def unanswerable(self, rows: Sequence[Question], count: int) -> list[Question]:
        """Questions of `rows` with a name from another document, as long as no passage found for them holds both."""
        rng = random.Random(f"{self.config.seed}:unanswerable")
        names: dict[str, list[str]] = {}
        for chunk in self.chunks:
            for span in answer_spans(chunk.text):
                if span.kind == "name":
                    names.setdefault(chunk.source, []).append(" ".join(chunk.text[span.start : span.end].split()))
        swapped: list[tuple[Question, str, str]] = []
        for row in rng.sample(list(rows), len(rows)):
            own = [name for name in set(names.get(row.evidence[0].source, ())) if find_span(row.question, name)]
            others = sorted(s for s in names if s != row.evidence[0].source)
            if not own or not others or len(swapped) >= 24 * count:
                continue
            old = max(own, key=lambda name: (len(name), name))
            for source in rng.sample(others, min(4, len(others))):
                new = rng.choice(names[source])
                if new.lower() not in row.question.lower():
                    swapped.append((row, row.question.replace(old, new), new))
        found = self.retriever.search_many([q for _, q, _ in swapped], 10) if swapped else []
        kept: dict[str, Question] = {}
        for (row, question, name), passages in zip(swapped, found, strict=True):
            if not any(_covers(p.chunk.text, question, name) for p in passages):
                kept.setdefault(row.id, Question(f"{row.id}-x", question, unanswerable=True))
        return list(kept.values())[:count]


def _around(candidate: Candidate) -> Chunk:
    """The part of the chunk that a small model can read: the sentence of the span, one before, one behind."""
    text = candidate.chunk.text
    spans = sentences(text)
    at = next((i for i, s in enumerate(spans) if s == candidate.span.sentence), 0)
    begin, end = spans[max(0, at - 1)][0], spans[min(len(spans) - 1, at + 1)][1]
    start = candidate.chunk.start + begin
    return replace(candidate.chunk, text=text[begin:end], start=start, end=start + end - begin)


def _written_share(generator: Generator) -> float:
    """How much a generator should write itself: little below a billion weights, where its questions miss the answer."""
    model: Any = getattr(generator, "model", None)
    return 0.15 if hasattr(model, "num_parameters") and model.num_parameters() < 1e9 else 0.8


def _topic(title: str) -> str:
    """A title, or a file name without its ending, its numbers and its hashes."""
    words = re.split(r"[\s_/-]+", re.sub(r"\.\w{1,5}$", "", title))
    kept = [w for w in words if not re.fullmatch(r"\d+|(?=.*\d)[0-9a-f]{6,}", w)]
    return " ".join(kept) or title


def _covers(text: str, question: str, name: str) -> bool:
    """Whether a passage could be about the question: the name stands in it and most of the other content words."""
    if not find_span(text, name):
        return False
    words = set(content_words(question)) - set(content_words(name))
    known = set(content_words(text))
    return sum(w in known for w in words) >= 0.5 * max(1, len(words))


def _tidy(text: str) -> str:
    text = " ".join(text.split()).strip("\"' ")
    if not text:
        return ""
    end = "？" if re.search(r"[\u3040-\u30ff\u3400-\u9fff]", text) else "?"
    return text.rstrip(" ?？.。,;:") + end


def _question(candidate: Candidate, question: str) -> Question:
    chunk = candidate.chunk
    return Question(
        f"{chunk.id[:12]}-{candidate.span.start}",
        question,
        (candidate.answer,),
        (Evidence(chunk.source, candidate.sentence),),
    )
