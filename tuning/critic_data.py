"""What a critic is trained and compared on: judgements of all kinds about questions whose gold is known."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rag.chunk import sentences
from rag.prompt import ABSTAIN
from rag.reflection import RELEVANT
from rag.types import Passage, Question
from tuning.critic import Asked, gold
from tuning.rows import best_answer

KEEP_RELEVANT = 0.7  # as the authors' scripts: else most of what is judged would be relevant


def instances(
    questions: Sequence[Question],
    retrievals: Sequence[Sequence[Passage]],
    *,
    closed_book: Sequence[str] | None = None,
    passages: int = 2,
    seed: int = 0,
) -> tuple[list[Asked], list[str | None]]:
    """Judgements with their gold labels: for each question, whether to retrieve; how its first passages stand to it;
    and how good three answers are: the known one, one of another question, and half of the known one."""
    asked: list[Asked] = []
    labels: list[str | None] = []
    known = [best_answer(q.answers, ()) if q.answers else ABSTAIN for q in questions]
    for n, (question, found) in enumerate(zip(questions, retrievals, strict=True)):
        rng = random.Random(f"{seed}:{question.id}")
        said = closed_book[n] if closed_book else None

        def add(each: Asked, passage: Passage | None = None, q: Question = question, said: str | None = said) -> None:
            asked.append(each)
            labels.append(gold(each, q, passage.chunk if passage else None, said))

        add(Asked("retrieve", question.question))
        wrong = known[rng.randrange(len(known))]
        answers = dict.fromkeys((known[n], wrong, _half(known[n])))
        for passage in found[:passages]:
            each = Asked("relevant", question.question, passage.chunk.text)
            if gold(each, question, passage.chunk) != RELEVANT or rng.random() < KEEP_RELEVANT:
                add(each, passage)
            for answer in answers:
                add(Asked("supported", question.question, passage.chunk.text, answer=answer), passage)
        for answer in answers:
            add(Asked("useful", question.question, answer=answer))
        spans = sentences(known[n])
        for start, end in spans[1:]:
            before, text = known[n][:start].strip(), known[n][start:end]
            add(Asked("again", question.question, found[0].chunk.text if found else "", before, text))
    return asked, labels


def _half(answer: str) -> str:
    words = answer.split()
    return " ".join(words[: max(1, len(words) // 2)])


def balanced(
    asked: Sequence[Asked], labels: Sequence[str | None], most: int, *, seed: int = 0
) -> tuple[list[Asked], list[str | None]]:
    """At most `most` judgements of each kind, as equal in their labels as they allow, in the order given."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for i, (each, label) in enumerate(zip(asked, labels, strict=True)):
        groups.setdefault((each.kind, label), []).append(i)
    for name in sorted(groups, key=str):
        random.Random(f"{seed}:{name}").shuffle(groups[name])
    kept: list[int] = []
    for kind in dict.fromkeys(each.kind for each in asked):
        mine = sorted((members for (k, _), members in groups.items() if k == kind), key=len)
        room = most
        for place, members in enumerate(mine):
            taken = members[: room // (len(mine) - place)]
            kept += taken
            room -= len(taken)
    kept.sort()
    return [asked[i] for i in kept], [labels[i] for i in kept]
