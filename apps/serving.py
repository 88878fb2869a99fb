"""From an index folder to something that answers: which decision serves it, and the models in memory.

The decision is recorded in a small file beside the index folder, so that the index itself stays as it is:

manuals/                  the index
manuals.serving.json      {"format": 1, "decision": "runs/first", "adapters": {"tuned+rag": "adapters/new"}}

Paths are relative to that file. `adapters` are those that a person put in the place of the decision's own.

Models are loaded through the three functions `load_…` of this module, which tests replace by fakes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import Console
from rag.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from agents.router import Router
    from rag.answer import AnswerConfig, Answerer
    from rag.index import Index
    from rag.modes import Mode
    from rag.protocols import Encoder, Generator, Reranker
    from rag.retrieve import Retriever

FORMAT = 1
STARTER = "starter"


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers when nothing else is asked for. Without a decision: `rag` with the defaults.

    `picked` are the adapters in `adapters` that a person chose, by arm.
    """

    arm: str = "rag"
    adapters: Mapping[str, str] = field(default_factory=dict)
    generator: str | None = None
    answer: AnswerConfig | None = None
    decision: Path | None = None
    picked: Mapping[str, str] = field(default_factory=dict)


def pointer(index: Path) -> Path:
    """The file beside an index folder that names its decision."""
    index = index.resolve()
    return index.with_name(index.name + ".serving.json")


def serve_decision(index: Path, run: Path, query_encoder: Path | None = None) -> Path:
    """From now on this index is served by the decision in `run`, with its adapters and the query encoder it was
    measured with. Returns the file that says so."""
    file = pointer(index)
    row = {"decision": os.path.relpath(run.resolve(), file.parent)}
    if query_encoder is not None:
        row["query_encoder"] = os.path.relpath(query_encoder.resolve(), file.parent)
    return _point(file, row)


def serve_adapter(index: Path, arm: str, folder: Path | None) -> Path:
    """From now on `arm` answers with the adapter in `folder`; None gives the place back to the decision's own."""
    file = pointer(index)
    row = _pointed(file)
    picked = dict(row.get("adapters") or {})
    picked.pop(arm, None)
    if folder is not None:
        picked[arm] = os.path.relpath(folder.resolve(), file.parent)
    return _point(file, {**row, "adapters": picked})


def picked_adapters(index: Path) -> dict[str, str]:
    """The adapters that a person chose for arms of this index, without those that vanished."""
    file = pointer(index)
    named = dict(_pointed(file).get("adapters") or {})
    found = {str(arm): (file.parent / str(folder)).resolve() for arm, folder in named.items()}
    return {arm: str(folder) for arm, folder in found.items() if folder.is_dir()}


def _point(file: Path, row: Mapping[str, Any]) -> Path:
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as out:
        json.dump({**row, "format": FORMAT}, out, ensure_ascii=False)
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, file)
    return file


def _pointed(file: Path) -> dict[str, Any]:
    """What the file says; {} where there is none. ConfigError when it is broken."""
    if not file.is_file():
        return {}
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        if row["format"] != FORMAT:
            raise ValueError(f"format {row['format']}")
        if not isinstance(row.get("adapters") or {}, dict):
            raise ValueError("adapters is no object")
        return dict(row)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); delete it, or run `ragtune decide` again.") from None


def find_run(index: Path) -> Path | None:
    """The run folder that serves this index, None where nothing was decided. ConfigError when the file is broken."""
    file = pointer(index)
    named = _pointed(file).get("decision")
    if named is None:
        return None
    run = (file.parent / str(named)).resolve()
    if not (run / "decision.json").is_file():
        raise ConfigError(f"{file} names the decision {run}, which is gone; delete the file, or give --decision RUN.")
    return run


def find_serving(index: Path, *, decision: Path | None = None) -> Serving:
    """How this index is served: by `decision` when given, else by the one that was recorded, else by the defaults.

    A chosen arm whose adapter folder has vanished is not served silently by another: ConfigError names the folder.
    """
    from apps.decision import decided_adapters, decision_view

    run = decision or find_run(index)
    picked = picked_adapters(index)
    if run is None:
        return Serving(next(iter(picked), "rag"), picked, picked=picked)
    view = decision_view(run)
    folder = run if run.is_dir() else run.parent
    adapters = {**decided_adapters(view, folder), **picked}
    chosen = str(view.data.get("chosen") or "rag")
    if chosen.startswith("tuned") and chosen not in adapters:
        raise ConfigError(
            f"The decision in {folder} chose {chosen}, but the folder of its adapter is gone. "
            "Run `ragtune decide` again, or choose another arm with --arm rag."
        )
    generator = view.data.get("generator")
    name = generator if isinstance(generator, str) else None
    return Serving(chosen, adapters, name, _answer(view.data), folder, picked)


def find_router(serving: Serving, *, generator: str | None, reranker: str | None) -> tuple[Router | None, str]:
    """The router that `auto` uses, where one was measured to be significantly better than the best single arm, and a
    sentence: what speaks for it, or why it cannot be used here ("" where there is none to speak of).

    `generator` and `reranker` are those that were named instead of the decision's. ConfigError for a damaged file.
    """
    if serving.decision is None or not (serving.decision / "router.json").is_file():
        return None, ""
    from agents.record import read_decision
    from agents.router import load_router

    router = load_router(serving.decision)
    if router is None or not router.better:
        return None, ""
    made, instead = router.made_with, f"so {serving.arm} answers."
    if made.get("date") != read_decision(serving.decision)[1].get("date"):
        return None, f"The decision is newer than its router, {instead} Run `ragtune route` again."
    if generator is not None and generator != made.get("generator"):
        return None, f"The router was learnt with the generator {made.get('generator')}, not {generator}, {instead}"
    if (reranker or None) != (made.get("retrieval_config") or {}).get("reranker"):
        return None, f"The router was learnt with another reranker, {instead}"
    if serving.picked:
        return None, f"Other adapters were chosen than the router was learnt with, {instead}"
    missing = [arm for arm in router.arms if arm.startswith("tuned") and arm not in serving.adapters]
    if missing:
        return None, f"The adapter of {missing[0]}, which the router may choose, is gone, {instead}"
    return router, str(router.report.get("reason", ""))


def _answer(data: Mapping[str, Any]) -> AnswerConfig | None:
    """The answer settings that were measured; what this version does not know is left out."""
    from dataclasses import fields

    from rag.answer import AnswerConfig

    saved = data.get("answer_config")
    if not isinstance(saved, dict):
        return None
    known = {f.name for f in fields(AnswerConfig)}
    return AnswerConfig(**{key: value for key, value in saved.items() if key in known})


def shown_name(name: str, kind: str = "generator") -> str:
    """A model's name for people: the starters by what they are ("SmolLM2-135M-Instruct (starter)")."""
    from rag.starters import STARTER_ENCODER, STARTER_GENERATOR

    found = STARTER_ENCODER if kind == "encoder" else STARTER_GENERATOR
    head, plus, rest = name.partition("+")
    return f"{found.title} ({STARTER}){plus}{rest}" if head == STARTER else name


def load_encoder(name: str) -> Encoder:
    """`rag.models.load_encoder`; a seam for tests."""
    from rag import models

    return models.load_encoder(name)


def load_generator(name: str) -> Generator:
    """`rag.models.load_generator`; a seam for tests."""
    from rag import models

    return models.load_generator(name)


def load_reranker(name: str) -> Reranker:
    """`rag.models.load_reranker`; a seam for tests."""
    from rag import models

    return models.load_reranker(name)


def agent_modes(arms: Sequence[str]) -> dict[str, Mode]:
    """The modes that live outside `rag`, for those of these arms that need one."""
    if "agent" not in arms:
        return {}
    from agents.react import ReactMode

    return {"agent": ReactMode()}


def load_query_encoder(folder: Path, documents: Encoder) -> Encoder:
    """`rag.query_encoder.load_query_encoder`; a seam for tests."""
    from rag import query_encoder

    return query_encoder.load_query_encoder(folder, documents)


def open_index(folder: Path, encoder: str | None, console: Console, query_encoder: Path | None = None) -> Index:
    """The index with the encoder it was made with, or the one that was named, and the tuned query side that was given,
    else the one that its decision was made with.

    Raises IndexMissing, EncoderMismatch.
    """
    from rag.index import Index

    name = encoder or Index.open(folder).manifest.encoder
    console.progress("loading the encoder", 0, 0, name)
    index = Index.open(folder, load_encoder(name))
    put_query_encoder(index, query_encoder)
    return index


def put_query_encoder(index: Index, given: Path | None = None) -> None:
    """Ask an open index through the query encoder that was given, else the one that its decision was made with."""
    tuned = given or served_query_encoder(index.folder)
    if tuned is not None and index.encoder is not None:
        index.encoder = load_query_encoder(tuned, index.encoder)


def served_query_encoder(index: Path) -> Path | None:
    """The query encoder that this index's decision was made with; None where it was made without.

    Raises ConfigError where it is gone: without it the passages are not those that were measured.
    """
    file = pointer(index)
    named = _pointed(file).get("query_encoder")
    if named is None:
        return None
    folder = (file.parent / str(named)).resolve()
    if not folder.is_dir():
        raise ConfigError(
            f"{file} names the query encoder {folder}, which is gone. Run `ragtune decide` again, or delete the file."
        )
    return folder


def make_retriever(index: Index, *, k: int | None, mode: str = "hybrid", reranker: str | None = None) -> Retriever:
    """The serving retriever of an index."""
    from rag.retrieve import RetrievalConfig, Retriever

    options: dict[str, Any] = {"mode": mode, "reranker": reranker, **({"k": k} if k else {})}
    model = load_reranker(reranker) if reranker else None
    return Retriever(index, RetrievalConfig(**options), reranker=model)


def adapter_arm(folder: Path) -> str:
    """The arm that an adapter was made for, by its record: self-rag and agent where they name the recipe."""
    try:
        recipe = json.loads((folder / "ragtune.json").read_text(encoding="utf-8")).get("recipe")
    except (OSError, ValueError, AttributeError):
        recipe = None  # an adapter from elsewhere; loading it says what is wrong with it
    return str(recipe) if recipe in ("self-rag", "agent") else "tuned+rag"


def self_rag_mode(k: int | None, delta: float | None) -> Mode:
    """The mode of the arm self-rag with what was given on the command line. ConfigError for impossible values."""
    from rag.self_rag import SelfRag
    from rag.self_rag_parts import SelfRagConfig

    given: dict[str, Any] = {"k": k, "delta": delta}
    return SelfRag(SelfRagConfig(**{name: value for name, value in given.items() if value is not None}))


@dataclass(frozen=True, slots=True)
class Session:
    """What is needed to answer: made by `open_session` from the arguments that ask, evaluate and chat share."""

    index: Index
    answerer: Answerer
    serving: Serving
    arm: str


def open_session(
    index: Path,
    *,
    arm: str,
    adapter: Path | None,
    decision: Path | None,
    k: int | None,
    reranker: str | None,
    encoder: str | None,
    generator: str | None,
    console: Console,
    temperature: float | None = None,
    query_encoder: Path | None = None,
    delta: float | None = None,
) -> Session:
    """Index, models and the arm that answers; everything cheap is checked before a model is loaded."""
    import dataclasses

    from rag.answer import AnswerConfig, Answerer

    serving = find_serving(index, decision=decision)
    adapters = dict(serving.adapters)
    router = None
    if arm == "auto" and adapter is None and query_encoder is None:
        router, why = find_router(serving, generator=generator, reranker=reranker)
        if router is None and why:
            console.say(why)
    if adapter is not None:
        if not adapter.is_dir():
            raise UsageError(f"There is no adapter folder at {adapter}. Make one with `ragtune tune`.")
        arm = adapter_arm(adapter) if arm == "auto" else arm
        adapters[arm] = str(adapter)
    arm = serving.arm if arm == "auto" else arm
    if arm.startswith("tuned") and arm not in adapters:
        raise UsageError(
            f'The arm "{arm}" needs a tuned adapter, and none is registered for {index}. '
            "Run `ragtune decide`, or give one with --adapter."
        )
    opened = open_index(index, encoder, console, query_encoder)
    name = generator or serving.generator or STARTER
    console.progress("loading the generator", 0, 0, name)
    model = load_generator(name)
    config = serving.answer or AnswerConfig()
    if k:
        config = dataclasses.replace(config, k=k)
    retriever = make_retriever(opened, k=config.k, reranker=reranker)
    modes = agent_modes((arm, *(router.arms if router else ())))
    if temperature is not None:
        from rag.marginal import marginal_modes

        modes = {**modes, **marginal_modes(temperature=temperature)}
    if arm == "self-rag" and (k or delta is not None):
        modes = {**modes, arm: self_rag_mode(k, delta)}
    if router is not None:
        from agents.router_mode import AUTO, RoutedMode

        arm, modes = AUTO, {**modes, AUTO: RoutedMode(router)}
    return Session(opened, Answerer(model, retriever, config, adapters=adapters, modes=modes), serving, arm)
