"""How good were these answers? Per-question rows, and each metric with its interval.

`rag.metrics` has the formulas, `rag.statistics` the intervals; this module applies them to `Answer`s and `Question`s.
Retrieval is judged by document, from the evidence sources: the passages of a document count once, with their best
score. Nothing is left out of a mean because it went wrong: a missing answer scores 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rag import metrics
from rag.errors import UsageError
from rag.prompt import strip_markers
from rag.statistics import Interval, bootstrap_ratios, quantile, wilson
from rag.types import Answer, Passage, Question

_QUALITY = ("em", "f1", "match")
_CITATION = ("citation_precision", "citation_recall", "evidence_precision", "evidence_recall")
_SHOWN = ("answer_in_passages", "evidence_in_passages")


@dataclass(frozen=True, slots=True)
class Item:
    """The scores of one question; None where a metric does not apply to it (and it is then left out of the mean).

    `cluster` is the document that the question is about: questions of one cluster are resampled together.
    """

    id: str
    cluster: str
    metrics: Mapping[str, float | None]
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rows of all questions and, for each metric, mean and interval; `seconds_p50` and `seconds_p95` are quantiles."""

    items: tuple[Item, ...]
    summary: Mapping[str, Interval] = field(default_factory=dict)

    def scores(self, metric: str) -> np.ndarray:
        """One value for each question, float array [questions]; 0 where the metric does not apply."""
        return np.array([item.metrics.get(metric) or 0.0 for item in self.items], dtype=np.float64)

    @property
    def clusters(self) -> list[str]:
        """The cluster of each question."""
        return [item.cluster for item in self.items]

    def by_kind(self, **options: Any) -> dict[str, Evaluation]:
        """One evaluation for each kind of question; empty when no question has a kind. `options` as for `summarise`."""
        kinds = sorted({item.kind for item in self.items if item.kind})
        parts = {kind: tuple(item for item in self.items if item.kind == kind) for kind in kinds}
        return {kind: Evaluation(items, summarise(items, **options)) for kind, items in parts.items()}

    def to_dict(self) -> dict[str, Any]:
        """`{"n": …, metric: {"mean", "low", "high"}, …}`, the shape of `ragtune evaluate --json`."""
        figures = {name: {"mean": i.mean, "low": i.low, "high": i.high} for name, i in self.summary.items()}
        return {"n": len(self.items), **figures}


def evaluate(
    answers: Sequence[Answer | None] | Mapping[str, Answer],
    questions: Sequence[Question],
    *,
    rankings: Sequence[Sequence[Passage]] | None = None,
    kinds: Mapping[str, str] | None = None,
    f1_rule: Literal["squad", "hotpot"] = "squad",
    entails: metrics.Entails = metrics.lexical_support,
    resamples: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Evaluation:
    """Scores answers, in the order of `questions` or by question id; None or an id that lacks is a missing answer.

    `rankings` are the passages found for each question, as many as the deepest cut-off asks (10 documents for ndcg@10);
    without them the ranking is judged on the passages that the model saw. `entails` is the support test of the citation
    metrics (see `metrics.lexical_support` for what the default is and is not). `seconds` of answers that were made in
    batches are shares of the batch's time: their quantiles say little about the wait of one person.
    Raises UsageError when the numbers of answers, rankings and questions differ or an id occurs twice.
    """
    given = _aligned(answers, questions)
    if rankings is not None and len(rankings) != len(questions):
        raise UsageError(f"{len(rankings)} rankings for {len(questions)} questions; give one for each question.")
    reads = any(answer is not None and answer.passages for answer in given)
    rule = metrics.hotpot_f1 if f1_rule == "hotpot" else metrics.f1
    items = []
    for i, (answer, question) in enumerate(zip(given, questions, strict=True)):
        row = _answer_scores(answer, question, rule)
        if reads:
            row |= _citation_scores(answer, question, entails) | _shown_scores(answer, question)
        if rankings is not None or reads:
            found = rankings[i] if rankings is not None else (answer.passages if answer else ())
            row |= retrieval_scores(found, question)
        cluster = question.evidence[0].source if question.evidence else f"question {question.id}"
        items.append(Item(question.id, cluster, row, (kinds or {}).get(question.id)))
    return Evaluation(tuple(items), summarise(items, resamples=resamples, alpha=alpha, seed=seed))


def evaluate_retrieval(
    rankings: Sequence[Sequence[Passage]], questions: Sequence[Question], *, resamples: int = 10_000, seed: int = 0
) -> Evaluation:
    """Retrieval metrics alone; questions without evidence are left out of the means."""
    if len(rankings) != len(questions):
        raise UsageError(f"{len(rankings)} rankings for {len(questions)} questions; give one for each question.")
    items = [
        Item(q.id, q.evidence[0].source if q.evidence else f"question {q.id}", retrieval_scores(found, q))
        for found, q in zip(rankings, questions, strict=True)
    ]
    return Evaluation(tuple(items), summarise(items, resamples=resamples, seed=seed))


def retrieval_scores(passages: Sequence[Passage], question: Question) -> dict[str, float | None]:
    """`metrics.retrieval_metrics` by document; all None for a question without evidence."""
    judged = {evidence.source: 1 for evidence in question.evidence}
    best: dict[str, float] = {}
    for passage in passages:
        source = passage.chunk.source
        best[source] = max(passage.score, best.get(source, passage.score))
    scores = metrics.retrieval_metrics(best, judged)
    return {name: value if judged else None for name, value in scores.items()}


def summarise(
    items: Sequence[Item], *, resamples: int = 10_000, alpha: float = 0.05, seed: int = 0
) -> dict[str, Interval]:
    """Mean and interval of every metric of the rows: seeded bootstrap over documents, Wilson for proportions.

    Wilson's interval supposes independent questions, so it is used when every question has its own document, and,
    with the number of documents as n, where all scores are equal to 0 or 1 and a bootstrap would claim certainty.
    """
    names = list(dict.fromkeys(name for item in items for name in item.metrics))
    values = np.array([[_number(item.metrics.get(name)) for name in names] for item in items]).reshape(
        len(items), len(names)
    )
    applies = ~np.isnan(values)
    tops, bottoms = {}, {}
    for j, name in enumerate(names):
        if applies[:, j].any():
            tops[name], bottoms[name] = np.where(applies[:, j], values[:, j], 0.0), applies[:, j].astype(float)
    _add_ratios(tops, bottoms)
    if not tops:
        return {}
    clusters = [item.cluster for item in items]
    columns = [np.stack(list(d.values()), axis=1) for d in (tops, bottoms)]
    drawn = bootstrap_ratios(*columns, clusters=clusters, resamples=resamples, alpha=alpha, seed=seed)
    summary = dict(zip(tops, drawn, strict=True))
    for name in tops:
        asked = bottoms[name] > 0
        scores, documents = tops[name][asked], len({c for c, yes in zip(clusters, asked, strict=True) if yes})
        alone = documents == len(scores)
        binary = np.isin(scores, (0.0, 1.0)).all() and np.isin(bottoms[name], (0.0, 1.0)).all()
        if len(scores) and binary and (alone or scores.min() == scores.max()):
            summary[name] = wilson(float(scores.mean()) * documents, documents, alpha=alpha)
    if "seconds" in tops:
        seconds = tops["seconds"][bottoms["seconds"] > 0]
        summary["seconds_p50"], summary["seconds_p95"] = quantile(seconds, 0.5), quantile(seconds, 0.95)
    return summary


def _add_ratios(tops: dict[str, np.ndarray], bottoms: dict[str, np.ndarray]) -> None:
    """Figures that are ratios of sums: abstention precision, recall and F1, and the F1 of what was answered."""
    if "abstained" not in tops:
        return
    abstained = tops["abstained"]
    if "f1" in tops:
        tops["answered_f1"] = tops["f1"] * (1 - abstained) * bottoms["f1"]
        bottoms["answered_f1"] = (1 - abstained) * bottoms["f1"]
    unanswerable = tops.pop("unanswerable")
    bottoms.pop("unanswerable")
    if not unanswerable.any():
        return
    right = abstained * unanswerable
    tops |= {"abstention_precision": right, "abstention_recall": right, "abstention_f1": 2 * right}
    bottoms |= {
        "abstention_precision": abstained,
        "abstention_recall": unanswerable,
        "abstention_f1": abstained + unanswerable,
    }


def _aligned(
    answers: Sequence[Answer | None] | Mapping[str, Answer], questions: Sequence[Question]
) -> list[Answer | None]:
    twice = [i for i, n in Counter(q.id for q in questions).items() if n > 1]
    if twice:
        raise UsageError(f"Question ids must differ; used more than once: {', '.join(twice[:5])}.")
    if isinstance(answers, Mapping):
        return [answers.get(question.id) for question in questions]
    if len(answers) != len(questions):
        raise UsageError(f"{len(answers)} answers for {len(questions)} questions; put None where an answer is missing.")
    return list(answers)


def _answer_scores(answer: Answer | None, question: Question, rule: Any) -> dict[str, float | None]:
    """em, f1, match, abstention, length and cost. An unanswerable question scores 1 iff the arm abstained (SQuAD
    v2).
    """
    if not question.answers and not question.unanswerable:
        quality: dict[str, float | None] = dict.fromkeys(_QUALITY)
    elif answer is None or answer.abstained != question.unanswerable:
        quality = dict.fromkeys(_QUALITY, 0.0)
    elif question.unanswerable:
        quality = dict.fromkeys(_QUALITY, 1.0)
    else:
        said, gold = plain_text(answer), question.answers
        quality = {
            "em": metrics.exact_match(said, gold),
            "f1": rule(said, gold),
            "match": metrics.match(said, gold),
        }
    return quality | {
        "abstained": float(answer is not None and answer.abstained),
        "unanswerable": float(question.unanswerable),
        "answer_words": float(len(metrics.answer_tokens(plain_text(answer)))) if answer else None,
        "seconds": answer.seconds if answer else None,
        "tokens_in": float(answer.tokens_in) if answer else None,
        "tokens_out": float(answer.tokens_out) if answer else None,
    }


def plain_text(answer: Answer) -> str:
    """The answer as it is compared with references: without citation markers."""
    return strip_markers(answer.text) if answer.passages else answer.text


def _citation_scores(answer: Answer | None, question: Question, entails: metrics.Entails) -> dict[str, float | None]:
    """Support by the cited passages (ALCE), and whether the cited documents are those of the evidence.

    Not applicable to a question without answer, nor the evidence figures to one without evidence; an abstention on a
    question that has an answer cites nothing and scores 0.
    """
    if question.unanswerable:
        return dict.fromkeys(_CITATION)
    gold = {evidence.source for evidence in question.evidence}
    nothing: dict[str, float | None] = {
        name: 0.0 if gold or name.startswith("citation") else None for name in _CITATION
    }
    if answer is None or answer.abstained:
        return nothing
    texts = {passage.chunk.id: passage.chunk.embedded_text for passage in answer.passages}
    cited = {c.number: texts[c.chunk_id] for c in answer.citations if c.chunk_id in texts}
    text = answer.text
    if cited and strip_markers(text) == text.strip():  # cited as a whole, without markers
        text += " " + "".join(f"[{n}]" for n in sorted(cited))
    found = metrics.attribution(text, cited, entails=entails, unknown=len(answer.unknown_markers))
    scores = nothing | {"citation_precision": found.precision, "citation_recall": found.recall}
    sources = [source for _, source in sorted({(c.number, c.source) for c in answer.citations})]
    if gold and sources:
        total = len(sources) + len(answer.unknown_markers)
        scores["evidence_precision"] = sum(source in gold for source in sources) / total
        scores["evidence_recall"] = len(gold & set(sources)) / len(gold)
    return scores


def _shown_scores(answer: Answer | None, question: Question) -> dict[str, float | None]:
    """Did the model see what it needed: a reference in the passages shown, and the quotes of the evidence?"""
    shown: dict[str, list[Passage]] = {}
    for passage in answer.passages if answer else ():
        shown.setdefault(passage.chunk.source, []).append(passage)
    texts = {
        source: "\n".join(p.chunk.text for p in sorted(passages, key=lambda p: p.chunk.start))
        for source, passages in shown.items()
    }
    scores: dict[str, float | None] = dict.fromkeys(_SHOWN)
    if question.answers:
        scores["answer_in_passages"] = float(any(metrics.match(text, question.answers) for text in texts.values()))
    if question.evidence:
        seen = [
            e.source in texts and (not e.quote or metrics.match(texts[e.source], [e.quote]) == 1.0)
            for e in question.evidence
        ]
        scores["evidence_in_passages"] = sum(seen) / len(seen)
    return scores


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
