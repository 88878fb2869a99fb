"""Per-question rows of an arm on disk: written in one move when the arm is finished, read back when a run is
resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag.evaluate import Evaluation
from rag.types import Answer, Citation, Question, content_hash, passage_from_dict, to_dict


def rows_path(out: Path, arm: str, seed: int = 0) -> Path:
    """`rows-<arm>.jsonl`; further seeds of an arm get a number."""
    return out / (f"rows-{arm}.jsonl" if seed == 0 else f"rows-{arm}.{seed + 1}.jsonl")


def write_rows(
    path: Path, inputs: str, questions: Sequence[Question], answers: Sequence[Answer], evaluation: Evaluation
) -> None:
    """One JSON object a line: id, question, references, kind, sources, answer, metrics, and a hash of what went in."""
    lines = [
        json.dumps(
            {
                "id": question.id,
                "question": question.question,
                "answers": list(question.answers),
                "unanswerable": question.unanswerable,
                "kind": item.kind,
                "sources": [evidence.source for evidence in question.evidence],
                "metrics": dict(item.metrics),
                "answer": to_dict(answer),
                "inputs": inputs,
            },
            ensure_ascii=False,
        )
        for question, answer, item in zip(questions, answers, evaluation.items, strict=True)
    ]
    write_text(path, "".join(line + "\n" for line in lines))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; [] where it does not exist."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").split("\n") if line]


def finished_answers(path: Path, inputs: str, questions: Sequence[Question]) -> list[Answer] | None:
    """The answers of an earlier run with the same inputs; None when there are none, or not of these questions."""
    try:
        rows = read_rows(path)
        if [row["id"] for row in rows] != [q.id for q in questions] or any(row["inputs"] != inputs for row in rows):
            return None
        return [answer_from_dict(row["answer"]) for row in rows]
    except (ValueError, KeyError, TypeError):  # written by another version, or damaged: answered again
        return None


def answer_from_dict(data: Mapping[str, Any]) -> Answer:
    """The inverse of `rag.types.to_dict` for an answer."""
    return Answer(
        **{
            **data,
            "citations": tuple(Citation(**c) for c in data["citations"]),
            "passages": tuple(passage_from_dict(p) for p in data["passages"]),
            "unknown_markers": tuple(data["unknown_markers"]),
        }
    )


def folder_hash(folder: str | os.PathLike[str]) -> str:
    """Hash of the weights and settings in an adapter folder; its record and its card may be amended later."""
    parts: list[str | bytes] = []
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.name not in ("ragtune.json", "README.md"):
            with path.open("rb") as file:
                parts += [path.name, hashlib.file_digest(file, "sha256").digest()]
    return content_hash(*parts)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file in one move; readers see the old one or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    # A lone surrogate from a document's text must not lose an hour of answers; json and browsers read it back.
    with aside.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
