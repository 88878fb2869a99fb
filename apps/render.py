"""The conversation as HTML: pure functions from `views` to strings; every piece of foreign text goes through `markup`.

An exchange is drawn in two parts, because they change at different times: its answers with every piece of text, its
sources twice (when found, and when the finished answer says which words support it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps.cards import card, normalised
from apps.markup import answer_html, escape, sentence
from apps.views import USES_DOCUMENTS, ArmChoice, Exchange, ModelState, Reply
from rag.types import Citation, Passage

ARM_WORDS = {
    "base": "the model alone",
    "rag": "the model with your documents",
    "tuned": "the tuned model alone",
    "tuned+rag": "the tuned model with your documents",
}


@dataclass(frozen=True, slots=True)
class _Sources:
    """The passages that one or more replies saw; `key` is the first part of the ids of its cards."""

    key: str
    arms: tuple[str, ...]
    passages: tuple[Passage, ...]
    cut: int
    citations: tuple[Citation, ...]


def conversation(past: Sequence[Exchange]) -> str:
    """The exchanges before the current one: answers, and beside them their sources, folded."""
    return "".join(f'<section class="rt-turn">{answers(view)}{sources(view, folded=True)}</section>' for view in past)


def answers(view: Exchange) -> str:
    """The question and what each arm says to it."""
    groups = _groups(view)
    columns = "".join(
        _reply(view, reply, _group_of(groups, reply), side=len(view.replies) > 1) for reply in view.replies
    )
    many = " rt-two" if len(view.replies) > 1 else ""
    return (
        f'<div class="rt-exchange" data-turn="{escape(view.id)}">'
        f'<h3 class="rt-question">{escape(view.question)}</h3><div class="rt-replies{many}">{columns}</div></div>'
    )


def sources(view: Exchange, *, folded: bool = False) -> str:
    """The passages that were found, as cards: the cited ones marked, and the first of them open unless `folded`."""
    groups = _groups(view)
    if not groups:
        return '<aside class="rt-sources"></aside>'
    blocks = "".join(_source_group(group, alone=len(groups) == 1, is_open=not folded) for group in groups)
    if folded:
        n = sum(len(group.passages) for group in groups)
        cited = len({c.chunk_id for group in groups for c in group.citations})
        blocks = f'<details class="rt-fold"><summary>{_count(n, "source")}, {cited} cited</summary>{blocks}</details>'
    return f'<aside class="rt-sources" aria-label="Sources">{blocks}</aside>'


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def _groups(view: Exchange) -> list[_Sources]:
    """Replies that saw the same chunks share their cards."""
    found: list[_Sources] = []
    for reply in view.replies:
        if reply.arm not in USES_DOCUMENTS or not (reply.passages or reply.status in ("reading", "writing", "done")):
            continue
        cited = reply.answer.citations if reply.answer else ()
        ids = [p.chunk.id for p in reply.passages]
        for i, group in enumerate(found):
            if [p.chunk.id for p in group.passages] == ids:
                found[i] = _Sources(
                    group.key, (*group.arms, reply.arm), group.passages, group.cut, (*group.citations, *cited)
                )
                break
        else:
            key = f"src-{view.id}-{len(found)}"
            found.append(_Sources(key, (reply.arm,), reply.passages, reply.cut, cited))
    return found


def _group_of(groups: Sequence[_Sources], reply: Reply) -> _Sources | None:
    return next((group for group in groups if reply.arm in group.arms), None)


# ---------------------------------------------------------------- the answer


def _reply(view: Exchange, reply: Reply, group: _Sources | None, *, side: bool) -> str:
    name = f'<p class="rt-arm"><b>{escape(reply.arm)}</b> {escape(ARM_WORDS.get(reply.arm, ""))}</p>' if side else ""
    answer = reply.answer
    parts = [name]
    if reply.text and not (answer and answer.abstained):
        parts.append(f'<div class="rt-answer" dir="auto">{answer_html(reply.text, _linker(reply, group))}</div>')
    parts.append(_status(view, reply))
    if answer is not None:
        parts.append(_footer(reply))
    state = f'data-arm="{escape(reply.arm)}" data-status="{reply.status}" aria-busy="{str(reply.running).lower()}"'
    return f'<article class="rt-reply" {state}>{"".join(parts)}</article>'


def _linker(reply: Reply, group: _Sources | None) -> Callable[[int], str | None]:
    """Citation number → link to its card, None where this reply has no such passage.

    A number that stands several times in an answer may rest on several sentences: the n-th occurrence opens the n-th.
    """
    by_rank = {p.rank: p.chunk for p in group.passages} if group else {}
    left = {rank: [c for c in (reply.answer.citations if reply.answer else ()) if c.number == rank] for rank in by_rank}

    def link(number: int) -> str | None:
        chunk = by_rank.get(number)
        if chunk is None or group is None:
            return None
        queue = left[number]
        cited = queue.pop(0) if len(queue) > 1 else (queue[0] if queue else None)
        span = (
            f' data-start="{cited.start}" data-end="{cited.end}" data-at="{cited.start - chunk.start}"' if cited else ""
        )
        where = escape(chunk.source if chunk.page is None else f"{chunk.source}, page {chunk.page}")
        target = f"{group.key}-{number}"
        return (
            f'<a class="rt-cite" href="#{target}" data-target="{target}"{span} title="{where}" '
            f'aria-label="Source {number}: {where}">{number}</a>'
        )

    return link


def _status(view: Exchange, reply: Reply) -> str:
    """One line that says what is going on, or how it ended when that was not with an answer."""
    answer = reply.answer
    if reply.status == "failed":
        return f'<p class="rt-note rt-bad" role="alert">{sentence(reply.note)}</p>'
    if reply.status == "stopped":
        kept = "What was written so far is kept above." if reply.text else "Nothing had been written yet."
        return f'<p class="rt-note">Stopped. {kept}</p>'
    if answer is not None and answer.abstained:
        return (
            '<p class="rt-note rt-unknown"><b>Not in the documents.</b> '
            f"{'The passages found do not answer this.' if reply.passages else 'Nothing was found that answers this.'} "
            "Ask in other words, or add a document that says it.</p>"
        )
    if reply.status == "done":
        return (
            "" if reply.text.strip() else '<p class="rt-note">The model ended without a word. Ask in other words.</p>'
        )
    return f'<p class="rt-status" role="status">{escape(_doing(view, reply))}</p>'


def _doing(view: Exchange, reply: Reply) -> str:
    seconds = f" {int(reply.seconds)} s" if reply.seconds >= 2 else ""
    if reply.status == "loading":
        return (reply.note or "Loading the model…") + seconds
    if reply.status == "waiting":
        return (reply.note or "Waiting…") + seconds
    if reply.status == "searching":
        what = f" for “{reply.query}”" if reply.query and reply.query.strip() != view.question.strip() else ""
        where = f" {_count(reply.chunks, 'chunk')}" if reply.chunks else ""
        return f"Searching{where}{what}…{seconds}"
    if reply.status == "reading":
        n = len(reply.passages)
        return f"Reading {n} passage{'' if n == 1 else 's'}…{seconds}" if n else f"Thinking…{seconds}"
    return "Writing…" + seconds


def _footer(reply: Reply) -> str:
    """Who answered, with what, and what it cost."""
    answer = reply.answer
    if answer is None:
        return ""
    facts = [f'<span class="rt-fact-arm">{escape(reply.arm)}</span>']
    if answer.model:
        facts.append(f"<span>{escape(answer.model)}</span>")
    if answer.adapter:
        facts.append(f'<span title="{escape(answer.adapter)}">adapter {escape(_last(answer.adapter))}</span>')
    facts.append(f"<span>{answer.seconds:.1f} s</span>")
    facts.append(f"<span>{answer.tokens_in:,} tokens read, {answer.tokens_out:,} written</span>")
    lines = [f'<p class="rt-facts">{"".join(facts)}</p>']
    if reply.arm not in USES_DOCUMENTS:
        lines.append('<p class="rt-aside">From the model’s memory: no document was read, so nothing is cited.</p>')
    elif not answer.citations and not answer.abstained and reply.text.strip():
        lines.append('<p class="rt-aside">The answer names no source: check it against the passages.</p>')
    n = len(answer.unknown_markers)
    if n:
        were = "was" if n == 1 else "were"
        lines.append(f'<p class="rt-aside">{_count(n, "citation")} named no passage and {were} removed.</p>')
    return "".join(lines)


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


# --------------------------------------------------------------- the sources


def _source_group(group: _Sources, *, alone: bool, is_open: bool) -> str:
    title = "Sources" if alone else f"Sources of {' and '.join(group.arms)}"
    if not group.passages:
        return f'<h4>{escape(title)}</h4><p class="rt-aside">Nothing in the documents resembles this question.</p>'
    cited = {c.chunk_id for c in group.citations}
    first = next((p.chunk.id for p in group.passages if p.chunk.id in cited), None) if is_open else None
    bars = normalised([p.score for p in group.passages])
    cards = "".join(
        card(f"{group.key}-{passage.rank}", passage, bars[i], group.citations, is_open=passage.chunk.id == first)
        for i, passage in enumerate(group.passages)
    )
    left = ""
    if group.cut:
        s = "" if group.cut == 1 else "s"
        left = (
            f'<p class="rt-aside rt-cut">{group.cut} more passage{s} did not fit into the model’s context '
            f"and {'was' if group.cut == 1 else 'were'} not read.</p>"
        )
    return f"<h4>{escape(title)}</h4>{cards}{left}"


# ------------------------------------------------------- around the conversation


def header(name: str, documents: int, chunks: int, state: ModelState) -> str:
    """The top line: what is asked (the index) and what answers (the model), with its loading state."""
    model, message = escape(state.generator), sentence(state.message)
    models = f'<span class="rt-strong" title="encoder: {escape(state.encoder)}">{model}</span>' if model else ""
    held = f"<bdi>{escape(name)}</bdi> · {_count(documents, 'document')} · {_count(chunks, 'chunk')}"
    return (
        f'<header class="rt-head"><div class="rt-brand"><b>ragtune</b><span>{held}</span></div>'
        f'<div class="rt-model rt-{state.phase}" role="status"><i></i>{models}<span>{message}</span></div>'
        "</header>"
    )


def welcome(documents: int, chunks: int) -> str:
    """What the chat shows before the first question: the next step."""
    if not documents:
        return (
            '<div class="rt-welcome"><h2>No documents yet</h2><p>Add some under <b>Documents</b>, or type '
            "<code>ragtune index FOLDER --out INDEX</code>. Without documents only the model’s own memory answers.</p>"
            "</div>"
        )
    return (
        '<div class="rt-welcome"><h2>Ask your documents</h2><p>Answers are looked for in '
        f"{_count(documents, 'document')} ({_count(chunks, 'chunk')}). A number in an answer opens the sentence it "
        "rests on.</p></div>"
    )


def arm_note(chosen: ArmChoice, missing: Sequence[ArmChoice]) -> str:
    """The line under the arm picker: why this arm; opened, what it takes to have the others."""
    if not missing:
        return f'<p class="rt-aside">{sentence(chosen.reason)}</p>'
    lacks = "".join(f"<li><b>{escape(c.arm)}</b> {sentence(c.reason)}</li>" for c in missing)
    return f'<details class="rt-armnote"><summary>{sentence(chosen.reason)}</summary><ul>{lacks}</ul></details>'


def notice(text: str) -> str:
    """A sentence above the question box; "" clears it."""
    return f'<p class="rt-note rt-bad" role="alert">{sentence(text)}</p>' if text else ""
