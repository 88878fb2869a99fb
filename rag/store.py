"""Files of an index on disk: one manifest names one generation of immutable files, and is swapped by a rename.

    INDEX/manifest.json         format, generation, encoder, counts; size, sha256 of every file below; its own checksum
    INDEX/NAME-GENERATION.EXT   the files of that generation: written aside, flushed, never changed afterwards
    INDEX/journal.bin           vectors embedded so far by an unfinished run (removed by the commit that uses them)
    INDEX/lock                  pid, host and time of the writer, while one writes

A commit writes all files of the next generation, flushes them and the folder, renames the manifest over the old one,
flushes the folder again, and only then removes the files of the old generation. So a process killed anywhere, a full
disk or a short write leaves the old or the new generation, and what deleted documents said is gone from the folder with
the commit that deleted them. Files that no manifest names are left-overs of such a death; the next writer removes them.

Covered: torn, truncated and bit-flipped files are found and named (sizes at every open, sha256 in `verify`).
Not covered: somebody who rewrites the files *and* the checksums; traces of removed files on the medium itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import IndexCorrupt, IndexError_, IndexMissing

FORMAT = 1
MANIFEST = "manifest.json"
JOURNAL = "journal.bin"
_OURS = re.compile(r"^[a-z]+-\d+\.(jsonl|txt|table|f32|i64|i32|u16|faiss)$|^manifest\.json\.tmp$|^journal\.bin\.tmp$")
_MANIFEST_LIMIT = 64 * 2**20
_PIECE = 2**20
AGAIN = "Restore it from a backup, or index the documents again into a new folder."


class Disk:
    """The file operations of a commit, in one place so that a test can make the n-th of them fail."""

    def write(self, path: Path, blocks: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Write and flush a new file; returns its size and sha256."""
        digest, size = hashlib.sha256(), 0
        with open(path, "wb") as file:
            for view in _joined(blocks):
                digest.update(view)
                size += self.put(file.fileno(), view)
            self.sync(file.fileno())
        return size, digest.hexdigest()

    def put(self, handle: int, view: memoryview) -> int:
        """Write all of `view`; the system may take it in several pieces."""
        done = 0
        while done < len(view):
            wrote = os.write(handle, view[done:])
            if wrote == 0:
                raise OSError(5, "the system wrote nothing")
            done += wrote
        return done

    def sync(self, handle: int) -> None:
        os.fsync(handle)

    def sync_folder(self, folder: Path) -> None:
        """Make renames and removals in `folder` durable (a no-op where folders cannot be opened, as on Windows)."""
        if not hasattr(os, "O_DIRECTORY"):
            return
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def _joined(blocks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same bytes in pieces of at least a megabyte (but for the last), so that small records cost no call each."""
    held = bytearray()
    for block in blocks:
        if not held and len(block) >= _PIECE:
            yield memoryview(block).cast("B")
            continue
        held += block
        if len(held) >= _PIECE:
            yield memoryview(held)
            held = bytearray()
    if held:
        yield memoryview(held)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and sha256 of one file of a generation."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one generation is. `files` maps the stem of a file ("vectors") to its name and record.

    `chunking` are the chunk settings as plain values; `roots` are {"path", "prefix"} of every folder or file indexed;
    `approximate` is None below the size where search stops being exact, else how the approximate index was made.
    `built` is {"seconds", "embedded"} of the run that embedded most texts, by which what the index costs is known.
    """

    generation: int
    encoder: str
    fingerprint: str
    dimension: int
    chunking: Mapping[str, Any]
    documents: int
    chunks: int
    roots: tuple[Mapping[str, str], ...]
    files: Mapping[str, tuple[str, FileRecord]]
    approximate: Mapping[str, int] | None = None
    built: Mapping[str, float] | None = None
    created: float = 0.0
    format: int = FORMAT

    @property
    def index_seconds(self) -> float | None:
        """Seconds that indexing all its chunks takes, by the pace of the run that embedded most; None where unknown."""
        if not self.built or not self.built.get("embedded"):
            return None
        return float(self.built["seconds"]) / float(self.built["embedded"]) * self.chunks

    def to_json(self) -> str:
        """Canonical JSON with a checksum over everything else, so that any changed bit is noticed at open."""
        data = {name: getattr(self, name) for name in self.__slots__ if name != "files"}
        data["files"] = {
            stem: {"name": name, "bytes": record.bytes, "sha256": record.sha256}
            for stem, (name, record) in sorted(self.files.items())
        }
        return json.dumps({**data, "checksum": _checksum(data)}, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _checksum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")).hexdigest()


def _parse_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        data = json.loads(raw.decode("utf-8"))
        found = data.get("format")
    except (ValueError, AttributeError) as error:
        raise IndexCorrupt(f"{path} is damaged: it is no readable JSON object ({error}). {AGAIN}") from error
    if isinstance(found, int) and found > FORMAT:
        raise IndexError_(
            f"{path} has index format {found}; this version reads up to {FORMAT}. Upgrade ragtune, or index again."
        )
    if data.pop("checksum", None) != _checksum(data):
        raise IndexCorrupt(f"{path} is damaged: its checksum does not match. {AGAIN}")
    try:
        files = {}
        for stem, entry in data.pop("files").items():
            if not _OURS.match(entry["name"]) or entry["bytes"] < 0:
                raise ValueError(f"file name {entry['name']!r}")
            files[stem] = (entry["name"], FileRecord(entry["bytes"], entry["sha256"]))
        return Manifest(**{**data, "files": files, "roots": tuple(data["roots"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IndexCorrupt(f"{path} is damaged: unexpected content ({error}). {AGAIN}") from error


def read_manifest(folder: Path) -> Manifest:
    """The committed manifest. IndexMissing where there is none, IndexCorrupt where it is damaged."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise IndexCorrupt(f"{path} is damaged: larger than any manifest. {AGAIN}")
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "There is no such folder" if not folder.exists() else "The folder holds no committed index"
        raise IndexMissing(f"No index at {folder}. {what}. Make one: ragtune index PATH --out {folder}") from error
    except OSError as error:
        raise IndexError_(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    return _parse_manifest(path, raw)


def next_generation(folder: Path) -> int:
    """A number above that of every file of a generation in `folder`, committed or left over."""
    numbers = [re.search(r"-(\d+)\.", path.name) for path in folder.iterdir() if _OURS.match(path.name)]
    return 1 + max((int(n.group(1)) for n in numbers if n), default=0)


def file_of(folder: Path, manifest: Manifest, stem: str) -> Path:
    """The path of one file of the generation, after a check that it is a plain file of the recorded size."""
    if stem not in manifest.files:
        raise IndexCorrupt(f"{folder / MANIFEST} names no {stem} file. {AGAIN}")
    name, record = manifest.files[stem]
    path = folder / name
    info = os.lstat(path)
    if not os.path.isfile(path) or os.path.islink(path):
        raise IndexCorrupt(f"{path} is not a plain file. {AGAIN}")
    if info.st_size != record.bytes:
        raise IndexCorrupt(f"{path} is damaged: it has {info.st_size} bytes, the manifest says {record.bytes}. {AGAIN}")
    return path


def checksum_file(path: Path) -> str:
    """sha256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """One sentence for each file of the generation that is missing, of another size or of other bytes."""
    problems = []
    for stem, (name, record) in sorted(manifest.files.items()):
        try:
            if checksum_file(file_of(folder, manifest, stem)) != record.sha256:
                problems.append(f"{folder / name} is damaged: its sha256 does not match the manifest.")
        except IndexCorrupt as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{folder / name} cannot be read: {error.strerror or error}.")
    return problems


def load_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-map a file of plain little-endian numbers; IndexCorrupt unless it holds exactly this type and shape.

    Plain numbers, not .npy: the reader of that format evaluates a header of Python text, which is neither safe to call
    from several threads (CPython 3.11) nor free of surprises for damaged files.
    """
    wanted = dtype.itemsize * math.prod(shape)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != wanted:
            raise IndexCorrupt(f"{path} is damaged: it has {size} bytes, expected {wanted}. {AGAIN}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""  # nothing cannot be mapped
    return np.frombuffer(mapped, dtype).reshape(shape)


def array_blocks(dtype: np.dtype, parts: Iterable[np.ndarray]) -> Iterator[memoryview]:
    """What `load_array` reads, in pieces, so that a large array is never held whole."""
    for part in parts:
        if part.size:
            yield np.ascontiguousarray(part, dtype=dtype).reshape(-1).view(np.uint8).data


Blocks = Callable[[], Iterable[bytes | memoryview]]


def commit(folder: Path, manifest: Manifest, contents: Mapping[str, Blocks], *, disk: Disk | None = None) -> Manifest:
    """Write the generation `manifest.generation`: one file for each "stem.ext" of `contents`, then swap the manifest.

    The caller holds the write lock. Returns the manifest with its files filled in. IndexError_ when the disk refuses
    (nothing was changed then, except where the sentence says that it is not known whether the swap is durable).
    """
    disk = disk or Disk()
    written: list[Path] = []
    files: dict[str, tuple[str, FileRecord]] = {}
    temporary = folder / f"{MANIFEST}.tmp"
    try:
        for name, blocks in contents.items():
            stem, _, extension = name.rpartition(".")
            path = folder / f"{stem}-{manifest.generation}.{extension}"
            written.append(path)
            files[stem] = (path.name, FileRecord(*disk.write(path, blocks())))
        values = {name: getattr(manifest, name) for name in manifest.__slots__}
        manifest = Manifest(**{**values, "files": files, "created": time.time()})
        written.append(temporary)
        disk.write(temporary, [manifest.to_json().encode("utf-8", "replace")])
        disk.sync_folder(folder)
        disk.rename(temporary, folder / MANIFEST)
    except OSError as error:
        for path in written:
            with contextlib.suppress(OSError):  # the next writer removes what cannot be removed now
                disk.remove(path)
        raise IndexError_(refused(folder, written[-1], error)) from error
    except BaseException:
        for path in written:
            with contextlib.suppress(OSError):
                disk.remove(path)
        raise
    try:
        disk.sync_folder(folder)
    except OSError as error:
        raise IndexError_(
            f"The index {folder} was written, but the system did not confirm that it is durable "
            f"({error.strerror or error}). Run the same command again."
        ) from error
    remove_leftovers(folder, manifest, disk=disk, journal=True)
    return manifest


def refused(folder: Path, path: Path, error: OSError) -> str:
    free = ""
    with contextlib.suppress(OSError):
        free = f"; {shutil.disk_usage(folder).free / 2**20:.0f} MiB are free"
    return (
        f"The index {folder} could not be written: {path.name}: {error.strerror or error}{free}. "
        "Nothing was changed: the state before this run still answers. Make room or check the disk, and run it again."
    )


def remove_leftovers(
    folder: Path, manifest: Manifest | None, *, disk: Disk | None = None, journal: bool = False
) -> list[str]:
    """Remove files of our naming that the manifest does not name; returns their names. The caller holds the lock."""
    disk = disk or Disk()
    keep = {name for name, _ in manifest.files.values()} if manifest else set()
    removed = []
    for path in sorted(folder.iterdir()):
        ours = _OURS.match(path.name) or (journal and path.name == JOURNAL)
        if ours and path.name not in keep:
            with contextlib.suppress(OSError):  # tried again by the next writer
                disk.remove(path)
                removed.append(path.name)
    return removed
