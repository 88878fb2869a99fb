"""What is known about a question before it is answered, as numbers: the question itself, and what retrieval found.

Each feature has two phrases for a person, one for a high and one for a low value: the router says with them why it
chose. Nothing here looks at an answer. `describe` costs about a millisecond.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from rag.answer import AnswerConfig, Answerer
from rag.cite import content_words
from rag.errors import ModelError
from rag.protocols import Decoding, Generator
from rag.types import Passage

DEPTH = 10
"""Passages that are looked at; more than an arm reads, because their spread tells how sure the retriever is."""
FIRST_TOKENS = 4
"""Tokens of the beginning of an answer whose probability is the generator's own uncertainty."""

_TYPES = (
    ("how_many", r"^(?:\W*\w+ )?how (?:many|much|long|old|far|tall|large|often)\b|多少|几[个年天]"),
    ("who", r"\b(?:who|whom|whose)\b|谁"),
    ("when", r"\bwhen\b|\b(?:what|which) (?:year|day|date|month|century)\b|何时|什么时候|哪[一]?年"),
    ("where", r"\bwhere\b|\b(?:what|which) (?:city|country|place|town)\b|哪里|何处|什么地方"),
    ("why", r"\bwhy\b|为什么|为何"),
    ("how", r"\bhow\b|如何|怎么|怎样"),
    ("which", r"\bwhich\b|哪"),
    ("what", r"\bwhat\b|什么|何"),
    ("yes_no", r"^(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should)\b|[吗]"),
)
_KIND = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _TYPES]
_CALCULATION = re.compile(
    r"\b(?:total|sum|difference|percent\w*|average|mean|ratio|increase|decrease|change|altogether|combined|in all|"
    r"plus|minus|times|divided|more than|less than|how much (?:more|less|longer))\b|\d\s*[-+*/×÷]\s*\d|合计|平均|相差",
    re.IGNORECASE,
)
_COMPARISON = re.compile(
    r"\b(?:both|same|either|older|younger|earlier|later|larger|smaller|longer|shorter|closer|more|between|compared)\b",
    re.IGNORECASE,
)
_LINK = re.compile(r"(?<=\w[ ,])(?:who|which|that|whose|where|whom)\b|\bof (?:the|a|an)\b|\w['’]s\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d,.:]*")
_NAME = re.compile(r"(?<=\s)[A-Z][\w'’-]+")

FEATURES: dict[str, tuple[str, str]] = {
    "words": ("the question is long", "the question is short"),
    "names": ("it names several things", "it names nothing"),
    "numbers": ("it holds numbers", "it holds no number"),
    **{f"asks_{name}": (f"it asks {name.replace('_', ' or ' if name == 'yes_no' else ' ')}", "") for name, _ in _TYPES},
    "calculation": ("it asks for a calculation", "nothing is to be calculated"),
    "comparison": ("it compares", "it compares nothing"),
    "links": ("it goes from one thing to another", "it is about one thing"),
    "dense_top": ("a passage means nearly the same", "no passage is near in meaning"),
    "dense_margin": ("one passage stands out in meaning", "no passage stands out in meaning"),
    "dense_mean": ("many passages are near in meaning", "few passages are near in meaning"),
    "lexical_top": ("a passage shares rare words with it", "no passage shares rare words with it"),
    "lexical_word": ("its words are found", "its words are hardly found"),
    "lexical_margin": ("one passage stands out by its words", "no passage stands out by its words"),
    "fused_margin": ("the first passage is far ahead", "the first passages are close together"),
    "agreement": ("both ways of searching agree", "the two ways of searching disagree"),
    "first_in_both": ("both ways of searching put the same passage first", "they put different passages first"),
    "covered_by_first": ("the first passage holds its words", "the first passage lacks its words"),
    "covered_by_five": ("the passages hold its words", "the passages lack some of its words"),
    "covered_by_others": ("other passages hold what the first one lacks", "the first passage holds as much as all"),
    "names_found": ("the first passage names what it names", "the first passage does not name what it names"),
    "documents": ("the passages come from many documents", "the passages come from few documents"),
    "numbers_found": ("the passages are full of numbers", "the passages hold few numbers"),
    "rerank_top": ("the reranker found a passage that answers", "the reranker found no passage that answers"),
}
"""name → (what a high value means, what a low value means), in the order of the columns."""
UNCERTAINTY: dict[str, tuple[str, str]] = {
    "sure_alone": ("the model is sure by itself", "the model is unsure by itself"),
    "sure_reading": ("the model is sure with the passages", "the model is unsure with the passages"),
}
"""The same for the two columns of `uncertainty`."""


def describe(question: str, passages: Sequence[Passage]) -> list[float]:
    """The values of `FEATURES` for one question and its passages in rank order (the first `DEPTH` count)."""
    words = content_words(question)
    names = _NAME.findall(question)
    kind = next((name for name, pattern in _KIND if pattern.search(question)), "")
    values = {
        "words": math.log1p(len(question.split()) if question.isascii() else len(words)),
        "names": float(min(5, len(names))),
        "numbers": float(min(3, len(_NUMBER.findall(question)))),
        **{f"asks_{name}": float(name == kind) for name, _ in _TYPES},
        "calculation": float(min(2, len(_CALCULATION.findall(question)))),
        "comparison": float(min(2, len(_COMPARISON.findall(question)))),
        "links": float(min(4, len(_LINK.findall(question)))),
    }
    values |= _scores(passages[:DEPTH], len(words)) | _coverage(passages[:DEPTH], set(words), names)
    return [values.get(name, 0.0) for name in FEATURES]


def _scores(passages: Sequence[Passage], words: int) -> dict[str, float]:
    """What the scores say; 0 where a half of the search did not run."""
    dense = _known([p.scores.dense for p in passages])
    lexical = _known([p.scores.lexical for p in passages])
    fused = _known([p.scores.fused for p in passages])
    rerank = _known([p.scores.rerank for p in passages])
    found: dict[str, float] = {}
    if dense:
        top = sorted((s for _, s in dense), reverse=True)
        found |= {"dense_top": top[0], "dense_margin": _margin(top), "dense_mean": float(np.mean(top[:5]))}
    if lexical:
        top = sorted((s for _, s in lexical), reverse=True)
        found |= {"lexical_top": math.log1p(max(0.0, top[0])), "lexical_word": top[0] / max(1, words)}
        found["lexical_margin"] = _margin(top) / top[0] if top[0] > 0 else 0.0
    if fused:
        found["fused_margin"] = _margin(sorted((s for _, s in fused), reverse=True))
    if dense and lexical:
        by_meaning, by_words = _order(dense), _order(lexical)
        found["agreement"] = len(set(by_meaning[:5]) & set(by_words[:5])) / max(1, min(5, len(by_meaning)))
        place = by_words.index(by_meaning[0]) + 1 if by_meaning[0] in by_words else len(by_words) + 1
        found["first_in_both"] = 1.0 / place
    if rerank:
        found["rerank_top"] = max(s for _, s in rerank)
    return found


def _known(scores: Sequence[float | None]) -> list[tuple[int, float]]:
    return [(i, float(s)) for i, s in enumerate(scores) if s is not None]


def _margin(ordered: Sequence[float]) -> float:
    return ordered[0] - ordered[1] if len(ordered) > 1 else 0.0


def _order(scores: Sequence[tuple[int, float]]) -> list[int]:
    return [i for i, _ in sorted(scores, key=lambda item: (-item[1], item[0]))]


def _coverage(passages: Sequence[Passage], words: set[str], names: Sequence[str]) -> dict[str, float]:
    """How much of the question stands in the first passage, in the first five, and only in the others."""
    if not passages:
        return {}
    texts = [p.chunk.embedded_text for p in passages[:5]]
    first = words & set(content_words(texts[0]))
    every = first | (words & set(content_words("\n".join(texts[1:]))))
    total = max(1, len(words))
    return {
        "covered_by_first": len(first) / total,
        "covered_by_five": len(every) / total,
        "covered_by_others": (len(every) - len(first)) / total,
        "names_found": sum(name in texts[0] for name in names) / len(names) if names else 0.0,
        "documents": len({p.chunk.source for p in passages[:5]}) / 5,
        "numbers_found": math.log1p(sum(len(_NUMBER.findall(text)) for text in texts[:2])),
    }


def uncertainty(
    generator: Generator,
    questions: Sequence[str],
    passages: Sequence[Sequence[Passage]],
    config: AnswerConfig = AnswerConfig(),
) -> np.ndarray:
    """The values of `UNCERTAINTY`, float64 [questions, 2]: mean log-probability (natural) of the first tokens of the
    base model's answer, without and with the passages. Costs two prefills for each question.

    Raises ModelError for a generator that gives no probabilities (most endpoints).
    """
    answerer = Answerer(generator, None, config)
    asked = [answerer.render(q, (), arm="base").messages for q in questions]
    asked += [answerer.render(q, p[: config.k], arm="rag").messages for q, p in zip(questions, passages, strict=True)]
    begun = generator.generate(asked, Decoding(FIRST_TOKENS, ("\n",)))
    if any(g.logprob is None for g in begun):
        raise ModelError(
            f"{generator.name} gives no token probabilities, so its uncertainty is not known. "
            "Route without --uncertainty, or with a model on this machine."
        )
    means = [(g.logprob or 0.0) / max(1, g.tokens_out) for g in begun]
    return np.array(means, dtype=np.float64).reshape(2, len(questions)).T
