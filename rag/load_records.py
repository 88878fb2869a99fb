"""CSV and JSON lines: records as text in which each says on its own what its values are."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from typing import Any

from rag.errors import LoadError
from rag.load_text import Builder, one_line

_csv_lock = threading.Lock()  # the field limit of the csv module is one for the whole process


def read_csv(text: str, builder: Builder, *, tsv: bool) -> None:
    """One line for each row, "header: value; header: value", so that each row says on its own what its values are."""
    delimiter = "\t" if tsv else _delimiter(text)
    with _csv_lock:
        before = csv.field_size_limit(builder.limit)
        try:
            rows = [[one_line(cell) for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
        except csv.Error as error:
            raise LoadError(f"is not readable as a table: {error}; export it anew as UTF-8 CSV") from error
        finally:
            csv.field_size_limit(before)
    rows = [row for row in rows if any(row)]
    if not rows:
        return
    header: list[str] = []
    if len(rows) > 1 and _is_header(rows[0]):
        header, rows = rows[0], rows[1:]
    for row in rows:
        cells = []
        for i, value in enumerate(row):
            name = (
                header[i]
                if i < len(header) and header[i]
                else ("" if not header and len(row) == 1 else f"column {i + 1}")
            )
            if value:
                cells.append(f"{name}: {value}" if name else value)
        builder.block("; ".join(cells), end="\n")


def _delimiter(text: str) -> str:
    """The candidate that cuts the first lines into the same number of fields, more than one; comma in doubt."""
    lines = [line for line in text[:20_000].split("\n")[:20] if line.strip()]
    best, fields = ",", 1
    for candidate in (",", ";", "\t", "|"):
        counts = [len(row) for row in csv.reader(lines[: max(1, len(lines) - 1)], delimiter=candidate)]
        if counts and min(counts) == max(counts) > fields:
            best, fields = candidate, counts[0]
    return best


def _is_header(row: list[str]) -> bool:
    """Names, not values: every cell differs from the others and none is a number."""
    filled = [cell for cell in row if cell]
    return len(set(filled)) == len(filled) and not any(re.fullmatch(r"[-+]?[\d.,\s%]+", cell) for cell in filled)


_TEXT_KEYS = ("text", "content", "contents", "body", "passage", "document")
_TITLE_KEYS = ("title", "heading", "name")


def read_jsonl(text: str, builder: Builder) -> None:
    """Each record: its title as a heading, then its text; without a text field, its plain fields as "key: value"."""
    records, broken = 0, []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            broken.append(number)
            continue
        if not isinstance(record, dict):
            record = {"text": record} if isinstance(record, str) else {}
        records += _record(record, builder)
    if not records:
        reason = f"line {broken[0]} is not valid JSON" if broken else "no line has a field with text"
        raise LoadError(f"has no readable record: {reason}; each line must be one JSON object with a text field")
    if broken:
        builder.warnings.append(
            f"{len(broken):,} of {len(broken) + records:,} lines are not valid JSON and were left out; "
            f"the first is line {broken[0]}"
        )


def _record(record: dict[str, Any], builder: Builder) -> bool:
    body = next((key for key in _TEXT_KEYS if isinstance(record.get(key), str) and record[key].strip()), None)
    title = next((key for key in _TITLE_KEYS if isinstance(record.get(key), str) and record[key].strip()), None)
    before = builder.length
    if title and body:
        builder.heading(record[title][:300], 1)
    if body:
        builder.block(record[body])
    else:
        plain = {k: v for k, v in record.items() if isinstance(v, (str, int, float)) and str(v).strip()}
        builder.block("\n".join(f"{key}: {one_line(str(value))}" for key, value in plain.items()))
    return builder.length > before
