"""A real browser for tests of pages: it is started here, watched here, and asked here whether what it shows can be read."""
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

ARTIFACTS = Path(__file__).parents[1] / "test-artifacts"
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

# Every text node that is shown, its colour, and the ground under it: the element's own and its ancestors' backgrounds, and for
# text in a drawing whatever shape of the drawing lies below it. WCAG 2.2, section 1.4.3.
CONTRAST = """least => {
  const parse = text => {
    const m = text.match(/[\\d.]+/g);
    return m && text.startsWith('rgb') ? [...m.slice(0, 3).map(Number), m[3] === undefined ? 1 : +m[3]] : null };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const canvas = matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
  const once = make => { const known = new Map(); return e => { if (!known.has(e)) known.set(e, make(e)); return known.get(e) } };
  const ground = once(e => {
    const below = e.parentElement ? ground(e.parentElement) : canvas, own = parse(getComputedStyle(e).backgroundColor);
    return own ? over(own, below) : below });
  const fade = once(e => +getComputedStyle(e).opacity * (e.parentElement ? fade(e.parentElement) : 1));
  const shapes = (element, x, y) => document.elementsFromPoint(x, y).filter(e => ['rect', 'circle', 'path'].includes(e.tagName)
    && e.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING).reverse();
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement, drawn = element instanceof SVGElement;
    if (!node.data.trim() || !element.checkVisibility() || element.tagName === 'title') continue;
    const style = getComputedStyle(element), colour = parse(drawn ? style.fill : style.color);
    colour[3] *= fade(element) * (drawn ? +style.fillOpacity : 1);
    const grounds = [ground(element)];
    if (drawn) {
      element.scrollIntoView({block: 'center', inline: 'center'});
      const box = element.getBoundingClientRect();
      for (const part of [0.02, 0.25, 0.5, 0.75, 0.98])
        grounds.push(shapes(element, box.left + part * box.width, box.top + box.height / 2).reduce((below, shape) => {
          const s = getComputedStyle(shape), c = parse(s.fill);
          return c ? over([...c.slice(0, 3), c[3] * s.fillOpacity * fade(shape)], below) : below }, grounds[0]));
    }
    for (const under of grounds) {
      const [a, b] = [luminance(over(colour, under)), luminance(under)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
      if (ratio < least) { found.push(`${ratio.toFixed(2)} ${element.tagName}.${element.getAttribute('class')} "${node.data.trim().slice(0, 40)}"`); break }
    }
  }
  return found }"""


def missing() -> str:
    "Why there can be no browser here; empty when there can."
    if not shutil.which("chromium"):
        return "no chromium on this machine"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install 'omega_lab[dev]')"
    return ""


@contextmanager
def serving(app):
    "The address of `app` on a loopback server of its own, which ends with the block."
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", http="h11"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextmanager
def browser():
    "Chromium as it is installed, without a window."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=SWITCHES)
        yield chromium
        chromium.close()


class Visit:
    "One tab on the site at `url`. `complaints`: errors of the page, and requests that went elsewhere or failed."

    def __init__(self, chromium, url: str, size: dict | None = None, scheme: str = "light"):
        self.url, self.complaints = url, []
        self.context = chromium.new_context(viewport=size or DESK, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"console: {message.text}") if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("request", lambda request: None if self._own(request.url) else self.complaints.append(f"elsewhere: {request.url}"))
        self.page.on("requestfailed", self._failed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def _failed(self, request) -> None:
        if "ERR_ABORTED" not in request.failure:  # what was under way when the visitor went on
            self.complaints.append(f"failed: {request.url}: {request.failure}")

    def _own(self, url: str) -> bool:
        return url.startswith("data:") or urlsplit(url).netloc == urlsplit(self.url).netloc

    def go(self, path: str) -> int:
        "Open a page of the site; its status."
        return self.page.goto(self.url + path).status

    def unreadable(self, least: float = 4.5) -> list[str]:
        "Texts whose contrast is below `least`."
        return self.page.evaluate(CONTRAST, least)

    def sticks_out(self) -> int:
        "By how many pixels the page is wider than its window."
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def column(self, number: int) -> list[str]:
        "The texts of the first table's column, from 0 on."
        return self.page.evaluate("n => [...document.querySelector('table').tBodies[0].rows].map(row => row.cells[n].innerText.trim())", number)

    def shoot(self, group: str, name: str) -> Path:
        "Keep a picture of the whole page as test-artifacts/GROUP/NAME.png."
        path = ARTIFACTS / group / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=True, animations="disabled")
        return path
