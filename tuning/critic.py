"""Labels for Self-RAG's four judgements, in the order of their cost: gold, a judge, a trained critic.

    gold      what a questions file knows: evidence, answers, and whether the base model was right without a passage
    judge     any generator or endpoint, asked with one prompt for each kind of judgement
    critic    the same prompts to a model that was trained on gold and judged labels

A label is a reflection token. Nothing is guessed: where a source has no label, the next one is asked, and what stays
without is counted.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rag import metrics
from rag.cite import support
from rag.errors import TrainingError
from rag.prompt import is_abstention
from rag.protocols import Decoding, Generator, Message, Progress
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
    escape,
)
from rag.types import Chunk, Question, content_hash
from tuning.rows import Row, find_span, holds

Kind = Literal["retrieve", "again", "relevant", "supported", "useful"]
KINDS: tuple[Kind, ...] = ("retrieve", "again", "relevant", "supported", "useful")
WORDS: dict[Kind, dict[str, str]] = {
    "retrieve": {"yes": RETRIEVAL, "no": NO_RETRIEVAL},
    "again": {"yes": RETRIEVAL, "no": NO_RETRIEVAL, "continue": CONTINUE},
    "relevant": {"relevant": RELEVANT, "irrelevant": IRRELEVANT},
    "supported": {"fully": FULL, "partially": PARTIAL, "no": NO_SUPPORT},
    "useful": {str(i): token for i, token in enumerate(IS_USE, start=1)},
}
"""What a judge may say to each kind, and the token that it stands for."""

RIGHT = 0.8  # F1 from which an answer without passages counts as right
HALF = 0.5  # share of content words from which a passage supports a segment partially


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing to judge: a question, and what the kind needs of passage, what was said before, and the segment."""

    kind: Kind
    question: str
    passage: str = ""
    before: str = ""
    answer: str = ""

    @property
    def key(self) -> str:
        """Identity of this judgement."""
        return content_hash(self.kind, self.question, self.passage, self.before, self.answer)


# --------------------------------------------------------------------------------------------------------------- gold


def gold(asked: Asked, question: Question, chunk: Chunk | None = None, closed_book: str | None = None) -> str | None:
    """The label that the questions file gives, None where it knows none.

    `closed_book` is what the base model answered without passages; where it was not asked, retrieval is needed.
    """
    if not question.answers and not question.unanswerable:
        return RETRIEVAL if asked.kind == "retrieve" else None
    if asked.kind == "retrieve":
        known = closed_book is not None and metrics.f1(closed_book, question.answers) >= RIGHT
        return NO_RETRIEVAL if known and not question.unanswerable else RETRIEVAL
    if asked.kind == "again":
        return CONTINUE if metrics.lexical_support(asked.passage, asked.answer) else RETRIEVAL
    if asked.kind == "useful":
        return gold_utility(question, asked.answer)
    if chunk is None:
        return None
    if asked.kind == "relevant":
        return RELEVANT if gold_relevant(question, chunk) else IRRELEVANT
    return gold_support(question, chunk, asked.answer)


def gold_relevant(question: Question, chunk: Chunk) -> bool:
    """Whether the evidence, or without evidence an answer, stands in the passage."""
    if question.unanswerable:
        return False
    if question.evidence:
        return any(holds(chunk, evidence, question.answers) for evidence in question.evidence)
    return any(find_span(chunk.text, answer) for answer in question.answers)


def gold_support(question: Question, chunk: Chunk, segment: str) -> str:
    """Fully: the segment stands in a passage of the evidence, or its words do. Partially: half of its words do."""
    if question.unanswerable or is_abstention(segment):
        return NO_SUPPORT
    stands = find_span(chunk.text, segment) is not None or metrics.lexical_support(chunk.text, segment)
    if stands and gold_relevant(question, chunk):
        return FULL
    return PARTIAL if gold_relevant(question, chunk) and support(segment, chunk.text) >= HALF else NO_SUPPORT


def gold_utility(question: Question, answer: str) -> str:
    """1 to 5 by F1 to the known answers; of an unanswerable question, abstaining is 5 and anything else 1."""
    if question.unanswerable:
        return IS_USE[4 if is_abstention(answer) else 0]
    f1 = 0.0 if is_abstention(answer) else metrics.f1(answer, question.answers)
    return IS_USE[round(4 * f1)]


# -------------------------------------------------------------------------------------------------------------- judge


_TASK: dict[Kind, str] = {
    "retrieve": "Does answering the question need facts from a document? Say Yes or No.",
    "again": "A text answers the question sentence by sentence. Does its next sentence need another passage than the "
    "one shown? Say Yes, No (no passage is needed), or Continue (the passage shown is enough).",
    "relevant": "Does the passage hold what helps to answer the question? Say Relevant or Irrelevant.",
    "supported": "Is the answer supported by the passage? What you know from elsewhere does not count. Say Fully, "
    "Partially, or No.",
    "useful": "How useful is the answer to the question? 5: complete and right; 4: nearly; 3: acceptable, gaps; "
    "2: on the subject, no answer; 1: beside the point or empty. Say one number.",
}


def judge_prompt(asked: Asked, *, again: bool = False) -> list[Message]:
    """The messages of one judgement; `again` after an answer that was none."""
    named = (
        ("Passage", asked.passage),
        ("Question", asked.question),
        ("So far", asked.before),
        ("Next sentence" if asked.kind == "again" else "Answer", asked.answer),
    )
    shown = "\n\n".join(f"{name}: {escape(text)}" for name, text in named if text)
    allowed = ", ".join(word.capitalize() for word in WORDS[asked.kind])
    more = f"\n\nAnswer with exactly one of: {allowed}." if again else ""
    return [{"role": "system", "content": _TASK[asked.kind]}, {"role": "user", "content": shown + more}]


def read_label(kind: Kind, said: str) -> str | None:
    """The token that a judge's answer stands for; None for anything but one of the allowed words, or several."""
    words = [word for word in re.findall(r"\w+", said.lower()) if word in WORDS[kind]]
    first = re.findall(r"\w+", said.lower())[:1]
    if first and first[0] in WORDS[kind]:
        return WORDS[kind][first[0]]
    return WORDS[kind][words[0]] if len(set(words)) == 1 else None


@dataclass
class Judge:
    """Asks a generator; `adapter` makes a critic of it. Counts what it was asked, and what it said that was nothing.

    An answer that is no label is asked for again, up to `attempts` times, in stricter words and with another seed.
    """

    generator: Generator
    adapter: str | None = None
    attempts: int = 3
    counts: Counter[str] = field(default_factory=Counter)

    def label(self, asked: Sequence[Asked], progress: Progress | None = None) -> list[str | None]:
        """One label for each, None where all attempts gave none."""
        found: list[str | None] = [None] * len(asked)
        open_ = list(range(len(asked)))
        self.counts["asked"] += len(asked)
        for attempt in range(self.attempts):
            if not open_:
                break
            prompts = [judge_prompt(asked[i], again=attempt > 0) for i in open_]
            decoding = Decoding(8, ("\n",), temperature=0.7 if attempt else 0.0, seed=attempt)
            with self.generator.adapter(self.adapter):
                said = self.generator.generate(prompts, decoding, progress=progress)
            for i, generation in zip(open_, said, strict=True):
                found[i] = read_label(asked[i].kind, generation.text)
            open_ = [i for i in open_ if found[i] is None]
            self.counts["nonsense"] += len(open_)
            self.counts["retried"] += len(open_) if attempt + 1 < self.attempts else 0
        self.counts["without"] += len(open_)
        return found


# ------------------------------------------------------------------------------------------------- labels of a corpus


class Labels:
    """Labels from the first source that has one, each kept on disk as soon as it is known.

    `folder` None keeps them in memory alone. `counts` says how many came from where; gold ones are made anew each time.
    """

    def __init__(self, sources: Mapping[str, Judge] | None = None, folder: Path | None = None) -> None:
        self.sources = dict(sources or {})
        self.path = folder / "labels.jsonl" if folder is not None and self.sources else None
        self.counts: Counter[str] = Counter()
        self._known: dict[tuple[str, str], str | None] = {}
        if self.path is not None and self.path.is_file():
            for line in self.path.read_bytes().split(b"\n")[:-1]:  # a half-written last line is asked for again
                row = json.loads(line)
                self._known[row["source"], row["key"]] = row["label"]

    def label(
        self, asked: Sequence[Asked], known: Sequence[str | None], progress: Progress | None = None
    ) -> list[str | None]:
        """`known` are the gold labels; the others come from the sources, in their order."""
        out = list(known)
        self.counts["gold"] += sum(label is not None for label in out)
        for name, judge in self.sources.items():
            open_ = [i for i, label in enumerate(out) if label is None]
            self._ask(name, judge, [asked[i] for i in open_], progress)
            for i in open_:
                out[i] = self._known[name, asked[i].key]
                self.counts[name] += out[i] is not None
        self.counts["without"] += sum(label is None for label in out)
        return out

    def _ask(self, name: str, judge: Judge, asked: Sequence[Asked], progress: Progress | None) -> None:
        new = list({a.key: a for a in asked if (name, a.key) not in self._known}.values())
        for begin in range(0, len(new), 64):
            part = new[begin : begin + 64]
            for each, label in zip(part, judge.label(part, progress), strict=True):
                self._known[name, each.key] = label
            if self.path is not None:
                self._write(name, part)

    def _write(self, name: str, asked: Iterable[Asked]) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for each in asked:
                row = {"source": name, "key": each.key, "label": self._known[name, each.key]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


# ---------------------------------------------------------------------------------------------------------- the critic


def critic_rows(asked: Sequence[Asked], labels: Sequence[str | None]) -> list[Row]:
    """Training rows of a critic: the judge's prompt, and the word of the label. What has no label gives none.

    Raises TrainingError where nothing has one.
    """
    rows = []
    for each, label in zip(asked, labels, strict=True):
        if label is not None:
            word = next(word for word, token in WORDS[each.kind].items() if token == label)
            rows.append(Row(f"{each.kind}:{each.key}", "answer", tuple(judge_prompt(each)), word.capitalize()))
    if not rows:
        raise TrainingError("No judgement has a label: give questions with answers and evidence, or name a --judge.")
    return rows


def agreement(
    asked: Sequence[Asked], one: Sequence[str | None], two: Sequence[str | None]
) -> dict[str, dict[str, float]]:
    """How far two sources agree, for each kind: `n` that both labelled, the share of equal labels, Cohen's kappa."""
    out: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        pairs = [(a, b) for e, a, b in zip(asked, one, two, strict=True) if e.kind == kind and a and b]
        if pairs:
            out[kind] = {"n": len(pairs), **_kappa(pairs)}
    return out


def _kappa(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    n = len(pairs)
    same = sum(a == b for a, b in pairs) / n
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[label] * second[label] for label in first) / n**2
    return {"agreement": same, "kappa": (same - chance) / (1 - chance) if chance < 1 else 1.0}
