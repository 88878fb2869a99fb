"""A generator behind an OpenAI-compatible endpoint (vLLM, Ollama, llama.cpp, OpenAI): same protocol, other machine.

What an endpoint cannot do is said, not imitated: token ids, adapters and copy decoding raise EndpointError;
`count_tokens` is an estimate on the safe side.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np

from rag.errors import ConfigError, EndpointError, UnknownModel
from rag.names import ENDPOINT_PREFIX
from rag.protocols import Decoding, Generation, Message, Progress, as_chat
from rag.types import content_hash

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_WINDOW = 4096
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """How patiently and how widely an endpoint is asked. Seconds; `attempts` counts the first try too."""

    timeout: float = 120.0
    connect_timeout: float = 2.0
    attempts: int = 4
    backoff: float = 0.5
    longest_wait: float = 20.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        for field in ("timeout", "connect_timeout", "attempts", "concurrency"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be above 0.")


def parse_endpoint(name: str) -> tuple[str, str]:
    """(model, base URL) of "openai:MODEL@BASE_URL"; without "@…" it is OpenAI itself.

    Raises:
        UnknownModel: no model, or a URL that is not http(s).
    """
    model, at, url = name.removeprefix(ENDPOINT_PREFIX).partition("@http")
    url = f"http{url}" if at else DEFAULT_URL
    parsed = urlparse(url)
    if not model or "@" in model or parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise UnknownModel(
            f"'{name}' is no endpoint; write openai:MODEL@BASE_URL, for example openai:qwen3@http://127.0.0.1:11434/v1."
        )
    return model, url.rstrip("/")


class EndpointGenerator:
    """Implements `rag.protocols.Generator` over HTTP. The key is read from RAGTUNE_API_KEY or OPENAI_API_KEY."""

    def __init__(self, name: str, config: EndpointConfig = EndpointConfig()) -> None:
        import httpx

        self.name = name
        self.config = config
        self.model, self.url = parse_endpoint(name)
        self.fingerprint = content_hash("endpoint", self.model, self.url)
        key = os.environ.get("RAGTUNE_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._client = httpx.Client(
            timeout=httpx.Timeout(config.timeout, connect=config.connect_timeout),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=config.concurrency + 4),
        )
        self._window: int | None = None
        self._lock = threading.Lock()

    @property
    def context_window(self) -> int:
        """As the server's model list states it (`max_model_len`, vLLM); 4096 where it says nothing. May be set."""
        with self._lock:
            if self._window is None:
                listed: Any = []
                with contextlib.suppress(EndpointError):  # not every server lists its models
                    listed = self._request("GET", "/models", None).get("data") or []
                mine = next((m for m in listed if isinstance(m, dict) and m.get("id") == self.model), {})
                self._window = int(mine.get("max_model_len") or mine.get("context_length") or DEFAULT_WINDOW)
            return self._window

    @context_window.setter
    def context_window(self, tokens: int) -> None:
        self._window = tokens

    def count_tokens(self, text: str) -> int:
        """An estimate, rather too high: the endpoint's tokenizer is not here."""
        dense = len(_DENSE.findall(text))
        rest = _DENSE.sub(" ", text)
        return dense + max(-(-len(rest.strip()) // 4), len(re.findall(r"\w+|[^\w\s]", rest)))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """EndpointError: token ids are known only to the server."""
        raise EndpointError(f"{self.name} gives no token ids; name a local generator where they are needed.")

    # --- generation --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        decoding: Decoding | Sequence[Decoding] = Decoding(),
        *,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """One generation for each prompt, in order, several requests at a time."""
        each = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        if len(each) != len(prompts):
            raise ConfigError(f"{len(prompts)} prompts and {len(each)} decodings were given; give one, or one each.")
        bodies = [self._body(prompt, d) for prompt, d in zip(prompts, each, strict=True)]
        results: list[Generation | None] = [None] * len(prompts)
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            waiting = {pool.submit(self._one, body, d): i for i, (body, d) in enumerate(zip(bodies, each, strict=True))}
            try:
                for done, future in enumerate(as_completed(waiting), start=1):
                    results[waiting[future]] = future.result()
                    if progress is not None:
                        progress(done, len(prompts))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [r for r in results if r is not None]

    def _one(self, body: dict[str, Any], decoding: Decoding) -> Generation:
        reply = self._request("POST", "/chat/completions", body)
        choice = _first_choice(reply, self.name)
        text = str((choice.get("message") or {}).get("content") or "")
        usage = reply.get("usage") or {}
        spent = int(usage.get("completion_tokens") or self.count_tokens(text))
        asked = int(usage.get("prompt_tokens") or sum(self.count_tokens(m["content"]) for m in body["messages"]))
        return Generation(cut_at_stop(text, decoding.stop), asked, spent, _total_logprob(choice))

    def _body(self, messages: Sequence[Message], decoding: Decoding) -> dict[str, Any]:
        from rag.generator import check_decoding

        check_decoding(decoding)
        if decoding.copy_from is not None or decoding.copy_options:
            raise EndpointError(
                f"{self.name} cannot restrict answers to words of the passages (copy decoding). "
                "Use free decoding with an endpoint, or a local generator."
            )
        body: dict[str, Any] = {
            "model": self.model,
            "messages": as_chat(messages),
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
        }
        if decoding.temperature > 0:
            body["seed"] = decoding.seed
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        return body

    def stream(self, messages: Sequence[Message], decoding: Decoding = Decoding()) -> Iterator[str]:
        """Pieces of one generation as they come; closing the iterator closes the connection, which stops the server."""
        return self._pieces({**self._body(messages, decoding), "stream": True})

    def _pieces(self, body: dict[str, Any]) -> Iterator[str]:
        import httpx

        try:
            with contextlib.closing(self._open_stream(body)) as response:
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if data == "[DONE]":
                        return
                    if data:
                        piece = _delta(data, self.name)
                        if piece:
                            yield piece
        except httpx.HTTPError as error:
            raise EndpointError(f"{self.name} broke off in the middle of an answer: {_reason(error)}") from error

    def _open_stream(self, body: dict[str, Any]) -> httpx.Response:
        request = self._client.build_request("POST", self.url + "/chat/completions", json=body)
        return self._send(request, stream=True)

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score(self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]) -> list[np.ndarray]:
        """Log-probabilities of given completions, from servers that return them for prompts (vLLM's prompt_logprobs).

        Raises:
            EndpointError: the server returns none.
        """
        if len(prompts) != len(completions):
            raise ConfigError(f"{len(prompts)} prompts and {len(completions)} completions were given; give one each.")
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            return list(pool.map(self._score_one, prompts, completions))

    def _score_one(self, messages: Sequence[Message], completion: str) -> np.ndarray:
        base = {"model": self.model, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        asked = as_chat(messages)
        said = [*asked, {"role": "assistant", "content": completion}]
        prompt = self._prompt_logprobs({**base, "messages": asked, "add_generation_prompt": True})
        whole = self._prompt_logprobs({**base, "messages": said, "add_generation_prompt": False})
        values: list[float] = []
        text = ""
        for entry in whole[len(prompt) :]:
            values.append(float(entry["logprob"]))
            if len(text) >= len(completion):
                break  # this was the end of the turn; what the template writes behind it is not the model's
            text += str(entry.get("decoded_token") or "")
        if len(text) < len(completion):
            raise EndpointError(f"{self.name} returned log-probabilities that do not cover the completion.")
        return np.array(values, dtype=np.float32)

    def _prompt_logprobs(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """One entry for each prompt token: that token's own log-probability and text."""
        reply = self._request("POST", "/chat/completions", body)
        listed = reply.get("prompt_logprobs")
        if listed is None:
            listed = _first_choice(reply, self.name).get("prompt_logprobs")
        if not isinstance(listed, list):
            raise EndpointError(
                f"{self.name} returns no log-probabilities for given text (prompt_logprobs, as vLLM has). "
                "Use a local generator for recipes that score answers."
            )
        first = {"logprob": 0.0, "decoded_token": ""}  # the first token has nothing before it
        return [next(iter(entry.values())) if isinstance(entry, Mapping) and entry else first for entry in listed]

    # --- adapters ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def adapter(self, folder: str | None) -> Iterator[None]:
        """Nothing for None; a folder cannot be loaded into a server from here."""
        if folder is not None:
            raise EndpointError(
                f"{self.name} cannot load the adapter {folder} from here. Load it in the server and name it as the "
                "model (openai:ADAPTER@URL), or use a local generator."
            )
        yield

    # --- requests ----------------------------------------------------------------------------------------------------

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        request = self._client.build_request(method, self.url + path, json=body)
        response = self._send(request, stream=False)
        try:
            value = response.json()
        except ValueError as error:
            raise EndpointError(f"{self.name} answered {path} with something that is not JSON.") from error
        if not isinstance(value, dict):
            raise EndpointError(f"{self.name} answered {path} with {type(value).__name__}, not an object.")
        return value

    def _send(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        """Send with retries: 408, 429 and 5xx, and lost connections, with growing waits; other answers are final."""
        import httpx

        problem = ""
        for attempt in range(self.config.attempts):
            wait = self.config.backoff * 2**attempt * (0.75 + random.random() / 2)
            try:
                response = self._client.send(request, stream=stream)
            except httpx.ConnectError as error:
                raise EndpointError(
                    f"{self.name} cannot be reached: {_reason(error)}. Is the server running?"
                ) from error
            except httpx.HTTPError as error:
                problem = _reason(error)
            else:
                if response.is_success:
                    return response
                problem = self._explain(response)
                if response.status_code not in (408, 409, 429) and response.status_code < 500:
                    raise EndpointError(problem)
                wait = max(wait, _retry_after(response))
            if attempt + 1 < self.config.attempts:
                time.sleep(min(wait, self.config.longest_wait))
        raise EndpointError(f"{problem} (after {self.config.attempts} attempts)")

    def _explain(self, response: httpx.Response) -> str:
        with contextlib.closing(response):
            said = response.read().decode("utf-8", "replace").strip()
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            error = json.loads(said).get("error")
            said = str(error.get("message") if isinstance(error, dict) else error or said)
        hint = {401: " Set OPENAI_API_KEY or RAGTUNE_API_KEY.", 404: f" Is there a model '{self.model}'?"}
        return f"{self.name} answered {response.status_code}: {said[:300]}{hint.get(response.status_code, '')}"


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it asks nothing that is a number."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _first_choice(reply: Mapping[str, Any], name: str) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EndpointError(f"{name} answered without choices: {str(dict(reply))[:200]}")
    return choices[0]


def _delta(data: str, name: str) -> str:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise EndpointError(f"{name} streamed something that is not JSON: {data[:100]}") from error
    if value.get("error"):
        raise EndpointError(f"{name} broke off: {str(value['error'])[:300]}")
    choices = value.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


def _total_logprob(choice: Mapping[str, Any]) -> float | None:
    content = (choice.get("logprobs") or {}).get("content")
    return float(sum(entry["logprob"] for entry in content)) if content else None


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string (servers already do this; some keep the string itself)."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return text[: min(found)] if found else text
