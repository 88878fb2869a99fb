"""Models by name: the one door through which the rest of the product gets encoders, rerankers and generators.

A name is "starter", a folder, a hub id, or "openai:MODEL@BASE_URL" for an endpoint. What is behind the door:
`names` (resolve and refuse), `starters` (packaged weights), `hardware` (device, number format), `encoder`.
"""

from __future__ import annotations

from rag.encoder import LocalEncoder, load_encoder

__all__ = ["LocalEncoder", "load_encoder"]
