"""Text to token ids and back for one chat model: the prompt as the model was taught it, and where an answer ends.

Training and serving both go through `ChatTokens`, so a row of training data and a served prompt are the same ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rag.errors import ModelError
from rag.protocols import TEXT, Message
from rag.types import content_hash


def tokenizer_hash(tokenizer: Any) -> str:
    """Identity of a tokenizer: vocabulary, merges, added tokens and chat template. Padding and truncation settings,
    which a trainer may change, do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts = json.loads(backend.to_str())
        body = json.dumps({k: v for k, v in parts.items() if k not in ("padding", "truncation")}, sort_keys=True)
    else:
        body = json.dumps(sorted(tokenizer.get_vocab().items()))
    template = tokenizer.chat_template
    return content_hash(body, template if isinstance(template, str) else json.dumps(template, sort_keys=True))


class ChatTokens:
    """The chat template of a tokenizer, with text that looks like control tokens made harmless.

    A document may contain "<|im_end|>"; it must not close the user's turn. Such strings in messages and completions get
    a space behind their first character, which makes ordinary tokens of them.
    """

    def __init__(self, tokenizer: Any, generation_config: Any = None) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self.controls = sorted({t.content for t in added if t.special and len(t.content.strip()) > 2}, key=len)[::-1]
        self._control = re.compile("|".join(map(re.escape, self.controls))) if self.controls else None
        self.end_of_turn = self._find_end_of_turn()
        self.ends = self._find_ends(generation_config)

    def harmless(self, text: str) -> str:
        """`text` without anything that tokenises as a control token."""
        if self._control is None:
            return text
        return self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def ids(self, text: str) -> list[int]:
        """Token ids of plain text."""
        encoded = self.tokenizer(self.harmless(text), add_special_tokens=False, truncation=False, verbose=False)
        return [int(token) for token in encoded["input_ids"]]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The chat template over `messages`, ready for the assistant's turn; without a template, the contents alone.

        Where the last message is the assistant's, it is the beginning of the answer, and the model continues it.
        Messages that begin with the role "text" are strung together as they stand, without the template.
        """
        if messages and messages[0]["role"] == TEXT:
            return self._plain_ids(messages)
        begun = bool(messages) and messages[-1]["role"] == "assistant"
        clean = [{**message, "content": self.harmless(message["content"])} for message in messages]
        if not self.tokenizer.chat_template:
            return self.ids("\n\n".join(message["content"] for message in messages) + ("" if begun else "\n\n"))
        try:
            ids = self.tokenizer.apply_chat_template(
                clean,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                tokenize=True,
                return_dict=False,
                truncation=False,
            )
        except Exception as error:  # templates raise jinja's own errors: a role or an order they do not know
            if type(error).__module__.split(".")[0] not in ("jinja2", "builtins"):
                raise
            roles = " ".join(message["role"] for message in messages)
            raise ModelError(f"The model's chat template refuses messages with the roles [{roles}]: {error}") from error
        return [int(token) for token in ids]

    def _plain_ids(self, messages: Sequence[Message]) -> list[int]:
        """One message after the other; behind what the assistant said, but for a beginning, the end of its turn."""
        encoded = self.tokenizer(self.harmless(messages[0]["content"]), truncation=False, verbose=False)
        out = [int(token) for token in encoded["input_ids"]]
        for i, message in enumerate(messages[1:], start=2):
            said = message["role"] == "assistant" and i < len(messages)
            out += self.completion_ids(message["content"]) if said else self.ids(message["content"])
        return out

    def completion_ids(self, text: str) -> list[int]:
        """What the model should say after `prompt_ids`: the text, then the end of the turn."""
        return [*self.ids(text), self.end_of_turn]

    def _find_end_of_turn(self) -> int:
        """The control token that the template puts behind an assistant's message; else the end-of-text token."""
        eos = self.tokenizer.eos_token_id
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
            rendered = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
            behind = rendered.rpartition("answer")[2].lstrip()
            if behind:
                first = int(self.tokenizer(behind, add_special_tokens=False)["input_ids"][0])
                if first in getattr(self.tokenizer, "added_tokens_decoder", {}):
                    return first
        if eos is None:
            raise ModelError("The tokenizer names no end-of-text token, so an answer could never end.")
        return int(eos)

    def _find_ends(self, generation_config: Any) -> tuple[int, ...]:
        configured = getattr(generation_config, "eos_token_id", None)
        more = configured if isinstance(configured, (list, tuple)) else [configured]
        found = {self.end_of_turn, *(int(t) for t in (*more, self.tokenizer.eos_token_id) if t is not None)}
        return tuple(sorted(found))
