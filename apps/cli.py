"""The command line. A command is a function of `apps.commands` or `apps.jobs`, imported when it is called, so that
every `--help` answers at once and without torch.

    flag  over  environment (RAGTUNE_<OPTION>)  over  --config file.yaml  over  default
    stdout: the result (with --json one JSON value)      stderr: progress and remarks
    exit codes: 0 done, 1 it failed, 2 you asked wrongly, 130 stopped by Ctrl-C
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NoReturn

from apps.console import Console
from apps.huge_pages import request_huge_pages
from apps.options import COMMANDS, COMMON, OPTIONS, Option, resolve
from rag.errors import RagtuneError, UsageError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one sentence, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Type `{self.prog} --help` for what is allowed.")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, from the tables above."""
    parser = Parser(
        prog="ragtune",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Answer questions from your own documents with retrieval, a fine-tuned model, or both,\n"
        "and measure on your own questions which of them is worth it.",
        epilog=textwrap.dedent("""\
            every option with a value can also be set in the environment (RAGTUNE_GENERATOR=...) or in a YAML file
            (--config); a flag comes first, then the environment, then the file. Try: ragtune demo"""),
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=_sentence(command.help), allow_abbrev=False)
        for positional, text in command.positionals.items():
            several = {"nargs": "+"} if positional in ("paths", "runs") else {}
            sub.add_argument(
                positional, help=text, type=Path if positional in ("index", "paths", "runs") else str, **several  # type: ignore[arg-type]
            )  # fmt: skip
        for key in command.options:
            _add(sub, key, OPTIONS[key], required=key in command.required)
        for key, option in COMMON.items():
            _add(sub, key, option)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _add(parser: argparse.ArgumentParser, key: str, option: Option, *, required: bool = False) -> None:
    names = [name for name in (option.short, "--" + key.replace("_", "-")) if name]
    if key in ("k", "n"):  # one letter is the name the field knows
        names = [f"-{key}"]
    if option.flag:
        parser.add_argument(*names, dest=key, action="store_true", help=option.help)
        return
    text = option.help + (" (required)" if required else f" (default {option.default})" if option.default else "")
    # The default is filled in after the environment and the file have been asked: None is "not given here".
    parser.add_argument(
        *names, dest=key, type=option.type, choices=option.choices, default=None, metavar=option.metavar, help=text
    )


def run(argv: Sequence[str], console: Console | None = None) -> int:
    """One command, without a safety net: RagtuneError and KeyboardInterrupt leave this function."""
    parser = build_parser()
    given = vars(parser.parse_args(list(argv)))
    if given["version"]:
        from apps.env import version

        print(f"ragtune {version('ragtune') or 'from a checkout'}")
        return 0
    if given["command"] is None:
        parser.print_help()
        return 2
    command = given["command"]
    values = resolve(command, given, os.environ)
    console = console or Console(as_json=given["json"], quiet=given["quiet"])
    module, _, name = COMMANDS[command].function.partition(":")
    with warnings.catch_warnings(), redirect_stdout(console.err):  # stdout carries the result alone
        _hush()
        function = getattr(importlib.import_module(module), name)
        return int(function(**values, console=console) or 0)


def _hush() -> None:
    """Libraries' own progress bars and notices would stand between ours; RAGTUNE_DEBUG=1 brings them back."""
    if os.environ.get("RAGTUNE_DEBUG"):
        return
    warnings.simplefilter("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("GRADIO_ANALYTICS_ENABLED", "False"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


def _complain(sentence: str) -> None:
    print(f"ragtune: {sentence.strip()}", file=sys.stderr, flush=True)


def main(
    argv: Sequence[str] | None = None,
    *,
    console: Console | None = None,
    complain: Callable[[str], None] = _complain,
) -> int:
    """The whole of `ragtune`: every outcome is an exit code and, when it failed, one sentence to `complain`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("RAGTUNE_DEBUG"))
    try:
        return run(arguments, console)
    except KeyboardInterrupt:
        command = next((a for a in arguments if a in COMMANDS), None)
        complain("stopped. " + (COMMANDS[command].resume if command else ""))
        return 130
    except BrokenPipeError:  # `ragtune search ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RagtuneError as error:
        if debug:
            raise
        complain(str(error))
        return error.exit_code
    except MemoryError:
        complain("out of memory. Close other programs, take a smaller model, or a smaller -k.")
        return 1
    except OSError as error:
        if debug:
            raise
        place = f" ({error.filename})" if error.filename else ""
        complain(f"the system refused: {error.strerror or error}{place}. What was committed before is intact.")
        return 1
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())[:500]
        complain(f"unexpected {type(error).__name__}: {text}. RAGTUNE_DEBUG=1 shows where; please report it.")
        return 1


def entry() -> int:
    """What the command `ragtune` and `python -m apps.cli` call: `main` in a process of its own."""
    request_huge_pages()
    return main()


if __name__ == "__main__":
    raise SystemExit(entry())
