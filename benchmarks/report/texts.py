"""What the generated tables say, in English and in Chinese; ``tables.py`` fills in the figures.

Every text is a pair of format strings, and the second one is for README.zh.md. Headings of a table stand in one text,
divided by "|". A table that only English documents hold has its words in ``tables.py``.
"""

from collections.abc import Iterable, Mapping

LANGUAGES = ("en", "zh")
MODELS = {"chatglm-6b": "ChatGLM-6B", "chatglm2-6b": "ChatGLM2-6B", "chatglm3-6b": "ChatGLM3-6B"}
WAYS = {
    "int4": "INT4",
    "int8": "INT8",
    "half": "half precision",
    "official int4": "the official way, INT4",
    "llama.cpp q4_0": "llama.cpp Q4_0",
    "chatglm.cpp q4_0": "chatglm.cpp Q4_0",
}

TEXTS = {
    "list": (", ", "、"),
    "alternatives": (" or ", " 或 "),
    "second": (" s", " 秒"),
    "missing": ("not measured", "未测量"),
    "machine": (
        "{threads} thread{s} of {cpu} ({capability}), a shared machine; torch {torch}, {date}, commit {commit}.",
        "{cpu}（{capability}）的 {threads} 个线程，机器与他人共用；torch {torch}，{date}，提交 {commit}。",
    ),
    "mini heads": (
        "weights|size|bits per weight|perplexity|accuracy|tokens/s",
        "权重|大小|每权重位数|困惑度|准确率|tokens/s",
    ),
    "mini": (
        "Perplexity over {tokens} tokens and exact answers to {questions} questions. Their number pairs never occur in "
        "training in that order (a sum's mirror image mostly does); the other kinds of question repeat it; one "
        "sequence, {threads} thread(s) of {cpu} ({capability}), torch {torch}, {date}, commit {commit}.",
        "困惑度在 {tokens} 个 token 上计算，准确率为 {questions} 道题中答案完全正确的比例。"
        "题中的数对从未以同样的顺序出现在训练中（加法交换两数后大多出现过）；其他类型的题目则与训练重复；"
        "单个序列，{cpu}（{capability}）的 {threads} 个线程，torch {torch}，{date}，提交 {commit}。",
    ),
    "full-size heads": (
        "|quantizing|its peak memory|size on disk|bits per weight|loading|weights in memory|memory once loaded"
        "|in a short chat|after a prompt of 512|peak|prompt of 128 tokens|prompt of 512|answer",
        "|量化|量化的峰值内存|磁盘大小|每权重位数|加载|内存中的权重|加载后的内存"
        "|短对话中|读入 512 token 的提示后|峰值|读入 128 token 的提示|读入 512 token 的提示|生成",
    ),
    "full-size": (
        "{threads} threads of {cpu} ({capability}), a shared machine; torch {torch}, {date}, commits {commits}. "
        "GB = 1e9 bytes; files in the page cache; medians of 3 runs.",
        "{cpu}（{capability}）的 {threads} 个线程，机器与他人共用；torch {torch}，{date}，提交 {commits}。"
        "1 GB = 1e9 字节；文件已在页缓存中；取 3 次运行的中位数。",
    ),
    "quantizers": (
        "Quantizing the same {size:.1f} GB of float16 to 4 bits, in turn, {times} times: ours {ours[seconds]:.0f} s "
        "({ours[gb_s]:.2f} GB/s, peak {ours[gb]:.2f} GB), with a search for every group's range; llama.cpp's Q4_0 "
        "({release}) {theirs[seconds]:.0f} s ({theirs[gb_s]:.2f} GB/s, peak {theirs[gb]:.2f} GB), without one. "
        "Ours has {median:.2f} times llama.cpp's speed ({least:.2f} to {largest:.2f}).",
        "把同样的 {size:.1f} GB float16 量化到 4 位，两者交替各运行 {times} 次：本项目 {ours[seconds]:.0f} 秒"
        "（{ours[gb_s]:.2f} GB/s，峰值内存 {ours[gb]:.2f} GB），其中为每一组搜索取值范围；llama.cpp（{release}）的 "
        "Q4_0 {theirs[seconds]:.0f} 秒（{theirs[gb_s]:.2f} GB/s，峰值内存 {theirs[gb]:.2f} GB），不做搜索。"
        "本项目的速度是 llama.cpp 的 {median:.2f} 倍（{least:.2f} 到 {largest:.2f}）。",
    ),
    "ptuning": (
        "{parameters:,} parameters, {settings[max_steps]} steps, {seconds:.0f} s: word for word right are "
        "{before:.1f} % of {questions} held-out questions before and {after:.1f} % after. At the size of ChatGLM-6B "
        "(random weights, INT4, 128 columns, one sample of 64 and 64 tokens) a step takes {full_size[seconds]:.0f} s "
        "and at most {gb:.2f} GB of memory.",
        "{parameters:,} 个参数，{settings[max_steps]} 步，{seconds:.0f} 秒：{questions} 道未参与训练的题中，"
        "逐字正确的比例由训练前的 {before:.1f} % 升至训练后的 {after:.1f} %。在 ChatGLM-6B 的规模上（随机权重，INT4，"
        "128 列前缀，一个 64 + 64 token 的样本），一步需 {full_size[seconds]:.0f} 秒，内存至多 {gb:.2f} GB。",
    ),
    "server": (
        "{clients} clients with {requests} requests of mixed lengths, on the mini model in INT4, {parallel} answers "
        "at a time: {together[tokens_per_s]:.0f} tokens/s, {throughput_ratio:.1f} times one client's "
        "{one_by_one[tokens_per_s]:.0f}. The first token came after {together[ttft_p50_ms]:.0f} ms (median; 95 % "
        "within {together[ttft_p95_ms]:.0f} ms, most of it in the queue), for one client after "
        "{one_by_one[ttft_p50_ms]:.0f} ms. Answers lost: {lost}; other than the engine's own: {different}.",
        "{clients} 个客户端，共 {requests} 个长短不一的请求，迷你模型 INT4，同时回答 {parallel} 个："
        "每秒 {together[tokens_per_s]:.0f} 个 token，是单个客户端（{one_by_one[tokens_per_s]:.0f}）的 "
        "{throughput_ratio:.1f} 倍。首个 token 用时中位数 {together[ttft_p50_ms]:.0f} 毫秒（95 % 在 "
        "{together[ttft_p95_ms]:.0f} 毫秒以内，大部分是排队），单个客户端为 {one_by_one[ttft_p50_ms]:.0f} 毫秒。"
        "丢失的回答：{lost}；与引擎单独运行不同的回答：{different}。",
    ),
    "quality heads": (
        "weights|bits per weight|perplexity|more than FP16|KL divergence, 1e-4|of official|answers|quantizing",
        "权重|每权重位数|困惑度|比 FP16 增加|KL 散度，1e-4|与官方之比|答题正确率|量化",
    ),
    "quality": (
        "{tokens} tokens, windows of {window} moved by {stride}. Differences are paired token by token; ± is their "
        "standard error, and those of less than two of them are in brackets. KL divergence is in 1e-4 nats per token, "
        "from the unquantized predictions; *of official* compares it with the official layout's. Everything is "
        "computed in float32, but for the last row; {questions} questions are answered as in a chat. Bits per weight "
        "count everything that is stored, embedding and norms included. Seconds of one processor, {cpu} "
        "({capability}), torch {torch}, {date}, commit {commit}.",
        "{tokens} 个 token，窗口 {window}，步长 {stride}。差异逐 token 成对计算，± 为其标准误差，"
        "不足两倍标准误差的放在括号中。KL 散度以 1e-4 nat / token 计，相对于未量化的预测；「与官方之比」与官方格式的 "
        "KL 散度相比。除最后一行外，全部以 float32 计算；{questions} 道题像对话一样作答。"
        "每权重位数计入所有存储的内容，包括词嵌入和归一化层。量化用时为单个处理器的秒数，"
        "{cpu}（{capability}），torch {torch}，{date}，提交 {commit}。",
    ),
    "outliers head": ("loss, as a share of the official INT4's", "损失，与官方 INT4 之比"),
    "outliers": (
        "Loss is the KL divergence of the predictions, or the squared error of the layer's output on inputs that the "
        "calibration has not seen. INT8 changes the perplexity of the mini model with outliers by {change}. "
        "torch {torch}, {date}, commit {commit}.",
        "损失为预测的 KL 散度，或该层在校准未见过的输入上输出的平方误差。INT8 使带离群通道的迷你模型的困惑度变化 "
        "{change}。torch {torch}，{date}，提交 {commit}。",
    ),
    "gptq": (
        "At the size of ChatGLM-6B, GPTQ on 32 x 512 tokens took {cpu_minutes:.0f} minutes of processor time and "
        "{minutes:.0f} minutes on the clock for one layer, and {gb:.2f} GB of memory at most; {layers} layers come to "
        "{all_layers_cpu_hours:.1f} hours of processor time (extrapolated). {threads} threads of {cpu}, a machine "
        "shared with other work, {date}, commit {commit}.",
        "在 ChatGLM-6B 的规模上，GPTQ 用 32 x 512 个 token，一层需 {cpu_minutes:.0f} 分钟处理器时间、{minutes:.0f} "
        "分钟实际时间，内存至多 {gb:.2f} GB；{layers} 层合计约 {all_layers_cpu_hours:.1f} 小时处理器时间（外推）。"
        "{cpu} 的 {threads} 个线程，机器与其他工作共用，{date}，提交 {commit}。",
    ),
    "pairs heads": (
        "INT4|beside|prompt of 128|prompt of 512|answer behind 128|share of the bandwidth",
        "INT4|对比|读入 128 token 的提示|读入 512 token 的提示|128 token 之后的生成|占带宽",
    ),
    "pairs label": (
        "{cpu} ({capability}), {model}, {threads} thread{s}",
        "{cpu}（{capability}），{model}，{threads} 个线程",
    ),
    "pairs rate": (
        "{glm_int4:.1f} ({ratio:.2f}; {spread[0]:.2f} to {spread[1]:.2f})",
        "{glm_int4:.1f}（{ratio:.2f}；{spread[0]:.2f} 到 {spread[1]:.2f}）",
    ),
    "pairs share": ("{median:.0f} % ({low:.0f} to {high:.0f})", "{median:.0f} %（{low:.0f} 到 {high:.0f}）"),
    "pairs": (
        "Tokens per second at {layers} layers, and in brackets how many times that of the other program's Q4_0 in the "
        "same shapes: the median of {pairs} runs in turn, least and most. The share is that of an answer's bytes a "
        "second in what a plain sum over memory reads. {versions}; shared machines; torch {torch}, {dates}, "
        "commits {commits}.",
        "{layers} 层时的每秒 token 数；括号内为同样形状下相对另一程序 Q4_0 的倍数：两者交替运行 {pairs} 次的中位数，"
        "以及最小与最大。占比为生成时每秒读取的字节数与单纯对内存求和的读取速度之比。{versions}；机器与他人共用；"
        "torch {torch}，{dates}，提交 {commits}。",
    ),
    "prompt": ("{model}, prompt of {tokens}", "{model}，读入 {tokens} token 的提示"),
    "answer": ("{model}, answer behind {context}", "{model}，{context} token 之后的生成"),
    "answers": (
        "{model}, {batch} answers at once behind {context}",
        "{model}，{context} token 之后同时生成 {batch} 个回答",
    ),
    "depth": ("; {layers} layers instead of 28", "；{layers} 层，而非 28 层"),
    "speed": (
        "Random weights{depth}; in brackets the bytes read as a share of the bandwidth measured beside it, "
        "{bandwidth_gb_s:.0f} GB/s at most. {device} ({capability}), {threads} threads, torch {torch}, {date}, "
        "commit {commit}, `{command}`.",
        "随机权重{depth}；括号内为读取字节数占同时测得的带宽（最多 {bandwidth_gb_s:.0f} GB/s）的比例。"
        "{device}（{capability}），{threads} 个线程，torch {torch}，{date}，提交 {commit}，`{command}`。",
    ),
    "no speed": ("On a {place}: not measured yet (`{command}`).", "{place}：尚未测量（`{command}`）。"),
}
# Of what results name in English: a longer name stands before a shorter one that it contains.
NAMES = {
    "INT4 official, per channel": "INT4 官方格式，每行一组",
    "mixed GPTQ, as large as RTN g128": "混合 GPTQ，与 RTN g128 同样大小",
    "mixed, as large as RTN g128": "混合，与 RTN g128 同样大小",
    "mixed, as large as RTN g32": "混合，与 RTN g32 同样大小",
    "mini model with outliers": "带离群通道的迷你模型",
    "layer of 4096 inputs": "4096 个输入的一层",
    "layer of 13696 inputs": "13696 个输入的一层",
    "the official way, INT4": "官方方式，INT4",
    "half precision": "半精度",
    ", INT8 cache": "，INT8 缓存",
    ", as computed on a CPU": "，按 CPU 上的方式计算",
    ", no clip search": "，不搜索取值范围",
    ", groups of 128": "，每组 128 个",
}


def say(key: str, language: str, values: Mapping[str, object] | None = None, **more: object) -> str:
    """A text in one language, with its figures. ``s`` makes a plural of more than one thread."""
    filled = {**(values or {}), **more}
    filled["s"] = "" if filled.get("threads") == 1 else "s"
    return TEXTS[key][LANGUAGES.index(language)].format_map(filled)


def name(text: str, language: str) -> str:
    """What results call a method, a way or a case; in Chinese as far as it is known."""
    if language == "zh":
        for english, chinese in NAMES.items():
            text = text.replace(english, chinese)
    return text


def joined(values: list[str], language: str) -> str:
    """A list of commits, dates or programs."""
    return say("list", language).join(values)


def grid(heads: Iterable[str], rows: Iterable[Iterable[str]], note: str | None = None) -> str:
    """Markdown of a table, and of a paragraph below it."""
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    lines.insert(1, "|---" * (lines[0].count("|") - 1) + "|")
    return "\n".join(lines if note is None else [*lines, "", note])
