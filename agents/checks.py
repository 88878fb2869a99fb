"""Two checks around a measurement: is the test set really held out, and what did tuning make the model forget?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agents.rows import folder_hash, write_text
from rag import metrics
from rag.answer import AnswerConfig, Answerer
from rag.errors import EndpointError
from rag.evaluate import plain_text
from rag.prompt import PROMPT_VERSION
from rag.protocols import Generator, is_begun
from rag.statistics import Interval, paired_bootstrap, wilson
from rag.types import Question, content_hash

_NEAR = 95.0  # rapidfuzz ratio of two normalised questions from which they count as the same question reworded


@dataclass(frozen=True, slots=True)
class Leakage:
    """What training and test have in common: question ids of the test set, and source documents."""

    same: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each kind of overlap."""
        found = []
        if self.same:
            found.append(f"{_count(self.same, 'test question')} also in the training file: {_some(self.same)}.")
        if self.near:
            found.append(
                f"{_count(self.near, 'test question')} nearly equal to a training question: {_some(self.near)}."
            )
        if self.documents:
            documents = f"{len(self.documents)} document{'s' if len(self.documents) > 1 else ''}"
            found.append(
                f"Training and test questions share {documents} ({_some(self.documents)}): figures of the tuned arms "
                "may be too good for documents they were not trained on."
            )
        return tuple(found)


def leakage(train: Sequence[Question], test: Sequence[Question]) -> Leakage:
    """Questions of `test` that stand in `train`, word for word after normalisation or nearly so, and shared documents.

    Nearly: at most 5 % of the characters differ and an answer is the same, so that "capital of France" and "of Greece"
    stay two questions.
    """
    known = {_key(q): q for q in train}
    same = [q.id for q in test if _key(q) in known]
    near = _near([q for q in test if _key(q) not in known], train)
    documents = {e.source for q in train for e in q.evidence} & {e.source for q in test for e in q.evidence}
    return Leakage(tuple(same), tuple(near), tuple(sorted(documents)))


def _near(test: Sequence[Question], train: Sequence[Question]) -> list[str]:
    from rapidfuzz import fuzz, process

    if not test or not train:
        return []
    ratios = process.cdist([_key(q) for q in test], [_key(q) for q in train], scorer=fuzz.ratio, score_cutoff=_NEAR)
    answers = [{metrics.normalise(a) for a in q.answers} for q in train]
    found = []
    for question, row in zip(test, ratios, strict=True):
        mine = {metrics.normalise(a) for a in question.answers}
        if any(mine & answers[int(j)] or mine == answers[int(j)] for j in np.flatnonzero(row)):
            found.append(question.id)
    return found


def _key(question: Question) -> str:
    return metrics.normalise(question.question)


def _count(items: Sequence[str], what: str) -> str:
    return f"{len(items)} {what}{'s are' if len(items) > 1 else ' is'}"


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:5]) + (", …" if len(items) > 5 else "")


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The general questions before and after tuning: share answered, and mean log-probability of the right answer.

    Answered is what holds an accepted answer as whole words; the log-probability (natural log, for each token of the
    reference) does not depend on how the model phrases its answer, and is None where the endpoint returns none.
    """

    arm: str
    questions: int
    before: Interval
    after: Interval
    difference: Interval
    logprob_before: float | None
    logprob_after: float | None
    logprob_difference: Interval | None

    def warning(self) -> str | None:
        """A sentence when the drop is beyond chance."""
        if self.difference.high < 0:
            return (
                f"{self.arm} forgot: without passages it answers {self.after.mean:.0%} of {self.questions} general "
                f"questions, {self.before.mean:.0%} before tuning."
            )
        return None


@dataclass
class GeneralSuite:
    """Asks the general questions of a generator with and without adapters, each once.

    They are asked as a chat, the way in which the model was taught what it knows: as plain text to be continued an
    untouched small model answers a third of them with nothing, and then there is little to forget.
    """

    generator: Generator
    config: AnswerConfig
    seed: int = 0
    kept: Path | None = None
    """File that holds what was asked already, by a hash of all that the answers depend on."""

    def compare(self, arm: str, adapter: str) -> Forgetting:
        """The base against one adapter, both without passages."""
        (before, logs_before), (after, logs_after) = self._scores(None), self._scores(adapter)
        logs = None
        if logs_before is not None and logs_after is not None:
            logs = paired_bootstrap(logs_after, logs_before, seed=self.seed)
        return Forgetting(
            arm,
            len(GENERAL),
            wilson(float(before.sum()), len(before)),
            wilson(float(after.sum()), len(after)),
            paired_bootstrap(after, before, seed=self.seed),
            None if logs_before is None else float(logs_before.mean()),
            None if logs_after is None else float(logs_after.mean()),
            logs,
        )

    def _scores(self, adapter: str | None) -> tuple[np.ndarray, np.ndarray | None]:
        """As `_ask`, from what is kept where the inputs are the same."""
        key = content_hash(
            self.generator.fingerprint,
            "" if adapter is None else folder_hash(adapter),
            PROMPT_VERSION,
            json.dumps(asdict(self.config), sort_keys=True),
            json.dumps(GENERAL),
        )
        if key not in self._known:
            right, logs = self._ask(adapter)
            self._known[key] = [right.tolist(), None if logs is None else logs.tolist()]
            if self.kept is not None:
                write_text(self.kept, json.dumps(self._known))
        right, logs = self._known[key]
        return np.array(right), None if logs is None else np.array(logs)

    @cached_property
    def _known(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.kept.read_text(encoding="utf-8"))) if self.kept is not None else {}
        except (OSError, ValueError, TypeError):  # none, damaged or of another version: asked again
            return {}

    def _ask(self, adapter: str | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Right or wrong for each question, and log-probabilities of the references without the end of the turn."""
        asked = [question for question, _ in GENERAL]
        arm = "base" if adapter is None else "tuned"
        answerer = Answerer(
            self.generator,
            None,
            replace(self.config, style="cited"),
            adapters={} if adapter is None else {"tuned": adapter},
        )
        answers = answerer.answer_many(asked, arm=arm)
        right = [float(holds(plain_text(a), gold)) for a, (_, gold) in zip(answers, GENERAL, strict=True)]
        prompts = [answerer.render(question, (), arm=arm).messages for question in asked]
        try:
            with self.generator.adapter(adapter):
                texts = [" " * is_begun(p) + gold[0] for p, (_, gold) in zip(prompts, GENERAL, strict=True)]
                scored = self.generator.score(prompts, texts)
        except EndpointError:
            return np.array(right), None
        return np.array(right), np.array([float(np.mean(tokens[:-1])) for tokens in scored])


def holds(said: str, accepted: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in what was said, as whole words, in whatever case.

    Whole words, for "ran" stands in "France" (`rag.metrics.match` compares longer references, as letters)."""
    return any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", said, re.IGNORECASE) for one in accepted)


GENERAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What is the capital of France?", ("Paris",)),
    ("What is the capital of Japan?", ("Tokyo",)),
    ("What is the capital of Italy?", ("Rome",)),
    ("On which continent is Egypt?", ("Africa", "African")),
    ("What is the largest ocean on Earth?", ("Pacific",)),
    ("What is the longest river in South America?", ("Amazon",)),
    ("Which planet is known as the Red Planet?", ("Mars",)),
    ("Which planet is the largest in the Solar System?", ("Jupiter",)),
    ("What is the chemical symbol of gold?", ("Au",)),
    ("Which gas do plants take in from the air?", ("carbon dioxide", "CO2")),
    ("What is frozen water called?", ("ice",)),
    ("At how many degrees Celsius does water boil at sea level?", ("100", "one hundred")),
    ("How many days are there in a week?", ("seven", "7")),
    ("How many months are there in a year?", ("twelve", "12")),
    ("How many hours are there in a day?", ("24", "twenty-four")),
    ("How many legs does a spider have?", ("eight", "8")),
    ("How many sides does a triangle have?", ("three", "3")),
    ("What is two plus three?", ("five", "5")),
    ("What is the square root of 81?", ("nine", "9")),
    ("Who wrote Romeo and Juliet?", ("Shakespeare",)),
    ("Who painted the Mona Lisa?", ("Leonardo", "da Vinci")),
    ("Who developed the theory of relativity?", ("Einstein",)),
    ("Who was the first president of the United States?", ("Washington",)),
    ("In which year did the Second World War end?", ("1945",)),
    ("In which country is the Great Wall?", ("China", "Chinese")),
    ("What is the main language of Brazil?", ("Portuguese",)),
    ("What is the opposite of hot?", ("cold", "cool")),
    ("What is the plural of mouse, the animal?", ("mice",)),
    ("Which organ pumps blood through the body?", ("heart",)),
    ("What colour do you get by mixing blue and yellow?", ("green",)),
    ("What is the capital of Egypt?", ("Cairo",)),
    ("What is the capital of Turkey?", ("Ankara",)),
    ("What is the capital of Argentina?", ("Buenos Aires",)),
    ("What is the capital of Australia?", ("Canberra",)),
    ("What is the capital of Sweden?", ("Stockholm",)),
    ("What is the capital of Thailand?", ("Bangkok",)),
    ("On which continent is Germany?", ("Europe", "European")),
    ("On which continent is the Sahara Desert?", ("Africa", "African")),
    ("On which continent do penguins live in the wild?", ("Antarctica", "Antarctic")),
    ("In which country are the pyramids of Giza?", ("Egypt",)),
    ("In which country is the city of Barcelona?", ("Spain",)),
    ("In which country is the city of Toronto?", ("Canada",)),
    ("What is the main language of Argentina?", ("Spanish",)),
    ("Which country has the largest area in the world?", ("Russia",)),
    ("What is the smallest ocean on Earth?", ("Arctic",)),
    ("What is the largest desert with hot sand in Africa?", ("Sahara",)),
    ("On which river does London stand?", ("Thames",)),
    ("Which sea lies between Europe and Africa?", ("Mediterranean",)),
    ("What is the currency of Japan?", ("yen",)),
    ("What is the currency of the United Kingdom?", ("pound", "pounds", "sterling")),
    ("Which star is closest to the Earth?", ("Sun",)),
    ("What goes round the Earth once a month?", ("Moon",)),
    ("What is our galaxy called?", ("Milky Way",)),
    ("What force pulls an apple to the ground?", ("gravity", "gravitational")),
    ("What is the chemical formula of water?", ("H2O", "H₂O")),
    ("What is the chemical formula of table salt?", ("NaCl",)),
    ("Which element has the atomic number one?", ("hydrogen",)),
    ("What is the hardest natural material?", ("diamond", "diamonds")),
    ("What is steam made of?", ("water",)),
    ("Which part of a plant takes water from the soil?", ("root", "roots")),
    ("What is the green pigment of leaves called?", ("chlorophyll",)),
    ("By which process do plants make food from light?", ("photosynthesis",)),
    ("What do caterpillars turn into?", ("butterfly", "butterflies", "moth", "moths")),
    ("What is a young frog called?", ("tadpole", "tadpoles")),
    ("What is a group of wolves called?", ("pack", "packs")),
    ("Which bird is a symbol of peace?", ("dove", "doves")),
    ("What is the tallest animal on land?", ("giraffe", "giraffes")),
    ("Which animal is called the king of the jungle?", ("lion", "lions")),
    ("How many wings does a butterfly have?", ("four", "4")),
    ("How many chambers does the human heart have?", ("four", "4")),
    ("What is the largest organ of the human body?", ("skin",)),
    ("Which vitamin does sunlight give us?", ("vitamin D", "D")),
    ("What carries oxygen in the blood?", ("red blood cells", "hemoglobin", "haemoglobin")),
    ("How many centimetres are there in a metre?", ("100", "one hundred", "hundred")),
    ("How many grams are there in a kilogram?", ("1000", "1,000", "one thousand", "thousand")),
    ("How many years are there in a century?", ("100", "one hundred", "hundred")),
    ("How many are there in a dozen?", ("twelve", "12")),
    ("How many sides does a pentagon have?", ("five", "5")),
    ("How many degrees are there in a circle?", ("360",)),
    ("What is ten plus ten?", ("20", "twenty")),
    ("What is five times five?", ("25", "twenty-five", "twenty five")),
    ("What is one hundred divided by four?", ("25", "twenty-five", "twenty five")),
    ("What comes after nineteen?", ("20", "twenty")),
    ("Who wrote Macbeth?", ("Shakespeare",)),
    ("Who wrote The Adventures of Tom Sawyer?", ("Twain", "Clemens")),
    ("Who wrote A Christmas Carol?", ("Dickens",)),
    ("Who painted The Last Supper?", ("Leonardo", "da Vinci")),
    ("Who composed The Magic Flute?", ("Mozart",)),
    ("Who is said to have invented the practical light bulb?", ("Edison",)),
    ("Who was president of the United States during its civil war?", ("Lincoln",)),
    ("Which ship sank on its first voyage after it hit an iceberg?", ("Titanic",)),
    ("In which year did the American colonies declare independence?", ("1776",)),
    ("In which city is the Louvre?", ("Paris",)),
    ("In which city are the Houses of Parliament of Britain?", ("London",)),
    ("What is the opposite of day?", ("night",)),
    ("What is the opposite of left?", ("right",)),
    ("What is the plural of goose?", ("geese",)),
    ("What is the past tense of run?", ("ran",)),
    ("What colour are ripe tomatoes?", ("red",)),
    ("Which season is the coldest?", ("winter",)),
)
"""Short questions of general knowledge, with accepted answers; the first is the one whose probability is measured."""
