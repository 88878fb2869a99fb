"""Retriever training with a tiny encoder: what moves and what does not, resuming, refusals, and what is served after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rag.encoder import LocalEncoder, load_encoder
from rag.errors import ConfigError, EncoderMismatch, TrainingError, UnknownModel, UsageError
from rag.index import Index, reencode
from rag.protocols import Message
from rag.query_encoder import BOTH, QUERY, TunedQueries, load_query_encoder, read_query_folder
from rag.retrieve import RetrievalConfig, Retriever, freeze
from tests.fakes import FakeGenerator
from tests.tuning.tiny_encoder import make_index, questions, save_encoder
from tuning.retriever import train_retriever
from tuning.retriever_config import RetrieverConfig
from tuning.retriever_rows import Corpus, Example, question_examples
from tuning.retriever_trainer import RetrieverTrainer, Run

CONFIG = RetrieverConfig(
    learning_rate=5e-3, num_train_epochs=6, batch_size=3, hard_negatives=2, margin=0.0, save_steps=2, dtype="fp32"
)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture()
def index(tmp_path: Path, encoder_folder: Path) -> Index:
    return make_index(tmp_path, load_encoder(str(encoder_folder), dtype="fp32"))


def trainer_of(
    index: Index, folder: Path, tmp_path: Path, config: RetrieverConfig = CONFIG, **more: Any
) -> RetrieverTrainer:
    encoder = load_encoder(str(folder), dtype="fp32")
    corpus = Corpus(index.snapshot)
    examples = more.pop("examples", None) or question_examples(corpus, questions())
    return RetrieverTrainer(
        encoder, corpus, index.snapshot.vectors, examples, config, run_folder=tmp_path / "run", identity={}, **more
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(str(next(folder.rglob("*.safetensors"))))


class Prefers(FakeGenerator):
    """Finds an answer likely after a passage that holds it; counts what it scored."""

    scored = 0

    def score(self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]) -> list[np.ndarray]:
        self.scored += len(prompts)
        return [
            np.full(2, -0.05 if said.strip() in " ".join(m["content"] for m in prompt) else -3.0, np.float32)
            for prompt, said in zip(prompts, completions, strict=True)
        ]


# -------------------------------------------------------------------------- what moves


def test_gradient_reaches_the_query_encoder_and_nothing_else(
    index: Index, encoder_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(index, encoder_folder, tmp_path)
    trainer._prepare(first=True)
    trainer.loss([0, 1, 2]).backward()
    for name, parameter in trainer.encoder.model.named_parameters():
        if "embeddings" in name or "pooler" in name:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    moved = [n for n, p in trainer.trained.items() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) >= len(trainer.trained) - 2  # the bias of the attention keys has no effect on a softmax
    assert trainer.matrix.grad is None and not trainer.matrix.requires_grad


def test_documents_and_index_stay_as_they_are(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in index.folder.iterdir()}
    base = weights(encoder_folder)
    report = train_retriever(
        index.snapshot, questions(), encoder=str(encoder_folder), out=tmp_path / "tuned", config=CONFIG
    )
    assert {p.name: p.read_bytes() for p in index.folder.iterdir()} == before
    after, tuned = weights(encoder_folder), weights(tmp_path / "tuned")
    assert all(torch.equal(base[n], after[n]) for n in base)
    changed = {n for n in base if not torch.equal(base[n], tuned[n])}
    assert changed and not any("embeddings" in n for n in changed)
    assert report.loss[-1] < report.loss[0]
    assert report.kind == QUERY


def test_training_finds_what_it_was_taught(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, num_train_epochs=40, hard_negatives=6)
    train_retriever(index.snapshot, questions(), encoder=str(encoder_folder), out=tmp_path / "t", config=config)
    asked = [q.question for q in questions()]
    assert index.encoder is not None

    def right(opened: Index) -> float:
        found = Retriever(opened, RetrievalConfig(k=1, mode="dense")).search_many(asked)
        return float(
            np.mean([p[0].chunk.source == q.evidence[0].source for p, q in zip(found, questions(), strict=True)])
        )

    was = right(index)
    index.encoder = load_query_encoder(tmp_path / "t", index.encoder)
    assert right(index) > was


# ------------------------------------------------------------------ contrast, by hand


def test_two_questions_of_one_chunk_never_oppose_each_other(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, hard_negatives=0)
    trainer = trainer_of(index, encoder_folder, tmp_path, config)
    trainer._prepare(first=True)
    both = [i for i, e in enumerate(trainer.examples) if e.id in ("q1", "q2")]
    assert trainer.examples[both[0]].positive == trainer.examples[both[1]].positive
    assert float(trainer.loss(both).detach()) == pytest.approx(0.0, abs=1e-6)


def test_labelled_questions_are_not_opposed_to_documents_without_questions(
    index: Index, encoder_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(index, encoder_folder, tmp_path, replace(CONFIG, hard_negatives=6))
    trainer._prepare(first=True)
    corpus = Corpus(index.snapshot)
    foreign = {row for name in ("garden.txt", "school.txt") for row in corpus.rows_of(name)}
    assert not foreign & {row for e in trainer.examples for row in e.negative}
    # a question from the corpus about such a document brings it into the batch: no labelled question minds it
    extra = Example(
        "c1", "When does the garden open ?", ("spring",), tuple(corpus.rows_of("garden.txt")), origin="cloze"
    )
    labelled = trainer.examples[0]
    trainer.examples = [labelled, extra]
    alone = trainer._contrastive([labelled], trainer.encoder.embed([labelled.question], kind="query"))
    together = trainer._contrastive(
        [labelled, extra], trainer.encoder.embed([labelled.question, extra.question], kind="query")
    )
    other = trainer._contrastive([replace(extra, negative=labelled.positive + labelled.negative)],
                                 trainer.encoder.embed([extra.question], kind="query"))  # fmt: skip
    assert float(together.detach()) == pytest.approx(float((alone + other).detach()) / 2, abs=1e-5)


# --------------------------------------------------------------- resumed, found, refused


def test_resumed_equals_uninterrupted(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_retriever(index.snapshot, questions(), encoder=str(encoder_folder), out=whole, config=CONFIG)

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "train" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_retriever(
            index.snapshot, questions(), encoder=str(encoder_folder), out=parts, config=CONFIG, progress=stop
        )
    assert not parts.exists()
    report = train_retriever(index.snapshot, questions(), encoder=str(encoder_folder), out=parts, config=CONFIG)
    assert report.resumed == 5
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[n], two[n]) for n in one)
    again = train_retriever(index.snapshot, questions(), encoder=str(encoder_folder), out=parts, config=CONFIG)
    assert again.reused and again.loss == report.loss


def test_the_weights_that_come_out_are_averaged_with_the_untouched_ones(
    index: Index, encoder_folder: Path, tmp_path: Path
) -> None:
    """Also of a run that was interrupted: the untouched weights are those before its first part."""
    arguments: dict[str, Any] = {"encoder": str(encoder_folder)}
    train_retriever(index.snapshot, questions(), out=tmp_path / "whole", config=CONFIG, **arguments)

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "train" and done == 5:
            raise KeyboardInterrupt

    mixed = {**arguments, "out": tmp_path / "mixed", "config": replace(CONFIG, average=0.25)}
    with pytest.raises(KeyboardInterrupt):
        train_retriever(index.snapshot, questions(), progress=stop, **mixed)
    assert train_retriever(index.snapshot, questions(), **mixed).resumed == 5
    start, whole, found = weights(encoder_folder), weights(tmp_path / "whole"), weights(tmp_path / "mixed")
    assert any(not torch.equal(start[n], whole[n]) for n in start)
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * whole[name], atol=1e-6, rtol=1e-5)


def test_an_unfinished_run_of_other_settings_is_refused(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "train" and done == 3:
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {"encoder": str(encoder_folder), "out": tmp_path / "t"}
    with pytest.raises(KeyboardInterrupt):
        train_retriever(index.snapshot, questions(), config=CONFIG, progress=stop, **arguments)
    with pytest.raises(ConfigError, match="temperature"):
        train_retriever(index.snapshot, questions(), config=replace(CONFIG, temperature=0.2), **arguments)


def test_a_loss_that_is_not_finite_names_step_and_questions(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(index, encoder_folder, tmp_path)
    with torch.no_grad():
        next(iter(trainer.trained.values())).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 1.*q\d"):
        trainer._prepare = lambda first: None  # type: ignore[method-assign]
        trainer.train()


def test_a_document_side_that_was_changed_is_refused(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(encoder_folder, changed)
    other = save_encoder(tmp_path / "other", seed=1)
    for path in other.rglob("*.safetensors"):
        shutil.copy(path, changed / path.relative_to(other))
    with pytest.raises(EncoderMismatch, match="another encoder now"):
        train_retriever(index.snapshot, questions(), encoder=str(changed), out=tmp_path / "t", config=CONFIG)


def test_vectors_that_are_not_the_encoders_are_refused(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    path = index.folder / index.manifest.files["vectors"][0]
    vectors = np.fromfile(path, "<f4").reshape(-1, 32)
    path.write_bytes(np.ascontiguousarray(vectors[::-1]).tobytes())
    with pytest.raises(EncoderMismatch, match="are not those of"):
        train_retriever(
            Index.open(index.folder).snapshot,
            questions(),
            encoder=str(encoder_folder),
            out=tmp_path / "t",
            config=CONFIG,
        )


def test_folders_that_training_would_overwrite_and_questions_without_evidence(
    index: Index, encoder_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds other files"):
        train_retriever(index.snapshot, questions(), encoder=str(encoder_folder), out=tmp_path / "mine", config=CONFIG)
    bare = [replace(q, evidence=()) for q in questions()]
    with pytest.raises(TrainingError, match="names no document"):
        train_retriever(index.snapshot, bare, encoder=str(encoder_folder), out=tmp_path / "t", config=CONFIG)


# ------------------------------------------------------------- a language model as teacher


@pytest.mark.parametrize("objective", ["lsr", "pdist", "emdr2", "loop"])
def test_the_retriever_comes_to_prefer_what_the_model_prefers(
    index: Index, encoder_folder: Path, tmp_path: Path, objective: Any
) -> None:
    """`candidates` exceed the passages there are; a second run asks the model nothing."""
    config = replace(
        CONFIG, objective=objective, candidates=10, temperature=0.1, teacher_temperature=0.2, refresh_steps=4
    )
    model = Prefers()
    arguments: dict[str, Any] = {"encoder": str(encoder_folder), "config": config, "cache": tmp_path / "scores.jsonl"}
    report = train_retriever(index.snapshot, questions(), out=tmp_path / "a", generator=model, **arguments)
    assert report.loss[-1] < report.loss[0]
    assert model.scored > 0
    second = Prefers()
    train_retriever(index.snapshot, questions(), out=tmp_path / "b", generator=second, **arguments)
    assert second.scored == 0
    one, two = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_answers_that_underflow_and_tie_teach_nothing(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    """Probabilities of e⁻²⁰⁰⁰ are 0 for every passage: a uniform target, a finite loss."""

    class Hopeless(FakeGenerator):
        def score(self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]) -> list[np.ndarray]:
            return [np.full(4, -500.0, np.float32) for _ in prompts]

    config = replace(CONFIG, objective="lsr", score="probability", candidates=4, num_train_epochs=1)
    report = train_retriever(
        index.snapshot,
        questions(),
        encoder=str(encoder_folder),
        out=tmp_path / "t",
        config=config,
        generator=Hopeless(),
    )
    assert np.isfinite(report.loss).all()


def test_both_sides_with_a_teacher_and_refreshes(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    config = replace(
        CONFIG, objective="emdr2", sides="both", candidates=3, over_retrieve=5, refresh_steps=3, num_train_epochs=3,
        corpus_task="statements", corpus_examples=4, corpus_share=0.5,
    )  # fmt: skip
    report = train_retriever(
        index.snapshot, questions(), encoder=str(encoder_folder), out=tmp_path / "t", config=config, generator=Prefers()
    )
    assert report.kind == BOTH and report.origins["statements"] == 4
    assert np.mean(report.loss[-3:]) < np.mean(report.loss[:3])  # epochs of three steps


def test_a_refresh_embeds_documents_with_the_encoder_as_it_is(
    index: Index, encoder_folder: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, sides="both", refresh_steps=2, num_train_epochs=2)
    trainer = trainer_of(index, encoder_folder, tmp_path, config)
    seen: list[bool] = []

    def check(run: Run, step: int, horizon: int) -> None:
        if step % 2 == 0 and step < horizon:
            trainer._prepare(first=False)
            fresh = trainer.encoder.encode([trainer.corpus.embedded(r) for r in range(len(trainer.corpus))])
            seen.append(bool(np.allclose(trainer.matrix.numpy(), fresh, atol=1e-5)))

    trainer.on_step = check
    trainer.train()
    assert seen and all(seen)


# ---------------------------------------------------------------- query side when serving


def test_a_query_encoder_is_refused_on_another_index(index: Index, encoder_folder: Path, tmp_path: Path) -> None:
    train_retriever(index.snapshot, questions(), encoder=str(encoder_folder), out=tmp_path / "t", config=CONFIG)
    other = load_encoder(str(save_encoder(tmp_path / "other", seed=1)), dtype="fp32")
    with pytest.raises(EncoderMismatch, match="was trained against documents embedded by"):
        load_query_encoder(tmp_path / "t", other)
    with pytest.raises(UnknownModel, match="no query encoder"):
        load_query_encoder(tmp_path / "nothing", other)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "ragtune.json").write_text(json.dumps({"format": 1, "base": "x", "base_fingerprint": "y"}))
    with pytest.raises(UnknownModel, match="--adapter"):
        read_query_folder(adapter)
    narrow = load_encoder(str(save_encoder(tmp_path / "narrow", dimension=16)), dtype="fp32")
    assert index.encoder is not None
    with pytest.raises(EncoderMismatch, match="16 numbers"):
        TunedQueries(index.encoder, narrow, "narrow")


def test_passages_go_through_the_documents_side_and_frozen_retrievals_are_kept_apart(
    index: Index, encoder_folder: Path, tmp_path: Path
) -> None:
    train_retriever(index.snapshot, questions(), encoder=str(encoder_folder), out=tmp_path / "t", config=CONFIG)
    base = index.encoder
    assert base is not None
    tuned = load_query_encoder(tmp_path / "t", base)
    text = ["The ferry to Korr"]
    assert np.array_equal(tuned.encode(text), base.encode(text))
    assert not np.allclose(tuned.encode(text, kind="query"), base.encode(text, kind="query"))
    assert tuned.fingerprint == base.fingerprint == index.manifest.fingerprint
    asked = [q.question for q in questions()]
    freeze(Retriever(index), asked, tmp_path / "frozen", 2)
    index.encoder = tuned
    index.refresh()  # the tuned side is taken for the index's own encoder
    freeze(Retriever(index), asked, tmp_path / "frozen", 2)
    lines = (tmp_path / "frozen" / "retrievals.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * len(asked)


# ------------------------------------------------------------------------- both sides


def brute_force(index: Index, encoder: LocalEncoder, query: str) -> list[str]:
    texts = [chunk.embedded_text for chunk in index.chunks]
    scores = encoder.encode(texts) @ encoder.encode([query], kind="query")[0]
    return [index.chunks[int(row)].id for row in np.argsort(-scores, kind="stable")]


def test_reencoded_retrieval_equals_brute_force_with_the_new_encoder(
    index: Index, encoder_folder: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, sides="both", num_train_epochs=2)
    report = train_retriever(
        index.snapshot, questions(), encoder=str(encoder_folder), out=tmp_path / "both", config=config
    )
    assert report.kind == BOTH
    with pytest.raises(EncoderMismatch, match="reencode"):
        load_query_encoder(tmp_path / "both", load_encoder(str(encoder_folder)))
    new = load_encoder(str(tmp_path / "both"), dtype="fp32")
    with pytest.raises(EncoderMismatch):
        Index.open(index.folder, new)
    done = reencode(index.folder, new)
    assert done.embedded == done.chunks == len(index.chunks)
    opened = Index.open(index.folder, new)
    assert opened.manifest.encoder == str(tmp_path / "both")
    assert [c.text for c in opened.chunks] == [c.text for c in index.chunks]
    for question in questions():
        found = Retriever(opened, RetrievalConfig(k=6, mode="dense")).search(question.question)
        assert [p.chunk.id for p in found] == brute_force(opened, new, question.question)
    assert reencode(index.folder, new).embedded == 0
    assert opened.verify() == []


def test_a_killed_reencoding_leaves_the_old_index_serving_and_is_resumed(
    index: Index, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.generation.EMBED_BLOCK", 2)
    new = load_encoder(str(save_encoder(tmp_path / "other", seed=1)), dtype="fp32")
    old = load_encoder(str(encoder_folder), dtype="fp32")
    asked = questions()[0].question
    before = [p.chunk.id for p in Retriever(index).search(asked)]

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "embed" and done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reencode(index.folder, new, progress=stop)
    serving = Index.open(index.folder, old)
    assert serving.generation == 1 and serving.verify() == []
    assert [p.chunk.id for p in Retriever(serving).search(asked)] == before
    resumed = reencode(index.folder, new)
    assert resumed.chunks == 6 and resumed.embedded == 2  # four stood in the journal
    assert Index.open(index.folder, new).verify() == []


# ------------------------------------------------------------------------- attention


def test_attention_is_read_as_it_is() -> None:
    """Rows sum to 1, later tokens get nothing, value lengths are those of the projection, the answer's rows are read."""
    from tests.tuning.tiny import tiny_base
    from tuning import atlas
    from tuning.attention import AttentionReader

    base = tiny_base()
    reader = AttentionReader(base=base)
    read = reader.read("who opened it ?", "tessa vane", ["the bridge is long", "orrin vane opened it ."])
    tokens = len(read.passages)
    assert read.attention.shape == (3, 4, 2, tokens) and read.norms.shape == (3, 4, tokens)
    assert np.allclose(read.attention.sum(axis=-1), 1, atol=1e-5)
    assert (read.attention[:, :, 0, tokens - 2 :] == 0).all()  # the row that predicts the first of two answer tokens
    assert [int((read.passages == k).sum()) for k in (0, 1)] == [4, 5]
    layer = base[0].model.layers[0]
    ids = reader._ids("the bridge is long\norrin vane opened it .\n")
    values = layer.self_attn.v_proj(layer.input_layernorm(base[0].model.embed_tokens(torch.tensor([ids]))))
    by_head = values[0].view(len(ids), 2, -1).norm(dim=-1).detach().numpy()
    assert np.allclose(read.norms[0, ::2, : len(ids)].T, by_head, atol=1e-4)
    target = atlas.adist_target(read.attention, read.norms, read.passages, 2)
    assert target.sum() == pytest.approx(1.0)
