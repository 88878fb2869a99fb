"""How a generator is asked to write a question for an answer, and which questions can stand alone.

The answer comes first: a small model writes an acceptable question for given words, but cannot find words worth asking
for. The question word is chosen from the kind of the answer and begins the model's turn, which keeps it to the point.
"""

from __future__ import annotations

import random
import re

from rag.prompt import neutralise
from rag.protocols import Message
from tuning.spans import SpanKind, is_cjk, word_set

_SYSTEM = "Write a question about the text. The given answer must be the only right answer to it."
_BRIDGE = ("Orrin bridge", "The Orrin bridge was opened on 4 May 1911 by Mayor Tessa Vane.")
_CELL = ("Solar cells", "Bell Laboratories showed the first practical cell in 1954, after years of work on silicon.")
# (topic, text, answer, question), three for each kind: worked turns, equal for all prompts of a kind and computed once
_EXAMPLES: dict[SpanKind, tuple[tuple[str, str, str, str], ...]] = {
    "date": (
        (*_BRIDGE, "4 May 1911", "When was the Orrin bridge opened?"),
        (*_CELL, "1954", "In what year did Bell Laboratories show the first practical solar cell?"),
        (
            "Norland",
            "The party lost its majority in the 19th century, when the farmers of the north left it.",
            "19th century",
            "In which century did the party of Norland lose its majority?",
        ),
    ),
    "number": (
        (
            "Orrin bridge",
            "The bridge carries two tram lines.",
            "two",
            "How many tram lines does the Orrin bridge carry?",
        ),
        (
            "Norland",
            "About 60 percent of the people of Norland live in the capital.",
            "60 percent",
            "What percentage of the people of Norland live in the capital?",
        ),
        (
            "Saint Ives school",
            "In 1921 the school had seven teachers and 212 pupils.",
            "212",
            "How many pupils did Saint Ives school have in 1921?",
        ),
    ),
    "name": (
        (*_BRIDGE, "Tessa Vane", "Who opened the Orrin bridge?"),
        (
            "Solar cells",
            "In 1954 the first practical cell was shown in Murray Hill.",
            "Murray Hill",
            "Where was the first practical solar cell shown?",
        ),
        (
            "Norland",
            "Its largest bank, the Norland Credit Union, failed in the crisis of 1931.",
            "Norland Credit Union",
            "Which bank of Norland failed in the crisis of 1931?",
        ),
    ),
    "phrase": (
        (
            "Orrin bridge",
            "The bridge replaced a ferry that had sunk in a storm.",
            "ferry",
            "What did the Orrin bridge replace?",
        ),
        (
            "Photosynthesis",
            "Plants take up carbon dioxide through small pores in the leaf surface called stomata.",
            "small pores",
            "What do plants take up carbon dioxide through?",
        ),
        (
            "Norland",
            "The strike began because the wages of the miners had been cut by a third.",
            "wages of the miners",
            "What had been cut before the strike in Norland began?",
        ),
    ),
}
_EXAMPLES["quoted"] = _EXAMPLES["phrase"]
_CJK_SYSTEM = "根据文字写一个问题，所给的答案必须是它唯一正确的答案。"
_CJK_EXAMPLES = (
    ("锡安大桥", "锡安大桥于1911年5月4日由市长韦恩开通。", "1911年5月4日", "锡安大桥是什么时候开通的？"),
    ("锡安大桥", "大桥全长420米，载有两条电车线路。", "420米", "锡安大桥有多长？"),
    ("光合作用", "植物通过叶片表面的气孔吸收二氧化碳。", "气孔", "植物通过什么吸收二氧化碳？"),
)
PREFIX, CJK_PREFIX = "Question:", "问题："


def writing_prompt(
    topic: str, sentence: str, answer: str, kind: SpanKind, rng: random.Random
) -> tuple[list[Message], str]:
    """Messages that end in the begun turn of the assistant, and the question word that was put there."""
    cjk = is_cjk(sentence)
    messages: list[Message] = [{"role": "system", "content": _CJK_SYSTEM if cjk else _SYSTEM}]
    for t, s, a, q in _CJK_EXAMPLES if cjk else _EXAMPLES[kind]:
        messages += [
            {"role": "user", "content": _asked(t, s, a, cjk)},
            {"role": "assistant", "content": f"{CJK_PREFIX if cjk else PREFIX + ' '}{q}"},
        ]
    messages.append(
        {"role": "user", "content": _asked(neutralise(topic), neutralise(sentence), neutralise(answer), cjk)}
    )
    word = "" if cjk else question_word(sentence, answer, kind, rng)
    begun = CJK_PREFIX if cjk else f"{PREFIX} {word}".rstrip()
    messages.append({"role": "assistant", "content": begun})
    return messages, word


def _asked(topic: str, sentence: str, answer: str, cjk: bool) -> str:
    names = ("主题：", "文字：", "答案：") if cjk else ("Topic: ", "Text: ", "Answer: ")
    return "\n".join(name + value for name, value in zip(names, (topic, sentence, answer), strict=True))


def question_word(sentence: str, answer: str, kind: SpanKind, rng: random.Random) -> str:
    """How a question for this answer begins in English."""
    if kind == "date":
        if "century" in answer:
            return "In which century"
        return rng.choice(("In what year", "When")) if re.fullmatch(r"\d{4}", answer) else "When"
    if kind == "number":
        if re.search(r"%|percent|per cent", answer):
            return "What percentage"
        return "How much" if answer[0] in "$€£¥" else "How many"
    if kind == "name":
        before = sentence[: max(0, sentence.find(answer))]
        if re.search(r"\b(?:in|at|near|from|into|through|across)\s(?:the\s)?$", before):
            return "Where"
        if len(answer.split()) > 1 and re.search(
            r"(?:^|\b(?:by|with|under|Dr|Mr|Mrs|President|King|Queen|Sir)\.?\s)$", before
        ):
            return "Who"
        return rng.choice(("Who", "What", "Which"))
    return "What"


_DEICTIC = re.compile(
    r"\b(?:this|that|these|those|the (?:above|following|text|passage|article|paragraph|document|sentence|author|given)"
    r"|he|she|it|they|him|his|her|hers|its|their|them|we|our|i|you|your)\b",
    re.IGNORECASE,
)
_OWN = re.compile(r"(?<=.)\b([A-Z]\S*\b.*?)\b(?:his|her|its|their)\b")  # refers to a name in the question itself
_THAT_TIME = re.compile(
    r"\b(?:this|that|these|those)\s(?:time|year|day|period|point|way|case|area|city|one|is|was)\b", re.I
)
_RELATIVE_THAT = re.compile(r"\b\w+ that (?=\w)", re.IGNORECASE)
_ENGLISH = re.compile(
    r"(?:[A-Z][a-z]+ )?(?:what|when|where|who|whom|whose|which|why|how|What|When|Where|Who|Whom|Whose|Which|Why|How)\b"
    r".*\?$"
)
_EMPTY = word_set(
    """what when where who whom whose which why how many much in on at of the a an is was are were did do does to for
    by with from year percentage century and or has have had been be as not than type kind name called used"""
)


_CJK_WORD = re.compile(r"什么时候|哪一年|什么|哪里|哪个|多少|几|谁|いつ|どこ|いくつ|何|誰")


def content_words(text: str) -> list[str]:
    """Lower-case words that carry content, and CJK characters by pairs."""
    words = [w for w in re.findall(r"[^\W_\u3040-\u30ff\u3400-\u9fff]+", text.lower()) if w not in _EMPTY]
    runs = re.findall(r"[\u3040-\u30ff\u3400-\u9fff]+", _CJK_WORD.sub(" ", text))
    return words + [run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1))]


def stands_alone(question: str, answer: str, text: str, topic: str) -> bool:
    """Whether a question can be asked without its text at hand, and is about the text.

    It has the form of a question, names what it is about in at least two content words, points at nothing ("this",
    "the passage"), does not give its answer away, and most of its words stand in the text or the topic.
    """
    asked = content_words(question)
    if is_cjk(question):
        shaped = question.endswith(("？", "?")) and re.search(
            r"什么|哪|谁|多少|几|何|いつ|どこ|誰|いくつ|为什么|怎", question
        )
        if not shaped or not 6 <= len(question) <= 80:
            return False
    else:
        if not _ENGLISH.match(question) or not 4 <= len(question.split()) <= 30:
            return False
        if _THAT_TIME.search(question) or _DEICTIC.search(_RELATIVE_THAT.sub(" ", _OWN.sub(r"\1", question))):
            return False
    if len(asked) < 2 or answer.lower() in question.lower():
        return False
    if set(content_words(answer)) and set(content_words(answer)) <= set(asked):
        return False
    known = {_stem(w) for w in content_words(f"{text} {topic}")}
    return sum(_stem(w) in known for w in asked) >= 0.7 * len(asked)


def _stem(word: str) -> str:
    """Six letters without an ending: enough to see that "moved" and "move" are one word."""
    return re.sub(r"y$", "i", re.sub(r"(?:ing|ed|es|s|e)$", "", word))[:6]
