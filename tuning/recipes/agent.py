"""How to use tools, from traces (AgentTuning, Zeng et al. 2023): one row for each kept trace, mixed with instructions.

A trace file has one JSON object a line; `messages` ({"role", "content", "loss"}) and `kept` are all that is read. Loss
stands on the assistant's turns with `loss`: thoughts and actions, never on observations, instructions or worked traces.

The paper trains on (1 − η) general and η agent examples, drawn by example, η = 0.2; agent data alone did not carry over
to other tasks. Here every trace stands once in the rows, and general ones are added until the share is reached; traces
are long, so their share of the tokens is larger, and is reported. General rows come from a file of instructions, or are
the base model's own answers to built-in ones: what it would say anyway is what it must not forget. Those are trained
towards all that it might have said (`tuning.distil`), not towards the one text alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rag.errors import ConfigError, TrainingError, UsageError
from rag.protocols import Decoding, Generator, Message
from rag.types import content_hash
from tuning.general import INSTRUCTIONS, SHORT, SHORT_SYSTEM
from tuning.rows import Kind, Row
from tuning.train import TrainConfig

ETA = 0.2
TRAIN = TrainConfig(learning_rate=1e-3, num_train_epochs=2, upper_layers=0.5, tokens_per_step=2048)
NEEDS_PASSAGES = False
OWN_TOKENS = 48
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class AgentRowsReport:
    """What the rows are made of. `token_share`: of the traces, in all tokens; `trained_share`: in those with loss.

    `general_pool` is how many different general examples there were: fewer than `general` means that they repeat.
    """

    traces: int
    skipped: int
    general: int
    general_pool: int
    eta: float
    token_share: float
    trained_share: float

    def shares(self) -> dict[str, float]:
        """What `ragtune tune` prints."""
        examples = self.traces / max(1, self.traces + self.general)
        return {
            "agent_examples": examples,
            "agent_tokens": self.token_share,
            "agent_trained_tokens": self.trained_share,
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agent_rows(
    traces: Sequence[Mapping[str, Any]],
    general: Sequence[Row],
    *,
    eta: float = ETA,
    seed: int = 0,
    count_tokens: Callable[[str], int],
) -> tuple[list[Row], AgentRowsReport]:
    """Rows of the kept traces, and general rows so that the traces are the share `eta` of all examples.

    `eta` 1: traces alone; 0: as many general rows as there are traces, and no trace (the control of the paper's curve).
    General rows are drawn without replacement, again and again when they are fewer than needed.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta is {eta}; it is the share of traces among the examples, between 0 and 1.")
    made = [row for trace in traces if trace.get("kept") and (row := trace_row(trace)) is not None]
    if not made:
        raise TrainingError(
            f"None of the {len(traces)} traces can be trained on: none is kept. Collect with a lower --keep, or make "
            "demonstrations with `ragtune collect --demonstrate`."
        )
    wanted = len(made) if eta == 0 else round(len(made) * (1 - eta) / eta)
    if wanted and not general:
        raise TrainingError("There are no general examples to mix in. Give a file with --general, or set --eta 1.")
    rng = random.Random(f"agent:{seed}")
    drawn: list[Row] = []
    while len(drawn) < wanted:
        again = len(drawn) // len(general)
        drawn += [_again(row, again) for row in rng.sample(list(general), min(len(general), wanted - len(drawn)))]
    agent = [] if eta == 0 else made
    rows = [*agent, *drawn]
    rng.shuffle(rows)
    mine, whole = (_sizes(part, count_tokens) for part in (agent, rows))
    report = AgentRowsReport(
        len(agent), len(traces) - len(made), len(drawn), len(general), eta,
        mine[0] / (whole[0] or 1), mine[1] / (whole[1] or 1),
    )  # fmt: skip
    return rows, report


def _again(row: Row, times: int) -> Row:
    return row if not times else Row(f"{row.id}.{times}", row.kind, row.prompt, row.completion, also=row.also)


def _sizes(rows: Sequence[Row], count_tokens: Callable[[str], int]) -> tuple[int, int]:
    """(all tokens, trained tokens) of the rows, without the template's own."""
    trained = sum(count_tokens(r.completion) + sum(count_tokens(r.prompt[i]["content"]) for i in r.also) for r in rows)
    return sum(count_tokens(m["content"]) for r in rows for m in r.prompt) + sum(
        count_tokens(r.completion) for r in rows
    ), trained


def trace_row(trace: Mapping[str, Any]) -> Row | None:
    """One trace as one row; None where it has no turn to learn. What follows the last turn to learn is left out."""
    messages = [dict(m) for m in trace["messages"]]
    learn = [i for i, m in enumerate(messages) if m["loss"]]
    if not learn:
        return None
    last = learn[-1]
    prompt = tuple({"role": m["role"], "content": m["content"]} for m in messages[:last])
    return Row(str(trace["id"]), "trace", prompt, messages[last]["content"], also=tuple(i for i in learn if i < last))


def read_trace_file(path: Path) -> list[dict[str, Any]]:
    """The traces of a file. UsageError naming line and reason for what cannot be read as one."""
    if not path.is_file():
        raise UsageError(f"There is no file of traces at {path}. Make one with `ragtune collect`.")
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogatepass").split("\n"), 1):
        if line.strip():
            out.append(_read_trace(line, f"{path}, line {number}"))
    return out


def _read_trace(line: str, where: str) -> dict[str, Any]:
    try:
        trace = json.loads(line)
        problems = [
            m for m in trace["messages"]
            if not (isinstance(m["role"], str) and isinstance(m["content"], str) and isinstance(m["loss"], bool))
            or (m["loss"] and m["role"] != "assistant")
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{where} is no trace ({type(error).__name__}: {error}). Collect again.") from None
    if problems:
        raise UsageError(f"{where} is no trace: loss may stand on texts of the assistant alone. Collect again.")
    return dict(trace)


# ------------------------------------------------------------------ general rows


def own_rows(generator: Generator, *, seed: int = 0) -> list[Row]:
    """The untouched model's own answers to the built-in instructions, as rows; greedy, so always the same."""
    prompts: list[list[Message]] = [[{"role": "user", "content": text}] for text in INSTRUCTIONS]
    prompts += [
        [{"role": "system", "content": SHORT_SYSTEM}, {"role": "user", "content": f"Question: {q}"}] for q in SHORT
    ]
    decoding = Decoding(OWN_TOKENS, seed=seed)
    with generator.adapter(None):
        made = generator.generate(prompts, decoding)
    return [
        general_row(prompt, said.text.strip(), "own")
        for prompt, said in zip(prompts, made, strict=True)
        if said.text.strip()
    ]


def general_row(prompt: Sequence[Message], completion: str, kind: Kind = "general") -> Row:
    """A row of general instructions."""
    return Row(f"general-{content_hash(json.dumps(list(prompt)), completion)[:12]}", kind, tuple(prompt), completion)


def read_general(path: Path) -> list[Row]:
    """General rows from a JSON array or JSON lines of {"instruction", "input"?, "output"}, {"prompt", "completion"}, or
    {"conversations": [{"from", "value"}]} / {"messages": [{"role", "content"}]} (their last turn of the assistant, and
    what stands before it). Records of other forms are an error that names them."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The general examples {path} cannot be read ({error.strerror}).") from None
    try:
        records = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(x) for x in text.split("\n") if x.strip()]
        )
    except ValueError as error:
        raise UsageError(f"{path} is neither a JSON array nor JSON lines ({error}).") from None
    rows = [_general(record, f"{path}, record {i}") for i, record in enumerate(records, 1)]
    return [row for row in rows if row is not None]


def _general(record: Any, where: str) -> Row | None:
    try:
        if "instruction" in record:
            asked = "\n\n".join(part for part in (record["instruction"], record.get("input", "")) if part)
            return _pair(asked, record["output"])
        if "prompt" in record and isinstance(record["prompt"], str):
            return _pair(record["prompt"], record["completion"])
        turns = record.get("messages") or record["conversations"]
        messages = [
            {"role": _ROLES[t.get("role") or t["from"]], "content": t["content"] if "content" in t else t["value"]}
            for t in turns
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{where} has none of the known forms (instruction and output, prompt and completion, messages, "
            f"conversations): {type(error).__name__} {error}."
        ) from None
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    return general_row(messages[:last], messages[last]["content"]) if last else None


def _pair(asked: str, said: str) -> Row | None:
    return general_row([{"role": "user", "content": asked}], said) if asked.strip() and said.strip() else None
