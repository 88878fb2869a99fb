"""How good an answer was, whether a trace may be learnt from, and what went wrong where it may not."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from rag import metrics
from rag.errors import UsageError
from rag.prompt import is_abstention, strip_markers
from rag.types import Question

Reward: TypeAlias = Callable[[str, Question], float]
"""reward(answer, question) in [0, 1]."""

NGRAM = 10
"""Words in a row that a training question may not share with a test question (after normalisation)."""

RIGHT, WRONG, ABSTAINED, NOT_ABSTAINED = "right", "wrong answer", "abstained wrongly", "answered the unanswerable"
NO_ANSWER, FORMAT, REWARD = "no answer within the budget", "format errors", "reward function failed"


def f1_reward(answer: str, question: Question) -> float:
    """Token F1, with HotpotQA's rule for yes and no; 1 for abstaining where there is no answer."""
    if question.unanswerable:
        return float(is_abstention(answer))
    return metrics.hotpot_f1(strip_markers(answer), question.answers)


def em_reward(answer: str, question: Question) -> float:
    """Exact match after normalisation; 1 for abstaining where there is no answer."""
    if question.unanswerable:
        return float(is_abstention(answer))
    return metrics.exact_match(strip_markers(answer), question.answers)


REWARDS: dict[str, Reward] = {"f1": f1_reward, "em": em_reward}


def find_reward(name: str) -> Reward:
    """ "f1", "em", or "module:function" of the user's own, looked for in the working folder, too.

    Raises UsageError when it cannot be imported or called.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UsageError(f'There is no reward "{name}"; give f1, em, or your own as module:function.')
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f'The reward "{name}" cannot be found: {error}.') from None
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise UsageError(f'The reward "{name}" is no function.')
    result: Reward = found
    return result


def score(reward: Reward, answer: str, question: Question) -> float | None:
    """The reward of an answer; None where the function raised or gave no number in [0, 1]."""
    try:
        value = float(reward(answer, question))
    except Exception:  # a user's function may raise anything; the trace is kept aside, and counted
        return None
    return value if math.isfinite(value) and 0 <= value <= 1 else None


def failure_class(trace: Mapping[str, Any], threshold: float) -> str:
    """What went wrong in a judged trace, the first that holds; RIGHT from the threshold on."""
    if trace["reward"] is None:
        return REWARD
    if trace["reward"] >= threshold:
        return RIGHT
    if trace["unanswerable"]:
        return NOT_ABSTAINED
    if trace["ended"] == "repeats":
        return "repeated itself"
    if trace["ended"] in ("steps", "tokens", "seconds") and (trace["fallback"] == "empty" or not trace["answer"]):
        return NO_ANSWER
    if any(step["problem"] for step in trace["steps"]):
        return FORMAT
    if is_abstention(trace["answer"]):
        return ABSTAINED
    return f"{WRONG}, {trace['ended']} used up" if trace["ended"] in ("steps", "tokens", "seconds") else WRONG


# ------------------------------------------------------------------ what is kept


def contaminated(questions: Iterable[str], test: Iterable[str], *, n: int = NGRAM) -> list[bool]:
    """For each question whether `n` words in a row, or all of a shorter question, stand in a test question."""
    grams: set[tuple[str, ...]] = set()
    for text in test:
        grams.update(_grams(text, n))
    return [bool(grams & set(_grams(text, n))) for text in questions]


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = [w for w in re.findall(r"\w", text) if not w.isascii()] or metrics.answer_tokens(text)
    if not words:
        return []
    size = min(n, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if len(words) >= n else [tuple(words)]


def judge(
    traces: Sequence[dict[str, Any]], *, keep: float, test: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The traces with `failure` and `kept` set: reward from `keep` on, one for each question (the best, then the
    shortest), none that shares words with a test question. And why others were left out."""
    tainted = contaminated((t["question"] for t in traces), test) if test else [False] * len(traces)
    best: dict[str, int] = {}
    for i, trace in enumerate(traces):
        if trace["reward"] is None or trace["reward"] < keep or tainted[i]:
            continue
        key = metrics.normalise(trace["question"])
        other = best.get(key)
        if other is None or _rank(trace) > _rank(traces[other]):
            best[key] = i
    chosen = set(best.values())
    dropped: Counter[str] = Counter()
    judged = []
    for i, trace in enumerate(traces):
        failure = failure_class(trace, keep)
        judged.append({**trace, "failure": "" if failure == RIGHT else failure, "kept": i in chosen})
        if i not in chosen:
            dropped["contaminated" if tainted[i] else "duplicate" if failure == RIGHT else "below the threshold"] += 1
    return judged, dict(dropped)


def _rank(trace: Mapping[str, Any]) -> tuple[float, int, int]:
    wrong = sum(bool(step["problem"]) for step in trace["steps"])
    return float(trace["reward"]), -wrong, -len(trace["steps"])


def summary(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of judged traces: rewards, shares kept by kind of question, failures, and what went wrong on the way.

    `format_errors` is the share of steps in which the model did not write a legal action at first.
    """
    kinds: dict[str, dict[str, Any]] = {}
    for trace in traces:
        row = kinds.setdefault(trace["kind"] or "question", {"n": 0, "kept": 0, "reward": 0.0})
        row["n"] += 1
        row["kept"] += bool(trace["kept"])
        row["reward"] += trace["reward"] or 0.0
    for row in kinds.values():
        row["reward"] = round(row["reward"] / row["n"], 4)
        row["share_kept"] = round(row["kept"] / row["n"], 4)
    count = len(traces)
    steps = sum(t["counts"]["steps"] for t in traces)
    names = ("bad_calls", "invalid_actions", "repeated_actions", "tool_failures", "dropped", "tokens_in", "tokens_out")
    totals = {name: sum(t["counts"][name] for t in traces) for name in names}
    return {
        "traces": count,
        "kept": sum(bool(t["kept"]) for t in traces),
        "reward": round(sum(t["reward"] or 0.0 for t in traces) / max(1, count), 4),
        "kinds": kinds,
        "failures": dict(Counter(t["failure"] for t in traces if t["failure"]).most_common()),
        "ended": dict(Counter(t["ended"] for t in traces).most_common()),
        "fallbacks": dict(Counter(t["fallback"] for t in traces if t["fallback"])),
        "steps": steps,
        "format_errors": round(format_errors(traces), 4),
        **totals,
    }


def format_errors(traces: Sequence[Mapping[str, Any]]) -> float:
    """Steps whose words were no legal action at the first try, as a share of all steps."""
    steps = sum(t["counts"]["steps"] for t in traces)
    wrong = sum(min(t["counts"]["steps"], t["counts"]["bad_calls"] + _other_problems(t)) for t in traces)
    return wrong / max(1, steps)


def _other_problems(trace: Mapping[str, Any]) -> int:
    """Invalid actions that were not asked for a second time already."""
    return sum(bool(s["problem"]) and s["problem"] != "no action" for s in trace["steps"])
