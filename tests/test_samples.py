"""The sample handbook: its counts, and that its questions can be trusted.

The text of each document is read here by other code than the product's own loader, so the two can disagree.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import json
import re
import sys
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HANDBOOK = Path(__file__).resolve().parents[1] / "samples" / "handbook"
DOCUMENTS = HANDBOOK / "documents"
FILES = sorted(path for path in DOCUMENTS.rglob("*") if path.is_file())
SOURCES = [path.relative_to(DOCUMENTS).as_posix() for path in FILES]
SIDES = ("train", "test")
KINDS = {"fact", "number", "list", "comparison", "unanswerable", "chinese"}
CJK = re.compile(r"[\u3400-\u9fff]")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _html(text: str) -> str:
    text = re.sub(r"(?s)<head.*?</head>", "", text)
    text = re.sub(r"</t[dh]>\s*<t[dh]>", " | ", text)
    return html.unescape(re.sub(r"<[^>]+>", " ", text))


def _pdf(path: Path) -> str:
    pypdfium2 = pytest.importorskip("pypdfium2")
    with pypdfium2.PdfDocument(path) as pdf:
        return "\n".join(page.get_textpage().get_text_bounded() for page in pdf)


def _docx(path: Path) -> str:
    docx = pytest.importorskip("docx")
    document = docx.Document(str(path))
    lines = [paragraph.text for paragraph in document.paragraphs]
    lines += [" | ".join(cell.text for cell in row.cells) for table in document.tables for row in table.rows]
    return "\n".join(lines)


@cache
def text_of(source: str) -> str:
    """The text of one document, white space normalised."""
    path = DOCUMENTS / source
    if path.suffix == ".pdf":
        return _flat(_pdf(path))
    if path.suffix == ".docx":
        return _flat(_docx(path))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        text = _html(text)
    elif path.suffix == ".csv":
        text = "\n".join(" ; ".join(row) for row in csv.reader(io.StringIO(text)))
    elif path.suffix == ".jsonl":
        text = "\n".join(" ; ".join(json.loads(line).values()) for line in text.splitlines())
    return _flat(text)


def words(text: str) -> int:
    """Words, with two Chinese characters counted as one."""
    return len(CJK.sub(" ", text).split()) + len(CJK.findall(text)) // 2


@cache
def rows(side: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in (HANDBOOK / f"{side}.jsonl").read_text(encoding="utf-8").splitlines())


def both() -> list[dict[str, Any]]:
    return [row for side in SIDES for row in rows(side)]


def evidence(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item["source"], item["quote"]) for item in row.get("evidence", [])]


@cache
def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("handbook_build", HANDBOOK / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_there_are_enough_documents_of_every_format() -> None:
    formats = Counter(path.suffix for path in FILES)
    least = {".pdf": 3, ".docx": 3, ".html": 4, ".csv": 3, ".txt": 4, ".rst": 1, ".jsonl": 1, ".md": 10}
    assert set(formats) == set(least)
    assert all(formats[suffix] >= count for suffix, count in least.items()), formats
    assert len(FILES) >= 34


def test_documents_are_long_enough_to_need_retrieval() -> None:
    lengths = {source: words(text_of(source)) for source in SOURCES}
    assert sum(lengths.values()) >= 27_000
    assert all(400 <= length <= 1_200 for length in lengths.values()), lengths


def test_there_are_chinese_documents() -> None:
    assert sum(len(CJK.findall(text_of(source))) > 500 for source in SOURCES) >= 3


@pytest.mark.parametrize("source", [source for source in SOURCES if source.endswith(".pdf")])
def test_pdf_has_pages_with_text(source: str) -> None:
    pypdfium2 = pytest.importorskip("pypdfium2")
    with pypdfium2.PdfDocument(DOCUMENTS / source) as pdf:
        lengths = [len(page.get_textpage().get_text_bounded()) for page in pdf]
    assert len(lengths) >= 2 and min(lengths) > 200


@pytest.mark.parametrize("source", [source for source in SOURCES if source.endswith(".docx")])
def test_docx_has_headings_and_a_table(source: str) -> None:
    document = pytest.importorskip("docx").Document(str(DOCUMENTS / source))
    assert sum(str(paragraph.style.name).startswith("Heading") for paragraph in document.paragraphs) >= 4
    assert len(document.tables) >= 1


@pytest.mark.parametrize("source", [source for source in SOURCES if source.endswith(".html")])
def test_html_has_headings_and_a_table(source: str) -> None:
    page = (DOCUMENTS / source).read_text(encoding="utf-8")
    assert page.count("<h2>") >= 4 and "<table>" in page


def test_no_sentence_is_repeated_over_documents() -> None:
    seen: dict[str, str] = {}
    for source in SOURCES:
        for sentence in {s.strip() for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", text_of(source))}:
            if words(sentence) >= 9:
                assert seen.setdefault(sentence, source) == source, sentence


@pytest.mark.parametrize("suffix", [".docx", ".pdf"])
def test_committed_files_hold_what_their_sources_say(suffix: str) -> None:
    sources = sorted((HANDBOOK / "sources").rglob(f"*{suffix}.md"))
    made = {path.relative_to(HANDBOOK / "sources").with_suffix("").as_posix() for path in sources}
    assert made == {source for source in SOURCES if source.endswith(suffix)}
    for path in sources:
        text = text_of(path.relative_to(HANDBOOK / "sources").with_suffix("").as_posix())
        for block in build_script().blocks(path.read_text(encoding="utf-8")):
            if block.kind in ("paragraph", "list", "numbered"):
                assert all(_flat(line) in text for line in block.lines), (path.name, block.lines)


def test_building_twice_gives_the_same_bytes() -> None:
    pytest.importorskip("reportlab")
    source = (HANDBOOK / "sources" / "power" / "big-nell.pdf.md").read_text(encoding="utf-8")
    assert build_script().make_pdf(source) == build_script().make_pdf(source)
    made = build_script().make_docx(source)
    assert made == build_script().make_docx(source)
    times = {info.date_time for info in zipfile.ZipFile(io.BytesIO(made)).infolist()}
    assert times == {(2024, 9, 2, 8, 0, 0)}


def test_there_are_enough_questions_of_every_kind() -> None:
    kinds = Counter(row["kind"] for row in both())
    assert set(kinds) == KINDS
    assert len(rows("train")) >= 190 and len(rows("test")) >= 130
    assert kinds["comparison"] >= 20 and kinds["chinese"] >= 16 and kinds["list"] >= 20
    for side in SIDES:
        share = sum(row["kind"] == "unanswerable" for row in rows(side)) / len(rows(side))
        assert 0.10 <= share <= 0.14, (side, share)


def test_the_readme_gives_these_counts() -> None:
    readme = (HANDBOOK / "README.md").read_text(encoding="utf-8")
    train, test = (Counter(row["kind"] for row in rows(side)) for side in SIDES)
    for kind in KINDS:
        assert f"| {kind} | {train[kind]} | {test[kind]} |" in readme
    for side in SIDES:
        documents = {source for row in rows(side) for source, _ in evidence(row)}
        assert re.search(
            rf"\| `{side}.jsonl` \| {len(rows(side))} questions on (the other )?{len(documents)} documents", readme
        )


def test_ids_and_questions_are_unique() -> None:
    assert len({row["id"] for row in both()}) == len(both())
    assert len({row["question"] for row in both()}) == len(both())


def test_no_document_is_on_both_sides() -> None:
    train, test = ({source for row in rows(side) for source, _ in evidence(row)} for side in SIDES)
    assert not train & test
    assert train | test == set(SOURCES)


def test_every_row_has_its_format() -> None:
    for row in both():
        assert set(row) <= {"id", "kind", "question", "answers", "evidence", "unanswerable"}
        assert row["question"].strip().endswith(("?", "？")), row["id"]
        if row["kind"] == "unanswerable":
            assert row["unanswerable"] is True and row["answers"] == [] and not evidence(row), row["id"]
        else:
            assert not row.get("unanswerable") and evidence(row), row["id"]
            assert 1 <= len(row["answers"]) <= 3 and all(answer.strip() for answer in row["answers"]), row["id"]
        if row["kind"] == "comparison":
            assert len({source for source, _ in evidence(row)}) == 2, row["id"]
        if row["kind"] == "chinese":
            assert CJK.search(row["question"]) and all(source.startswith("zh/") for source, _ in evidence(row)), row[
                "id"
            ]


def test_answers_are_short() -> None:
    assert all(words(row["answers"][0]) <= (22 if row["kind"] == "list" else 10) for row in both() if row["answers"])


def test_every_quote_stands_in_its_document() -> None:
    missing = [(row["id"], source) for row in both() for source, quote in evidence(row) if quote not in text_of(source)]
    assert not missing


def test_answers_stand_in_their_quotes() -> None:
    asked = [row for row in both() if row["kind"] not in ("comparison", "unanswerable")]
    held = [
        any(answer.lower() in quote.lower() for answer in row["answers"] for _, quote in evidence(row)) for row in asked
    ]
    assert sum(held) / len(held) >= 0.9


def test_questions_do_not_copy_the_sentence_they_ask_about() -> None:
    def tokens(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    for row in both():
        asked = tokens(row["question"])
        runs = {tuple(asked[i : i + 7]) for i in range(len(asked) - 6)}
        for _, quote in evidence(row):
            said = tokens(quote)
            assert not runs & {tuple(said[i : i + 7]) for i in range(len(said) - 6)}, row["id"]
