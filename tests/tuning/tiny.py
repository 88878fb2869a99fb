"""A random Llama of a few thousand weights and a word tokenizer, the same on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuning.rows import Row

TEXT = """<pad> <unk> <|im_start|> <|im_end|> system user assistant the bridge is long metres who opened it mayor when
was in of question answer not documents . ? : 420 1911 orrin vane tessa a b c d e f g h i j k l m n"""
WORDS = TEXT.split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )


def tiny_model(seed: int = 0, layers: int = 3) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=3,
        pad_token_id=0,
        bos_token_id=2,
    )
    return LlamaForCausalLM(config)


def tiny_base(seed: int = 0, layers: int = 3) -> tuple[Any, Any, str]:
    """(model, tokenizer, fingerprint), as `rag.generator.base_model` gives them."""
    return tiny_model(seed, layers), tiny_tokenizer(), f"tiny-{seed}-{layers}"


def tiny_rows(n: int = 12) -> list[Row]:
    """Rows of unequal length whose answer stands in the prompt."""
    letters = WORDS[-14:]
    rows = []
    for i in range(n):
        fact = " ".join(letters[(i + j) % 14] for j in range(3 + i % 7))
        prompt = (
            {"role": "system", "content": "answer the question"},
            {"role": "user", "content": f"the bridge is {fact} . question : when was it ?"},
        )
        rows.append(
            Row(f"q{i}", "answer", prompt, " ".join(fact.split()[: 1 + i % 3]), (1,), (f"c{i}",), (f"d{i}.txt",))
        )
    return rows


def save_base(folder: Path) -> Path:
    """The tiny model as a folder that `base_model` can load by name."""
    model, tokenizer, _ = tiny_base()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
