"""The pages about recordings, market and review, in a real browser: what they show, what they keep to themselves, who may decide."""

import re
import time
from contextlib import ExitStack
from dataclasses import asdict
from urllib.parse import urlsplit

import httpx
import pytest
from browser import PHONE, Visit, browser, missing, serving
from test_market import writing

from omega_lab.api import Book, Space
from omega_lab.api.app import Door, Rotation, Service
from omega_lab.api.serve import build_app, build_focus
from omega_lab.chain import Chain, Metagraph, dev_wallet
from omega_lab.chain.auth import Gate
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.payments import Payment
from omega_lab.chain.rules import account_of
from omega_lab.focus.judge import make_judges
from omega_lab.focus.log import Item
from omega_lab.focus.tables import ITEMS, make_key
from omega_lab.focus.task import TaskType
from omega_lab.media import write_film
from omega_lab.samples import golden_path
from omega_lab.settings import load_settings

MANY, WHERE = 10_000, {"address": account_of("//Payee"), "mail": "eve@example.org"}
EVIL = "<script>alert(1)</script> \"><img src=x onerror=alert(1)> {{7*7}}"


def site(stack, folder, net, films=(), many=0):
    "(address, its FocusService) of a service with real judged recordings, and `many` rows more."
    settings = load_settings({"network.endpoint": net.endpoint, "focus.min_seconds": 20, "focus.read_least": 60, "api.anonymous_per_minute": 100_000},
                             environ={})
    chain, keypair = stack.enter_context(Chain(net.endpoint, 24)), dev_wallet("//service").hotkey
    gate = Gate(keypair.ss58_address, lambda: Metagraph(24, 1, ()))
    book = stack.enter_context(Book(folder, Space("toy@1", 8)))
    focus = build_focus(settings, folder, chain, keypair, gate)
    for n, (title, film, frames, kind) in enumerate(films):
        take_in(focus, title, film, frames, kind, n)
    if many:
        with focus.market.engine.begin() as connection:
            connection.execute(ITEMS.insert(), [asdict(made_up(n)) for n in range(many)])
    service = Service(book, Door(keypair, 100_000), gate, gate, Rotation([]), lambda: [])
    return stack.enter_context(serving(build_app(service, focus))), focus


def made_up(n):
    "A recording that is for sale, or sold."
    return Item(id=f"{n:026d}", state=("SUBMITTED", "PURCHASED")[n % 3 == 0], changed_at=1.7e9 + n, app="desk", owner=f"p{n % 700}", title=f"Task {n}",
                text="Do it.", payee=WHERE["address"], seconds=60.0 + n % 900, score=n % 97 / 97, final=n % 97 / 97, price_rao=10_000_000 + 7 * n,
                submitted_at=1.7e9 + n, sold_at=1.75e9 + n if n % 3 == 0 else None)


def take_in(focus, title, film, frames, kind, n):
    "A recording through the whole judgement, submitted when it is ready; the first one is sold."
    task = focus.intake.task("", title, "Open a text editor and write a shopping list: milk, bread and apples, each with its price.")
    task = task.model_copy(update={"type": kind})
    item = focus.intake.announce("desk", WHERE["mail"], task, "list.mp4", len(film), payee=WHERE["address"], frames=frames)
    item, _ = focus.intake.write(item, 0, film)
    item = focus.intake.judge(item, make_judges(focus.settings))
    if item.state == "READY":
        focus.intake.submit(item, "owner", frames=frames)
    if n == 0:
        miner = dev_wallet("//miner")
        offer = focus.market.reserve(item.id, miner.hotkey.ss58_address, miner.coldkeypub.ss58_address, 5, 10**15)
        focus.market.settle(Payment(6, "0x" + "1" * 64, 1, 1, offer.price_rao, offer.coldkey, offer.payee))


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    "Addresses and services by name: `empty`, `small`, `large`."
    folder = tmp_path_factory.mktemp("shop")
    lines = (["Shopping list", "milk 1.29", "bread 2.40", "apples 3.15"],
             ["Groceries for the whole of next week", "apples 2.99", "milk 1.09", "bread 3.10", "and some tea 4.20"],
             ["To buy", "bread 2.2", "milk 1.4"])
    films = [write_film(folder / f"{n}.mp4", writing(text), 2).read_bytes() for n, text in enumerate(lines)]
    with ExitStack() as stack:
        net = stack.enter_context(LocalNet(golden_path("data"), block_seconds=None))
        shown = [("Shopping list", films[0], False, TaskType.USER), (EVIL[:120], films[1], True, TaskType.USER),
                 ("Market list", films[2], False, TaskType.MARKETPLACE)]
        yield {"empty": site(stack, folder / "empty", net), "small": site(stack, folder / "small", net, shown),
               "large": site(stack, folder / "large", net, (), MANY)}


def listed(focus, *states):
    return focus.market.items(states or ("SUBMITTED", "PURCHASED"))[0]


# ---- over HTTP


def test_what_is_private_stays_private(sites):
    url, focus = sites["small"]
    sold, shown = listed(focus, "PURCHASED")[0], listed(focus, "SUBMITTED")[0]
    assert (sold.frames, shown.frames) == (False, True)
    pages = {path: httpx.get(url + path).text for path in ("/recordings", f"/recordings/{sold.id}", f"/recordings/{shown.id}", "/market", "/")}
    for path, text in pages.items():
        assert WHERE["address"] not in text and WHERE["mail"] not in text and dev_wallet("//miner").coldkeypub.ss58_address not in text, path
    assert "did not agree" in pages[f"/recordings/{sold.id}"] and "/frames/" not in pages[f"/recordings/{sold.id}"]
    assert httpx.get(f"{url}/recordings/{sold.id}/frames/0").status_code == 404
    assert httpx.get(f"{url}/recordings/{shown.id}/frames/0").headers["content-type"] == "image/jpeg"
    assert httpx.get(f"{url}/recordings/{shown.id}/frames/999").status_code == 404
    waiting = listed(focus, "PENDING_HUMAN_REVIEW")[0]
    for path in (f"/recordings/{waiting.id}", f"/recordings/{waiting.id}/frames/0", "/recordings/nonsense"):
        assert httpx.get(url + path).status_code == 404, path
    for path in ("film", "frames/0", ""):
        assert httpx.get(f"{url}/review/{waiting.id}/{path}".rstrip("/"), headers={"accept": "text/html"}).status_code == 401, path


def test_strangers_words_stay_words(sites):
    url, focus = sites["small"]
    shown = listed(focus, "SUBMITTED")[0]
    for path in ("/recordings", f"/recordings/{shown.id}", "/market"):
        text = httpx.get(url + path).text
        assert "<script>" not in text and "<img src=x" not in text and "{{7*7}}" in text


def test_ten_thousand_are_paged_and_each_is_shown_once(sites):
    url, _ = sites["large"]
    found, began = [], time.monotonic()
    for page in (*range(1, 201, 20), 200):
        found += re.findall(r'href="/recordings/(\d{26})"', httpx.get(f"{url}/recordings?sort=price_rao&order=asc&page={page}").text)
    assert len(found) == len(set(found)) == 11 * 50 and found == sorted(found), "by price, which grows with the number"
    assert (time.monotonic() - began) / 11 < 2
    line = re.findall(r'href="/recordings/(\d{26})"', httpx.get(f"{url}/market?page=134").text)
    assert len(set(line)) > 10


@pytest.mark.parametrize("query", ["sort=owner", "sort=payee", "sort=x&order=y&page=z", "page=-1", "page=99999999", "page=1e9", "sort=%00"])
def test_nonsense_is_passed_over(sites, query):
    for path in ("/recordings", "/market"):
        assert httpx.get(f"{sites['large'][0]}{path}?{query}").status_code in (200, 422)


def test_only_who_is_signed_in_decides(sites):
    url, focus = sites["small"]
    key, app = make_key(focus.market.engine, "rita", "reviewer"), make_key(focus.market.engine, "kiosk", "app")
    waiting = listed(focus, "PENDING_HUMAN_REVIEW")[0]
    form = {"decision": "approve", "score": "0.9", "note": "good"}
    assert httpx.post(f"{url}/review/{waiting.id}", data=form).status_code == 403
    for wrong in ("", "olk_guess", app):
        answer = httpx.post(f"{url}/review/sign-in", data={"key": wrong})
        assert answer.status_code == 401 and "opens nothing" in answer.text and "set-cookie" not in answer.headers
    signed_in = httpx.post(f"{url}/review/sign-in", data={"key": key})
    cookie = signed_in.headers["set-cookie"]
    assert signed_in.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and key not in cookie
    with httpx.Client(base_url=url, cookies=dict(signed_in.cookies)) as rita:
        page = rita.get(f"/review/{waiting.id}")
        assert page.status_code == 200 and "media-src 'self'" in page.headers["content-security-policy"]
        assert rita.get(f"/review/{waiting.id}/film", headers={"range": "bytes=0-9"}).status_code == 206
        assert rita.post(f"/review/{waiting.id}", data=form).status_code == 403, "without our own form's mark"
        assert rita.post(f"/review/{waiting.id}", data=form | {"mark": "0" * 64}).status_code == 403
        mark = re.search(r'name="mark" value="(\w+)"', page.text)[1]
        bad = rita.post(f"/review/{waiting.id}", data=form | {"mark": mark, "score": "many"})
        assert bad.status_code == 422 and "0 to 1, or leave it empty" in bad.text
        assert focus.market.get(waiting.id).state == "PENDING_HUMAN_REVIEW"
        assert rita.post("/review/sign-out", data={"mark": mark}).status_code == 303
        assert rita.get(f"/review/{waiting.id}").status_code == 401


# ---- in a browser

chromium_only = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


def paths(focus):
    found = {"recordings": "/recordings", "market": "/market", "review": "/review", "overview": "/"}
    return found | {f"recording-{item.state.lower()}": f"/recordings/{item.id}" for item in listed(focus) if not item.id.startswith("0000")}


@chromium_only
@pytest.mark.parametrize("name,scheme,size", [
    ("empty", "light", None), ("small", "light", None), ("small", "dark", None), ("small", "light", PHONE), ("large", "dark", None)])
def test_pages_can_be_read(sites, chromium, name, scheme, size):
    url, focus = sites[name]
    with Visit(chromium, url, size, scheme) as visit:
        for page, path in paths(focus).items():
            assert visit.go(path) == 200
            assert visit.page.locator("h1").count() == 1
            assert not visit.page.locator("img:not([alt])").count()
            assert visit.unreadable() == [], path
            assert visit.sticks_out() <= 0, path
            visit.shoot("shop", f"{name}-{page}-{scheme}{'-phone' if size else ''}")
        assert visit.complaints == []


@chromium_only
def test_lists_are_sorted_by_every_column(sites, chromium):
    url, _ = sites["large"]
    with Visit(chromium, url) as visit:
        visit.go("/recordings")
        headings = visit.page.locator("table thead a")
        for n in range(headings.count()):
            for _ in range(2):
                heading = visit.page.locator("table thead a").nth(n)
                heading.click()
                assert visit.page.locator("th[aria-sort]").count() == 1
        visit.go("/recordings?sort=price_rao&order=desc")
        prices = [float(text) for text in visit.column(6)]
        assert prices == sorted(prices, reverse=True) and prices[0] == (10_000_000 + 7 * (MANY - 1)) / 1e9
        visit.page.get_by_role("link", name="Last").click()
        assert "page 200 of 200" in visit.page.locator("nav.pager").inner_text().replace("\u202f", " ")
        assert visit.complaints == []


@chromium_only
def test_the_way_through_the_pages(sites, chromium):
    url, focus = sites["small"]
    with Visit(chromium, url) as visit:
        visit.go("/")
        for name in ("Recordings", "Market", "Review", "Overview", "Leaderboard", "Dataset", "Rounds"):
            visit.page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=True).click()
            assert visit.page.locator("h1").inner_text() == name
        visit.page.get_by_role("link", name="The market").click() if visit.page.get_by_role("link", name="The market").count() else visit.go("/market")
        visit.page.locator("table a[href^='/recordings/']").first.click()
        assert urlsplit(visit.page.url).path.startswith("/recordings/")
        assert visit.complaints == []


@chromium_only
def test_a_reviewer_decides_in_the_browser(sites, chromium):
    url, focus = sites["small"]
    key = make_key(focus.market.engine, "rosa", "reviewer")
    waiting = listed(focus, "PENDING_HUMAN_REVIEW")[0]
    with Visit(chromium, url) as visit:
        visit.go("/review")
        visit.page.get_by_label("Key").fill(key)
        visit.page.get_by_role("button", name="Sign in").click()
        visit.shoot("shop", "review-queue")
        assert visit.unreadable() == []
        visit.page.locator("table a[href^='/review/']").first.click()
        film = visit.page.locator("video")
        until = time.monotonic() + 10
        while film.evaluate("v => v.readyState") < 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert film.evaluate("v => v.duration") > 20
        assert visit.unreadable() == [] and visit.sticks_out() <= 0
        visit.shoot("shop", "review-case")
        visit.page.get_by_role("textbox", name="Score, 0 to 1").fill("0.7")
        visit.page.get_by_role("textbox", name="Reason").fill("the list is there")
        visit.page.get_by_role("button", name="Approve").click()
        assert "Nothing waits" in visit.page.content()
        item = focus.market.get(waiting.id)
        assert (item.state, item.score, item.why) == ("SUBMITTED", 0.7, "the list is there")
        visit.page.get_by_role("button", name="Sign out").click()
        assert visit.page.get_by_label("Key").count() == 1
        assert visit.complaints == []
