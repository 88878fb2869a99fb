"""A whole measurement on a small corpus with fakes: frozen retrievals, resume, adapters, decision.json and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.checks import GENERAL, GeneralSuite, holds, leakage
from agents.decide import DecideConfig, load_decision, run
from agents.oracle import gold_passages
from agents.rows import finished_answers, read_rows, rows_path
from rag.answer import AnswerConfig, Answerer
from rag.chunk import ChunkConfig
from rag.errors import ConfigError, QuestionsError, UsageError
from rag.index import Index, sync
from rag.protocols import Message
from rag.retrieve import Retriever
from rag.types import Answer, Evidence, Question
from tests.fakes import FakeEncoder, FakeGenerator

FACTS = [
    ("ferry.md", "ferry", "07:40"),
    ("boats/loan.md", "boat deposit", "250 crowns"),
    ("kitchen.txt", "kitchen closing", "21:15"),
]
# Only the first of each have evidence: thirty questions about three documents prove nothing, and the rule knows it.
TEST = [
    Question(f"t{i}", f"Question {i}: what about the {topic}?", (gold,), (Evidence(source, gold),) if i < 3 else ())
    for i, (source, topic, gold) in enumerate(FACTS * 10)
]
TEST.append(Question("t-none", "Who is the king of the moon?", (), (), unanswerable=True))
TRAIN = [Question("r0", "How many books does the library lend?", ("nine",), (Evidence("library.html", "nine books"),))]
FAST = DecideConfig(resamples=300)


def reply_right(messages: Sequence[Message]) -> str:
    """The right answer, whatever the passages say."""
    asked = messages[-1]["content"].rpartition("Question:")[2].removesuffix("Answer:")
    return next((gold for _, topic, gold in FACTS if topic in asked), "Not in the documents.")


@pytest.fixture()
def index(corpus: Path, tmp_path: Path) -> Index:
    encoder = FakeEncoder()
    sync(tmp_path / "index", [corpus], encoder, chunk=ChunkConfig(words=12, max_words=20))
    return Index.open(tmp_path / "index", encoder)


@pytest.fixture()
def adapters(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for arm, name in (("tuned", "closed"), ("tuned+rag", "open")):
        made[arm] = tmp_path / "adapters" / name
        made[arm].mkdir(parents=True)
        (made[arm] / "adapter_model.safetensors").write_bytes(name.encode())
        (made[arm] / "ragtune.json").write_text('{"format": 1, "seconds": 30.0}')
    return made


@pytest.fixture()
def generator(adapters: dict[str, Path]) -> FakeGenerator:
    return FakeGenerator(
        "no idea at all", adapters={str(adapters["tuned"]): "something else", str(adapters["tuned+rag"]): reply_right}
    )


def trainer(adapters: dict[str, Path], asked: list[str]):  # type: ignore[no-untyped-def]
    def train(recipe: str) -> Path:
        asked.append(recipe)
        return adapters["tuned" if recipe == "closed-book" else "tuned+rag"]

    return train


def test_a_whole_run(index: Index, adapters: dict[str, Path], generator: FakeGenerator, tmp_path: Path) -> None:
    asked: list[str] = []
    stages: list[tuple[str, str]] = []
    decision = run(
        index, TRAIN, TEST, tmp_path / "run",
        generator=generator, train=trainer(adapters, asked), config=FAST, timed=3, index_seconds=12.0,
        kinds={"t0": "time", "t1": "money"}, progress=lambda stage, done, total, detail: stages.append((stage, detail)),
    )  # fmt: skip
    assert asked == ["closed-book", "rag"]
    assert (decision.chosen, decision.outcome) == ("tuned+rag", "better")
    assert {s for s, _ in stages} == {"retrieve", "train", "answer", "time", "general", "decide"}
    saved = load_decision(tmp_path / "run")
    data = saved.data
    assert saved.chosen == "tuned+rag" and saved.reason == decision.reason
    assert saved.adapters == {arm: (path.resolve(),) for arm, path in adapters.items()}
    assert saved.index == index.folder.resolve()
    assert [arm["arm"] for arm in data["arms"]] == ["base", "rag", "tuned", "tuned+rag", "oracle"]
    best = data["arms"][3]
    assert best["f1"]["mean"] == 1.0 and best["abstention_f1"]["mean"] == 1.0 and best["training_seconds"] == 30.0
    assert best["index_seconds"] == 12.0 and data["arms"][2]["index_seconds"] == 0.0
    assert not Path(best["adapter"]).is_absolute()
    assert len(data["pairs"]) == 6 and set(data["kinds"]) == {"time", "money"}
    assert any("Small question set: with 31 questions" in w for w in data["warnings"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert {"versions", "machine", "date", "config", "answer_config", "retrieval_config"} <= set(data)


def test_every_arm_reads_the_same_frozen_passages(
    index: Index, adapters: dict[str, Path], generator: FakeGenerator, tmp_path: Path
) -> None:
    run(index, TRAIN, TEST, tmp_path / "run", generator=generator, adapters=adapters, config=FAST, timed=0)
    rows = {arm: read_rows(rows_path(tmp_path / "run", arm)) for arm in ("base", "rag", "tuned", "tuned+rag")}
    shown = {arm: [[p["chunk"]["id"] for p in r["answer"]["passages"]] for r in rows[arm]] for arm in rows}
    assert shown["rag"] == shown["tuned+rag"] and all(shown["rag"])
    assert not any(shown["base"]) and not any(shown["tuned"])
    assert [r["id"] for r in rows["rag"]] == [q.id for q in TEST]


def test_a_finished_arm_is_not_asked_again_unless_its_inputs_changed(
    index: Index, adapters: dict[str, Path], generator: FakeGenerator, tmp_path: Path
) -> None:
    def go(**more: object) -> int:
        before = len(generator.calls)
        run(index, TRAIN, TEST, tmp_path / "run", generator=generator, adapters=adapters, config=FAST, timed=2, **more)  # type: ignore[arg-type]
        return len(generator.calls) - before

    general = 3 * len(GENERAL)
    first = go()
    assert first > 5 * len(TEST)
    assert first > general and go() == 0
    (adapters["tuned"] / "README.md").write_text("a card")
    assert go() == 0
    (tmp_path / "run" / "general.json").write_text('{"half')
    assert go() == general
    (adapters["tuned"] / "adapter_model.safetensors").write_bytes(b"other weights")
    assert len(GENERAL) + len(TEST) <= go() < first - 2 * len(GENERAL)
    assert go(answer=AnswerConfig(max_new_tokens=9)) == first
    assert go(answer=AnswerConfig(max_new_tokens=9), resume=False) == first


def test_a_stopped_run_goes_on_where_it_was(
    index: Index, adapters: dict[str, Path], generator: FakeGenerator, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "answer" and detail == "tuned":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            index,
            TRAIN,
            TEST,
            tmp_path / "run",
            generator=generator,
            adapters=adapters,
            config=FAST,
            timed=0,
            progress=stop,
        )
    assert sorted(p.name for p in (tmp_path / "run").glob("rows-*")) == ["rows-base.jsonl", "rows-rag.jsonl"]
    generator.calls.clear()
    run(index, TRAIN, TEST, tmp_path / "run", generator=generator, adapters=adapters, config=FAST, timed=0)
    assert len(generator.calls) == 3 * len(TEST) + 3 * len(GENERAL)


def test_damaged_rows_are_answered_again(tmp_path: Path) -> None:
    path = tmp_path / "rows-rag.jsonl"
    path.write_text('{"id": "t0", "inputs": "x"')
    assert finished_answers(path, "x", TEST[:1]) is None
    path.write_text('{"id": "t0", "inputs": "x", "answer": {}}\n')
    assert finished_answers(path, "x", TEST[:1]) is None


def test_without_trainer_and_adapters_the_tuned_arms_are_left_out(
    index: Index, generator: FakeGenerator, tmp_path: Path
) -> None:
    decision = run(index, [], TEST, tmp_path / "run", generator=generator, config=FAST, timed=1)
    assert [a.arm for a in decision.arms] == ["base", "rag", "oracle"]
    assert sum("was not measured" in w for w in decision.warnings) == 2
    assert decision.outcome == "not separable" and decision.interaction is None


def test_several_seeds_of_an_arm(
    index: Index, adapters: dict[str, Path], generator: FakeGenerator, tmp_path: Path
) -> None:
    both = {"tuned+rag": [adapters["tuned+rag"], adapters["tuned"]], "tuned": adapters["tuned"]}
    decision = run(index, TRAIN, TEST, tmp_path / "run", generator=generator, adapters=both, config=FAST, timed=1)
    result = next(a for a in decision.arms if a.arm == "tuned+rag")
    assert result.seeds == 2 and result.quality.mean == pytest.approx(0.5)
    assert (tmp_path / "run" / "rows-tuned+rag.2.jsonl").is_file()
    assert len(load_decision(tmp_path / "run").adapters["tuned+rag"]) == 2


def test_a_test_question_in_the_training_file_is_refused(
    index: Index, generator: FakeGenerator, tmp_path: Path
) -> None:
    train = [Question("r", "question 0 -- what about the FERRY", ("07:40",), (Evidence("ferry.md"),))]
    with pytest.raises(QuestionsError, match="also in the training file: t0"):
        run(index, train, TEST, tmp_path / "run", generator=generator)
    decision = run(index, train, TEST, tmp_path / "run", generator=generator, config=FAST, timed=0, allow_leaks=True)
    assert any("also in the training file" in w for w in decision.warnings)
    assert any("share 1 document (ferry.md)" in w for w in decision.warnings)


def test_leakage() -> None:
    train = [Question("r1", "What is the capital of France, the country?", ("Paris",)), Question("r2", "Who?", ())]
    test = [
        Question("a", "what is the capital of france the country", ("Paris",)),
        Question("b", "What is the capitol of France, the country?", ("Paris",)),
        Question("c", "What is the capital of Greece, the country?", ("Athens",)),
    ]
    found = leakage(train, test)
    assert (found.same, found.near, found.documents) == (("a",), ("b",), ())
    assert leakage([], test).warnings() == ()


def test_questions_that_cannot_be_judged_or_asked_are_refused_before_anything_slow(
    index: Index, generator: FakeGenerator, tmp_path: Path
) -> None:
    def never(recipe: str) -> Path:
        raise AssertionError("trained")

    for bad, words in (
        ([], "no test questions"),
        ([Question("x", "Q?")], 'add "answers"'),
        ([Question("x", "w" * 5000, ("a",))], "The question x cannot be asked"),
    ):
        with pytest.raises(QuestionsError, match=words):
            run(index, [], bad, tmp_path / "run", generator=generator, train=never)


def test_adapters_that_do_not_fit_are_refused(index: Index, generator: FakeGenerator, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        run(index, [], TEST, tmp_path / "run", generator=generator, adapters={"tuned": tmp_path / "gone"})
    with pytest.raises(UsageError, match="arms with adapters: tuned"):
        run(index, [], TEST, tmp_path / "run", generator=generator, adapters={"rag": tmp_path})


def test_one_question(index: Index, generator: FakeGenerator, tmp_path: Path) -> None:
    decision = run(index, [], TEST[:1], tmp_path / "run", generator=generator, config=FAST)
    assert any("with 1 questions" in w for w in decision.warnings)


def test_gold_passages_are_the_chunks_that_hold_the_quote(index: Index) -> None:
    questions = [
        Question("a", "Q?", ("18 crowns",), (Evidence("ferry.md", "costs 18 crowns"),)),
        Question("b", "Q?", ("3",), (Evidence("staff.csv"), Evidence("kitchen.txt", "words that stand nowhere"))),
        Question("c", "Q?", ("x",), (Evidence("absent.md", "x"),)),
        Question("d", "Q?", (), (), unanswerable=True),
    ]
    frozen = [Retriever(index).search("ferry", 2)] * 4
    gold = gold_passages(index, questions, frozen)
    assert "costs 18 crowns" in " ".join(p.chunk.text for p in gold[0])
    assert {p.chunk.source for p in gold[0]} == {"ferry.md"}
    assert {p.chunk.source for p in gold[1]} == {"staff.csv", "kitchen.txt"}
    assert [p.rank for p in gold[1]] == [1, 2]
    assert gold[2] == gold[3] == frozen[0]


def test_forgetting_is_measured_against_the_base(adapters: dict[str, Path]) -> None:
    def knows(messages: Sequence[Message]) -> str:
        asked = messages[-1]["content"]
        return next((gold[0] for question, gold in GENERAL if question in asked), "?")

    tuned, plus = map(str, adapters.values())
    suite = GeneralSuite(FakeGenerator(knows, adapters={tuned: "Not in the documents.", plus: knows}), AnswerConfig())
    lost, kept = suite.compare("tuned", tuned), suite.compare("tuned", plus)
    assert (lost.before.mean, lost.after.mean) == (1.0, 0.0) and lost.difference.high < 0
    assert "tuned forgot" in (lost.warning() or "") and kept.warning() is None
    assert lost.logprob_difference is not None and lost.logprob_difference.mean == 0.0  # the fake's do not depend on it


def test_reading_a_decision_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no decision"):
        load_decision(tmp_path)
    for text in ("{", '{"format": 1}', '{"format": 1, "chosen": "magic"}'):
        (tmp_path / "decision.json").write_text(text)
        with pytest.raises(ConfigError, match="damaged"):
            load_decision(tmp_path)
    (tmp_path / "decision.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ConfigError, match="upgrade"):
        load_decision(tmp_path)


def test_what_indexing_took_reaches_the_decision(index: Index, generator: FakeGenerator, tmp_path: Path) -> None:
    built = index.manifest.built
    assert built is not None and built["embedded"] == index.manifest.chunks
    assert index.manifest.index_seconds == pytest.approx(built["seconds"])
    run(index, [], TEST, tmp_path / "run", generator=generator, config=FAST, timed=0)
    arms = {arm["arm"]: arm["index_seconds"] for arm in load_decision(tmp_path / "run").data["arms"]}
    assert arms["rag"] == index.manifest.index_seconds and arms["base"] == 0.0


def test_a_small_update_does_not_change_what_the_index_costs(index: Index, corpus: Path) -> None:
    before = index.manifest
    (corpus / "extra.md").write_text("One more short note about the pier.\n")
    sync(index.folder, [corpus], FakeEncoder())
    index.refresh()
    assert index.manifest.built == before.built and index.manifest.chunks == before.chunks + 1
    assert index.manifest.index_seconds == pytest.approx(
        (before.index_seconds or 0) / before.chunks * (before.chunks + 1)
    )


class Spy:
    """A mode that notes the weights it may answer with."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def answer_many(self, answerer: Answerer, questions: Sequence[str], **options: object) -> list[Answer]:
        self.seen = dict(answerer.adapters)
        return [Answer(question=q, text="nine", arm="agent") for q in questions]

    def stream(self, answerer: Answerer, question: str, **options: object):  # type: ignore[no-untyped-def]
        raise AssertionError("nothing is timed here")


def test_an_agent_is_measured_with_the_reader_that_it_is_served_with(
    index: Index, adapters: dict[str, Path], generator: FakeGenerator, tmp_path: Path
) -> None:
    own = tmp_path / "adapters" / "agent"
    own.mkdir()
    (own / "adapter_model.safetensors").write_bytes(b"agent")
    (own / "ragtune.json").write_text('{"format": 1, "seconds": 5.0}')
    generator.adapters = {**(generator.adapters or {}), str(own): "nine"}
    spy = Spy()
    run(
        index, TRAIN, TEST, tmp_path / "run", generator=generator, adapters={**adapters, "agent": own}, more=("agent",),
        modes={"agent": spy}, config=FAST, timed=0,
    )  # fmt: skip
    assert spy.seen == {"agent": str(own), "tuned+rag": str(adapters["tuned+rag"])}
    arms = {arm["arm"]: arm for arm in load_decision(tmp_path / "run").data["arms"]}
    assert arms["agent"]["training_seconds"] == 35.0  # its own 5, and the reader's 30


@pytest.mark.parametrize(
    ("said", "accepted", "right"),
    [
        ("It is Paris.", ("Paris",), True),
        ("water boils at 100°C", ("100",), True),
        ("the KING and the Lion", ("lion",), True),
        ("a million", ("lion",), False),
        ("in France", ("ran",), False),
        ("1945", ("4", "four"), False),
        ("It weighs 1,000 grams", ("1000", "1,000"), True),
        ("", ("x",), False),
    ],
)
def test_a_general_answer_holds_whole_words(said: str, accepted: tuple[str, ...], right: bool) -> None:
    assert holds(said, accepted) is right
