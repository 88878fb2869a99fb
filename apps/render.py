"""The conversation as HTML: pure functions from `views` to strings; every piece of foreign text goes through `markup`.

An exchange is drawn in two parts, because they change at different times: its answers with every piece of text, its
sources twice (when found, and when the finished answer says which words support it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps import acts
from apps.acts import Votes
from apps.cards import card, normalised
from apps.markup import answer_html, escape, sentence
from apps.serving import shown_name
from apps.strings import ENGLISH, Words
from apps.views import USES_DOCUMENTS, Exchange, Reply
from rag.types import ARMS, Citation, Passage

_NO_VOTES: Votes = {}


@dataclass(frozen=True, slots=True)
class _Sources:
    """The passages that one or more replies saw; `key` is the first part of the ids of its cards."""

    key: str
    arms: tuple[str, ...]
    passages: tuple[Passage, ...]
    cut: int
    citations: tuple[Citation, ...]


def conversation(past: Sequence[Exchange], t: Words = ENGLISH, *, votes: Votes = _NO_VOTES) -> str:
    """The exchanges before the current one: answers, and beside them their sources, folded."""
    return "".join(
        f'<section class="rt-turn">{answers(view, t, votes=votes, last=False)}{sources(view, t, folded=True)}</section>'
        for view in past
    )


def answers(view: Exchange, t: Words = ENGLISH, *, votes: Votes = _NO_VOTES, last: bool = True) -> str:
    """The question and what each arm says to it."""
    groups = _groups(view)
    side = len(view.replies) > 1
    columns = "".join(
        _reply(view, reply, _group_of(groups, reply), t, side=side)
        + acts.actions(view, reply, t, last=last, vote=votes.get((view.id, reply.arm)))
        + "</article>"
        for reply in view.replies
    )
    many = " rt-two" if side else ""
    return (
        f'<div class="rt-exchange" data-turn="{escape(view.id)}">'
        f'<h3 class="rt-question" dir="auto">{escape(view.question)}</h3><div class="rt-replies{many}">{columns}'
        "</div></div>"
    )


def sources(view: Exchange, t: Words = ENGLISH, *, folded: bool = False) -> str:
    """The passages that were found, as cards: the cited ones marked, and the first of them open unless `folded`."""
    groups = _groups(view)
    if not groups:
        return '<aside class="rt-sources"></aside>'
    blocks = "".join(_source_group(group, t, alone=len(groups) == 1, is_open=not folded) for group in groups)
    if folded:
        n = sum(len(group.passages) for group in groups)
        cited = len({c.chunk_id for group in groups for c in group.citations})
        head = f"{t('sources-n', n=n)}, {t('cited-n', n=cited)}"
        blocks = f'<details class="rt-fold"><summary>{escape(head)}</summary>{blocks}</details>'
    return f'<aside class="rt-sources" aria-label="{t.html("sources")}">{blocks}</aside>'


def _groups(view: Exchange) -> list[_Sources]:
    """Replies that saw the same chunks share their cards."""
    found: list[_Sources] = []
    for reply in view.replies:
        if not uses_documents(reply.arm) or not (reply.passages or reply.status in ("reading", "writing", "done")):
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


def uses_documents(arm: str) -> bool:
    """Whether an arm reads passages: two of the four, and every arm with a way of its own."""
    return arm in USES_DOCUMENTS or arm not in ARMS


def _group_of(groups: Sequence[_Sources], reply: Reply) -> _Sources | None:
    return next((group for group in groups if reply.arm in group.arms), None)


# ---------------------------------------------------------------- the answer


def _reply(view: Exchange, reply: Reply, group: _Sources | None, t: Words, *, side: bool) -> str:
    """All of a reply but its end tag: what a person can do with it follows inside."""
    name = f'<p class="rt-arm"><b>{escape(reply.arm)}</b> {escape(t.arm(reply.arm))}</p>' if side else ""
    answer = reply.answer
    parts = [name, acts.steps(reply.steps, t, is_open=reply.running)]
    if reply.text and not (answer and answer.abstained):
        parts.append(f'<div class="rt-answer" dir="auto">{answer_html(reply.text, _linker(reply, group, t))}</div>')
    parts.append(_status(view, reply, t))
    if answer is not None:
        parts += [acts.chips(answer.details, t), acts.route(answer.details, t), _footer(reply, t)]
    state = f'data-arm="{escape(reply.arm)}" data-status="{reply.status}" aria-busy="{str(reply.running).lower()}"'
    return f'<article class="rt-reply" {state}>{"".join(parts)}'


def _linker(reply: Reply, group: _Sources | None, t: Words) -> Callable[[int], str | None]:
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
        where = escape(chunk.source if chunk.page is None else f"{chunk.source}, {t('page', n=chunk.page)}")
        target = f"{group.key}-{number}"
        return (
            f'<a class="rt-cite" href="#{target}" data-target="{target}"{span} title="{where}" '
            f'aria-label="{escape(t("source", n=number))}: {where}">{number}</a>'
        )

    return link


def _status(view: Exchange, reply: Reply, t: Words) -> str:
    """One line that says what is going on, or how it ended when that was not with an answer."""
    answer = reply.answer
    if reply.status == "failed":
        return f'<p class="rt-note rt-bad" role="alert">{sentence(t.of(reply.note))}</p>'
    if reply.status == "stopped":
        kept = t("kept" if reply.text else "nothing-written")
        return f'<p class="rt-note">{escape(t.of(reply.note) if reply.note else t("stopped"))} {escape(kept)}</p>'
    if answer is not None and answer.abstained:
        why = t("abstained-read" if reply.passages else "abstained-nothing")
        return (
            f'<p class="rt-note rt-unknown"><b>{t.html("abstained")}</b> {escape(why)} {t.html("abstained-next")}</p>'
        )
    if reply.status == "done":
        return "" if reply.text.strip() else f'<p class="rt-note">{t.html("no-word")}</p>'
    return f'<p class="rt-status" role="status">{escape(_doing(view, reply, t))}</p>'


def _doing(view: Exchange, reply: Reply, t: Words) -> str:
    seconds = f" {int(reply.seconds)} s" if reply.seconds >= 2 else ""
    if reply.status in ("loading", "waiting"):
        return (t.of(reply.note) or t(f"doing-{reply.status}")) + seconds
    if reply.status == "searching":
        what = t("doing-for", query=reply.query) if reply.query.strip() not in ("", view.question.strip()) else ""
        where = f" {t('chunks-n', n=reply.chunks)}" if reply.chunks else ""
        return t("doing-searching", where=where, what=what) + seconds
    if reply.note:
        return reply.note + seconds
    if reply.status == "reading":
        n = len(reply.passages)
        return (t("doing-reading", n=n) if n else t("doing-thinking")) + seconds
    return t("doing-writing") + seconds


def _footer(reply: Reply, t: Words) -> str:
    """Who answered, with what, and what it cost."""
    answer = reply.answer
    if answer is None:
        return ""
    arm = answer.arm or reply.arm  # a router answers with another than it was asked for
    facts = [f'<span class="rt-fact-arm">{escape(arm)}</span>']
    if answer.model:
        facts.append(f"<span>{escape(shown_name(answer.model))}</span>")
    if answer.adapter:
        named = t("adapter-named", name=last_part(answer.adapter))
        facts.append(f'<span title="{escape(answer.adapter)}">{escape(named)}</span>')
    facts.append(f"<span>{escape(t('seconds', s=f'{answer.seconds:.1f}'))}</span>")
    facts.append(f"<span>{escape(t('tokens', read=answer.tokens_in, written=answer.tokens_out))}</span>")
    lines = [f'<p class="rt-facts">{"".join(facts)}</p>']
    if not uses_documents(arm):
        lines.append(_aside(t("from-memory")))
    elif not answer.citations and not answer.abstained and reply.text.strip():
        lines.append(_aside(t("no-source-named")))
    if answer.unknown_markers:
        lines.append(_aside(t("unknown-markers", n=len(answer.unknown_markers))))
    return "".join(lines)


def _aside(text: str) -> str:
    return f'<p class="rt-aside">{escape(text)}</p>'


def last_part(path: str) -> str:
    """The name of a folder in a path of any system."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


# --------------------------------------------------------------- the sources


def _source_group(group: _Sources, t: Words, *, alone: bool, is_open: bool) -> str:
    title = t("sources") if alone else t("sources-of", arms=t("and").join(group.arms))
    if not group.passages:
        return f"<h4>{escape(title)}</h4>{_aside(t('nothing-found'))}"
    cited = {c.chunk_id for c in group.citations}
    first = next((p.chunk.id for p in group.passages if p.chunk.id in cited), None) if is_open else None
    bars = normalised([p.score for p in group.passages])
    cards = "".join(
        card(f"{group.key}-{passage.rank}", passage, bars[i], group.citations, t, is_open=passage.chunk.id == first)
        for i, passage in enumerate(group.passages)
    )
    left = f'<p class="rt-aside rt-cut">{escape(t("cut", n=group.cut))}</p>' if group.cut else ""
    return f"<h4>{escape(title)}</h4>{cards}{left}"
