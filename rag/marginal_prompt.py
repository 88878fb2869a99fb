"""Prompts that show one passage each: what marginalised answers, the LM scorer and the `ra-dit` recipe have in common.

A passage alone in its prompt always has the number 1, so that equal passages give equal prompts whatever their rank.
The "background" template is that of RA-DIT (Lin et al. 2023, arXiv 2310.01352, section 2): chunk, question, answer,
with markers in front of question and answer that training draws at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from rag.errors import ConfigError
from rag.prompt import HISTORY_TURNS, neutralise, render, strip_markers
from rag.protocols import TEXT, Generator, Message, is_begun
from rag.types import Chunk, Passage, Turn

if TYPE_CHECKING:
    from rag.answer import Answerer

Template = Literal["examples", "short", "cited", "background", "continue"]
"""examples, short, cited: the layouts of `rag.prompt`. background: RA-DIT's. continue: the "question" is the beginning
of a text and the "answer" its end, for training on the documents themselves."""

ASKING = ("Q: ", "Question: ", "")
ANSWERING = ("A:", "Answer:")
"""Markers of the background template; the answer follows its marker after one space."""


def background(
    question: str, chunk: str, *, asking: str = ASKING[1], answering: str = ANSWERING[1], history: Sequence[Turn] = ()
) -> list[Message]:
    """RA-DIT's prompt for one chunk, plain text that the answer continues. Without a chunk, no background."""
    parts = [f"Background: {neutralise(chunk)}"] if chunk else []
    turns = [f"Q: {neutralise(t.question)}\nA: {neutralise(strip_markers(t.answer))}" for t in history[-HISTORY_TURNS:]]
    parts += ["\n".join(turns)] if turns else []
    parts.append(f"{asking}{neutralise(question)}\n{answering}")
    return [{"role": TEXT, "content": "\n\n".join(parts)}]


def single(
    question: str,
    passage: Passage | None,
    generator: Generator,
    *,
    template: Template = "examples",
    history: Sequence[Turn] = (),
    room: int = 48,
) -> list[Message]:
    """The messages of one question over one passage, which is shortened until `room` tokens are left for an answer.

    Raises:
        ConfigError: an unknown template, or a question that fills the context window by itself.
    """
    if template not in get_args(Template):
        raise ConfigError(f"template is {template!r}; give one of {', '.join(get_args(Template))}.")
    text = passage.chunk.text if passage is not None else ""
    messages = _messages(question, passage, text, generator, template, history)
    if _fits(messages, generator, room):
        return messages
    low, high = 0, len(text)  # the longest beginning of the chunk that fits
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(_messages(question, passage, text[:middle], generator, template, history), generator, room):
            low = middle
        else:
            high = middle - 1
    messages = _messages(question, passage, text[:low], generator, template, history)
    if not _fits(messages, generator, room):
        raise ConfigError(
            f"The question and {room} tokens of answer do not fit into the {generator.context_window} tokens of "
            f"'{generator.name}', even without a passage. Ask a shorter question or lower max_new_tokens."
        )
    return messages


def _messages(
    question: str, passage: Passage | None, text: str, generator: Generator, template: Template, history: Sequence[Turn]
) -> list[Message]:
    if template == "background":
        return background(question, text, history=history)
    if template == "continue":
        body = "\n\n".join(neutralise(part) for part in (text, question) if part)
        return [{"role": TEXT, "content": body}]
    shown = [replace(passage, rank=1, chunk=replace(passage.chunk, text=text))] if passage is not None else []
    return render(question, shown, count_tokens=generator.count_tokens, history=history, style=template).messages


def _fits(messages: Sequence[Message], generator: Generator, room: int) -> bool:
    """Whether `room` tokens are left. No token is shorter than a byte, so most prompts need no tokenizer for this."""
    size = sum(len(m["content"].encode("utf-8", "surrogatepass")) + 16 for m in messages)
    if size + room <= generator.context_window:
        return True
    return prompt_tokens(messages, generator) + room <= generator.context_window


def prompt_tokens(messages: Sequence[Message], generator: Generator) -> int:
    """Tokens of a prompt: exact for local models, an estimate on the safe side for endpoints."""
    from rag.errors import EndpointError

    try:
        return len(generator.prompt_ids(messages))
    except EndpointError:
        return sum(generator.count_tokens(m["content"]) + 8 for m in messages)


def lead(messages: Sequence[Message]) -> str:
    """What stands between a prompt and its answer: a space behind a begun answer, nothing else."""
    return " " if is_begun(messages) else ""


def template_of(answerer: Answerer, arm: str) -> Template:
    """The layout an arm answers in: RA-DIT's where its adapter was trained with it, else the arm's own style."""
    folder = answerer.adapters.get(arm)
    if folder is not None and recipe_of(folder) == "ra-dit":
        return "background"
    return answerer.style(arm)


def recipe_of(folder: str) -> str:
    """The recipe that an adapter folder was trained by; "" where it does not say."""
    import json
    from pathlib import Path

    from rag.adapter_folder import RECORD

    path = Path(folder) / RECORD
    return str(json.loads(path.read_text(encoding="utf-8")).get("recipe", "")) if path.is_file() else ""


def plain_passage(text: str) -> Passage:
    """A text as a passage, for scorers that are given texts alone."""
    return Passage(Chunk("", "", "", 0, len(text), text), 1, 0.0)
