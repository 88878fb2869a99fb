"""Training rows from the serving retriever's own results, rendered by the prompt function that serving uses.

A row is what the model will meet: the passages that retrieval really finds for the question, right and wrong ones, in
serving order, and the answer to give. After RAFT (Zhang et al. 2024, arXiv 2403.10131): the gold passage is present
with some probability, the others are distractors. Where the published recipe answers from memory when the gold passage
is absent, these rows say that the documents do not hold the answer.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rag.errors import ConfigError, TrainingError
from rag.prompt import ABSTAIN, Style, as_trl, completion, render
from rag.protocols import Message
from rag.types import Chunk, Evidence, Passage, Question, content_hash

Kind = Literal["answer", "abstain", "closed-book", "trace", "general", "own"]
"""`own`: what the untouched model answers to a general instruction; trained towards its whole distribution."""


@dataclass(frozen=True, slots=True)
class RowsConfig:
    """How rows are built.

    `insert`: probability that a gold passage which retrieval missed is put in, at a random rank, for the weakest one.
    `withhold`: probability that a gold passage which retrieval found is taken out (RAFT's 1 − P).
    `abstain_share`: at most this share of rows teaches to abstain.
    `citations`: the completion carries the numbers of the gold passages.
    `shuffle`: passages in random order (seeded) instead of serving order.
    """

    k: int = 2
    insert: float = 1.0
    withhold: float = 0.0
    abstain_share: float = 0.12
    citations: bool = False
    shuffle: bool = False
    context_tokens: int = 1024
    style: Style = "short"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k is {self.k}: a row needs at least 1 passage (use the closed-book recipe for none).")
        for name in ("insert", "withhold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it is a probability, between 0 and 1.")
        if not 0 <= self.abstain_share < 1:
            raise ConfigError(f"abstain_share is {self.abstain_share}: allowed is 0 up to, but not including, 1.")


@dataclass(frozen=True, slots=True)
class Row:
    """One training example. `gold` are the numbers of the passages with the answer; `chunks` are all that are shown.

    `also` are places in `prompt` of the assistant's earlier turns that are trained on like the completion.
    """

    id: str
    kind: Kind
    prompt: tuple[Message, ...]
    completion: str
    gold: tuple[int, ...] = ()
    chunks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    also: tuple[int, ...] = ()

    def to_trl(self) -> dict[str, str | list[Message]]:
        """TRL's prompt-completion form."""
        prompt, answer = as_trl(self.prompt, self.completion)
        return {"prompt": prompt, "completion": answer}


@dataclass(frozen=True, slots=True)
class RowsReport:
    """What became of the questions. `gold_retrieved`: questions whose gold passages were all among the first k."""

    questions: int
    rows: int
    answer: int
    abstain: int
    gold_retrieved: int
    gold_inserted: int
    gold_absent: int
    unanswerable: int
    skipped: int

    def shares(self) -> dict[str, float]:
        """Shares of the rows (abstain, gold present) and of the questions with answers (gold retrieved)."""
        asked = max(1, self.gold_retrieved + self.gold_inserted + self.gold_absent)
        rows = max(1, self.rows)
        return {
            "abstain": self.abstain / rows,
            "gold_present": self.answer / rows,
            "gold_retrieved": self.gold_retrieved / asked,
        }


_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[0-9A-Za-z_\u00c0-\u024f\u0370-\u052f]")


def find_span(text: str, quote: str) -> tuple[int, int] | None:
    """Where `quote` stands in `text` as whole words: verbatim if possible, else with other case or white space."""
    words = quote.split()
    if not words:
        return None
    body = r"\s+".join(re.escape(w) for w in words)
    left = r"(?<![0-9A-Za-z_\u00c0-\u024f\u0370-\u052f])" if _WORD.match(words[0][0]) else ""
    right = r"(?![0-9A-Za-z_\u00c0-\u024f\u0370-\u052f])" if _WORD.match(words[-1][-1]) else ""
    pattern = left + body + right
    found = re.search(pattern, text) or re.search(pattern, text, re.IGNORECASE)
    return found.span() if found else None


def holds(chunk: Chunk, evidence: Evidence, answers: Sequence[str]) -> bool:
    """Whether a chunk is a gold passage for this evidence: of its source, and its quote or an answer stands in it."""
    if chunk.source != evidence.source:
        return False
    if evidence.quote and find_span(chunk.text, evidence.quote):
        return True
    return any(find_span(chunk.text, a) for a in answers)


def _needs(question: Question) -> list[Callable[[Chunk], bool]]:
    """One test for each passage that the answer needs: each piece of evidence, or any passage with the answer in it."""
    if not question.evidence:
        return [lambda chunk: any(find_span(chunk.text, a) for a in question.answers)]
    return [lambda chunk, e=e: holds(chunk, e, question.answers) for e in question.evidence]  # type: ignore[misc]


def _gold(passages: Sequence[Passage], needs: Sequence[Callable[[Chunk], bool]]) -> list[int]:
    return [i for i, p in enumerate(passages) if any(need(p.chunk) for need in needs)]


def _missing(passages: Sequence[Passage], needs: Sequence[Callable[[Chunk], bool]]) -> list[Callable[[Chunk], bool]]:
    return [need for need in needs if not any(need(p.chunk) for p in passages)]


class _Builder:
    """Turns one question and its frozen retrieval into an answer row, an abstain row, or both to choose from."""

    def __init__(self, config: RowsConfig, count_tokens: Callable[[str], int], chunks: Iterable[Chunk]) -> None:
        self.config = config
        self.count_tokens = count_tokens
        self.by_source: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            self.by_source.setdefault(chunk.source, []).append(chunk)

    def with_gold(self, question: Question, retrieved: Sequence[Passage], rng: random.Random) -> list[Passage] | None:
        """The first k passages, missing gold passages put in at a random rank; None where there is none to put in."""
        k = self.config.k
        needs = _needs(question)
        shown = list(retrieved[:k])
        for need in _missing(shown, needs):
            found = next((p for p in retrieved[k:] if need(p.chunk)), None) or self._from_index(question, need)
            if found is None:
                return None
            if len(shown) >= k:
                gold = set(_gold(shown, needs))
                weakest = next((i for i in range(len(shown) - 1, -1, -1) if i not in gold), None)
                if weakest is None:
                    return None  # more pieces of evidence than passages
                del shown[weakest]
            shown.insert(rng.randrange(len(shown) + 1), found)
        return shown

    def _from_index(self, question: Question, need: Callable[[Chunk], bool]) -> Passage | None:
        """The gold chunk that shares most words with the question."""
        sources = dict.fromkeys(e.source for e in question.evidence)
        asked = set(question.question.lower().split())
        found = [c for s in sources for c in self.by_source.get(s, ()) if need(c)]
        if not found:
            return None
        return Passage(max(found, key=lambda c: len(asked & set(c.text.lower().split()))), 0, 0.0)

    def without_gold(self, question: Question, retrieved: Sequence[Passage]) -> list[Passage]:
        """The first k passages in which neither evidence nor an answer stands."""
        needs = _needs(question) if not question.unanswerable else []

        def empty(chunk: Chunk) -> bool:
            return not any(need(chunk) for need in needs) and not any(
                find_span(chunk.text, a) for a in question.answers
            )

        return [p for p in retrieved if empty(p.chunk)][: self.config.k]

    def row(self, question: Question, passages: Sequence[Passage], kind: Kind, rng: random.Random) -> Row | None:
        """The rendered row; None when the gold passage does not fit the token budget."""
        shown = list(passages)
        needs = _needs(question)
        if self.config.shuffle:
            rng.shuffle(shown)
        while True:
            numbered = [replace(p, rank=i) for i, p in enumerate(shown, 1)]
            rendered = render(
                question.question,
                numbered,
                count_tokens=self.count_tokens,
                budget=self.config.context_tokens,
                style="short" if self.config.style == "examples" else self.config.style,
            )
            gold = [] if kind == "abstain" else _gold(shown, needs)
            if all(i < len(rendered.shown) for i in gold):
                break
            spare = [i for i in range(len(shown)) if i not in gold]
            if not spare:
                return None
            del shown[spare[-1]]  # a distractor gives way to the gold passage
        numbers = tuple(rendered.shown[i].rank for i in gold)
        if kind == "abstain":
            text = ABSTAIN
        else:
            answer = best_answer(question.answers, [shown[i].chunk.text for i in gold])
            text = completion(answer, numbers if self.config.citations else ())
        return Row(
            question.id,
            kind,
            tuple(rendered.messages),
            text,
            numbers,
            tuple(p.chunk.id for p in rendered.shown),
            tuple(dict.fromkeys(p.chunk.source for p in rendered.shown)),
        )


def best_answer(answers: Sequence[str], texts: Sequence[str]) -> str:
    """The answer to teach: of those that stand in the texts the one given most often, spelled as it stands there."""
    counts = Counter(answers)
    for answer in sorted(counts, key=lambda a: -counts[a]):
        for text in texts:
            span = find_span(text, answer)
            if span:
                return _SPACE.sub(" ", text[span[0] : span[1]])
    return answers[0].strip()


def build_rows(
    questions: Sequence[Question],
    retrievals: Sequence[Sequence[Passage]],
    *,
    config: RowsConfig = RowsConfig(),
    count_tokens: Callable[[str], int],
    chunks: Iterable[Chunk] = (),
) -> tuple[list[Row], RowsReport]:
    """Rows in the order of the questions. `retrievals[i]` are the frozen results for `questions[i]`, best first.

    Give more than k results for each question, so that there are distractors to take the place of a withheld passage.
    `chunks` is where missing gold passages are taken from (the index). The same arguments give the same rows.
    Raises TrainingError when no question gives a row.
    """
    if len(questions) != len(retrievals):
        raise ConfigError(
            f"{len(questions)} questions, but {len(retrievals)} retrievals: one for each question is needed."
        )
    builder = _Builder(config, count_tokens, chunks)
    made: list[tuple[Row | None, Row | None, bool]] = []  # (answer row, abstain row, abstain wanted)
    count: Counter[str] = Counter()
    for question, retrieved in zip(questions, retrievals, strict=True):
        rng = random.Random(f"{config.seed}:{question.id}")
        made.append(_choices(builder, question, retrieved, rng, count))
    rows = _capped(made, config)
    abstain = sum(r.kind == "abstain" for r in rows)
    report = RowsReport(
        len(questions), len(rows), len(rows) - abstain, abstain,
        count["retrieved"], count["inserted"], count["absent"], count["unanswerable"], len(questions) - len(rows),
    )  # fmt: skip
    if not rows:
        raise TrainingError(
            f"None of the {len(questions)} questions gives a training row: their answers and evidence stand in no "
            "document of the index. Check that the sources in the questions file are relative to the indexed folder."
        )
    return rows, report


def _choices(
    builder: _Builder, question: Question, retrieved: Sequence[Passage], rng: random.Random, count: Counter[str]
) -> tuple[Row | None, Row | None, bool]:
    config = builder.config
    draw = rng.random()
    if question.unanswerable:
        count["unanswerable"] += 1
        row = builder.row(question, retrieved[: config.k], "abstain", rng) if retrieved else None
        return None, row, True
    if not question.answers:
        return None, None, False
    found = not _missing(retrieved[: config.k], _needs(question))
    passages = builder.with_gold(question, retrieved, rng)
    answer = builder.row(question, passages, "answer", rng) if passages else None
    wanted = answer is None or draw < config.withhold if found else answer is None or draw >= config.insert
    count["retrieved" if found else "inserted" if not wanted else "absent"] += 1
    without = builder.without_gold(question, retrieved)
    abstain = builder.row(question, without, "abstain", rng) if without else None
    return answer, abstain, wanted


def _capped(made: Sequence[tuple[Row | None, Row | None, bool]], config: RowsConfig) -> list[Row]:
    """Abstain rows up to their share, drawn with the seed; the others become answer rows where they can."""
    wanted = [i for i, (_, abstain, want) in enumerate(made) if want and abstain]
    random.Random(config.seed).shuffle(wanted)
    wanted.sort(key=lambda i: made[i][0] is not None)  # questions without an answer row first
    sure = sum(answer is not None for answer, _, _ in made)
    taken: set[int] = set()
    for i in wanted:
        answers = sure - sum(made[j][0] is not None for j in (*taken, i))
        if len(taken) + 1 <= config.abstain_share * (len(taken) + 1 + answers):
            taken.add(i)
    chosen = [abstain if i in taken else answer for i, (answer, abstain, _) in enumerate(made)]
    return [row for row in chosen if row is not None]


def closed_book_rows(
    questions: Sequence[Question], *, count_tokens: Callable[[str], int]
) -> tuple[list[Row], RowsReport]:
    """Rows without passages: what the model is to know by itself. Questions without an answer give none."""
    rows = []
    for q in questions:
        if q.answers and not q.unanswerable:
            messages = render(q.question, (), count_tokens=count_tokens, closed_book=True).messages
            sources = tuple(dict.fromkeys(e.source for e in q.evidence))
            rows.append(
                Row(q.id, "closed-book", tuple(messages), completion(best_answer(q.answers, ())), (), (), sources)
            )
    if not rows:
        raise TrainingError(f"None of the {len(questions)} questions has an answer: there is nothing to train on.")
    gone = sum(q.unanswerable for q in questions)
    return rows, RowsReport(len(questions), len(rows), len(rows), 0, 0, 0, 0, gone, len(questions) - len(rows))


def data_hash(rows: Sequence[Row]) -> str:
    """Identity of the training data: changes with any prompt, completion or the order of rows."""
    return content_hash(*(_line(row) for row in rows))


def _line(row: Row) -> str:
    plain = {name: value for name, value in asdict(row).items() if name != "also" or value}  # as older files have it
    return json.dumps(plain, ensure_ascii=False, sort_keys=True)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Freeze rows on disk, one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_line(row) + "\n" for row in rows), encoding="utf-8", errors="surrogatepass")


def read_rows(path: Path) -> list[Row]:
    """Rows as `write_rows` froze them."""
    lines = path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()
    return [_row(json.loads(line)) for line in lines if line.strip()]


def _row(data: Mapping[str, Any]) -> Row:
    return Row(
        data["id"], data["kind"], tuple(data["prompt"]), data["completion"],
        tuple(data["gold"]), tuple(data["chunks"]), tuple(data["sources"]),
        tuple(data.get("also", ())),
    )  # fmt: skip
