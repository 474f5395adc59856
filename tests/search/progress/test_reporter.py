"""What a run says while it runs: lines in a pipe, bars on a terminal, nothing in Python."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from espalier.search.progress.reporter import Lines, Silent, Terminal, for_console, here

CAPABLE = {"TERM": "xterm-256color"}
"""Of a terminal that redraws lines."""


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made.monotonic)
    return made


def test_lines_come_with_rate_time_left_and_note_and_not_too_often(clock: Clock) -> None:
    stream = io.StringIO()
    with Lines(stream, interval=5).meter("search", 100, "candidates") as meter:
        for done in range(1, 41):
            clock.now += 0.25
            meter.update(done, f"best {done}")
    assert stream.getvalue().splitlines() == [
        "search: 0/100 candidates",
        "search: 20/100 candidates, 4/s, 20 s left, best 20",
        "search: 40/100 candidates, 4/s, 15 s left, best 40",
    ]


def test_the_last_state_is_always_said(clock: Clock) -> None:
    stream = io.StringIO()
    with Lines(stream, interval=5).meter("x", 3, "runs") as meter:
        clock.now += 1
        meter.update(3)
    assert stream.getvalue().splitlines() == ["x: 0/3 runs", "x: 3/3 runs, 3/s"]


def test_the_rate_counts_from_where_this_run_began(clock: Clock) -> None:
    stream = io.StringIO()
    with Lines(stream, interval=5).meter("search", 100, "candidates", done=50) as meter:
        clock.now += 10
        meter.update(60)
    assert stream.getvalue().splitlines()[-1] == "search: 60/100 candidates, 1/s, 40 s left"


def test_the_first_units_tell_no_time_left(clock: Clock) -> None:
    """The first takes longer than those that follow; a stage of long ones tells it all the same."""
    stream = io.StringIO()
    with Lines(stream, interval=0).meter("training", 100, "steps") as meter:
        for done in (1, 4, 5):
            clock.now += 1
            meter.update(done)
    assert [("left" in line) for line in stream.getvalue().splitlines()] == [False, False, False, True]
    with Lines(stream, interval=0).meter("fine-tuning", 10, "runs") as meter:
        clock.now += 600
        meter.update(1)
    assert stream.getvalue().splitlines()[-1] == "fine-tuning: 1/10 runs, 0.00167/s, 5400 s left"


def test_nothing_is_divided_by_zero(clock: Clock) -> None:
    stream = io.StringIO()
    with Lines(stream, interval=0).meter("search", 0, "candidates") as meter:
        meter.update(0)
        meter.update(0, "none")
    assert stream.getvalue().splitlines()[-1] == "search: 0/0 candidates, none"


def test_bars_show_rate_and_note() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=140, color_system=None, _environ=CAPABLE)
    reporter = for_console(console)
    assert isinstance(reporter, Terminal)
    with reporter.meter("search", 8, "candidates", done=2) as meter:
        meter.update(8, "best 0.5")
    reporter.say("a line")
    shown = stream.getvalue()
    assert "8/8" in shown and "best 0.5" in shown and "candidates/s" in shown and "a line" in shown


def test_a_bar_keeps_to_its_line_on_a_narrow_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None, _environ=CAPABLE)
    with for_console(console).meter("fine-tuning of each network", 12345, "candidates") as meter:
        meter.update(12345, "best held-out 96.43 %, of trial 1234567")
    last = stream.getvalue().split("\r")[-1]
    lines = [line for line in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", last).splitlines() if line.strip()]
    assert len(lines) == 1 and len(lines[0]) <= 80, lines
    assert "12345/12345" in lines[0] and "/s" in lines[0] and "best held-out" in lines[0]


def test_a_terminal_that_redraws_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(for_console(Console(file=io.StringIO(), force_terminal=True)), Lines)


def test_a_search_in_python_leaves_few_lines_in_a_log_file(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with here(None).meter("search", 400, "candidates") as meter:
        for done in range(1, 401):
            clock.now += 0.25
            meter.update(done)
    assert capsys.readouterr() == (
        "",
        "search: 0/400 candidates\nsearch: 120/400 candidates, 4/s, 70 s left\n"
        "search: 240/400 candidates, 4/s, 40 s left\nsearch: 360/400 candidates, 4/s, 10 s left\n"
        "search: 400/400 candidates, 4/s\n",
    )
    assert isinstance(here(False), Silent)


@pytest.mark.parametrize("text", ["[/runs/x]", "runs/[old]/ladder", "a :warning: [bold]b[/bold]", "[", "\\\\[x]"])
def test_brackets_are_brackets(text: str) -> None:
    stream = io.StringIO()
    reporter = Terminal(Console(file=stream, force_terminal=True, width=200, color_system=None, _environ=CAPABLE))
    with reporter.meter(f"title {text}", 8, text) as meter:
        meter.update(8, f"note {text}")
        reporter.say(f"said {text}")
    for shown in (f"title {text}", f"note {text}", f"said {text}", f"{text}/s"):
        assert shown in stream.getvalue()


@pytest.mark.parametrize(("done", "left"), [(40, False), (77, True)])
def test_a_bar_that_ends_early_tells_no_time_that_is_left(done: int, left: bool) -> None:
    stream = io.StringIO()
    reporter = Terminal(Console(file=stream, force_terminal=True, width=90, color_system=None, _environ=CAPABLE))
    with reporter.meter("judged again", 77, "networks") as meter:
        meter.update(1)
        time.sleep(0.01)
        meter.update(done)
    last = stream.getvalue().rpartition("judged again")[2]
    assert f"{done}/77" in last and ("0:00:00" in last) == left


def test_a_pipe_gets_lines() -> None:
    stream = io.StringIO()
    reporter = for_console(Console(file=stream))
    assert isinstance(reporter, Lines)
    with reporter.meter("search", 2, "candidates"):
        reporter.say("a line")
    assert stream.getvalue() == "search: 0/2 candidates\na line\n"


def test_python_hears_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Silent()
    with reporter.meter("search", 2, "candidates") as meter:
        meter.update(1, "best")
        reporter.say("a line")
    assert capsys.readouterr() == ("", "")
