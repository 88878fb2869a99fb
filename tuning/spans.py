"""Which words of a text could be the answer to a question: dates, numbers, names, quoted titles, noun phrases.

Rules only, no model: they run over a chunk in a millisecond, and a small generator writes a better question when it is
given the answer than when it has to find one. English and languages written like it, Chinese and Japanese.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rag.sentences import sentences


def word_set(text: str) -> frozenset[str]:
    """The words of a text, for word lists that are read as text."""
    return frozenset(text.split())


def word_pairs(text: str) -> dict[str, str]:
    """The pairs "key:value" of a text."""
    return dict(pair.split(":") for pair in text.split())


SpanKind = Literal["date", "number", "quoted", "name", "phrase"]


@dataclass(frozen=True, slots=True)
class Span:
    """A possible answer: `text[start:end]`, within the sentence `text[sentence[0]:sentence[1]]`."""

    start: int
    end: int
    kind: SpanKind
    sentence: tuple[int, int]


_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?"
)
_YEAR = r"(?:1[0-9]|20)\d\d"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?"
    rf"|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+{_YEAR})?|{_MONTH}\s+{_YEAR}"
    rf"|(?:early|mid|late)[- ]{_YEAR}s?|{_YEAR}s?(?:\s?(?:BCE?|AD|CE))?|\d{{1,2}}(?:st|nd|rd|th)[- ]century"
    r"|\d{4}-\d\d-\d\d|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|\d{1,2}[:.]\d\d(?:\s?[ap]\.?m\.?)?)(?!\w)"
    r"|\d{2,4}\s?年(?:\s?\d{1,2}\s?月(?:\s?\d{1,2}\s?日)?)?|\d{1,2}\s?月\s?\d{1,2}\s?日"
)
_NUMBER_WORD = (
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    r"nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-(?:one|two|three|four|five|six|seven|eight|nine))?"
)
_SCALE = r"(?:\s(?:hundred|thousand|million|billion|trillion))?"
_UNIT = (
    r"(?:\s?(?:%|percent|per cent|°C|°F|km²|km/h|km|kg|mg|mm|cm|m²|m|g|ml|l|kW|kWh|MW|Hz|MHz|GHz|KB|MB|GB|TB|dB|V|W|A|"
    r"kilometres|kilometers|metres|meters|miles|feet|inches|acres|hectares|tonnes|tons|pounds|kilograms|grams|litres|"
    r"liters|degrees|seconds|minutes|hours|days|nights|weeks|months|years|dollars|euros|cents|crowns|people|times)\b\.?)"
)
_NUMBER = re.compile(
    rf"(?<![\w.,-])(?:[$€£¥]\s?)?\d+(?:[.,]\d+)*{_SCALE}(?:\s?[–-]\s?\d+(?:[.,]\d+)*{_SCALE})?{_UNIT}?(?![\w-])"
    rf"|\b{_NUMBER_WORD}{_SCALE}{_UNIT}?(?![\w-])"
    r"|[\d.,]*\d\s?(?:万|亿|千|百)?(?:元|个|人|名|次|公里|千米|米|厘米|公斤|千克|吨|克|升|小时|分钟|秒|天|周|年|岁|度|页|台|条|%|％|位|家|座|間|件|円)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"“([^“”\n]{3,60})”|\"([^\"\n]{3,60})\"|《([^《》\n]{2,30})》|「([^「」\n]{2,30})」")
_CAP = r"[A-Z\u00c0-\u00de][\w’'&.-]*\w|[A-Z]\."
_NAME = re.compile(rf"\b(?:{_CAP})(?:\s+(?:(?:of|the|de|van|von|der|du|la|le|and|for|&)\s+){{0,2}}(?:{_CAP}))*")
_CJK_NAME = re.compile(
    r"[\u3400-\u9fff]{2,10}(?:大学|公司|学院|医院|银行|协会|委员会|博物馆|车站|机场|大桥|寺|省|市|县|区|镇|村|岛|河|山|湖|港)"
)
_CJK_STOP = (
    "的了在是和与及于由取为被把从到对以有也都就而并等由该此其这那个一不可能会将时后前中上下内外之所又还但因如或者它他她"
    "们我你"
)
_CJK_PHRASE = re.compile(rf"[^\W\d_a-zA-Z{_CJK_STOP}]{{2,8}}")
_STOP = word_set(
    """a about above after again against all also although am an and any are as at be became because become becomes
    been before being below between both but by called can could did do does doing down during each either even
    ever few for from further had has have having he her here hers him his how however i if in into is it its
    itself just known made make makes many may might more most much must near nor not now of off often on once
    one only or other our out over own part per same several she should since so some such take than that the
    their them then there therefore these they this those three through thus to too two under until up upon use
    used uses using very was we well were what when where which while who whom whose why will with within
    without would yet you your no nor s t who’s first second third last new another every later early late
    usually generally including include includes based named given taken found"""
)
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+(?:[-’'][A-Za-z\u00c0-\u024f]+)*")
_EMPTY = word_set(
    """instance example area part number ways way case cases time times fact result results order event events task
    outcome addition terms form forms type types kind place places group groups term name names member members
    thing things people rest lot variety series sort total end start beginning side sides point points level
    levels"""
)
_NO_NOUN = re.compile(r"(?:ly|ed|ing|ive|ous|ful|able|ible|ical|less)$")
_OPENERS = word_set(
    """The A An In On At By For From With This That These Those It He She They We You I As If When While After Before
    During Since Although Though However But And Or So Because There Here His Her Its Their Our My Some Many
    Most All Both Each One Two Other Another Such No Not Only Also According"""
)


def answer_spans(text: str) -> list[Span]:
    """Possible answers in order of place; none overlaps one of a more certain kind (dates, numbers, quotes, names)."""
    found: list[Span] = []
    for begin, end in sentences(text):
        if not 25 <= end - begin <= 500 and not is_cjk(text[begin:end]):
            continue
        taken: list[tuple[int, int]] = []
        for kind, spans in _by_kind(text, begin, end):
            for start, stop in spans:
                if any(start < b and a < stop for a, b in taken) or (stop - start < 2 and not text[start].isdigit()):
                    continue
                taken.append((start, stop))
                found.append(Span(start, stop, kind, (begin, end)))
    return sorted(found, key=lambda s: s.start)


def _by_kind(text: str, begin: int, end: int) -> Iterable[tuple[SpanKind, list[tuple[int, int]]]]:
    yield "date", [m.span() for m in _DATE.finditer(text, begin, end)]
    yield "number", [m.span() for m in _NUMBER.finditer(text, begin, end)]
    yield "quoted", [m.span(m.lastindex or 0) for m in _QUOTED.finditer(text, begin, end)]
    if is_cjk(text[begin:end]):
        yield "name", [m.span() for m in _CJK_NAME.finditer(text, begin, end) if m[0][0] not in _CJK_STOP]
        phrases = (m.span() for m in _CJK_PHRASE.finditer(text, begin, end))
        yield "phrase", [(a, b) for a, b in phrases if "·" not in text[max(0, a - 1) : b + 1]]
    else:
        yield "name", list(_names(text, begin, end))
        yield "phrase", list(_phrases(text, begin, end))


def is_cjk(text: str) -> bool:
    return len(re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", text)) > 0.3 * len(text)


def _names(text: str, begin: int, end: int) -> Iterable[tuple[int, int]]:
    """Runs of capitalised words; one at the opening of the sentence counts only with a second capital behind it."""
    for m in _NAME.finditer(text, begin, end):
        start, stop = m.span()
        words = m[0].split()
        while words and words[0] in _OPENERS:
            start += len(words[0])
            start += len(text[start:stop]) - len(text[start:stop].lstrip())
            words = words[1:]
        while words and words[-1].lower() in _STOP:
            stop -= len(words[-1])
            stop = start + len(text[start:stop].rstrip())
            words = words[:-1]
        if text[start:stop].endswith(("'s", "’s")):
            stop -= 2
        opens = start == begin and len(words) == 1
        if words and not opens and stop - start >= 3 and words[0].lower() not in _STOP:
            yield start, stop


def _phrases(text: str, begin: int, end: int) -> Iterable[tuple[int, int]]:
    """Runs of one to four lower-case words between stop words that end like a noun (RAKE's candidates)."""
    run: list[tuple[int, int]] = []
    before = begin
    for m in _WORD.finditer(text, begin, end):
        word = m[0]
        gap = text[before : m.start()]
        if run and (gap.strip() or word.lower() in _STOP or word[0].isupper()):
            yield from _noun(text, run)
            run = []
        if word.lower() not in _STOP and not word[0].isupper():
            run.append(m.span())
        before = m.end()
    if run:
        yield from _noun(text, run)


def _noun(text: str, run: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    while run and _NO_NOUN.search(text[slice(*run[-1])]):
        run = run[:-1]
    while run and text[slice(*run[0])].endswith(("ly", "ed", "ing")):
        run = run[1:]
    if len(run) == 1 and text[slice(*run[0])] in _EMPTY:
        return
    if run and len(run) <= 4 and run[-1][1] - run[0][0] >= 4:
        yield run[0][0], run[-1][1]
