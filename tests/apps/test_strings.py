"""The table of strings: every key that code names is there, both languages say the same things with the same values."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from apps.feedback import REASONS
from apps.processes import KINDS
from apps.strings import CHINESE, ENGLISH, TABLE
from rag.types import ALL_ARMS

SOURCES = [
    p
    for p in sorted((Path(__file__).resolve().parents[2] / "apps").glob("*.py"))
    if p.name not in ("strings.py", "strings_work.py")
]


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


@pytest.mark.parametrize("key", TABLE)
def test_both_languages_take_the_same_values(key: str) -> None:
    english, chinese = TABLE[key]
    assert english.strip() and chinese.strip()
    for form in english.split("|"):
        assert fields(form) <= fields(chinese) | {"n"} and fields(chinese) <= fields(english)
    same = {"title", "doing-for", "metric-f1", "figure-f1"}
    assert re.search(r"[\u4e00-\u9fff]", chinese) or key in same


def test_every_key_that_code_names_is_in_the_table() -> None:
    named: set[str] = set()
    for path in SOURCES:
        named |= set(re.findall(r'\bt(?:\.html)?\(\s*"([a-z0-9_+-]*[a-z0-9])"[,)]', path.read_text(encoding="utf-8")))
    assert len(named) > 150 and named <= set(TABLE), sorted(named - set(TABLE))


def test_keys_that_are_put_together_are_there() -> None:
    wanted = [f"arm-{arm}" for arm in ALL_ARMS] + [f"job-{kind}" for kind in KINDS]
    wanted += [f"reason-{reason.replace(' ', '-')}" for reason in REASONS]
    wanted += [f"stage-{stage}" for stage in ("dense", "lexical", "fused", "rerank")]
    wanted += [f"state-{s}" for s in ("queued", "running", "done", "failed", "cancelled", "dead")]
    wanted += [f"outcome-{o}" for o in ("better", "not-separable", "too-small", "only-arm", "none")]
    wanted += [f"verdict-{v}" for v in ("queued", "working", "indexed", "unchanged", "failed")]
    assert set(wanted) <= set(TABLE), sorted(set(wanted) - set(TABLE))


def test_one_and_many() -> None:
    assert ENGLISH("documents-n", n=1) == "1 document" and ENGLISH("documents-n", n=1200) == "1,200 documents"
    assert CHINESE("documents-n", n=1) == "1 个文档"


def test_html_escapes_values_and_knows_bold_and_code() -> None:
    assert ENGLISH.html("why-measured", reason="<b>x</b>") == "Chosen by measurement. &lt;b&gt;x&lt;/b&gt;"
    assert "<b>Documents</b>" in ENGLISH.html("welcome-none-next") and "<code>ragtune" in ENGLISH.html(
        "welcome-none-next"
    )


def test_sentences_of_other_rooms_are_translated_where_known() -> None:
    assert CHINESE.of("Ready") == "就绪" and CHINESE.of("The disk is full.") == "The disk is full."
    assert ENGLISH.of("Ready") == "Ready"
