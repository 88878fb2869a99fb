"""A statement and one of its spans → the question that the span answers, by rules of word order.

English: the span is taken out of the main clause and the clause is turned around ("Tesla moved to Budapest in 1881" →
"When did Tesla move to Budapest?"). Chinese and Japanese ask in place, so the span is replaced by its question word.
After Heilman and Smith (2010), with word lists in place of a parser: a sentence that does not fit a rule gives nothing.
A question made so has the right answer by construction, which a small generator's often has not; its words are those of
the document, which a person's would not be. `tuning.questions` mixes both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tuning.spans import Span, is_cjk, word_pairs, word_set

_AUX = word_set("is are was were has have had can could will would may might must should did does do")
_PAST = word_pairs(
    """became:become began:begin broke:break brought:bring built:build bought:buy caught:catch chose:choose came:come
    cost:cost dealt:deal drew:draw drove:drive fell:fall felt:feel fought:fight found:find flew:fly
    forbade:forbid gave:give went:go grew:grow held:hold kept:keep knew:know laid:lay led:lead left:leave
    lent:lend lay:lie lost:lose made:make meant:mean met:meet paid:pay ran:run rose:rise said:say saw:see
    sold:sell sent:send shook:shake showed:show shot:shoot sang:sing sank:sink sat:sit spoke:speak spent:spend
    stood:stand stole:steal struck:strike swore:swear took:take taught:teach thought:think threw:throw
    understood:understand wore:wear won:win wrote:write withdrew:withdraw overthrew:overthrow underwent:undergo
    undertook:undertake"""
)
_PRESENT = word_pairs(
    """includes:include contains:contain provides:provide consists:consist lies:lie runs:run serves:serve uses:use
    covers:cover produces:produce requires:require allows:allow begins:begin ends:end opens:open closes:close
    takes:take gives:give makes:make holds:hold receives:receive represents:represent remains:remain costs:cost
    needs:need operates:operate offers:offer publishes:publish owns:own plays:play leads:lead meets:meet
    forms:form lives:live becomes:become occurs:occur comes:come goes:go brings:bring keeps:keep pays:pay
    sells:sell stands:stand works:work consumes:consume employs:employ exists:exist carries:carry
    maintains:maintain enters:enter leaves:leave"""
)
_SUBORDINATE = word_set("which who whom whose where when while because although though if that whether as since")
_PRONOUN = word_set("he she it they we i you this that these those there his her its their our my such one both")
_PERSON_CUE = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Sir|Lord|Lady|King|Queen|Prince|Princess|President|Mayor|Professor|General|Captain|Pope|Saint|"
    r"Emperor|Bishop|Chancellor|Minister|Governor|Senator|Judge|Director|engineer|composer|author|writer|scientist|"
    r"physicist|inventor|architect|artist|singer|actor|manager|coach|leader|president|director|king|emperor)\.?\s)$"
)
_NO_PERSON = re.compile(
    r"\b(?:University|College|School|Company|Corporation|Inc|Ltd|Church|Museum|Party|Council|Committee|Bank|Act|Treaty|War|"
    r"Law|River|Sea|Ocean|Lake|Island|City|County|Street|Road|Park|Bridge|Station|Airport|Hall|House|Palace|Court|Army|League|"
    r"Union|Empire|Kingdom|Republic|States|Province|Department|Ministry|Agency|Office|Institute|Society|Association|Bowl|"
    r"Group|Network|Program|Project|System|Center|Centre|Stadium|Theatre|Theater|Hospital|Library|Press|Times|Prize|"
    r"North|South|East|West|Northern|Southern|Eastern|Western|Battle|Revolution|Festival|Hotel|Building|Tower)\b"
)
_NO_PLACE = re.compile(
    r"\b(?:War|Battle|Revolution|Treaty|Act|Code|Law|Age|Church|Company|Corporation|Party|Agreement|Bible|Bowl|Olympics|"
    r"Cup|Prize|Program|Project|Council|Committee|Congress|Parliament|Army|League|English|French|Latin|Greek|German|"
    r"Chinese|Spanish|Arabic|Hebrew|Roman|American|British)\b|ism$|'s$"
)
_PLACE = re.compile(r"\b(in|at|near|from|to|into|inside|outside)\s+(?:the\s+)?$")
_PREPOSITION = re.compile(
    r"\b(in|on|at|by|with|for|from|to|into|of|under|during|after|before|against|between|through|around|about|near|over|"
    r"since|until|as|among|within|behind|along|across|upon|per|than|like|and|or)\s+(?:the\s+|an?\s+)?$"
)
_TIME = re.compile(
    r"(?:\b(in|on|by|since|until|during|around|at|circa|about|of)\s+)?(?:the\s+)?(?:year\s+|early\s+|late\s+)?$"
)
_MEASURE = re.compile(r"^\s*(long|tall|high|wide|deep|old|thick|heavy)\b")
_ADVERBIAL = re.compile(
    r"^((?:In|On|At|By|During|After|Since|Before|From|Until|Around|For|Under|Throughout|Within|Between|Near)\b[^,;:]{2,60}),\s+"
)
_OPENING = re.compile(
    r"^(?:However|Therefore|Moreover|Furthermore|Thus|Also|Additionally|Finally|Meanwhile|Consequently|Similarly|Indeed|"
    r"Nevertheless|Instead|Later|Then|Today|Originally|Eventually|Subsequently|In addition|As a result|For example|"
    r"For instance|In fact|On the other hand|At the same time|In general|In particular|And|But|So),?\s+",
)
_BREAK = re.compile(
    r"[;:—]|\s[–-]\s|,\s+(?:(?:and|but|or|while|which|who|whom|whose|where|when|although|though|as|with|because|since|so|yet|"
    r"making|including|giving|leading|causing|such|both|after|before|until|during|followed|led|based|known|a|an|the|one|"
    r"[a-z]+ing)\b)"
    rf"|\s(?:and|but|or)\s(?=(?:[a-z]{{2,}}ed|{'|'.join((*_AUX, *_PAST, *_PRESENT))})\b)"
    r"|\s(?:because|while|although|though|whereas|so that|when|where|which|who|whose|after|before|until|if)\s"
)
_NEXT = (
    "in|on|at|by|with|for|from|to|into|under|during|after|before|against|between|through|around|near|over|"
    "since|until|as"
)
_ASKED_WITH = ("by", "with", "from", "into", "through", "for", "under", "against")
_MARK = "\u0000"


def cloze_question(text: str, span: Span, count: Callable[[str], int] | Mapping[str, int]) -> str | None:
    """The question whose answer is `span`, or None where no rule fits.

    `count` says how often a lower-case word occurs in the corpus: it tells "mov" from "move".
    """
    begin, end = span.sentence
    sentence = text[begin : span.start] + _MARK + text[span.end : end]
    answer = text[span.start : span.end]
    if is_cjk(text[begin:end]):
        return _in_place(sentence, answer, span.kind)
    frequency = count if callable(count) else lambda word: count.get(word, 0)
    clause = _clause(" ".join(sentence.split()), frequency)
    if clause is None:
        return None
    question = _turn(clause, answer, span.kind, frequency)
    return question if question and 5 <= len(question.split()) <= 26 else None


# ------------------------------------------------------------------------------ the clause


def _clause(sentence: str, count: Callable[[str], int]) -> str | None:
    """The main clause around the mark: without brackets, opening words and what hangs on behind."""
    plain = re.sub(r"\[[^\]]*\]", "", sentence)
    plain = re.sub(r"\s*\([^()]*\)", lambda m: m[0] if _MARK in m[0] else "", plain).strip()
    plain = _OPENING.sub("", plain).rstrip(".!? ")
    if any(c in plain for c in '“”"()*|#') or plain.count(_MARK) != 1:
        return None
    adverbial = ""
    if (m := _ADVERBIAL.match(plain)) and not _finite(m[1]):
        adverbial, plain = m[1], plain[m.end() :]
    if _MARK not in plain:
        return f"{plain.split(';')[0]} {_lower(adverbial, count)}" if _simple(plain) else None
    at = plain.index(_MARK)
    if m := _BREAK.search(plain, at):
        plain = plain[: m.start()]
    if _BREAK.search(plain[:at]) or not _simple(plain):
        return None
    return f"{plain.rstrip(', ')} {_lower(adverbial, count)}".strip()


def _simple(plain: str) -> bool:
    first = plain.split(" ")[0].strip(",").lower()
    if first in _SUBORDINATE or first in _PRONOUN or first.endswith("ly") or first in ("despite", "like", "unlike"):
        return False
    return 4 <= len(plain.split()) <= 32 and plain.count(",") <= 2


def _finite(words: str) -> bool:
    return any(w in _AUX or w in _PAST or w in _PRESENT for w in words.split())


def _lower(text: str, count: Callable[[str], int]) -> str:
    """An opening made fit for the middle of a sentence: a word that the corpus writes small is written small."""
    first, _, rest = text.partition(" ")
    common = first.lower() in _FUNCTION or (first.istitle() and not rest[:1].isupper() and count(first.lower()) > 1)
    return text[:1].lower() + text[1:] if common else text


_FUNCTION = word_set(
    """the a an in on at by during after since before from until around for under throughout within between near some
    many most all each every several about approximately over nearly almost more less another other its his her
    their"""
)


# ------------------------------------------------------------------------------- turning it


def _turn(clause: str, answer: str, kind: str, count: Callable[[str], int]) -> str | None:
    words = clause.split()
    at = next(i for i, w in enumerate(words) if _MARK in w)
    if words[at].strip(",'’s") != _MARK and words[at].strip(",") != _MARK:
        return None  # part of a longer word or a possessive
    verb = _verb(words, count)
    if verb is None:
        return None
    subject = words[:verb]
    if words[verb] not in _AUX and _second_verb(words, verb):
        return None
    if at < verb:
        return _ask_subject(words, at, verb, answer, kind)
    if not _good_subject(subject):
        return None
    front = _inverted(words, verb, count)
    if front is None:
        return None
    head, rest_from = front
    before, after = " ".join(words[rest_from:at]), " ".join(words[at + 1 :])
    tail = words[at].replace(_MARK, "")
    found = _question_word(before, after, answer, kind, words[verb])
    if found is None:
        return None
    wh, before, after = found
    body = " ".join(f"{head} {before}{tail} {after}".split()).replace(" ,", ",").strip(" ,")
    return f"{wh} {body}?"


def _verb(words: list[str], count: Callable[[str], int]) -> int | None:
    """Where the finite verb stands; None when something that could be a second clause comes before it."""
    for i, word in enumerate(words):
        if i and (word in _AUX or word in _PAST or word in _PRESENT):
            return i
        if i and re.fullmatch(r"[a-z]{2,}ed", word) and _base(word, count) and words[i - 1].lower() not in _FUNCTION:
            return i
        if (i and word.lower() in _SUBORDINATE) or i > 10:
            return None
    return None


def _second_verb(words: list[str], verb: int) -> bool:
    """Whether a form of "be" or "have" follows in the clause: then the first verb was a participle of the subject."""
    for word in words[verb + 1 :]:
        if word in ("that", "which", "who") or word.endswith(","):
            return False
        if word in ("is", "are", "was", "were", "has", "have"):
            return True
    return False


def _base(past: str, count: Callable[[str], int]) -> str | None:
    """The base form of a regular past tense: the candidate that the corpus uses most."""
    stem = past[:-2]
    options = [stem, stem + "e"]
    if stem.endswith("i"):
        options = [stem[:-1] + "y"]
    elif len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "sl":
        options = [stem[:-1], stem]
    elif len(stem) > 3 and stem[-1] == stem[-2] == "l":
        options = [stem, stem[:-1]]
    best = max(options, key=count)
    return best if count(best) > 0 else None


def _good_subject(subject: list[str]) -> bool:
    text = " ".join(subject)
    return bool(subject) and subject[0].lower() not in _PRONOUN and text.count(",") == 0 and len(subject) <= 9


def _inverted(words: list[str], verb: int, count: Callable[[str], int]) -> tuple[str, int] | None:
    """Auxiliary, subject and base verb, and the index behind the verb."""
    subject, word = " ".join(words[:verb]), words[verb]
    following = words[verb + 1] if verb + 1 < len(words) else ""
    if word in ("has", "have", "had") and not (following == "been" or following.endswith("ed") or following in _PAST):
        do = {"has": "does", "have": "do", "had": "did"}[word]
        return f"{do} {_lower(subject, count)} have", verb + 1
    if word in _AUX:
        return f"{word} {_lower(subject, count)}", verb + 1
    if word in _PAST:
        return f"did {_lower(subject, count)} {_PAST[word]}", verb + 1
    if word in _PRESENT:
        return f"does {_lower(subject, count)} {_PRESENT[word]}", verb + 1
    base = _base(word, count)
    return (f"did {_lower(subject, count)} {base}", verb + 1) if base else None


def _ask_subject(words: list[str], at: int, verb: int, answer: str, kind: str) -> str | None:
    """The span is (part of) the subject: only the question word stands in its place."""
    before, after = words[:at], words[at + 1 : verb]
    predicate = " ".join(words[verb:])
    lead = " ".join(before).lower()
    if words[at] != _MARK or lead not in (
        "",
        "the",
        "a",
        "an",
        "about",
        "approximately",
        "over",
        "nearly",
        "almost",
        "some",
    ):
        return None
    if kind == "number":
        if re.search(r"%|percent|per cent", answer):
            return f"What percentage {' '.join(after)} {predicate}?".replace("  ", " ")
        noun = " ".join(after)
        bare = re.fullmatch(r"[\d.,]+|[a-z]+(?:-[a-z]+)?", answer, re.IGNORECASE)
        return f"How many {noun} {predicate}?" if noun and bare and len(after) <= 4 else None
    if after or kind == "date":
        return None
    if kind == "name":
        acts = words[verb] not in ("is", "are", "was", "were", "has", "have", "had")
        if not acts and _person(answer, ""):
            return None  # a person or a thing: the words do not tell
        person = acts and not _NO_PERSON.search(answer) and not answer.isupper()
        return f"{'Who' if person else 'What'} {predicate}?"
    return f"What {predicate}?" if kind == "phrase" else None


def _person(name: str, before: str) -> bool:
    words = name.split()
    if _NO_PERSON.search(name) or any(w.isupper() and len(w) > 1 and "." not in w for w in words):
        return False
    full = 2 <= len(words) <= 3 and all(w[0].isupper() for w in words)
    return full or bool(_PERSON_CUE.search(before))


def _question_word(before: str, after: str, answer: str, kind: str, verb: str) -> tuple[str, str, str] | None:
    """The question word, and what stays before and behind the place of the span; None where no rule fits."""
    spaced = before + " " if before else ""
    if kind == "date":
        return _ask_time(spaced, after, answer)
    if kind == "number":
        return _ask_number(spaced, after, answer, verb)
    if after and not re.match(r"(?:" + _NEXT + r")\b|,", after):
        return None  # the span is only a part of its phrase
    determined = re.sub(r"\b(?:the|an?|its|his|her|their)\s+$", "", spaced)
    if re.match(r"(?:of|that|which|who|to)\b", after) and kind == "phrase":
        return None  # the span is only the head of a longer phrase
    preposition = _PREPOSITION.search(spaced)
    if preposition is None:
        if determined.strip() and not determined.rstrip().endswith(("ed", "en", "called", "named")):
            return None  # the object of another verb, or the second half of a compound
        if verb in ("is", "are", "was", "were") and not determined.strip() and after:
            return None
        return ("Who" if kind == "name" and _person(answer, before) else "What"), determined, after
    word = preposition[1]
    if word == "to" and kind == "phrase" and not spaced.rstrip().endswith(("the", " a", " an")):
        return None  # more often the infinitive of a verb
    kept = spaced[: preposition.start()]
    if kind == "name" and _PLACE.search(spaced) and word in ("in", "at", "near", "to"):
        place = not _NO_PLACE.search(answer) and not answer.isupper() and not _PERSON_CUE.search(before)
        return ("Where", kept, after) if place and word != "to" else None
    if word in ("and", "or", "than", "like", "as", "of", "between", "per"):
        return None
    alone = word == "by" and not _NO_PERSON.search(answer) and not answer.isupper()
    asked = "whom" if kind == "name" and (alone or _person(answer, before)) else "what"
    if word not in _ASKED_WITH or (
        word == "by" and not re.search(r"(?:ed|en|wn|lt|de|un|ght|ld)\b", f"{verb} {before}")
    ):
        return None
    if len(kept.split()) > 8 or "," in kept or (not kept.strip() and verb in ("is", "are", "was", "were")):
        return None
    return f"{word.capitalize()} {asked}", kept, after


def _ask_time(before: str, after: str, answer: str) -> tuple[str, str, str] | None:
    m = _TIME.search(before)
    assert m is not None  # every part is optional
    word = m[1]
    if after and not re.match(r"(?:" + _NEXT + r")\b|,", after):
        return None
    if (
        word is None
        or word == "of"
        or re.search(r"\b(?:from|between|to|and)\s+$", before)
        or re.match(r"(?:to|and|until|season)\b", after)
    ):
        return None
    kept = before[: m.start()]
    if word in ("since", "until", "by"):
        return f"{word.capitalize()} when", kept, after
    if "century" in answer:
        return "In which century", kept, after
    if re.fullmatch(r"\d{4}", answer):
        return "In what year", kept, after
    return ("In which decade" if answer.endswith("0s") else "When"), kept, after


def _ask_number(before: str, after: str, answer: str, verb: str) -> tuple[str, str, str] | None:
    approximate = re.compile(r"\b(?:about|approximately|around|over|nearly|almost|some|up to|only|roughly)\s+$")
    kept = approximate.sub("", before)
    if _PREPOSITION.search(kept):
        return None
    if (m := _MEASURE.match(after)) and verb in ("is", "was", "are", "were") and not kept.strip():
        return f"How {m[1]}", kept, after[m.end() :]
    if re.search(r"%|percent|per cent", answer):
        m = re.match(r"of\s+(?:the\s+)?[\w\s-]{3,40}$", after)
        return (f"What percentage {after}", kept, "") if m and not kept.strip() else None
    if re.match(r"[$€£¥]", answer):
        return ("How much", kept, after) if not kept.strip() else None
    bare = re.fullmatch(r"[\d.,]+|[a-z]+(?:-[a-z]+)?", answer, re.IGNORECASE)
    noun = re.match(r"((?:[a-z-]+\s+){0,2}?[a-z-]+s)\b(?!\s+(?:and|or)\b)", after)
    if bare and noun and not kept.strip() and not re.search(r"\b(?:of|in|and|to|is|was)\b", noun[1]):
        return f"How many {noun[1]}", kept, after[noun.end() :]
    return None


# ---------------------------------------------------------------------------- in place


def _in_place(sentence: str, answer: str, kind: str) -> str | None:
    """Chinese and Japanese: the question word where the answer stood, the sentence otherwise as it is."""
    japanese = re.search(r"[\u3040-\u30ff]", sentence) is not None
    body = sentence.strip().rstrip("。．.！!？? ")
    at = body.index(_MARK)
    begin = max(body.rfind(c, 0, at) for c in "；;") + 1
    stop = re.search(r"[；;，,、：:]", body[at:])
    body = body[begin : at + stop.start() if stop else None]
    if not 8 <= len(body) <= 90 or body.lstrip()[:1] in "他她它其这那该此":
        return None
    if kind == "date":
        word = "いつ" if japanese else "哪一年" if re.fullmatch(r"\d{4}\s?年", answer) else "什么时候"
    elif kind == "number":
        unit = re.sub(r"^[\d.,\s]+(?:万|亿|千|百)?", "", answer)
        word = ("いくつ" if japanese else "多少") + unit
    elif kind in ("name", "quoted"):
        word = "どこ" if japanese else "哪里" if re.search(r"[省市县区镇村]$", answer) else "什么"
    else:
        word = "何" if japanese else "什么"
    if kind == "name" and not japanese and word == "什么" and len(answer) > 3:
        word = f"哪个{answer[-2:]}" if answer[-2:] in ("大学", "公司", "学院", "医院", "银行", "协会") else "什么"
    return body.replace(_MARK, word).strip() + ("ですか？" if japanese and body.endswith(_MARK) else "？")
