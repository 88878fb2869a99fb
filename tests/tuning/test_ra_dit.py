"""The recipe `ra-dit`: rows by hand, labels exactly the answer, sets mixed by shares and caps, packed equals unpacked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rag.errors import ConfigError, QuestionsError, TrainingError
from rag.prompt import ABSTAIN
from rag.types import Chunk, Evidence, Passage, Question
from tests.fakes import words
from tests.tuning.tiny import tiny_base, tiny_model, tiny_rows, tiny_tokenizer
from tuning.mixture import CONTINUED, Mixture, mix, read_instructions, text_rows
from tuning.packing import block_mask, pack_rows, packed_loss
from tuning.recipes import recipe
from tuning.recipes.ra_dit import MIXTURE, ROWS, TRAIN
from tuning.rows import Row, RowsReport
from tuning.train import TrainConfig, encode_rows, train
from tuning.trainer import Encoded, answer_loss

NOTHING = Mixture(0, 0)


def count(text: str) -> int:
    return len(words(text))


def chunk(name: str, text: str) -> Chunk:
    return Chunk(name, f"{name}.txt", f"{name}.txt", 0, len(text), text)


GOLD = chunk("gold", "The Orrin bridge was opened in 1911 by Mayor Tessa Vane.")
OTHERS = [chunk(f"other{i}", f"Ferry number {i} sank in a storm near the shore.") for i in range(9)]
QUESTION = Question("q1", "When was the bridge opened?", ("1911",), (Evidence("gold.txt", "opened in 1911"),))
NOWHERE = Question("q2", "Who painted it?", (), unanswerable=True)


def found(*chunks: Chunk) -> list[Passage]:
    return [Passage(c, i, 1.0 / i) for i, c in enumerate(chunks, 1)]


def make(
    questions: Sequence[Question], retrieved: Sequence[Sequence[Passage]], mixture: Mixture = NOTHING, **changes: Any
) -> tuple[list[Row], RowsReport]:
    config = replace(ROWS, **changes)
    chunks = [GOLD, *OTHERS]
    rows, report = recipe("ra-dit").rows(
        questions, retrieved, config=config, count_tokens=count, chunks=chunks, mixture=mixture
    )
    return sorted(rows, key=lambda r: r.id), report


def test_each_chunk_is_a_row_with_the_same_answer() -> None:
    rows, report = make([QUESTION], [found(OTHERS[0], GOLD, OTHERS[1], OTHERS[2])])
    assert [r.id for r in rows] == ["q1#0", "q1#1", "q1#2"]
    assert [r.chunks for r in rows] == [("other0",), ("gold",), ("other1",)]
    assert {r.completion for r in rows} == {" 1911"} and [r.gold for r in rows] == [(), (1,), ()]
    asked = rows[1].prompt[0]["content"]
    assert asked.startswith(f"Background: {GOLD.text}\n\n") and f"{QUESTION.question}\nA" in asked
    assert (report.answer, report.gold_retrieved, report.gold_inserted, report.skipped) == (3, 1, 0, 0)


def test_a_missed_gold_chunk_takes_the_place_of_the_weakest() -> None:
    rows, report = make([QUESTION], [found(*OTHERS)])
    assert sorted(r.chunks[0] for r in rows) == ["gold", "other0", "other1"] and report.gold_inserted == 1
    rows, report = make([QUESTION], [found(*OTHERS)], insert=0.0)
    assert [r.chunks[0] for r in rows] == ["other0", "other1", "other2"] and report.gold_absent == 1


def test_markers_are_drawn_anew_for_each_row_and_repeat_with_the_seed() -> None:
    questions = [replace(QUESTION, id=f"q{i}") for i in range(60)]
    rows, _ = make(questions, [found(GOLD, *OTHERS)] * 60)
    asked = [r.prompt[0]["content"].rpartition("\n\n")[2].split(QUESTION.question) for r in rows]
    asking, answering = Counter(before for before, _ in asked), Counter(after.strip() for _, after in asked)
    assert set(asking) == {"Q: ", "Question: ", ""} and min(asking.values()) > 30
    assert set(answering) == {"A:", "Answer:"} and min(answering.values()) > 50
    assert any(asked[3 * i] != asked[3 * i + 1] for i in range(60))
    assert make(questions, [found(GOLD, *OTHERS)] * 60)[0] == rows
    assert make(questions, [found(GOLD, *OTHERS)] * 60, seed=1)[0] != rows


def test_unanswerable_questions_teach_to_say_so_up_to_their_share() -> None:
    answerable = [replace(QUESTION, id=f"a{i}") for i in range(10)]
    open_ones = [replace(NOWHERE, id=f"u{i}") for i in range(10)]
    rows, report = make([*answerable, *open_ones], [found(GOLD, *OTHERS)] * 20, abstain_share=0.2)
    said = [r for r in rows if r.kind == "abstain"]
    assert len(said) == report.abstain == 7 and report.unanswerable == 10  # 7 of 37; 8 of 38 were too many
    assert {r.completion for r in said} == {f" {ABSTAIN}"}
    only, _ = make([NOWHERE], [found(*OTHERS)])
    assert len(only) == 3


def test_fewer_chunks_than_k_and_none() -> None:
    rows, report = make([QUESTION, replace(QUESTION, id="q9")], [found(GOLD), []])
    assert [r.id for r in rows] == ["q1#0"] and report.skipped == 1
    with pytest.raises(TrainingError, match="None of the 1 questions"):
        make([QUESTION], [[]])
    with pytest.raises(ConfigError, match="1 questions, but 0 retrievals"):
        make([QUESTION], [])


def test_long_chunks_are_shortened_and_answers_are_not() -> None:
    long = chunk("long", "the ferry sank " * 400)
    rows, _ = make([replace(QUESTION, answers=("1911 " * 50,))], [found(long)], context_tokens=100, insert=0.0)
    shown = rows[0].prompt[0]["content"].removeprefix("Background: ").rpartition("\n\n")[0]
    assert 60 < count(shown) <= 100 and count(rows[0].completion) == 50


def test_labels_are_exactly_the_answer_and_its_end() -> None:
    question = Question("q", "when was the bridge opened ?", ("1911",))
    rows, _ = make([question], [found(chunk("c", "opened in 1911"))])
    tokenizer = tiny_tokenizer()
    (encoded,), _ = encode_rows(rows, tokenizer, max_seq_length=256)
    trained = [encoded.ids[p] for p in encoded.targets()]
    assert tokenizer.convert_ids_to_tokens(trained) == ["1911", "<|im_end|>"]
    assert tuple(encoded.targets()) == tuple(range(len(encoded.ids) - 2, len(encoded.ids)))


# ------------------------------------------------------------------------------------------------------------- mixture


def numbered(name: str, n: int) -> list[Row]:
    return [Row(f"{name}{i}", "general", (), "x") for i in range(n)]


def test_shares_are_of_all_rows_and_caps_hold_for_each_set() -> None:
    tasks = {"a": numbered("a", 50), "b": numbered("b", 400)}
    settings = Mixture(unsupervised=0.2, instructions=0.1, cap=90)
    rows = mix(tasks, unsupervised=numbered("u", 500), instructions=numbered("i", 500), mixture=settings)
    assert Counter(r.id[0] for r in rows) == {"a": 50, "b": 90, "u": 40, "i": 20}
    assert len({r.id for r in rows}) == len(rows)
    assert mix(tasks, mixture=settings, seed=1) != mix(tasks, mixture=settings, seed=2)
    few = mix(tasks, unsupervised=numbered("u", 3), mixture=settings)
    assert Counter(r.id[0] for r in few)["u"] == 3


def test_the_papers_shares_are_the_default() -> None:
    assert (MIXTURE.unsupervised, MIXTURE.instructions, MIXTURE.cap) == (0.10, 0.05, 7500)
    for bad in ({"unsupervised": 1.0}, {"instructions": -0.1}, {"cap": 0}, {"unsupervised": 0.6, "instructions": 0.4}):
        with pytest.raises(ConfigError, match="|".join(bad)):
            Mixture(**bad)  # type: ignore[arg-type]


def test_text_of_the_documents_is_continued() -> None:
    text = " ".join(f"w{i}" for i in range(80))
    (row,) = text_rows([chunk("c", text), chunk("short", "a few words")])
    assert row.prompt == ({"role": "text", "content": " ".join(f"w{i}" for i in range(40))},)
    assert row.completion == " " + " ".join(f"w{i}" for i in range(40, 40 + CONTINUED))


def test_instructions_are_read_under_their_usual_names(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    lines = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"prompt": "Name a colour.", "completion": "blue"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    rows = read_instructions(path)
    assert [(r.prompt[0]["content"], r.completion) for r in rows] == [
        ("Add.\n\n1 and 2", "3"),
        ("Name a colour.", "blue"),
    ]
    for broken in ("{", '{"prompt": "x"}', "[1]"):
        path.write_text(json.dumps(lines[0]) + "\n" + broken)
        with pytest.raises(QuestionsError, match="line 2"):
            read_instructions(path)
    with pytest.raises(QuestionsError, match="cannot be read"):
        read_instructions(tmp_path / "none.jsonl")


# ------------------------------------------------------------------------------------------------------------- packing


def encoded(n: int = 7) -> list[Encoded]:
    return encode_rows(tiny_rows(n), tiny_tokenizer(), max_seq_length=256)[0]


def test_packs_hold_every_row_once_within_the_budget() -> None:
    rows = [Encoded(f"r{i}", tuple(range(n)), 1) for i, n in enumerate((5, 9, 3, 4, 12, 2))]
    packs = pack_rows(rows, 10)
    assert sorted(r.id for pack in packs for r in pack) == [r.id for r in rows]
    assert sorted(sum(len(r.ids) for r in pack) for pack in packs) == [5, 9, 9, 12]  # 3 + 2, 5 + 4, 9, 12


def test_the_mask_by_hand() -> None:
    seen = block_mask([2, 1], torch.float32, "cpu")[0, 0] == 0
    assert seen.tolist() == [[True, False, False], [True, True, False], [False, False, True]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_and_gradients_are_those_of_the_rows_one_by_one(attention: str) -> None:
    rows = encoded()
    results = []
    for way in ("packed", "alone"):
        model = tiny_model()
        model.set_attn_implementation(attention)
        packs = [rows] if way == "packed" else [[r] for r in rows]
        loss = sum((packed_loss if way == "packed" else answer_loss)(model, pack) for pack in packs)
        loss.backward()  # type: ignore[union-attr]
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (packed, packed_grads), (alone, alone_grads) = results
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    for name, gradient in alone_grads.items():
        torch.testing.assert_close(packed_grads[name], gradient, rtol=1e-4, atol=1e-5)


def test_no_row_sees_another() -> None:
    """Changing one row's tokens changes nothing in the loss of the rest of its pack."""
    model = tiny_model().eval()
    first, second, third = encoded(3)
    changed = replace(second, ids=tuple(7 for _ in second.ids))
    with torch.no_grad():
        both = packed_loss(model, [first, second, third]) - packed_loss(model, [second])
        other = packed_loss(model, [first, changed, third]) - packed_loss(model, [changed])
    torch.testing.assert_close(both, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("upper", [1.0, 0.5])
def test_a_packed_run_trains_to_the_weights_of_an_unpacked_one(tmp_path: Path, upper: float) -> None:
    from safetensors.torch import load_file

    weights = []
    for packing in (True, False):
        config = TrainConfig(
            packing=packing, upper_layers=upper, tokens_per_step=150, num_train_epochs=2, r=4, learning_rate=1e-3
        )
        out = tmp_path / f"{packing}"
        report = train(tiny_rows(), base=tiny_base(), out=out, config=config, recipe="ra-dit")
        weights.append(load_file(out / "adapter_model.safetensors"))
        assert report.steps > 3
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=1e-3, atol=2e-5)
    record = json.loads((tmp_path / "True" / "ragtune.json").read_text())
    assert record["recipe"] == "ra-dit" and record["settings"]["packing"] is True
    assert "packing" not in json.loads((tmp_path / "False" / "ragtune.json").read_text())["settings"]


def test_the_recipe_packs() -> None:
    assert TRAIN.packing
