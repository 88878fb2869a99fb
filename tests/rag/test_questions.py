"""Questions files: what is read, and that every way of being broken gets its line number and a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import QuestionsError
from rag.questions import read_kinds, read_questions, write_questions
from rag.types import Evidence, Question

GOOD = '{"id": "a", "question": "When?", "answers": ["07:40"]}'


def write(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_reads_every_field_and_ignores_other_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"id": "a", "question": "When?", "answers": ["07:40", "7:40"], "difficulty": 3, "kind": "number",'
        ' "evidence": [{"source": "boats\\\\ferry.md", "quote": "at 07:40"}, {"source": "b.md"}]}',
        "",
        '{"question": "Who?", "answers": [], "unanswerable": true}',
    )
    first, second = read_questions(path)
    assert first == Question(
        "a", "When?", ("07:40", "7:40"), (Evidence("boats/ferry.md", "at 07:40"), Evidence("b.md")), False
    )
    assert second == Question("line-3", "Who?", (), (), True)
    assert read_kinds(path) == {"a": "number"}


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = write(
        tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r", b'{"id": "b", "question": "Q?", "answers": ["x"]}\r'
    )
    assert [q.id for q in read_questions(path)] == ["a", "b"]


def test_unicode_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, '{"id": "a", "question": "one\u2028two", "answers": ["x"]}')
    assert read_questions(path)[0].question == "one\u2028two"


def test_all_broken_lines_are_named_with_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "{oops", '["list"]', GOOD, '{"question": " ", "answers": ["x"]}')
    with pytest.raises(QuestionsError) as caught:
        read_questions(path)
    assert [number for number, _ in caught.value.problems] == [2, 3, 4, 5]
    message = str(caught.value)
    assert "--skip-broken" in message and "4 broken lines" in message
    assert 'line 4: the id "a" was used before, on line 1' in message
    assert caught.value.exit_code == 2
    assert [q.id for q in read_questions(path, skip_broken=True)] == ["a"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "Q?", "answer": "x"}', 'must be called "answers"'),
        ('{"question": "Q?", "answers": "x"}', 'even of one: "answers": ["..."]'),
        ('{"question": "Q?", "answers": {"text": ["x"], "answer_start": [3]}}', "SQuAD form"),
        ('{"question": "Q?", "answers": [""]}', "empty text"),
        ('{"question": "Q?", "answers": [null]}', "list of texts"),
        ('{"question": "Q?", "answers": ["x"], "unanswerable": true}', "remove one of the two"),
        ('{"question": "Q?", "answers": ["x"], "unanswerable": "no"}', "true or false"),
        ('{"question": 7, "answers": ["x"]}', "must be text"),
        ('{"answers": ["x"]}', '"question" is missing'),
        ('{"question": "Q?", "answers": ["x"], "evidence": ["a.md"]}', '"source"'),
        ('{"question": "Q?", "answers": ["x"], "evidence": [{"source": "a", "quote": 3}]}', '"quote" must be text'),
        ('{"id": ["x"], "question": "Q?", "answers": ["x"]}', '"id" must be text'),
        ('{"instruction": "Say", "input": "", "output": "x"}', "Alpaca"),
        ('{"conversations": [{"from": "human", "value": "Q?"}]}', "ShareGPT"),
        ('{"messages": [{"role": "user", "content": "Q?"}]}', "ShareGPT"),
        ('{"prompt": "Q?", "completion": "x"}', "training row"),
        ('{"question": "\\ud83d?", "answers": ["x"]}', "surrogate"),
        ('{"question": "Q?", "answers": [' + "[" * 100_000 + "]", "not valid JSON"),
        ("null", "this is null"),
        ('{"question": "Q?", "answers": ["x"]', "at character"),
    ],
)
def test_each_broken_line_gets_its_own_sentence(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(QuestionsError) as caught:
        read_questions(write(tmp_path, GOOD, line))
    ((number, reason),) = caught.value.problems
    assert number == 2 and words in reason, reason


def test_invalid_utf8_is_a_problem_of_its_line_only(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"id": "x", "question": "caf\xe9?", "answers": ["x"]}', GOOD)
    with pytest.raises(QuestionsError, match="line 1: not valid UTF-8"):
        read_questions(path)
    assert [q.id for q in read_questions(path, skip_broken=True)] == ["a"]


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_no_questions(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(QuestionsError, match="holds no question"):
        read_questions(write(tmp_path, content))


def test_nothing_usable_is_an_error_even_when_broken_lines_may_be_skipped(tmp_path: Path) -> None:
    with pytest.raises(QuestionsError, match="1 broken line"):
        read_questions(write(tmp_path, "{oops"), skip_broken=True)


def test_files_that_are_no_questions_file(tmp_path: Path) -> None:
    with pytest.raises(QuestionsError, match="no questions file at"):
        read_questions(tmp_path / "absent.jsonl")
    with pytest.raises(QuestionsError, match="is a folder"):
        read_questions(tmp_path)
    with pytest.raises(QuestionsError, match="one JSON object on each line"):
        read_questions(write(tmp_path, json.dumps([json.loads(GOOD)])))
    with pytest.raises(QuestionsError, match="UTF-16"):
        read_questions(write(tmp_path, GOOD.encode("utf-16")))


def test_a_long_list_of_problems_is_cut_in_the_message_but_not_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(QuestionsError) as caught:
        read_questions(write(tmp_path, *["{"] * 50))
    assert "and 40 more" in str(caught.value) and len(caught.value.problems) == 50


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: bool(t.strip()))
questions = st.builds(
    lambda question, answers, evidence: Question("", question, tuple(answers), tuple(evidence), not answers),
    texts,
    st.lists(texts, max_size=3),
    st.lists(
        st.builds(
            Evidence, texts.map(lambda t: t.replace("\\", "/")), st.text(st.characters(exclude_categories=["Cs"]))
        )
    ),
)


@given(st.lists(questions, min_size=1, max_size=4))
def test_written_questions_are_read_back(tmp_path_factory: pytest.TempPathFactory, made: list[Question]) -> None:
    path = tmp_path_factory.mktemp("q") / "q.jsonl"
    given = [Question(f"q{i}", q.question, q.answers, q.evidence, q.unanswerable) for i, q in enumerate(made)]
    write_questions(path, given, kinds={"q0": "fact"})
    assert read_questions(path) == given
    assert read_kinds(path) == {"q0": "fact"}
    assert [p.name for p in path.parent.iterdir()] == ["q.jsonl"]
