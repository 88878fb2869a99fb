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
    priced = any(arm["price"] is not None for arm in data["arms"])
    heads = [("Arm", "wrap"), *((name, "n") for _, name in shown), ("Words", "n"), ("p50", "n"), ("p95", "n")]
    heads += [("Each question", "n"), ("Prepared in", "n"), ("Cost of a question", "n")]
    heads += [("Price of 1,000", "n")] if priced else []
    rows = []
    for arm in data["arms"]:
        tag = '<span class="tag">chosen</span>' if arm["arm"] == data["chosen"] else ""
        tag += '<span class="tag plain">Pareto</span>' if arm["pareto"] else ""
        note = arm["dropped"] or _ROLES.get(arm["arm"], "")
        cells = [
            f"<b>{text(arm['arm'])}</b>{tag}<small>{text(note)}</small>",
            *(_cell(arm.get(key)) for key, _ in shown),
        ]
        cells += [f"{arm['answer_words']['mean']:.1f}"]
        cells += [seconds(arm[key]["mean"]) for key in ("seconds_p50", "seconds_p95")]
        cells += [seconds(arm["seconds_per_question"]), seconds(arm["training_seconds"] + arm["index_seconds"])]
        cells += [seconds(arm["cost"])]
        cells += [f"{arm['price'] * 1000:.3f}"] if priced else []
        rows.append((look(data, arm), cells))
    headroom = data.get("headroom")
    below = ""
    if headroom and data["chosen"]:
        gap = interval(headroom)
        below = (
            f'<p class="aside">With the right passages instead of the retrieved ones, {text(metric)} would be '
            f"{signed(gap.mean)} ({signed(gap.low)} to {signed(gap.high)}) from {text(data['chosen'])}: that is "
            "what better "
            "retrieval can bring, and no more.</p>"
        )
    return f"<h2>All arms</h2>{_table('All arms', heads, rows)}{below}"


def pairs_table(data: Mapping[str, Any], metric: str) -> str:
    if not data["pairs"]:
        return ""
    alpha = data["config"]["alpha"]
    heads = [("Pair", ""), (f"Difference in {metric}", "n"), ("p", "n"), ("p, adjusted", "n"), ("First better", "n")]
    heads += [("Second better", "n"), ("Beyond chance", ""), ("Test", "")]
    rows = []
    for pair in data["pairs"]:
        d = interval(pair["difference"])
        proven = pair["p_adjusted"] < alpha and (d.low > 0 or d.high < 0)
        verdict = f'<strong class="yes">{text(pair["a"] if d.mean > 0 else pair["b"])}</strong>' if proven else "no"
        cells = [
            f"{text(pair['a'])} − {text(pair['b'])}",
            f"{signed(d.mean)}<small>{signed(d.low)} to {signed(d.high)}</small>",
        ]
        cells += [p_value(pair["p"]), p_value(pair["p_adjusted"]), str(pair["a_better"]), str(pair["b_better"])]
        cells += [verdict, text(pair["test"])]
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
        '<h2>Arm against arm</h2><p class="aside">Every arm answered the same questions. Adjusted: Holm\'s '
        "correction for "
        f"all {len(data['pairs'])} comparisons. First and second better count the questions on which the two "
        "differ.</p>"
        f"{_table('Arm against arm', heads, rows)}{below}"
    )


def costs_table(data: Mapping[str, Any]) -> str:
    heads = [("Questions to answer", "n"), ("Then use", ""), ("Because", "")]
    words = {
        "better": "proven better",
        "not separable": "not separable, cheapest",
        "too small": "gain too small",
        "only arm": "only arm",
    }
    rows = [
        (
            "chosen" if s["queries"] == data["config"]["queries"] else "",
            (f"{s['queries']:,}", f"<b>{text(s['chosen'] or '–')}</b>", words.get(s["outcome"], s["outcome"])),
        )
        for s in data["sensitivity"]
    ]
    points = []
    for point in data["break_even"]:
        arm, other = text(point["arm"]), text(point["other"])
        if point["queries"] is None:
            points.append(
                f"<li>{arm} costs more to prepare than {other} and more to run: it never becomes the cheaper one.</li>"
            )
        else:
            points.append(f"<li>{arm} becomes cheaper than {other} from {point['queries']:,.0f} questions on.</li>")
    return (
        '<h2>If the number of questions were another</h2><p class="aside">Training and indexing are paid once and '
        "shared by "
        "the questions until the next time. A price of the machine's hour scales all costs alike and changes no "
        "choice.</p>"
        f"{_table('Choice by number of questions', heads, rows)}<ul>{''.join(points)}</ul>"
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
                f"<dt{css}>{text(arm)}</dt><dd><bdi>{text(row['answer']['text'])}</bdi>"
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
