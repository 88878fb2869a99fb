"""The two-by-two of retriever and generator, with values worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.decide import DecideConfig, run
from agents.report import render_report
from apps.deciding import show_decision
from rag.answer import AnswerConfig
from rag.index import Index, sync
from rag.protocols import Message
from rag.query_encoder import TunedQueries
from rag.retrieve import RetrievalConfig
from rag.types import Evidence, Question
from tests.fakes import FakeEncoder, FakeGenerator

DOCUMENTS = {
    "ferry.txt": "The ferry to Korr leaves at seven.",
    "library.txt": "The library lends nine books.",
    "kitchen.txt": "The kitchen closes at midnight.",
}
QUESTIONS = [
    Question("a", "When does the ferry to Korr leave?", ("seven",), (Evidence("ferry.txt", "seven"),)),
    Question("b", "How many books does the library lend?", ("nine",), (Evidence("library.txt", "nine"),)),
    Question("c", "When does the kitchen close?", ("midnight",), (Evidence("kitchen.txt", "midnight"),)),
]


class Stuck(FakeEncoder):
    """Questions of whatever kind land on the ferry."""

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return super().encode([DOCUMENTS["ferry.txt"]] * len(texts), **options)


def reads(*words: str) -> Any:
    """Says the first of these words that stands in its passages."""

    def reply(messages: Sequence[Message]) -> str:
        shown = messages[-1]["content"]
        passages = shown.rpartition("Question:")[0].rpartition("Question:")[2]
        return next((word for word in words if word in passages), "no idea")

    return reply


@pytest.fixture()
def index(tmp_path: Path) -> Index:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, content in DOCUMENTS.items():
        (corpus / name).write_text(content, encoding="utf-8")
    encoder = FakeEncoder()
    sync(tmp_path / "index", [corpus], encoder)
    return Index.open(tmp_path / "index", TunedQueries(encoder, Stuck(), "queries"))


def decided(index: Index, out: Path, **options: Any) -> dict[str, Any]:
    adapter = out.parent / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    generator = FakeGenerator(reads("seven"), adapters={str(adapter): reads("seven", "nine", "midnight")})
    run(
        index, [], QUESTIONS, out, generator=generator, adapters={"tuned+rag": adapter}, timed=0,
        retrieval=RetrievalConfig(mode="dense", k=1), answer=AnswerConfig(k=1), config=DecideConfig(resamples=200),
        **options,
    )  # fmt: skip
    data: dict[str, Any] = json.loads((out / "decision.json").read_text(encoding="utf-8"))
    return data


def test_each_half_alone_both_and_their_interaction(index: Index, tmp_path: Path) -> None:
    data = decided(index, tmp_path / "run")
    halves = data["halves"]
    assert (halves["arm"], halves["query_encoder"]) == ("tuned+rag", "queries")
    # the untouched retriever finds each right document, the stuck one only the ferry's; the untouched generator reads
    # only the ferry's, the tuned one reads all
    assert halves["cells"] == pytest.approx({"neither": 1 / 3, "retriever": 1 / 3, "generator": 1.0, "both": 1 / 3})
    gains = {name: halves[name]["mean"] for name in ("retriever", "generator", "both", "interaction")}
    assert gains == pytest.approx({"retriever": 0.0, "generator": 2 / 3, "both": 0.0, "interaction": -2 / 3}, abs=1e-9)

    page = render_report(data, {})
    assert "Which half earns the gain" in page and '<td class="n">1.000</td>' in page
    assert "tuned+rag by halves, over neither: retriever +0.000" in show_decision(data)


def test_what_is_measured_once_is_found_again(index: Index, tmp_path: Path) -> None:
    first = decided(index, tmp_path / "run")
    asked: list[str] = []
    again = decided(
        index, tmp_path / "run", progress=lambda stage, done, total, detail: asked.append(detail) if done == 0 else None
    )
    assert again["halves"] == first["halves"]
    assert not [detail for detail in asked if "halves" in detail]


def test_without_a_tuned_query_side_there_is_nothing_to_take_apart(index: Index, tmp_path: Path) -> None:
    assert isinstance(index.encoder, TunedQueries)
    index.encoder = index.encoder.documents
    data = decided(index, tmp_path / "run")
    assert data["halves"] is None and "Which half" not in render_report(data, {})
