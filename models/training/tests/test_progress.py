"""A bar on a terminal, lines elsewhere."""

import io

from training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_elsewhere() -> None:
    stream = io.StringIO()
    progress = Progress("epoch", 40, stream=stream)
    for _ in range(40):
        progress.step("loss 1.0")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("epoch 40/40  loss 1.0")
    assert "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal_that_goes_on() -> None:
    stream = Terminal()
    progress = Progress("epoch", 4, done=2, stream=stream)
    progress.step()
    assert "[##################......] epoch 3/4" in stream.getvalue()
    assert not stream.getvalue().endswith("\n")
    progress.step()
    assert stream.getvalue().endswith("\n")
