"""Vectors that an unfinished indexing run has embedded so far, so that a killed run is resumed, not repeated."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rag.errors import IndexError_
from rag.store import JOURNAL, Disk, refused


class Journal:
    """Records of a 32-character key and a float32 vector, each with a checksum; a torn tail is ignored and overwritten.

    The header ties the file to one encoder; for another encoder the journal starts anew. It holds no text. The commit
    that uses the vectors removes the file.
    """

    def __init__(self, folder: Path, fingerprint: str, dimension: int, *, disk: Disk | None = None) -> None:
        self.path = folder / JOURNAL
        self._disk = disk or Disk()
        self._header = hashlib.sha256(f"ragtune journal 1 {fingerprint} {dimension}".encode()).digest()
        # checks as hex, because numpy strips trailing zero bytes of "S" fields
        self._record = np.dtype([("key", "S32"), ("vector", "<f4", (dimension,)), ("check", "S8")])
        self._end = 0  # of the last whole record, known after `read`

    def read(self) -> dict[str, np.ndarray]:
        """Key → vector of every record up to the first damaged one."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            raw = b""
        self._end = 0
        if raw[:32] != self._header:
            return {}
        records = np.frombuffer(raw, self._record, count=(len(raw) - 32) // self._record.itemsize, offset=32)
        found: dict[str, np.ndarray] = {}
        self._end = 32
        for record in records:
            key, vector = bytes(record["key"]), np.array(record["vector"])
            if bytes(record["check"]) != _check(key, vector):
                break
            found[key.decode("ascii", "replace")] = vector
            self._end += self._record.itemsize
        return found

    def append(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Add records after the last whole one and flush them. `vectors`: float32 [len(keys), dimension]."""
        records = np.zeros(len(keys), self._record)
        records["key"] = [key.encode("ascii") for key in keys]
        records["vector"] = vectors
        records["check"] = [_check(key.encode("ascii"), vector) for key, vector in zip(keys, vectors, strict=True)]
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.ftruncate(handle, self._end)
                os.lseek(handle, self._end, os.SEEK_SET)
                data = (b"" if self._end else self._header) + records.tobytes()
                self._disk.put(handle, memoryview(data))
                self._disk.sync(handle)
                self._end += len(data)
            finally:
                os.close(handle)
        except OSError as error:
            raise IndexError_(refused(self.path.parent, self.path, error)) from error


def _check(key: bytes, vector: np.ndarray) -> bytes:
    return hashlib.sha256(key + np.ascontiguousarray(vector, "<f4").tobytes()).hexdigest()[:8].encode()
