"""A program in a pseudo-terminal, as a person at a keyboard meets it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>()][0-9A-Z]?)")


class PseudoTerminal:
    """Runs ``python -m ...``; ``written`` holds what came out since the last ``type``."""

    def __init__(self, *arguments, env=None, columns=80, rows=24):
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.sane = termios.tcgetattr(slave)
        inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}  # xdist's
        self.process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=inherited | {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"} | (env or {}),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.written = b""

    @property
    def text(self):
        """What was written, without escape sequences."""
        return _ESCAPES.sub("", self.written.decode(errors="replace")).replace("\r", "")

    def wait_for(self, fragment, timeout=60):
        """Read until ``fragment`` stands in the text."""
        self.wait_until(lambda: fragment in self.text, fragment, timeout)

    def wait_for_prompt(self):
        """Read until a new prompt has been drawn: it switches bracketed paste on, then draws the status line."""
        self.wait_until(lambda: "· context " in self.written.decode(errors="replace").partition("\x1b[?2004h")[2])

    def wait_until(self, condition, what="prompt", timeout=60):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"no {what!r} in {self.text!r}"
            self._read()

    def wait_for_end(self, timeout=30, key=None):
        """Read until the program has ended; returns its exit code. ``key`` is pressed, again and again, until then."""
        deadline, press = time.monotonic() + timeout, time.monotonic()
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.text!r}"
            if key and time.monotonic() >= press:
                self.type(key, enter=False)
                press += 2
            self._read()
        while self._read():
            pass
        return self.process.returncode

    def type(self, text, enter=True):
        """Press keys; what was written before is forgotten."""
        self.written = b""
        os.write(self.master, text.encode() + (b"\r" if enter else b""))

    def ask(self, text):
        """Type a line and wait for the next prompt, after this one has switched bracketed paste off."""
        self.type(text)
        self.wait_until(lambda: b"\x1b[?2004l" in self.written, "end of the line")
        self.written = self.written.partition(b"\x1b[?2004l")[2]
        self.wait_for_prompt()
        return self.text

    def resize(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def is_sane(self):
        """Whether the terminal's modes are what they were, and nothing is left switched on."""
        modes = termios.tcgetattr(self.master)
        return modes[:4] == self.sane[:4] and self.written.rfind(b"\x1b[?2004l") >= self.written.rfind(b"\x1b[?2004h")

    def close(self):
        self.process.kill()
        self.process.wait()
        if self.master >= 0:
            os.close(self.master)

    def hang_up(self):
        os.close(self.master)
        self.master = -1

    def _read(self):
        if not select.select([self.master], [], [], 0.1)[0]:
            return False
        try:
            data = os.read(self.master, 4096)
        except OSError:  # the other end is closed
            return False
        if b"\x1b[6n" in data:  # the line editor asks where the cursor is
            os.write(self.master, b"\x1b[1;1R")
        self.written += data
        return bool(data)


def _take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C and a hang-up arrive as signals
