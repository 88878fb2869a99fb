"""What an agent may do: look into the index, calculate, ask the corpus's tables. All of it reads, nothing else.

    ask[question]       the short answer that plain retrieval gives to one question, by the weights tuned for that
    search[words]       the sentences that answer best, from the passages that retrieval finds
    lookup[word]        the next sentence of the open document with this word
    read[document]      the beginning of a document, then its next part
    calculate[54 - 48]  arithmetic
    table[SELECT ...]   one read-only SQL statement over the corpus's tables
    finish[answer]      the end; known to the loop, not a function

A `Toolkit` belongs to one run: what is open, and where a lookup stands, is nobody else's. Each tool is a typed function
whose docstring is its schema; `langchain_tools` gives them as LangChain tools, and LangChain tools can be added.
"""

from __future__ import annotations

import inspect
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agents.tools_calculate import calculate
from agents.tools_table import Database, corpus_tables
from rag.errors import ConfigError, ToolError
from rag.prompt import ABSTAIN, strip_markers
from rag.types import Answer, Passage

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from rag.index import Index
    from rag.retrieve import Retriever

FINISH = "finish"
ASK = "ask"
Reader = Callable[[Sequence[str]], Sequence[Answer]]
"""Answers questions as another arm does, several at once."""
NO_MORE = "No more results."
MIN_WORDS = 3  # shorter units are headings and rules
MAX_SENTENCE = 260
"""Characters of a sentence that are shown: long rows of a table would fill an observation alone."""
RAW_CHARACTERS = 20_000
"""Of what a tool returns, only so much is looked at: a tool may return megabytes."""
PASSAGE_WEIGHT = 0.6
"""Share of a passage's score in that of its sentences. With five passages and three sentences, 92 % of the handbook's
questions about one document have their answer among the sentences; without it 90 %."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function from one text to one text. `hint` stands in the brackets when tools are listed to a model."""

    name: str
    hint: str
    about: str
    function: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came back. `failed`: "" or "argument" (asked wrongly), "unavailable" (it raised or hung, after retries).
    `tokens_in` and `tokens_out` are those of a model that the tool used."""

    text: str
    failed: str = ""
    attempts: int = 1
    tokens_in: int = 0
    tokens_out: int = 0


class Corpus:
    """What all runs over one index share: word statistics, document names, tables. Made once, then only read.

    Cheap until used; each part is built at the first call that needs it.
    """

    def __init__(self, retriever: Retriever, *, passages: int = 5, sentences: int = 3) -> None:
        self.retriever, self.passages, self.sentences = retriever, passages, sentences
        self._lock = threading.Lock()
        self._weights: dict[str, float] | None = None
        self._database: Database | None = None
        self._generation: int | None = None

    @property
    def index(self) -> Index:
        return self.retriever.index

    def _fresh(self) -> None:
        if self._generation != self.index.generation:
            self._weights, self._database, self._generation = None, None, self.index.generation

    def weights(self) -> dict[str, float]:
        """ln(1 + (N − df + 0.5) / (df + 0.5)) of each word of the index (N chunks, df of them with the word)."""
        from rag.lexical import tokenize

        with self._lock:
            self._fresh()
            if self._weights is None:
                seen: dict[str, int] = {}
                for chunk in self.index.chunks:
                    for word in set(tokenize(chunk.text)):
                        seen[word] = seen.get(word, 0) + 1
                total = len(self.index.chunks)
                self._weights = {w: math.log(1 + (total - n + 0.5) / (n + 0.5)) for w, n in seen.items()}
            return self._weights

    def database(self) -> Database:
        """The corpus's tables in memory."""
        with self._lock:
            self._fresh()
            if self._database is None:
                sources = [info.source for info in self.index.sources]
                self._database = Database(corpus_tables((source, self.index.text(source)) for source in sources))
            return self._database

    def find_source(self, name: str) -> str | None:
        """The document meant: by its path, its file name, or its stem; None when there is none or more than one."""
        wanted = name.strip().strip("\"'").lower()
        sources = [info.source for info in self.index.sources]
        for form in (str.lower, lambda s: s.rsplit("/", 1)[-1].lower(), stem):
            found = [source for source in sources if form(source) == wanted]
            if len(found) == 1:
                return found[0]
        return None

    def best_sentences(self, query: str, found: Sequence[Passage]) -> list[tuple[Passage, str]]:
        """The sentences and rows of the passages that share most of the query's word weight; passages' ranks count."""
        from rag.atoms import count_words
        from rag.lexical import tokenize
        from rag.sentences import sentences

        weights, asked = self.weights(), set(tokenize(query))
        rare = max(weights.values(), default=1.0)
        total = sum(weights.get(word, rare) for word in asked) or 1.0
        scored: list[tuple[float, int, Passage, str]] = []
        for passage in found:
            chunk = passage.chunk
            around = set(tokenize(f"{' '.join(chunk.headings)} {stem(chunk.source)}"))
            for start, end in sentences(chunk.text):
                text = _row(chunk.text[start:end])
                if count_words(text) >= MIN_WORDS:
                    shared = asked & (around | set(tokenize(text)))
                    score = sum(weights.get(w, rare) for w in shared) / total + PASSAGE_WEIGHT * passage.score
                    scored.append((score, len(scored), passage, text))
        scored.sort(key=lambda item: (-item[0], item[1]))
        kept: dict[str, Passage] = {}
        for _, _, passage, text in scored:
            kept.setdefault(text, passage)
            if len(kept) == self.sentences:
                break
        return [(passage, text) for text, passage in kept.items()]


def _row(text: str) -> str:
    """A sentence or a table row on one line, without the row's outer bars."""
    return " ".join(text.split()).strip("| ")


def shorten(text: str) -> str:
    """At most MAX_SENTENCE characters, cut between words."""
    return text if len(text) <= MAX_SENTENCE else text[:MAX_SENTENCE].rsplit(" ", 1)[0] + " …"


def stem(source: str) -> str:
    """The name of a document without folder and suffix, in lower case."""
    return source.rsplit("/", 1)[-1].rsplit(".", 1)[0].lower()


@dataclass
class Toolkit:
    """The tools of one run. `seen` are the passages that searches found, in order; `shown` the sentences of them.

    `ask` is there where a `reader` is.
    """

    corpus: Corpus
    reader: Reader | None = field(default=None, kw_only=True)
    extra: Sequence[Tool] = ()
    names: Sequence[str] | None = None
    retries: int = 1
    seconds: float = 10.0
    seen: dict[str, Passage] = field(default_factory=dict)
    shown: list[tuple[str, str]] = field(default_factory=list)
    _open: str = ""
    _sentences: list[str] = field(default_factory=list)
    _at: int = 0
    _keyword: str = ""
    _matches: list[str] = field(default_factory=list)
    _match: int = 0

    def __post_init__(self) -> None:
        own = [
            Tool(ASK, "question", _about(self.ask), self.ask),
            Tool("search", "words", _about(self.search), self.search),
            Tool("read", "document", _about(self.read), self.read),
            Tool("lookup", "word", _about(self.lookup), self.lookup),
            Tool("calculate", "54 - 48", _about(calculate), calculate),
            Tool("table", "SELECT ...", _about(self.table), self.table),
        ]
        tools = {tool.name: tool for tool in (*own, *self.extra)}
        if FINISH in tools:
            raise ConfigError(f"A tool may not be called {FINISH!r}: that word ends a run. Give it another name.")
        unknown = [name for name in self.names or () if name not in tools]
        if unknown:
            raise ConfigError(f"There is no tool {unknown[0]!r}; there are {', '.join(tools)}.")
        if self.reader is None:
            del tools[ASK]
        self.tools: Mapping[str, Tool] = {n: t for n, t in tools.items() if self.names is None or n in self.names}

    # ------------------------------------------------------------------ the tools

    def ask(self, question: str) -> str:
        """Get a short answer from the documents to one simple question.

        Args:
            question: a whole question about one thing.
        """
        assert self.reader is not None, "the tool is not offered without one"
        return self.told(self.reader([question])[0]).text

    def told(self, answer: Answer) -> ToolResult:
        """What is said of a reader's answer; its passages and citations count as seen, and the first cited document is
        open then."""
        for passage in answer.passages:
            self.seen.setdefault(passage.chunk.id, passage)
        by_rank = {p.rank: p for p in answer.passages}
        self.shown += [(by_rank[c.number].chunk.id, c.quote) for c in answer.citations if c.number in by_rank]
        if answer.citations:
            self._turn_to(answer.citations[0].source)
        text = strip_markers(answer.text) or ABSTAIN
        return ToolResult(text, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out)

    def search(self, query: str) -> str:
        """Find the sentences of the documents that answer a question best.

        Args:
            query: a question or a few words, as they may stand in the documents.
        """
        found = self.corpus.retriever.search(query, self.corpus.passages)
        for passage in found:
            self.seen.setdefault(passage.chunk.id, passage)
        best = self.corpus.best_sentences(query, found)
        if not best:
            return "Nothing was found. Search with other words."
        self._turn_to(best[0][0].chunk.source)
        self.shown += [(passage.chunk.id, text) for passage, text in best]
        return "\n".join(f"({stem(passage.chunk.source)}) {shorten(text)}" for passage, text in best)

    def read(self, document: str) -> str:
        """Read the beginning of a document; the same document again: its next part.

        Args:
            document: the name of a document, as search shows it.
        """
        source = self.corpus.find_source(document)
        if source is None:
            names = ", ".join(dict.fromkeys(stem(p.chunk.source) for p in self.seen.values())) or "none yet"
            raise ToolError(f"There is no document {document.strip()[:40]!r}. Found so far: {names}.")
        if source != self._open:
            self._turn_to(source)
        part = self._sentences[self._at : self._at + 2 * self.corpus.sentences]
        self._at += len(part)
        return "\n".join(part) if part else f"{stem(source)} ends here."

    def lookup(self, keyword: str) -> str:
        """Find the next sentence with a word in the document that was read or found last.

        Args:
            keyword: a word or a few, as they stand in the document.
        """
        wanted = " ".join(keyword.lower().split())
        if not self._open:
            return f"{NO_MORE} Search first."
        if wanted != self._keyword:
            self._keyword, self._match = wanted, 0
            self._matches = [s for s in self._sentences if wanted in s.lower()]
        if self._match >= len(self._matches):
            return NO_MORE
        self._match += 1
        return f"(Result {self._match} / {len(self._matches)}) {self._matches[self._match - 1]}"

    def table(self, sql: str) -> str:
        """Ask the tables of the documents with one SQL SELECT statement.

        Args:
            sql: one SELECT over the tables, in SQLite's dialect.
        """
        return self.corpus.database().query(sql)

    def _turn_to(self, source: str) -> None:
        from rag.sentences import sentences

        text = self.corpus.index.text(source)
        self._open, self._at, self._keyword, self._matches, self._match = source, 0, "", [], 0
        self._sentences = [_row(text[a:b]) for a, b in sentences(text)]

    # ------------------------------------------------------------------ calling

    def call(self, name: str, argument: str) -> ToolResult:
        """One call, with its time limit. An exception is tried again, a wrong argument and a hanging tool are not."""
        tool = self.tools[name]
        if name == ASK:  # a model answers, in its own time; its errors are those of every answer
            assert self.reader is not None, "the tool is not offered without one"
            return self.told(self.reader([argument])[0])
        for attempt in range(1, self.retries + 2):
            try:
                text = _timed(lambda: tool.function(argument), self.seconds)
                return ToolResult(str(text)[:RAW_CHARACTERS], "", attempt)
            except ToolError as error:
                return ToolResult(str(error), "argument", attempt)
            except TimeoutError:
                return ToolResult("The tool is unavailable: it took too long.", "unavailable", attempt)
            except Exception:  # a tool may raise anything; its text may hold anything and is not shown
                continue
        return ToolResult("The tool is unavailable.", "unavailable", self.retries + 1)


def _timed(function: Callable[[], str], seconds: float) -> str:
    """The function's value. TimeoutError after `seconds`; its thread is then left behind, which Python cannot end."""
    outcome: list[tuple[bool, Any]] = []

    def work() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=work, name="ragtune-tool", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    fine, value = outcome[0]
    if not fine:
        raise value
    return str(value) if not isinstance(value, str) else value


def _about(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


# ------------------------------------------------------------------ LangChain, both ways


def langchain_tools(toolkit: Toolkit) -> list[BaseTool]:
    """The tools as LangChain tools: name, schema and description come from the functions and their docstrings.

    They go through `Toolkit.call`, so that limits and retries hold there, too.
    """
    from langchain_core.tools import StructuredTool

    made: list[BaseTool] = []
    for tool in toolkit.tools.values():
        made.append(_structured(StructuredTool, toolkit, tool))
    return made


def _structured(kind: Any, toolkit: Toolkit, tool: Tool) -> BaseTool:
    given = getattr(tool.function, "langchain", None)
    schema = given.args_schema if given is not None else None

    def function(**arguments: Any) -> str:
        values = list(arguments.values())
        text = values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(arguments)
        return toolkit.call(tool.name, text).text

    if schema is None:
        base = kind.from_function(
            tool.function, name=tool.name, parse_docstring="Args:" in (tool.function.__doc__ or "")
        )
        schema = base.args_schema
    made: BaseTool = kind.from_function(function, name=tool.name, description=tool.about, args_schema=schema)
    return made


def from_langchain(tool: BaseTool) -> Tool:
    """A LangChain tool for the text loop: one text argument is given as it is, several as a JSON object."""
    names = list(tool.args)
    text_only = len(names) == 1 and tool.args[names[0]].get("type") == "string"

    def function(argument: str) -> str:
        given: Any = {names[0]: argument} if text_only else _json_object(argument, names)
        return str(tool.invoke(given))

    function.langchain = tool  # type: ignore[attr-defined]
    hint = names[0] if text_only else json.dumps(dict.fromkeys(names, "..."))
    return Tool(tool.name, hint, " ".join(tool.description.split())[:120], function)


def _json_object(argument: str, names: Sequence[str]) -> dict[str, Any]:
    try:
        found = json.loads(argument)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ToolError(f"The argument must be a JSON object with {', '.join(names) or 'nothing in it'}.")
    return found
