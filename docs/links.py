"""A hook of MkDocs for links: those that leave docs/ become paths on the site, those to notebooks lead to pages."""

from __future__ import annotations

import posixpath
import re
from typing import Any

NOTEBOOK = re.compile(r"(\]\(tutorials/\w+)\.ipynb\)")
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page with its links as the site has them."""
    return NOTEBOOK.sub(r"\1.md)", without(markdown, posixpath.dirname(page.file.src_uri)))


def without(markdown: str, folder: str) -> str:
    """Links to files outside of docs/ as their paths; a link's own words stay where they are not the path.

    Args:
        markdown: of a page.
        folder: that the page is in, inside of docs/.

    >>> without("[search/tables.py](../search/tables.py), [the results](../benchmarks/results)", "")
    '`search/tables.py`, the results (`benchmarks/results`)'
    >>> without("[Tasks](../tasks.md)", "reference")
    '[Tasks](../tasks.md)'
    """

    def named(link: re.Match[str]) -> str:
        words, path = link[1], posixpath.normpath(posixpath.join(folder, link[2]))
        if not path.startswith("../"):
            return link[0]
        path = path.removeprefix("../")
        return f"`{path}`" if words.strip("`/") in path else f"{words} (`{path}`)"

    return LINK.sub(named, markdown)
