"""Tools that GLM-4-9B may call: functions, and those that it knows by their type alone; how it reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.chat.tools import Tool, write_json
from glm_int4.text.chat.tools import check_tools as check_functions

# All texts as in training.
_IDENTITY = (
    "你是一个名为 GhatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。"
)
_HEADING = "\n\n# 可用工具"
_CALL = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
OWN_TOOLS = {
    "python": (
        "当你向 `python` 发送包含 Python 代码的消息时，该代码将会在一个有状态的 Jupyt"
        "er notebook 环境中执行。\n"
        "`python` 返回代码执行的输出，或在执行 60 秒后返回超时。\n"
        "`/mnt/data` 将会持久化存储你的文件。在此会话中，`python` 无法访问互联网。不要使"
        "用 `python` 进行任何网络请求或者在线 API 调用，这些在线内容的访问将不会成功。"
    ),
    "simple_browser": (
        "你可以使用 `simple_browser` 工具。该工具支持以下函数：\n"
        "`search(query: str, recency_days: int)`：使用搜索引擎进行查询"
        "并显示结果，可以使用 `recency_days` 参数控制搜索内容的时效性。\n"
        "`mclick(ids: list[int])`：获取一系列指定 id 的页面内容。每次调用时，须选"
        "择3-10个页面。选择多个角度的页面，同时尽可能选择可信任的信息来源。考虑到部分页面是无法加载的，你"
        "也可以多打开一些可能有用的页面而不用担心内容过多。\n"
        "`open_url(url: str)`：打开指定的 URL。\n"
        "\n"
        "使用 `【{引用 id}†{引用文本}】` 来引用内容。\n"
        "\n"
        "操作步骤：1. 使用 `search` 来获得信息列表; 2. 使用 `mclick` 来获取指定 "
        "ID 页面的内容; 3. 根据获得的内容进行回复。在回复中应当引用信息来源。\n"
        " 如果用户提供了 URL，也可以用 `open_url` 直接打开页面。\n"
        "如果初次搜索结果没有找到合适的信息，也可以再次使用 `search` 进行搜索。"
    ),
    "cogview": (
        "如果用户的请求中包含了对图像的描述，你可以使用 `cogview` 来生成图像并展示给用户。你需要向"
        " `cogview` 发送图像描述，规则：\n"
        "- 发送给 `cogview` 的消息必须使用英语。用户的中文描述必须完全翻译为英语。\n"
        "- 应当尽可能详细地描述图像生成的需求，需求描述约 100 英文单词。\n"
        "- 保持用户原始描述的意图。不要虚构内容或者没见过的人物。\n"
        "- 如无特殊说明，所在地为中国，持有中国立场并遵循中国社会主义价值观。"
    ),
}
PYTHON = "python"


def check_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """Definitions of functions, without OpenAI's wrapping, and the model's own tools as ``{"type": ...}``.

    Raises:
        InputError: names the first fault; see ``tools.check_tools``.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        return check_functions(tools)  # says what is wrong, or that there are none
    own = [tool["type"] for tool in tools if is_own_tool(tool)]
    if len(set(own)) < len(own):
        raise InputError(f"expected different tools, got one of type {shown(max(own, key=own.count))} twice")
    functions = iter(check_functions([tool for tool in tools if not is_own_tool(tool)], taken=tuple(OWN_TOOLS)))
    return [{"type": tool["type"]} if is_own_tool(tool) else next(functions) for tool in tools]


def tool_name(tool: Tool) -> str:
    """What the model calls a checked tool."""
    return str(tool.get("name", tool.get("type")))


def write_system_text(tools: Sequence[Tool]) -> str:
    """The system message that tells the model of checked tools."""
    return _IDENTITY + _HEADING + "".join(f"\n\n## {tool_name(tool)}\n\n{_description(tool)}" for tool in tools)


def _description(tool: Tool) -> str:
    return write_json(tool) + _CALL if "name" in tool else OWN_TOOLS[tool["type"]]


def is_own_tool(tool: object) -> bool:
    """Whether a definition names one of the model's own tools by its type."""
    kind = tool.get("type") if isinstance(tool, Mapping) and "function" not in tool and "name" not in tool else None
    return isinstance(kind, str) and kind in OWN_TOOLS
