"""Questions files: one JSON object on each line, read strictly, with every problem named at once.

    {"id": "q1", "question": "When does the ferry leave?", "answers": ["07:40"],
     "evidence": [{"source": "ferry.md", "quote": "leaves at 07:40"}], "unanswerable": false, "kind": "number"}

`id` may be missing (the line number takes its place), `evidence` and `unanswerable` too. Keys besides these are
allowed and ignored, except `kind`, by which results are broken down (`read_kinds`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rag.errors import QuestionsError
from rag.types import Evidence, Question

_SHAPE = '{"question": "...", "answers": ["..."], "evidence": [{"source": "file.md", "quote": "..."}]}'
_SHOWN = 10  # problems spelled out in the message; all of them are in QuestionsError.problems


class _Broken(Exception):
    """One line cannot be used; the message is the reason."""


def read_questions(path: str | os.PathLike[str], *, skip_broken: bool = False) -> list[Question]:
    """The questions of a file, in order.

    Raises QuestionsError (exit code 2) when the file is missing, not UTF-8 or holds no question, and when a line is
    broken, unless `skip_broken`; `error.problems` then holds every (line number, reason).
    """
    return [question for question, _ in _read(Path(path), skip_broken)]


def read_kinds(path: str | os.PathLike[str], *, skip_broken: bool = False) -> dict[str, str]:
    """The `kind` of each question that has one, by question id. Raises as `read_questions` does."""
    return {question.id: kind for question, kind in _read(Path(path), skip_broken) if kind}


def write_questions(
    path: str | os.PathLike[str], questions: Iterable[Question], *, kinds: Mapping[str, str] | None = None
) -> None:
    """Writes a questions file in one move: the old file, if any, stays whole until the new one is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        for question in questions:
            file.write(json.dumps(_to_row(question, (kinds or {}).get(question.id)), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, target)


def _to_row(question: Question, kind: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": question.id, "question": question.question, "answers": list(question.answers)}
    if question.evidence:
        row["evidence"] = [{"source": e.source, "quote": e.quote} for e in question.evidence]
    if question.unanswerable:
        row["unanswerable"] = True
    if kind:
        row["kind"] = kind
    return row


def _read(path: Path, skip_broken: bool) -> list[tuple[Question, str | None]]:
    found: list[tuple[Question, str | None]] = []
    problems: list[tuple[int, str]] = []
    first_line: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            question, kind = _parse(line, number)
            if question.id in first_line:
                raise _Broken(f'the id "{question.id}" was used before, on line {first_line[question.id]}')
        except _Broken as problem:
            problems.append((number, str(problem)))
            continue
        first_line[question.id] = number
        found.append((question, kind))
    if problems and not (skip_broken and found):
        raise QuestionsError(_complaint(path, problems, usable=len(found)), tuple(problems))
    if not found:
        raise QuestionsError(f"{path} holds no question. Write one JSON object on each line: {_SHAPE}")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, blank ones left out. Split at \\n only: a bare U+2028 inside a JSON string is legal."""
    if path.is_dir():
        raise QuestionsError(f"{path} is a folder; name the questions file in it, for example {path / 'test.jsonl'}.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise QuestionsError(
            f"There is no questions file at {path}. Check the path, or make one: ragtune questions."
        ) from None
    except OSError as error:
        raise QuestionsError(f"The questions file {path} cannot be read: {error.strerror or error}.") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise QuestionsError(f"{path} is UTF-16; save it as UTF-8 (in most editors: Save as, encoding UTF-8).")
    text = data.removeprefix(b"\xef\xbb\xbf")
    if text.lstrip()[:1] == b"[":
        raise QuestionsError(
            f"{path} is one JSON list; write one JSON object on each line instead "
            f"(jq -c '.[]' {path.name} > questions.jsonl does it): {_SHAPE}"
        )
    for number, raw in enumerate(text.split(b"\n"), start=1):
        if raw.strip():
            # A broken byte is that line's problem alone; the marker cannot come from valid UTF-8 by this handler.
            yield number, raw.decode("utf-8", "surrogateescape")


def _parse(line: str, number: int) -> tuple[Question, str | None]:
    if any("\udc80" <= ch <= "\udcff" for ch in line):
        raise _Broken("not valid UTF-8; save the file as UTF-8")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _Broken(f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise _Broken("not valid JSON: nested too deeply, or an absurd number") from None
    if not isinstance(row, dict):
        raise _Broken(f"a JSON object is needed, this is {_name(row)}")
    if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
        raise _Broken("a text holds half of a surrogate pair (\\ud83d without its partner); write the character itself")
    _refuse_other_shapes(row)
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise _Broken(
            '"question" is missing or empty' if text is None or text == "" else '"question" must be text with a word'
        )
    unanswerable = row.get("unanswerable", False)
    if not isinstance(unanswerable, bool):
        raise _Broken(f'"unanswerable" must be true or false, this is {_name(unanswerable)}')
    answers = _answers(row.get("answers"), unanswerable)
    identity = row.get("id")
    if (identity is not None and not isinstance(identity, (str, int))) or identity == "" or isinstance(identity, bool):
        raise _Broken(f'"id" must be text, this is {_name(identity)}')
    kind = row.get("kind")
    question = Question(
        str(identity) if identity is not None else f"line-{number}",
        text,
        answers,
        _evidence(row.get("evidence")),
        unanswerable,
    )
    return question, str(kind) if isinstance(kind, (str, int, float)) and kind != "" else None


def _refuse_other_shapes(row: Mapping[str, Any]) -> None:
    if "question" in row and "answer" in row and "answers" not in row:
        raise _Broken('"answer" must be called "answers" and be a list: "answers": ["..."]')
    if "question" in row:
        return
    if "instruction" in row:
        raise _Broken(
            'this is an Alpaca row (instruction, input, output): rename "instruction" to "question" and put "output" '
            'into a list "answers"; short answers are needed'
        )
    if "conversations" in row or "messages" in row:
        raise _Broken(
            'this is a ShareGPT or chat row: put the user turn into "question", a short answer into "answers"'
        )
    if "prompt" in row and ("completion" in row or "chosen" in row):
        raise _Broken('this is a training row (prompt, completion): write "question" and a list "answers" instead')


def _answers(value: Any, unanswerable: bool) -> tuple[str, ...]:
    if isinstance(value, str):
        raise _Broken('"answers" must be a list, even of one: "answers": ["..."]')
    if isinstance(value, Mapping) and "text" in value:
        raise _Broken('"answers" is in SQuAD form; keep only its texts: "answers": ["..."]')
    if value is None:
        value = []
    if not isinstance(value, list) or not all(
        isinstance(a, (str, int, float)) and not isinstance(a, bool) for a in value
    ):
        raise _Broken(f'"answers" must be a list of texts, this is {_name(value)}')
    answers = tuple(str(a) for a in value)
    if any(not a.strip() for a in answers):
        raise _Broken('"answers" holds an empty text; leave it out')
    if unanswerable and answers:
        raise _Broken('"unanswerable" is true but there are answers; remove one of the two')
    return answers


def _evidence(value: Any) -> tuple[Evidence, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _Broken(f'"evidence" must be a list of {{"source", "quote"}}, this is {_name(value)}')
    found = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("source"), str) or not item["source"]:
            raise _Broken('each "evidence" needs "source": the path of a document relative to the indexed folder')
        quote = item.get("quote", "")
        if not isinstance(quote, str):
            raise _Broken(f'"quote" must be text, this is {_name(quote)}')
        found.append(Evidence(item["source"].replace("\\", "/"), quote))
    return tuple(found)


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _complaint(path: Path, problems: list[tuple[int, str]], *, usable: int) -> str:
    lines = "\n".join(f"  line {number}: {reason}" for number, reason in problems[:_SHOWN])
    more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    what = "1 broken line" if len(problems) == 1 else f"{len(problems)} broken lines"
    todo = f"Correct them, or use the other {usable} with --skip-broken." if usable else f"A line looks like {_SHAPE}"
    return f"{path} has {what}:\n{lines}{more}\n{todo}"
