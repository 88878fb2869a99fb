"""Gradio imported quicker, so that the page stands sooner; where it is imported already, nothing changes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from rag.hardware import uncollected

_MISSING: Any = object()


@contextmanager
def quick_imports() -> Iterator[None]:
    """What nobody asked for is left out meanwhile; all is as before afterwards, when an import fails too.

    Garbage is not collected. Gradio does not write the stubs of its components anew, which its package has anyway: for
    each it would parse its own source, and it leaves out one whose file it cannot find. And it does not look for `mcp`,
    which it imports only to offer its own tools.
    """
    find = inspect.getfile
    mcp = sys.modules.get("mcp", _MISSING)

    def getfile(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("the stub of this component is not wanted")
        return find(thing)

    inspect.getfile = getfile  # type: ignore[assignment]  # any argument
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None: "cannot be imported"
    if mcp is _MISSING and "gradio" not in sys.modules:
        modules["mcp"] = None
    try:
        with uncollected():
            yield
    finally:
        inspect.getfile = find
        if mcp is _MISSING and modules.get("mcp", _MISSING) is None:
            del modules["mcp"]
