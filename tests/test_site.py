"""The built site in a browser: every page fits a phone and a desktop, in light and in dark."""

from __future__ import annotations

import functools
import http.server
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.browser import chromium, command

ROOT = Path(__file__).parents[1]
TOO_WIDE = "too_wide.html"
PROBE = """<!doctype html><body style="margin: 0"><script>
const scrolls = (element, window) => {
  for (; !element.matches(".md-content"); element = element.parentElement)
    if (["auto", "scroll"].includes(window.getComputedStyle(element).overflowX)) return true;
  return false;
};
(async () => {
  const found = {};
  for (const page of PAGES) {
    const frame = document.createElement("iframe");
    frame.style.cssText = "border: 0; height: 900px; width: WIDTHpx";
    const loaded = new Promise(done => frame.onload = done);
    frame.src = "/" + page;
    document.body.append(frame);
    await loaded;
    const inside = frame.contentDocument, content = [...inside.querySelectorAll(".md-content *")];
    const wide = content.filter(each => each.getBoundingClientRect().right > WIDTH + 1
      && !scrolls(each, frame.contentWindow));
    found[page] = {
      width: inside.documentElement.scrollWidth,
      wide: wide.map(each => each.outerHTML.slice(0, 80)),
      colour: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
    };
    frame.remove();
  }
  fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


class Pages(http.server.SimpleHTTPRequestHandler):
    """The site, and a page that opens all of its pages in frames, as a window cannot be as narrow as a phone."""

    found: ClassVar[queue.Queue[dict[str, Any]]] = queue.Queue()

    def do_GET(self) -> None:
        if not self.path.startswith("/probe/"):
            return super().do_GET()
        site = Path(self.directory)
        pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html")
        probe = PROBE.replace("WIDTH", self.path.rpartition("/")[2]).replace("PAGES", json.dumps(pages)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(probe)))
        self.end_headers()
        self.wfile.write(probe)
        return None

    def do_POST(self) -> None:
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    site = tmp_path_factory.mktemp("site")
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, check=True, cwd=ROOT, env=quiet)
    (site / TOO_WIDE).write_text(
        '<html style="overflow-x: hidden"><body><div class="md-content"><p style="width: 2000px">x</p></div>'
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@chromium
@pytest.mark.timeout(300)
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_fits_every_page(address: str, tmp_path: Path, width: int, scheme: str) -> None:
    told = command(f"{address}/probe/{width}", tmp_path, (max(width, 600), 1000), scheme)
    with subprocess.Popen([*told, "--remote-debugging-port=0"], stderr=subprocess.DEVNULL) as process:
        try:
            found = Pages.found.get(timeout=120)
        finally:
            process.terminate()
    assert len(found) > 40 and found.pop(TOO_WIDE)["wide"] != [], "a page that is too wide is found"
    assert {page: each["wide"] for page, each in found.items() if each["wide"] or each["width"] > width} == {}
    colours = {each["colour"] for each in found.values()}
    assert len(colours) == 1 and (sum(map(int, colours.pop()[4:-1].split(","))) > 382) == (scheme == "light")
