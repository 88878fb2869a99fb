"""What the next generation of an index will hold: which files belong to it, under which names, and which changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rag.errors import LoadError
from rag.generation import Entry, Fresh, Kept, StageProgress
from rag.load import LoadFailure, SourceFile, document_id, find_files, load_bytes, read_bytes
from rag.snapshot import Snapshot


@dataclass(slots=True)
class Plan:
    """The documents of the next generation by source, and how they differ from the last one."""

    entries: dict[str, Entry] = field(default_factory=dict)
    added: int = 0
    updated: int = 0
    deleted: int = 0
    failed: list[LoadFailure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Root:
    """One path that was given, and the files found there (sources relative to it)."""

    path: str
    name: str
    folder: bool
    files: tuple[SourceFile, ...]
    unlisted: tuple[str, ...]  # folders below it that could not be listed: what they held is not known to be gone


def find(folder: Path, paths: Sequence[str | os.PathLike[str]]) -> tuple[list[Root], list[LoadFailure]]:
    """Files by root, each file once; the index's own files are no documents."""
    own = os.path.realpath(folder) + os.sep
    roots: list[Root] = []
    failed: list[LoadFailure] = []
    seen: set[str] = set()
    for path in paths:
        found = find_files([path])
        failed.extend(found.failed)
        where = Path(os.path.realpath(path))
        files: list[SourceFile] = list(found)
        if len(paths) > 1 or own.startswith(f"{where}{os.sep}"):  # else no file can be twice or the index's own
            files = []
            for file in found:
                real = os.path.realpath(file.path)
                if real not in seen and not real.startswith(own):
                    seen.add(real)
                    files.append(file)
        name = where.name if where.is_dir() else where.parent.name
        if files or where.is_dir():
            unlisted = tuple(f.source for f in found.failed) if where.is_dir() else ()
            roots.append(Root(str(where), name or "root", where.is_dir(), tuple(files), unlisted))
    return (roots if any(r.files for r in roots) else []), failed


def name_sources(
    old: Snapshot | None, found: Sequence[Root]
) -> tuple[tuple[dict[str, str], ...], dict[str, tuple[int, SourceFile]]]:
    """The roots of the next generation, and source → (root number, file).

    The only folder of an index names its files without a prefix; with several, each later one is prefixed by its name,
    and so is any file whose source is taken.
    """
    roots = [dict(r) for r in old.manifest.roots] if old else []
    number = {r["path"]: i for i, r in enumerate(roots)}
    folders = sum(r.folder for r in found)
    for root in found:
        if root.path not in number:
            alone = not root.folder or (not roots and folders == 1)
            prefixes = {r["prefix"] for r in roots}
            prefix = "" if alone else _unused(f"{root.name}/", prefixes)
            number[root.path] = len(roots)
            roots.append({"path": root.path, "prefix": prefix})
    given = {number[r.path] for r in found}
    taken = {r.document.source for r in old.records if r.root not in given and r.root >= 0} if old else set()
    files: dict[str, tuple[int, SourceFile]] = {}
    for root in sorted(found, key=lambda r: number[r.path]):
        at = number[root.path]
        for file in root.files:
            source = roots[at]["prefix"] + file.source
            if source in taken or source in files:
                source = _unused_source(f"{root.name}/{file.source}", taken | files.keys())
            files[source] = (at, SourceFile(file.path, source))
    return tuple(roots), files


def _unused(prefix: str, taken: set[str]) -> str:
    candidate, n = prefix, 2
    while candidate in taken:
        candidate, n = f"{prefix[:-1]}-{n}/", n + 1
    return candidate


def _unused_source(source: str, taken: set[str]) -> str:
    parent, _, name = source.partition("/")
    candidate, n = source, 2
    while candidate in taken:
        candidate, n = f"{parent}-{n}/{name}", n + 1
    return candidate


def unlisted_below(roots: Sequence[Mapping[str, str]], found: Sequence[Root]) -> tuple[str, ...]:
    """Beginnings of sources below folders that could not be listed."""
    prefix = {r["path"]: r["prefix"] for r in roots}
    return tuple(
        prefix[root.path] + (f"{below}/" if below != root.path else "") for root in found for below in root.unlisted
    )


def keep_others(
    plan: Plan, old: Snapshot | None, given: set[int], named: set[str], unlisted: tuple[str, ...] = ()
) -> None:
    """Documents of other roots stay; those of the given roots that are not named any more are deleted."""
    for position, record in enumerate(old.records if old else []):
        source = record.document.source
        if source in named:
            continue
        if record.root in given and not source.startswith(unlisted):
            plan.deleted += 1
        else:
            plan.entries[source] = Kept(position, record.root)


def read_files(
    plan: Plan, old: Snapshot | None, files: dict[str, tuple[int, SourceFile]], progress: StageProgress | None
) -> None:
    """Unchanged files are kept by their hash, others loaded. A file that cannot be read leaves its earlier version."""
    for done, (source, (root, file)) in enumerate(files.items()):
        if progress:
            progress("read", done, len(files), source)
        position = old.by_source.get(source) if old else None
        try:
            data = read_bytes(file)
            was = old.records[position].document.id if old is not None and position is not None else None
            if position is not None and was == document_id(source, data):
                plan.entries[source] = Kept(position, root)
                continue
            plan.entries[source] = Fresh(load_bytes(source, data), root)
        except LoadError as error:
            plan.failed.append(LoadFailure(source, str(error)))
            if position is not None:
                plan.entries[source] = Kept(position, root)
            continue
        plan.added += position is None
        plan.updated += position is not None
    if progress:
        progress("read", len(files), len(files), "")
