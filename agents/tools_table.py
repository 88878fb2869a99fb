"""One read-only SQL statement over the tables of the corpus, in a SQLite database that lives in memory.

Tables come from the indexed text of CSV and TSV files, which has one line for each row, "header: value; header: value",
and from rows of the form "a | b | c" in other documents. Nothing on disk is opened.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rag.errors import ToolError

MAX_ROWS = 20
MAX_SECONDS = 2.0
MAX_SQL = 1000
MAX_CELL = 200
MAX_TABLES = 200
_READS = {"SQLITE_SELECT": 21, "SQLITE_READ": 20, "SQLITE_FUNCTION": 31, "SQLITE_RECURSIVE": 33}
_FUNCTIONS = frozenset(
    "abs avg coalesce count group_concat ifnull instr julianday length like lower ltrim max min nullif replace round "  # noqa: SIM905
    "rtrim strftime substr substring sum time date total trim upper iif".split()
)
_RESERVED = frozenset(
    "add all alter and as between by case check create default delete desc distinct drop else end exists for from "  # noqa: SIM905
    "group having if in index insert into is join key limit no not null of on or order primary references select set "
    "table then to transaction union unique update using values view when where with".split()
)
_NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the corpus: `name` and `columns` are SQL names, `source` the document it stands in."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    source: str

    def schema(self) -> str:
        """name(column, column)"""
        return f"{self.name}({', '.join(self.columns)})"


def sql_name(text: str, fallback: str) -> str:
    """A name that needs no quotes in SQL: lower case letters, digits and underscores, no digit first, no SQL word."""
    name = re.sub(r"\W+", "_", text.strip().lower()).strip("_")[:40]
    if name in _RESERVED:
        return name + "_"
    return name if name and not name[0].isdigit() else f"{fallback}_{name}".rstrip("_")


def _cell(text: str) -> str | float | None:
    text = text.strip()
    if not text:
        return None
    if _NUMBER.fullmatch(text):
        value = float(text.replace(",", ""))
        return int(value) if value.is_integer() else value
    return text[:MAX_CELL]


def record_table(source: str, text: str) -> Table | None:
    """The table of a CSV document as it was indexed; None where its lines are no records."""
    rows: list[dict[str, str]] = []
    columns: dict[str, None] = {}
    for line in text.split("\n"):
        if not line.strip():
            continue
        cells: dict[str, str] = {}
        last = ""
        for part in line.split("; "):
            name, colon, value = part.partition(": ")
            if colon and len(name) <= 40 and (name in columns or not rows):
                cells[name] = value
                last = name
            elif last:  # a value that itself holds "; "
                cells[last] += "; " + part
        columns.update(dict.fromkeys(cells))
        rows.append(cells)
    return _table(source, list(columns), [[row.get(c, "") for c in columns] for row in rows]) if columns else None


def piped_tables(source: str, text: str) -> list[Table]:
    """Tables of a document whose rows stand as "a | b | c" on neighbouring lines; the first row is the header."""
    found: list[Table] = []
    block: list[list[str]] = []
    for line in [*text.split("\n"), ""]:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) > 1 and (not block or len(cells) == len(block[0])):
            if not all(re.fullmatch(r":?-{2,}:?", cell) for cell in cells):
                block.append(cells)
            continue
        if len(block) > 1 and (made := _table(source, block[0], block[1:], len(found))) is not None:
            found.append(made)
        block = [cells] if len(cells) > 1 else []
    return found


def _table(source: str, header: Sequence[str], rows: Sequence[Sequence[str]], number: int = 0) -> Table | None:
    names: list[str] = []
    for i, column in enumerate(header, 1):
        name = sql_name(column, f"column_{i}" if not column.strip() else "c")
        names.append(name if name not in names else f"{name}_{i}")
    if not names or not rows:
        return None
    stem = source.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    name = sql_name(stem, "t") + (f"_{number + 1}" if number else "")
    return Table(name, tuple(names), tuple(tuple(_cell(c) for c in row) for row in rows), source)


def corpus_tables(documents: Iterable[tuple[str, str]]) -> list[Table]:
    """Tables of (source, text) pairs, CSV files first; names are made unique, at most MAX_TABLES are kept."""
    records: list[Table] = []
    piped: list[Table] = []
    for source, text in documents:
        if source.lower().endswith((".csv", ".tsv")):
            made = record_table(source, text)
            records += [made] if made else []
        elif " | " in text:
            piped += piped_tables(source, text)
    out: dict[str, Table] = {}
    for table in [*records, *piped][:MAX_TABLES]:
        name, number = table.name, 2
        while name in out:
            name, number = f"{table.name}_{number}", number + 1
        out[name] = Table(name, table.columns, table.rows, table.source)
    return list(out.values())


class Database:
    """The tables in memory; safe for several threads, which take turns."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables: Mapping[str, Table] = {table.name: table for table in tables}
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        for table in tables:
            columns = ", ".join(f'"{column}"' for column in table.columns)
            self._connection.execute(f'CREATE TABLE "{table.name}" ({columns})')
            marks = ", ".join("?" * len(table.columns))
            self._connection.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', table.rows)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_SQL)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 50)
        self._connection.set_authorizer(_authorise)

    def schemas(self, most: int = 6) -> str:
        """Names and columns of the first tables, for a model to choose from."""
        shown = [table.schema() for table in list(self.tables.values())[:most]]
        more = len(self.tables) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")

    def query(self, sql: str) -> str:
        """The first rows of one SELECT as "column: value; column: value" lines. ToolError for anything else."""
        text = sql.strip().rstrip(";").strip()
        if len(text) > MAX_SQL:
            raise ToolError(f"The statement has {len(text)} characters; at most {MAX_SQL} are allowed.")
        if not self.tables:
            raise ToolError("There are no tables in these documents. Use search.")
        with self._lock:
            end = time.monotonic() + MAX_SECONDS
            self._connection.set_progress_handler(lambda: int(time.monotonic() > end), 1000)
            try:
                cursor = self._connection.execute(text)
                rows = cursor.fetchmany(MAX_ROWS + 1)
                names = [column[0] for column in cursor.description or ()]
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError) as error:
                raise ToolError(self._explain(error)) from None
            finally:
                self._connection.set_progress_handler(None, 0)
        if not names:
            raise ToolError("Only one SELECT statement is allowed.")
        if not rows:
            return "no rows"
        lines = ["; ".join(f"{n}: {_show(v)}" for n, v in zip(names, row, strict=True)) for row in rows[:MAX_ROWS]]
        return "\n".join(lines) + (f"\n(only the first {MAX_ROWS} rows)" if len(rows) > MAX_ROWS else "")

    def _explain(self, error: Exception) -> str:
        reason = str(error)
        if "interrupted" in reason:
            return f"The statement took longer than {MAX_SECONDS:g} seconds. Ask for less."
        if "authoriz" in reason or "prohibited" in reason:
            return "Only reading is allowed: one SELECT over the tables, without PRAGMA, ATTACH or writing."
        if "one statement" in reason:
            return "Only one statement is allowed."
        return f"SQL error: {reason[:120]}. Tables: {self.schemas()}."


def _authorise(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """SQLite asks before everything a statement would do; only reading and harmless functions are allowed."""
    if action == _READS["SQLITE_FUNCTION"]:
        return sqlite3.SQLITE_OK if (second or "").lower() in _FUNCTIONS else sqlite3.SQLITE_DENY
    if action == _READS["SQLITE_READ"]:
        return sqlite3.SQLITE_DENY if (first or "").lower().startswith("sqlite_") else sqlite3.SQLITE_OK
    return sqlite3.SQLITE_OK if action in _READS.values() else sqlite3.SQLITE_DENY


def _show(value: object) -> str:
    if isinstance(value, float):
        from agents.tools_calculate import show_number

        return show_number(value)
    return "" if value is None else " ".join(str(value).split())[:MAX_CELL]
