"""The engine's thread: takes pending answers from the server, runs them together, and gives their pieces back.

Everything that touches the model happens on this thread. The server's event loop only adds pending answers, asks for
their end, and waits for chunks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from glm_int4.adapters.named_adapters import NamedAdapter
from glm_int4.errors import GLMError, InputError
from glm_int4.generation.batched_sequence import Event, Sequence
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.server.answers import Chunk, TextAnswer
from glm_int4.server.api_errors import ApiError
from glm_int4.server.protocol.token_scores import ScoringSampler

logger = logging.getLogger(__name__)

_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 60  # seconds: a queue often moves faster than it did


@dataclass(slots=True, eq=False)
class PendingAnswer:
    """An answer that somebody waits for.

    Attributes:
        chunks: its pieces, for the event loop; the last one has an ``end`` or an ``error``.
        index: among the answers to one request, which may share ``chunks``.
        gone: whether nobody waits any more.
        begun: when it was given a slot.
    """

    sequence: Sequence
    answer: TextAnswer
    chunks: asyncio.Queue[Chunk] = field(default_factory=asyncio.Queue)
    index: int = 0
    gone: bool = False
    started: float = field(default_factory=time.monotonic)
    begun: float | None = None
    first_token: float | None = None


class Worker:
    """One thread around a ``Batcher``.

    Args:
        max_waiting: answers that may wait while all slots are taken.
        observe: called on the engine's thread with every answer that has ended, and how.
    """

    def __init__(
        self,
        engine: Engine,
        num_slots: int,
        max_waiting: int,
        observe: Callable[[PendingAnswer, str], None] | None = None,
    ) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self.batcher = Batcher(engine, num_slots)
        self.observe = observe or (lambda pending, how: None)
        self._pending: dict[Sequence, PendingAnswer] = {}
        self._new: list[PendingAnswer] = []
        self._changes: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._changed = threading.Condition()
        self._draining = self._stopping = False
        self._seconds: float | None = None  # that an answer has taken lately, without its time in the queue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- called from the event loop -----------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; chunks go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs and will go on."""
        return self._thread.is_alive() and not self._stopping

    @property
    def num_pending(self) -> int:
        """Jobs that run or wait."""
        return len(self._pending) + len(self._new)

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a slot."""
        return self.batcher.num_waiting + len(self._new)

    def pending(
        self,
        prompt: list[int],
        max_new_tokens: int | None,
        sampling: SamplingParams,
        answer: TextAnswer,
        stop_ids: Iterable[int],
        *,
        behind: bool = False,
        adapter: NamedAdapter | None = None,
    ) -> PendingAnswer:
        """A pending answer to ``submit``; arguments and errors as of ``Batcher.sequence``."""
        sequence = self.batcher.sequence(prompt, max_new_tokens, sampling, frozenset(stop_ids), behind, adapter)
        return PendingAnswer(sequence, answer)

    def check_room(self) -> None:
        """Raise an ApiError where no answer can wait: 429 where too many wait already, 503 while the server ends."""
        if self._draining or not self.alive:
            raise _ending()
        if self.num_pending >= self.batcher.num_slots + self.max_waiting:
            seconds = self._seconds_of_queue()
            raise ApiError(
                429,
                f"expected fewer requests at a time, got more than {self.max_waiting} that wait; try again later",
                code="queue_full",
                # OpenAI's client reads the second one first, and comes back when there is room.
                headers={"Retry-After": str(max(round(seconds), 1)), "Retry-After-Ms": str(round(1000 * seconds))},
            )

    def _seconds_of_queue(self) -> float:
        """Until those that wait now have a slot, by what answers have taken lately."""
        seconds = (1.0 if self._seconds is None else self._seconds) * self.num_waiting / self.batcher.num_slots
        return min(max(seconds, _SHORTEST_RETRY), _LONGEST_RETRY)

    def submit(self, jobs: Iterable[PendingAnswer]) -> None:
        """Let the answers to a request wait for a slot; raises as ``check_room``, which counts the request as one."""
        with self._changed:
            self.check_room()
            self._new += jobs
            self._changed.notify()

    def cancel(self, pending: PendingAnswer) -> None:
        """Nobody waits for an answer any more: it ends before the next token."""
        pending.gone = True
        with self._changed:
            self._changed.notify()

    async def change(self, what: Callable[[], Any]) -> Any:
        """Call a function that changes the model on the engine's thread, between two steps; returns its result.

        Raises:
            ApiError: the server ends. And what the function raises.
        """
        done: Future[Any] = Future()
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise _ending()
            self._changes.append((what, done))
            self._changed.notify()
        return await asyncio.wrap_future(done)

    def drain(self) -> None:
        """Take no more answers, and end those that have no slot yet."""
        with self._changed:
            self._draining = True
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the token that it is at; answers that still run end with an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    # --- on the engine's thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._new or self._pending or self._changes or self._stopping):
                    self._changed.wait()
                new, self._new = self._new, []
                chunks = [chunk for pending in new for chunk in self._join(pending)]
                changes, self._changes = self._changes, []
                if self._stopping:
                    break
            for what, done in changes:
                _settle(done, what)
            chunks += self._tidy()
            now = time.monotonic()
            try:
                events = self.batcher.step()
                self._note_begun(now, {event.sequence for event in events})
                for event in events:
                    found = self._pending.get(event.sequence)
                    if found is not None:  # None: a stop text has just ended it
                        chunks.append((found, self._chunk(found, event)))
            except Exception as error:  # a fault of ours; no client may wait for ever
                logger.exception("a step failed")
                chunks += [
                    (pending, self._end(pending, Chunk(error=error), "error")) for pending in [*self._pending.values()]
                ]
            self._give(chunks)
        for _, done in changes:
            _settle(done, _refuse)
        chunks += [
            (pending, self._end(pending, Chunk(error=_ending()), "error")) for pending in [*self._pending.values()]
        ]
        self._give(chunks)

    def _join(self, pending: PendingAnswer) -> list[tuple[PendingAnswer, Chunk]]:
        """Let a new answer wait, under the lock, for ``num_pending``'s sake; its end where its adapter is gone."""
        self._pending[pending.sequence] = pending
        try:
            self.batcher.add(pending.sequence)
            return []
        except InputError as error:
            gone = ApiError(404, str(error), code="model_not_found", param="model")
            return [(pending, self._end(pending, Chunk(error=gone), "error"))]

    def _tidy(self) -> list[tuple[PendingAnswer, Chunk]]:
        """End answers that nobody waits for, and while draining those that have no slot."""
        ended = []
        for pending in [*self._pending.values()]:
            if pending.gone:
                ended.append((pending, self._end(pending, Chunk(end="stop"), "gone")))
            elif self._draining and pending.sequence.slot < 0:
                ended.append((pending, self._end(pending, Chunk(error=_ending()), "error")))
        return ended

    def _note_begun(self, now: float, told: set[Sequence]) -> None:
        """Note who was given a slot by a step that began ``now``; a sequence with an event may have left it again."""
        for sequence, pending in self._pending.items():
            if pending.begun is None and (sequence.slot >= 0 or sequence in told):
                pending.begun = now

    def _chunk(self, pending: PendingAnswer, event: Event) -> Chunk:
        """What an event means for the client; a fault in one answer's text ends that answer alone."""
        if event.error is not None:
            return self._end(pending, Chunk(error=event.error), "error")
        try:
            chunk = Chunk()
            if event.token is not None:
                pending.first_token = pending.first_token or time.monotonic()
                chunk.text, chunk.num_tokens = pending.answer.push(event.token), 1
            told = event.token is not None or pending.answer.tells_end
            if told and isinstance(pending.sequence.sampler, ScoringSampler):
                chunk.scored = pending.sequence.sampler.next_scored()
            if event.end is None and not pending.answer.stopped:
                return chunk
            rest, chunk.calls = pending.answer.finish()
            chunk.text += rest
            chunk.end = "stop" if pending.answer.stopped else event.end
            if chunk.calls:
                chunk.end = "tool_calls"
            return self._end(pending, chunk, chunk.end or "stop")
        except Exception as error:
            return self._end(pending, Chunk(error=error), "error")

    def _end(self, pending: PendingAnswer, chunk: Chunk, how: str) -> Chunk:
        self.batcher.remove(pending.sequence)
        del self._pending[pending.sequence]
        if chunk.error is not None and not isinstance(chunk.error, ApiError | GLMError):
            logger.error("an answer failed", exc_info=chunk.error)
        if pending.begun is not None:
            taken = time.monotonic() - pending.begun
            self._seconds = taken if self._seconds is None else self._seconds + 0.2 * (taken - self._seconds)
        self.observe(pending, how)
        return chunk

    def _give(self, chunks: list[tuple[PendingAnswer, Chunk]]) -> None:
        """Hand chunks to the event loop, all in one go."""
        told = [
            (pending, chunk) for pending, chunk in chunks if chunk.text or chunk.num_tokens or chunk.end or chunk.error
        ]
        if not told or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(_put, told)
        except RuntimeError:  # the loop is closed: nobody waits
            logger.debug("%d pieces came after the end", len(told))


def _ending() -> ApiError:
    return ApiError(503, "expected a server that runs, got one that is shutting down")


def _refuse() -> None:
    raise _ending()


def _settle(done: Future[Any], what: Callable[[], Any]) -> None:
    """Give a future what a function returns or raises."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(what())
    except Exception as error:
        done.set_exception(error)


def _put(chunks: list[tuple[PendingAnswer, Chunk]]) -> None:
    for pending, chunk in chunks:
        chunk.index = pending.index
        pending.chunks.put_nowait(chunk)
