"""Self-RAG's reflection tokens, what their probabilities are worth, and how candidates are compared; pure functions.

After Asai et al. 2024 (arXiv 2310.11511): four families of tokens say whether to retrieve, and whether a passage is
relevant, supports what was said, and makes a useful answer. Every score is made of probabilities, never of their
logarithms, and each is normalised within its own family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rag.errors import ConfigError
from rag.prompt import neutralise

NO_RETRIEVAL, RETRIEVAL, CONTINUE = "[No Retrieval]", "[Retrieval]", "[Continue to Use Evidence]"
IRRELEVANT, RELEVANT = "[Irrelevant]", "[Relevant]"
NO_SUPPORT, PARTIAL, FULL = "[No support / Contradictory]", "[Partially supported]", "[Fully supported]"
OPEN, CLOSE = "<paragraph>", "</paragraph>"

RETRIEVE = (NO_RETRIEVAL, RETRIEVAL, CONTINUE)
IS_REL = (IRRELEVANT, RELEVANT)
IS_SUP = (NO_SUPPORT, PARTIAL, FULL)
IS_USE = tuple(f"[Utility:{i}]" for i in range(1, 6))
REFLECTION = (*RETRIEVE, *IS_REL, *IS_SUP, *IS_USE)
"""The 13 tokens whose probabilities are read."""
TOKENS = (*REFLECTION, OPEN, CLOSE)
"""All 15 added tokens."""

UTILITY_VALUES = (-1.0, -0.5, 0.0, 0.5, 1.0)
PARTIAL_VALUE = 0.5

_LITERAL = re.compile("|".join(re.escape(token) for token in sorted(TOKENS, key=len, reverse=True)))
_LEFT_OVER = re.compile(_LITERAL.pattern + r"|</?s>|<\|[\w ]+\|>")


def escape(text: str) -> str:
    """Text of a document, a question or an answer in which nothing can act as a reflection or chat-template token.

    The first sign of each such string gets a space behind it, so that a tokenizer sees ordinary characters.
    """
    return neutralise(_LITERAL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text))


def plain(text: str) -> str:
    """An answer as it is shown and compared: without any reflection token, delimiter, end token or line break."""
    return " ".join(_LEFT_OVER.sub(" ", text).split())


# ------------------------------------------------------------------------------------------------------- probabilities


def within(logits: Mapping[str, float], family: Sequence[str]) -> dict[str, float]:
    """Probabilities of a family's tokens among themselves, from their logits; exact also where all are tiny."""
    top = max(logits[token] for token in family)
    weights = {token: math.exp(logits[token] - top) for token in family}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def retrieval_ratio(p: Mapping[str, float]) -> float:
    """r = p([Retrieval]) / (p([Retrieval]) + p([No Retrieval])), in [0, 1], without [Continue …]; 0 if both lack."""
    yes, no = p.get(RETRIEVAL, 0.0), p.get(NO_RETRIEVAL, 0.0)
    return yes / (yes + no) if yes + no > 0 else 0.0


def wants_retrieval(p: Mapping[str, float], delta: float | None) -> bool:
    """Whether to retrieve: r > delta; always where delta ≤ 0 (r may underflow to 0); without delta, the arg-max."""
    if delta is None:
        return max(RETRIEVE, key=lambda token: p.get(token, 0.0)) == RETRIEVAL
    return delta <= 0 or retrieval_ratio(p) > delta


def s_relevant(p: Mapping[str, float]) -> float:
    """s_IsRel = p(Relevant) / (p(Relevant) + p(Irrelevant)), in [0, 1]; 0 where the family is missing."""
    return _share(p, {IRRELEVANT: 0.0, RELEVANT: 1.0})


def s_supported(p: Mapping[str, float]) -> float:
    """s_IsSup = (p(Fully) + 0.5 p(Partially)) / (the three together), in [0, 1]; 0 where the family is missing."""
    return _share(p, {NO_SUPPORT: 0.0, PARTIAL: PARTIAL_VALUE, FULL: 1.0})


def s_useful(p: Mapping[str, float]) -> float:
    """s_IsUse = Σ v_i p(Utility:i) / Σ p(Utility:j) with v = (−1, −0.5, 0, 0.5, 1); 0 where the family is missing."""
    return _share(p, dict(zip(IS_USE, UTILITY_VALUES, strict=True)))


def _share(p: Mapping[str, float], values: Mapping[str, float]) -> float:
    total = sum(p.get(token, 0.0) for token in values)
    return sum(value * p.get(token, 0.0) for token, value in values.items()) / total if total > 0 else 0.0


# --------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part of a segment's score counts; the paper's values. 0 leaves a part out (for ablations)."""

    relevant: float = 1.0
    supported: float = 1.0
    useful: float = 0.5
    sequence: float = 1.0

    def __post_init__(self) -> None:
        for name in ("relevant", "supported", "useful", "sequence"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"the weight {name} is {getattr(self, name)}; it must be a number of 0 or more.")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a model said about one segment: probabilities within each family (empty: not said), and p(y_t | …).

    `sequence` is the geometric mean of the segment's token probabilities: a raw product would vanish beside the rest.
    `support` is the critique token that was generated, None where there was none.
    """

    relevant: Mapping[str, float]
    supported: Mapping[str, float]
    useful: Mapping[str, float]
    sequence: float
    support: str | None = None

    def score(self, weights: Weights = Weights()) -> float:
        """f(y_t, d) = p(y_t | x, d, y_<t) + Σ w^G s^G."""
        return (
            weights.sequence * self.sequence
            + weights.relevant * s_relevant(self.relevant)
            + weights.supported * s_supported(self.supported)
            + weights.useful * s_useful(self.useful)
        )

    def chips(self) -> dict[str, float | None]:
        """What a person is shown, each in [0, 1]: relevant, supported, useful (its score moved from [−1, 1]); None
        where the model said nothing."""
        return {
            "relevant": round(s_relevant(self.relevant), 4) if self.relevant else None,
            "supported": round(s_supported(self.supported), 4) if self.supported else None,
            "useful": round((s_useful(self.useful) + 1) / 2, 4) if self.useful else None,
        }


def sequence_probability(logprobs: Sequence[float]) -> float:
    """exp(mean of the natural log-probabilities), in [0, 1]; 0 for an empty segment."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


T = TypeVar("T")


def select(scored: Iterable[tuple[T, float, str | None]], beam: int, *, hard: bool = False) -> tuple[list[T], list[T]]:
    """The best `beam` of (candidate, summed score, generated support token), best first, and those that were dropped.

    With `hard`, candidates whose token is "[No support / Contradictory]" are dropped first; where that would leave
    none, the paper gives no rule, and the scores alone decide. Equal scores keep their order.
    """
    ordered = sorted(scored, key=lambda item: -item[1])
    allowed = [item for item in ordered if not (hard and item[2] == NO_SUPPORT)] or ordered
    kept = allowed[:beam]
    taken = {id(item) for item in kept}
    return [item[0] for item in kept], [item[0] for item in ordered if id(item) not in taken]


def aggregate(candidates: Iterable[tuple[str, float]], options: Sequence[str] = ()) -> tuple[str, float]:
    """The answer of several (text, score): open, the text with the largest score; with `options` (a closed set), each
    text counts for the option that it names, their scores are added, and the largest sum wins.

    A text names the option that it equals or, as a whole word, holds first; one that names none counts for nothing.
    Raises ConfigError where no candidate is given or none names an option.
    """
    given = list(candidates)
    if not options:
        if not given:
            raise ConfigError("There are no candidates to choose an answer from.")
        return max(given, key=lambda item: item[1])
    sums: dict[str, float] = {}
    for text, score in given:
        option = named_option(text, options)
        if option is not None:
            sums[option] = sums.get(option, 0.0) + score
    if not sums:
        raise ConfigError(f"No candidate names one of the options {', '.join(options)}.")
    best = max(sums, key=lambda option: sums[option])
    return best, sums[best]


def named_option(text: str, options: Sequence[str]) -> str | None:
    """The option that a text stands for; case does not count."""
    said = plain(text).casefold()
    for option in options:
        if said == option.casefold():
            return option
    places = {option: re.search(rf"(?<!\w){re.escape(option.casefold())}(?!\w)", said) for option in options}
    found = [(match.start(), option) for option, match in places.items() if match]
    return min(found)[1] if found else None
