"""Imports of the page, made quicker: what is left out, and that all is as before afterwards."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys

import pytest

from apps.imports import quick_imports
from rag.hardware import uncollected


def test_gradio_comes_without_its_own_tools_and_stubs_and_nothing_stays_changed() -> None:
    """In a process of its own: here Gradio is imported already."""
    code = """
import ast, inspect, sys
from apps.imports import quick_imports
find, parse, parsed = inspect.getfile, ast.parse, []
ast.parse = lambda code, *more, **named: (parsed.append(str(code)), parse(code, *more, **named))[1]
with quick_imports():
    import gradio
assert not [code for code in parsed if "class Textbox" in code], "Gradio parsed its own source"
assert not [name for name in sys.modules if name.partition(".")[0] == "mcp"], "mcp was imported"
assert inspect.getfile is find
assert inspect.getfile(gradio.Textbox).endswith("textbox.py")
import mcp
assert gradio.Textbox(label="a").label == "a"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_failed_import_leaves_all_as_it_was() -> None:
    find, swept, mcp = inspect.getfile, gc.isenabled(), sys.modules.get("mcp", "none")
    with pytest.raises(ModuleNotFoundError), quick_imports():
        assert not gc.isenabled()
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert (inspect.getfile, gc.isenabled(), sys.modules.get("mcp", "none")) == (find, swept, mcp)


def test_garbage_is_collected_again_after_a_load_that_failed() -> None:
    from rag.errors import UnknownModel
    from rag.models import load_generator

    assert gc.isenabled()
    with pytest.raises(UnknownModel):
        load_generator("no/such-model-anywhere")
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected(), uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled(), "as it was before"
    finally:
        gc.enable()
