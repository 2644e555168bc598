"""The generated tables in Chinese, for README.zh.md: what ``tables.py`` says, sentence by sentence.

``translate`` replaces the sentences and the cells that it knows, numbers as they are, and leaves the rest in
English. ``tests/test_readme.py`` names what is left; add it here.
"""

import re

_NUMBER = r"([\d.,]+)"
_MACHINE = (
    (r"torch ([\w.+]+), (\d{4}-\d\d-\d\d), ", r"torch \1，\2，"),
    (r"(\d+) threads? of (.+?) \((\w+)\), a shared machine; ", r"\2（\3）的 \1 个线程，机器与他人共用；"),
    (
        r"commits (.+?)\. GB = 1e9 bytes; files in the page cache; medians of 3 runs\.",
        r"提交 \1。1 GB = 1e9 字节；文件已在页缓存中；取 3 次运行的中位数。",
    ),
    (r"commit (\w+)\.", r"提交 \1。"),
    (r"commits ([\w, ]+)\.$", r"提交 \1。"),
    (r"(\d{4}-\d\d-\d\d), (?=提交)", r"\1，"),
)
SENTENCES = (
    # mini
    (
        rf"Perplexity over {_NUMBER} tokens and exact answers to {_NUMBER} questions\. ",
        r"困惑度在 \1 个 token 上计算，准确率为 \2 道题中答案完全正确的比例。",
    ),
    (
        r"Their number pairs never occur in training in that order \(a sum's mirror image mostly does\); ",
        "题中的数对从未以同样的顺序出现在训练中（加法交换两数后大多出现过）；",
    ),
    (r"the other kinds of question repeat it; ", "其他类型的题目则与训练重复；"),
    (r"one sequence, (\d+) thread\(s\) of (.+?) \((\w+)\), ", r"单个序列，\2（\3）的 \1 个线程，"),
    # quantizers
    (
        rf"Quantizing the same {_NUMBER} GB of float16 to 4 bits, in turn, (\d+) times: ",
        r"把同样的 \1 GB float16 量化到 4 位，两者交替各运行 \2 次：",
    ),
    (
        rf"ours {_NUMBER} s \({_NUMBER} GB/s, peak {_NUMBER} GB\), with a search for every group's range; ",
        r"本项目 \1 秒（\2 GB/s，峰值内存 \3 GB），其中为每一组搜索取值范围；",
    ),
    (
        rf"llama\.cpp's Q4_0 \((.+?)\) {_NUMBER} s \({_NUMBER} GB/s, peak {_NUMBER} GB\), without one\. ",
        r"llama.cpp（\1）的 Q4_0 \2 秒（\3 GB/s，峰值内存 \4 GB），不做搜索。",
    ),
    (
        rf"Ours has {_NUMBER} times llama\.cpp's speed \({_NUMBER} to {_NUMBER}\)\.",
        r"本项目的速度是 llama.cpp 的 \1 倍（\2 到 \3）。",
    ),
    # ptuning
    (
        rf"{_NUMBER} parameters, (\d+) steps, {_NUMBER} s: word for word right are {_NUMBER} % "
        rf"of (\d+) held-out questions before and {_NUMBER} % after\. ",
        r"\1 个参数，\2 步，\3 秒：\5 道未参与训练的题中，逐字正确的比例由训练前的 \4 % 升至训练后的 \6 %。",
    ),
    (
        r"At the size of ChatGLM-6B \(random weights, INT4, (\d+) columns, one sample of (\d+) and (\d+) tokens\) "
        rf"a step takes {_NUMBER} s and at most {_NUMBER} GB of memory\.",
        r"在 ChatGLM-6B 的规模上（随机权重，INT4，\1 列前缀，一个 \2 + \3 token 的样本），"
        r"一步需 \4 秒，内存至多 \5 GB。",
    ),
    # server
    (
        r"(\d+) clients with (\d+) requests of mixed lengths, on the mini model in INT4, (\d+) answers at a time: "
        rf"{_NUMBER} tokens/s, {_NUMBER} times one client's {_NUMBER}\. ",
        r"\1 个客户端，共 \2 个长短不一的请求，迷你模型 INT4，同时回答 \3 个："
        r"每秒 \4 个 token，是单个客户端（\6）的 \5 倍。",
    ),
    (
        rf"The first token came after {_NUMBER} ms \(median; 95 % within {_NUMBER} ms, most of it in the queue\), "
        rf"for one client after {_NUMBER} ms\. Answers lost: (\d+); other than the engine's own: (\d+)\.",
        r"首个 token 用时中位数 \1 毫秒（95 % 在 \2 毫秒以内，大部分是排队），单个客户端为 \3 毫秒。丢失的回答：\4；"
        r"与引擎单独运行不同的回答：\5。",
    ),
    # quality
    (
        r"(\d+) tokens, windows of (\d+) moved by (\d+)\. Differences are paired token by token; ± is their standard "
        r"error, and those of less than two of them are in brackets\. KL divergence is in 1e-4 nats per token, "
        r"from the unquantized predictions; \*of official\* compares it with the official layout's\. ",
        r"\1 个 token，窗口 \2，步长 \3。差异逐 token 成对计算，± 为其标准误差，不足两倍标准误差的放在括号中。"
        r"KL 散度以 1e-4 nat / token 计，相对于未量化的预测；「与官方之比」与官方格式的 KL 散度相比。",
    ),
    (
        r"Everything is computed in float32, but for the last row; (\d+) questions are answered as in a chat\. ",
        r"除最后一行外，全部以 float32 计算；\1 道题像对话一样作答。",
    ),
    (
        r"Bits per weight count everything that is stored, embedding and norms included\. Seconds of one processor, "
        r"(.+?) \((\w+)\), ",
        r"每权重位数计入所有存储的内容，包括词嵌入和归一化层。量化用时为单个处理器的秒数，\1（\2），",
    ),
    # outliers
    (
        r"Loss is the KL divergence of the predictions, or the squared error of the layer's output on inputs that the "
        r"calibration has not seen\. INT8 changes the perplexity of the mini model with outliers by (.+? %\)?)\. ",
        r"损失为预测的 KL 散度，或该层在校准未见过的输入上输出的平方误差。INT8 使带离群通道的迷你模型的困惑度变化 \1。",
    ),
    # gptq
    (
        rf"At the size of ChatGLM-6B, GPTQ on 32 x 512 tokens took (\d+) minutes of processor time and (\d+) minutes "
        rf"on the clock for one layer, and {_NUMBER} GB of memory at most; (\d+) layers come to {_NUMBER} hours of "
        r"processor time \(extrapolated\)\. (\d+) threads of (.+?), a machine shared with other work, "
        r"(\d{4}-\d\d-\d\d), ",
        r"在 ChatGLM-6B 的规模上，GPTQ 用 32 x 512 个 token，一层需 \1 分钟处理器时间、\2 分钟实际时间，"
        r"内存至多 \3 GB；\4 层合计约 \5 小时处理器时间（外推）。\7 的 \6 个线程，机器与其他工作共用，\8，",
    ),
    # pairs
    (
        r"Tokens per second at (\d+) layers, and in brackets how many times that of the other program's Q4_0 "
        r"in the same shapes: the median of ([\d or]+) runs in turn, least and most\. ",
        r"\1 层时的每秒 token 数；括号内为同样形状下相对另一程序 Q4_0 的倍数："
        r"两者交替运行 \2 次的中位数，以及最小与最大。",
    ),
    (
        r"The share is that of an answer's bytes a second in what a plain sum over memory reads\. (.+?); "
        r"shared machines; ",
        r"占比为生成时每秒读取的字节数与单纯对内存求和的读取速度之比。\1；机器与他人共用；",
    ),
    # speed
    (r"On a (\w+): not measured yet \((`[^`]+`)\)\.", r"\1：尚未测量（\2）。"),
    (
        r"Random weights(?:; (.+?) layers instead of 28)?; in brackets the bytes read as a share of the bandwidth "
        rf"measured beside it, {_NUMBER} GB/s at most\. (.+?) \((.+?)\), (\d+) threads, ",
        r"随机权重；括号内为读取字节数占同时测得的带宽（最多 \2 GB/s）的比例。\3（\4），\5 个线程，",
    ),
    *_MACHINE,
)
# Whole cells of tables, and pieces of them.
CELLS = {
    "weights": "权重",
    "size": "大小",
    "bits per weight": "每权重位数",
    "perplexity": "困惑度",
    "accuracy": "准确率",
    "quantizing": "量化",
    "its peak memory": "量化的峰值内存",
    "size on disk": "磁盘大小",
    "loading": "加载",
    "weights in memory": "内存中的权重",
    "memory once loaded": "加载后的内存",
    "in a short chat": "短对话中",
    "after a prompt of 512": "读入 512 token 的提示后",
    "peak": "峰值",
    "prompt of 128 tokens": "读入 128 token 的提示",
    "prompt of 128": "读入 128 token 的提示",
    "prompt of 512": "读入 512 token 的提示",
    "answer": "生成",
    "half precision": "半精度",
    "the official way, INT4": "官方方式，INT4",
    "not measured": "未测量",
    "answer behind 128": "128 token 之后的生成",
    "share of the bandwidth": "占带宽",
    "beside": "对比",
    "more than FP16": "比 FP16 增加",
    "KL divergence, 1e-4": "KL 散度，1e-4",
    "of official": "与官方之比",
    "answers": "答题正确率",
    "loss, as a share of the official INT4's": "损失，与官方 INT4 之比",
    "mini model with outliers": "带离群通道的迷你模型",
}
PIECES = (
    (r", (\d+) threads?$", r"，\1 个线程"),
    (r"^(AVX\w+), ", r"\1，"),
    (r"^(\d+ %) \((\d+) to (\d+)\)$", r"\1（\2 到 \3）"),
    (r"^([\d.]+) \(([\d.]+); ([\d.]+) to ([\d.]+)\)$", r"\1（\2；\3 到 \4）"),
    (r", no clip search$", "，不搜索取值范围"),
    (r"^mixed( GPTQ)?, as large as (.+)$", r"混合\1，与 \2 同样大小"),
    (r", as computed on a CPU$", "，按 CPU 上的方式计算"),
    (r", INT8 cache$", "，INT8 缓存"),
    (r"official, per channel$", "官方格式，每行一组"),
    (r"^layer of (\d+) inputs$", r"\1 个输入的一层"),
    (r"groups of (\d+)", r"每组 \1 个"),
    (r", prompt of (\d+)$", r"，读入 \1 token 的提示"),
    (r", (\d+) answers at once behind (\d+)$", r"，\2 token 之后同时生成 \1 个回答"),
    (r", answer behind (\d+)$", r"，\1 token 之后的生成"),
    (r"(?<=\d) s\b", " 秒"),
)


def translate(text: str) -> str:
    """A generated table or paragraph in Chinese."""
    return "\n".join(_row(line) if line.startswith("|") else _sentences(line) for line in text.split("\n"))


def _sentences(line: str) -> str:
    for pattern, chinese in SENTENCES:
        line = re.sub(pattern, chinese, line)
    return line


def _row(line: str) -> str:
    return "|".join(_cell(cell) for cell in line.split("|"))


def _cell(cell: str) -> str:
    text = cell.strip()
    translated = CELLS.get(text, text)
    for pattern, chinese in PIECES:
        translated = re.sub(pattern, chinese, translated)
    return cell.replace(text, translated) if text else cell
