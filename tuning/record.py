"""What an adapter folder says about itself: `ragtune.json` for programs, `README.md` for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rag.errors import AdapterMismatch

RECORD = "ragtune.json"
FORMAT = 1
_LIBRARIES = ("ragtune", "torch", "transformers", "peft", "trl", "bitsandbytes")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape an adapter; those that are not installed are left out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `ragtune.json` and the model card of a trained folder; both are replaced whole."""
    full = {"format": FORMAT, "before": None, "after": None, **record}
    _replace(folder / RECORD, json.dumps(full, indent=1, ensure_ascii=False) + "\n")
    _replace(folder / "README.md", model_card(full))


def read_record(folder: Path | str) -> dict[str, Any]:
    """The record of a trained folder. Raises AdapterMismatch when there is none, or a newer format than this one."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise AdapterMismatch(f"{folder} holds no {RECORD}: it was not made by `ragtune tune`, or it is incomplete.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = int(record["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterMismatch(f"{path} is damaged ({error}): train the adapter again.") from error
    if found > FORMAT:
        raise AdapterMismatch(f"{path} has format {found}; this version reads up to {FORMAT}: upgrade ragtune.")
    return record


def amend_record(folder: Path, **changes: Any) -> dict[str, Any]:
    """Add to a record what became known later (`before`, `after`: metric → value), and renew the card."""
    record = {**read_record(folder), **changes}
    write_record(folder, record)
    return record


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def model_card(record: Mapping[str, Any]) -> str:
    """The model card: front matter as the Hub reads it, then what a person needs to know before using the weights."""
    config = record.get("config", {})
    method = str(record.get("method", "lora"))
    kind = "full fine-tune" if method == "full" else f"{method.upper()} adapter"
    losses = record.get("loss") or []
    front = {
        "base_model": record.get("base"),
        "library_name": "transformers" if method == "full" else "peft",
        "tags": ["ragtune", "rag", method],
        "pipeline_tag": "text-generation",
    }
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {kind} of {record.get('base')}, recipe {record.get('recipe')}", ""]
    lines += [
        f"Trained by ragtune on {record.get('rows', 0)} rows ({record.get('tokens', 0):,} tokens) in "
        f"{record.get('seconds', 0.0):.0f} s"
        + (f"; the loss per answer token went from {losses[0]:.2f} to {losses[-1]:.2f}." if losses else "."),
        "",
        "## Intended use",
        "",
        _USE.get(str(record.get("recipe")), _USE["rag"]),
        f"It belongs to this base model and tokenizer alone (fingerprint `{record.get('base_fingerprint')}`) and to "
        f"prompt layout {record.get('prompt_version')}; ragtune refuses it elsewhere.",
        "",
        "## Data",
        "",
        f"Data hash `{record.get('data_hash')}`, seed {config.get('seed')}. {_data_sentence(record)} The weights can "
        "repeat passages of the training documents: share them only with people who may read those documents.",
        "",
    ]
    lines += _metrics(record)
    lines += ["## Training", "", "| setting | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in config.items()]
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()) + ".", ""]
    lines += [
        "## Licence",
        "",
        "The licence of the base model applies to these weights, and rights in the training documents stay with their "
        "owners. State both before you publish the folder.",
        "",
    ]
    return "\n".join(lines)


_USE = {
    "rag": "Answering questions from passages that retrieval found, with the retriever and prompt it was trained with.",
    "closed-book": "Answering questions of its domain without documents. It cannot cite and may state wrong facts.",
    "self-rag": "Answering questions from one passage at a time, with tokens that judge passage and answer (their "
    "tokenizer is in this folder). Its judgements are learnt from the questions it was trained on, and can be wrong.",
    "critic": "Judging passages and answers for the recipe self-rag. It does not answer questions.",
}


def _data_sentence(record: Mapping[str, Any]) -> str:
    counts = record.get("counts") or {}
    sources = record.get("sources")
    parts = [f"{counts[key]} {words}" for key, words in _COUNTS.items() if counts.get(key)]
    told = "Rows: " + ", ".join(parts) + "." if parts else ""
    return told + (f" They show passages of {sources} documents." if sources else "")


_COUNTS = {
    "answer": "with an answer",
    "abstain": "that teach to abstain",
    "gold_inserted": "with the gold passage put in",
}


def _metrics(record: Mapping[str, Any]) -> list[str]:
    before, after = record.get("before") or {}, record.get("after") or {}
    names = [n for n in dict.fromkeys((*before, *after)) if _number(before.get(n)) or _number(after.get(n))]
    if not names:
        return ["## Evaluation", "", "Not evaluated yet: run `ragtune evaluate` or `ragtune decide`.", ""]
    rows = [f"| {n} | {_show(before.get(n))} | {_show(after.get(n))} |" for n in names]
    return [
        "## Evaluation",
        "",
        "On held-out questions, before and after tuning.",
        "",
        "| metric | before | after |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Mapping) and "mean" in value)


def _show(value: Any) -> str:
    if isinstance(value, Mapping) and "mean" in value:
        return f"{value['mean']:.3f} ({value.get('low', float('nan')):.3f} to {value.get('high', float('nan')):.3f})"
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
