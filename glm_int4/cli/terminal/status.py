"""Figures of a conversation in words: the status line, what stands below an answer, /stats."""

from pathlib import Path

from glm_int4.cli.terminal.conversation import Conversation, Turn
from glm_int4.generation.sampling import OFFICIAL_DEFAULTS


def status_line(conversation: Conversation) -> str:
    """Model, bits, device, context."""
    name = Path(conversation.name).name or conversation.name
    return " · ".join([name, bits(conversation), str(conversation.glm.device), f"context {context(conversation)}"])


def bits(conversation: Conversation) -> str:
    """Bits of the weights, in words."""
    info = conversation.glm.info
    if len(info.linear_counts) > 1:
        return f"mixed, {info.bits_per_weight:.1f} bits"
    scheme = info.linear_scheme
    return f"INT{scheme.bits}" if scheme else "16 bits"


def context(conversation: Conversation) -> str:
    """Tokens of the conversation, and how many it may have."""
    used, limit = conversation.context_tokens(), conversation.glm.max_length
    return f"{used} of {limit} tokens ({100 * used / limit:.0f} %)"


def rounds(count: int) -> str:
    """Rounds of the conversation."""
    return _count(count, "round")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def temperature(conversation: Conversation) -> str:
    """The temperature in force."""
    value = conversation.sampling.temperature
    if value is None:
        return f"{OFFICIAL_DEFAULTS[conversation.glm.config.version][0]} (the model's official value)"
    return "0 (always the likeliest word)" if value == 0 else f"{value:g}"


def dropped_note(count: int) -> str:
    """What is said of rounds that were dropped."""
    return f"(the context is full: dropped the oldest {rounds(count)} to make room)"


def after_answer(conversation: Conversation, turn: Turn) -> str:
    """The lines below an answer: speed, what cut it, and what it calls."""
    return "\n".join(filter(None, [speed(turn), limit_note(conversation, turn), call_note(turn)]))


def call_note(turn: Turn) -> str:
    """What an answer wants to be run; empty where it is a plain one."""
    reply = turn.reply
    if reply is None or not reply.metadata:
        return ""
    if reply.fault is not None:
        return f"(the model wrote a call of {reply.metadata} that cannot be read: {reply.fault})"
    if reply.tool_call is None:
        return "(the model wants this code to be run; what you type next is its output)"
    arguments = ", ".join(f"{name}={value!r}" for name, value in reply.tool_call.arguments.items())
    return f"(the model calls {reply.tool_call.name}({arguments}); what you type next is its result)"


def speed(turn: Turn) -> str:
    """Speed of the last answer."""
    if not turn.new_tokens:
        return "(no answer: the model ended it at once)"
    rest = f", then {turn.tokens_per_s:.1f} tokens/s" if turn.tokens_per_s else ""
    return f"{_count(turn.new_tokens, 'token')}, the first after {turn.first_s:.2f} s{rest}"


def limit_note(conversation: Conversation, turn: Turn) -> str:
    """What cut an answer; empty if it ended by itself."""
    if turn.limit == "max_new_tokens":
        return f"(cut after {_count(turn.new_tokens, 'token')}: --max-new-tokens)"
    if turn.limit == "max_length":
        return f"(cut: the context of {conversation.glm.max_length} tokens is full; /clear makes room)"
    return ""


def statistics(conversation: Conversation) -> str:
    """What /stats shows."""
    glm, sampling = conversation.glm, conversation.sampling
    _, top_p, top_k = OFFICIAL_DEFAULTS[glm.config.version]
    turns = [turn for turn in conversation.turns if turn.new_tokens]
    rest_tokens, rest_s = sum(turn.rest_tokens for turn in turns), sum(turn.rest_s for turn in turns)
    average = f", {rest_tokens / rest_s:.1f} tokens/s" if rest_tokens and rest_s > 0 else ""
    seed = "none" if sampling.seed is None else sampling.seed
    lines = {
        "model": f"{conversation.name}, {bits(conversation)} ({glm.info.bits_per_weight:.2f} bits per weight)",
        "computes": f"on {glm.device}, {glm.setup.backend}",
        "context": f"{context(conversation)}, {rounds(conversation.num_rounds)}",
        "answers": f"{len(turns)}, of {sum(turn.new_tokens for turn in turns)} tokens{average}",
        "last": speed(turns[-1]) if turns else "none",
        "temperature": temperature(conversation),
        "sampling": f"top_p {top_p if sampling.top_p is None else sampling.top_p}, "
        f"top_k {top_k if sampling.top_k is None else sampling.top_k}, "
        f"repetition penalty {sampling.repetition_penalty:g}, seed {seed}",
        "limits": f"max_new_tokens {conversation.max_new_tokens or 'none'}, max_length {glm.max_length}",
        "system": conversation.system or "none",
    }
    if sampling.prompt_lookup:
        drafted, accepted = sum(turn.drafted for turn in turns), sum(turn.accepted for turn in turns)
        share = f" ({100 * accepted / drafted:.0f} %)" if drafted else ""
        lines["lookup"] = f"up to {sampling.prompt_lookup} tokens at once: {accepted} of {drafted} guesses right{share}"
    return "\n".join(f"{name:<12} {text}" for name, text in lines.items())
