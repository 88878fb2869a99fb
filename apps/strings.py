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
    # ------------------------------------------------------------- tune
    "tune-head": ("Make the model better at your questions", "让模型更擅长回答您的问题"),
    "tune-lead": (
        "The model is trained on what its own search finds for questions with known answers. Pick questions, look at the "
        "rows, see what it costs, run it.",
        "模型用它自己为已知答案的问题检索到的内容来训练。选择问题，查看训练行，了解开销，然后运行。",
    ),
    "step-questions": ("1 · Questions", "1 · 问题"),
    "step-settings": ("2 · Settings", "2 · 设置"),
    "step-run": ("3 · Run", "3 · 运行"),
    "step-adapters": ("4 · Adapters", "4 · 适配器"),
    "questions-upload": ("Upload questions (JSON lines)", "上传问题（JSON 行）"),
    "questions-make": ("Make questions from the documents", "根据文档生成问题"),
    "questions-count": ("How many", "数量"),
    "questions-votes": ("Collect from votes", "从投票收集"),
    "votes-export": ("Export votes (TRL)", "导出投票（TRL）"),
    "questions-train": ("Train on", "训练用"),
    "questions-test": ("Measure before and after on", "训练前后测量用"),
    "none": ("none", "无"),
    "took-questions": (
        "{n:,} question taken from {name}.|{n:,} questions taken from {name}.",
        "从 {name} 取得 {n:,} 个问题。",
    ),
    "recipe": ("Recipe", "方案"),
    "method": ("Method", "方法"),
    "epochs": ("Epochs", "轮数"),
    "learning-rate": ("Learning rate", "学习率"),
    "minutes": ("Stop after minutes", "限时（分钟）"),
    "passages": ("Passages", "段落数"),
    "adapter-name": ("Name", "名称"),
    "automatic": ("as the recipe has it", "按方案默认"),
    "look": ("Look at rows", "查看训练行"),
    "estimate": ("Estimate", "估算"),
    "tune-start": ("Start tuning", "开始微调"),
    "make-start": ("Make", "生成"),
    "preview-empty": (
        "“Look at rows” shows what the model will be given and what it learns to say.",
        "“查看训练行”会显示模型将看到什么、学说什么。",
    ),
    "preview-note": (
        "{rows} of the rows made of {questions} questions: {shares}.",
        "由 {questions} 个问题生成的训练行中的 {rows} 行：{shares}。",
    ),
    "share-abstain": ("{share} teach to abstain", "{share} 教模型拒答"),
    "share-gold_present": ("{share} hold the answer", "{share} 含有答案"),
    "share-gold_retrieved": ("for {share} of the questions the search found it", "{share} 的问题由搜索找到答案"),
    "kind-answer": ("answer", "回答"),
    "kind-abstain": ("abstain", "拒答"),
    "kind-good": ("good", "好"),
    "kind-bad": ("bad", "差"),
    "ratings-file": ("ratings {name}", "评价 {name}"),
    "preview-ratings": ("{rows} of {questions} ratings.", "{questions} 个评价中的 {rows} 个。"),
    "kind-closed-book": ("memory", "记忆"),
    "role-system": ("Instructions", "指令"),
    "role-text": ("Given to the model, to be continued", "提供给模型续写"),
    "role-user": ("Given to the model", "提供给模型"),
    "role-assistant": ("Earlier answer", "先前的回答"),
    "role-completion": ("What it learns to say", "学会说的话"),
    "row-tokens": ("{n:,} tokens", "{n:,} 个词元"),
    "forecast-rows": ("Rows", "行数"),
    "forecast-tokens": ("Tokens", "词元"),
    "forecast-time": ("Time", "时间"),
    "forecast-memory": ("Memory", "内存"),
    "forecast-free": ("Free memory", "可用内存"),
    "forecast-tight": (
        "This may not fit into memory: give the passages a smaller number, or end other programs.",
        "可能超出内存：请减少段落数，或关闭其他程序。",
    ),
    "forecast-note": (
        "Measured just now with forward passes over a few rows; right within a factor of two.",
        "刚才用几行数据的前向计算测得；误差在两倍以内。",
    ),
    "command": ("The command that runs", "将运行的命令"),
    "cancel": ("Cancel", "取消"),
    "cancelling": ("Cancelling…", "正在取消…"),
    "resume": ("Resume", "继续"),
    "ahead": ("{n} job before it|{n} jobs before it", "前面还有 {n} 个任务"),
    "time-left": ("about {time} left", "约剩 {time}"),
    "log": ("Log", "日志"),
    "state-queued": ("queued", "排队中"),
    "state-running": ("running", "运行中"),
    "state-done": ("done", "已完成"),
    "state-failed": ("failed", "失败"),
    "state-cancelled": ("cancelled", "已取消"),
    "state-dead": ("ended without a word", "意外终止"),
    "state-stuck": ("no sign of life for a minute", "一分钟没有动静"),
    "job-index": ("Indexing", "索引"),
    "job-questions": ("Making questions", "生成问题"),
    "job-tune": ("Tuning", "微调"),
    "job-decide": ("Deciding", "决策"),
    "job-evaluate": ("Measuring", "测量"),
    "jobs-head": ("Jobs", "任务"),
    "no-jobs": (
        "Nothing has run yet. Jobs go on when this page is closed.",
        "还没有运行过任务。关闭页面后任务仍会继续。",
    ),
    "curve": (
        "loss {first} → {last} after {steps} steps, {speed} tokens/s",
        "{steps} 步后损失 {first} → {last}，{speed} 词元/秒",
    ),
    "before-after": ("Before and after", "训练前后"),
    "before": ("Before", "之前"),
    "after": ("After", "之后"),
    "change": ("Change", "变化"),
    "metric": ("Metric", "指标"),
    "metric-f1": ("F1", "F1"),
    "metric-em": ("Exact match", "完全匹配"),
    "metric-match": ("Contains the answer", "包含答案"),
    "metric-abstained": ("Abstains", "拒答"),
    "metric-citation_recall": ("Sentences supported", "句子有据"),
    "before-after-note": (
        "Means over {n} held-out questions, with 95 % intervals below.",
        "{n} 个留出问题的平均值，下方为 95% 区间。",
    ),
    "before-after-none": (
        "Means over the held-out questions, with 95 % intervals below.",
        "留出问题的平均值，下方为 95% 区间。",
    ),
    "no-test": (
        "Not measured: choose questions to measure on, and the next run tells what it changed.",
        "没有测量：选择用于测量的问题，下次运行会显示变化。",
    ),
    "no-adapters": (
        "No adapter yet. What is trained appears here, to be used with one click.",
        "还没有适配器。训练结果会出现在这里，一键即可使用。",
    ),
    "use-adapter": ("Use this adapter", "使用此适配器"),
    "stop-using": ("Stop using it", "停止使用"),
    "in-use": ("in use", "使用中"),
    "other-base": ("made for another model", "属于另一个模型"),
    "rows-word": ("rows", "行"),
    "now-uses": ("{arm} answers with {name} from the next question on.", "从下一个问题起，{arm} 使用 {name} 回答。"),
    "now-back": ("{arm} answers as before.", "{arm} 恢复原样。"),
    "job-started": ("Started. It goes on when this page is closed.", "已开始。关闭页面后仍会继续。"),
    # ------------------------------------------------------------- decide
    "decide-none": ("Nothing has been measured yet", "尚未进行测量"),
    "decide-none-next": (
        "Whether retrieval, tuning, or both are worth it on your questions is found out by a run: every arm is asked the "
        "same held-out questions, and the differences are tested. Start one below, or in a terminal:",
        "检索、微调或两者结合对您的问题是否值得，由一次运行来回答：每种方式回答同样的留出问题，并检验差异。请在下方开始，或在终端输入：",
    ),
    "measured-decision": ("Measured decision", "测量得出的决策"),
    "chosen": ("{arm} was chosen", "选择了 {arm}"),
    "chosen-none": ("No arm was chosen", "没有选出方式"),
    "chosen-tag": ("chosen", "已选"),
    "bound-tag": ("bound: given the right passage", "上限：给定正确段落"),
    "warnings-n": (
        "One thing to know before you rely on it|{n} things to know before you rely on it",
        "使用前请了解 {n} 点",
    ),
    "decide-run": ("Run a decision", "运行决策"),
    "decide-train": ("Train on (none: nothing is tuned)", "训练用（无：不微调）"),
    "decide-test": ("Measure on", "测量用"),
    "decide-start": ("Start deciding", "开始决策"),
    "queries-month": ("Questions per month", "每月问题数"),
    "price-hour": ("Price of the machine per hour", "机器每小时价格"),
    "sliders-head": ("For your numbers", "按您的数字"),
    "sliders-note": (
        "Training and indexing are taken to happen once a month and are shared by its questions. The price scales every "
        "arm alike: it changes the bill, not the choice.",
        "假定每月训练和索引一次，由当月问题分摊。价格对各方式同比例：改变账单，不改变选择。",
    ),
    "no-recommendation": ("This decision lacks the figures to work this out.", "此决策缺少计算所需的数据。"),
    "use-arm": ("Use {arm} for {queries:,} questions a month", "每月 {queries:,} 个问题：使用 {arm}"),
    "use-cost": ("{seconds} a question, everything shared.", "每个问题 {seconds}（含分摊）。"),
    "use-month": ("{money} a month.", "每月 {money}。"),
    "use-differs": ("The run itself chose {arm}, for its own number of questions.", "该次运行按其问题数选择了 {arm}。"),
    "outcome-better": ("It is better beyond chance.", "它的优势超出偶然。"),
    "outcome-not-separable": ("No arm proved better: it is the cheapest.", "没有方式被证明更好：它最便宜。"),
    "outcome-too-small": ("Another is better, by too little to pay for it.", "另一方式更好，但差距太小，不值得。"),
    "outcome-only-arm": ("It is the only arm that could be chosen.", "它是唯一可选的方式。"),
    "outcome-none": ("No arm keeps the limits.", "没有方式满足限制。"),
    "recommended": ("recommended", "推荐"),
    "plot-arms": ("{metric} of each arm", "各方式的 {metric}"),
    "plot-arms-note": (
        "Dot: mean over the questions. Bar: its interval. Overlapping bars can still differ: the pairs are the test.",
        "点：问题平均值。条：其区间。区间重叠仍可能有差异：以两两比较为准。",
    ),
    "plot-cost": ("Quality against cost", "质量与成本"),
    "plot-cost-note": (
        "Up and left is better. The dashed line joins the arms that no other beats in both.",
        "越靠左上越好。虚线连接在两方面都不被超过的方式。",
    ),
    "cost-question": ("Cost of a question", "每个问题的成本"),
    "cost-month": ("Bill of a month", "每月账单"),
    "arm": ("Arm", "方式"),
    "arms-head": ("Every arm", "各方式"),
    "arms-note": (
        "Means over the questions, with 95 % intervals. Time and cost are those of one question on the machine that "
        "measured; cost in all includes its share of indexing and training.",
        "问题平均值，附 95% 区间。时间与成本为测量机器上每个问题的值；总成本包含索引与训练的分摊。",
    ),
    "figure-f1": ("F1", "F1"),
    "figure-em": ("Exact", "完全匹配"),
    "figure-match": ("Match", "包含答案"),
    "figure-abstention": ("Abstains", "拒答"),
    "figure-seconds_per_question": ("Time", "时间"),
    "figure-cost": ("Cost in all", "总成本"),
    "pairs-head": ("Every pair", "两两比较"),
    "pair": ("Pair", "比较"),
    "difference": ("Difference", "差异"),
    "interval": ("95 % interval", "95% 区间"),
    "p-adjusted": ("p (adjusted)", "p（校正）"),
    "wins": ("Questions won", "胜出问题数"),
    "pairs-note": (
        "Paired tests on the same questions, corrected for the number of pairs; coloured rows differ beyond chance.",
        "对相同问题的配对检验，按比较数校正；着色的行差异超出偶然。",
    ),
    "drill-head": ("Where the arms disagree", "各方式的分歧"),
    "drill-note": (
        "{n} question, the widest difference first|{n} questions, the widest differences first",
        "{n} 个问题，差异最大的在前",
    ),
    "drill-none": (
        "No question separates the arms, or the run kept no rows.",
        "没有问题能区分各方式，或该次运行没有保留明细。",
    ),
    "wanted": ("Wanted:", "期望："),
    "unanswerable": ("that it says it is not in the documents", "说明文档中没有"),
    "report": ("The full report", "完整报告"),
    "save-report": ("Save the report", "保存报告"),
    "no-report": (
        "The folder has no report.html: run `ragtune decide` again to write one.",
        "文件夹中没有 report.html：请再次运行 `ragtune decide`。",
    ),
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
