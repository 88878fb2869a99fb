"""What the command line knows: its options, its commands, and where a value may come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import ConfigError, UsageError
from rag.types import ALL_ARMS, MODE_ARMS


@dataclass(frozen=True, slots=True)
class Option:
    """One `--option`. A default of None means that the command decides; `flag` options take no value."""

    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    short: str | None = None
    flag: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command: where its function lives, what it takes, and what to say when it is stopped."""

    help: str
    function: str
    positionals: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    resume: str = "Nothing was changed."


def count(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def arms(text: str) -> tuple[str, ...]:
    """Names of arms that have a mode, separated by commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or not set(names) <= set(MODE_ARMS):
        raise ValueError(f"{text!r}: allowed are {', '.join(MODE_ARMS)}")
    return names


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas; who takes them checks them."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def folders(text: str) -> dict[str, Path]:
    """ARM=DIR pairs, separated by commas."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(arm.strip() in ALL_ARMS and folder for arm, _, folder in pairs):
        raise ValueError(f"{text!r}: give ARM=DIR, where ARM is one of {', '.join(ALL_ARMS)}")
    return {arm.strip(): Path(folder) for arm, _, folder in pairs}


RETRIEVER_RECIPES = (
    *("retriever", "retriever-both", "ra-dit-retriever", "replug-lsr", "rag-end2end"),
    *("atlas-pdist", "atlas-emdr2", "atlas-loop", "atlas-adist"),
)
"""Recipes of `tune` that train the retriever instead of the generator."""

OPTIONS: dict[str, Option] = {
    "out": Option("where to write", Path, metavar="PATH"),
    "questions": Option("questions, one JSON object a line", Path, metavar="FILE"),
    "train": Option("training questions, one JSON object a line", Path, metavar="FILE"),
    "test": Option("held-out questions to measure before and after", Path, metavar="FILE"),
    "test_out": Option("also hold out questions about other documents, into this file", Path, metavar="FILE"),
    "encoder": Option("embedding model: 'starter', a hub id or a folder", metavar="NAME"),
    "query_encoder": Option("query side made by `ragtune tune --recipe retriever`", Path, metavar="DIR"),
    "generator": Option("chat model: 'starter', a hub id, a folder, or openai:MODEL@BASE_URL", metavar="NAME"),
    "reranker": Option("cross-encoder that re-orders what was found: a hub id or a folder", metavar="NAME"),
    "seed": Option("random seed", int, 0, metavar="N"),
    "words": Option("words in a chunk (default 150, or as the index has it)", count, metavar="N"),
    "delta": Option(
        "self-rag searches where it is surer than this that it must: 0 always, 1 never (default 0.2)",
        float,
        metavar="X",
    ),
    "critic": Option("critic made by `ragtune critic`, for what the questions file does not say", Path, metavar="DIR"),
    "judge": Option("model that labels what the questions file does not say, and is compared with it", metavar="NAME"),
    "temperature": Option(
        "of the softmax over cosine scores that weighs passages (arms rag-token, rag-sequence, replug and ra-dit; "
        "default 0.1)",
        float,
        metavar="X",
    ),
    "instructions": Option(
        "instructions with answers, JSON lines, mixed in by recipes ra-dit and agent", Path, metavar="FILE"
    ),
    "k": Option("passages to find (default: 5 in a search, else as decided, else 2)", count, metavar="N", short="-k"),
    "mode": Option("how to search", default="hybrid", choices=("hybrid", "dense", "lexical")),
    "arm": Option(
        "who answers; auto: what `ragtune decide` chose, else rag", default="auto", choices=("auto", *ALL_ARMS)
    ),
    "adapter": Option("adapter folder made by `ragtune tune`", Path, metavar="DIR"),
    "decision": Option("run folder of `ragtune decide` to serve, instead of the index's own", Path, metavar="RUN"),
    "n": Option("how many questions to make", count, 400, metavar="N", short="-n"),
    "recipe": Option(
        "what to train on; preference: ratings exported from the page, agent: traces of `ragtune collect` (both as "
        "--questions)",
        default="rag",
        choices=("rag", "closed-book", "self-rag", "ra-dit", "agent", "preference", *RETRIEVER_RECIPES),
    ),  # fmt: skip,
    "method": Option("what to train", default="lora", choices=("lora", "qlora", "dora", "full")),
    "epochs": Option("passes over the rows", float, metavar="N"),
    "learning_rate": Option("peak learning rate", float, metavar="RATE"),
    "minutes": Option("stop after about this many minutes, with what there is", float, metavar="N"),
    "queries": Option("questions to be answered before the next training or re-indexing", count, metavar="N"),
    "gain": Option("smallest gain of F1 that is worth a dearer arm (default 0.02)", float, metavar="X"),
    "tuned": Option("adapter of the arm tuned, instead of training it", Path, metavar="DIR"),
    "tuned_rag": Option("adapter of the arm tuned+rag, instead of training it", Path, metavar="DIR"),
    "arms": Option("also measure these arms, separated by commas", arms, metavar="ARM,..."),
    "adapters": Option("adapters of further arms, as ARM=DIR,...", folders, metavar="ARM=DIR,..."),
    "choose_from": Option(
        "arms that the router may choose (default: all that were measured)", names, metavar="ARM,..."
    ),
    "worth": Option("F1 that one second is worth to a router (default: from the smallest gain)", float, metavar="X"),
    "uncertainty": Option("the router also looks at the model's first tokens, which costs time", flag=True),
    "eta": Option(
        "share of traces among the examples of recipe agent, the rest is general (default 0.2)", float, metavar="X"
    ),
    "demonstrate": Option("build right runs from the questions' evidence; no model is asked", flag=True),
    "compose": Option("also make N questions that take two documents or arithmetic", count, metavar="N"),
    "composed": Option("write the questions made by --compose into this file, too", Path, metavar="FILE"),
    "only_composed": Option("leave the questions of the file itself out", flag=True),
    "keep": Option("reward from which a trace is kept (default 1)", float, metavar="X"),
    "reward": Option("f1, em, or your own as module:function(answer, question)", default="f1", metavar="NAME"),
    "samples": Option("runs of each question; the best is kept (default 1)", count, metavar="N"),
    "runtime": Option(
        "react: any model, in text; native: models that call tools, by LangChain",
        default="react",
        choices=("react", "native"),
    ),
    "steps": Option("most actions of a run (default 7)", count, metavar="N"),
    "budget_end": Option(
        "when the budget is used up: say nothing, vote among sampled answers, or answer now",
        default="forced",
        choices=("empty", "consistency", "forced"),
    ),
    "shots": Option("worked traces shown, the most similar of --bank (default 0)", count, metavar="N"),
    "bank": Option("traces to choose worked ones from", Path, metavar="FILE"),
    "free": Option("let a local model write what it likes, instead of legal actions only", flag=True),
    "imported": Option("add these published traces: AgentInstruct, FireAct or glaive", Path, metavar="FILE"),
    "merge": Option("add the traces of an earlier round; of each question the best is kept", Path, metavar="FILE"),
    "start": Option("adapter to go on from (recipe preference; default: the one served)", Path, metavar="DIR"),
    "host": Option("address to listen on (default: 127.0.0.1, this machine only)", metavar="ADDRESS"),
    "auth": Option("file of names and hashed passwords; who is not in it is not let in", Path, metavar="FILE"),
    "user_header": Option("header in which a proxy in front names the user it has logged in", metavar="NAME"),
    "queue": Option("questions that may wait in line before further ones are refused", count, 64, metavar="N"),
    "port": Option("port of the page (default: the first free one from 7860)", int, metavar="N"),
    "folder": Option("where the demo keeps its work", Path, Path("demo"), metavar="DIR"),
    "rebuild": Option("embed everything again, which another encoder needs", flag=True),
    "strict": Option("fail when a file cannot be read", flag=True),
    "skip_broken": Option("use the good lines of a questions file that has broken ones", flag=True),
    "restart": Option("discard what an unfinished run left and begin again", flag=True),
    "dry_run": Option("say what would be done and how long it takes, then stop", flag=True),
    "no_chat": Option("end with the decision instead of the page", flag=True),
}
COMMON = {
    "config": Option("YAML file with options (flags and environment come first)", Path, metavar="FILE"),
    "json": Option("print the result as JSON", flag=True),
    "quiet": Option("no progress", flag=True, short="-q"),
}
_MODELS = ("encoder", "generator", "seed")
_TRAINING = ("method", "epochs", "learning_rate", "minutes", "k", "skip_broken", "restart", "dry_run")
_INDEX = "index folder made by `ragtune index`"

COMMANDS: dict[str, Command] = {
    "index": Command(
        "read files and folders into an index; again: only what changed",
        "apps.commands:index",
        {"paths": "files or folders to index"},
        ("out", "words", "encoder", "rebuild", "strict"),
        ("out",),
        "The index is as it was before this command, or complete; type the same command to go on.",
    ),
    "reencode": Command(
        "embed all documents of an index with another encoder, and swap it in when done",
        "apps.retriever_training:reencode",
        {"index": _INDEX},
        ("encoder",),
        ("encoder",),
        "The index serves as before; type the same command to go on.",
    ),
    "search": Command(
        "show what retrieval finds for a query",
        "apps.commands:search",
        {"index": _INDEX, "query": "what to look for"},
        ("k", "mode", "reranker", "encoder", "query_encoder"),
    ),
    "ask": Command(
        "answer one question, with citations",
        "apps.commands:ask",
        {"index": _INDEX, "question": "the question"},
        ("arm", "adapter", "decision", "k", "temperature", "delta", "reranker", "query_encoder", *_MODELS),
    ),
    "questions": Command(
        "make questions with answers and evidence from the documents",
        "apps.jobs:questions",
        {"index": _INDEX},
        ("out", "test_out", "n", "minutes", "restart", *_MODELS),
        ("out",),
        "What was made so far is kept beside the file; type the same command to go on.",
    ),
    "tune": Command(
        "fine-tune the generator on what retrieval finds",
        "apps.jobs:tune",
        {"index": _INDEX},
        ("questions", "out", "test", "recipe", "start", "instructions", "eta", "critic", *_TRAINING, *_MODELS),
        ("questions", "out"),
        "Checkpoints are kept; type the same command to resume from the last one.",
    ),
    "collect": Command(
        "run an agent over questions, judge its traces, keep the good ones for --recipe agent",
        "apps.collecting:collect",
        {"index": _INDEX},
        (
            "questions",
            "out",
            "test",
            "demonstrate",
            "compose",
            "composed",
            "only_composed",
            "keep",
            "reward",
            "samples",
            "runtime",
            "steps",
            "budget_end",
            "shots",
            "bank",
            "free",
            "imported",
            "merge",
            "adapter",
            "skip_broken",
            "restart",
            *_MODELS,
        ),
        ("questions", "out"),
        "Finished traces are kept beside the file; type the same command to go on.",
    ),
    "critic": Command(
        "train a judge of passages and answers, for --recipe self-rag",
        "apps.critique:critic",
        {"index": _INDEX},
        ("questions", "out", "judge", "minutes", "skip_broken", "restart", *_MODELS),
        ("questions", "out"),
        "Checkpoints are kept; type the same command to resume from the last one.",
    ),
    "evaluate": Command(
        "measure one arm on questions with known answers",
        "apps.commands:evaluate",
        {"index": _INDEX},
        (
            *("questions", "arm", "adapter", "decision", "k", "temperature", "delta", "reranker", "skip_broken"),
            *("query_encoder", *_MODELS),
        ),
        ("questions",),
    ),
    "decide": Command(
        "measure base, rag, tuned and tuned+rag, and choose",
        "apps.deciding:decide",
        {"index": _INDEX},
        (
            *("train", "questions", "out", "tuned", "tuned_rag", "arms", "adapters", "queries", "gain"),
            *("query_encoder", *_TRAINING, *_MODELS),
        ),
        ("questions", "out"),
        "Finished steps are kept in the run folder; type the same command to go on.",
    ),
    "route": Command(
        "learn from measured runs which arm answers which question",
        "apps.routing:route",
        {"runs": "run folders of `ragtune decide`; the router is kept in the first"},
        ("choose_from", "worth", "uncertainty", *_MODELS),
    ),
    "chat": Command(
        "chat with the documents in a browser",
        "apps.jobs:chat",
        {"index": _INDEX},
        ("port", "host", "auth", "user_header", "queue", "decision", "adapter", "reranker", *_MODELS),
        (),
        "The page is closed.",
    ),
    "password": Command(
        "add a person to a password file, or change a password; it is read from the terminal or from stdin",
        "apps.jobs:password",
        {"name": "the person's name"},
        ("auth",),
        ("auth",),
    ),
    "mcp": Command(
        "offer search and documents to a desktop assistant (Model Context Protocol, on stdin and stdout)",
        "apps.mcp:serve",
        {"index": _INDEX},
        ("k", "reranker", "encoder"),
        (),
        "The assistant's connection is closed.",
    ),
    "demo": Command(
        "index, tune, decide and chat with the sample handbook",
        "apps.demo:demo",
        {},
        ("folder", "port", "no_chat", "seed"),
        (),
        "Finished steps are kept; type the same command to go on.",
    ),
    "env": Command("what to paste into a bug report", "apps.env:command"),
}


def resolve(command: str, given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of the command's function: flag over environment over file over default.

    Raises ConfigError naming the origin of a value that is not allowed, UsageError for what is missing.
    """
    spec = COMMANDS[command]
    config = given.get("config") or environment.get("RAGTUNE_CONFIG")
    from_file = read_config(Path(config), command) if config else {}
    values = {name: given[name] for name in spec.positionals}
    for key in spec.options:
        option, variable = OPTIONS[key], f"RAGTUNE_{key.upper()}"
        if given.get(key) is not None and given[key] is not False:
            values[key] = given[key]
        elif not option.flag and environment.get(variable):
            values[key] = _convert(option, environment[variable], f"the environment variable {variable}")
        elif key in from_file:
            values[key] = _convert(option, from_file[key], f"'{key}' in {config}")
        else:
            values[key] = False if option.flag else option.default
    missing = [f"--{key.replace('_', '-')}" for key in spec.required if values[key] is None]
    if missing:
        raise UsageError(f"ragtune {command} needs {' and '.join(missing)}. Type `ragtune {command} --help`.")
    return values


def _convert(option: Option, value: Any, origin: str) -> Any:
    if option.flag:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{origin} is {value!r}; allowed are true and false.")
    try:
        converted = option.type(str(value))
    except ValueError:
        raise ConfigError(f"{origin} is {value!r}; what is wanted: {option.help}.") from None
    if option.choices and converted not in option.choices:
        raise ConfigError(f"{origin} is {value!r}; allowed are {', '.join(option.choices)}.")
    return converted


def read_config(path: Path, command: str) -> dict[str, Any]:
    """Options from a YAML file: keys at the top serve every command, a section named like a command only that one."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(found, dict):
        raise ConfigError(
            f"The configuration file {path} must hold 'option: value' lines, not a {type(found).__name__}."
        )
    merged: dict[str, Any] = {}
    own = found.get(command)
    section = own if isinstance(own, dict) else {}
    for key, value in [*found.items(), *section.items()]:
        name = str(key).replace("-", "_")
        if name in COMMANDS and isinstance(value, dict):
            continue
        if name not in OPTIONS:
            raise ConfigError(f"{path} has an unknown option {key!r}; known are {', '.join(sorted(OPTIONS))}.")
        merged[name] = value
    return merged
