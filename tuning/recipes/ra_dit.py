"""Answers from one passage at a time (RA-DIT's LM half; Lin et al. 2023, arXiv 2310.01352, section 2).

Each question gives one row for each of its k retrieved chunks, all with the same answer, so that the model learns to
use a chunk that helps and to pass over one that does not. The markers before question and answer are drawn at random.
Unanswerable questions teach to say so. Some text of the documents, and instructions where given, are mixed in.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rag.errors import ConfigError, TrainingError
from rag.marginal_prompt import ANSWERING, ASKING, background
from rag.prompt import ABSTAIN
from rag.types import Chunk, Passage, Question
from tuning.mixture import Mixture, mix, text_rows
from tuning.rows import Kind, Row, RowsConfig, RowsReport, _Builder, _gold, _missing, _needs, best_answer
from tuning.train import TrainConfig

ROWS = RowsConfig(k=3)
TRAIN = TrainConfig(learning_rate=1e-3, num_train_epochs=3, upper_layers=0.5, tokens_per_step=2048, packing=True)
"""As the recipe `rag`, so that both have the same number of tokens: k rows of one passage against one row of k."""
NEEDS_PASSAGES = True
MIXTURE = Mixture()


def rows(
    questions: Sequence[Question],
    retrievals: Sequence[Sequence[Passage]],
    *,
    config: RowsConfig,
    count_tokens: Callable[[str], int],
    chunks: Iterable[Chunk],
    instructions: Sequence[Row] = (),
    mixture: Mixture = MIXTURE,
) -> tuple[list[Row], RowsReport]:
    """Rows in seeded order: k for each question, mixed with text of the documents and `instructions`.

    Of `config`, `k`, `insert` (a missed gold chunk takes the place of the weakest), `abstain_share`, `context_tokens`
    (longer chunks are shortened) and `seed` count. Raises TrainingError when no question gives a row.
    """
    if len(questions) != len(retrievals):
        raise ConfigError(f"{len(questions)} questions, but {len(retrievals)} retrievals: give one for each question.")
    everything = list(chunks)
    builder = _Builder(config, count_tokens, everything)
    count: Counter[str] = Counter()
    answered: list[Row] = []
    unanswerable: list[Row] = []
    for question, retrieved in zip(questions, retrievals, strict=True):
        made = _question_rows(builder, question, retrieved, count)
        (unanswerable if question.unanswerable else answered).extend(made)
    abstaining = _capped(unanswerable, len(answered), config)
    if not answered and not abstaining:
        raise TrainingError(
            f"None of the {len(questions)} questions gives a training row: they have no answers, or nothing was found "
            "for them. Check the questions file and the index."
        )
    mixed = mix(
        {"questions": [*answered, *abstaining]},
        unsupervised=text_rows(everything),
        instructions=instructions,
        mixture=mixture,
        seed=config.seed,
    )
    used = len({row.id.rpartition("#")[0] for row in (*answered, *abstaining)})
    report = RowsReport(
        len(questions), len(mixed), len(answered), len(abstaining),
        count["retrieved"], count["inserted"], count["absent"], count["unanswerable"], len(questions) - used,
    )  # fmt: skip
    return mixed, report


def _question_rows(
    builder: _Builder, question: Question, retrieved: Sequence[Passage], count: Counter[str]
) -> list[Row]:
    """One row for each chunk of a question; the target is the same in all."""
    config = builder.config
    rng = random.Random(f"{config.seed}:{question.id}")
    shown = list(retrieved[: config.k])
    if question.unanswerable:
        count["unanswerable"] += 1
        gold, target = set[int](), ABSTAIN
    elif not question.answers or not shown:
        return []
    else:
        needs = _needs(question)
        kind = "absent" if _missing(shown, needs) else "retrieved"
        if kind == "absent" and rng.random() < config.insert:
            inserted = builder.with_gold(question, retrieved, rng)
            shown, kind = (inserted, "inserted") if inserted else (shown, kind)
        count[kind] += 1
        gold = set(_gold(shown, needs))
        target = best_answer(question.answers, [shown[i].chunk.text for i in sorted(gold)])
    return [_row(question, p.chunk, j, j in gold, target, rng, builder) for j, p in enumerate(shown)]


def _row(
    question: Question, chunk: Chunk, place: int, gold: bool, target: str, rng: random.Random, builder: _Builder
) -> Row:
    text = _shortened(chunk.text, builder.config.context_tokens, builder.count_tokens)
    prompt = background(question.question, text, asking=rng.choice(ASKING), answering=rng.choice(ANSWERING))
    kind: Kind = "abstain" if question.unanswerable else "answer"
    numbers = (1,) if gold else ()
    return Row(f"{question.id}#{place}", kind, tuple(prompt), f" {target}", numbers, (chunk.id,), (chunk.source,))


def _shortened(text: str, most: int, count_tokens: Callable[[str], int]) -> str:
    """The chunk, cut behind a word where it has more than `most` tokens; the answer is never cut."""
    words = text.split(" ")
    while count_tokens(text) > most and len(words) > 1:
        words = words[: max(1, min(len(words) - 1, len(words) * most // count_tokens(text)))]
        text = " ".join(words)
    return text


def _capped(rows: Sequence[Row], answered: int, config: RowsConfig) -> list[Row]:
    """Rows that abstain, drawn with the seed, up to their share of all: a / (a + answered) ≤ share."""
    share = config.abstain_share
    most = int(share * answered / (1 - share)) if answered else len(rows)
    drawn = list(rows)
    random.Random(config.seed).shuffle(drawn)
    return drawn[:most]
