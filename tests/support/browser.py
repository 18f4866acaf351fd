"""A real browser on pages that this machine serves: Chromium through Playwright.

The pages are served on 127.0.0.1. The browser can reach nothing else, and a
request to any other host counts as a fault.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",  # root, as in a container, may not use the sandbox
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other host
]
WIDTHS = (390, 1280)  # CSS pixels: a telephone, a laptop


def find_chromium() -> str:
    """The path of a Chromium; installs Debian's where that is possible.

    Without one the test is skipped, with the reason; where R1LITE_NEED_BROWSER
    is set, as in CI, it fails.
    """
    path = _on_path() or _from_debian()
    if path:
        return path
    reason = (
        f"no browser: none of {', '.join(NAMES)} is on the PATH, and it cannot be "
        "installed here (that takes root, apt-get and Debian's package chromium); "
        "install Chromium and run the test again"
    )
    if os.environ.get("R1LITE_NEED_BROWSER"):
        pytest.fail(reason)
    warnings.warn(f"the pages of the book were not looked at: {reason}", stacklevel=2)
    pytest.skip(reason)


def _on_path() -> str | None:
    return next((p for name in NAMES if (p := shutil.which(name))), None)


def _from_debian() -> str | None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["update"],
        ["install", "-y", "--no-install-recommends", NAMES[0]],
    ):
        done = subprocess.run(
            ["apt-get", "-qq", *arguments], env=quiet, capture_output=True
        )
        if done.returncode:
            return None
    return _on_path()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve `folder` on a free port of 127.0.0.1; gives the address."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # one connection for many files

        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium (a Playwright `Browser`)."""
    api = pytest.importorskip("playwright.sync_api")
    path = find_chromium()
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


class Visitor:
    """One tab that opens pages of one site and reports what is wrong."""

    def __init__(self, chromium: Any, base: str, dark: bool = False) -> None:
        self.base = base
        self.events: list[str] = []
        scheme = "dark" if dark else "light"
        self.context = chromium.new_context(color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda e: self.events.append(f"exception: {e}"))
        self.page.on("request", self._asked)
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.events.append(f"another host: {request.url}")

    def _failed(self, request: Any) -> None:
        if "ERR_ABORTED" not in request.failure:  # the next page was opened
            self.events.append(f"failed: {request.url}")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.events.append(f"console: {message.text}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.events.append(f"status {response.status}: {response.url}")

    def open(self, address: str, width: int) -> list[str]:
        """Open a page and wait for its mathematics; what went wrong."""
        self.events.clear()
        self.page.set_viewport_size({"width": width, "height": 844})
        self.page.goto(urljoin(self.base, address), wait_until="load")
        self.page.evaluate(WHEN_READY)
        return [f"{address} at {width}: {e}" for e in self.events]

    def faults(self, address: str, width: int) -> list[str]:
        """Open a page and look at it; everything wrong, in words."""
        found = self.open(address, width)
        seen = self.page.evaluate(LOOK)
        return found + [f"{address} at {width}: {fault}" for fault in seen]


WHEN_READY = """async () => {
  await document.fonts.ready;
  if (window.MathJax) await window.MathJax.startup.promise;
}"""

# Runs in the page and returns a list of sentences, empty when all is well.
LOOK = r"""() => {
  const faults = [];
  const say = (text) => faults.push(text);
  const visible = (e) => e.getClientRects().length > 0;
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) {
    const guilty = [...document.querySelectorAll("body *")].filter(
      (e) => visible(e) && e.scrollLeft + e.getBoundingClientRect().left +
        e.scrollWidth > innerWidth + 1);
    const last = guilty[guilty.length - 1];
    say(`${wide} px wide, ${last ? last.outerHTML.slice(0, 80) : "?"}`);
  }
  for (const image of document.images) {
    if (visible(image) && !(image.complete && image.naturalWidth))
      say(`broken image ${image.src.slice(0, 80)}`);
    if (!image.hasAttribute("alt")) say(`no alt text: ${image.src.slice(0, 80)}`);
    const shown = image.closest("article");
    if (shown && image.alt.trim().length < 20)
      say(`alt text too short: ${image.src.slice(0, 80)}`);
  }
  const heads = [...document.querySelectorAll("main h1, article h1")].filter(visible);
  if (heads.length !== 1) say(`${heads.length} main headings`);
  const article = document.querySelector("article");
  const main = article || document.querySelector("main");
  if (!main) return [...faults, "no article"];
  for (const math of main.querySelectorAll(".math"))
    if (!math.querySelector("mjx-container")) say(`not rendered: ${math.textContent}`);
  for (const error of main.querySelectorAll("mjx-merror"))
    say(`wrong formula: ${error.textContent}`);
  const words = main.cloneNode(true);
  for (const e of words.querySelectorAll("pre, code, mjx-container, script, style"))
    e.remove();
  const raw = words.textContent.match(/\$[^$\n]{1,80}\$|\\[([]|\\(frac|sum|sqrt)/);
  if (raw) say(`a formula as text: ${raw[0]}`);
  const p = [...main.querySelectorAll("p")].filter(visible);
  const body = p.find((e) => e.textContent.length > 60) || p[0];
  if (article && body) {
    const style = getComputedStyle(body);
    const size = parseFloat(style.fontSize);
    const width = body.getBoundingClientRect().width;
    if (size < 15) say(`text of ${size} px`);
    if (width > size * 60) say(`lines of ${Math.round(width / size)} em`);
    if (width < Math.min(240, innerWidth * 0.6)) say(`a column of ${width} px`);
    const ratio = contrast(style.color, ground(body));
    if (ratio < 4.5) say(`contrast of the text ${ratio.toFixed(1)}, not 4.5`);
  }
  return faults;

  function ground(e) {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/^(transparent|rgba\(.*, 0\))$/.test(c)) return c;
    }
    return "rgb(255, 255, 255)";
  }
  function contrast(a, b) {
    const light = (c) => {
      const [r, g, b] = c.match(/[\d.]+/g).map((v) => {
        const x = v / 255;
        return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  }
}"""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.add(value)


def pages_of(folder: Path) -> list[str]:
    """Every page of a built site; `_static` holds templates of the theme."""
    found = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.html"))]
    return [name for name in found if not name.startswith("_static")]


def broken_links(folder: Path) -> list[str]:
    """Every link in every page of `folder` that leads to no file or no place.

    Links to other hosts are not followed; they have to be https.
    """
    pages = {}
    for path in map(folder.joinpath, pages_of(folder)):
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        for link in page.links:
            name, parts = str(path.relative_to(folder)), urlsplit(link)
            if parts.scheme in ("data", "https", "mailto"):
                continue
            if parts.scheme or parts.netloc:
                found.append(f"{name}: {link} is not https")
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            if not target.is_file():
                found.append(f"{name}: {link} leads to no file")
                continue
            ids = pages[target].ids if target in pages else set()
            if (
                target in pages
                and parts.fragment
                and unquote(parts.fragment) not in ids
            ):
                found.append(f"{name}: {link} leads to no place in the page")
    return found
