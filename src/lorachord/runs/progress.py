"""How far scoring is, on stderr, where it takes longer than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

QUIET = 3.0
"""Seconds without a line."""
EVERY = {True: 0.5, False: 10.0}
"""Seconds between two states of the line, on a terminal and elsewhere."""


class Progress:
    """A line with the task, the rows done of all, and the time left; within a `with` block.

    A terminal's line is overwritten and taken off in the end; in a file it is a new one every ten seconds.

    Args:
        total: rows of all tasks together.
        stream: where to write; None for nowhere.
        clock: seconds. Default: a monotonic clock.
    """

    def __init__(self, total: int, *, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.stream, self.clock = total, stream, clock
        self.began = clock()
        self.last = self.began + QUIET - EVERY[self._terminal]
        self.finished, self.shown = 0, False

    @property
    def _terminal(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.shown and self._terminal:
            self._write("\r\033[K")

    def __call__(self, task: str, rows: int) -> None:
        """Some more rows of a task are done."""
        self.finished += rows
        now = self.clock()
        if now - self.last < EVERY[self._terminal] or self.finished == self.total:
            return
        self.last, self.shown = now, True
        left = (now - self.began) / self.finished * (self.total - self.finished)
        line = f"scoring {task}: {self.finished:,} of {self.total:,} rows, {_time(left)} left"
        self._write(f"\r\033[K{line}" if self._terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        if self.stream is not None:
            self.stream.write(text)
            self.stream.flush()


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
