"""The commands that answer at once: index, search, ask, evaluate. Long ones are in `apps.jobs`.

Each is a plain function: typed arguments, a `Console` for what is shown, the exit code as its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.console import Console, duration, table
from apps.serving import STARTER, make_retriever, open_index, open_session
from rag.errors import EncoderMismatch, IndexCorrupt, RagtuneError, UsageError
from rag.types import Answer, Finished, Passage, Retrieved, Searching, Step, to_dict

if TYPE_CHECKING:
    from rag.index import IndexReport

_NAMED = 10  # broken lines that are named one by one
_STAGES = {"read": "reading", "embed": "embedding", "write": "writing"}


def index(
    paths: Sequence[Path],
    *,
    out: Path,
    words: int | None,
    encoder: str | None,
    rebuild: bool,
    strict: bool,
    console: Console,
) -> int:
    """Index files and folders; a second time only what changed. `strict`: an unreadable file makes the exit code 1."""
    from rag.chunk import ChunkConfig
    from rag.index import sync

    for path in paths:
        if not path.exists():
            raise UsageError(f"There is no file or folder at {path}. Give the folder that holds the documents.")
    name = encoder or _encoder_of(out, rebuild=rebuild)
    console.progress("loading the encoder", 0, 0, name)
    model = serving.load_encoder(name)
    try:
        report = sync(
            out,
            list(paths),
            model,
            chunk=ChunkConfig(words=words) if words else None,
            rebuild=rebuild,
            progress=lambda stage, *state: console.progress(_STAGES.get(stage, stage), *state),
        )
    except EncoderMismatch as error:
        raise EncoderMismatch(f"{error} Or embed everything in it again: add --rebuild.") from None
    for failure in report.failed:
        console.say(f"not indexed: {failure.source}: {failure.reason}")
    if report.added and not report.embedded:
        console.say(
            f"The {report.added} added documents say only what stood in the index already. If their folder was moved, "
            "the index now holds them twice: index the new place into a new folder (--out)."
        )
    payload = {
        **{key: getattr(report, key) for key in ("documents", "chunks", "added", "updated", "deleted", "embedded")},
        "failed": [{"source": f.source, "reason": f.reason} for f in report.failed],
        "seconds": round(report.seconds, 3),
        "chunks_per_second": round(report.embedded / report.seconds, 1) if report.seconds else 0.0,
        "index": str(out),
    }
    console.result(payload, lambda p: _show_index(p, report))
    return 1 if strict and report.failed else 0


def _encoder_of(index: Path, *, rebuild: bool) -> str:
    """The encoder that an index was made with; the starter for a new one, or where a damaged one is made anew."""
    from rag.index import Index

    if not (index / "manifest.json").exists():
        return STARTER
    try:
        return Index.open(index).manifest.encoder
    except IndexCorrupt as error:
        if rebuild:
            return STARTER
        raise IndexCorrupt(f"{error} Or make it anew in its place: add --rebuild.") from None


def _show_index(payload: Mapping[str, Any], report: IndexReport) -> str:
    changes = (
        ", ".join(f"{payload[key]} {key}" for key in ("added", "updated", "deleted") if payload[key]) or "nothing new"
    )
    speed = f", {payload['chunks_per_second']} chunks/s" if report.embedded else ""
    failed = f"\n{len(report.failed)} files could not be read" if report.failed else ""
    return (
        f"{payload['index']}: {payload['documents']} documents, {payload['chunks']} chunks ({changes}); "
        f"{payload['embedded']} embedded in {duration(report.seconds)}{speed}{failed}"
    )


def search(
    index: Path,
    query: str,
    *,
    k: int | None,
    mode: str,
    reranker: str | None,
    encoder: str | None,
    console: Console,
    query_encoder: Path | None = None,
) -> int:
    """What retrieval finds for one query."""
    from rag.answer import check_question

    query = check_question(query)
    opened = open_index(index, encoder, console, query_encoder)
    retriever = make_retriever(opened, k=k, mode=mode, reranker=reranker)
    passages = retriever.search(query, k)
    payload = [
        {
            "rank": p.rank,
            "score": p.score,
            "scores": to_dict(p.scores),
            "source": p.chunk.source,
            "page": p.chunk.page,
            "start": p.chunk.start,
            "end": p.chunk.end,
            "text": p.chunk.text,
        }
        for p in passages
    ]
    console.result(payload, lambda _: "\n\n".join(map(_show_passage, passages)) or "Nothing was found.")
    return 0


def _place(source: str, page: int | None) -> str:
    return f"{source}, page {page}" if page else source


def _show_passage(passage: Passage) -> str:
    chunk = passage.chunk
    text = " ".join(chunk.text.split())
    shown = text if len(text) <= 400 else text[:399] + "…"
    return f"[{passage.rank}] {_place(chunk.source, chunk.page)}  (score {passage.score:.3f})\n    {shown}"


def ask(
    index: Path,
    question: str,
    *,
    arm: str,
    adapter: Path | None,
    decision: Path | None,
    k: int | None,
    temperature: float | None,
    reranker: str | None,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
    query_encoder: Path | None = None,
    delta: float | None = None,
) -> int:
    """Answer one question, with citations."""
    from rag.answer import check_question

    question = check_question(question)
    session = open_session(
        index, arm=arm, adapter=adapter, decision=decision, k=k, reranker=reranker, encoder=encoder,
        generator=generator, console=console, temperature=temperature, query_encoder=query_encoder,
        delta=delta,
    )  # fmt: skip
    answer = None
    for event in session.answerer.stream(question, arm=session.arm):
        if isinstance(event, Searching):
            console.progress("searching", 0, 0, f"{event.chunks} chunks")
        elif isinstance(event, Retrieved):
            console.progress("reading", 0, 0, f"{len(event.passages)} passages")
        elif isinstance(event, Step):
            console.progress(event.kind, 0, 0, event.text)
        elif isinstance(event, Finished):
            answer = event.answer
    if answer is None:
        raise RagtuneError("The model stopped without an answer. Ask again.")
    payload = {
        "question": answer.question,
        "answer": answer.text,
        "arm": answer.arm,
        "abstained": answer.abstained,
        "citations": to_dict(answer.citations),
        "passages": to_dict(answer.passages),
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "seconds": answer.seconds,
        "details": to_dict(answer.details),
        **{key: getattr(answer, key) for key in ("cut", "unknown_markers", "query", "model", "adapter")},
    }
    console.result(payload, lambda _: _show_answer(answer))
    return 0


def _show_answer(answer: Answer) -> str:
    lines = [answer.text, ""]
    for citation in answer.citations:
        quote = " ".join(citation.quote.split())
        lines.append(f'[{citation.number}] {_place(citation.source, citation.page)}: "{quote}"')
    if not answer.citations and answer.passages:
        seen = dict.fromkeys(_place(p.chunk.source, p.chunk.page) for p in answer.passages)
        lines.append("read: " + "; ".join(seen))
    route = answer.details.get("route")
    if isinstance(route, Mapping):
        lines.append(f"why {answer.arm}: {route.get('reason', '')}")
    cut = f" ({answer.cut} more did not fit)" if answer.cut else ""
    lines.append(f"{answer.arm}, {len(answer.passages)} passages{cut}, {duration(answer.seconds)}")
    return "\n".join(lines)


def evaluate(
    index: Path,
    *,
    questions: Path,
    arm: str,
    adapter: Path | None,
    decision: Path | None,
    k: int | None,
    temperature: float | None,
    reranker: str | None,
    skip_broken: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
    query_encoder: Path | None = None,
    delta: float | None = None,
) -> int:
    """Measure one arm on questions with known answers."""
    from rag import evaluate as measure
    from rag.questions import read_kinds

    asked = read_questions(questions, skip_broken=skip_broken, console=console)
    session = open_session(
        index, arm=arm, adapter=adapter, decision=decision, k=k, reranker=reranker, encoder=encoder,
        generator=generator, console=console, temperature=temperature, query_encoder=query_encoder,
        delta=delta,
    )  # fmt: skip
    texts = [question.question for question in asked]
    rankings = None
    if session.arm not in ("base", "tuned") and session.answerer.retriever is not None:
        console.progress("searching", 0, len(texts))
        # Ten documents deep for ndcg@10: several chunks of one document count once.
        rankings = session.answerer.retriever.search_many(texts, 50)
    answers = session.answerer.answer_many(
        texts, arm=session.arm, retrievals=rankings, progress=console.stage(f"answering ({session.arm})")
    )
    result = measure.evaluate(
        answers, asked, rankings=rankings, kinds=read_kinds(questions, skip_broken=skip_broken), seed=seed
    )
    payload = {
        "arm": session.arm,
        **result.to_dict(),
        **_rates(answers),
        "kinds": {kind: part.to_dict() for kind, part in result.by_kind(seed=seed).items()},
    }
    console.result(payload, _show_evaluation)
    return 0


def _rates(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """What self-rag did beyond answering: how often it searched, and how many sequences an answer took."""
    if not any("sequences" in answer.details for answer in answers):
        return {}
    from rag.self_rag import rates

    return {"self_rag": dict(rates(answers))}


def read_questions(path: Path, *, skip_broken: bool, console: Console) -> list[Any]:
    """The questions of a file; with `skip_broken` the bad lines are left out, the first ones named, all counted."""
    from rag.errors import QuestionsError
    from rag.questions import read_questions as read

    try:
        return read(path)
    except QuestionsError as error:
        if not skip_broken or not error.problems:
            raise
        usable = read(path, skip_broken=True)
        for line, reason in error.problems[:_NAMED]:
            console.say(f"{path}, line {line} is left out: {reason}")
        lines = "1 broken line is" if len(error.problems) == 1 else f"{len(error.problems)} broken lines are"
        console.say(f"{path}: {lines} left out, {len(usable)} questions are used.")
        return usable


def _show_evaluation(payload: Mapping[str, Any]) -> str:
    rows = [("metric", "mean", "95 % interval")]
    for name, value in payload.items():
        if isinstance(value, Mapping) and "mean" in value:
            rows.append((name, f"{value['mean']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}"))
    return f"{payload['arm']}, {payload['n']} questions\n{table(rows)}"
