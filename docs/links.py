"""A hook of MkDocs: links that leave docs/ work on GitHub, and on the site they are the path that they lead to."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?!\.)[^)#]+)[^)]*\)")
"""A link to a file of the repository, from a page of docs/ itself."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Such links as their paths; a link's own words stay where they are not the path.

    >>> on_page_markdown("[search/methods.py](../search/methods.py), [the results](../benchmarks/results)")
    '`search/methods.py`, the results (`benchmarks/results`)'
    """

    def named(link: re.Match[str]) -> str:
        words, path = link[1], link[2]
        return f"`{path}`" if words.strip("`") in path else f"{words} (`{path}`)"

    return OUTSIDE.sub(named, markdown)
