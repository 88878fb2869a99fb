"""Chips of a self-rag answer: values by hand, text of strangers escaped, other arms untouched."""

from __future__ import annotations

from apps.chips import candidates, chips

EVIL = "<script>alert(1)</script>"
DETAILS = {
    "r": 0.75,
    "retrieved": True,
    "sequences": 5,
    "segments": [
        {"text": "420 metres", "passage": 2, "chips": {"relevant": 0.9, "supported": 0.4, "useful": None}, "score": 1.5}
    ],
    "candidates": [
        {"text": EVIL, "passage": 1, "chips": {"relevant": 0.1, "supported": None, "useful": 0.2}, "score": 0.5},
        {"text": "420 metres", "passage": 2, "chips": {"relevant": 0.9}, "score": 1.5, "kept": True},
    ],
}


def test_a_segment_has_its_three_chips_and_its_passage() -> None:
    shown = chips(DETAILS)
    assert ">relevant 90%</span>" in shown and "rt-chip-good" in shown
    assert ">supported 40%</span>" in shown and "rt-chip-weak" in shown
    assert ">useful –</span>" in shown and "rt-chip-none" in shown
    assert '<span class="rt-num">2</span>' in shown and "searched (r = 0.75), 5 sequences" in shown


def test_what_was_tried_is_escaped_and_marked() -> None:
    shown = candidates(DETAILS)
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert shown.count("rt-kept") == 1 and "2 tried" in shown


def test_other_arms_have_no_chips_and_broken_details_do_no_harm() -> None:
    assert chips({}) == "" and candidates({}) == "" and chips({"segments": "x"}) == ""
    broken = {"segments": [{"text": EVIL, "passage": EVIL, "chips": {"relevant": EVIL, "supported": 7}}], "r": EVIL}
    assert "<script" not in chips(broken) and "–" in chips(broken)
