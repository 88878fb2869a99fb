"""One file for each recipe: how its rows are built, and the settings it trains well with."""

from __future__ import annotations

from types import ModuleType

from rag.errors import ConfigError

NAMES = ("rag", "closed-book", "self-rag", "ra-dit")


def recipe(name: str) -> ModuleType:
    """The module of a recipe: `ROWS`, `TRAIN` (defaults) and `rows(...)`. ConfigError for an unknown name."""
    if name not in NAMES:
        raise ConfigError(f"There is no recipe {name!r}; allowed: {', '.join(NAMES)}.")
    from importlib import import_module

    return import_module(f"tuning.recipes.{name.replace('-', '_')}")
