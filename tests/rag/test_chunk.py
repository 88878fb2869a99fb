"""Chunking: exact offsets, nothing lost, nothing too long, and cuts where a reader would make them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.chunk import ChunkConfig, chunk_document, count_words, sentences
from rag.errors import ConfigError
from rag.load import LoadConfig, find_files, load_bytes, load_file
from rag.types import Chunk, Document, Heading


def count_tokens(text: str) -> int:
    """Like a subword tokenizer: pieces of up to five letters, single digits and signs; each CJK character."""
    return len(re.findall(r"[\u2e80-\uffff]|[A-Za-z]{1,5}|\S", text))


def cut(document: Document, config: ChunkConfig = ChunkConfig(), *, max_tokens: int = 256) -> list[Chunk]:
    chunks = chunk_document(document, config, count_tokens=count_tokens, max_tokens=max_tokens)
    check(document, chunks, config, max_tokens)
    return chunks


def check(document: Document, chunks: list[Chunk], config: ChunkConfig, max_tokens: int) -> None:
    """The promises that hold for every document."""
    covered = 0
    for chunk in chunks:
        assert document.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip() == chunk.text != ""
        assert count_words(chunk.text) <= config.max_words
        assert count_tokens(chunk.embedded_text) <= max_tokens
        if config.overlap_words == 0:
            assert chunk.start >= covered
        assert not document.text[covered : chunk.start].strip()
        covered = max(covered, chunk.end)
    assert not document.text[covered:].strip()
    assert len({chunk.id for chunk in chunks}) == len(chunks)


def prose(words: int, start: int = 0) -> str:
    """Sentences of ten words, four to a paragraph."""
    made = [" ".join([f"Word{start + i}", *["and more"] * 4, "here."]) for i in range(words // 10)]
    return "\n\n".join(" ".join(made[i : i + 4]) for i in range(0, len(made), 4))


def markdown(text: str, name: str = "a.md") -> Document:
    return load_bytes(name, text.encode(), LoadConfig(isolate=False))


# --- promises for any text ---

_PIECES = st.sampled_from(
    ["word", "Longer", "e.g.", "Dr.", "3.14", ".", "! ", "。", "？", "渡船每天出发", "한국어 문장", "\n", "\n\n", " ", "\t", "# H\n", "## Sub ",
     "- item", "| a | b |\n", "```\n", "> ", ">\n", "x" * 300, "🚢", "e\u0301", "\u200b", "\ufffd", "a: ", "1. ", "---\n", "(", "]", "\u3000"]
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> Document:
    text = "".join(draw(st.lists(_PIECES | st.text(max_size=8), max_size=120)))
    text = text.encode("utf-8", "replace").decode()
    starts = sorted(draw(st.sets(st.integers(0, max(0, len(text) - 1)), max_size=8)))
    heads = (
        tuple(Heading(s, draw(st.integers(1, 4)), draw(st.text("abc 渡", max_size=60))) for s in starts) if text else ()
    )
    pages = tuple(sorted(draw(st.lists(st.integers(0, len(text)), max_size=3))))
    return Document("id", "a.md", text, draw(st.sampled_from(["", "Title", "A " * 200])), pages, heads)


@given(documents(), st.sampled_from([16, 24, 60, 256]), st.sampled_from([(150, 180), (10, 12), (1, 1), (40, 200)]))
@settings(max_examples=150, deadline=None)
def test_every_text_is_cut_without_loss_within_the_limits(
    document: Document, max_tokens: int, sizes: tuple[int, int]
) -> None:
    cut(document, ChunkConfig(*sizes), max_tokens=max_tokens)


@given(documents(), st.sampled_from([40, 256]))
@settings(max_examples=50, deadline=None)
def test_overlap_repeats_only_within_the_limits(document: Document, max_tokens: int) -> None:
    config = ChunkConfig(20, 30, overlap_words=10)
    plain = cut(document, ChunkConfig(20, 30), max_tokens=max_tokens)
    overlapped = cut(document, config, max_tokens=max_tokens)
    assert [c.end for c in plain] == [c.end for c in overlapped]
    for before, chunk, bare in zip(plain, overlapped[1:], plain[1:], strict=False):
        assert before.start < chunk.start <= bare.start
        assert count_words(document.text[chunk.start : bare.start]) <= 10


@given(documents())
@settings(max_examples=100, deadline=None)
def test_sentences_are_ordered_trimmed_and_lose_no_letter(document: Document) -> None:
    spans = sentences(document.text)
    end = 0
    for start, stop in spans:
        assert end <= start < stop
        assert document.text[start:stop].strip() == document.text[start:stop]
        assert not re.search(r"\w", document.text[end:start])
        end = stop
    assert not re.search(r"\w", document.text[end:])


def test_token_counts_that_do_not_add_up_are_still_held() -> None:
    def odd(text: str) -> int:
        return count_tokens(text) + len(text) // 40  # more for the whole than for its parts

    document = markdown(prose(600))
    for max_tokens in (32, 64, 200):
        chunks = chunk_document(document, count_tokens=odd, max_tokens=max_tokens)
        assert all(odd(c.embedded_text) <= max_tokens for c in chunks)
        assert "".join("".join(c.text.split()) for c in chunks) == "".join(document.text.split())


def test_equal_input_gives_equal_chunks() -> None:
    document = markdown(prose(500))
    assert cut(document) == cut(document)


# --- sizes ---


def test_long_text_becomes_even_chunks_cut_at_paragraphs() -> None:
    chunks = cut(markdown(prose(800)), max_tokens=1000)
    sizes = [count_words(c.text) for c in chunks]
    assert all(100 <= size <= 180 for size in sizes)
    assert all(c.text.endswith("here.") for c in chunks)
    assert all(int(c.text[4:].split()[0]) % 4 == 0 for c in chunks)  # every fourth sentence begins a paragraph


def test_no_small_rest_is_left_over() -> None:
    sizes = [count_words(c.text) for c in cut(markdown(prose(190)), max_tokens=1000)]
    assert len(sizes) == 2
    assert min(sizes) >= 70


def test_token_limit_is_held_where_words_are_long() -> None:
    text = " ".join(["Donaudampfschifffahrtsgesellschaft"] * 200) + "."
    chunks = cut(markdown(text), max_tokens=128)
    assert len(chunks) >= 10
    assert min(count_tokens(c.text) for c in chunks) >= 30


def test_text_with_more_tokens_than_estimated_is_not_cut_small() -> None:
    """Addresses have far more tokens than words; after counting, chunks fill what the encoder takes."""
    lines = "\n".join(f"- [Translation {i}](https://example.org/a-b-c-d-e-f/{i}{i}{i})" for i in range(60))
    chunks = chunk_document(markdown(lines), count_tokens=lambda text: 2 * count_tokens(text), max_tokens=256)
    sizes = [2 * count_tokens(c.embedded_text) for c in chunks]
    assert max(sizes) <= 256
    assert sum(sizes) / len(sizes) > 180


def test_a_line_without_spaces_is_cut_anywhere() -> None:
    chunks = cut(Document("d", "a.txt", "x" * 50_000), max_tokens=128)
    assert sum(len(c.text) for c in chunks) == 50_000
    assert len(chunks) < 500


def test_chinese_counts_two_characters_as_a_word() -> None:
    assert count_words("渡船每天出发") == 3.0
    assert count_words("ferry 渡船 at 7") == 4.0
    sentence = "渡船每天早上七点四十分从四号码头准时出发。"
    chunks = cut(Document("d", "zh.md", sentence * 60), max_tokens=1000)
    assert all(c.text.endswith("。") for c in chunks)
    assert all(100 <= count_words(c.text) <= 180 for c in chunks)


def test_empty_documents_have_no_chunks() -> None:
    assert cut(Document("d", "a.txt", "")) == []
    assert cut(Document("d", "a.txt", " \n\n ")) == []


# --- headings ---


def test_heading_path_is_embedded_not_shown() -> None:
    text = f"# Handbook\n\nIntro.\n\n## Leave\n\n{prose(160)}\n\n### Sick leave\n\n{prose(160, 100)}\n\n## Travel\n\n{prose(160)}"
    chunks = cut(markdown(text), max_tokens=1000)
    paths = [path for path, _ in itertools.groupby(c.headings for c in chunks)]
    assert ("Handbook", "Leave", "Sick leave") in paths
    assert paths[-1] == ("Handbook", "Travel")
    sick = next(c for c in chunks if c.headings == ("Handbook", "Leave", "Sick leave"))
    assert sick.text.startswith("### Sick leave\n\nWord100")
    assert sick.embedded_text.startswith("Handbook › Leave › Sick leave\n### Sick leave")


def test_long_sections_are_not_mixed() -> None:
    text = "".join(f"## Part {i}\n\n{prose(120, 100 * i)}\n\n" for i in range(4))
    chunks = cut(markdown(text), max_tokens=1000)
    assert [c.text.splitlines()[0] for c in chunks] == [f"## Part {i}" for i in range(4)]


def test_short_sections_share_a_chunk_under_their_parent() -> None:
    text = "# Contacts\n\n" + "".join(f"## Office {i}\n\nRoom {i}, call 555-010{i} for help.\n\n" for i in range(6))
    [chunk] = cut(markdown(text))
    assert chunk.headings == ("Contacts",)
    text = f"# Guide\n\n## Long\n\n{prose(140)}\n\n## Short\n\nFew words.\n"
    assert len(cut(markdown(text), max_tokens=1000)) == 1


def test_a_heading_is_never_left_behind() -> None:
    text = "".join(f"## Part {i}\n\n{prose(150, 100 * i)}\n\n" for i in range(5))
    for chunk in cut(markdown(text), ChunkConfig(60, 80), max_tokens=300):
        assert not chunk.text.splitlines()[-1].startswith("#")


def test_title_is_not_repeated_and_long_paths_are_shortened() -> None:
    assert cut(markdown("# Same\n\nText."))[0].headings == ("Same",)
    deep = "".join(f"{'#' * i} {'Very long heading name ' * 12}{i}\n\n" for i in range(1, 7)) + prose(300)
    chunks = cut(markdown(deep), max_tokens=100)
    assert all(count_tokens(" ".join(c.headings)) <= 30 for c in chunks)
    assert chunks[-1].headings


# --- blocks ---


def test_tables_and_rows_stay_whole() -> None:
    table = "| name | role |\n| --- | --- |\n" + "\n".join(f"| person {i} | role number {i} |" for i in range(12))
    text = f"# Staff\n\n{prose(120)}\n\n{table}\n\n{prose(120, 50)}"
    chunks = cut(markdown(text), max_tokens=1000)
    assert sum(table in c.text for c in chunks) == 1
    rows = [f"name: Person {i}; role: {'duty ' * 12}{i}" for i in range(40)]
    long = Document("d", "a.csv", "\n".join(rows))
    assert all(line in rows for c in cut(long) for line in c.text.split("\n"))


def test_a_line_that_announces_stays_with_what_follows() -> None:
    text = f"{prose(120)}\n\nThe deposit is as follows:\n\n- blue boat 250 crowns\n- red boat 300 crowns\n\n{prose(80, 50)}"
    [chunk] = [c for c in cut(markdown(text), max_tokens=1000) if "as follows:" in c.text]
    assert "blue boat" in chunk.text


def test_page_is_that_of_the_start() -> None:
    text = prose(600)
    starts = (0, text.index("Word20"), text.index("Word20"), text.index("Word40"))
    chunks = cut(Document("d", "a.pdf", text, page_starts=starts), max_tokens=1000)
    assert chunks[0].page == 1
    assert chunks[-1].page == 4
    assert {c.page for c in chunks if starts[1] <= c.start < starts[3]} == {3}  # page 2 holds no text
    assert cut(markdown("Text."))[0].page is None


def test_settings_are_checked() -> None:
    for wrong in ({"words": 0}, {"words": 200}, {"overlap_words": 150}, {"overlap_words": -1}, {"words": 1.5}):
        with pytest.raises(ConfigError, match="chunk setting"):
            ChunkConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_tokens is 8"):
        chunk_document(markdown("Text."), count_tokens=count_tokens, max_tokens=8)


# --- sentences ---


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It sails. It returns!  Does it? Yes.", ["It sails.", "It returns!", "Does it?", "Yes."]),
        ("Ask Dr. Vey, e.g. at 3.14 p.m. today. Then go.", ["Ask Dr. Vey, e.g. at 3.14 p.m. today.", "Then go."]),
        ("J. R. Brandt wrote it. See Fig. 3 and no. 7.", ["J. R. Brandt wrote it.", "See Fig. 3 and no. 7."]),
        ("He came from the U.S. Army base. The U.S. It is far.", ["He came from the U.S. Army base.", "The U.S.", "It is far."]),
        ("They left in 2007. The rest stayed.", ["They left in 2007.", "The rest stayed."]),
        ("We closed at 5 p.m. The doors stay shut.", ["We closed at 5 p.m.", "The doors stay shut."]),
        ('"Stop!" he said. "Why?" She left.', ['"Stop!" he said.', '"Why?"', "She left."]),
        ("Wait … and see. Version 2.0 is out.", ["Wait … and see.", "Version 2.0 is out."]),
        ("See www.example.org for more. Thanks.", ["See www.example.org for more.", "Thanks."]),
        ("Use etc. Then stop.", ["Use etc.", "Then stop."]),
        ("渡船每天出发。真的吗？是的！好。", ["渡船每天出发。", "真的吗？", "是的！", "好。"]),
        ("他说:“走吧。”然后离开。", ["他说:“走吧。”", "然后离开。"]),
        ("フェリーは7時に出ます。料金は18です。", ["フェリーは7時に出ます。", "料金は18です。"]),
        ("A wrapped line that goes\nover to the next one. Another\nsentence.", ["A wrapped line that goes\nover to the next one.", "Another\nsentence."]),
        ("Needed:\n- one thing\n- two things\n  over two lines\n1. three", ["Needed:", "- one thing", "- two things\n  over two lines", "1. three"]),
        ("# Heading\nText below it.", ["# Heading", "Text below it."]),
        ("| a | b |\n| --- | --- |\n| 1. x | 2 |", ["| a | b |", "| 1. x | 2 |"]),
        ("```py\nx = 1\n\ny = 2. Z\n```\nAfter.", ["```py", "x = 1", "y = 2. Z", "After."]),
        ("Location: Pier 4\nHours: 6 to 9\nDeposit: 250", ["Location: Pier 4", "Hours: 6 to 9", "Deposit: 250"]),
        ("name: Ida; role: cook\nname: Tom; role: master", ["name: Ida; role: cook", "name: Tom; role: master"]),
        ("> A quote that\n> goes on.\n>\n> More.", ["> A quote that\n> goes on.", "> More."]),
        ("", []),
        ("... --- !!!", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_a_number_that_opens_a_line_is_no_sentence() -> None:
    assert split("1. Ask first.\n2. Then wait.") == ["1. Ask first.", "2. Then wait."]


@pytest.mark.parametrize(
    "unit", ["x", "word ", "a. ", ".", "\n", "- a\n", "> ", "| ", "`", "。", "A: b\n", "(\n", "# "]
)
def test_sentences_of_one_endless_pattern_end(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    assert sum(end - start for start, end in sentences(text)) <= len(text)


# --- real documents ---


@pytest.mark.slow
def test_real_documents_are_cut_without_loss(shared_data: Path) -> None:
    for folder in ("docs/rust_book", "docs/linux_command_zh", "pdf_rag/ntsb"):
        for file in find_files(shared_data / folder)[:120]:
            cut(load_file(file))
