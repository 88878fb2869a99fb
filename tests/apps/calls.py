"""httpx with patience: its default of five seconds would be a timed assertion on a machine with other work."""

from __future__ import annotations

from functools import partial

import httpx

PATIENCE = 60.0
"""Seconds after which a server under test counts as hung."""


get, post, stream = (partial(call, timeout=PATIENCE) for call in (httpx.get, httpx.post, httpx.stream))
