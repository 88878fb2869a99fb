"""Files that arrive from a browser: a safe name, a verdict before reading, a folder of their own beside the index."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rag.errors import ConfigError

PREFIX = "uploads/"
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff<>:"|?*/\\]')
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_MAX_BYTES = 150  # of a file name in UTF-8; file systems take 255, and a temporary suffix must fit


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one upload may hold, in bytes and files."""

    file_bytes: int = 50 * 2**20
    batch_bytes: int = 500 * 2**20
    files: int = 200

    def __post_init__(self) -> None:
        for field in ("file_bytes", "batch_bytes", "files"):
            if getattr(self, field) < 1:
                raise ConfigError(f"UploadLimits.{field} is {getattr(self, field)}; it must be at least 1.")


def safe_name(name: str) -> str:
    """A file name that is one plain path component on every system, and reads as it was written where it can.

    Folders are dropped, forbidden and invisible characters become "_", names Windows reserves get a "_" in front,
    long names are cut before their suffix. Never empty, never "." or "..", never hidden.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    plain = re.sub(r"\s+", " ", _FORBIDDEN.sub("_", last)).strip(" .")
    if _RESERVED.match(plain):
        plain = "_" + plain
    stem, dot, suffix = plain.rpartition(".")
    if not dot:
        stem, suffix = plain, ""
    ending = f".{suffix}" if dot and len(suffix.encode()) <= 16 else ""
    stem = stem if ending or not dot else plain
    room = _MAX_BYTES - len(ending.encode())
    while len(stem.encode()) > room:
        stem = stem[:-1]
    return (stem.strip(" .") or "file") + ending


def refusal(name: str, size: int, suffixes: Collection[str], limits: UploadLimits) -> str:
    """Why a file is not even read: empty, too large, or of a kind that no loader knows; "" when it may be tried."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in suffixes:
        kind = f"“{suffix}” files" if suffix else "Files without a suffix"
        return f"{kind} cannot be read; these can: {', '.join(sorted(suffixes))}."
    if size > limits.file_bytes:
        most = megabytes(limits.file_bytes)
        return f"The file has {megabytes(size)}; at most {most} are taken. Split it, or index it from a terminal."
    if size == 0:
        return "The file is empty."
    return ""


def megabytes(size: int) -> str:
    """A size for people: "3.2 MB", and bytes below a tenth of one."""
    return f"{size / 2**20:,.1f} MB".replace(".0 ", " ") if size >= 2**20 / 10 else f"{size:,} bytes"


def keep(path: Path, folder: Path, name: str) -> Path:
    """Copy `path` to `folder/name`, whole or not at all; a file of this name is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    part = folder / f".{name}.part"
    try:
        shutil.copyfile(path, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target
