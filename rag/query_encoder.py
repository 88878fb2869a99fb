"""A tuned encoder for questions in front of the documents' own encoder: the index stays as it is.

A query encoder folder is a sentence-transformers folder with `ragtune.json`, which names the document encoder whose
vectors it was trained against. On an index of another document encoder it is refused: its vectors would mean nothing
there. Folders of kind "encoder" hold both sides and take the place of the document encoder (`rag.index.reencode`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rag.errors import EncoderMismatch, ModelError, UnknownModel
from rag.protocols import Encoder, Progress
from rag.types import content_hash

if TYPE_CHECKING:
    import numpy as np

RECORD = "ragtune.json"
FORMAT = 1
QUERY = "query-encoder"
BOTH = "encoder"


@dataclass(frozen=True, slots=True)
class QueryFolder:
    """What a trained folder says about itself: its kind and the document encoder that it was trained with."""

    folder: Path
    kind: str
    base: str
    base_fingerprint: str


class TunedQueries:
    """Questions through `queries`, passages through `documents`; implements `rag.protocols.Encoder`.

    `fingerprint`, `dimension` and limits are those of the document side, so the index takes it for its own encoder;
    `query_fingerprint` tells the two apart where results are kept.
    """

    def __init__(self, documents: Encoder, queries: Encoder, folder: str) -> None:
        if queries.dimension != documents.dimension:
            raise EncoderMismatch(
                f"The query encoder {folder} makes vectors of {queries.dimension} numbers, the documents' encoder "
                f"{documents.name} of {documents.dimension}. Train a query encoder for {documents.name}."
            )
        self.documents = documents
        self.queries = queries
        self.folder = folder
        self.name = documents.name
        self.fingerprint = documents.fingerprint
        self.dimension = documents.dimension
        self.max_tokens = documents.max_tokens
        self.query_fingerprint = content_hash(documents.fingerprint, queries.fingerprint)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as the document side sees them."""
        return self.documents.count_tokens(text)

    def encode(
        self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage", progress: Progress | None = None
    ) -> np.ndarray:
        """As `Encoder.encode`; the kind decides which side runs."""
        side = self.queries if kind == "query" else self.documents
        return side.encode(texts, kind=kind, progress=progress)


def query_fingerprint(encoder: Encoder | None) -> str:
    """What tells results of a tuned query side from those of the documents' own encoder; "" for the latter."""
    return encoder.query_fingerprint if isinstance(encoder, TunedQueries) else ""


def read_query_folder(folder: Path) -> QueryFolder:
    """The record of a trained encoder folder; nothing is loaded.

    Raises UnknownModel where there is none, ModelError where it is damaged or of a newer format.
    """
    path = folder / RECORD
    if not path.is_file():
        raise UnknownModel(
            f"There is no query encoder in {folder}. Train one: "
            f"ragtune tune INDEX --questions FILE --recipe retriever --out {folder}"
        )
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if int(data["format"]) > FORMAT:
            raise ModelError(f"{path} has format {data['format']}; this version reads up to {FORMAT}: upgrade ragtune.")
        kind = str(data.get("kind", "adapter"))
        if kind not in (QUERY, BOTH):
            raise UnknownModel(f"{folder} holds an adapter of a generator, not an encoder. Give it with --adapter.")
        return QueryFolder(folder, kind, str(data["base"]), str(data["base_fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}): train the encoder again.") from error


def check_query_folder(folder: Path, documents_name: str, fingerprint: str) -> QueryFolder:
    """The folder, when its questions may be asked of an index of this document encoder.

    Raises:
        EncoderMismatch: it belongs to another document encoder, or holds both sides; names both.
        UnknownModel, ModelError: as `read_query_folder`.
    """
    found = read_query_folder(folder)
    if found.kind == BOTH:
        raise EncoderMismatch(
            f"{folder} holds an encoder of both sides, and the index was made with {documents_name}. Embed the "
            f"documents with it first: ragtune reencode INDEX --encoder {folder}"
        )
    if found.base_fingerprint != fingerprint:
        raise EncoderMismatch(
            f"The query encoder {folder} was trained against documents embedded by {found.base} (fingerprint "
            f"{found.base_fingerprint[:12]}); this index was made with {documents_name} (fingerprint "
            f"{fingerprint[:12]}). Train one for this index, or search without it."
        )
    return found


def load_query_encoder(folder: Path, documents: Encoder, *, device: str | None = None, dtype: Any = None) -> Encoder:
    """`documents` with the questions' side of `folder`. Raises as `check_query_folder` and `load_encoder`."""
    from rag.encoder import load_encoder

    check_query_folder(folder, documents.name, documents.fingerprint)
    return TunedQueries(documents, load_encoder(str(folder.resolve()), device=device, dtype=dtype), str(folder))
