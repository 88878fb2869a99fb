"""A random BERT of a few thousand weights as a sentence-transformers folder, and an index that it made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rag.chunk import ChunkConfig
from rag.index import Index, sync
from rag.types import Evidence, Question

FACTS = {
    "ferry.txt": "The ferry to Korr leaves at seven from the northern pier. A return ticket costs eighteen crowns.",
    "boat.txt": "Members may borrow the blue boat for three days. The deposit for the boat is ninety crowns.",
    "kitchen.txt": "The kitchen closes late in the evening. The last warm meal is served by the night cook.",
    "library.txt": "The library lends nine books for a month. A late book costs two crowns every week.",
    "garden.txt": "The garden opens in spring. Tools are kept in the shed behind the old mill.",
    "school.txt": "The school has forty pupils. Lessons begin after the bell of the chapel rings.",
}
QUESTIONS = (
    ("q1", "When does the ferry to Korr leave ?", "seven", "ferry.txt"),
    ("q2", "What does a return ticket cost ?", "eighteen crowns", "ferry.txt"),
    ("q3", "For how long may members borrow the boat ?", "three days", "boat.txt"),
    ("q4", "Who serves the last warm meal ?", "the night cook", "kitchen.txt"),
    ("q5", "How many books does the library lend ?", "nine books", "library.txt"),
)


def words() -> list[str]:
    text = " ".join([*FACTS.values(), *(q[1] for q in QUESTIONS)]).lower()
    return sorted(set(re.findall(r"\w+|[^\w\s]", text)))


def save_encoder(folder: Path, seed: int = 0, dimension: int = 32) -> Path:
    """The folder of a tiny encoder; another seed gives other weights."""
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", *words()]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=dimension, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.5,  # so that texts differ
    )  # fmt: skip
    plain = folder.with_name(folder.name + "-plain")
    BertModel(config, add_pooling_layer=False).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    SentenceTransformer(str(plain), device="cpu").save(str(folder), create_model_card=False)
    return folder


def make_index(tmp_path: Path, encoder: Any, name: str = "index") -> Index:
    """The facts as an index of one chunk for each document."""
    corpus = tmp_path / "corpus"
    corpus.mkdir(exist_ok=True)
    for file, text in FACTS.items():
        (corpus / file).write_text(text, encoding="utf-8")
    sync(tmp_path / name, [corpus], encoder, chunk=ChunkConfig(words=30))
    return Index.open(tmp_path / name, encoder)


def questions() -> list[Question]:
    return [Question(i, text, (answer,), (Evidence(source, answer),)) for i, text, answer, source in QUESTIONS]
