"""A local model on a kept cache: the same words as the naive loop, each token read once."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agents import speakers
from agents.drive import drive_many
from agents.loop import AgentConfig, Ask, Ballot, Outcome, Run, Said
from agents.react import ReactMode
from agents.speakers import CachedSpeaker, closing, repeated
from agents.tools import Corpus, Toolkit
from rag.answer import AnswerConfig, Answerer
from rag.chunk import ChunkConfig
from rag.errors import ConfigError
from rag.index import Index, sync
from rag.protocols import Decoding
from rag.retrieve import Retriever
from tests.fakes import FakeEncoder


@pytest.fixture(scope="module")
def generator() -> Iterator[Any]:
    from rag.models import load_generator

    yield load_generator("starter", dtype="fp32")


@pytest.fixture()
def retriever(corpus: Path, tmp_path: Path) -> Retriever:
    encoder = FakeEncoder()
    sync(tmp_path / "index", [corpus], encoder, chunk=ChunkConfig(words=20, max_words=30))
    return Retriever(Index.open(tmp_path / "index", encoder))


CHAT = [
    {"role": "system", "content": "Answer with a few words. Write a thought, then an action."},
    {"role": "user", "content": "Question: When does the ferry leave?"},
]


def test_what_is_said_is_what_generate_says(generator: Any) -> None:
    talker = CachedSpeaker(generator, rows=2, capacity=400)
    more = [
        *CHAT,
        {"role": "assistant", "content": "Thought: I look.\nAction: search[ferry]"},
        {"role": "user", "content": "Observation: It leaves at 07:40 from pier 4."},
    ]
    other = [*CHAT[:1], {"role": "user", "content": "Question: Who cooks at night?"}]
    for asks in ({0: CHAT, 1: other}, {0: more}, {1: more, 0: other}):
        said = talker.complete({row: Ask(chat, "Thought:", 8) for row, chat in asks.items()})
        for row, chat in asks.items():
            prompt = [*chat, {"role": "assistant", "content": "Thought:"}]
            assert said[row].text == generator.generate([prompt], Decoding(8))[0].text.strip()


def test_only_what_is_new_is_read(generator: Any) -> None:
    talker = CachedSpeaker(generator, rows=1, capacity=400)
    first = talker.complete({0: Ask(CHAT, "Thought:", 6)})[0]
    chat = [
        *CHAT,
        {"role": "assistant", "content": f"Thought: {first.text}"},
        {"role": "user", "content": "Observation: It leaves at 07:40."},
    ]
    second = talker.complete({0: Ask(chat, "Thought:", 6)})[0]
    whole = len(generator.prompt_ids([*chat, {"role": "assistant", "content": "Thought:"}]))
    assert first.tokens_in == len(generator.prompt_ids([*CHAT, {"role": "assistant", "content": "Thought:"}]))
    assert second.tokens_in < 40 < whole
    new = talker.complete({0: Ask([CHAT[0], {"role": "user", "content": "Question: Why?"}], "Thought:", 6)})[0]
    assert new.tokens_in < 30  # the instruction is shared with the question before


def test_options_and_brackets_hold_the_model_to_the_grammar(generator: Any) -> None:
    talker = CachedSpeaker(generator, rows=2, capacity=400)
    options = (" search[", " seal[", " finish[")
    said = talker.complete({0: Ask(CHAT, "Thought: x\nAction:", 8, options=options)})[0]
    assert said.text in options
    said = talker.complete({1: Ask(CHAT, "Thought: x\nAction: search[", 12, ("\n",), bracket=True)})[1]
    assert "\n" not in said.text and said.text.count("]") <= said.text.count("[")
    with pytest.raises(ConfigError, match="context_tokens"):
        talker.complete({0: Ask([{"role": "user", "content": "word " * 600}], "", 5)})


def test_closing() -> None:
    assert closing("a]") == 1 and closing("a[b]c] d") == 5 and closing("a[b]") is None


def test_the_untouched_model_can_only_act_legally(generator: Any, retriever: Retriever) -> None:
    mode = ReactMode(AgentConfig(steps=3, thought_tokens=12, argument_tokens=12))
    answerer = Answerer(generator, retriever, AnswerConfig(), modes={"agent": mode})
    questions = ["When does the ferry to Korr leave?", "Who is the night cook?", "What does the boat cost?"]
    answers = answerer.answer_many(questions, arm="agent")
    for answer in answers:
        steps = answer.details["trace"]["steps"]
        assert steps and all(s["tool"] for s in steps)
        assert all(s["problem"] in ("", "empty argument") for s in steps)
        assert answer.details["agent"]["bad_calls"] == 0
    alone = answerer.answer(questions[1], arm="agent")
    assert alone.details["trace"]["messages"] == answers[1].details["trace"]["messages"]


def test_samples_follow_their_seed(generator: Any, retriever: Retriever) -> None:
    def words(seed: int) -> list[str]:
        talker = CachedSpeaker(generator, rows=1, capacity=700)
        config = AgentConfig(steps=1, temperature=1.0, seed=seed, thought_tokens=10, argument_tokens=6)
        run = Run("When does the ferry leave?", Toolkit(Corpus(retriever)), config, talker.traits)
        [outcome] = drive_many([run], talker, lambda _: Ballot("", 0.0))
        return [move.said for move in outcome.moves]

    assert words(1) == words(1) != words(2)


def test_runs_write_together_and_what_needs_no_writing_goes_first() -> None:
    asked: list[tuple[list[int], bool]] = []

    class Talker:
        rows = 2

        def complete(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
            asked.append((sorted(asks), any(a.options for a in asks.values())))
            return {row: Said(ask.begun) for row, ask in asks.items()}

    class Scripted:
        """Asks in turn: "w" is to be written, "c" chosen."""

        def __init__(self, asks: str) -> None:
            self.asks = asks

        def go(self) -> Generator[Ask, Said, Outcome]:
            said = ""
            for n, kind in enumerate(self.asks):
                reply = yield Ask([], f"{kind}{n}", 8, options=("a", "b") if kind == "c" else ())
                said += reply.text
            return Outcome(said)

    runs: list[Any] = [Scripted("wcw"), Scripted("www"), Scripted("cw")]
    outcomes = drive_many(runs, Talker(), lambda _: Ballot("", 0.0))  # type: ignore[arg-type]
    assert [o.answer for o in outcomes] == ["w0c1w2", "w0w1w2", "c0w1"]
    assert asked == [
        ([0, 1], False),
        ([0], True),
        ([0, 1], False),  # the first run ends, the third takes its row
        ([0], True),
        ([0, 1], False),
    ]


def test_a_draft_is_what_followed_the_last_time() -> None:
    assert repeated([1, 2, 3, 4, 5, 1, 2, 3], 2) == [4, 5]
    assert repeated([1, 2, 3, 9, 2, 3, 4, 1, 2, 3], 4) == [9, 2, 3, 4], "three tokens that match go before two"
    assert repeated([7, 2, 3, 4, 1, 2, 3], 9) == [4, 1, 2, 3]
    assert repeated([1, 2, 3], 5) == [] and repeated([], 5) == [] and repeated([1, 2, 1, 2], 0) == []


def test_drafts_change_no_word_and_save_passes(generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [
        *CHAT,
        {"role": "assistant", "content": "Thought: I look for the ferry.\nAction: search[When does the ferry leave?]"},
        {"role": "user", "content": "Observation: one, two, three, four, five, six, one, two, three, four,"},
    ]
    asks = {0: Ask(chat, "Thought: one, two,", 24), 1: Ask(CHAT, "Thought:", 24, ("\n",))}
    found = {}
    for rows in (0, 2):  # without drafts, and with
        monkeypatch.setattr(speakers, "DRAFTING_ROWS", rows)
        talker = CachedSpeaker(generator, rows=2, capacity=400)
        passes = 0

        def counted(run: Any) -> Any:
            def pass_(*args: Any) -> Any:
                nonlocal passes
                passes += 1
                return run(*args)

            return pass_

        for name in ("step", "check"):
            monkeypatch.setattr(talker.stepper, name, counted(getattr(talker.stepper, name)))
        said = talker.complete(asks)
        again = talker.complete({0: Ask([*chat, {"role": "assistant", "content": said[0].text}], "And:", 4)})
        found[rows] = said, again, passes, {row: ids[:60] for row, ids in talker.stepper.tokens.items()}
    assert found[0][0] == found[2][0] and found[0][1][0].text == found[2][1][0].text
    assert found[2][2] < 0.7 * found[0][2], "the repeated words came several at a time"
