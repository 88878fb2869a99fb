"""Marginalised answers: the formulas by hand, and what must not change (one passage, equal passages, one token)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.answer import AnswerConfig, Answerer
from rag.endpoint import EndpointConfig, EndpointGenerator
from rag.errors import ConfigError, EndpointError, NumericalError
from rag.generator import LocalGenerator
from rag.marginal import MODES, MarginalConfig, RaDit, RagSequence, Replug, marginal_modes
from rag.marginal_candidates import Found, _key, choose, merge
from rag.marginal_math import log_weights, logsumexp, passage_weights, rag_sequence, rag_token, responsibility
from rag.marginal_prompt import background, lead, single, template_of
from rag.marginal_search import Group, Hypothesis, search
from rag.prompt import ABSTAIN
from rag.protocols import TEXT, Decoding
from rag.types import Chunk, Finished, Passage, Retrieved, Scores, Step, Token, Turn
from tests.conformance import stub_endpoint, tiny_model
from tests.fakes import FakeGenerator
from tests.tuning.tiny import WORDS, tiny_tokenizer

ARMS = sorted(MODES)


@pytest.fixture(scope="module")
def generator() -> LocalGenerator:
    model = tiny_model(len(WORDS), seed=3, eos_token_id=3, max_position_embeddings=1024)
    return LocalGenerator(model, tiny_tokenizer(), name="tiny", fingerprint="tiny")


def passage(text: str, rank: int, dense: float | None, score: float = 0.0) -> Passage:
    chunk = Chunk(f"c{rank}", f"d{rank}", f"s{rank}.txt", 0, len(text), text)
    return Passage(chunk, rank, score, Scores(dense=dense))


TEXTS = ("the bridge is 420 metres long .", "mayor vane opened it in 1911 .", "a b c d e f g h", "k l m n is who")
FOUND = [passage(t, i, 0.6 - 0.1 * i) for i, t in enumerate(TEXTS, start=1)]
QUESTION = "who opened the bridge ?"


def answerer(generator: Any, k: int = 3, **changes: Any) -> Answerer:
    settings: dict[str, Any] = {"k": k, "style": "short", "max_new_tokens": 6}
    return Answerer(generator, config=AnswerConfig(**settings | changes))


# ------------------------------------------------------------------------------------------------------------ formulas


def test_two_passages_by_hand() -> None:
    """RA-DIT's ensemble: p_LM = (.6, .1), scores (2, 0)."""
    weights = log_weights([2.0, 0.0], 1.0)
    assert np.exp(weights) == pytest.approx([0.8808, 0.1192], abs=1e-4)
    assert np.exp(rag_sequence(weights, np.log([0.6, 0.1]))) == pytest.approx(0.5404, abs=1e-4)


def test_temperature_sharpens_cosine_scores() -> None:
    assert np.exp(log_weights([0.6, 0.5], 1.0)) == pytest.approx([0.525, 0.475], abs=1e-3)
    assert np.exp(log_weights([0.6, 0.5], 0.01)) == pytest.approx([0.99995, 0.00005], abs=1e-5)
    with pytest.raises(ConfigError, match="temperature is 0"):
        log_weights([0.5], 0)
    with pytest.raises(NumericalError, match="not finite"):
        log_weights([0.5, float("nan")], 1)


def test_sequence_and_token_by_hand() -> None:
    weights = np.log([0.5, 0.5])
    tokens = np.log([[0.8, 0.1], [0.2, 0.9]])
    assert np.exp(rag_sequence(weights, tokens.sum(axis=1))) == pytest.approx(0.5 * 0.08 + 0.5 * 0.18)
    assert np.exp(rag_token(weights, tokens)) == pytest.approx(0.5 * 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_identities_of_the_two_formulas(seed: int) -> None:
    draw = np.random.default_rng(seed)
    weights = log_weights(draw.random(4), 0.1)
    tokens = np.log(draw.random((4, 7)))
    one = tokens[:, :1]
    assert rag_token(weights, one) == pytest.approx(float(rag_sequence(weights, one.sum(axis=1))))
    assert rag_token(np.zeros(1), tokens[:1]) == pytest.approx(tokens[0].sum())
    assert float(rag_sequence(np.zeros(1), tokens[:1].sum(axis=1))) == pytest.approx(tokens[0].sum())
    same = np.repeat(tokens[:1], 4, axis=0)
    assert rag_token(weights, same) == pytest.approx(tokens[0].sum())
    assert float(rag_sequence(weights, same.sum(axis=1))) == pytest.approx(tokens[0].sum())
    assert rag_token(weights, tokens) != pytest.approx(float(rag_sequence(weights, tokens.sum(axis=1))))


def test_answers_that_underflow() -> None:
    totals = np.array([-5000.0, -5001.0, -9000.0])
    weights = np.log([0.2, 0.3, 0.5])
    assert float(rag_sequence(weights, totals)) == pytest.approx(-5000 + np.log(0.2 + 0.3 / np.e))
    assert responsibility(weights, totals) == pytest.approx([0.644, 0.356, 0], abs=1e-3)
    gone = np.full(3, -np.inf)
    assert float(rag_sequence(weights, gone)) == -np.inf
    assert responsibility(weights, gone) == pytest.approx([0.2, 0.3, 0.5])
    assert logsumexp(np.array([-np.inf, -np.inf]), axis=0) == -np.inf


def test_weights_come_from_the_cosine_where_every_passage_has_one() -> None:
    known = [passage("a", 1, 0.5, 9.0), passage("b", 2, 0.4, 1.0)]
    assert passage_weights(known, 0.1) == pytest.approx(log_weights([0.5, 0.4], 0.1))
    mixed = [passage("a", 1, None, 0.9), passage("b", 2, 0.4, 0.8)]
    assert passage_weights(mixed, 0.1) == pytest.approx(log_weights([0.9, 0.8], 0.1))
    assert passage_weights([], 0.1).tolist() == [0.0]


# ---------------------------------------------------------------------------------------------------------- candidates


def test_equal_answers_are_merged_and_the_best_weighted_one_wins() -> None:
    weights = np.log([0.5, 0.3, 0.2])
    found = [[Found("The ferry", 0, -1.0, True)], [Found(" ferry.", 1, -0.2, True)], [Found("boat", 2, -0.1, True)]]
    candidates = merge(found, weights, fast=False)
    assert [c.text for c in candidates] == ["ferry.", "boat"]  # spelled as 0.3·e^−0.2 > 0.5·e^−1 spells it
    assert candidates[0].sources == (1, 0)
    assert candidates[0].under == pytest.approx([np.nan, -0.2, np.nan], nan_ok=True)
    candidates[0].under[:] = np.log([0.4, 0.8, 0.1])
    candidates[1].under[:] = np.log([0.1, 0.1, 0.9])
    choice = choose(candidates, weights, abstain="last")
    assert (choice.text, choice.source) == ("ferry.", 1)
    assert np.exp(choice.logprobs[0] or 0) == pytest.approx(0.5 * 0.4 + 0.3 * 0.8 + 0.2 * 0.1)
    assert choice.shares == pytest.approx([0.2 / 0.46, 0.24 / 0.46, 0.02 / 0.46])


def test_fast_decoding_takes_what_is_not_in_the_beam_as_zero() -> None:
    weights = np.log([0.6, 0.4])
    found = [[Found("x", 0, np.log(0.5)), Found("the x", 0, np.log(0.2))], [Found("y", 1, np.log(0.9))]]
    candidates = merge(found, weights, fast=True)
    assert np.exp(candidates[0].under) == pytest.approx([0.7, 0])  # two spellings of one answer add up
    choice = choose(candidates, weights, abstain="last")
    assert choice.text == "x" and [np.exp(v or 0) for v in choice.logprobs] == pytest.approx([0.42, 0.36])


def test_ties_go_to_the_better_passage() -> None:
    weights = np.log([0.5, 0.5])
    found = [[Found("one", 0, -1.0)], [Found("two", 1, -1.0)]]
    assert choose(merge(found, weights, fast=True), weights, abstain="last").text == "one"


def test_one_passage_does_not_abstain_for_the_others() -> None:
    weights = np.log([0.9, 0.1])
    found = [[Found(ABSTAIN, 0, -0.01)], [Found("1911", 1, -3.0)]]
    candidates = merge(found, weights, fast=True)
    assert choose(candidates, weights, abstain="last").text == "1911"
    assert choose(candidates, weights, abstain="vote").text == ABSTAIN
    alone = merge([[Found(ABSTAIN, 0, -0.01)], [Found("I don't know", 1, -1.0)]], weights, fast=True)
    assert len(alone) == 1 and choose(alone, weights, abstain="last").text == ABSTAIN


# -------------------------------------------------------------------------------------------------------------- search


def _ids(generator: LocalGenerator, text: str) -> list[int]:
    return generator.prompt_ids(single(QUESTION, passage(text, 1, 0.5), generator, template="short"))


def _search(generator: LocalGenerator, groups: Sequence[Group], **settings: Any) -> list[list[Hypothesis]]:
    out: dict[int, list[Hypothesis]] = {}
    for index, _, found in search(generator, groups, **{"beams": 1, "limit": 6, **settings}):
        if found:
            out[index] = found
    return [out[i] for i in range(len(groups))]


def test_a_group_of_one_prompt_is_plain_greedy_generation(generator: LocalGenerator) -> None:
    prompts = [single(QUESTION, p, generator, template="short") for p in FOUND]
    plain = generator.generate(prompts, Decoding(max_new_tokens=6))
    found = _search(generator, [Group([generator.prompt_ids(p)], np.zeros(1)) for p in prompts])
    assert [own[0].text for own in found] == [g.text for g in plain]
    assert [own[0].logprob for own in found] == pytest.approx([g.logprob for g in plain], abs=1e-4)


def test_equal_prompts_change_nothing_whatever_their_weights(generator: LocalGenerator) -> None:
    ids = _ids(generator, TEXTS[0])
    for beams in (1, 3):
        (one,), (three,) = (
            _search(generator, [group], beams=beams)
            for group in (Group([ids], np.zeros(1)), Group([ids] * 3, np.log([0.7, 0.2, 0.1])))
        )
        assert [h.tokens for h in one] == [h.tokens for h in three]
        assert [h.logprob for h in one] == pytest.approx([h.logprob for h in three], abs=1e-4)
        assert three[0].by_prompt == pytest.approx([one[0].logprob] * 3, abs=1e-4)


def _next(generator: LocalGenerator, ids: Sequence[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        logits = generator.model(torch.tensor([list(ids)])).logits[0, -1]
    return np.asarray(torch.log_softmax(logits.double(), dim=-1).numpy())


def test_the_mixture_is_the_weighted_average_of_distributions_at_every_step(generator: LocalGenerator) -> None:
    prompts = [_ids(generator, t) for t in TEXTS[:3]]
    weights = np.log([0.5, 0.3, 0.2])
    said: list[int] = []
    total, under = 0.0, np.zeros(3)
    while len(said) < 5:
        each = np.stack([_next(generator, [*p, *said]) for p in prompts])
        mixed = logsumexp(each + weights[:, None], axis=0)
        token = int(mixed.argmax())
        total, under = total + mixed[token], under + each[:, token]
        if token in generator.tokens.ends:
            break
        said.append(token)
    (found,) = _search(generator, [Group(prompts, weights)], limit=5)
    assert list(found[0].tokens) == said
    assert found[0].logprob == pytest.approx(total, abs=1e-4)
    assert found[0].by_prompt == pytest.approx(under, abs=1e-4)


def test_a_wide_beam_finds_the_best_of_all_outputs(generator: LocalGenerator) -> None:
    """Outputs of at most two tokens: as many beams as there are words make the search exhaustive."""
    ids = _ids(generator, TEXTS[1])
    first = _next(generator, ids)
    best = max(
        float(first[a] + (0.0 if a in generator.tokens.ends else _next(generator, [*ids, a]).max()))
        for a in range(len(WORDS))
    )
    (found,) = _search(generator, [Group([ids], np.zeros(1))], beams=len(WORDS), limit=2)
    assert found[0].logprob == pytest.approx(best, abs=1e-4)
    assert len(found) == len(WORDS) and found == sorted(found, key=lambda h: -h.logprob)


def test_groups_wait_for_free_rows(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [Group([_ids(generator, t), _ids(generator, TEXTS[0])], np.log([0.5, 0.5])) for t in TEXTS]
    together = _search(generator, groups, beams=2)
    monkeypatch.setattr("rag.marginal_search._most_rows", lambda *_: 1)
    alone = _search(generator, groups, beams=2)
    assert [[h.tokens for h in own] for own in together] == [[h.tokens for h in own] for own in alone]
    assert _search(generator, []) == []


def test_scores_of_beams_are_those_of_the_scorer(generator: LocalGenerator) -> None:
    prompt = single(QUESTION, FOUND[0], generator, template="short")
    (found,) = _search(generator, [Group([generator.prompt_ids(prompt)], np.zeros(1))], beams=8, limit=8)
    closed = [h for h in found if h.closed and generator.completion_ids(h.text)[:-1] == list(h.tokens)]
    assert closed
    for hypothesis in closed:
        (values,) = generator.score([prompt], [hypothesis.text])
        assert hypothesis.logprob == pytest.approx(float(values.sum()), abs=1e-4)


# --------------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("arm", ARMS)
def test_one_passage_is_the_plain_model(generator: LocalGenerator, arm: str) -> None:
    found = [[p] for p in FOUND]
    plain = answerer(generator, k=1).answer_many([QUESTION] * 4, arm="rag", retrievals=found)
    greedy = answerer(generator, k=1)
    greedy.modes.update(marginal_modes(beams=1))
    said = greedy.answer_many([QUESTION] * 4, arm=arm, retrievals=found)
    assert [a.text for a in said] == [a.text for a in plain]
    assert [a.citations for a in said] == [a.citations for a in plain]


@pytest.mark.parametrize("arm", ARMS)
def test_equal_passages_change_nothing(generator: LocalGenerator, arm: str) -> None:
    one = answerer(generator, k=1).answer_many([QUESTION], arm=arm, retrievals=[FOUND[:1]])
    copies = [passage(TEXTS[0], rank, 0.5) for rank in (1, 2, 3)]
    three = answerer(generator, k=3).answer_many([QUESTION], arm=arm, retrievals=[copies])
    assert three[0].text == one[0].text
    assert three[0].details["weights"] == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_one_token_answers_make_sequence_and_token_agree(generator: LocalGenerator) -> None:
    """With the answer cut to one token, both choose the same one, and give it the same probability."""
    config = answerer(generator, max_new_tokens=1)
    config.modes.update(marginal_modes(beams=len(WORDS), decoding="fast", abstain="vote"))
    token, sequence = (
        config.answer_many([QUESTION], arm=arm, retrievals=[FOUND])[0] for arm in ("rag-token", "rag-sequence")
    )
    assert token.text == sequence.text
    best = max(c["logprob"] for c in sequence.details["candidates"] if c["logprob"] is not None)
    said = token.details["candidates"][0]["answer"]  # "." and control tokens are one candidate there: no answer
    same = [c["logprob"] for c in token.details["candidates"] if _key(c["answer"]) == _key(said)]
    assert np.logaddexp.reduce(same) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("arm", ["ra-dit", "rag-sequence"])
def test_candidates_are_scored_under_every_passage(generator: LocalGenerator, arm: str) -> None:
    """Against one call of the scorer for each pair."""
    answer = answerer(generator).answer_many([QUESTION], arm=arm, retrievals=[FOUND])[0]
    prompts = [single(QUESTION, p, generator, template="short") for p in FOUND[:3]]
    weights = log_weights([p.scores.dense for p in FOUND[:3]], 0.1)  # type: ignore[misc]
    candidates = answer.details["candidates"]
    assert len(candidates) > 1
    for candidate in candidates:
        totals = np.array([generator.score([p], [candidate["answer"]])[0].sum() for p in prompts])
        assert candidate["logprob"] == pytest.approx(float(rag_sequence(weights, totals)), abs=1e-3)
    assert answer.text.removesuffix(" [1]") in [c["answer"] for c in candidates]


def test_fast_decoding_runs_no_scorer(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr(generator, "score", refuse)
    fast = answerer(generator)
    fast.modes["rag-sequence"] = RagSequence(MarginalConfig(beams=3, decoding="fast"))
    assert fast.answer_many([QUESTION], arm="rag-sequence", retrievals=[FOUND])[0].text


@pytest.mark.parametrize("arm", ARMS)
def test_more_passages_asked_than_found_and_none_found(generator: LocalGenerator, arm: str) -> None:
    few = answerer(generator, k=9).answer_many([QUESTION] * 2, arm=arm, retrievals=[FOUND[:2], []])
    assert len(few[0].passages) == 2 and len(few[0].details["weights"]) == 2
    assert few[1].passages == () and few[1].citations == () and few[1].text


@pytest.mark.parametrize("arm", ARMS)
def test_copy_decoding_says_words_of_the_passages(generator: LocalGenerator, arm: str) -> None:
    answer = answerer(generator, decoding="copy").answer_many([QUESTION], arm=arm, retrievals=[FOUND])[0]
    text = answer.text.split(" [")[0]
    assert answer.abstained or any(text in t for t in TEXTS)


class _Index:
    chunks = (1, 2, 3)


class _Retriever:
    index = _Index()

    def search(self, query: str, k: int) -> list[Passage]:
        return FOUND[:k]

    def search_many(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [FOUND[:k] for _ in queries]


@pytest.mark.parametrize("arm", ARMS)
def test_a_stream_ends_in_the_answer_of_a_batch(generator: LocalGenerator, arm: str) -> None:
    one = answerer(generator)
    one.retriever = _Retriever()  # type: ignore[assignment]
    events = list(one.stream(QUESTION, arm=arm))
    assert isinstance(events[1], Retrieved) and isinstance(events[-1], Finished)
    steps = [e for e in events if isinstance(e, Step)]
    many = one.answer_many([QUESTION], arm=arm)[0]
    streamed = events[-1].answer
    assert (streamed.text, streamed.citations) == (many.text, many.citations)
    assert len(steps) == len(many.details["candidates"]) and steps[0].kind == "candidate"
    said = "".join(e.text for e in events if isinstance(e, Token))
    assert said.strip() == streamed.text.split(" [")[0] or streamed.abstained
    json.dumps(streamed.details)


@pytest.mark.parametrize("arm", ARMS)
def test_a_closed_stream_leaves_the_model_usable(generator: LocalGenerator, arm: str) -> None:
    one = answerer(generator)
    one.retriever = _Retriever()  # type: ignore[assignment]
    stream = one.stream(QUESTION, arm=arm)
    for _ in range(3):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert one.answer(QUESTION, arm=arm).text


def _by_passage(replies: dict[str, str]) -> Callable[[Any], str]:
    def reply(messages: Any) -> str:
        shown = messages[-1]["content"]
        return next(said for word, said in replies.items() if word in shown)

    return reply


def test_the_citation_points_at_the_passage_that_gave_the_candidate() -> None:
    """Both passages hold "1911"; the second gave it."""
    found = [passage("built before 1911 by hand", 1, 0.5), passage("opened in 1911 by vane", 2, 0.5)]
    fake = FakeGenerator(_by_passage({"built": "a long answer by hand", "opened": "1911"}))
    answer = answerer(fake, k=2).answer_many(["when ?"], arm="ra-dit", retrievals=[found])[0]
    assert answer.text == "1911 [2]"
    assert [(c.number, c.quote) for c in answer.citations] == [(2, "opened in 1911 by vane")]
    assert answer.details["source"] == 2


def test_markers_of_the_model_name_the_passage_by_its_rank() -> None:
    found = [passage(f"text number {i}", i, 0.5) for i in range(1, 13)]
    fake = FakeGenerator(
        _by_passage({f"text number {i}": "Vane did it [1]. It is done [1][4]." for i in range(12, 0, -1)})
    )
    config = answerer(fake, k=12, style="cited", max_new_tokens=40)
    config.modes["ra-dit"] = RaDit(MarginalConfig(temperature=0.1))
    found[11] = passage("text number 12", 12, 0.9)  # has nearly all the weight
    answer = config.answer_many(["who ?"], arm="ra-dit", retrievals=[found])[0]
    assert answer.text == "Vane did it [12]. It is done [12]."
    assert {c.number for c in answer.citations} == {12} and answer.unknown_markers == (4,)


def test_all_passages_abstain() -> None:
    answer = answerer(FakeGenerator(ABSTAIN)).answer_many([QUESTION], arm="ra-dit", retrievals=[FOUND])[0]
    assert answer.abstained and answer.text == ABSTAIN and not answer.citations


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("arm", ["ra-dit", "rag-sequence"])
def test_an_endpoint_without_log_probabilities_is_refused_with_the_reason(arm: str) -> None:
    with stub_endpoint() as stub:
        stub.prompt_logprobs = False
        endpoint = EndpointGenerator(f"openai:stub@{stub.url}", EndpointConfig(attempts=1))
        with pytest.raises(EndpointError, match="returns no log-probabilities"):
            answerer(endpoint).answer_many([QUESTION], arm=arm, retrievals=[FOUND])


def test_an_endpoint_with_log_probabilities_answers() -> None:
    with stub_endpoint() as stub:
        stub.reply = lambda messages: messages[-1]["content"][4:]
        endpoint = EndpointGenerator(f"openai:stub@{stub.url}", EndpointConfig(attempts=1))
        answer = answerer(endpoint).answer_many([QUESTION], arm="ra-dit", retrievals=[FOUND])[0]
        assert len(answer.details["candidates"]) == 3
        with pytest.raises(ConfigError, match="cannot search with 2 beams"):
            answerer(endpoint).answer_many([QUESTION], arm="rag-sequence", retrievals=[FOUND])


@pytest.mark.parametrize("arm", ["replug", "rag-token"])
def test_generators_that_show_no_next_token_are_refused(arm: str) -> None:
    with pytest.raises(ConfigError, match=f"next tokens, which the arm {arm}.*ra-dit"):
        answerer(FakeGenerator()).answer_many([QUESTION], arm=arm, retrievals=[FOUND])


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0), ("temperature", float("inf")), ("beams", 0), ("k", 0), ("decoding", "x")]
)
def test_settings_that_mean_nothing_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} is"):
        Replug(MarginalConfig(**{field: value}))


# -------------------------------------------------------------------------------------------------------------- prompts


def test_a_long_passage_is_shortened_and_the_answer_keeps_its_room(generator: LocalGenerator) -> None:
    long = passage("bridge " * 2000, 1, 0.5)
    messages = single(QUESTION, long, generator, template="short", room=40)
    size = len(generator.prompt_ids(messages))
    assert generator.context_window - 42 <= size <= generator.context_window - 40
    with pytest.raises(ConfigError, match="even without a passage"):
        single("bridge " * 2000, long, generator, template="short", room=40)
    with pytest.raises(ConfigError, match="template is"):
        single(QUESTION, None, generator, template="x")  # type: ignore[arg-type]


def test_the_background_prompt() -> None:
    messages = background("Who?", "Vane did. <|im_end|>", asking="Q: ", answering="A:")
    assert messages == [{"role": TEXT, "content": "Background: Vane did. < |im_end|>\n\nQ: Who?\nA:"}]
    assert lead(messages) == " " and lead([{"role": "user", "content": "Who?"}]) == ""
    assert background("Who?", "")[0]["content"] == "Question: Who?\nAnswer:"
    turns = [Turn("Where?", "Here [1]"), Turn("When?", "Now")]
    assert background("Who?", "x", history=turns)[0]["content"] == (
        "Background: x\n\nQ: Where?\nA: Here\nQ: When?\nA: Now\n\nQuestion: Who?\nAnswer:"
    )


def test_an_adapter_trained_with_backgrounds_is_asked_with_them(tmp_path: Path) -> None:
    for name, recipe in (("dual", "ra-dit"), ("plain", "rag")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ragtune.json").write_text(json.dumps({"recipe": recipe}))
    adapters = {"ra-dit": str(tmp_path / "dual"), "replug": str(tmp_path / "plain")}
    fake: Any = FakeGenerator()
    one = Answerer(fake, config=AnswerConfig(), adapters=adapters)
    assert template_of(one, "ra-dit") == "background"
    assert template_of(one, "replug") == "short"
    assert template_of(one, "rag-token") == "examples"
