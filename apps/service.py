"""The object behind the page: one index, one model, many visitors. No Gradio here, so that everything can be tested.

What is shared is read-only. A question keeps the generation of the index it began with; the model answers one question
at a time, and whoever comes second waits, is told so, and can stop waiting.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.asking import Change, Report, follow, history
from apps.decision import decision_view
from apps.library import Library
from apps.metrics import Full, Gate
from apps.render import uses_documents
from apps.strings import ENGLISH, Words
from apps.uploads import UploadLimits
from apps.views import ArmChoice, DecisionView, Exchange, ModelState, Reply, ReplyStatus, Upload
from rag.errors import AdapterMismatch, ConfigError, RagtuneError, UsageError
from rag.modes import Mode
from rag.types import ALL_ARMS, ARMS, MODE_ARMS, Turn

if TYPE_CHECKING:
    from agents.router import Router
    from rag import protocols
    from rag.answer import AnswerConfig, Answerer
    from rag.retrieve import RetrievalConfig

AUTO = "auto"
_DRAWING = 0.3  # seconds that a browser gets to draw what it was sent
OWN_ADAPTER = ("ra-dit", "agent")
"""Modes that are offered only where they have an adapter of their own: an untouched small model is no agent. The others
take the weights of tuned+rag, or none; self-rag without its tokens asks the model yes or no."""


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
        picked: Mapping[str, str] = {},
        router: Router | None = None,
        answer: AnswerConfig | None = None,
        config: ServiceConfig = ServiceConfig(),
        examples: Sequence[str] = (),
        loaders: Loaders = Loaders(),
    ) -> None:
        self.library = library
        self.decision = decision
        self.adapters = dict(adapters)
        self.picked = dict(picked)
        self.router = router
        self.config = config
        self._names = (generator, encoder)
        self._answer_config = answer
        self._examples = tuple(examples)
        self._loaders = loaders
        self._state = ModelState("waiting", "Not loaded yet", generator, encoder)
        self._settled = threading.Event()
        self._started = threading.Lock()
        self.opened = threading.Event()  # somebody sees the page
        self._answerer: Answerer | None = None
        self._named: tuple[Path | None, dict[str, str], Path | None] = (None, {}, None)
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
        wrong = sorted(set(adapters) - set(ALL_ARMS))
        if wrong:
            raise ConfigError(f"adapters names the arm “{wrong[0]}”; arms are {', '.join(ALL_ARMS)}.")
        library = Library(Path(folder), retrieval=retrieval, limits=limits)
        served = serving.find_serving(Path(folder), decision=decision)
        settings.setdefault("answer", served.answer)
        service = cls(
            library,
            generator=generator or served.generator or serving.STARTER,
            encoder=encoder or library.encoder_name,
            decision=decision_view(served.decision) if served.decision else None,
            adapters={**served.adapters, **{arm: str(path) for arm, path in adapters.items()}},
            picked=served.picked,
            router=None if adapters else _router(served, generator, library.retrieval.reranker),
            **settings,
        )
        service._named = (decision, {arm: str(path) for arm, path in adapters.items()}, _recorded(library.folder))
        return service

    # ------------------------------------------------------------------ the model

    def start(self, patience: float = 0.0) -> None:
        """Begin to load the models in a thread; a second call does nothing.

        With `patience` loading waits up to so many seconds for `opened`, and then a moment for the browser to draw.
        """

        def load() -> None:
            if self.opened.wait(patience):
                time.sleep(min(patience, _DRAWING))
            self._load()

        if self._started.acquire(blocking=False):
            threading.Thread(target=load, name="ragtune-load", daemon=True).start()

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
            self._answerer = Answerer(
                model, self.library.retriever, config, adapters=self.adapters, modes=self._own_modes()
            )
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

    def arms(self, t: Words = ENGLISH) -> list[ArmChoice]:
        """The four arms, and those with a way of their own that can run; `reason` says what one lacks."""
        documents = self.library.counts()[0]
        out = []
        for arm in (*ARMS, *self._modes()):
            lacks = []
            if uses_documents(arm) and not documents:
                lacks.append(t("needs-documents"))
            if arm.startswith("tuned") and arm not in self.adapters:
                lacks.append(t("needs-adapter"))
            out.append(ArmChoice(arm, arm, not lacks, t("and-also").join(lacks)))
        return out

    def _modes(self) -> list[str]:
        """Known before the model is: the page of the first visitor is drawn while it loads."""
        return [arm for arm in MODE_ARMS if arm not in OWN_ADAPTER or arm in self.adapters]

    def _own_modes(self) -> dict[str, Mode]:
        """The modes that live outside `rag`: the agent where it has an adapter, and the router."""
        modes = serving.agent_modes(tuple(self.adapters))
        if self.router is not None:
            from agents.router_mode import RoutedMode

            modes = {**serving.agent_modes(self.router.arms), **modes, AUTO: RoutedMode(self.router)}
        return modes

    def auto(self, t: Words = ENGLISH) -> ArmChoice:
        """The arm that answers when none is chosen: the router where it was measured to be better ("auto" itself), else
        the decided one if it can, otherwise `rag`, or `base`."""
        available = {choice.arm for choice in self.arms() if choice.available}
        if self.router is not None and "rag" in available:
            return ArmChoice(AUTO, t("auto-routed"), True, str(self.router.report.get("reason", "")))
        chosen = str((self.decision.data.get("chosen") if self.decision else None) or "")
        picked = next((arm for arm in self.picked if arm in available), "")
        if chosen in available:
            reason = str(self.decision.data.get("reason") or "") if self.decision else ""
            return ArmChoice(chosen, f"auto ({chosen})", True, t("why-measured", reason=reason).strip())
        arm = picked or ("rag" if "rag" in available else "base")
        key = (
            "why-missing"
            if chosen
            else "why-undecided"
            if self.decision
            else "why-picked"
            if picked
            else "why-unmeasured"
        )
        return ArmChoice(arm, f"auto ({arm})", True, t(key, chosen=chosen, arm=arm))

    def use_adapter(self, arm: str, folder: Path | None) -> None:
        """Let `arm` answer with the adapter in `folder` from the next question on, also after a restart; None: with the
        decision's own again. Raises UsageError for an unknown arm, AdapterMismatch for a folder that does not fit."""
        if arm not in ALL_ARMS:
            raise UsageError(f'There is no arm "{arm}"; arms are {", ".join(ALL_ARMS)}.')
        if folder is not None:
            from tuning.record import read_record

            made = read_record(folder).get("base_fingerprint")
            mine = getattr(self.generator, "fingerprint", None)
            if made and mine and made != mine:
                raise AdapterMismatch(f"The adapter {folder.name} was trained on another model than the one in use.")
        serving.serve_adapter(self.library.folder, arm, folder)
        self.reload()

    def reload(self) -> None:
        """Take over the decision and the adapters that are recorded for this index now; the models stay as they are."""
        decision, adapters, before = self._named  # what was named at the start holds until another decision is recorded
        named = decision if _recorded(self.library.folder) == before else None
        served = serving.find_serving(self.library.folder, decision=named)
        self.decision = decision_view(served.decision) if served.decision else None
        self.adapters = {**served.adapters, **({} if named is None and decision else adapters), **served.picked}
        self.picked = dict(served.picked)
        self.router = None if adapters else _router(served, self._names[0], self.library.retrieval.reranker)
        if self._answerer is not None:
            from rag.answer import AnswerConfig, Answerer

            old = self._answerer
            config = served.answer or self._answer_config or AnswerConfig()
            modes = {**{arm: mode for arm, mode in old.modes.items() if arm != AUTO}, **self._own_modes()}
            self._answerer = Answerer(old.generator, old.retriever, config, adapters=self.adapters, modes=modes)

    @property
    def generator(self) -> protocols.Generator | None:
        """The loaded chat model, None before that."""
        return self._answerer.generator if self._answerer is not None else None

    @property
    def generator_name(self) -> str:
        """The name under which the chat model is loaded, as a command line takes it."""
        return self._names[0]

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
        choices = [*self.arms(), *([self.auto()] if AUTO in names else [])]
        known = [choice.arm for choice in choices]
        if not names or not set(names) <= set(known):
            unknown = next((name for name in names if name not in known), "")
            raise UsageError(f'There is no arm "{unknown}"; arms are auto, {", ".join(known)}.')
        for choice in choices:
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

    def rename_session(self, old: str, new: str) -> None:
        """What `stop(old)` would have ended is ended by `stop(new)` from now on."""
        if old in self._stops:
            self._stops[new] = self._stops.pop(old)

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


def _recorded(index: Path) -> Path | None:
    """The decision recorded for an index; None where there is none that can be served."""
    try:
        return serving.find_run(index)
    except ConfigError:
        return None


def _router(served: serving.Serving, generator: str | None, reranker: str | None) -> Router | None:
    """The router of what is served, where it was measured to be better; one that does not fit is left out, aloud."""
    if generator is not None and generator == served.generator:
        generator = None
    router, why = serving.find_router(served, generator=generator, reranker=reranker)
    if router is None and why:
        print(f"ragtune: {why}", file=sys.stderr)
    return router


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
    report(lambda reply: replace(reply, status="searching" if uses_documents(arm) else "reading", note=""))
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
