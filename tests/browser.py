"""Chromium, where it is installed: what a page looks like, and what a script finds in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def chromium(test: Any) -> Any:
    """Marks a test that needs it."""
    missing = pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium: apt-get install chromium")
    return pytest.mark.slow(missing(test))


def command(address: str, profile: Path, size: tuple[int, int], scheme: str, *arguments: str) -> list[str]:
    """Opens a page in a window of so many pixels, in the light or the dark scheme."""
    assert _CHROMIUM is not None
    told = [_CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    told += [f"--user-data-dir={profile / 'profile'}", "--window-size={},{}".format(*size)]
    return [*told, f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", *arguments, address]


def browse(address: str, profile: Path, size: tuple[int, int], scheme: str, *arguments: str) -> str:
    """What Chromium prints."""
    told = command(address, profile, size, scheme, *arguments)
    done = subprocess.run(told, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def found_in(page: str) -> dict[str, Any]:
    """What a script has put into ``data-found`` of a page that is dumped."""
    dumped = re.search(r'data-found="([^"]+)"', page)
    assert dumped is not None
    found: dict[str, Any] = json.loads(unescape(dumped[1]))
    return found
