"""The service's pages, over HTTP and in a real browser: what they show, that strangers' words stay words, and that they can be read."""
import random
import re
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import numpy as np
import pytest
from browser import PHONE, Visit, browser, missing, serving

from omega_lab.api import Book, Space
from omega_lab.api.app import Door, Rotation, Service, make_app
from omega_lab.api.models import JudgedClip, Submission
from omega_lab.chain import Metagraph, dev_wallet
from omega_lab.chain.auth import Gate

VALIDATORS = [dev_wallet(f"//validator{k}").hotkey.ss58_address for k in range(4)]
MINERS = [dev_wallet(f"//miner{k}").hotkey.ss58_address for k in range(125)]
DIM, START = 16, datetime(2026, 11, 20, 7, 40, tzinfo=UTC)
EVIL = ["<script>alert(document.domain)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)", "{{ 7 * 7 }} & &lt;b&gt;",
        "\u202e evil/../..?a=b&c=d#e",
        "x" * 400]
TOPICS = ["Alpine rivers", "Baking sourdough bread", "Beach volleyball", "Bird calls at dawn", "Building a log cabin", "Carnival in Rio", "Chess openings",
          "City trams at night", "Coral reefs", "Desert storms", "Fixing a bicycle", "Glass blowing", "Harvest festivals", "Horse riding", "Jazz drumming",
          "Kitchen knife sharpening", "Lighthouse keepers", "Mountain rescue", "Night markets", "Old steam trains", "Pottery", "Rope climbing",
          "Sailing in a gale", "Sheep shearing", "Street dance"]
REASONS = ["2 s long: clips have 5 to 120 s", "131.5 s long: clips have 5 to 120 s", "novelty 0.03 is below 0.1: repeats row 12", "the video is not available",
           "caption fits with 0.04, least is 0.15"]


def clip(rng, chance, topic, good):
    "A clip about a topic, with captions that lie near the topic's own direction."
    told = {"video_id": f"youtube:{chance.randrange(10**10):011d}", "description": f"{topic} seen from close by, people talking", "views": 9,
            "start_time": (start := chance.randrange(600)), "end_time": start + chance.randrange(8, 100)}
    if not good:
        return JudgedClip(**told, accepted=False, reason=chance.choice(REASONS))
    centre = np.random.default_rng(sum(map(ord, topic))).normal(size=DIM)
    return JudgedClip(**told, accepted=True, novelty=chance.uniform(0.2, 1.1), description_relevance=chance.uniform(0.1, 0.5),
                      query_relevance=chance.uniform(0.05, 0.4), video_emb=rng.normal(size=DIM).tolist(),
                      description_emb=(centre + 0.5 * rng.normal(size=DIM)).tolist())


def answer(rng, chance, number, miner, topic, clips):
    "A verdict on one answer: mostly good clips, now and then nothing, or something worse."
    strength = 0.35 + 0.6 * (MINERS.index(miner) * 37 % 125) / 125
    kind = chance.choices(["scored", "no answer", "punished"], [20, 2, 1])[0]
    sent = [clip(rng, chance, topic, chance.random() < strength) for _ in range(clips if kind == "scored" else 0)]
    outcome = kind if kind != "scored" or any(c.accepted for c in sent) else "empty"
    reward = {"scored": sum(0.1 * c.accepted * chance.uniform(0.5, 1) for c in sent), "punished": -5.0, "empty": 0.005, "no answer": -0.005}[outcome]
    reason = {"punished": "embeddings were not those of the video", "empty": "no clip survived", "no answer": "took longer than 90 s"}.get(outcome, "")
    return Submission(encoder="toy@1", run="", round=number, miner=miner, query=topic, num_videos=8, status="timeout" if kind == "no answer" else "answered",
                      outcome=outcome, reason=reason, reward=reward, settings_hash="0" * 16, index_version=0, clips=sent)


def fill(book, rounds, miners, clips, topics, seed=0):
    "Upload `rounds` rounds of `miners` miners each, then spread their times over days."
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    book._con.execute("pragma synchronous = off")
    for number in range(1, rounds + 1):
        topic = chance.choice(topics) if number > len(topics) else topics[number - 1]
        for k in range(miners):
            miner = MINERS[k if miners < 10 else (number * miners + k) % len(MINERS)]
            book.upload(VALIDATORS[number % len(VALIDATORS)], answer(rng, chance, number, miner, topic, clips))
    for (number,) in book._con.execute("select distinct round from submissions").fetchall():
        at = START + timedelta(minutes=72 * number + 20 * (number % 3))
        book._con.execute("update submissions set received_at = ? where round = ?", [at.isoformat(timespec="milliseconds").replace("+00:00", "Z"), number])


def insult(book):
    "Rounds in which everything a stranger may choose is hostile."
    rng, chance = np.random.default_rng(9), random.Random(9)
    for number, evil in enumerate(EVIL, start=1001):
        good, bad = clip(rng, chance, evil, True), clip(rng, chance, evil, False)
        clips = [good.model_copy(update={"description": evil * 3, "video_id": evil}),
                 bad.model_copy(update={"reason": evil, "description": evil, "nearest": evil})]
        told = {"clips": clips, "reason": evil, "outcome": "scored", "reward": 0.1, "status": evil[:40]}
        book.upload(VALIDATORS[0], answer(rng, chance, number, MINERS[0], evil, 0).model_copy(update=told))


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    "Addresses by name: `empty`, `small` (with hostile words) and `large` (10 000 clips in 2 500 answers)."
    ours = dev_wallet("//service").hotkey
    gate = Gate(ours.ss58_address, lambda: Metagraph(24, 1, ()))
    with ExitStack() as stack:
        books = {name: stack.enter_context(Book(tmp_path_factory.mktemp(name), Space("toy@1", DIM))) for name in ("empty", "small", "large")}
        fill(books["small"], 60, 7, 6, TOPICS)
        insult(books["small"])
        fill(books["large"], 250, 10, 4, [f"{topic} {k}" for topic in TOPICS for k in range(1, 6)])
        apps = {name: make_app(Service(book, Door(ours, 100_000), gate, gate, Rotation([]), lambda: [])) for name, book in books.items()}
        yield {name: stack.enter_context(serving(app)) for name, app in apps.items()} | {"books": books}


def pages_of(site):
    "One address of each kind of page."
    lists = {"overview": "/", "leaderboard": "/leaderboard", "dataset": "/dataset", "rounds": "/rounds"}
    one = {"miner": f"/miners/{MINERS[0]}", "round": "/rounds/1", "topic": "/dataset?topic=Coral+reefs", "nothing": "/rounds/999999"}
    return lists if site == "empty" else lists | one


# ---- over HTTP


def get(site, path, **options):
    return httpx.get(site + path, **options)


def suspicious(text):
    "Elements and attributes of a page that could run something, style something, or fetch from elsewhere."
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.extend([tag] if tag in ("script", "style", "iframe", "object", "b", "x") else [])
            found.extend(name for name, value in attributes if name == "style" or name.startswith("on") or (name == "src" and value != "/icon.svg")
                         or (name == "href" and not re.match(r"[/#]|https://www\.youtube\.com/watch\?v=[\w-]{11}&t=\d+s$", value)))

    Reader().feed(text)
    return found


def test_every_page_has_its_policy(sites):
    for path in [*pages_of("small").values(), "/dashboard", "/rounds/999999", "/miners/x", "/rounds/x", "/dataset?topic=no"]:
        page = get(sites["small"], path)
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'") and "script" not in policy and "unsafe" not in policy, path
        assert page.status_code in (200, 404, 422) and page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "same-origin"
        assert page.headers["content-type"] == "text/html; charset=utf-8" and page.text.count("<h1") == 1
        assert not suspicious(page.text), path
    sheet = get(sites["small"], re.search(r'href="(/style\.css\?v=\w+)"', page.text)[1])
    assert sheet.headers["content-type"].startswith("text/css") and "max-age" in sheet.headers["cache-control"]
    assert all(get(sites["small"], path).headers["content-type"] == "image/svg+xml" for path in ("/icon.svg", "/favicon.ico"))


def test_hostile_words_stay_words(sites):
    site = sites["small"]
    numbers = {int(n) for n in re.findall(r"/rounds/(\d+)", get(site, "/rounds").text)}
    for evil in EVIL:
        topic = get(site, "/dataset", params={"topic": evil})
        assert topic.status_code == 200 and evil[:60] in unescape(topic.text)
        assert not suspicious(topic.text) and "49" not in re.findall(r"<h1>.*?</h1>", topic.text)[0]
    for number in sorted(numbers)[-len(EVIL):]:
        text = get(site, f"/rounds/{number}").text
        assert not suspicious(text) and any(evil[:60] in unescape(text) for evil in EVIL)
    for path in ("/no/<script>alert(1)</script>", "/miners/<script>alert(1)</script>", "/rounds/<script>", "/leaderboard?q=\"><script>alert(1)</script>"):
        assert not suspicious(get(site, path, headers={"accept": "text/html"}).text)


def test_errors_are_pages_for_people_and_json_for_programs(sites):
    site, people = sites["small"], {"accept": "text/html,*/*;q=0.8"}
    for path, status in (("/nothing", 404), ("/miners/5Nobody", 404), ("/rounds/999999", 404), ("/rounds/2", 404), ("/rounds/two", 422), ("/rounds/0", 422),
                         ("/dataset?topic=" + "x" * 501, 422), ("/leaderboard?sort=" + "x" * 41, 422), ("/miners/" + "x" * 101, 422)):
        page = get(site, path, headers=people)
        assert page.status_code == status and "<h1>" in page.text and "Overview" in page.text, path
    assert get(site, "/nothing").json() == {"detail": "Not Found"}
    for path in ("/api/nothing", "/api/get_proxy"):
        answer = get(site, path, headers=people)
        assert answer.status_code in (404, 405) and answer.json()["detail"]
    assert httpx.post(site + "/leaderboard", headers=people).status_code == 405


@pytest.mark.parametrize("query", ["page=-1", "page=0", "page=1e3", "page=99999999999999999", "page=9999999", "page=٣", "page=%00", "page=",
                                   "sort=nothing&order=up", "sort=miner%27;--", "sort=__class__", "order=asc", "sort=place&order=desc", "page=2&page=1",
                                   "topic2=%F0%9F&%ff=1", "sort[]=x"])
@pytest.mark.parametrize("path", ["/leaderboard", "/dataset", "/rounds", f"/miners/{MINERS[0]}", "/rounds/1", "/dataset?topic=Coral+reefs"])
def test_nonsense_falls_back(sites, path, query):
    assert get(sites["small"], f"{path}{'&' if '?' in path else '?'}{query}").status_code == 200


def all_pages(site, path):
    "The first table's lines of all pages, by following `next`; and how many pages there were."
    lines, count = [], 0
    while path:
        text = get(site, path).text
        lines += re.findall(r"<tr><t[hd].*?</tr>", text.split("<tbody>")[1].split("</tbody>")[0], re.DOTALL)
        following, count = re.search(r'<a href="([^"]*)" rel="next"', text), count + 1
        path = following and unescape(following[1])
    return lines, count


def test_all_pages_show_each_row_once(sites):
    site, book = sites["large"], sites["books"]["large"]
    asked = book.read("select count(*) n from submissions where miner = ?", MINERS[3])[0]["n"]
    [busiest] = list(book.topic_counts().items())[:1]
    for path, total, name in (("/leaderboard", len(MINERS), r"/miners/(\w+)"), ("/leaderboard?sort=punished&order=asc", len(MINERS), r"/miners/(\w+)"),
                              ("/rounds", 250, r"/rounds/(\d+)"), ("/dataset", 125, r"\?topic=([\w+]+)"),
                              ("/dataset?sort=miners&order=desc", 125, r"\?topic=([\w+]+)"),
                              (f"/miners/{MINERS[3]}", asked, r"/rounds/(\d+)"),
                              (f"/dataset?topic={busiest[0].replace(' ', '+')}", busiest[1], r"youtube:(\d+)")):
        lines, count = all_pages(site, path)
        assert len(lines) == total == len({re.search(name, line)[1] for line in lines}) and count == -(-total // 50), path


def cells(text, number):
    "What the cells of a table's column say, as something to compare: a time or a hotkey in full, a number, or else the text."
    found = []
    for line in re.findall(r"<tr>(<t[hd].*?)</tr>", text.split("<tbody>")[1], re.DOTALL):
        cell = re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)[number]
        whole = re.search(r'(?:datetime|title)="([^"]*)"', cell)
        plain = unescape(whole[1] if whole else re.sub(r"<[^>]*>", "", cell)).replace("\u202f", "").replace("−", "-")
        found += [] if plain == "–" else [float(plain) if re.fullmatch(r"-?\d+(\.\d+)?", plain) else plain]
    return found


@pytest.mark.parametrize(("path", "sortable"), [("/leaderboard", 11), ("/dataset", 6)])
def test_each_column_sorts_both_ways(sites, path, sortable):
    site, heading = sites["large"], r"<th scope=\"col\"[^>]*>.*?</th>"
    links = [re.search(r'href="([^"]*)"', th) for th in re.findall(heading, get(site, path).text, re.DOTALL)]
    assert sum(map(bool, links)) == sortable
    for number, found in enumerate(links):
        seen, link = set(), found
        for _ in range(2 if found else 0):
            text = get(site, unescape(link[1])).text
            th = re.findall(heading, text, re.DOTALL)[number]
            order, told = re.search(r'aria-sort="(\w+)"', th)[1], cells(text, number)
            assert told == sorted(told, reverse=order == "descending") and len(told) == 50, (number, order)
            link = re.search(r'href="([^"]*)"', th)
            seen.add(order)
        assert not found or seen == {"ascending", "descending"}


def test_a_round_says_why_each_clip_was_refused(sites):
    site, book = sites["large"], sites["books"]["large"]
    refused = book.read("select c.reason from clips c join submissions s on s.id = c.submission where round = 7 and not accepted")
    [number] = {r["id"] for r in book.read("select min(id) id from submissions where round = 7")}
    text = unescape(get(site, f"/rounds/{number}").text).partition('id="answers"')[2]
    assert refused and sum(text.count(f">{reason}<") for reason in {r["reason"] for r in refused}) == len(refused)
    assert text.count("<details") == 10 and text.count('<span class="badge bad">refused') == len(refused)


def test_links_keep_what_else_was_asked(sites):
    text = get(sites["large"], "/dataset?topic=Pottery+1&of=a%26b&page=1&sort=x").text
    links = [dict(parse_qsl(urlsplit(unescape(link)).query)) for link in re.findall(r'href="([^"]*)" rel="(?:next|last)"', text)]
    assert all(link["topic"] == "Pottery 1" and link["of"] == "a&b" for link in links)


def test_pages_of_a_large_book_are_quick(sites):
    for path in ("/", "/leaderboard?page=2", "/dataset", "/rounds?page=5", f"/miners/{MINERS[0]}"):
        get(sites["large"], path)
        assert get(sites["large"], path).elapsed.total_seconds() < 0.5, path


# ---- in a browser

seen = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


@seen
def test_the_browser_tells_what_cannot_be_read(chromium):
    with Visit(chromium, "http://127.0.0.1") as visit:
        visit.page.set_content("""<!doctype html><body style="margin: 0; background: #fff; color: #000">
            <p>plain</p><p style="color: #999">grey</p><p style="opacity: .4">faded</p><i style="display: none; color: #fff">not shown</i>
            <div style="background: rgba(0, 0, 0, .9)"><b>dark on dark</b></div><p style="width: 1300px">wide</p>
            <svg width="200" height="90"><rect width="200" height="40"/><text x="5" y="20">black on black</text><text x="5" y="70">on white</text></svg>""")
        assert [line.split('"')[1] for line in visit.unreadable()] == ["grey", "faded", "dark on dark", "black on black"]
        assert visit.sticks_out() == 1300 - 1280


@seen
@pytest.mark.parametrize("site", ["empty", "small"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read(sites, chromium, site, scheme):
    with Visit(chromium, sites[site], scheme=scheme) as desk, Visit(chromium, sites[site], PHONE, scheme) as phone:
        visits = [(desk, "desk"), (phone, "phone")]
        for name, path in pages_of(site).items():
            for visit, device in visits if site == "small" else visits[:1] if scheme == "light" else visits[1:]:
                assert visit.go(path) == (404 if name == "nothing" else 200) and visit.page.locator("h1").count() == 1
                visit.shoot("dashboard", f"{site}-{name}-{device}-{scheme}")
                assert visit.unreadable() == [], (name, device)
                assert visit.sticks_out() == 0, (name, device)
            page = visit.page
            assert page.locator("img:not([alt]), svg[role=img]:not([aria-label]), table:not(:has(caption)), th:not([scope])").count() == 0
            assert page.evaluate("document.documentElement.lang") == "en" and page.locator("main, header.top, footer").count() == 3
        assert [c for c in desk.complaints + phone.complaints if "status of 404" not in c] == []


@seen
def test_hostile_pages_do_nothing(sites, chromium):
    with Visit(chromium, sites["small"]) as visit:
        said = []
        visit.page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        visit.go("/rounds")
        rounds = visit.page.locator("tbody th a").evaluate_all("links => links.slice(0, 6).map(a => a.getAttribute('href'))")
        for path in [*rounds, *("/dataset?" + urlencode({"topic": evil}) for evil in EVIL)]:
            assert visit.go(path) == 200 and visit.sticks_out() == 0
        assert said == [] and visit.complaints == []


@seen
def test_from_page_to_page(sites, chromium):
    with Visit(chromium, sites["small"]) as visit:
        visit.go("/")
        for name in ("Leaderboard", "Dataset", "Rounds", "Overview"):
            visit.page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=True).click()
            assert visit.page.locator("h1").inner_text() == name and visit.page.locator("nav [aria-current=page]").inner_text() == name
        for table, kind in (("Top miners", "Miner "), ("Latest rounds", "Round ")):
            visit.page.get_by_role("table", name=table).locator("tbody th a").first.click()
            assert visit.page.locator("h1").inner_text().startswith(kind)
            visit.page.go_back()
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.className") == "skip"
        visit.page.keyboard.press("Enter")
        assert visit.page.evaluate("document.activeElement.id") == "main"
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert visit.complaints == []


@seen
def test_paging_and_sorting_in_the_browser(sites, chromium):
    with Visit(chromium, sites["large"]) as visit:
        visit.go("/rounds?kept=yes")
        shown = visit.page.locator(".pager p")
        assert shown.inner_text() == "250 in all, page 1 of 5" and not visit.page.get_by_role("link", name="Previous").count()
        first = visit.column(0)
        for name, told in (("Next", "page 2 of 5"), ("Last", "page 5 of 5"), ("Previous", "page 4 of 5"), ("First", "page 1 of 5")):
            visit.page.get_by_role("link", name=name, exact=True).click()
            assert told in shown.inner_text() and "kept=yes" in visit.page.url and len(visit.column(0)) == 50
        assert visit.column(0) == first and visit.complaints == []
        visit.go("/leaderboard")
        for order in ("descending", "ascending"):
            visit.page.get_by_role("columnheader", name="Novelty").get_by_role("link").click()
            assert visit.page.get_by_role("columnheader", name="Novelty").get_attribute("aria-sort") == order
            told = [float(text) for text in visit.column(10)]
            assert told == sorted(told, reverse=order == "descending")
        visit.shoot("dashboard", "large-leaderboard")
        visit.go("/dataset")
        visit.shoot("dashboard", "large-dataset")
