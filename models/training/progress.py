"""How far a training is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import TextIO

WIDTH = 24


class Progress:
    """Counts steps of `total`; elsewhere than on a terminal it prints a line for each tenth."""

    def __init__(self, title: str, total: int, done: int = 0, stream: TextIO | None = None):
        self.title, self.total, self.done = title, total, done
        self.stream = stream or sys.stderr
        self.started_at, self.done_at_start = time.monotonic(), done

    def step(self, note: str = "") -> None:
        """One step is done."""
        self.done += 1
        elapsed_s = time.monotonic() - self.started_at
        left_s = elapsed_s / (self.done - self.done_at_start) * (self.total - self.done)
        text = f"{self.title} {self.done}/{self.total}  {note}  {elapsed_s:.0f} s, {left_s:.0f} s left"
        if self.stream.isatty():
            filled = WIDTH * self.done // self.total
            end = "\n" if self.done == self.total else ""
            self.stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (WIDTH - filled)}] {text}{end}")
        elif self.done == self.total or 10 * self.done // self.total > 10 * (self.done - 1) // self.total:
            self.stream.write(f"{text}\n")
        self.stream.flush()
