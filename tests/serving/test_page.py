"""The chat page in a real browser, against the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import WIDTHS, Visitor, browser
from support.live import Live, live

KEY = "secret"
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live("--name", "nano") as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def visitor(chromium: Any, server: Live) -> Iterator[Visitor]:
    made = Visitor(chromium, f"{server.url}/")
    made.page.set_default_timeout(WAIT)
    assert made.open("", 1280) == []
    yield made
    assert made.events == []
    made.context.close()


# Keeps every text that the folded line of the thinking has had: some are there for
# a moment only, and a page under this policy may not be polled with code.
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const line = document.querySelector(".thinking summary");
    if (line) window.seen.push(line.textContent);
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def send(page: Any, text: str) -> None:
    page.fill("#ask", text)
    page.keyboard.press("Enter")


def ended(page: Any) -> None:
    page.wait_for_selector("#send:visible")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_it_looks_right(chromium: Any, server: Live, width: int, dark: bool) -> None:
    made = Visitor(chromium, f"{server.url}/", dark)
    # The heading of the page stands in its header, not in an article.
    faults = [f for f in made.faults("", width) if "main headings" not in f]
    assert faults == []
    page = made.page
    assert page.locator("h1:visible").count() == 1
    page.click("#examples button >> nth=0")
    page.wait_for_selector(".again")
    assert page.evaluate(CONTRAST) == []
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    made.context.close()


def test_an_answer_with_its_thinking_folded(visitor: Visitor) -> None:
    page = visitor.page
    page.check("#think")
    page.fill("#temperature", "0")
    page.evaluate(WATCH)
    send(page, "In order, mod 10: 7+1*3+1")
    ended(page)
    seen = page.evaluate("window.seen")  # while it was written
    assert any(x.startswith("Thinking") and len(x) > 12 for x in seen), seen
    details = page.locator(".thinking")
    assert not details.evaluate("e => e.open")
    assert "Thought" in details.locator("summary").inner_text()
    details.locator("summary").click()
    assert "7+1=8" in details.locator("p").inner_text()
    assert page.locator(".model .text").inner_text() == "5"
    facts = page.locator(".speed").inner_text()
    assert "tokens/s" in facts and "first after" in facts
    assert page.locator("#status").inner_text() == "Answer: 5"


def test_stop_keeps_what_came_and_frees_the_server(
    visitor: Visitor, server: Live
) -> None:
    page = visitor.page
    page.route("**/v1/chat/completions", never_ending)
    send(page, "In order, mod 10: 7+1*3+1")
    page.wait_for_selector(".model:not(.waiting)")
    page.keyboard.press("Escape")
    ended(page)
    assert "stopped" in page.locator(".speed").inner_text()
    assert page.locator("#status").inner_text() == "Stopped"
    server.wait_for("vllm:num_requests_running", 0)
    page.unroute("**/v1/chat/completions")
    page.click(".again")
    page.wait_for_selector("#stop:visible, #send:visible")
    ended(page)
    assert page.locator(".model").count() == 1
    assert "stopped" not in page.locator(".speed").inner_text()


def never_ending(route: Any) -> None:
    """The page's own request, made long."""
    body = route.request.post_data_json
    body |= {"ignore_eos": True, "max_tokens": 450}
    route.continue_(post_data=body)


def test_regenerate_moves_a_fixed_seed_on(visitor: Visitor) -> None:
    page = visitor.page
    page.fill("#seed", "40")
    page.fill("#max_tokens", "5")
    seeds = []
    page.on(
        "request",
        lambda r: r.method == "POST" and seeds.append(r.post_data_json["seed"]),
    )
    send(page, "hello")
    page.wait_for_selector(".again")
    assert "cut at the limit" in page.locator(".speed").inner_text()
    page.click(".again")
    page.wait_for_selector(".again")
    assert seeds == [40, 41]


def test_a_question_waits_until_the_page_knows_the_model(visitor: Visitor) -> None:
    page, held, asked = visitor.page, [], []
    page.route("**/page/about", lambda route: held.append(route))
    page.on("request", lambda r: r.method == "POST" and asked.append(r.post_data_json))
    page.reload()
    send(page, "In order, mod 10: 3-3-8")
    page.wait_for_selector("#stop:visible")
    page.wait_for_timeout(200)
    assert held and not asked
    held[0].continue_()
    ended(page)
    assert [body["model"] for body in asked] == ["nano"]
    assert page.locator(".again").count() == 1


def test_earlier_turns_are_sent_only_if_wanted(visitor: Visitor) -> None:
    page, sent = visitor.page, []
    page.on(
        "request",
        lambda r: r.method == "POST" and sent.append(r.post_data_json["messages"]),
    )
    for text in ("In order, mod 10: 3-3-8", "again"):
        send(page, text)
        ended(page)
    page.uncheck("#remember")
    send(page, "alone")
    ended(page)
    assert [len(m) for m in sent] == [1, 3, 1]
    assert page.locator(".again").count() == 1  # of the last turn
    page.click("#new")
    assert page.locator(".turn").count() == 0
    assert page.evaluate("document.activeElement.id") == "ask"


def test_markup_is_text(visitor: Visitor) -> None:
    page = visitor.page
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script><b>hi</b>"
    answer = {"delta": {"content": attack, "reasoning": attack}}
    chunk = {"choices": [{**answer, "index": 0, "finish_reason": "stop"}]}
    stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda r: r.fulfill(body=stream, content_type="text/event-stream"),
    )
    send(page, attack)
    page.wait_for_selector(".again")
    assert page.locator(".user p").inner_text() == attack
    assert page.locator(".model .text").inner_text() == attack
    assert page.locator("#talk img, #talk script, #talk b").count() == 0


def test_an_error_is_said_and_can_be_tried_again(visitor: Visitor) -> None:
    page = visitor.page
    send(page, "word " * 600)
    page.wait_for_selector(".error:not(:empty)")
    assert "leave no room" in page.locator(".error").inner_text()
    assert page.locator(".again").count() == 1
    visitor.events[:] = [e for e in visitor.events if "400" not in e]


def test_the_keyboard_reaches_everything(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    wanted = {"toggle", "talk", "ask", "think", "remember", "temperature", "top_p"}
    assert wanted | {"max_tokens", "seed", "reset"} <= set(reached)
    names = page.evaluate(UNNAMED)
    assert names == []


def test_a_key_is_asked_for_and_used(chromium: Any) -> None:
    with live("--name", "nano", "--api-key", KEY) as server:
        made = Visitor(chromium, f"{server.url}/")
        assert made.open("", 390) == []
        page = made.page
        page.set_default_timeout(WAIT)
        send(page, "In order, mod 10: 3-3-8")
        page.wait_for_selector(".error:not(:empty)")
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type(KEY)
        page.keyboard.press("Escape")
        page.click(".again")
        page.wait_for_selector(".model .text:not(:empty)")
        ended(page)
        assert page.evaluate("JSON.stringify(localStorage)").find(KEY) < 0
        made.context.close()


UNNAMED = """() => [...document.querySelectorAll("button, input, textarea")]
  .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel))
  .map((e) => e.outerHTML)"""

# Every visible text against the nearest ground that is painted: at least 4.5.
CONTRAST = r"""() => {
  const light = (c) => {
    const [r, g, b] = c.match(/[\d.]+/g).map((v) => {
      const x = v / 255;
      return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/^rgba\(.*, 0\)$/.test(c)) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => own(e) && e.getClientRects().length)
    .filter((e) => !e.matches(":disabled, noscript"))
    .map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      return [ratio, e.outerHTML.slice(0, 90)];
    })
    .filter(([ratio]) => ratio < 4.5)
    .map(([ratio, html]) => `${ratio.toFixed(1)} ${html}`);
}"""
