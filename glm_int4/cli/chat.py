"""``glm-int4 chat``: a conversation in the terminal, or one answer for a script."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from glm_int4.cli import console, options
from glm_int4.errors import InputError

if TYPE_CHECKING:
    from glm_int4.generation.engine import Engine
    from glm_int4.generation.sampling import SamplingParams

NAME = "chat"

_HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."

# When old rounds are dropped, a quarter of max_length stays free for the answer.
_ROUNDS_SHARE = 0.75


def run(
    model: options.Model = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and print the answer alone.")] = None,
    system: Annotated[str | None, typer.Option(help="Text in front of the conversation.")] = None,
    greedy: options.Greedy = False,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    max_new_tokens: options.MaxNewTokens = None,
    max_length: options.MaxLength = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    model_version: options.ModelVersion = "auto",
) -> None:
    """Chat with a model."""
    sampling = options.sampling_params(
        greedy=greedy,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    if prompt is not None:
        options.check_text(prompt, "a prompt")
    if system is not None:
        options.check_text(system, "a system text")
    started = time.perf_counter()
    glm = options.load_engine(model, device=device, threads=threads, model_version=model_version, max_length=max_length)
    glm.tokenizer  # noqa: B018 (a folder without one is an error now, not after the first question)
    conversation = Conversation(glm, sampling, system, max_new_tokens)
    if prompt is not None:
        for piece in conversation.ask(prompt):
            print(options.printable(piece), end="", flush=True)
        print()
        return
    loaded_s = time.perf_counter() - started
    _talk(conversation, f"{options.find_model(model)} on {glm.device}, loaded in {loaded_s:.1f} s. {_HELP}")


class Conversation:
    """The messages so far, and asking the next question."""

    def __init__(
        self, glm: "Engine", sampling: "SamplingParams", system: str | None, max_new_tokens: int | None
    ) -> None:
        self._glm, self._sampling, self._max_new_tokens = glm, sampling, max_new_tokens
        self._system = [{"role": "system", "content": system}] if system else []
        self._rounds: list[dict[str, str]] = []
        self.last_num_tokens = 0

    def clear(self) -> None:
        self._rounds = []

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer's pieces; what was said counts even if the answer is broken off."""
        self._rounds.append({"role": "user", "content": question})
        answer = ""
        ids: list[int] = []
        try:
            for piece in self._glm.stream_chat(
                [*self._system, *self._rounds], self._max_new_tokens, self._sampling, ids
            ):
                answer += piece
                yield piece
        finally:
            self.last_num_tokens = len(ids)
            if ids:
                self._rounds.append({"role": "assistant", "content": answer})
            else:
                self._rounds.pop()

    def drop_old_rounds(self, question: str) -> int:
        """Make room for a question and its answer; returns how many rounds were dropped.

        Raises:
            InputError: the question alone is too long; nothing is dropped then.
        """
        limit = int(_ROUNDS_SHARE * self._glm.max_length)
        dropped = 0
        asked = {"role": "user", "content": question}
        alone = self._glm.count_tokens([*self._system, asked])
        if alone >= self._glm.max_length:
            raise InputError(f"expected a question of less than {self._glm.max_length} tokens, got {alone}; shorten it")
        while self._rounds and self._glm.count_tokens([*self._system, *self._rounds, asked]) > limit:
            del self._rounds[:2]
            dropped += 1
        return dropped


def _talk(conversation: Conversation, greeting: str) -> None:
    notes = console.stderr_console()
    notes.print(greeting, style="dim", highlight=False, markup=False)
    ask = _question_source()
    while (question := ask()) is not None:
        question = question.strip()
        if not question:
            continue
        if question in ("/exit", "/quit"):
            return
        if question == "/clear":
            conversation.clear()
            notes.print("forgotten", style="dim")
            continue
        if question.startswith("/"):
            notes.print(_HELP, style="dim", highlight=False)
            continue
        try:
            options.check_text(question, "a question")
            if dropped := conversation.drop_old_rounds(question):
                notes.print(f"(dropped the oldest rounds, {dropped}, to stay within the model's length)", style="dim")
            notes.print(_answer(conversation, question), style="dim", highlight=False)
        except KeyboardInterrupt:
            print()
            notes.print("(stopped; Ctrl-C again leaves)", style="dim")
        except InputError as error:
            if not sys.stdin.isatty():
                raise
            notes.print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)


def _answer(conversation: Conversation, question: str) -> str:
    """Print an answer as it comes; returns a line about its speed."""
    started = time.perf_counter()
    first = None
    for piece in conversation.ask(question):
        first = first or time.perf_counter()
        print(options.printable(piece), end="", flush=True)
    ended = time.perf_counter()
    print()
    count = conversation.last_num_tokens
    line = f"{count} tokens, the first after {(first or ended) - started:.1f} s"
    if first is not None and count > 1 and ended > first:
        line += f", then {(count - 1) / (ended - first):.1f} tokens/s"
    return line


def _question_source() -> Callable[[], str | None]:
    """A function that returns the next question, or None at the end."""
    if not sys.stdin.isatty():
        lines = iter(sys.stdin)
        return lambda: next(lines, None)
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(reserve_space_for_menu=0)

    def ask() -> str | None:
        while True:
            try:
                return session.prompt("> ")
            except KeyboardInterrupt:
                if not session.default_buffer.text:  # with a line begun, Ctrl-C clears it
                    return None
            except EOFError:
                return None

    return ask
