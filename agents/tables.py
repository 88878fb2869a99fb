"""The tables and the examples of the report, as HTML; every text in them is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from agents.explain import p_value, seconds, signed
from rag.statistics import Interval

EXAMPLES = 20
_ROLES = {
    "base": "the model alone",
    "rag": "the model with retrieved passages",
    "tuned": "tuned, without passages",
    "tuned+rag": "tuned, with retrieved passages",
    "oracle": "given the right passages: a bound, not a choice",
}


def text(value: object) -> str:
    return escape(str(value), quote=True)


def interval(value: Mapping[str, float]) -> Interval:
    return Interval(value["mean"], value["low"], value["high"])


def look(data: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    return "chosen" if arm["arm"] == data["chosen"] else "" if arm["selectable"] else "bound"


# ------------------------------------------------------------------------------------------------------------- tables


def _table(label: str, heads: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """`heads` are (name, class); a row is (class, cells as HTML). Wide tables scroll inside their frame."""
    head = "".join(f'<th class="{css}">{text(name)}</th>' for name, css in heads)
    lines = []
    for css, cells in rows:
        tds = "".join(f'<td class="{kind}">{cell}</td>' for (_, kind), cell in zip(heads, cells, strict=True))
        lines.append(f'<tr class="{css}">{tds}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{text(label)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: Mapping[str, float] | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.{digits}f}<small>{value['low']:.{digits}f} – {value['high']:.{digits}f}</small>"


def arms_table(data: Mapping[str, Any], metric: str) -> str:
    shown = [
        ("f1", "F1"),
        ("em", "Exact"),
        ("match", "Match"),
        ("abstention", "Abstains"),
        ("abstention_f1", "Abstention F1"),
        ("citation_precision", "Citation precision"),
        ("citation_recall", "Citation recall"),
    ]
    shown.sort(key=lambda column: column[0] != data["config"]["primary"])
    shown = [column for column in shown if any(arm.get(column[0]) for arm in data["arms"])]
    heads = [("Arm", "wrap"), *((name, "n") for _, name in shown), ("Words", "n")]
    rows = []
    for arm in data["arms"]:
        tag = '<span class="tag">chosen</span>' if arm["arm"] == data["chosen"] else ""
        note = arm["dropped"] or _ROLES.get(arm["arm"], "")
        cells = [
            f"<b>{text(arm['arm'])}</b>{tag}<small>{text(note)}</small>",
            *(_cell(arm.get(key)) for key, _ in shown),
        ]
        rows.append((look(data, arm), [*cells, f"{arm['answer_words']['mean']:.1f}"]))
    below = ""
    if data.get("headroom"):
        gap, names = interval(data["headroom"]), [arm["arm"] for arm in data["arms"]]
        reader = "tuned+rag" if "tuned+rag" in names else "rag"
        below = (
            f'<p class="aside">With the right passages instead of the retrieved ones {text(reader)} would change by '
            f"{signed(gap.mean)} ({signed(gap.low)} to {signed(gap.high)}) in {text(metric)}: what perfect retrieval "
            "could bring.</p>"
        )
    return f"<h2>Quality of all arms</h2>{_table('Quality of all arms', heads, rows)}{below}"


def pairs_table(data: Mapping[str, Any], metric: str) -> str:
    if not data["pairs"]:
        return ""
    alpha = data["config"]["alpha"]
    tests = sorted({pair["test"] for pair in data["pairs"]})
    heads = [("Pair", "k"), (f"Difference in {metric}", "n"), ("p", "n"), ("p, adjusted", "n"), ("First better", "n")]
    heads += [("Second better", "n"), ("Better beyond chance", "k")]
    rows = []
    for pair in data["pairs"]:
        d, (a, b), wins = interval(pair["difference"]), (pair["a"], pair["b"]), (pair["a_better"], pair["b_better"])
        if d.mean < 0:  # shown from the better side
            d, (a, b), wins = Interval(-d.mean, -d.high, -d.low), (b, a), wins[::-1]
        verdict = f'<strong class="yes">{text(a)}</strong>' if pair["p_adjusted"] < alpha and d.low > 0 else "neither"
        cells = [f"{text(a)} − {text(b)}", f"{signed(d.mean)}<small>{signed(d.low)} to {signed(d.high)}</small>"]
        cells += [p_value(pair["p"]), p_value(pair["p_adjusted"]), str(wins[0]), str(wins[1]), verdict]
        rows.append(("", cells))
    interaction = data.get("interaction")
    below = ""
    if interaction:
        i = interval(interaction)
        sense = (
            "the gains overlap"
            if i.high < 0
            else "each makes the other worth more"
            if i.low > 0
            else "they add up, as far as can be told"
        )
        below = (
            f'<p class="aside">Do the gains of tuning and of retrieval add up? (tuned+rag − rag) − (tuned − base) = '
            f"{signed(i.mean)} ({signed(i.low)} to {signed(i.high)}): {sense}.</p>"
        )
    return (
        '<h2>Arm against arm</h2><p class="aside">Every arm answered the same questions. Test: '
        f"{text(', '.join(tests))}; adjusted by Holm's correction for all {len(data['pairs'])} comparisons. First and "
        f"second better count the questions on which the two differ.</p>{_table('Arm against arm', heads, rows)}{below}"
    )


def halves_table(data: Mapping[str, Any], metric: str) -> str:
    """The two-by-two of retriever and generator, where a tuned query side was measured."""
    halves = data.get("halves")
    if not halves:
        return ""
    cells, i = halves["cells"], interval(halves["interaction"])
    heads = [("", ""), ("Retriever untouched", "n"), ("Retriever tuned", "n")]
    rows = [
        ("", ["Generator untouched", *(f"{cells[name]:.3f}" for name in ("neither", "retriever"))]),
        ("", ["Generator tuned", *(f"{cells[name]:.3f}" for name in ("generator", "both"))]),
    ]
    gains = [
        f"<li>{what}: {signed(d.mean)} ({signed(d.low)} to {signed(d.high)})</li>"
        for name, what in (("retriever", "the retriever alone"), ("generator", "the generator alone"), ("both", "both"))
        for d in [interval(halves[name])]
    ]
    return (
        f'<h2>Which half earns the gain</h2><p class="aside">{text(metric)} of {text(halves["arm"])} on the same '
        f"questions, with and without the tuned query encoder and the adapter.</p>{_table('Halves', heads, rows)}"
        f'<ul>{"".join(gains)}</ul><p class="aside">Both minus the two alone: {signed(i.mean)} ({signed(i.low)} to '
        f"{signed(i.high)}).</p>"
    )


def costs_table(data: Mapping[str, Any]) -> str:
    """What each arm costs, when which one becomes the cheaper, and the choice for other numbers of questions."""
    priced = any(arm["price"] is not None for arm in data["arms"])
    heads = [("Arm", ""), ("Typical wait (p50)", "n"), ("Long wait (p95)", "n"), ("Each question", "n")]
    heads += [("Training", "n"), ("Indexing", "n"), ("Cost of a question", "n")]
    heads += [("Price of 1,000", "n")] if priced else []
    rows: list[tuple[str, Sequence[str]]] = []
    for arm in data["arms"]:
        tag = '<span class="tag plain">unbeaten</span>' if arm["pareto"] else ""
        cells = [f"<b>{text(arm['arm'])}</b>{tag}"]
        cells += [_seconds(arm[key]) for key in ("seconds_p50", "seconds_p95")]
        spent = ("seconds_per_question", "training_seconds", "index_seconds", "cost")
        cells += [seconds(arm[key]) if arm[key] else "–" for key in spent]
        cells += [f"{arm['price'] * 1000:.3f}"] if priced else []
        rows.append((look(data, arm), cells))
    return (
        f'<h2>Cost of all arms</h2><p class="aside">Cost of a question: its own time, and its share of training and '
        f"indexing when {data['config']['queries']:,} questions share them. Unbeaten: no other arm is better and as "
        "cheap, "
        f"or cheaper and as good.</p>{_table('Cost of all arms', heads, rows)}{_sensitivity(data)}"
    )


def _seconds(value: Mapping[str, float]) -> str:
    return f"{seconds(value['mean'])}<small>{seconds(value['low'])} – {seconds(value['high'])}</small>"


def _sensitivity(data: Mapping[str, Any]) -> str:
    """The choice for other numbers of questions: a sentence where it is always the same, else a table."""
    cases, words = data["sensitivity"], {"better": "proven better", "not separable": "not separable, so the cheapest"}
    words |= {
        "too small": "gain too small, so the cheapest",
        "only arm": "the only arm",
        "none": "no arm keeps the limits",
    }
    if len({case["chosen"] for case in cases}) == 1:
        ends = f"{cases[0]['queries']:,} to {cases[-1]['queries']:,}"
        found = f"<p>From {ends} questions the choice is the same: <b>{text(cases[0]['chosen'] or 'none')}</b>.</p>"
    else:
        heads = [("Questions to answer", "k"), ("Then use", "k"), ("Because", "")]
        rows = []
        for case in cases:
            cells = (f"{case['queries']:,}", f"<b>{text(case['chosen'] or '–')}</b>", words[case["outcome"]])
            rows.append(("chosen" if case["queries"] == data["config"]["queries"] else "", cells))
        found = _table("Choice by number of questions", heads, rows)
    points = []
    for point in data["break_even"]:
        arm, other = text(point["arm"]), text(point["other"])
        if point["queries"] is None:
            said = f"{arm} costs more to prepare than {other} and more to run: it never becomes the cheaper one."
        else:
            said = f"{arm} becomes cheaper than {other} from {point['queries']:,.0f} questions on."
        points.append(f"<li>{said}</li>")
    return (
        '<h3>If the number of questions were another</h3><p class="aside">Training and indexing are paid once and '
        "shared "
        "by the questions until the next time. A price of the machine's hour scales all costs alike and changes no "
        f"choice.</p>{found}<ul>{''.join(points)}</ul>"
    )


def kinds_table(data: Mapping[str, Any], metric: str) -> str:
    if not data["kinds"]:
        return ""
    arms = [arm["arm"] for arm in data["arms"]]
    heads = [("Kind", ""), ("Questions", "n"), *((arm, "n") for arm in arms)]
    rows = [
        ("", [text(kind), f"{row['n']:,}", *(_cell(row["arms"].get(arm), 2) for arm in arms)])
        for kind, row in data["kinds"].items()
    ]
    return f"<h2>{text(metric)} by kind of question</h2>{_table('By kind of question', heads, rows)}"


def forgetting_table(data: Mapping[str, Any]) -> str:
    if not data["forgetting"]:
        return ""
    heads = [("Arm", ""), ("Before tuning", "n"), ("After", "n"), ("Change", "n"), ("Log-probability, change", "n")]
    rows = []
    for row in data["forgetting"]:
        d, logs = interval(row["difference"]), row["logprob_difference"]
        change = f"{signed(d.mean)}<small>{signed(d.low)} to {signed(d.high)}</small>"
        nats = f"{signed(logs['mean'])}<small>{signed(logs['low'])} to {signed(logs['high'])}</small>" if logs else "–"
        rows.append(("", [text(row["arm"]), _cell(row["before"], 2), _cell(row["after"], 2), change, nats]))
    count = data["forgetting"][0]["questions"]
    return (
        f'<h2>What tuning made the model forget</h2><p class="aside">{count} questions of general knowledge, asked '
        "without "
        "passages before and after tuning: share answered, and the log-probability of the right answer's tokens "
        f"(natural log; below 0: less likely than before).</p>{_table('Forgetting', heads, rows)}"
    )


# ----------------------------------------------------------------------------------------------------------- examples


def examples(data: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> str:
    arms = [arm["arm"] for arm in data["arms"] if arm["selectable"] and rows.get(arm["arm"])]
    picked = pick_examples({arm: rows[arm] for arm in arms}, data["config"]["primary"], data["chosen"])
    if not picked:
        return ""
    blocks = []
    for i in picked:
        first = rows[arms[0]][i]
        reference = " / ".join(first["answers"]) or "(not in the documents)"
        lines = [f"<dt>reference</dt><dd><bdi>{text(reference)}</bdi></dd>"]
        for arm in arms:
            row = rows[arm][i]
            score = row["metrics"].get(data["config"]["primary"]) or 0.0
            sources = ", ".join(dict.fromkeys(c["source"] for c in row["answer"]["citations"]))
            cited = f" · cites {sources}" if sources else ""
            css = ' class="chosen"' if arm == data["chosen"] else ""
            lines.append(
                f"<dt{css}>{text(arm)}</dt><dd><bdi>{text(row['answer']['text'])}</bdi> "
                f'<span class="score">{score:.2f}{text(cited)}</span></dd>'
            )
        kind = f'<span class="aside">{text(first["kind"])}</span>' if first.get("kind") else ""
        blocks.append(
            f"<details><summary><bdi>{text(first['question'])}</bdi>{kind}</summary><dl>{''.join(lines)}</dl></details>"
        )
    return (
        f'<h2>Where the arms disagree</h2><p class="aside">{len(picked)} questions: the ones on which the chosen '
        "arm loses "
        f"most to another, and the ones on which it gains most. The number is {text(metric)}.</p>{''.join(blocks)}"
    )


def pick_examples(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, chosen: str | None, limit: int = EXAMPLES
) -> list[int]:
    """Positions of up to `limit` questions on which the arms differ: half where the chosen arm loses most, half
    where it wins.
    """
    arms = list(rows)
    if len(arms) < 2:
        return []
    mine = chosen if chosen is not None and chosen in rows else arms[0]
    losses, wins = [], []
    for i in range(min(len(r) for r in rows.values())):
        scores = {arm: rows[arm][i]["metrics"].get(metric) or 0.0 for arm in arms}
        others = [score for arm, score in scores.items() if arm != mine]
        if max(others) > scores[mine]:
            losses.append((scores[mine] - max(others), i))
        elif min(others) < scores[mine]:
            wins.append((min(others) - scores[mine], i))
    losses, wins = sorted(losses), sorted(wins)
    half = max(limit // 2, limit - len(wins))
    picked = losses[:half]
    return [i for _, i in picked + wins[: limit - len(picked)]]
