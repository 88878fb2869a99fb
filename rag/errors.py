"""Every way ragtune can fail on purpose, in one screen.

    RagtuneError                 base; the command line prints it as one sentence
    ├── UsageError               you asked wrongly: exit code 2
    │   ├── ConfigError          a setting has a value that is not allowed
    │   ├── QuestionsError       a questions file has broken or missing lines
    │   └── UnknownModel         a model name that resolves to nothing here
    ├── LoadError                one document cannot be read (reported per file, never fatal to a run)
    ├── IndexError_              the index cannot be used as asked
    │   ├── IndexMissing         there is no index at this path
    │   ├── IndexCorrupt         a file of the index is damaged: names the file
    │   ├── IndexLocked          another process is writing: names it
    │   └── EncoderMismatch      the index was made with another encoder: names both
    ├── ModelError               a model or an endpoint failed
    │   ├── AdapterMismatch      the adapter belongs to another base or tokenizer
    │   ├── EndpointError        the remote endpoint failed or lacks a feature
    │   └── NumericalError       NaN or infinity where a number must stand
    ├── ToolError                an agent asked a tool wrongly: shown to the model, which may ask again
    ├── StoreError               conversations, ratings or jobs cannot be saved: names the file
    └── TrainingError            training stopped: names step and rows

Every message says what was given, what is allowed, and what to do.
"""

from __future__ import annotations


class RagtuneError(Exception):
    """Base of all expected failures; `str(error)` is a sentence for the user."""

    exit_code = 1


class UsageError(RagtuneError):
    """The request itself is wrong; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting has a value that is not allowed; names the field."""


class QuestionsError(UsageError):
    """A questions file has unusable lines; `problems` holds (line number, reason)."""

    def __init__(self, message: str, problems: tuple[tuple[int, str], ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class UnknownModel(UsageError):
    """A model name is neither a starter, a folder, an endpoint nor a reachable hub id."""


class LoadError(RagtuneError):
    """One document cannot be read; the reason is for the person who owns the file."""


class IndexError_(RagtuneError):
    """The index cannot be used as asked (the underscore keeps Python's own IndexError visible)."""


class IndexMissing(IndexError_):
    """There is no committed index at the given path."""

    exit_code = 2


class IndexCorrupt(IndexError_):
    """A file of the index is damaged or does not match the manifest; the message names it."""


class IndexLocked(IndexError_):
    """Another process holds the write lock; the message names it."""


class EncoderMismatch(IndexError_):
    """The index was made with another encoder; the message names both."""

    exit_code = 2


class ModelError(RagtuneError):
    """A model could not be loaded or run."""


class AdapterMismatch(ModelError):
    """The adapter was trained on another base model or tokenizer."""

    exit_code = 2


class EndpointError(ModelError):
    """A remote endpoint failed, or lacks a feature that was asked for."""


class NumericalError(ModelError):
    """A model returned NaN or infinity; nothing of that batch was kept."""


class ToolError(RagtuneError):
    """An agent's tool was asked wrongly. The message says how to ask, and is an observation for the model."""


class TrainingError(RagtuneError):
    """Training stopped; the message names the step and the rows."""


class StoreError(RagtuneError):
    """Conversations, ratings or the state of a job cannot be read or saved; what was saved before is intact."""
