# ruff: noqa: E501
"""Every sentence of the page in one table, English and Chinese; code names them by their key.

A template takes values in braces. In English "one|many" is chosen by `n`. What comes from elsewhere (messages of errors,
reasons of a decision, log lines) stays in English: `Words.of` translates those sentences of the page's own that other
rooms hand over as text, and leaves the rest as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from apps.markup import sentence
from apps.strings_work import WORK

LANGUAGES = {"en": ("English", "/"), "zh": ("中文", "/zh")}
"""Language → its own name, and the path of the page in it."""

TABLE: dict[str, tuple[str, str]] = {
    # ------------------------------------------------------------------ the frame
    "title": ("ragtune", "ragtune"),
    "language": ("Language", "语言"),
    "tab-chat": ("Chat", "对话"),
    "tab-documents": ("Documents", "文档"),
    "tab-tune": ("Tune", "微调"),
    "tab-decide": ("Decide", "决策"),
    "documents-n": ("{n:,} document|{n:,} documents", "{n:,} 个文档"),
    "chunks-n": ("{n:,} chunk|{n:,} chunks", "{n:,} 个片段"),
    "pages-n": ("{n:,} page|{n:,} pages", "{n:,} 页"),
    "encoder-named": ("encoder: {name}", "编码器：{name}"),
    "adapter-named": ("adapter {name}", "适配器 {name}"),
    "close": ("Close", "关闭"),
    "opening": ("Opening…", "正在打开…"),
    "no-server": (
        "The server did not answer. Is `ragtune chat` still running?",
        "服务器没有响应。`ragtune chat` 还在运行吗？",
    ),
    "save": ("Save", "保存"),
    "delete": ("Delete…", "删除…"),
    "remove": ("Remove", "移除"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "and": (" and ", "和"),
    "and-also": (" And ", "另外，"),
    "seconds": ("{s} s", "{s} 秒"),
    # ------------------------------------------------------- conversations
    "talks": ("Conversations", "对话列表"),
    "talks-n": ("{n} conversation|{n} conversations", "{n} 个对话"),
    "no-talks": ("Your conversations are kept here.", "您的对话会保存在这里。"),
    "new-talk": ("New conversation", "新对话"),
    "untitled": ("Untitled", "未命名"),
    "talk-menu": ("Rename, export or delete “{title}”", "重命名、导出或删除“{title}”"),
    "rename": ("Title", "标题"),
    "export-markdown": ("Save as Markdown", "保存为 Markdown"),
    "export-json": ("Save as JSON", "保存为 JSON"),
    "delete-talk-sure": ("Delete this conversation", "删除此对话"),
    "ago-now": ("just now", "刚刚"),
    "ago-minutes": ("{n} minute ago|{n} minutes ago", "{n} 分钟前"),
    "ago-hours": ("{n} hour ago|{n} hours ago", "{n} 小时前"),
    "ago-days": ("{n} day ago|{n} days ago", "{n} 天前"),
    # ------------------------------------------------------------- asking
    "welcome": ("Ask your documents", "向您的文档提问"),
    "welcome-next": (
        "Answers are looked for in {documents} ({chunks}). A number in an answer opens the sentence it rests on.",
        "将在{documents}（{chunks}）中寻找答案。答案中的数字会打开它所依据的句子。",
    ),
    "welcome-none": ("No documents yet", "还没有文档"),
    "welcome-none-next": (
        "Add some under **Documents**, or type `ragtune index FOLDER --out INDEX`. Without documents only the model’s own "
        "memory answers.",
        "请在**文档**中添加，或输入 `ragtune index FOLDER --out INDEX`。没有文档时，只能凭模型自身的记忆回答。",
    ),
    "question": ("Question", "问题"),
    "question-placeholder": ("Ask a question", "请输入问题"),
    "ask": ("Ask", "提问"),
    "stop": ("Stop", "停止"),
    "answer-with": ("Answer with", "回答方式"),
    "compare-with": ("Compare with", "对比方式"),
    "nothing": ("nothing", "无"),
    "not-available": ("{arm} (not available)", "{arm}（不可用）"),
    "retry": ("Ask again", "重新回答"),
    "edit-question": ("Edit question", "编辑问题"),
    "editing": ("Change the question and ask: it replaces the last one.", "修改问题后提问：将替换上一个问题。"),
    "needs-documents": ("needs documents: add some under Documents.", "需要文档：请在“文档”中添加。"),
    "needs-adapter": (
        "needs an adapter: `ragtune tune` or `ragtune decide` makes one.",
        "需要适配器：可用 `ragtune tune` 或 `ragtune decide` 生成。",
    ),
    "auto-routed": ("auto (chosen for each question)", "自动（按问题选择）"),
    "why-measured": ("Chosen by measurement. {reason}", "由测量选出。{reason}"),
    "why-missing": (
        "The decision chose {chosen}, which cannot run here: its adapter is missing. {arm} answers instead.",
        "决策选择了 {chosen}，但缺少其适配器，无法运行。改由 {arm} 回答。",
    ),
    "why-undecided": ("The decision found no arm to prefer. {arm} answers.", "决策没有发现更优的方式。由 {arm} 回答。"),
    "why-picked": (
        "{arm} answers, with the adapter you chose under Tune.",
        "由 {arm} 回答，使用您在“微调”中选择的适配器。",
    ),
    "why-unmeasured": (
        "Nothing has been measured yet, so {arm} answers. `ragtune decide` finds out what your questions need.",
        "尚未进行测量，因此由 {arm} 回答。`ragtune decide` 可以找出您的问题需要什么。",
    ),
    "arm-base": ("the model alone", "仅模型"),
    "arm-rag": ("the model with your documents", "模型加您的文档"),
    "arm-tuned": ("the tuned model alone", "仅微调后的模型"),
    "arm-tuned+rag": ("the tuned model with your documents", "微调后的模型加您的文档"),
    "arm-self-rag": ("judges its own passages and sentences", "自行评判段落和句子"),
    "arm-ra-dit": ("tuned together with its retriever", "与检索器一同微调"),
    "arm-replug": ("weighs one answer per passage", "按段落加权回答"),
    "arm-rag-token": ("mixes passages at every word", "逐词混合各段落"),
    "arm-rag-sequence": ("mixes passages for whole answers", "按整句混合各段落"),
    "arm-flare": ("searches again where it is unsure", "没有把握时再检索"),
    "arm-iterative": ("searches again while it writes", "边写边检索"),
    "arm-agent": ("plans its own searches", "自行规划检索"),
    # ------------------------------------------------------------- an answer
    "stopped": ("Stopped.", "已停止。"),
    "kept": ("What was written so far is kept above.", "已写的内容保留在上方。"),
    "nothing-written": ("Nothing had been written yet.", "还没有写出任何内容。"),
    "abstained": ("Not in the documents.", "文档中没有。"),
    "abstained-read": ("The passages found do not answer this.", "找到的段落没有回答这个问题。"),
    "abstained-nothing": ("Nothing was found that answers this.", "没有找到能回答的内容。"),
    "abstained-next": (
        "Ask in other words, or add a document that says it.",
        "请换一种说法，或添加包含答案的文档。",
    ),
    "no-word": ("The model ended without a word. Ask in other words.", "模型没有写出任何内容。请换一种说法。"),
    "doing-loading": ("Loading the model…", "正在加载模型…"),
    "doing-waiting": ("Waiting…", "正在等待…"),
    "doing-searching": ("Searching{where}{what}…", "正在搜索{where}{what}…"),
    "doing-for": (" for “{query}”", "“{query}”"),
    "doing-reading": ("Reading {n} passage…|Reading {n} passages…", "正在阅读 {n} 个段落…"),
    "doing-thinking": ("Thinking…", "正在思考…"),
    "doing-writing": ("Writing…", "正在写…"),
    "tokens": ("{read:,} tokens read, {written:,} written", "读入 {read:,} 个词元，写出 {written:,} 个"),
    "from-memory": (
        "From the model’s memory: no document was read, so nothing is cited.",
        "来自模型的记忆：没有读取文档，因此没有引用。",
    ),
    "no-source-named": (
        "The answer names no source: check it against the passages.",
        "答案没有注明来源：请对照段落核实。",
    ),
    "unknown-markers": (
        "{n} citation named no passage and was removed.|{n} citations named no passage and were removed.",
        "有 {n} 处引用没有对应的段落，已删除。",
    ),
    "steps": ("{n} step|{n} steps", "{n} 个步骤"),
    "step-judge": ("judges", "评判"),
    "step-thought": ("thinks", "思考"),
    "step-action": ("does", "行动"),
    "step-observation": ("sees", "观察"),
    "step-retrieve": ("searches", "检索"),
    "step-search": ("searches", "检索"),
    "step-route": ("chooses", "选择"),
    "chip-relevant": ("relevant", "相关"),
    "chip-supported": ("supported", "有据"),
    "chip-useful": ("useful", "有用"),
    "route": ("Why this way:", "为何如此："),
    "vote-up": ("Good answer", "好答案"),
    "vote-down": ("Bad answer: say why", "差答案：说明原因"),
    "vote-why": ("What is wrong with it?", "哪里有问题？"),
    "vote-right": ("What would have been right? (becomes a training row)", "正确答案是什么？（会成为训练数据）"),
    "vote-send": ("Send", "发送"),
    "reason-wrong-answer": ("wrong answer", "答案错误"),
    "reason-wrong-source": ("wrong source", "来源错误"),
    "reason-incomplete": ("incomplete", "不完整"),
    "reason-style": ("style", "表达方式"),
    "prefer": ("This one is better", "这个更好"),
    "prefer-done": ("Preferred", "已选为更好"),
    "votes-none": (
        "No ratings yet. A thumb on an answer makes it count: votes can be exported, or tuned on.",
        "还没有评价。给答案投票会有用：投票可以导出，或用于微调。",
    ),
    "votes-n": ("{n} rating|{n} ratings", "{n} 个评价"),
    "pairs-n": ("{n} comparison|{n} comparisons", "{n} 个对比"),
    "corrections-n": ("{n} correction|{n} corrections", "{n} 个更正"),
    "votes-next": ("Export them, or tune with them under Tune.", "可以导出，或在“微调”中使用。"),
    "votes-missing": (
        "Export them; {n} more and they can tune the model.",
        "可以导出；再有 {n} 个就可以用来微调模型。",
    ),
    "votes-one-sided": (
        "Export them; to tune, good and bad ones are needed.",
        "可以导出；要用于微调，好评和差评都需要。",
    ),
    # ------------------------------------------------------------- sources
    "sources": ("Sources", "来源"),
    "sources-n": ("{n} source|{n} sources", "{n} 个来源"),
    "cited-n": ("{n} cited", "引用 {n} 个"),
    "sources-of": ("Sources of {arms}", "{arms} 的来源"),
    "source": ("Source {n}", "来源 {n}"),
    "page": ("page {n}", "第 {n} 页"),
    "nothing-found": ("Nothing in the documents resembles this question.", "文档中没有与此问题相近的内容。"),
    "cut": (
        "{n} more passage did not fit into the model’s context and was not read.|{n} more passages did not fit into the "
        "model’s context and were not read.",
        "另有 {n} 个段落放不进模型的上下文，没有读取。",
    ),
    "open-document": ("Open document", "打开文档"),
    "score-bar": (
        "Score {score}, rank {rank}; the bar is relative to the best",
        "得分 {score}，排名 {rank}；条长相对于最高分",
    ),
    "support": ("cited, {share} support", "已引用，支持度 {share}"),
    "support-weak": ("cited, only {share} support", "已引用，支持度仅 {share}"),
    "scores-by-stage": ("Scores by stage", "各阶段得分"),
    "rank": ("Rank", "排名"),
    "higher-better": ("Higher is better in every row.", "每一行都是越高越好。"),
    "stage-dense": ("Meaning (dense)", "语义（稠密）"),
    "stage-lexical": ("Words (lexical)", "词语（词法）"),
    "stage-fused": ("Both (fused)", "两者（融合）"),
    "stage-rerank": ("Reranked", "重排"),
    "left-before": ("{n:,} characters before this are not shown.", "前面有 {n:,} 个字符未显示。"),
    "left-after": ("{n:,} characters after this are not shown.", "后面有 {n:,} 个字符未显示。"),
    # ------------------------------------------------------------- documents
    "documents-head": ("Indexed documents", "已索引的文档"),
    "documents-some": ("{n:,} of {total:,} documents", "{total:,} 个文档中的 {n:,} 个"),
    "filter": ("Filter by name", "按名称筛选"),
    "add-head": ("Add", "添加"),
    "drop-here": ("Drop files here", "将文件拖到这里"),
    "upload-hint": (
        "{kinds}. At most {size} a file, {files} files at once. A file of the same name replaces the earlier one.",
        "{kinds}。每个文件最大 {size}，一次最多 {files} 个。同名文件会替换先前的文件。",
    ),
    "delete-head": ("Delete", "删除"),
    "delete-hint": ("Choose documents; you are asked before they go.", "请选择文档；删除前会再次询问。"),
    "delete-choice": ("Documents to delete", "要删除的文档"),
    "delete-nothing": ("Choose the documents to delete first.", "请先选择要删除的文档。"),
    "delete-sure": ("Delete from the index", "从索引中删除"),
    "keep": ("Keep", "保留"),
    "delete-ask": ("Delete from the index?", "要从索引中删除吗？"),
    "delete-note": (
        "Copies of uploaded files go, too, and their text goes from stored conversations. Files in your own folders stay "
        "where they are, and come back with the next `ragtune index`.",
        "上传文件的副本也会删除，其文本会从保存的对话中移除。您自己文件夹中的文件不动，下次 `ragtune index` 时会重新加入。",
    ),
    "and-more": ("and {n} more", "以及另外 {n} 个"),
    "no-match": (
        "No document has this in its name. Clear the filter to see all.",
        "没有名称匹配的文档。清除筛选以查看全部。",
    ),
    "no-documents": (
        "**Nothing is indexed yet.** Drop files above, or type `ragtune index FOLDER --out INDEX` in a terminal.",
        "**还没有索引任何内容。** 请拖入文件，或在终端输入 `ragtune index FOLDER --out INDEX`。",
    ),
    "more-documents": ("{n:,} more are not listed: use the filter.", "另有 {n:,} 个未列出：请使用筛选。"),
    "file": ("File", "文件"),
    "pages": ("Pages", "页数"),
    "chunks": ("Chunks", "片段"),
    "status": ("Status", "状态"),
    "actions": ("Actions", "操作"),
    "uploaded": ("uploaded", "已上传"),
    "indexed": ("indexed", "已索引"),
    "chunks-show": ("Chunks", "片段"),
    "chunks-of-file": ("Show the chunks of {name}", "显示 {name} 的片段"),
    "reindex": ("Re-index", "重新索引"),
    "reindex-file": ("Read {name} again", "重新读取 {name}"),
    "delete-file": ("Delete {name}", "删除 {name}"),
    "no-chunks": ("This document has no text.", "此文档没有文本。"),
    "chunks-of": ("{n:,} chunk, as retrieval sees it|{n:,} chunks, as retrieval sees them", "{n:,} 个片段，即检索所见"),
    "more-chunks": ("{n:,} more are not shown.", "另有 {n:,} 个未显示。"),
    "files-done": ("{n} of {total} files done", "已完成 {n} / {total} 个文件"),
    "files-failed": (", {n} failed", "，{n} 个失败"),
    "verdict-queued": ("waiting", "等待中"),
    "verdict-working": ("working", "处理中"),
    "verdict-indexed": ("indexed", "已索引"),
    "verdict-unchanged": ("already there", "已存在"),
    "verdict-failed": ("not indexed", "未索引"),
    "try-head": ("Try a search", "试搜索"),
    "try-placeholder": ("Words or a question", "词语或问题"),
    "search": ("Search", "搜索"),
    "search-empty": (
        "Type words above to see what each stage of the search finds. No model is asked, so this is the quickest way to "
        "learn why an answer missed its source.",
        "在上方输入词语，查看搜索的每个阶段找到什么。不调用模型，因此这是了解答案为何错过来源的最快方法。",
    ),
    "search-nothing": ("Nothing found.", "没有找到。"),
    "results-for": ("Results for {query}", "{query} 的结果"),
    **WORK,
    # ------------------------------- sentences that other rooms hand over as text
    "of-not-loaded": ("Not loaded yet", "尚未加载"),
    "of-encoder": ("Loading the encoder…", "正在加载编码器…"),
    "of-model": ("Loading the chat model…", "正在加载对话模型…"),
    "of-ready": ("Ready", "就绪"),
    "of-queue": ("Another question is being answered first…", "正在先回答另一个问题…"),
    "of-interrupted": ("The server ended while this was being written.", "写作过程中服务器结束了。"),
    "of-same": ("The same file was indexed before.", "此前已索引过相同的文件。"),
    "of-replaced": ("It replaces the earlier file of this name.", "它替换了先前的同名文件。"),
    "of-unchanged": ("Its file has not changed.", "文件没有变化。"),
    "of-gone": ("Its file is not where it was.", "文件已不在原处。"),
    "of-empty": ("The file is empty.", "文件为空。"),
    "of-no-text": ("No text was found in it.", "其中没有找到文本。"),
    "of-turn": ("waiting for its turn", "等待处理"),
    "of-reading": ("reading", "读取"),
    "of-embedding": ("embedding", "嵌入"),
    "of-saving": ("saving", "保存"),
    "of-no-train": (
        "Choose questions to train on first: upload, make, or collect some.",
        "请先选择训练用的问题：上传、生成或收集。",
    ),
    "of-same-questions": (
        "The questions to measure on are those to train on; choose others, or none.",
        "测量用的问题与训练用的相同；请选择其他的，或不选。",
    ),
    "of-no-questions": ("Choose held-out questions to measure on first.", "请先选择用于测量的留出问题。"),
    "of-no-votes": (
        "There are no rated answers yet: vote on answers in the chat, or correct them.",
        "还没有评价过的答案：请在对话中投票或更正。",
    ),
    "of-models-loading": ("The models are still loading. Try again in a moment.", "模型仍在加载。请稍后再试。"),
    "of-encoder-loading": ("The encoder is still loading.", "编码器仍在加载。"),
    "of-no-reranker": (
        "No reranker is in use: start with `--reranker NAME` to have one.",
        "没有使用重排器：启动时加 `--reranker NAME`。",
    ),
}


@dataclass(frozen=True, slots=True)
class Words:
    """The table in one language: `t("key", n=3)` is a plain text, `t.html("key")` is HTML."""

    language: str = "en"

    def __call__(self, key: str, **values: object) -> str:
        """The sentence of a key with its values. KeyError for a key that is not in the table."""
        english, chinese = TABLE[key]
        template = chinese if self.language == "zh" else english
        if self.language != "zh" and "|" in template:
            one, _, many = template.partition("|")
            template = one if values.get("n") == 1 else many
        return template.format(**values)

    def html(self, key: str, **values: object) -> str:
        """The sentence as HTML: everything escaped, **words** bold, `words` as code."""
        return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", sentence(self(key, **values)))

    def of(self, text: str) -> str:
        """A sentence that came as English text, in this language where the table has it."""
        key = _KEYS.get(text)
        return self(key) if key is not None else text

    def arm(self, arm: str) -> str:
        """What an arm is, in a few words; "" for one the table does not know."""
        return self(f"arm-{arm}") if f"arm-{arm}" in TABLE else ""

    def step(self, kind: str) -> str:
        """What a step of this kind does; the kind itself where the table does not know it."""
        return self(f"step-{kind}") if f"step-{kind}" in TABLE else kind

    def job(self, kind: str) -> str:
        """What a job of this kind does."""
        return self(f"job-{kind}") if f"job-{kind}" in TABLE else kind


_KEYS = {english: key for key, (english, _) in TABLE.items() if key.startswith("of-")}

ENGLISH, CHINESE = Words("en"), Words("zh")
WORDS = {"en": ENGLISH, "zh": CHINESE}
