"""A path → `Document`s with page, heading and character provenance; one bad file is reported, never fatal.

    find_files(paths) → [SourceFile]      what there is to read, sorted; what cannot be read is in `.failed`
    load_file(file)   → Document          or LoadError with a sentence for the owner of the file

One file is one document. Text formats are read in this process (`rag.load_markup`, `rag.load_records`: linear time,
bounded size); PDF, DOCX and HTML, whose parsers can be made to run or grow without end, are read in one long-lived
child process with limits on time and memory (`rag.load_worker`). Newlines become "\n"; characters that cannot be
stored (lone surrogates, NUL, controls) become U+FFFD and are counted in a warning. All offsets refer to that text.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rag import load_markup, load_text
from rag.errors import ConfigError, LoadError, UsageError
from rag.load_text import Parsed
from rag.types import Document, content_hash

TEXT_SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".rst": "rst",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
}
RISKY_SUFFIXES = {".html": "html", ".htm": "html", ".pdf": "pdf", ".docx": "docx"}
SUFFIXES = tuple(sorted({**TEXT_SUFFIXES, **RISKY_SUFFIXES}))
"""The endings that are read, lower case with the dot."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read and the name under which it is known: its path relative to the indexed root, with "/"."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A file that was not read, and the reason as a sentence for its owner."""

    source: str
    reason: str


class FoundFiles(list[SourceFile]):
    """The files found, sorted by source; `failed` are those that were asked for, or seen, and cannot be read."""

    failed: tuple[LoadFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """Limits on what one file may cost.

    `max_bytes`: size on disk. `max_characters`: extracted text (a long novel has 3 million). `seconds` of processor
    time (four times as many by the clock) and `megabytes` of address space (POSIX only) bound the child process that
    reads PDF, DOCX and HTML; `isolate=False` reads these in this process, without the two limits.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_characters: int = 20_000_000
    seconds: float = 30.0
    megabytes: int = 1024
    isolate: bool = True

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_characters", "seconds", "megabytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not value > 0:
                raise ConfigError(f"{name} is {value!r}; it must be a number above 0")
        if self.megabytes < 256:
            raise ConfigError(f"megabytes is {self.megabytes}; the readers themselves need 256, so give at least that")


def document_id(source: str, data: bytes) -> str:
    """The identity of a document: it changes when the name or any byte changes."""
    return content_hash(source, data)


def read_bytes(file: SourceFile, config: LoadConfig = LoadConfig()) -> bytes:
    """The bytes of a regular file. LoadError for all else: folder, pipe, device, unreadable, too large, empty."""
    try:
        # O_NONBLOCK: opening a pipe without a writer must not hang; the type is checked on the open descriptor.
        descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise LoadError(_open_reason(file.path, error)) from error
    except ValueError as error:
        raise LoadError(
            f"the file name contains a character that no file name may have ({error}); rename it"
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise LoadError(f"is {_kind_of(status.st_mode)}, not a regular file; copy its content into a file")
    with os.fdopen(descriptor, "rb") as stream:
        if status.st_size > config.max_bytes:
            raise LoadError(_too_large(status.st_size, config))
        try:
            data = stream.read(config.max_bytes + 1)
        except OSError as error:
            raise LoadError(
                f"cannot be read: {error.strerror or error}; check the disk or copy the file anew"
            ) from error
    if len(data) > config.max_bytes:
        raise LoadError(_too_large(len(data), config))
    if not data:
        raise LoadError("is empty (0 bytes); was its download or copy interrupted?")
    return data


def load_file(file: SourceFile, config: LoadConfig = LoadConfig()) -> Document:
    """Reads one file into one document.

    Raises:
        LoadError: the file cannot be read as what its name says; the message is a sentence for the file's owner.
    """
    return load_bytes(file.source, read_bytes(file, config), config)


def load_bytes(source: str, data: bytes, config: LoadConfig = LoadConfig()) -> Document:
    """As `load_file`, of bytes already read (an upload); the ending of `source` says the format."""
    suffix = _suffix(source)
    if not data:
        raise LoadError("is empty (0 bytes); was its download or copy interrupted?")
    if suffix not in SUFFIXES:
        raise LoadError(f"has the ending {suffix or '(none)'}, which is not read; allowed are {', '.join(SUFFIXES)}")
    load_text.check_kind(suffix, data)
    try:
        if suffix in TEXT_SUFFIXES:
            parsed = load_markup.parse(TEXT_SUFFIXES[suffix], data, tsv=suffix == ".tsv", limit=config.max_characters)
        else:
            from rag import load_worker

            kind = RISKY_SUFFIXES[suffix]
            if config.isolate:
                parsed = load_worker.read_isolated(kind, data, config)
            else:
                parsed = load_worker.read(kind, data, limit=config.max_characters)
    except (MemoryError, RecursionError) as error:
        raise LoadError("needs more memory than there is to be read; split it into smaller files") from error
    if not parsed.text.strip():
        raise LoadError("contains no text; remove it or fill it")
    return _document(source, data, parsed)


def _document(source: str, data: bytes, parsed: Parsed) -> Document:
    title = parsed.title
    if not title and parsed.headings:
        top = min(h.level for h in parsed.headings)
        highest = [h.text for h in parsed.headings if h.level == top]
        title = highest[0] if len(highest) == 1 else ""  # of several equal ones, none names the whole
    if not title:
        stem = source.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        title = " ".join(stem.replace("_", " ").replace("-", " ").split())
    return Document(
        id=document_id(source, data),
        source=source,
        text=parsed.text,
        title=title[:200],
        page_starts=parsed.page_starts,
        headings=parsed.headings,
        warnings=parsed.warnings,
    )


def find_files(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> FoundFiles:
    """All readable files of these files and folders, sorted by source, each once.

    Hidden entries and unknown endings are passed over inside folders; a file that is itself named and cannot be read
    stands in `.failed`, and so does a folder that cannot be listed. Links to folders are followed, each folder once,
    so that loops end; a file reached by two ways keeps the way without links. Sources that would be equal (two roots
    with a file of the same name) are told apart by the name of the root.

    Raises:
        UsageError: a path does not exist. (A mistyped or unmounted folder must not read as "everything was deleted".)
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: dict[str, SourceFile] = {}
    failed: list[LoadFailure] = []
    seen_folders: set[tuple[int, int]] = set()
    seen_files: set[str] = set()
    for given in paths:
        root = Path(given)
        if not os.path.lexists(root):
            raise UsageError(f"{root} does not exist; give files or folders that exist")
        if root.is_dir():
            candidates: Iterator[tuple[Path, str]] = _walk(root, failed, seen_folders)
        else:
            if _suffix(root.name) not in SUFFIXES:
                reason = (
                    f"has the ending {root.suffix or '(none)'}, which is not read; allowed are {', '.join(SUFFIXES)}"
                )
                failed.append(LoadFailure(_text_of(root.name), reason))
                continue
            candidates = iter([(root, root.name)])
        for path, relative in candidates:
            real = os.path.realpath(path)
            if real in seen_files:
                continue
            seen_files.add(real)
            source = _free_name(_text_of(relative), _text_of(root.resolve().parent.name), found)
            found[source] = SourceFile(path, source)
    files = FoundFiles(found[source] for source in sorted(found))
    files.failed = tuple(failed)
    return files


def _walk(root: Path, failed: list[LoadFailure], seen: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """(path, path relative to root) of every candidate file; real folders first, then links to folders."""
    stack: list[tuple[str, str]] = [(str(root), "")]
    links: list[tuple[str, str]] = []
    while stack or links:
        folder, relative = stack.pop() if stack else links.pop(0)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            failed.append(
                LoadFailure(_text_of(relative) or str(root), f"the folder cannot be listed: {error.strerror}")
            )
            continue
        folders: list[tuple[str, str]] = []
        linked_files: list[tuple[Path, str]] = []
        for entry in names:
            if entry.name.startswith("."):
                continue
            below = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append((entry.path, below))
            elif _suffix(entry.name) in SUFFIXES:
                if entry.is_symlink():
                    linked_files.append((Path(entry.path), below))
                else:
                    yield Path(entry.path), below
        yield from linked_files
        stack.extend(reversed(folders))


def _free_name(source: str, parent: str, taken: dict[str, SourceFile]) -> str:
    if source not in taken:
        return source
    candidate, number = f"{parent}/{source}", 2
    while candidate in taken:
        candidate, number = f"{parent} ({number})/{source}", number + 1
    return candidate


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _text_of(name: str) -> str:
    """A file name as storable text with "/"; bytes that are no UTF-8 (surrogates, in Python) are replaced."""
    return os.fsencode(name).decode("utf-8", "replace").replace(os.sep, "/")


def _open_reason(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "permission denied; give yourself the right to read it"
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return "is a link whose target does not exist; remove the link or restore its target"
        return "does not exist any more"
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return "is a folder, not a file; give the folder itself to index what is in it"
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself; remove the link"
    return f"cannot be opened: {error.strerror or error}"


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe (FIFO)"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def _too_large(size: int, config: LoadConfig) -> str:
    megabytes = 1024 * 1024
    return (
        f"has {size / megabytes:,.0f} MB; at most {config.max_bytes / megabytes:,.0f} MB per file are read: "
        "split it, or raise max_bytes of LoadConfig"
    )
