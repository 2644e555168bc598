"""What an input did: its error, time and memory, the lines of the package that ran; and the limits of a child."""

import logging
import re
import resource
import sys
import threading
import time
from pathlib import Path

import torch

import glm_int4
from glm_int4.errors import GLMError

MAX_SECONDS, MAX_GROWTH_BYTES, MAX_MORE_ADDRESSES = 3.0, 300 << 20, 3 << 30
PACKAGE = str(Path(glm_int4.__file__).parent)
_OURS = (PACKAGE, str(Path(__file__).parent))


def limit_memory():
    """Let allocations fail beyond a few GB, so that a blow-up ends as an error and not as a dead machine.

    What is mapped already does not count: a CUDA build of torch takes 3 GB of addresses for itself.
    """
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MORE_ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)


def outcome(target, kind, data):
    """Use an input; returns what is wrong with what happened, or None, and the kind of message that came."""
    before, started = peak_bytes(), time.process_time()
    message = "no error"
    fault = None
    try:
        message = target.use(kind, data) or message
    except GLMError as error:
        message = str(error)
        if "\n" in message or len(message) > 3000:
            fault = "the message is not one line of at most 3000 characters"
    except Exception as error:
        fault = f"{type(error).__name__} at {last_line(error.__traceback__)}"
        message = fault
    seconds, growth = time.process_time() - started, peak_bytes() - before
    if seconds > MAX_SECONDS:
        fault = fault or f"it took more than {MAX_SECONDS} s of processor time"
    if growth > MAX_GROWTH_BYTES:
        fault = fault or f"it took more than {MAX_GROWTH_BYTES} bytes of memory"
    words = re.sub(r"(['\"]).*?(\1|$)", "", message).split()  # without what the input has given
    return fault, " ".join(word for word in words if re.fullmatch(r"[a-z,;:]+", word))[:100]


def last_line(trace):
    """File and line of our code that an exception passed last."""
    place = "elsewhere"
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(_OURS):
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Lines:
    """Lines of the package that have run in a block, through ``sys.settrace``; threads begun after this count too."""

    def __init__(self):
        self.seen, self._active = set(), False
        threading.settrace(self._enter)

    def __enter__(self):
        self._active = True
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error):
        sys.settrace(None)
        self._active = False

    def _enter(self, frame, event, argument):
        return self._line if self._active and frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, argument):
        if event == "line" and self._active:
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line
