"""The LM as a teacher of the retriever: its scores against a plain loop, the target by hand, the cache on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.endpoint import EndpointConfig, EndpointGenerator
from rag.errors import ConfigError, EndpointError, UsageError
from rag.generator import LocalGenerator
from rag.marginal_prompt import lead, plain_passage, single
from tests.conformance import starter_generator, stub_endpoint, tiny_model
from tests.fakes import FakeGenerator
from tests.tuning.tiny import WORDS, tiny_tokenizer
from tuning import preference
from tuning.preference import lm_preference, lsr_target, measure

QUESTIONS = ["when was the bridge opened ?", "who is mayor ?"]
ANSWERS = ["in 1911", ["tessa vane", "vane"]]
PASSAGES = [["opened in 1911", "a b c", "the bridge is long"], ["mayor tessa vane", "k l m n"]]


@pytest.fixture(scope="module")
def generator() -> LocalGenerator:
    model = tiny_model(len(WORDS), seed=3, eos_token_id=3, max_position_embeddings=1024)
    return LocalGenerator(model, tiny_tokenizer(), name="tiny", fingerprint="tiny")


def naive(generator: LocalGenerator, question: str, answer: str, passage: str, template: Any) -> tuple[float, float]:
    """One plain forward over one passage: Σ log p and its mean over the answer's tokens and the end of the turn."""
    import torch

    messages = single(question, plain_passage(passage), generator, template=template)
    prompt = generator.prompt_ids(messages)
    said = generator.completion_ids(lead(messages) + answer)
    with torch.inference_mode():
        logits = generator.model(torch.tensor([[*prompt, *said]])).logits[0].float()
    values = torch.log_softmax(logits, dim=-1)[range(len(prompt) - 1, len(prompt) + len(said) - 1), said]
    return float(values.sum()), float(values.mean())


@pytest.mark.parametrize("template", ["short", "background"])
def test_the_scorer_equals_a_plain_loop_over_the_passages(template: Any, generator: LocalGenerator) -> None:
    found = lm_preference(generator, QUESTIONS, ["in 1911", "vane"], PASSAGES, template=template)
    assert [values.shape for values in found] == [(3, 2), (2, 2)]
    for question, answer, passages, values in zip(QUESTIONS, ["in 1911", "vane"], PASSAGES, found, strict=True):
        for passage, row in zip(passages, values, strict=True):
            assert row == pytest.approx(naive(generator, question, answer, passage, template), abs=1e-4)


@pytest.mark.slow
def test_the_scorer_equals_a_plain_loop_on_the_starter() -> None:
    starter = starter_generator()
    (found,) = lm_preference(starter, QUESTIONS[:1], ["1911"], [["It was opened in 1911.", "The sea is calm."]])
    for passage, row in zip(["It was opened in 1911.", "The sea is calm."], found, strict=True):
        assert row == pytest.approx(naive(starter, QUESTIONS[0], "1911", passage, "examples"), abs=1e-3)
    assert found[0, 0] > found[1, 0]  # the passage that holds the answer


def test_of_several_answers_the_best_one_counts(generator: LocalGenerator) -> None:
    (values,) = lm_preference(
        generator, QUESTIONS[1:], ANSWERS[1:], PASSAGES[1:], template="short", score="probability"
    )
    for passage, row in zip(PASSAGES[1], values, strict=True):
        each = [naive(generator, QUESTIONS[1], answer, passage, "short") for answer in ANSWERS[1]]
        assert row == pytest.approx(max(each), abs=1e-4)


def test_a_text_continued_has_no_end(generator: LocalGenerator) -> None:
    (with_end,) = lm_preference(generator, ["a b"], ["c d"], [["e f"]], template="short")
    (open_end,) = lm_preference(generator, ["a b"], ["c d"], [["e f"]], template="continue")
    prompt = single("a b", plain_passage("e f"), generator, template="continue")
    (tokens,) = generator.score([prompt], ["c d"])
    assert open_end[0] == pytest.approx([tokens[:2].sum(), tokens[:2].mean()], abs=1e-4)
    assert with_end[0, 0] == pytest.approx(3 * with_end[0, 1], abs=1e-4)


# -------------------------------------------------------------------------------------------------------------- target


def test_the_target_by_hand() -> None:
    """p_LM = (.6, .1), τ = .1: (.9933, .0067); KL(target ‖ p_R) = .1001 and KL(p_R ‖ target) = .2374."""
    values = np.stack([np.log([0.6, 0.1]), np.log([0.6, 0.1]) / 2], axis=1)
    target = lsr_target(values, score="probability", temperature=0.1)
    assert target == pytest.approx([0.9933, 0.0067], abs=1e-4)
    retrieved = np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum()
    assert (target * np.log(target / retrieved)).sum() == pytest.approx(0.1001, abs=1e-4)
    assert (retrieved * np.log(retrieved / target)).sum() == pytest.approx(0.2374, abs=1e-4)
    assert measure(values, "mean-probability") == pytest.approx(np.sqrt([0.6, 0.1]))
    assert lsr_target(values, score="mean-logprob", temperature=0.5) == pytest.approx([0.6 / 0.7, 0.1 / 0.7])


def test_underflow_and_ties_give_a_uniform_target_and_means_do_not() -> None:
    values = np.array([[-4000.0, -2.0], [-9000.0, -4.5]])
    assert lsr_target(values, score="probability", temperature=0.01) == pytest.approx([0.5, 0.5])
    assert lsr_target(values, score="mean-probability", temperature=0.1)[0] > 0.7
    assert lsr_target(values, score="mean-logprob", temperature=1.0)[0] > 0.9
    tied = np.zeros((4, 2))
    assert lsr_target(tied, score="probability", temperature=0.1) == pytest.approx([0.25] * 4)
    assert lsr_target(np.zeros((0, 2)), score="probability", temperature=0.1).shape == (0,)


# --------------------------------------------------------------------------------------------------------------- cache


class Counting(FakeGenerator):
    """How many rows were scored."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.scored = 0

    def score(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[np.ndarray]:
        self.scored += len(prompts)
        return super().score(prompts, completions)


def run(generator: Any, cache: Path, **changes: Any) -> list[np.ndarray]:
    given: dict[str, Any] = {"questions": QUESTIONS, "answers": ANSWERS, "passages": PASSAGES, "cache": cache}
    return lm_preference(generator, **given | changes)


def test_a_second_run_costs_no_model(tmp_path: Path) -> None:
    cache = tmp_path / "scores" / "lm.jsonl"
    first, second = Counting(), Counting()
    a, b = run(first, cache), run(second, cache)
    assert first.scored == 3 + 2 * 2 and second.scored == 0
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_differs_is_scored_anew(tmp_path: Path) -> None:
    cache = tmp_path / "lm.jsonl"
    run(Counting(), cache)
    for changes in ({"answers": ["in 1912", "vane"]}, {"template": "background"}, {"questions": ["when ?", "who ?"]}):
        again = Counting()
        run(again, cache, **changes)
        assert again.scored >= 3
    other = Counting(name="another")
    run(other, cache)
    assert other.scored == 7


def test_a_killed_run_goes_on_behind_its_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "lm.jsonl"
    monkeypatch.setattr(preference, "BLOCK", 2)

    class Dying(Counting):
        def score(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[np.ndarray]:
            if self.scored >= 4:
                raise KeyboardInterrupt
            return super().score(prompts, completions)

    with pytest.raises(KeyboardInterrupt):
        run(Dying(), cache)
    cache.write_bytes(cache.read_bytes() + b'["torn", -1.')
    rest = Counting()
    done = run(rest, cache)
    assert rest.scored == 3
    for x, y in zip(done, run(Counting(), tmp_path / "fresh.jsonl"), strict=True):
        np.testing.assert_array_equal(x, y)
    assert len(cache.read_text().splitlines()) == 4 + 1 + 3


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_refused_by_name() -> None:
    fake: Any = FakeGenerator()
    with pytest.raises(ConfigError, match="score is 'nll'"):
        lm_preference(fake, QUESTIONS, ANSWERS, PASSAGES, score="nll")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="2 questions, 1 answers and 2 lists"):
        lm_preference(fake, QUESTIONS, ANSWERS[:1], PASSAGES)
    with pytest.raises(UsageError, match=r"Questions \[1\] have no answer"):
        lm_preference(fake, QUESTIONS, ["in 1911", [" "]], PASSAGES)
    with pytest.raises(ConfigError, match="temperature is 0"):
        lsr_target(np.zeros((1, 2)), score="probability", temperature=0)
    assert lm_preference(fake, ["who ?"], ["vane"], [[]])[0].shape == (0, 2)


def test_an_endpoint_without_log_probabilities_is_refused() -> None:
    with stub_endpoint() as stub:
        stub.prompt_logprobs = False
        endpoint = EndpointGenerator(f"openai:stub@{stub.url}", EndpointConfig(attempts=1))
        with pytest.raises(EndpointError, match="returns no log-probabilities"):
            lm_preference(endpoint, QUESTIONS, ANSWERS, PASSAGES)
        stub.prompt_logprobs = True
        assert lm_preference(endpoint, QUESTIONS, ANSWERS, PASSAGES)[0].shape == (3, 2)


def test_a_long_passage_is_shortened_and_the_answer_is_whole(generator: LocalGenerator) -> None:
    (values,) = lm_preference(generator, ["who ?"], ["a b c d e f"], [["bridge " * 3000]], template="short")
    assert values[0, 0] == pytest.approx(7 * values[0, 1], abs=1e-3)
