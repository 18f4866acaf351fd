"""The built book in a real browser: every page, narrow and wide.

The site is built once for this file. The checks themselves are shown to fail
on a small site in which each mistake is made once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import browser

from r1lite.book import load_book

REPO = Path(__file__).parents[2]
CHAPTERS = [c for c in load_book().chapters if c.written]

pytest.importorskip("sphinx")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the built book."""
    folder = tmp_path_factory.mktemp("book")
    script = REPO / "chapters" / "site" / "build.py"
    # No proxy and no name server will help a build that wants the network.
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    return folder / "site"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.browser() as started:
        yield started


@pytest.fixture(scope="module")
def base(site: Path) -> Iterator[str]:
    with browser.served(site) as address:
        yield address


@pytest.fixture
def visitor(chromium: Any, base: str) -> Iterator[browser.Visitor]:
    made = browser.Visitor(chromium, base)
    yield made
    made.context.close()


def test_the_pages_are_there(site: Path) -> None:
    pages = browser.pages_of(site)
    assert {f"chapters/{c.notebook.removesuffix('.ipynb')}.html" for c in CHAPTERS} == {
        p for p in pages if p.startswith("chapters/")
    }
    exercises = {p.stem for p in (REPO / "exercises" / "source").glob("*.py")}
    assert {f"exercises/{name}.html" for name in exercises} == {
        p for p in pages if p.startswith("exercises/")
    }
    assert {"index.html", "search.html", "genindex.html", "api/r1lite.moe.html"} <= set(
        pages
    )


def test_no_link_is_broken(site: Path) -> None:
    assert browser.broken_links(site) == []


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_every_page_is_sound(site: Path, visitor: browser.Visitor, width: int) -> None:
    faults = [f for page in browser.pages_of(site) for f in visitor.faults(page, width)]
    assert faults == []


@pytest.mark.parametrize("page", ["index", "chapters/00_start_here", "api/r1lite.moe"])
def test_a_dark_page_is_readable(chromium: Any, base: str, page: str) -> None:
    visitor = browser.Visitor(chromium, base, dark=True)
    assert visitor.faults(f"{page}.html", 1280) == []
    ground = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(n) for n in re.findall(r"\d+", ground)) < 80
    visitor.context.close()


def test_next_leads_through_the_whole_book_and_back(
    site: Path, visitor: browser.Visitor
) -> None:
    address, seen = "index.html", []
    while address and address not in seen:
        seen.append(address)
        html = (site / address).read_text(encoding="utf-8")
        found = re.search(r'class="right-next"\s+href="([^"]+)"', html)
        there = found and (site / address).parent / found[1]
        address = os.path.relpath(there, site) if there else ""
    chapters = [f"chapters/{c.notebook.removesuffix('.ipynb')}.html" for c in CHAPTERS]
    assert seen[: 1 + len(chapters)] == ["index.html", *chapters]
    own = ("chapters/", "exercises/", "api/")
    assert {p for p in browser.pages_of(site) if p.startswith(own)} == set(seen[1:])
    visitor.open(seen[1], 1280)
    visitor.page.click("a.left-prev")
    assert visitor.page.url.endswith("/index.html")


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("elicitation", "chapters/00_start_here.html"),
        ("group_advantages", "api/r1lite.training.html"),
    ],
)
def test_the_search_finds(visitor: browser.Visitor, word: str, page: str) -> None:
    visitor.open(f"search.html?q={word}", 390)
    visitor.page.wait_for_selector("#search-results li a")
    links = visitor.page.eval_on_selector_all(
        "#search-results li a", "all => all.map((a) => a.href)"
    )
    assert any(page in link for link in links)
    assert visitor.events == []


def test_a_hint_unfolds(site: Path, visitor: browser.Visitor) -> None:
    pages = [p for p in browser.pages_of(site) if p.startswith("exercises/")]
    if not pages:
        pytest.skip("no exercises are written yet")
    visitor.open(pages[0], 390)
    hint = visitor.page.locator("details.hint").first
    inside = hint.locator("p").first
    assert not inside.is_visible()
    hint.locator("summary").click()
    assert inside.is_visible()
    assert not visitor.page.locator("details.solution pre").first.is_visible()


def test_the_contents_open_on_a_telephone(visitor: browser.Visitor) -> None:
    visitor.open("index.html", 390)
    contents = visitor.page.locator("nav.bd-docs-nav a", has_text="Start here")
    assert not contents.first.is_visible()
    visitor.page.locator("button.primary-toggle").click()
    visitor.page.locator("dialog a", has_text="Start here").click()
    visitor.page.wait_for_url("**/00_start_here.html")


MATHS = r"""# A page of the book

A formula in a line, $a^2 + \sqrt{b}$, and one of its own, too wide for a telephone:

$$
L = \frac{1}{G} \sum_{i=1}^{G} \min\left(r_i A_i, \operatorname{clip}(r_i, 1 - \epsilon,
1 + \epsilon) A_i\right) - \beta D_{\mathrm{KL}}(\pi_\theta \| \pi_{\mathrm{ref}})
$$

| one | two | three | four | five | six |
|---|---|---|---|---|---|
| 671026404352 | 671026404352 | 671026404352 | 671026404352 | 671026404352 | 1 |

`r1lite.training.grpo.group_advantages_of_a_name_that_never_ends(rewards, eps)`
"""


def test_formulas_and_wide_tables_fit(tmp_path: Path, chromium: Any) -> None:
    (tmp_path / "index.md").write_text(MATHS, encoding="utf-8")
    settings = str(REPO / "chapters" / "site")
    command = ["-m", "sphinx", "-q", "-W", "-c", settings, str(tmp_path)]
    out = tmp_path / "out"
    subprocess.run([sys.executable, *command, str(out)], check=True)
    with browser.served(out) as base:
        visitor = browser.Visitor(chromium, base)
        for width in browser.WIDTHS:
            assert visitor.faults("index.html", width) == []
        drawn = visitor.page.locator("mjx-container")
        assert drawn.count() == 2
        assert drawn.last.bounding_box()["height"] > 30
        # Drawn with MathJax's own font, which is served beside the page.
        fonts = "[...document.fonts].filter((f) => f.status == 'loaded')"
        fonts += ".map((f) => f.family)"
        assert any("MJX" in family for family in visitor.page.evaluate(fonts))
        visitor.context.close()


# From here on: a small site in which every mistake is made once.

SOUND = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>x</title>
<link rel="icon" href="mark.svg"></head><body><article><h1 id="top">A page</h1>
<p>A paragraph of a reasonable length, in which nothing is wrong at all.</p>
<img src="mark.svg" width="20" alt="A picture with words that say what is seen.">
MORE</article></body></html>"""


def _small_site(folder: Path, more: str) -> Path:
    shutil.copy(REPO / "chapters" / "site" / "static" / "mark.svg", folder)
    (folder / "page.html").write_text(SOUND.replace("MORE", more), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("", ""),
        ("<script>nothing.here()</script>", "exception: nothing is not defined"),
        ("<script>console.error('no')</script>", "console: no"),
        ('<script src="gone.js"></script>', "status 404"),
        ('<img src="https://example.org/x.png" alt="">', "another host"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "another host"),
        ('<img src="page.html" alt="A picture that is no picture.">', "broken image"),
        ('<img src="mark.svg" width="9">', "no alt text"),
        ('<img src="mark.svg" width="9" alt="plot">', "alt text too short"),
        ("<h1>Another title</h1>", "2 main headings"),
        ('<span class="math">x</span>', "not rendered: x"),
        ("<mjx-merror>bad</mjx-merror>", "wrong formula: bad"),
        ("costs $x^2$", "a formula as text"),
        ('<pre style="overflow: visible">' + "x" * 300 + "</pre>", "px wide, <pre"),
        ("<style>p { font-size: 11px }</style>", "text of 11 px"),
        ("<style>p { color: #aaa }</style>", "contrast of the text"),
    ],
)
def test_each_mistake_is_seen(
    tmp_path: Path, chromium: Any, more: str, fault: str
) -> None:
    with browser.served(_small_site(tmp_path, more)) as base:
        visitor = browser.Visitor(chromium, base)
        faults = visitor.faults("page.html", 390)
        visitor.context.close()
    if fault:
        assert any(fault in found for found in faults), faults
    else:
        assert faults == []


def test_long_lines_are_seen(tmp_path: Path, chromium: Any) -> None:
    with browser.served(_small_site(tmp_path, "")) as base:
        visitor = browser.Visitor(chromium, base)
        assert "lines of" in visitor.faults("page.html", 1280)[0]
        visitor.context.close()


def test_broken_links_are_seen(tmp_path: Path) -> None:
    links = ["page.html#top", "#top", "https://arxiv.org", "mark.svg"]
    wrong = ["gone.html", "page.html#gone", "#gone", "http://plain.org"]
    more = "".join(f'<a href="{link}">x</a>' for link in links + wrong)
    found = browser.broken_links(_small_site(tmp_path, more))
    assert [line.split()[1] for line in found] == wrong


def test_without_a_browser_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("R1LITE_NEED_BROWSER", raising=False)
    with (
        pytest.warns(UserWarning, match="were not looked at"),
        pytest.raises(pytest.skip.Exception, match="install Chromium"),
    ):
        browser.find_chromium()
    monkeypatch.setenv("R1LITE_NEED_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="install Chromium"):
        browser.find_chromium()
