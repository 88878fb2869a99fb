"""self-rag against plain RAG with the same passages, and against one passage after the other.

Five passages of 200 tokens, answers of 60 tokens: end tokens are ignored on every side, so that each side writes exactly
that. The model is the starter with reflection tokens that were trained for one step, so that its words are nobody's
choice; plain RAG and the loop run on the same weights. Sides take turns on each question; retrieval is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASSAGES, PASSAGE_TOKENS, ANSWER_TOKENS = 5, 200, 60
QUESTIONS = (
    "Where do the boats moor in winter?",
    "What does a member pay for the loan of a tool?",
    "Who repairs the ferry when it breaks down?",
    "When is the night train late, and why?",
    "How many people fit into the reading room?",
    "What happens to a parcel that nobody fetches?",
    "Which gate is open on a public holiday?",
    "How long is the deposit for a bicycle kept?",
)


def passages(generator: Any, number: int) -> list[Any]:
    """Five passages of exactly 200 tokens from the sample handbook, other ones for each question."""
    from rag.types import Chunk, Passage

    folder = Path(__file__).resolve().parents[1] / "samples" / "handbook" / "documents"
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md")))
    ids = generator.tokens.ids(text)
    found = []
    for rank in range(1, PASSAGES + 1):
        begin = ((number * PASSAGES + rank) * 331) % (len(ids) - PASSAGE_TOKENS)
        piece = generator.tokenizer.decode(ids[begin : begin + PASSAGE_TOKENS])
        while len(generator.tokens.ids(piece)) > PASSAGE_TOKENS:
            piece = piece[:-1]
        found.append(Passage(Chunk(f"{number}-{rank}", "d", "d", 0, len(piece), piece), rank, 1 / rank))
    return found


def token_adapter(folder: Path) -> Path:
    """An adapter that brings the tokens, after one step of training."""
    from rag.reflection import TOKENS
    from tuning.rows import Row
    from tuning.train import TrainConfig, train

    said = "[Retrieval]<paragraph>A bridge.</paragraph>[Relevant]A bridge.[Fully supported][Utility:5]"
    row = Row("one", "answer", ({"role": "user", "content": "What is it?"},), said)
    return train([row], out=folder / "tokens", config=TrainConfig(added_tokens=TOKENS, learning_rate=1e-6)).adapter


def sides(generator: Any, adapter: Path) -> dict[str, Callable[[str, list[Any]], list[Any]]]:
    """Each takes a question and its passages and gives the answers that it made."""
    from rag.answer import AnswerConfig, Answerer
    from rag.self_rag import SelfRag
    from rag.self_rag_parts import SelfRagConfig

    config = AnswerConfig(k=PASSAGES, context_tokens=4096, max_new_tokens=ANSWER_TOKENS, style="cited")
    own = {"self-rag": str(adapter), "rag": str(adapter)}

    def answerer(k: int) -> Answerer:
        mode = SelfRag(SelfRagConfig(k=k, depth=1, delta=1e-9))
        return Answerer(generator, None, config, adapters=own, modes={"self-rag": mode})

    def one(arm: str, made: Answerer) -> Callable[[str, list[Any]], list[Any]]:
        return lambda question, found: made.answer_many([question], arm=arm, retrievals=[found])

    single = answerer(1)
    return {
        "plain RAG, the five passages in one prompt": one("rag", answerer(PASSAGES)),
        "self-rag": one("self-rag", answerer(PASSAGES)),
        "self-rag, one passage after the other": lambda question, found: [
            answer for p in found for answer in single.answer_many([question], arm="self-rag", retrievals=[[p]])
        ],
        "a prompt for each passage, one after the other": lambda question, found: [
            answer for p in found for answer in single.answer_many([question], arm="rag", retrievals=[[p]])
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    given = parser.parse_args()
    import torch

    from rag.generator import load_local_generator

    with tempfile.TemporaryDirectory() as folder:
        adapter = token_adapter(Path(folder))
        generator = load_local_generator()
        generator.attach(adapter)
        generator.tokens.ends = ()  # nobody ends early
        each = sides(generator, adapter)
        seconds: dict[str, list[float]] = {name: [] for name in each}
        written: dict[str, list[int]] = {name: [] for name in each}
        read: dict[str, list[int]] = {name: [] for name in each}
        for number in range(-1, given.questions):  # the first is a warm-up
            found = passages(generator, number + 1)
            names = list(each)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                begin = time.perf_counter()
                answers = each[name](QUESTIONS[number % len(QUESTIONS)], found)
                took = time.perf_counter() - begin
                if number < 0:
                    continue
                seconds[name].append(took)
                written[name].append(sum(a.tokens_out for a in answers))
                read[name].append(sum(a.tokens_in for a in answers))
                print(f"question {number + 1}: {name}: {took:.2f} s", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain = next(iter(medians))
    print("<!-- results -->")
    print(f"## Self-RAG: {PASSAGES} passages of {PASSAGE_TOKENS} tokens, answers of {ANSWER_TOKENS} tokens\n")
    print(f"Median of {given.questions} questions, {torch.get_num_threads()} threads, {generator.dtype}.\n")
    print(
        "| | seconds per answer | of plain RAG | of self-rag | tokens read | tokens written |\n|---|---|---|---|---|---|"
    )
    for name, value in medians.items():
        print(
            f"| {name} | {value:.2f} | {value / medians[plain]:.2f} | {value / medians['self-rag']:.2f} "
            f"| {statistics.mean(read[name]):.0f} | {statistics.mean(written[name]):.0f} |"
        )
    print("<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
