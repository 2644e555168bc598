"""The engine's thread: takes jobs from the server, runs them together, and gives their pieces back.

Everything that touches the model happens on this thread. The server's event loop only adds jobs, asks for
their end, and waits for chunks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from glm_int4.errors import GLMError
from glm_int4.generation.continuous import Batcher, Event, Sequence
from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.server.answers import Chunk, TextAnswer
from glm_int4.server.api_errors import ApiError

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """An answer that somebody waits for.

    Attributes:
        chunks: its pieces, for the event loop; the last one has an ``end`` or an ``error``.
        gone: whether nobody waits any more.
    """

    sequence: Sequence
    answer: TextAnswer
    chunks: asyncio.Queue[Chunk] = field(default_factory=asyncio.Queue)
    gone: bool = False
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None


class Worker:
    """One thread around a ``Batcher``.

    Args:
        max_waiting: jobs that may wait while all slots are taken.
        observe: called on the engine's thread with every job that has ended, and how.
    """

    def __init__(
        self, engine: Engine, num_slots: int, max_waiting: int, observe: Callable[[Job, str], None] | None = None
    ) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self.batcher = Batcher(engine, num_slots)
        self.observe = observe or (lambda job, how: None)
        self._jobs: dict[Sequence, Job] = {}
        self._new: list[Job] = []
        self._changed = threading.Condition()
        self._draining = self._stopping = False
        self._seconds = 1.0  # that a job has taken lately
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- called from the event loop -----------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; chunks go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def num_jobs(self) -> int:
        """Jobs that run or wait."""
        return len(self._jobs) + len(self._new)

    @property
    def num_waiting(self) -> int:
        return self.batcher.num_waiting + len(self._new)

    def job(
        self,
        prompt: list[int],
        max_new_tokens: int | None,
        sampling: SamplingParams,
        answer: TextAnswer,
        stop_ids: Iterable[int],
    ) -> Job:
        """A job to ``submit``; raises InputError for a prompt without room for an answer."""
        return Job(self.batcher.sequence(prompt, max_new_tokens, sampling, frozenset(stop_ids)), answer)

    def check_room(self) -> None:
        """Raise an ApiError where no job is taken: 429 where too many wait already, 503 while the server ends."""
        if self._draining or not self.alive:
            raise ApiError(503, "expected a server that runs, got one that is shutting down")
        if self.num_jobs >= self.batcher.num_slots + self.max_waiting:
            seconds = min(max(round(self._seconds * self.num_jobs / self.batcher.num_slots), 1), 60)
            raise ApiError(
                429,
                f"expected fewer requests at a time, got more than {self.max_waiting} that wait; try again later",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )

    def submit(self, job: Job) -> None:
        """Take a job; raises as ``check_room``."""
        with self._changed:
            self.check_room()
            self._new.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more: it ends before the next token."""
        job.gone = True
        with self._changed:
            self._changed.notify()

    def drain(self) -> None:
        """Take no more jobs, and end those that have no slot yet."""
        with self._changed:
            self._draining = True
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the token that it is at; jobs that still run end with an error."""
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
                while not (self._new or self._jobs or self._stopping):
                    self._changed.wait()
                new, self._new = self._new, []
                for job in new:  # under the lock, so that num_jobs never loses one
                    self._jobs[job.sequence] = job
                    self.batcher.add(job.sequence)
                if self._stopping:
                    break
            chunks = self._tidy()
            try:
                for event in self.batcher.step():
                    found = self._jobs.get(event.sequence)
                    if found is not None:  # None: a stop text has just ended it
                        chunks.append((found, self._chunk(found, event)))
            except Exception as error:  # a fault of ours; no job may wait for ever
                logger.exception("a step failed")
                chunks += [(job, self._end(job, Chunk(error=error), "error")) for job in [*self._jobs.values()]]
            self._give(chunks)
        end = ApiError(503, "expected a server that runs, got one that is shutting down")
        self._give([(job, self._end(job, Chunk(error=end), "error")) for job in [*self._jobs.values()]])

    def _tidy(self) -> list[tuple[Job, Chunk]]:
        """End jobs that nobody waits for, and while draining those that have no slot."""
        ended = []
        for job in [*self._jobs.values()]:
            if job.gone:
                ended.append((job, self._end(job, Chunk(end="stop"), "gone")))
            elif self._draining and job.sequence.slot < 0:
                error = ApiError(503, "expected a server that runs, got one that is shutting down")
                ended.append((job, self._end(job, Chunk(error=error), "error")))
        return ended

    def _chunk(self, job: Job, event: Event) -> Chunk:
        """What an event means for the client; a fault in one answer's text ends that answer alone."""
        if event.error is not None:
            return self._end(job, Chunk(error=event.error), "error")
        try:
            chunk = Chunk()
            if event.token is not None:
                job.first_token = job.first_token or time.monotonic()
                chunk.text, chunk.num_tokens = job.answer.push(event.token), 1
            if event.end is None and not job.answer.stopped:
                return chunk
            rest, chunk.calls = job.answer.finish()
            chunk.text += rest
            chunk.end = "stop" if job.answer.stopped else event.end
            if chunk.calls:
                chunk.end = "tool_calls"
            return self._end(job, chunk, chunk.end or "stop")
        except Exception as error:
            return self._end(job, Chunk(error=error), "error")

    def _end(self, job: Job, chunk: Chunk, how: str) -> Chunk:
        self.batcher.remove(job.sequence)
        del self._jobs[job.sequence]
        if chunk.error is not None and not isinstance(chunk.error, ApiError | GLMError):
            logger.error("an answer failed", exc_info=chunk.error)
        self._seconds += 0.2 * (time.monotonic() - job.started - self._seconds)
        self.observe(job, how)
        return chunk

    def _give(self, chunks: list[tuple[Job, Chunk]]) -> None:
        """Hand chunks to the event loop, all in one go."""
        told = [(job, chunk) for job, chunk in chunks if chunk.text or chunk.num_tokens or chunk.end or chunk.error]
        if not told or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(_put, told)
        except RuntimeError:  # the loop is closed: nobody waits
            logger.debug("%d pieces came after the end", len(told))


def _put(chunks: list[tuple[Job, Chunk]]) -> None:
    for job, chunk in chunks:
        job.chunks.put_nowait(chunk)
