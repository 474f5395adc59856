"""Pictures inside of a page: names, colours, and nothing of the file that they came from."""

from __future__ import annotations

import pytest

from espalier.report.svg import inline

FILE = """<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt" viewBox="0 0 72 36" version="1.1">
 <metadata><x>http://purl.org/</x></metadata>
 <g id="axes_1"><path id="p" style="fill: #ABCDEF"/><use xlink:href="#p" clip-path="url(#c)"/></g>
</svg>
"""


def test_a_picture_becomes_an_element() -> None:
    found = inline(FILE, "one", 'a "title" & more', {"#abcdef": "var(--s0)"})
    assert found.startswith('<svg viewBox="0 0 72 36" role="img" aria-label="a &quot;title&quot; &amp; more"')
    assert "--width: 96px" in found  # an inch
    assert 'id="one-axes_1"' in found and 'xlink:href="#one-p"' in found and "url(#one-c)" in found
    assert "fill: var(--s0)" in found
    assert not any(word in found for word in ("metadata", "DOCTYPE", "<?xml"))


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(AssertionError, match="not an SVG"):
        inline("<p>", "one", "t", {})
