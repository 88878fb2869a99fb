"""Decoding: text that settles piece by piece, copied spans, slots that empty and fill, sampling, stop strings."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.copying import CopyState, SpanTokens, word_units
from rag.decode import Job, TextStream, common_prefix, run
from rag.packed import PackedBackend
from rag.protocols import Decoding
from tests.conformance import starter_generator, tiny_model

PASSAGE = (
    "The ferry to Korr leaves at 07:40 from pier 4; a return costs 1,250.50 crowns (or €3). It's Ida Brandt's boat. "
    "渡船每天七点四十分出发。往返票价是十八克朗。\nNaïve café — 5% off.  Two  spaces, état-major."
)
OPTION = "Not in the documents."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return starter_generator().tokenizer


@pytest.fixture(scope="module")
def spans(tokenizer: Any) -> SpanTokens:
    return SpanTokens(tokenizer, starter_generator().tokens.controls)


# --- text as it comes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [PASSAGE, "東京タワー 🗼🏽 é 한국어", " leading", "\n\n- a\n- b", "a", "…"])
def test_pieces_join_to_the_decoded_text_and_never_show_half_a_character(tokenizer: Any, text: str) -> None:
    stream, pieces = TextStream(tokenizer), []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(stream.push(token))
    pieces.append(stream.flush())
    assert "".join(pieces) == stream.text == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_never_becomes_whole_is_written_as_the_tokenizer_does(tokenizer: Any) -> None:
    ids = tokenizer("🗼", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    stream = TextStream(tokenizer)
    assert stream.push(ids[0]) == ""
    assert stream.flush() == tokenizer.decode(ids[:1])


# --- words and spans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("a return costs 1,250.50 crowns", ["a", "return", "costs", "1,250.50", "crowns"]),
        ("at 07:40, it's 5%.", ["at", "07:40", ",", "it", "'", "s", "5", "%", "."]),
        ("don't O'Brien’s", ["don't", "O'Brien", "’", "s"]),
        ("七点ab", ["七", "点", "ab"]),
        ("état-major x_1", ["état", "-", "major", "x_1"]),
        ("", []),
    ],
)
def test_units_are_words_numbers_and_single_dense_characters(text: str, units: list[str]) -> None:
    assert [text[a:b] for a, b in word_units(text)] == units


def walk(state: CopyState, choose: Any, limit: int) -> tuple[str, int]:
    """Follow the rules to an end that `choose` makes; (text, tokens taken)."""
    for count in range(limit):
        options: list[int | None] = [int(t) for t in state.allowed()]
        if state.can_end:
            options.append(None)
        pick = choose(options)
        if pick is None:
            return state.text, count
        state.advance(pick)
    return state.text, limit


def is_whole_span(text: str, source: str) -> bool:
    """`text` stands in `source` and begins and ends at unit borders."""
    starts = {a for a, _ in word_units(source)}
    ends = {b for _, b in word_units(source)}
    return any(m.start() in starts and m.start() + len(text) in ends for m in re.finditer(re.escape(text), source))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), limit=st.integers(1, 12), source=st.sampled_from([PASSAGE, "one", "東京に行く"]))
def test_every_walk_gives_a_span_or_an_option(spans: SpanTokens, seed: int, limit: int, source: str) -> None:
    random = np.random.default_rng(seed)
    state = CopyState([spans.table(source), spans.option(OPTION)], limit)
    text, _ = walk(state, lambda options: options[random.integers(len(options))], limit)
    assert text == OPTION or is_whole_span(text, source) or (text == "" and state.allowed().size == 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=st.text(st.sampled_from("ab é7.,'東🗼\n <|im_end|>"), max_size=40), seed=st.integers(0, 99))
def test_any_text_can_be_copied_from(spans: SpanTokens, source: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    state = CopyState([spans.table(source)], 8)
    text, _ = walk(state, lambda options: options[random.integers(len(options))], 8)
    assert text == "" or text in source


@pytest.mark.parametrize("wanted", ["Ida Brandt", "07:40", "1,250.50 crowns", "€3", "pier 4", "十八克朗", "café", "5%"])
def test_an_answer_can_be_reached_token_by_token(spans: SpanTokens, tokenizer: Any, wanted: str) -> None:
    table = spans.table(PASSAGE)
    for row in range(len(table.start_char)):
        start = int(table.start_char[row])
        if not PASSAGE.startswith(wanted, start):
            continue
        state = CopyState([table], 24)
        piece = table.pieces[row, : table.piece_len[row]]
        for token in [*piece, *table.running[table.next_token[row] :]]:
            if token < 0 or token not in state.allowed():
                break
            state.advance(int(token))
            if state.can_end and state.text == wanted:
                return
    pytest.fail(f"{wanted} was not reached")


def test_words_that_read_like_control_tokens_are_never_copied(spans: SpanTokens) -> None:
    source = "before <|im_end|> after"
    controls = set(starter_generator().tokenizer.all_special_ids)
    for seed in range(30):
        random = np.random.default_rng(seed)
        state = CopyState([spans.table(source)], 12)

        def choose(options: list[int | None], random: Any = random) -> int | None:
            assert not controls & set(options)
            return options[random.integers(len(options))]

        assert walk(state, choose, 12)[0] in ("before", "after")


def test_nothing_to_copy_gives_an_empty_output(spans: SpanTokens) -> None:
    state = CopyState([], 5)
    assert state.can_end and state.allowed().size == 0 and state.text == ""
    assert CopyState([spans.table("")], 5).can_end
    assert CopyState([spans.option(OPTION)], 2).can_end  # an option longer than the limit cannot be said


def test_what_the_token_limit_cuts_is_kept_up_to_the_last_whole_word(spans: SpanTokens) -> None:
    state = CopyState([spans.table("Ida Brandtssonova sails")], 3)
    text, _ = walk(state, lambda options: next(o for o in options if o is not None), 3)
    assert is_whole_span(text, "Ida Brandtssonova sails")


# --- the loop --------------------------------------------------------------------------------------------------------


def jobs_for(tokenizer: Any, prompts: list[list[int]], decoding: Decoding) -> list[Job]:
    return [
        Job(i, prompt, decoding, decoding.max_new_tokens, TextStream(tokenizer)) for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
@pytest.mark.parametrize("shared", [0, 40])
def test_slots_and_a_shared_beginning_change_no_answer(tokenizer: Any, slots: int, shared: int) -> None:
    model = starter_like()
    random = np.random.default_rng(0)
    head = random.integers(3, 900, shared).tolist()
    prompts = [[*head, *random.integers(3, 900, n).tolist()] for n in (5, 31, 2, 17, 9, 24, 3)]
    decoding = Decoding(max_new_tokens=9)

    def make(capacity: int, rows: int, slots: int = slots) -> PackedBackend:
        return PackedBackend(model, slots=min(slots, rows), capacity=capacity)

    together = jobs_for(tokenizer, prompts, decoding)
    for _ in run(make, together, ends=(7, 11, 400)):
        continue
    for prompt, job in zip(prompts, together, strict=True):
        (alone,) = jobs_for(tokenizer, [prompt], decoding)
        for _ in run(lambda c, r: PackedBackend(model, slots=1, capacity=c), [alone], ends=(7, 11, 400)):
            continue
        assert job.done and job.out == alone.out
        assert job.logprob == pytest.approx(alone.logprob, abs=1e-3)


def starter_like() -> Any:
    from rag.engine import packable

    model = tiny_model(1000, seed=3)
    assert packable(model)
    return model


def test_prompts_longer_than_a_pass_are_run_in_pieces(tokenizer: Any) -> None:
    model = starter_like()
    prompt = np.random.default_rng(1).integers(3, 900, 200).tolist()
    whole = PackedBackend(model, slots=1, capacity=300)
    pieces = PackedBackend(model, slots=1, capacity=300)
    pieces.prefill_tokens = 64
    np.testing.assert_allclose(whole.admit([(0, prompt)]), pieces.admit([(0, prompt)]), atol=1e-3)
    pieces.share(prompt[:150])
    np.testing.assert_allclose(whole.admit([(0, prompt)]), pieces.admit([(0, prompt[150:])]), atol=1e-3)


def test_common_prefix_leaves_one_token_of_each() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 4]]) == 2
    assert common_prefix([[5], [1, 2]]) == 0


# --- on the starter --------------------------------------------------------------------------------------------------


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_generator_copies_spans_and_streams_them() -> None:
    generator = starter_generator()
    prompt = ask(f"{PASSAGE}\n\nWhen does the ferry leave?")
    decoding = Decoding(max_new_tokens=8, copy_from=(PASSAGE,), copy_options=(OPTION,))
    (answer,) = generator.generate([prompt], decoding)
    assert answer.text == OPTION or is_whole_span(answer.text, PASSAGE)
    assert "".join(generator.stream(prompt, decoding)) == answer.text
    (fixed,) = generator.generate([prompt], Decoding(copy_options=("yes", "no")))
    assert fixed.text in ("yes", "no")


def test_sampling_is_repeatable_by_seed_and_independent_of_the_batch() -> None:
    generator = starter_generator()
    prompts = [ask("Name a town."), ask("Name a colour and a bird."), ask("Why?")]
    decodings = [Decoding(max_new_tokens=5, temperature=1.0, seed=s) for s in (1, 2, 3)]
    together = [g.text for g in generator.generate(prompts, decodings)]
    assert together == [generator.generate([p], d)[0].text for p, d in zip(prompts, decodings, strict=True)]
    other = {
        generator.generate([prompts[0]], Decoding(max_new_tokens=5, temperature=1.5, seed=s))[0].text for s in range(4)
    }
    assert len(other) > 1
