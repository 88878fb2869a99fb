"""The object behind the page: one index, one model, many visitors. No Gradio here, so that everything can be tested.

What is shared is read-only. A question keeps the generation of the index it began with; the model answers one question
at a time, and whoever comes second waits, is told so, and can stop waiting.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.asking import Change, Report, follow, history
from apps.decision import load_decision
from apps.library import Library
from apps.metrics import Full, Gate
from apps.uploads import UploadLimits
from apps.views import USES_DOCUMENTS, ArmChoice, DecisionView, Exchange, ModelState, Reply, ReplyStatus, Upload
from rag.errors import ConfigError, RagtuneError, UsageError
from rag.types import ARMS, Turn

if TYPE_CHECKING:
    from rag import protocols
    from rag.answer import AnswerConfig, Answerer
    from rag.retrieve import RetrievalConfig

_ADAPTER = "needs an adapter: `ragtune tune` or `ragtune decide` makes one."


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Bounds of one answer: its seconds, waiting included, and how many earlier exchanges the model is told.

    `together`: answers at once, where the model can run several as one batch; `waiting`: questions in line, further
    ones are refused.
    """

    answer_seconds: float = 300.0
    history: int = 3
    together: int = 32
    waiting: int = 64

    def __post_init__(self) -> None:
        if self.answer_seconds <= 0:
            raise ConfigError(f"ServiceConfig.answer_seconds is {self.answer_seconds}; it must be above 0.")
        if self.history < 0:
            raise ConfigError(f"ServiceConfig.history is {self.history}; it must be 0 or more.")


@dataclass(frozen=True, slots=True)
class Loaders:
    """How models come into memory, by name; replaced in tests."""

    encoder: Callable[[str], protocols.Encoder] = serving.load_encoder
    generator: Callable[[str], protocols.Generator] = serving.load_generator
    reranker: Callable[[str], protocols.Reranker] = serving.load_reranker


class Service:
    """Everything the page asks for. Make it with `Service.open`, then `start` it; both return at once."""

    def __init__(
        self,
        library: Library,
        *,
        generator: str,
        encoder: str,
        decision: DecisionView | None = None,
        adapters: Mapping[str, str] = {},
        answer: AnswerConfig | None = None,
        config: ServiceConfig = ServiceConfig(),
        examples: Sequence[str] = (),
        loaders: Loaders = Loaders(),
    ) -> None:
        self.library = library
        self.decision = decision
        self.adapters = dict(adapters)
        self.config = config
        self._names = (generator, encoder)
        self._answer_config = answer
        self._examples = tuple(examples)
        self._loaders = loaders
        self._state = ModelState("waiting", "Not loaded yet", generator, encoder)
        self._settled = threading.Event()
        self._started = threading.Lock()
        self._answerer: Answerer | None = None
        self._model = threading.Lock()
        self.gate = Gate(1, config.waiting)
        self._stops: dict[str, threading.Event] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        generator: str | None = None,
        encoder: str | None = None,
        decision: Path | None = None,
        adapters: Mapping[str, str | Path] = {},
        retrieval: RetrievalConfig | None = None,
        limits: UploadLimits = UploadLimits(),
        **settings: Any,
    ) -> Service:
        """A service over the index in `folder`; loads no model.

        `decision` is a run folder of `ragtune decide`, by default the one recorded for this index: its chosen arm
        answers first, with its answer settings, generator and adapters, unless other ones are named here. `encoder` is
        by default the one the index was made with; `adapters` maps arms to folders.
        Raises IndexMissing, IndexCorrupt, UsageError or ConfigError.
        """
        wrong = sorted(set(adapters) - set(ARMS))
        if wrong:
            raise ConfigError(f"adapters names the arm “{wrong[0]}”; arms are {', '.join(ARMS)}.")
        library = Library(Path(folder), retrieval=retrieval, limits=limits)
        served = serving.find_serving(Path(folder), decision=decision)
        settings.setdefault("answer", served.answer)
        return cls(
            library,
            generator=generator or served.generator or serving.STARTER,
            encoder=encoder or library.encoder_name,
            decision=load_decision(served.decision) if served.decision else None,
            adapters={**served.adapters, **{arm: str(path) for arm, path in adapters.items()}},
            **settings,
        )

    # ------------------------------------------------------------------ the model

    def start(self) -> None:
        """Begin to load the models in a thread; a second call does nothing."""
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._load, name="ragtune-load", daemon=True).start()

    def wait(self, seconds: float | None = None) -> ModelState:
        """The state of the models once loading has ended, or after `seconds`."""
        self._settled.wait(seconds)
        return self._state

    @property
    def state(self) -> ModelState:
        """Whether questions can be answered, and what loads meanwhile."""
        return self._state

    def _load(self) -> None:
        generator, encoder = self._names
        try:
            from rag.answer import AnswerConfig, Answerer

            self._state = replace(self._state, phase="loading", message="Loading the encoder…")
            reranker = self.library.retrieval.reranker
            self.library.attach(self._loaders.encoder(encoder), self._loaders.reranker(reranker) if reranker else None)
            self._state = replace(self._state, message="Loading the chat model…")
            model = self._batched(self._loaders.generator(generator))
            config = self._answer_config or AnswerConfig()
            self._answerer = Answerer(model, self.library.retriever, config, adapters=self.adapters)
            self._state = ModelState("ready", "Ready", model.name, encoder)
        except RagtuneError as error:
            self._state = replace(self._state, phase="failed", message=str(error))
        except Exception as error:
            self._state = replace(self._state, phase="failed", message=_unexpected(error))
        finally:
            self._settled.set()

    def _batched(self, model: protocols.Generator) -> protocols.Generator:
        """The model with its streams in one batch where it can do that; the gate lets in as many as it then takes."""
        from rag.batching import BatchedGenerator
        from rag.generator import LocalGenerator

        if isinstance(model, LocalGenerator):
            model = BatchedGenerator(model)
            self.gate.widen(self.config.together if model.together else 1)
        return model

    @property
    def answerer(self) -> Answerer | None:
        """What answers, None until the models are loaded."""
        return self._answerer

    # ------------------------------------------------------------------- the arms

    def arms(self) -> list[ArmChoice]:
        """The four arms; `reason` says what an unavailable one lacks."""
        documents = self.library.counts()[0]
        out = []
        for arm in ARMS:
            lacks = []
            if arm in USES_DOCUMENTS and not documents:
                lacks.append("needs documents: add some under Documents.")
            if arm.startswith("tuned") and arm not in self.adapters:
                lacks.append(_ADAPTER)
            out.append(ArmChoice(arm, arm, not lacks, " And ".join(lacks)))
        return out

    def auto(self) -> ArmChoice:
        """The arm that answers when none is chosen: the decided one if it can, otherwise `rag`, or `base`."""
        available = {choice.arm for choice in self.arms() if choice.available}
        chosen = str((self.decision.data.get("chosen") if self.decision else None) or "")
        if chosen in available:
            reason = str(self.decision.data.get("reason") or "") if self.decision else ""
            return ArmChoice(chosen, f"auto ({chosen})", True, f"Chosen by measurement. {reason}".strip())
        arm = "rag" if "rag" in available else "base"
        if chosen:
            why = f"The decision chose {chosen}, which cannot run here: its adapter is missing. {arm} answers instead."
        elif self.decision:
            why = f"The decision found no arm to prefer. {arm} answers."
        else:
            why = (
                f"Nothing has been measured yet, so {arm} answers. `ragtune decide` finds out what your questions need."
            )
        return ArmChoice(arm, f"auto ({arm})", True, why)

    def examples(self, n: int = 3) -> list[str]:
        """Questions to begin with."""
        return list(self._examples[:n]) or self.library.examples(n)

    def upload(self, files: Sequence[tuple[Path, str]]) -> Iterator[tuple[Upload, ...]]:
        """Index uploaded files, see `Library.upload`; waits for the encoder first, and says so."""
        self.start()
        waiting = tuple(Upload(name, note=self._state.message) for _, name in files)
        while not self.library.ready and self.wait(0.2).phase in ("waiting", "loading"):
            yield waiting
        if not self.library.ready:
            yield tuple(replace(item, status="failed", note=self._state.message) for item in waiting)
        else:
            yield from self.library.upload(files)

    # --------------------------------------------------------------------- asking

    def ask(
        self, question: str, arms: Sequence[str] = ("auto",), *, past: Sequence[Exchange] = (), session: str = ""
    ) -> Generator[Exchange, None, None]:
        """What one or two arms say to `question`, as it grows; see `follow`.

        `past` are the earlier exchanges of this conversation. `stop(session)` ends it early, as does closing the
        iterator, as does another question of the same session. Raises UsageError before anything starts; what goes
        wrong afterwards is told in the reply.
        """
        from rag.answer import check_question

        question = check_question(question)
        names = list(dict.fromkeys(self.auto().arm if arm == "auto" else arm for arm in arms))
        if not names or not set(names) <= set(ARMS):
            unknown = next((name for name in names if name not in ARMS), "")
            raise UsageError(f'There is no arm "{unknown}"; arms are auto, {", ".join(ARMS)}.')
        for choice in self.arms():
            if choice.arm in names and not choice.available:
                raise UsageError(f"The arm {choice.arm} {choice.reason}")
        self.stop(session)
        stop = self._stops[session] = threading.Event()
        view = Exchange(f"t{len(past) + 1}", question, tuple(Reply(arm) for arm in names))
        turns = [history(past, arm, self.config.history) for arm in names]
        return follow(view, partial(self._work, view, turns, stop), stop, limit=self.config.answer_seconds)

    def stop(self, session: str) -> None:
        """End what this session is being answered, if anything; what was written so far stays."""
        stop = self._stops.pop(session, None)
        if stop is not None:
            stop.set()

    def _work(self, view: Exchange, turns: Sequence[Sequence[Turn]], stop: threading.Event, report: Report) -> None:
        """Answer with one arm after the other, in the thread of `follow`. A failing arm does not stop the next."""
        everyone = range(len(view.replies))
        self.start()
        loading = partial(_tell, everyone, report, "loading")
        if not _wait_for(self._settled.wait, stop, lambda: loading(self._state.message)):
            return
        queued = partial(_tell, everyone, report, "waiting", "Another question is being answered first…")
        if self._answerer is None:
            _tell(everyone, report, "failed", self._state.message)
            return
        try:
            with self.gate.place(stop.is_set, waits=queued) as mine:
                if mine:
                    self._in_turn(self._answerer, view, turns, stop, report)
        except Full as error:
            _tell(everyone, report, "failed", str(error))

    def _in_turn(
        self,
        answerer: Answerer,
        view: Exchange,
        turns: Sequence[Sequence[Turn]],
        stop: threading.Event,
        report: Report,
    ) -> None:
        """One arm after the other."""
        _tell(range(1, len(view.replies)), report, "waiting", f"After {view.replies[0].arm}…")
        for i, reply in enumerate(view.replies):
            if not stop.is_set():
                _answer(answerer, view.question, reply.arm, turns[i], stop, partial(report, i))


def _wait_for(ready: Callable[[float], bool], stop: threading.Event, meanwhile: Callable[[], None]) -> bool:
    """Wait until `ready(seconds)` or until stopped; whether it became ready."""
    while not stop.is_set():
        if ready(0.05):
            return True
        meanwhile()
    return False


def _answer(
    answerer: Answerer,
    question: str,
    arm: str,
    turns: Sequence[Turn],
    stop: threading.Event,
    report: Callable[[Change], None],
) -> None:
    """Report the events of one arm; a failure becomes a sentence in its reply."""
    report(lambda reply: replace(reply, status="searching" if arm in USES_DOCUMENTS else "reading", note=""))
    try:
        with closing(answerer.stream(question, arm=arm, history=turns)) as events:  # type: ignore[type-var]
            for event in events:
                if stop.is_set():
                    return
                report(lambda reply, event=event: reply.after(event))  # type: ignore[misc]
    except RagtuneError as error:
        _tell([0], lambda _, change: report(change), "failed", str(error))
    except Exception as error:
        _tell([0], lambda _, change: report(change), "failed", _unexpected(error))


def _tell(which: Iterable[int], report: Report, status: ReplyStatus, note: str) -> None:
    for i in which:
        report(i, lambda reply: replace(reply, status=status, note=note))


def _unexpected(error: Exception) -> str:
    """A failure nobody planned, as a sentence; the details go to the terminal, where those who can help see them."""
    traceback.print_exception(error, file=sys.stderr)
    return f"Something went wrong that should not ({type(error).__name__}); the terminal of `ragtune chat` says where."
