"""Scores of one question: the answer against its references, the ranking against its judgements, the citations
against their passages.

Pure functions on strings and mappings, without numpy. The conventions are those of the published scripts, so that
figures can be compared: SQuAD v1.1/v2.0 `evaluate`, HotpotQA, trec_eval v10 (retrieval), ALCE (citations; Gao et al.
2023).
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rag.chunk import sentences
from rag.prompt import strip_markers

Entails: TypeAlias = Callable[[str, str], bool]
"""entails(premise, hypothesis): does the premise support the hypothesis? ALCE uses an 11-billion-parameter NLI model
here.
"""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CJK = re.compile(
    r"[\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_TOKEN = re.compile(_CJK.pattern + r"|[^\s" + _CJK.pattern[1:-1] + r"]+")
_MARKER = re.compile(r"\s*\[(\d+(?:\s*[,;]\s*\d+)*)\]")
_STOP = frozenset(
    re.findall(
        r"\w+",
        "and are as at be been but by did do does for from had has have he her his how i if in is it its not "
        "of on or she so than that their them there these they this those to was we were what when where which "
        "who whom why will with you your",
    )
)
_SHARE = 0.8  # of the content words of a sentence that must stand in the passage for `lexical_support`


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, ASCII punctuation deleted, articles (a, an, the) and extra space removed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_tokens(text: str) -> list[str]:
    """Tokens of the normalised text: words, but every Chinese, Japanese or Korean character on its own.

    In text with such characters the punctuation of those languages is deleted, too (as CMRC 2018's script does); other
    text is split exactly as SQuAD splits it.
    """
    plain = normalise(text)
    if not _CJK.search(plain):
        return plain.split()
    return _TOKEN.findall("".join(ch for ch in plain if not unicodedata.category(ch).startswith("P")))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 when the normalised prediction equals a normalised reference, else 0."""
    tokens = answer_tokens(prediction)
    return float(any(tokens == answer_tokens(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Token F1 (SQuAD v2: two empty texts give 1, one empty text 0), the maximum over the references."""
    return max((_pair_f1(answer_tokens(prediction), answer_tokens(r)) for r in references), default=0.0)


def hotpot_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 with HotpotQA's rule: 0 when either side is yes, no or noanswer and the two differ."""
    closed = {"yes", "no", "noanswer"}
    best, said = 0.0, normalise(prediction)
    for reference in references:
        gold = normalise(reference)
        if said == gold or (said not in closed and gold not in closed):
            best = max(best, _pair_f1(answer_tokens(prediction), answer_tokens(reference)))
    return best


def match(prediction: str, references: Sequence[str]) -> float:
    """Normalised containment (Adaptive-RAG's "Acc"): 1 when a normalised reference is a substring of the prediction.

    Favours long outputs, and short references ("no" stands in "know"): read it beside F1 and the answer length.
    """
    said = _contained_form(prediction)
    return float(any(gold and gold in said for gold in map(_contained_form, references)))


def _contained_form(text: str) -> str:
    tokens = answer_tokens(text)
    return "".join(tokens) if _CJK.search(text) else " ".join(tokens)


def _pair_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    if not predicted or not gold:
        return float(not predicted and not gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold))


# ---------------------------------------------------------------------------------------------------------- retrieval
# Own lines rather than ir_measures: a compiled dependency for these few would be the user's to install. The tests
# compare every figure, ties included, with ir_measures (pytrec_eval), which is a dependency of the tests.


def trec_order(run: Mapping[str, float]) -> list[str]:
    """Document ids by falling score; equal scores by falling id, as trec_eval sorts them."""
    return [doc for doc, _ in sorted(run.items(), key=lambda item: (item[1], item[0]), reverse=True)]


def retrieval_metrics(
    run: Mapping[str, float], judged: Mapping[str, int], *, ks: Sequence[int] = (1, 5, 10), ndcg_at: int = 10
) -> dict[str, float]:
    """trec_eval's figures for one query: recall@k, hit@k, p@k, mrr (no cut-off), ndcg@10 (linear gain), ap.

    `run` is score by document, `judged` relevance by document (unjudged counts 0). Without a relevant document all
    are 0.
    """
    ranked = trec_order(run)
    relevant = [int(judged.get(doc, 0) >= 1) for doc in ranked]
    total = sum(1 for grade in judged.values() if grade >= 1)
    ranks = [i for i, hit in enumerate(relevant, start=1) if hit]
    out: dict[str, float] = {}
    for k in ks:
        found = sum(relevant[:k])
        out[f"recall@{k}"] = found / total if total else 0.0
        out[f"hit@{k}"] = float(found > 0)
        out[f"p@{k}"] = found / k
    out["mrr"] = 1 / ranks[0] if ranks else 0.0
    ideal = dcg(sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:ndcg_at])
    gained = dcg([max(judged.get(doc, 0), 0) for doc in ranked[:ndcg_at]])
    out[f"ndcg@{ndcg_at}"] = gained / ideal if ideal else 0.0
    out["ap"] = sum(i / rank for i, rank in enumerate(ranks, start=1)) / total if total else 0.0
    return out


def dcg(grades: Sequence[int]) -> float:
    """Discounted cumulative gain with linear gain: Σ grade_i / log2(i + 1)."""
    return sum(grade / math.log2(i + 1) for i, grade in enumerate(grades, start=1))


# ---------------------------------------------------------------------------------------------------------- citations


@dataclass(frozen=True, slots=True)
class Attribution:
    """ALCE's citation scores of one answer."""

    precision: float
    recall: float
    sentences: int
    citations: int


def lexical_support(premise: str, hypothesis: str) -> bool:
    """The default support test, in place of ALCE's NLI model: do the words of the sentence stand in the passage?

    True when the normalised sentence (or bare answer) is contained in the passage, or when at least 80 % of its content
    words do, all its numbers among them; Chinese, Japanese and Korean count by pairs of characters. It does not see
    negation, order or paraphrase: "A sold B" supports "B sold A".
    """
    inside = _contained_form(hypothesis)
    if not inside:
        return False
    if inside in _contained_form(premise):
        return True
    units, there = _content_units(hypothesis), set(_content_units(premise))
    if not units or any(any(ch.isdigit() for ch in unit) and unit not in there for unit in units):
        return False
    return sum(unit in there for unit in units) >= _SHARE * len(units)


def _content_units(text: str) -> list[str]:
    """Words without function words; of each run of CJK characters its pairs (a lone one as it is)."""
    units: list[str] = []
    run = ""
    for token in [*answer_tokens(text), ""]:
        if token and _CJK.fullmatch(token):
            run += token
            continue
        units += [run[i : i + 2] for i in range(len(run) - 1)] or ([run] if run else [])
        run = ""
        if token and token not in _STOP:
            units.append(token)
    return units


def attribution(
    text: str,
    passages: Mapping[int, str],
    *,
    entails: Entails = lexical_support,
    unknown: int = 0,
    at_most: int = 3,
) -> Attribution:
    """Citation precision and recall of an answer whose sentences carry markers ([1], [1, 3]) that name `passages`.

    Recall: the share of sentences whose cited passages, joined, support them. Precision: the share of citations that
    count: the sentence is supported, and the citation supports it alone or is needed (the others without it do not).
    Stricter than ALCE's code in two places: markers that name no passage (those in the text, and `unknown` that were
    dropped from it) are citations, wrong ones; an answer without a sentence scores 0 rather than being left out.
    """
    sentences = _cited_sentences(text)
    good = cited = supported = 0
    for sentence, numbers in sentences:
        numbers = list(dict.fromkeys(numbers))[:at_most]
        known = [n for n in numbers if n in passages]
        cited += len(numbers)
        if not known or not entails("\n".join(passages[n] for n in known), sentence):
            continue
        supported += 1
        for n in known:
            others = [passages[m] for m in known if m != n]
            needed = not others or not entails("\n".join(others), sentence)
            good += int(needed or entails(passages[n], sentence))
    total = cited + unknown
    return Attribution(
        good / total if total else 0.0, supported / len(sentences) if sentences else 0.0, len(sentences), total
    )


def _cited_sentences(text: str) -> list[tuple[str, list[int]]]:
    """Sentences without their markers, each with its numbers (a marker after a full stop belongs before it)."""
    moved = re.sub(r"([.!?。！？]+)((?:\s*\[\d+(?:\s*[,;]\s*\d+)*\])+)", r"\2\1 ", text)
    out = []
    for start, end in sentences(moved):
        piece = moved[start:end]
        numbers = [int(n) for marker in _MARKER.findall(piece) for n in re.findall(r"\d+", marker)]
        bare = strip_markers(piece)
        if re.search(r"\w", bare):
            out.append((bare, numbers))
        elif numbers and out:
            out[-1][1].extend(numbers)
    return out
