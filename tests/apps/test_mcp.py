"""The two tools for desktop assistants, called through the official SDK's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.library import Library
from apps.mcp import MAX_CHARACTERS, MAX_K, build, document, found
from rag.index import sync
from tests.fakes import FakeEncoder


@pytest.fixture()
def library(tmp_path: Path, corpus: Path) -> Iterator[Library]:
    (corpus / "long.txt").write_text("A line about the harbour.\n" * 2000)
    encoder = FakeEncoder()
    sync(tmp_path / "idx", [corpus], encoder)
    made = Library(tmp_path / "idx")
    made.attach(encoder)
    yield made


def test_search_finds_and_bounds(library: Library) -> None:
    rows = found(library, "ferry to Korr", 2)
    assert len(rows) == 2 and rows[0]["source"] == "ferry.md" and "07:40" in rows[0]["text"]
    assert library.index.text("ferry.md")[rows[0]["start"] : rows[0]["end"]] == rows[0]["text"]
    for query, k in (("", 5), ("x" * 10_000, 5), ("x", 0), ("x", MAX_K + 1)):
        with pytest.raises(ValueError, match=r"\w"):
            found(library, query, k)


def test_a_document_is_read_in_pieces_and_nothing_else_is(library: Library) -> None:
    first = document(library, "long.txt")
    assert len(first["text"]) == MAX_CHARACTERS == first["next"] and first["total"] > MAX_CHARACTERS
    pieces, start = "", 0
    while start is not None:
        piece = document(library, "long.txt", start)
        pieces, start = pieces + piece["text"], piece["next"]
    assert pieces == library.index.text("long.txt")
    for name in ("/etc/passwd", "../corpus/ferry.md", "none.txt"):
        with pytest.raises(ValueError, match="no document"):
            document(library, name)


def test_an_assistant_finds_two_read_only_tools(library: Library) -> None:
    pytest.importorskip("mcp")
    from mcp.client import Client

    async def talk() -> tuple[Any, Any, Any, Any]:
        async with Client(build(library)) as client:
            tools = (await client.list_tools()).tools
            hits = await client.call_tool("search", {"query": "ferry to Korr", "k": 1})
            text = await client.call_tool("get_document", {"source": "ferry.md"})
            none = await client.call_tool("get_document", {"source": "/etc/passwd"})
            return tools, hits, text, none

    tools, hits, text, none = asyncio.run(talk())
    assert none.is_error and "no document" in none.content[0].text
    assert sorted(t.name for t in tools) == ["get_document", "search"]
    assert all(t.annotations.read_only_hint and not t.annotations.destructive_hint for t in tools)
    assert "07:40" in json.dumps(hits.structured_content or [c.text for c in hits.content])
    assert "07:40" in json.dumps(text.structured_content or [c.text for c in text.content])
