"""Records a command in a terminal, as an animated SVG: ``python docs/terminal.py OUT.svg espalier search digits``.

The command runs in a pseudo-terminal of its own, and pyte keeps its screen. The picture shows that screen, faster
than it was: all frames lie side by side in one strip, which CSS moves. It needs no script, so that GitHub shows it.
Who prefers reduced motion sees the last frame.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import os
import pty
import select
import shlex
import struct
import termios
import time
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import pyte

FONT, WIDTH, HEIGHT, PAD, TOP = 14, 8.4, 18, 12, 34
"""Pixels: of the font, a column, a row, the margin, and the bar with the title."""

INK, GROUND, DIM = "#d1d7e0", "#151b23", "#8b949e"
COLORS = {
    "red": "#ff7b72",
    "green": "#7ee787",
    "brown": "#d29922",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#76e3ea",
    "black": DIM,
    "white": "#f0f6fc",
}
"""Colours of pyte -> those of the picture; six hex digits are colours as they are."""


@dataclass(frozen=True)
class Frame:
    """What the screen showed.

    Attributes:
        second: when, since the command began.
        rows: SVG of every row that is not empty, by number.
    """

    second: float
    rows: tuple[tuple[int, str], ...]


def record(command: list[str], columns: int, rows: int) -> list[Frame]:
    """Runs a command until it ends; a frame whenever its screen changed.

    Raises:
        SystemExit: the command failed.
    """
    screen = pyte.Screen(columns, rows)
    stream, decoder = pyte.Stream(screen), codecs.getincrementaldecoder("utf-8")("replace")
    child, terminal = pty.fork()
    if child == 0:
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)}
        environment.pop("NO_COLOR", None)
        os.execvpe(command[0], command, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    stream.feed(f"$ {shlex.join(command)}\r\n")
    start, frames = time.monotonic(), [Frame(0.0, _rows(screen))]
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's end of a terminal
            break
        if not data:
            break
        stream.feed(decoder.decode(data))
        paused = not select.select([terminal], [], [], 0.02)[0]  # else it writes on: half a line, most likely
        now = time.monotonic() - start
        if (paused or now - frames[-1].second > 0.2) and (shown := _rows(screen)) != frames[-1].rows:
            frames.append(Frame(now, shown))
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(f"{shlex.join(command)} ended with {status}:\n" + "\n".join(screen.display).rstrip())
    return [*frames, Frame(time.monotonic() - start, _rows(screen))]


def _rows(screen: pyte.Screen) -> tuple[tuple[int, str], ...]:
    found = []
    for number in range(screen.lines):
        line = [screen.buffer[number][column] for column in range(screen.columns)]
        parts, column = [], 0
        for style, run in groupby(line, lambda char: (char.fg, char.bold)):
            text = "".join(char.data for char in run)
            if text.strip():
                start = column + len(text) - len(text.lstrip())
                parts.append(_run(text.strip(), start, *style))
            column += len(text)
        if parts:
            found.append((number, "".join(parts)))
    return tuple(found)


def _run(text: str, column: int, color: str, bold: bool) -> str:
    """Columns are kept whatever font there is: a run says where it begins and how long it is."""
    style = "" if color == "default" else f' fill="{COLORS.get(color, "#" + color)}"'
    style += ' font-weight="bold"' if bold else ""
    words = escape(text, quote=False)
    return f'<text x="{column * WIDTH:.4g}" textLength="{len(text) * WIDTH:.4g}"{style}>{words}</text>'


def thinned(frames: list[Frame], seconds: float, pause: float = 1.5) -> list[tuple[float, Frame]]:
    """(second of the picture, frame), at most eight a second.

    Args:
        frames: as recorded.
        seconds: that the picture takes until its last frame, at most.
        pause: seconds of the picture in which nothing changes, at most.
    """
    speed = max(1.0, frames[-1].second / seconds)
    told, clock, last = [(0.0, frames[0])], 0.0, frames[0]
    for frame in frames[1:]:
        clock += min(pause, (frame.second - last.second) / speed)
        last = frame
        if clock - told[-1][0] >= 1 / 8 or frame is frames[-1]:
            if frame.rows != told[-1][1].rows:
                told.append((clock, frame))
    return told


def drawn(shown: list[tuple[float, Frame]], title: str, columns: int, rows: int, hold: float) -> str:
    """The SVG; rows that several frames have are in it once."""
    names: dict[str, str] = {}
    for _, frame in shown:
        for _, row in frame.rows:
            names.setdefault(row, f"r{len(names)}")
    width, height = round(columns * WIDTH) + 2 * PAD, rows * HEIGHT + TOP + PAD
    total = shown[-1][0] + hold
    keys = "".join(
        f"{100 * second / total:.4g}%{{transform:translateX({-number * width}px)}}"
        for number, (second, _) in enumerate(shown)
    )
    last = -(len(shown) - 1) * width
    strip = []
    for number, (_, frame) in enumerate(shown):
        uses = "".join(f'<use href="#{names[row]}" y="{at * HEIGHT}"/>' for at, row in frame.rows)
        strip.append(f'<g transform="translate({number * width} 0)">{uses}</g>')
    words = escape(title, quote=False)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'fill="{INK}" role="img" aria-label="{escape(title)}">\n'
        f"<style>text{{font:{FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"white-space:pre}}text[font-weight]{{font-weight:bold}}"
        f".s{{transform:translateX({last}px)}}@keyframes k{{{keys}100%{{transform:translateX({last}px)}}}}"
        f"@media(prefers-reduced-motion:no-preference){{.s{{animation:k {total:.2f}s steps(1,end) infinite}}}}"
        "</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>\n'
        f'<text x="{width / 2:g}" y="22" text-anchor="middle" fill="{DIM}">{words}</text>\n'
        "<defs>\n" + "\n".join(f'<g id="{name}">{row}</g>' for row, name in names.items()) + "\n</defs>\n"
        f'<svg x="{PAD}" y="{TOP}" width="{width - 2 * PAD}" height="{rows * HEIGHT}">'
        f'<g transform="translate(0 {FONT})"><g class="s">\n' + "\n".join(strip) + "\n</g></g></svg>\n</svg>\n"
    )


def main() -> None:
    """Records and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=90)
    parser.add_argument("--rows", type=int, default=26)
    parser.add_argument("--seconds", type=float, default=20, help="that the picture takes until its last frame")
    parser.add_argument("--hold", type=float, default=8, help="seconds for which the last frame stays")
    parser.add_argument("out", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    frames = record(given.command, given.columns, given.rows)
    shown = thinned(frames, given.seconds)
    faster = max(1, round(frames[-1].second / max(shown[-1][0], 0.1)))
    title = shlex.join(given.command) + (f", {faster} times as fast" if faster > 1 else "")
    given.out.write_text(drawn(shown, title, given.columns, given.rows, given.hold), encoding="utf-8")


if __name__ == "__main__":
    main()
