"""Metrics against the worked examples of the published scripts, ir_measures, and their own conventions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rag import metrics
from rag.errors import UsageError
from rag.evaluate import Evaluation, evaluate, evaluate_retrieval, plain_text, retrieval_scores
from rag.types import Answer, Chunk, Citation, Evidence, Passage, Question


def passage(source: str, text: str, rank: int = 1, score: float = 1.0, start: int = 0) -> Passage:
    return Passage(Chunk(f"{source}:{start}", source, source, start, start + len(text), text), rank, score)


def said(text: str, **more: object) -> Answer:
    return Answer("Q?", text, "rag", **{"seconds": 1.0, "tokens_in": 10, "tokens_out": 2, **more})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S. Army!", "us army"),
        ("twenty-one", "twentyone"),
        ("An apple a day, the end", "apple day end"),
        ("Theatre", "theatre"),
        ("£5 – “quoted”", "£5 – “quoted”"),  # punctuation beyond ASCII stays
        ("", ""),
    ],
)
def test_squad_normalisation(text: str, expected: str) -> None:
    assert metrics.normalise(text) == expected


def test_f1_worked_examples() -> None:
    assert metrics.f1("the cat sat", ["cat sat down"]) == pytest.approx(0.8)
    assert metrics.f1("a b b", ["b b b c"]) == pytest.approx(2 * 2 / (2 + 4))  # "a" is an article: {b, b} against four
    assert metrics.f1("x", ["y", "x z", "x"]) == 1.0
    assert metrics.f1("", [""]) == 1.0 and metrics.f1("the", [""]) == 1.0
    assert metrics.f1("x", [""]) == 0.0 and metrics.f1("", ["x"]) == 0.0
    assert metrics.f1("x", []) == 0.0


def test_exact_match() -> None:
    assert metrics.exact_match("The U.S. Army", ["army", "US army!"]) == 1.0
    assert metrics.exact_match("US armies", ["US army"]) == 0.0


def test_hotpot_rule() -> None:
    assert metrics.hotpot_f1("yes", ["yes it is"]) == 0.0
    assert metrics.hotpot_f1("yes it is", ["yes"]) == 0.0
    assert metrics.hotpot_f1("Yes.", ["yes"]) == 1.0
    assert metrics.hotpot_f1("the cat sat", ["cat sat down"]) == pytest.approx(0.8)
    assert metrics.f1("yes", ["yes it is"]) == pytest.approx(0.5)


def test_match_is_normalised_containment() -> None:
    assert metrics.match("It left at 7:40, from pier 4.", ["pier 4"]) == 1.0
    assert metrics.match("we know", ["no"]) == 1.0  # the known weakness, as published
    assert metrics.match("pier 5", ["pier 4"]) == 0.0
    assert metrics.match("anything", ["the"]) == 0.0  # a reference of which nothing is left is in no text


def test_chinese_japanese_and_korean_count_by_character() -> None:
    assert metrics.answer_tokens("北京 2008年 Olympic Games。") == ["北", "京", "2008", "年", "olympic", "games"]
    assert metrics.f1("北京市", ["北京"]) == pytest.approx(0.8)
    assert metrics.exact_match("《红楼梦》。", ["红楼梦"]) == 1.0
    assert metrics.f1("とうきょう", ["きょうと"]) == pytest.approx(2 * 4 / 9)
    assert metrics.f1("서울 시", ["서울시"]) == 1.0
    assert metrics.match("他住在 北京。", ["住在北京"]) == 1.0


# -------------------------------------------------------------------------------------------------------- retrieval


def test_retrieval_worked_example() -> None:
    run, judged = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, {"b": 2, "d": 1, "e": 1}
    found = metrics.retrieval_metrics(run, judged, ks=(4,), ndcg_at=4)
    assert metrics.dcg([0, 2, 0, 1]) == pytest.approx(1.6925, abs=5e-5)
    assert metrics.dcg([2, 1, 1]) == pytest.approx(3.1309, abs=5e-5)
    assert found["ndcg@4"] == pytest.approx(0.5406, abs=5e-5)
    assert found["mrr"] == 0.5 and found["hit@4"] == 1.0 and found["p@4"] == 0.5
    assert found["recall@4"] == pytest.approx(2 / 3)
    assert found["ap"] == pytest.approx(1 / 3)


def test_ties_go_to_the_greater_id_and_k_stays_k() -> None:
    assert metrics.trec_order({"a": 1.0, "b": 1.0, "c": 2.0}) == ["c", "b", "a"]
    found = metrics.retrieval_metrics({"b": 1.0, "a": 1.0}, {"a": 1}, ks=(1, 5))
    assert (found["hit@1"], found["mrr"], found["p@5"]) == (0.0, 0.5, 0.2)


def test_nothing_relevant_or_nothing_found_is_zero() -> None:
    assert set(metrics.retrieval_metrics({"a": 1.0}, {}).values()) == {0.0}
    assert set(metrics.retrieval_metrics({}, {"a": 1}).values()) == {0.0}


def test_agrees_with_ir_measures_on_random_runs_with_ties() -> None:
    ir = pytest.importorskip("ir_measures")
    rng = random.Random(11)
    names = {
        "recall@1": ir.R @ 1, "recall@5": ir.R @ 5, "hit@5": ir.Success @ 5, "p@10": ir.P @ 10, "mrr": ir.RR,
        "ndcg@10": ir.nDCG @ 10, "ap": ir.AP,
    }  # fmt: skip
    runs, qrels = {}, {}
    for q in range(60):
        docs = [f"d{i}" for i in range(30)]
        runs[f"q{q}"] = {d: float(rng.randint(0, 8)) for d in rng.sample(docs, rng.randint(1, 25))}
        qrels[f"q{q}"] = {d: rng.randint(0, 3) for d in rng.sample(docs, 6)}
    theirs = {(m.query_id, m.measure): m.value for m in ir.iter_calc(list(names.values()), qrels, runs)}
    for query in runs:
        ours = metrics.retrieval_metrics(runs[query], qrels[query])
        for name, measure in names.items():
            assert ours[name] == pytest.approx(theirs[query, measure]), (query, name)


def test_chunks_of_a_document_count_once_with_their_best_score_before_the_cut() -> None:
    found = [
        passage("a", "x", 1, 0.9),
        passage("a", "y", 2, 0.8, 5),
        passage("a", "z", 3, 0.7, 9),
        passage("b", "x", 4, 0.6),
    ]
    question = Question("q", "Q?", ("x",), (Evidence("b"), Evidence("b", "another quote")))
    scores = retrieval_scores(found, question)
    assert scores["mrr"] == 0.5 and scores["recall@5"] == 1.0 and scores["hit@1"] == 0.0
    assert set(retrieval_scores(found, Question("q", "Q?", ("x",))).values()) == {None}


# -------------------------------------------------------------------------------------------------------- citations


def word_entails(premise: str, hypothesis: str) -> bool:
    """Every letter that the hypothesis claims stands in the premise: entailment without a model."""
    return set(hypothesis.replace(".", "").split()) <= set(premise.split())


def test_citation_recall_and_precision_follow_alce() -> None:
    passages = {1: "A B", 2: "C", 3: "X"}
    found = metrics.attribution("A B [1]. A C [1][2]. C D [2]. A [1][3]. B.", passages, entails=word_entails)
    # supported: "A B" by 1; "A C" by 1+2; not "C D"; "A" by 1 (3 is irrelevant); "B" cites nothing
    assert found.recall == pytest.approx(3 / 5)
    # counting: 1 of 1, 2 of 2, 0 of 1, 1 of 2
    assert (found.precision, found.citations) == (pytest.approx(4 / 6), 6)


def test_redundant_citations_are_precise_when_each_supports_alone() -> None:
    assert metrics.attribution("A [1, 2].", {1: "A", 2: "A B"}, entails=word_entails).precision == 1.0


def test_invented_citations_cost_precision() -> None:
    assert metrics.attribution("A [1][9].", {1: "A"}, entails=word_entails).precision == 0.5
    assert metrics.attribution("A [1].", {1: "A"}, entails=word_entails, unknown=1).precision == 0.5
    assert metrics.attribution("A [0].", {1: "A"}, entails=word_entails).recall == 0.0


def test_marker_after_the_full_stop_belongs_to_the_sentence_before() -> None:
    found = metrics.attribution("A. [1] B. [2]", {1: "A", 2: "B"}, entails=word_entails)
    assert (found.precision, found.recall, found.sentences) == (1.0, 1.0, 2)


def test_without_text_or_citations_attribution_is_zero() -> None:
    assert metrics.attribution("", {1: "A"}) == metrics.Attribution(0.0, 0.0, 0, 0)
    assert metrics.attribution("A thing.", {1: "A thing"}).recall == 0.0


def test_lexical_support() -> None:
    premise = "The ferry to Korr leaves at 07:40 from pier 4. A return ticket costs 18 crowns."
    assert metrics.lexical_support(premise, "07:40")
    assert metrics.lexical_support(premise, "A return ticket to Korr costs 18 crowns.")
    assert not metrics.lexical_support(premise, "A return ticket to Korr costs 19 crowns.")
    assert not metrics.lexical_support(premise, "The museum opens in winter.")
    assert not metrics.lexical_support(premise, "")
    assert metrics.lexical_support("渡船每天七点四十分从四号码头出发。", "渡船从四号码头出发")
    assert not metrics.lexical_support("渡船每天七点四十分从四号码头出发。", "博物馆冬天开放")


# --------------------------------------------------------------------------------------------------------- evaluate

QUESTIONS = [
    Question("q1", "When?", ("07:40",), (Evidence("ferry.md", "leaves at 07:40"),)),
    Question("q2", "How much?", ("18 crowns",), (Evidence("ferry.md", "costs 18 crowns"),)),
    Question("q3", "Who?", (), (), unanswerable=True),
    Question("q4", "Where?", (), (), unanswerable=True),
]
FERRY = passage("ferry.md", "The ferry leaves at 07:40.", 1, 0.9)
OTHER = passage("zoo.md", "The zoo is closed.", 2, 0.5)


def cites(number: int, p: Passage) -> Citation:
    return Citation(number, p.chunk.id, p.chunk.source, None, 0, 5, p.chunk.text[:5], 1.0)


def mixed() -> list[Answer | None]:
    return [
        said("07:40 [1]", passages=(FERRY, OTHER), citations=(cites(1, FERRY),)),
        said("Not in the documents.", abstained=True, passages=(FERRY, OTHER)),
        said("Not in the documents.", abstained=True, passages=(OTHER,)),
        said("the zoo [2]", passages=(FERRY, OTHER), citations=(cites(2, OTHER),)),
    ]


def rows(evaluation: Evaluation, metric: str) -> list[float | None]:
    return [item.metrics[metric] for item in evaluation.items]


def test_quality_and_abstention() -> None:
    found = evaluate(mixed(), QUESTIONS, resamples=500)
    assert rows(found, "f1") == rows(found, "em") == rows(found, "match") == [1.0, 0.0, 1.0, 0.0]
    summary = found.summary
    assert summary["f1"].mean == 0.5
    assert summary["abstention_precision"].mean == 0.5  # one of two abstentions was right
    assert summary["abstention_recall"].mean == 0.5
    assert summary["abstention_f1"].mean == 0.5
    assert summary["answered_f1"].mean == 0.5
    assert summary["abstained"].mean == 0.5
    assert all(i.low <= i.mean <= i.high for i in summary.values())
    assert "unanswerable" not in summary


def test_citations_and_what_the_model_was_shown() -> None:
    found = evaluate(mixed(), QUESTIONS, resamples=200)
    assert rows(found, "citation_precision") == rows(found, "citation_recall") == [1.0, 0.0, None, None]
    assert rows(found, "evidence_precision") == rows(found, "evidence_recall") == [1.0, 0.0, None, None]
    assert rows(found, "answer_in_passages") == [1.0, 0.0, None, None]
    assert rows(found, "evidence_in_passages") == [1.0, 0.0, None, None]
    assert rows(found, "mrr") == [1.0, 1.0, None, None]
    assert found.summary["recall@5"].mean == 1.0


def test_a_quote_over_two_chunks_counts_as_shown() -> None:
    halves = (passage("f", "costs 18", 1, 0.4, start=0), passage("f", "crowns a year", 2, 0.9, start=9))
    question = Question("q", "Q?", ("18 crowns",), (Evidence("f", "costs 18 crowns"),))
    found = evaluate([said("18 crowns", passages=halves[::-1])], [question], resamples=10)
    assert rows(found, "evidence_in_passages") == [1.0]


def test_invented_markers_cost_evidence_precision() -> None:
    answer = said("07:40 [1]", passages=(FERRY,), citations=(cites(1, FERRY),), unknown_markers=(7,))
    found = evaluate([answer], QUESTIONS[:1], resamples=10)
    assert rows(found, "evidence_precision") == rows(found, "citation_precision") == [0.5]


def test_a_citation_without_a_marker_covers_the_whole_answer() -> None:
    answer = said("07:40", passages=(FERRY,), citations=(cites(1, FERRY),))
    assert rows(evaluate([answer], QUESTIONS[:1], resamples=10), "citation_recall") == [1.0]


def test_missing_answers_score_zero_and_are_no_abstentions() -> None:
    for answers in ([mixed()[0], None, None, None], {"q1": mixed()[0]}):
        found = evaluate(answers, QUESTIONS, resamples=100)  # type: ignore[arg-type]
        assert rows(found, "f1") == [1.0, 0.0, 0.0, 0.0]
        assert rows(found, "abstained") == [0.0] * 4
        assert found.summary["f1"].mean == 0.25
        assert rows(found, "seconds")[1:] == [None] * 3


def test_an_arm_without_passages_has_no_citation_or_retrieval_figures() -> None:
    found = evaluate([said("07:40")] * 4, QUESTIONS, resamples=50)
    assert "citation_recall" not in found.summary and "mrr" not in found.summary


def test_rankings_are_judged_where_given() -> None:
    found = evaluate(mixed(), QUESTIONS, rankings=[[OTHER, FERRY]] * 4, resamples=50)
    assert rows(found, "mrr")[:2] == [1.0, 1.0]  # FERRY has the higher score, whatever its place in the list
    assert evaluate_retrieval([[OTHER]] * 4, QUESTIONS, resamples=50).summary["recall@5"].mean == 0.0


def test_markers_are_not_compared_with_the_references() -> None:
    assert plain_text(said("18 crowns [1][2]", passages=(FERRY,))) == "18 crowns"
    assert plain_text(said("array[1]")) == "array[1]"


def test_questions_about_one_document_widen_the_interval() -> None:
    spread = [Question(f"q{i}", "Q?", ("x",), (Evidence(f"d{i}"),)) for i in range(100)]
    shared = [replace(q, evidence=(Evidence(f"d{i // 10}"),)) for i, q in enumerate(spread)]
    answers = [said("x" if i // 10 % 2 else "y") for i in range(100)]
    narrow, wide = (evaluate(answers, q, resamples=2000).summary["em"] for q in (spread, shared))
    assert narrow.low == pytest.approx(0.404, abs=0.001)  # Wilson for 50 of 100
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_no_success_is_not_certainty() -> None:
    found = evaluate([said("no")] * 20, [Question(f"q{i}", "Q?", ("x",), (Evidence("one"),)) for i in range(20)])
    assert found.summary["em"].mean == 0.0 and found.summary["em"].high > 0.7  # all about one document: n = 1


def test_kinds_and_json_shape() -> None:
    found = evaluate(mixed(), QUESTIONS, kinds={"q1": "fact", "q2": "fact", "q3": "none"}, resamples=50)
    parts = found.by_kind(resamples=50)
    assert {k: len(v.items) for k, v in parts.items()} == {"fact": 2, "none": 1}
    row = found.to_dict()
    assert row["n"] == 4 and set(row["f1"]) == {"mean", "low", "high"}
    assert {"em", "match", "recall@5", "mrr", "ndcg@10", "seconds_p50", "seconds_p95", "tokens_in"} <= set(row)


def test_retrieval_only_questions_have_no_answer_scores() -> None:
    found = evaluate([said("x", passages=(FERRY,))], [Question("q", "Q?", (), (Evidence("ferry.md"),))], resamples=20)
    assert rows(found, "f1") == [None] and "f1" not in found.summary and found.summary["mrr"].mean == 1.0


def test_hotpot_rule_can_be_asked_for() -> None:
    question = [Question("q", "Q?", ("yes it is",))]
    assert rows(evaluate([said("yes")], question, resamples=9, f1_rule="hotpot"), "f1") == [0.0]


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UsageError, match="3 answers for 4 questions"):
        evaluate(mixed()[:3], QUESTIONS)
    with pytest.raises(UsageError, match="more than once: q1"):
        evaluate(mixed()[:2], [QUESTIONS[0]] * 2)
    with pytest.raises(UsageError, match="1 rankings for 4"):
        evaluate(mixed(), QUESTIONS, rankings=[[]])
    assert evaluate([], []).summary == {}
