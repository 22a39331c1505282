"""The line that says how far scoring is."""

import io

import pytest

from lorachord.runs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scored(stream: io.StringIO, seconds: float, batches: int = 20, rows: int = 100) -> str:
    """Two tasks of as many batches, of some seconds each."""
    clock = Clock()
    with Progress(2 * batches * rows, stream=stream, clock=clock) as progress:
        for task in ("colour", "size"):
            for _ in range(batches):
                clock.now += seconds
                progress(task, rows)
    return stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_done_in_a_few_seconds_is_not_told(stream: type[io.StringIO]) -> None:
    assert scored(stream(), 0.05) == ""


def test_a_file_gets_a_line_now_and_then() -> None:
    lines = scored(io.StringIO(), 1.0).splitlines()
    assert lines == [
        "scoring colour: 300 of 4,000 rows, 0:37 left",
        "scoring colour: 1,300 of 4,000 rows, 0:27 left",
        "scoring size: 2,300 of 4,000 rows, 0:17 left",
        "scoring size: 3,300 of 4,000 rows, 0:07 left",
    ]


def test_a_terminal_has_one_line_which_is_taken_off_in_the_end() -> None:
    written = scored(Terminal(), 1.0)
    assert "\n" not in written
    states = written.split("\r\033[K")
    assert states[0] == ""
    assert states[1] == "scoring colour: 300 of 4,000 rows, 0:37 left"
    assert states[-2] == "scoring size: 3,900 of 4,000 rows, 0:01 left"
    assert states[-1] == ""


def test_long_times_have_hours() -> None:
    assert "1:03:20" in scored(io.StringIO(), 100.0)


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(10, stream=None, clock=clock) as progress:
        clock.now += 60
        progress("colour", 5)
    assert capsys.readouterr() == ("", "")
