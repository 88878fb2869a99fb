"""report.html of a run folder: one file that a manager understands and an engineer can audit.

Made from `decision.json` and the rows alone, so it can be made again. Nothing in it is remote, nothing runs, and all
text from documents, questions and models is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.explain import METRICS, seconds, signed
from agents.plots import Mark, interval_plot, scatter_plot
from agents.rows import read_rows, rows_path, write_text
from agents.tables import (
    arms_table,
    costs_table,
    examples,
    forgetting_table,
    halves_table,
    interval,
    kinds_table,
    look,
    pairs_table,
    text,
)
from rag.statistics import Interval

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(folder: Path) -> Path:
    """Writes `folder`/report.html from its decision.json and rows, in one move."""
    from agents.record import load_decision

    data = load_decision(folder).data
    rows = {arm["arm"]: read_rows(rows_path(folder, arm["arm"])) for arm in data["arms"]}
    path = folder / "report.html"
    write_text(path, render_report(data, rows))
    return path


def render_report(data: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The page as a string; pure."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    metric = _metric(data)
    body = "".join(
        (
            _head(data, metric),
            _warnings(data),
            _plots(data, metric),
            arms_table(data, metric),
            pairs_table(data, metric),
            halves_table(data, metric),
            costs_table(data),
            kinds_table(data, metric),
            forgetting_table(data),
            examples(data, rows, metric),
            _method(data),
        )
    )
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{text(_headline(data))}</title><style>{style}</style></head><body><main>{body}</main></body></html>"
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _metric(data: Mapping[str, Any]) -> str:
    return METRICS.get(data["config"]["primary"], data["config"]["primary"])


def _headline(data: Mapping[str, Any]) -> str:
    chosen = data["chosen"]
    if chosen is None:
        return "No arm keeps the limits"
    heads = {
        "better": f"Use {chosen}",
        "not separable": f"No arm proved better: use {chosen}, the cheapest",
        "too small": f"The gain is too small to pay for: use {chosen}",
        "only arm": f"Only {chosen} could be chosen",
    }
    return heads.get(data["outcome"], f"Use {chosen}")


def _head(data: Mapping[str, Any], metric: str) -> str:
    arms = {arm["arm"]: arm for arm in data["arms"]}
    mine = arms.get(data["chosen"] or "")
    cards = []
    if mine:
        q = interval(mine[data["config"]["primary"]])
        cards.append((f"{q.mean:.2f}", f"{metric}, between {q.low:.2f} and {q.high:.2f}"))
        rival = _rival(data, mine["arm"])
        if rival:
            difference = _difference(data, mine["arm"], rival)
            cards.append(
                (
                    signed(difference.mean),
                    f"{metric} against {rival} ({signed(difference.low)} to {signed(difference.high)})",
                )
            )
        shared = f"{data['config']['queries']:,}"
        cards.append((seconds(mine["cost"]), f"per question, training and indexing shared by {shared}"))
        if mine["price"] is not None:
            cards.append((f"{mine['price'] * 1000:.2f}", "per 1,000 questions, in the currency of the given price"))
        else:
            cards.append((seconds(mine["seconds_p95"]["mean"]), "for the slowest one in twenty (p95)"))
    figures = "".join(f'<div class="figure"><b>{text(v)}</b><span>{text(what)}</span></div>' for v, what in cards)
    return (
        f'<p class="eyebrow">Measured decision · {text(str(data["date"])[:10])} · {data["questions"]:,} questions '
        "about "
        f'{data["documents"]:,} documents</p><h1>{text(_headline(data))}</h1><p class="lead">{text(data["reason"])}</p>'
        f'<div class="figures">{figures}</div>'
    )


def _rival(data: Mapping[str, Any], chosen: str) -> str | None:
    """The best of the other arms that could have been chosen."""
    primary = data["config"]["primary"]
    others = [a for a in data["arms"] if a["selectable"] and not a["dropped"] and a["arm"] != chosen]
    return max(others, key=lambda a: a[primary]["mean"])["arm"] if others else None


def _difference(data: Mapping[str, Any], a: str, b: str) -> Interval:
    for pair in data["pairs"]:
        d = pair["difference"]
        if (pair["a"], pair["b"]) == (a, b):
            return Interval(d["mean"], d["low"], d["high"])
        if (pair["a"], pair["b"]) == (b, a):
            return Interval(-d["mean"], -d["high"], -d["low"])
    return Interval(0.0, 0.0, 0.0)


def _warnings(data: Mapping[str, Any]) -> str:
    if not data["warnings"]:
        return ""
    items = "".join(f"<li>{text(w)}</li>" for w in data["warnings"])
    return f'<section class="warnings"><h2>Before you rely on it</h2><ul>{items}</ul></section>'


def _plots(data: Mapping[str, Any], metric: str) -> str:
    primary = data["config"]["primary"]
    marks = [Mark(a["arm"], interval(a[primary]), a["cost"], look(data, a)) for a in data["arms"] if a.get(primary)]
    front = sorted(
        (a["arm"] for a in data["arms"] if a["pareto"]), key=lambda arm: next(m.cost for m in marks if m.name == arm)
    )
    level = f"{1 - data['config']['alpha']:.0%}"
    return (
        f'<div class="two"><section><h2>{text(metric)} of each arm</h2><p class="aside">Dot: mean over the questions. '
        f"Bar: its {level} interval. Overlapping bars can still differ: the pairs below are the test.</p>"
        f'{interval_plot(marks, metric)}</section><section><h2>Quality against cost</h2><p class="aside">Up and '
        "left is "
        "better. The dashed line joins the arms that no other beats in both.</p>"
        f"{scatter_plot(marks, front, metric)}</section></div>"
    )


def _method(data: Mapping[str, Any]) -> str:
    retrieval, answer, config = data["retrieval_config"], data["answer_config"], data["config"]
    found = data.get("retrieved", {})
    recall = ", ".join(
        f"{name} {found[name]['mean']:.3f}" for name in ("recall@5", "mrr", "ndcg@10") if found.get(name)
    )
    facts = [
        ("Generator", f"{data['generator']} ({data['generator_fingerprint'][:12]})"),
        ("Encoder", data["encoder"]),
        ("Retrieval", _settings(retrieval) + (f". Found, by document: {recall}" if recall else "")),
        ("Answering", f"{_settings(answer)}, prompt version {data['prompt_version']}"),
        (
            "Rule",
            f"{_settings(config)}. Cheapest arm first; a dearer one must be better beyond chance and by the minimal "
            "gain.",
        ),
        (
            "Tests",
            f"paired, {config['resamples']:,} resamples of whole documents; exact McNemar where scores are right or "
            "wrong",
        ),
        (
            "Seconds",
            "single questions, arms in turn on each, retrieval included; training time as the adapters record it",
        ),
        (
            "Adapters",
            "; ".join(f"{a['arm']}: {', '.join(a['adapters'])}" for a in data["arms"] if a["adapters"]) or "none",
        ),
        ("Index", f"{data['index']} (generation {data['index_generation']})"),
        ("Machine", ", ".join(f"{key} {value}" for key, value in data["machine"].items())),
        ("Versions", ", ".join(f"{key} {value}" for key, value in data["versions"].items())),
        ("Finished", f"{data['date']}, after {seconds(data['seconds'])}"),
    ]
    items = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in facts)
    return f'<h2>How it was measured</h2><dl class="facts">{items}</dl>'


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
