"""What self-rag thought of its answer, as HTML: pure functions of `Answer.details`, everything escaped.

chips(details)        a line for each segment: its text, its passage, and how relevant, supported and useful it is
candidates(details)   what else was tried, folded away
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.markup import escape

WORDS = {"relevant": "relevant", "supported": "supported", "useful": "useful"}
TITLES = {
    "relevant": "How sure the model is that the passage helps to answer the question",
    "supported": "How far the passage supports what is said: fully counts 1, partially a half",
    "useful": "How useful the model finds the whole answer, from 0 to 1",
}
_NONE = "the model said nothing about this"


def chips(details: Mapping[str, Any], words: Mapping[str, str] = WORDS) -> str:
    """The segments of an answer with their chips; "" for answers of other arms. `words` are the labels to show."""
    segments = [segment for segment in _rows(details.get("segments")) if segment.get("chips")]
    if not segments:
        return ""
    lines = "".join(
        f'<li class="rt-segment"><span class="rt-said" dir="auto">{escape(str(segment.get("text") or "–"))}</span>'
        f"{_passage(segment)}{_chips(segment, words)}</li>"
        for segment in segments
    )
    return f'<ul class="rt-segments">{lines}</ul>{_decision(details)}'


def candidates(details: Mapping[str, Any], words: Mapping[str, str] = WORDS) -> str:
    """All segments that were tried, the kept ones marked; "" where there was nothing to choose from."""
    tried = _rows(details.get("candidates"))
    if len(tried) < 2:
        return ""
    rows = "".join(
        f'<li class="rt-tried{" rt-kept" if each.get("kept") else ""}">'
        f'<span class="rt-said" dir="auto">{escape(str(each.get("text") or "–"))}</span>{_passage(each)}'
        f'{_chips(each, words)}<span class="rt-total">{_number(each.get("score"), "{:.2f}")}</span></li>'
        for each in tried
    )
    return f'<details class="rt-candidates"><summary>{len(tried)} tried</summary><ul>{rows}</ul></details>'


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, Sequence) else []


def _passage(segment: Mapping[str, Any]) -> str:
    number = segment.get("passage")
    return f'<span class="rt-num">{number}</span>' if isinstance(number, int) else ""


def _chips(segment: Mapping[str, Any], words: Mapping[str, str]) -> str:
    values = segment.get("chips")
    found = values if isinstance(values, Mapping) else {}
    return "".join(_chip(name, label, found.get(name)) for name, label in words.items())


def _chip(name: str, label: str, value: Any) -> str:
    """One chip; weak below a half. Its number is in the text, so that colour is never all there is."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    kind = "none" if not known else "weak" if value < 0.5 else "good"
    title = TITLES.get(name, "") if known else _NONE
    return (
        f'<span class="rt-chip rt-chip-{kind}" title="{escape(title)}">{escape(label)} '
        f"{_number(value if known else None, '{:.0%}')}</span>"
    )


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else "–"


def _decision(details: Mapping[str, Any]) -> str:
    """Whether it retrieved, and what it cost."""
    r, sequences = details.get("r"), details.get("sequences")
    how = "searched" if details.get("retrieved") else "answered without searching"
    sure = f" (r = {r:.2f})" if isinstance(r, (int, float)) else ""
    cost = f", {sequences} sequences" if isinstance(sequences, int) else ""
    return f'<p class="rt-aside">{how}{sure}{cost}</p>'
