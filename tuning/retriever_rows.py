"""Training examples of a retriever: a question, the chunks that answer it, and those that are neither right nor wrong.

Examples come from questions with evidence, and from the corpus itself, which needs no labels: questions made by rule
from a chunk's own sentences, or a chunk's first words asking for its last ones (RA-DIT, Lin et al. 2023). Chunks are
row numbers of one generation of an index.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from rag.errors import TrainingError
from rag.sentences import sentences
from rag.snapshot import Snapshot
from rag.types import Chunk, Question, content_hash
from tuning.cloze import cloze_question
from tuning.spans import answer_spans
from tuning.wording import stands_alone

Origin: TypeAlias = Literal["question", "cloze", "halves", "statements"]
HALF = 50
"""Words at the beginning (asked) and at the end (answered) of a chunk in the corpus task "halves"."""
STATEMENT = "<p>"
"""Stands before a statement that is to be reconstructed."""
_STATEMENT = (6, 40)  # words of a sentence that says something by itself
_SHORT = 3  # an answer of fewer characters stands in many chunks by chance
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Example:
    """One question for the retriever.

    `positive` are rows that hold the answer, `negative` mined rows that do not, `ignored` rows that are left out of
    the comparison: they may hold it. `positive` may be empty where a language model is the teacher.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    positive: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    origin: Origin = "question"


class Corpus:
    """Rows of a generation by document, and their text without regard to case and white space."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.sources = [record.document.source for record in snapshot.records]
        self._plain: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.snapshot.table)

    def rows_of(self, source: str) -> range:
        """The rows of one document; none where the index lacks it."""
        position = self.snapshot.by_source.get(source)
        if position is None:
            return range(0)
        record = self.snapshot.records[position]
        return range(record.row, record.row + record.chunks)

    def siblings(self, row: int) -> range:
        """All rows of the document of a row."""
        record = self.snapshot.records[int(self.snapshot.table["document"][row])]
        return range(record.row, record.row + record.chunks)

    def plain(self, row: int) -> str:
        """The text of a row, folded."""
        if row not in self._plain:
            self._plain[row] = fold(self.snapshot.chunk_at(row).text)
        return self._plain[row]

    def embedded(self, row: int) -> str:
        """What the encoder sees of a row."""
        return self.snapshot.chunk_at(row).embedded_text


def fold(text: str) -> str:
    """Lower case, white space as single blanks."""
    return " ".join(text.split()).casefold()


def gold_rows(corpus: Corpus, question: Question) -> tuple[int, ...]:
    """Rows that answer a question: those of its evidence documents that hold the quote, else an answer, else all."""
    found: set[int] = set()
    for evidence in question.evidence:
        rows = corpus.rows_of(evidence.source)
        for words in ([evidence.quote] if evidence.quote else [], question.answers):
            holding = [r for r in rows if any(fold(w) and fold(w) in corpus.plain(r) for w in words)]
            if holding:
                break
        found.update(holding or rows)
    return tuple(sorted(found))


def question_examples(corpus: Corpus, questions: Sequence[Question], *, need_gold: bool = True) -> list[Example]:
    """Examples of the questions that can be answered; those whose evidence is not in the index are left out.

    Raises TrainingError where none is left.
    """
    made = []
    for question in questions:
        if question.unanswerable:
            continue
        positive = gold_rows(corpus, question)
        if positive or (not need_gold and question.answers):
            made.append(Example(question.id, question.question, question.answers, positive))
    if not made:
        raise TrainingError(
            f"None of the {len(questions)} questions can train a retriever: their evidence names no document of this "
            "index. Give questions whose evidence sources are paths relative to the indexed folder."
        )
    return made


def cloze_examples(corpus: Corpus, n: int, *, seed: int = 0) -> list[Example]:
    """Up to `n` questions made by rule from sentences of the corpus, spread evenly over the chunks; no model runs."""
    chunks = {row: corpus.snapshot.chunk_at(row) for row in range(len(corpus))}
    count = Counter(word for chunk in chunks.values() for word in set(re.findall(r"\b[a-z]+\b", chunk.text)))
    titles = {info.source: info.title for info in corpus.snapshot.sources}
    order = list(chunks)
    random.Random(f"{seed}:cloze").shuffle(order)
    waiting: list[list[tuple[str, str]]] = []
    rows: list[int] = []
    for row in order:
        waiting.append(_cloze_pairs(chunks[row], titles.get(chunks[row].source, ""), count, f"{seed}:{row}"))
        rows.append(row)
    made: list[Example] = []
    for turn in range(max((len(pairs) for pairs in waiting), default=0)):
        for row, pairs in zip(rows, waiting, strict=True):
            if turn < len(pairs) and len(made) < n:
                question, answer = pairs[turn]
                made.append(Example(f"cloze-{row}-{turn}", question, (answer,), (row,), origin="cloze"))
    return made


def _cloze_pairs(chunk: Chunk, title: str, count: Mapping[str, int], seed: str) -> list[tuple[str, str]]:
    """(question, answer) of the sentences of one chunk that fit a rule, in random order, each question once."""
    topic = chunk.headings[-1] if chunk.headings else title or chunk.source
    spans = list(answer_spans(chunk.text))
    random.Random(seed).shuffle(spans)
    pairs: dict[str, str] = {}
    for span in spans:
        answer = " ".join(chunk.text[span.start : span.end].split())
        question = cloze_question(chunk.text, span, count)
        if question and stands_alone(question, answer, chunk.text, topic):
            pairs.setdefault(question, answer)
    return list(pairs.items())


def halves_examples(corpus: Corpus, n: int, *, words: int = HALF, seed: int = 0) -> list[Example]:
    """Up to `n` random chunks of at least 2 · `words` words: the first ones are the question, the last ones the answer.

    The chunk itself is ignored: it holds the answer word for word, and would teach nothing else.
    """
    order = list(range(len(corpus)))
    random.Random(f"{seed}:halves").shuffle(order)
    made: list[Example] = []
    for row in order:
        if len(made) == n:
            break
        said = corpus.snapshot.chunk_at(row).text.split()
        if len(said) >= 2 * words:
            first, last = " ".join(said[:words]), " ".join(said[-words:])
            made.append(Example(f"halves-{row}", first, (last,), ignored=(row,), origin="halves"))
    return made


def statement_examples(corpus: Corpus, n: int, *, seed: int = 0) -> list[Example]:
    """Up to `n` sentences, of one chunk each: retrieve passages for the statement, and say it again (RAG-end2end)."""
    order = list(range(len(corpus)))
    random.Random(f"{seed}:statements").shuffle(order)
    made: list[Example] = []
    for row in order:
        if len(made) == n:
            break
        text = corpus.snapshot.chunk_at(row).text
        found = [" ".join(text[a:b].split()) for a, b in sentences(text)]
        whole = [s for s in found if _STATEMENT[0] <= len(s.split()) <= _STATEMENT[1]]
        if whole:
            said = random.Random(f"{seed}:{row}").choice(whole)
            made.append(Example(f"statement-{row}", f"{STATEMENT} {said}", (said,), (row,), origin="statements"))
    return made


def mix(labelled: Sequence[Example], corpus: Sequence[Example], share: float, *, seed: int = 0) -> list[Example]:
    """Both in random order, `share` of them from the corpus (RA-DIT: 0.95); labelled examples repeat where they lack.

    All of `corpus` is used; without corpus examples, or with a share of 0, the labelled ones alone.
    """
    if not corpus or share <= 0:
        return list(labelled)
    wanted = round(len(corpus) * (1 - share) / share) if share < 1 else 0
    taken = [labelled[i % len(labelled)] for i in range(wanted)] if labelled else []
    made = [*taken, *corpus]
    random.Random(f"{seed}:mix").shuffle(made)
    return made


def mine_negatives(
    corpus: Corpus,
    examples: Sequence[Example],
    queries: np.ndarray,
    vectors: np.ndarray,
    *,
    count: int,
    margin: float,
    window: int = 100,
    among: Collection[int] | None = None,
) -> list[Example]:
    """The examples with the nearest `count` wrong rows of the first `window`, and the doubtful ones ignored.

    `queries` [examples, d], `vectors` [rows, d], unit length. A row is doubtful where it holds an answer or has the
    words of a positive. Where no answer is known, its score decides: doubtful within `margin` of the best positive's
    (s > s⁺ − |s⁺| · margin: NV-Retriever's TopK-PercPos, as `mine_hard_negatives` of sentence-transformers has it).
    With an answer at hand that rule would only do harm: it takes every passage for doubtful that the encoder wrongly
    prefers to the right one, and so leaves out what is to be learnt.
    With `among`, the negatives of labelled questions are taken from these rows alone.
    """
    made: list[Example] = []
    for start in range(0, len(examples), _BLOCK):
        scores = queries[start : start + _BLOCK] @ vectors.T
        for example, row_scores in zip(examples[start : start + _BLOCK], scores, strict=True):
            rows = among if example.origin == "question" else None
            made.append(_mined(corpus, example, row_scores, count, margin, window, rows))
    return made


def _mined(
    corpus: Corpus,
    example: Example,
    scores: np.ndarray,
    count: int,
    margin: float,
    window: int,
    among: Collection[int] | None,
) -> Example:
    positive = set(example.positive)
    best = max((float(scores[row]) for row in positive), default=np.inf)
    answers = [fold(a) for a in example.answers if len(fold(a)) >= _SHORT]
    limit = best - abs(best) * margin if not answers else np.inf
    same = {corpus.plain(row) for row in positive}
    size = min(len(scores), window + len(positive))
    near = np.argpartition(-scores, size - 1)[:size]
    negative: list[int] = []
    ignored = set(example.ignored)
    for row in near[np.argsort(-scores[near], kind="stable")].tolist():
        if row in positive or row in ignored:
            continue
        words = corpus.plain(row)
        if scores[row] > limit or words in same or any(a in words for a in answers):
            ignored.add(row)
        elif len(negative) < count and (among is None or row in among):
            negative.append(row)
    return replace(example, negative=tuple(negative), ignored=tuple(sorted(ignored)))


def data_hash(examples: Sequence[Example]) -> str:
    """Identity of the examples: what a resumed run must agree with."""
    return content_hash(*(f"{e.id}\0{e.question}\0{e.answers}\0{e.positive}\0{e.origin}" for e in examples))


def origins(examples: Sequence[Example]) -> Mapping[str, int]:
    """How many examples there are of each origin."""
    return dict(Counter(e.origin for e in examples))
