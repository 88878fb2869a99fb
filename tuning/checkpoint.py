"""Checkpoints of a training run: safetensors and JSON, complete or absent, never pickled.

A checkpoint is written aside, flushed to disk and renamed, so a folder named `checkpoint-N` is whole at any kill point.
Its state holds the digest of its tensors: a damaged one is passed over for the one before. What a run leaves in the end
is published in the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError

if TYPE_CHECKING:
    import torch

KEEP = 2
_NAME = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its folder, its step, and its state (JSON values)."""

    folder: Path
    step: int
    state: Mapping[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the checkpoint, on the CPU."""
        from safetensors.torch import load_file

        return load_file(str(self.folder / "tensors.safetensors"))


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    also: Callable[[Path], None] = lambda _: None,
) -> Checkpoint:
    """Write `run/checkpoint-<step>` and remove all but the newest two.

    `also(folder)` writes what else belongs to it, before it gets its name.
    """
    from safetensors.torch import save_file

    run.mkdir(parents=True, exist_ok=True)
    final = run / f"checkpoint-{step}"
    aside = run / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, str(aside / "tensors.safetensors"))
    full = {**state, "step": step, "tensors_sha256": file_digest(aside / "tensors.safetensors")}
    (aside / "state.json").write_text(json.dumps(full, indent=1), encoding="utf-8")
    also(aside)
    for path in (*aside.iterdir(), aside):
        fsync(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    fsync(run)
    for old in complete(run)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(final, step, full)


def complete(run: Path) -> list[Path]:
    """Folders of checkpoints, newest first."""
    found = [(int(m[1]), p) for p in run.iterdir() if (m := _NAME.match(p.name))] if run.is_dir() else []
    return [p for _, p in sorted(found, reverse=True)]


def latest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest usable checkpoint, and the names of what was passed over (half-written or damaged)."""
    passed = [p.name for p in run.glob(".checkpoint-*.tmp")] if run.is_dir() else []
    for folder in complete(run):
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if state["tensors_sha256"] == file_digest(folder / "tensors.safetensors"):
                return Checkpoint(folder, int(state["step"]), state), passed
        except (OSError, ValueError, KeyError):
            pass  # reported below, like a digest that does not match
        passed.append(folder.name)
    return None, passed


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """ConfigError where a run that is to go on began with other data or settings; what differs is named."""
    old, new = ({**{k: v for k, v in i.items() if k != "settings"}, **(i.get("settings") or {})} for i in (before, now))
    changed = [f"{k} (was {old.get(k)!r}, is {new.get(k)!r})" for k in new if old.get(k) != new.get(k)]
    if changed:
        raise ConfigError(
            f"An unfinished run in {run} differs in {'; '.join(changed)}. Give the same data and settings to go on "
            "with it, or add --restart (in Python: resume=False), which discards it."
        )


def publish(out: Path, write: Callable[[Path], None]) -> None:
    """Replace the folder `out` by one that `write` fills: aside, flushed to disk, and swapped in."""
    aside, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    for path in (*aside.rglob("*"), aside):
        fsync(path)
    if out.exists():
        os.replace(out, old)
    os.replace(aside, out)
    fsync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
