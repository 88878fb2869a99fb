"""One file for each recipe: how its rows are built, and the settings it trains well with."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from rag.errors import ConfigError

if TYPE_CHECKING:
    from tuning.retriever_config import RetrieverConfig

NAMES = ("rag", "closed-book", "self-rag", "ra-dit", "agent")

RETRIEVER = {
    "retriever": "retriever:TRAIN",
    "retriever-both": "retriever_both:TRAIN",
    "ra-dit-retriever": "ra_dit_retriever:TRAIN",
    "replug-lsr": "replug_lsr:TRAIN",
    "atlas-pdist": "atlas:PDIST",
    "atlas-emdr2": "atlas:EMDR2",
    "atlas-loop": "atlas:LOOP",
    "atlas-adist": "atlas:ADIST",
    "rag-end2end": "rag_end2end:TRAIN",
}
"""Recipes that train the retriever, and where their settings stand."""


def retriever_recipe(name: str) -> RetrieverConfig:
    """The settings of a recipe that trains the retriever. ConfigError for an unknown name."""
    if name not in RETRIEVER:
        raise ConfigError(f"There is no retriever recipe {name!r}; allowed: {', '.join(RETRIEVER)}.")
    from importlib import import_module

    module, _, setting = RETRIEVER[name].partition(":")
    found: RetrieverConfig = getattr(import_module(f"tuning.recipes.{module}"), setting)
    return found


def recipe(name: str) -> ModuleType:
    """The module of a recipe: `ROWS`, `TRAIN` (defaults) and `rows(...)`. ConfigError for an unknown name."""
    if name not in NAMES:
        raise ConfigError(f"There is no recipe {name!r}; allowed: {', '.join(NAMES)}.")
    from importlib import import_module

    return import_module(f"tuning.recipes.{name.replace('-', '_')}")
