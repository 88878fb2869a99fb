"""A conversation as one training row: loss on chosen turns of the assistant, nothing else."""

from __future__ import annotations

import pytest

from rag.errors import TrainingError
from tests.tuning.tiny import tiny_model, tiny_tokenizer
from tuning.rows import Row, data_hash, read_rows, write_rows
from tuning.train import encode_rows
from tuning.trainer import Encoded, answer_loss

PROMPT = (
    {"role": "system", "content": "answer the question"},
    {"role": "user", "content": "when was it ?"},
    {"role": "assistant", "content": "a b"},
    {"role": "user", "content": "c d e"},
)
ROW = Row("t1", "trace", PROMPT, "f g", also=(2,))


def test_loss_stands_on_the_assistants_turns_and_their_ends_alone() -> None:
    tokenizer = tiny_tokenizer()
    [encoded], dropped = encode_rows([ROW], tokenizer, max_seq_length=200)
    words = tokenizer.convert_ids_to_tokens(list(encoded.ids))
    assert dropped == 0
    assert " ".join(words) == (
        "<|im_start|> system answer the question <|im_end|> <|im_start|> user when was it ? <|im_end|> "
        "<|im_start|> assistant a b <|im_end|> <|im_start|> user c d e <|im_end|> <|im_start|> assistant f g <|im_end|>"
    )
    assert [words[p] for p in encoded.targets()] == ["a", "b", "<|im_end|>", "f", "g", "<|im_end|>"]
    assert encoded.answer == 6


def test_loss_of_chosen_places_equals_the_log_probabilities_by_hand() -> None:
    import torch

    model = tiny_model().eval()
    row = Encoded("x", (5, 6, 7, 8, 9, 10, 11), 3, (2, 3, 6))
    other = Encoded("y", (12, 6, 7, 8), 1)
    by_hand = 0.0
    for one in (row, other):
        logits = torch.log_softmax(model(input_ids=torch.tensor([one.ids])).logits[0].float(), dim=-1)
        by_hand -= sum(float(logits[p - 1, one.ids[p]].detach()) for p in one.targets())
    with torch.no_grad():
        assert float(answer_loss(model, [row, other])) == pytest.approx(by_hand, rel=1e-4)


def test_rows_with_turns_survive_the_file_and_change_the_hash(tmp_path) -> None:  # type: ignore[no-untyped-def]
    plain = Row("t1", "trace", PROMPT, "f g")
    write_rows(tmp_path / "rows.jsonl", [ROW, plain])
    assert read_rows(tmp_path / "rows.jsonl") == [ROW, plain]
    assert "also" not in (tmp_path / "rows.jsonl").read_text().splitlines()[1]
    assert data_hash([ROW]) != data_hash([plain])


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|> {{ m['role'] }} "
        "{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }} {% endif %}<|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
    )
    with pytest.raises(TrainingError, match="earlier turns in another way"):
        encode_rows([ROW], tokenizer, max_seq_length=200)
