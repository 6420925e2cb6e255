"""The Focus market through its real doors: a local chain, the service's process, apps, buyers that die."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from omega_lab.api.buyer import MarketClient
from omega_lab.api.client import ServiceRefused
from omega_lab.api.seller import SellerClient, SellerError
from omega_lab.api.serve import start_service, stop_service
from omega_lab.api.wares import Announcement
from omega_lab.chain import Chain, dev_wallet, open_wallet
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.rules import account_of
from omega_lab.focus.files import write_json
from omega_lab.focus.market import Market
from omega_lab.focus.tables import make_key, open_database
from omega_lab.focus.task import make_task
from omega_lab.media import write_film
from omega_lab.samples import golden_path
from omega_lab.settings import MarketSettings, load_settings

ULID = "01ARZ3NDEKTSV4RRFFQ69G5F{:02d}"


@dataclass
class World:
    "A subnet with a market: `wallets` by name, `keys` of the API by role."
    net: LocalNet
    folder: Path
    url: str
    service_hotkey: str
    wallets: dict
    keys: dict
    market: Market
    film: bytes

    def settings(self, who: str, **more) -> dict:
        "Settings of a buyer's or an app's process."
        return {"network.endpoint": self.net.endpoint, "wallet.name": who, "wallet.path": str(self.folder / "wallets"), "paths.state": str(self.folder / who),
                "buyer.service": self.url, "buyer.service_hotkey": self.service_hotkey, "recorder.service": self.url,
                "paths.focus": str(self.folder / who / "focus"), "focus.min_seconds": 20, "focus.read_least": 10} | more

    def lab(self, *arguments: str, who: str, **more) -> subprocess.Popen:
        "A command of the lab in a process of its own."
        sets = [part for name, value in self.settings(who, **more).items() for part in ("-s", f"{name}={json.dumps(value)}")]
        return subprocess.Popen([sys.executable, "-m", "omega_lab.cli", *arguments, *sets], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "200", "FOCUS_API_KEY": self.keys["app"]})

    def client(self, who: str) -> MarketClient:
        return MarketClient(self.url, self.service_hotkey, self.wallets[who].hotkey)

    def listed(self, number: int, owner: str = "//Owner", price: int = 40_000_000, **more) -> str:
        "A recording that is for sale, without a film behind it."
        recording, m = ULID.format(number), self.market
        m.announce(recording, "desk", owner, make_task("Shopping list", "Write a shopping list with prices."), "list.mp4", 10, **more)
        m.uploaded(recording, "ab" * 32, 10)
        m.judged(recording, "READY", "completion good", 0.8, 0.8, price, 75.0)
        m.submit(recording, "owner", price, account_of(owner), False)
        return recording

    def balance(self, who: str) -> int:
        with Chain(self.net.endpoint, 24) as chain:
            return chain.balance_rao(who)


def writing(lines: list[str], seconds: int = 24, fps: int = 2):
    "A text editor in which somebody types."
    for tick in range(seconds * fps):
        image, typed = Image.new("RGB", (960, 540), "white"), int(max(0, tick / fps - 4) * 5)
        ImageDraw.Draw(image).text((480, 20), "*list.txt - Mousepad", "black", ImageFont.load_default(16), "mm")
        for n, line in enumerate(lines):
            ImageDraw.Draw(image).text((120, 60 + 34 * n), line[:max(0, typed - sum(map(len, lines[:n])))], "black", ImageFont.load_default(22))
        yield np.asarray(image)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("market")
    film = write_film(folder / "list.mp4", writing(["Shopping list", "milk 1.29", "bread 2.40", "apples 3.15"]), 2).read_bytes()
    wallets = {name: open_wallet(name, "default", str(folder / "wallets"), create=True)
               for name in ("service", "ada", "ben", "cleo", "poor", "val", "stranger")}
    with LocalNet(golden_path("data"), block_seconds=0.25) as net:
        with Chain(net.endpoint, 24) as chain:
            for name, tao in (("ada", 100), ("ben", 100), ("cleo", 100), ("poor", 1), ("val", 2000)):
                chain.transfer(dev_wallet("//Alice"), wallets[name].coldkeypub.ss58_address, tao * 10**9)
                chain.register(wallets[name])
            chain.add_stake(wallets["val"], 1000 * 10**9)
        state = folder / "state"
        settings = load_settings({"network.endpoint": net.endpoint, "wallet.name": "service", "wallet.path": str(folder / "wallets"), "focus.min_seconds": 20,
                                  "focus.read_least": 10, "market.watch_seconds": 0.3, "market.reservations": 50, "service.per_minute": 5000,
                                  "api.anonymous_per_minute": 5000, "api.key_per_minute": 5000}, environ={})
        card = start_service(settings, state)
        engine = open_database(state / "market.sqlite")
        keys = {role: make_key(engine, name, role) for name, role in (("desk", "app"), ("rita", "reviewer"), ("omar", "operator"), ("lab one", "buyer"))}
        keys["other app"] = make_key(engine, "kiosk", "app")
        yield World(net, folder, card.url, wallets["service"].hotkey.ss58_address, wallets, keys, Market(engine, MarketSettings()), film)
        stop_service(state)


def wait_for(what, seconds: float = 30.0, every: float = 0.05):
    "What a function gives once that is true."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(every)
    raise AssertionError("it did not happen in time")


# --- a recording's whole way


def test_from_upload_to_weight(world):
    eve, ada, ben = account_of("//Eve"), world.client("ada"), world.client("ben")
    with SellerClient(world.url, world.keys["app"]) as app:
        about = Announcement(user="eve@example.org", focusing_task="Shopping list", size=len(world.film), nonce=app.nonce(), focusing_description=(
            "Open a text editor and write a shopping list: milk, bread and apples, each with its price."))
        video = app.announce(about).video_id
        assert app.send(video, 0, world.film[:30_000]).offset == 30_000
        with pytest.raises(SellerError, match="continues at byte 30,000"):
            app.send(video, 50_000, world.film[50_000:])
    with SellerClient(world.url, world.keys["app"]) as app:  # another process, after a break
        there = app.progress(video).offset
        app.send(video, there, world.film[there:])
        told = app.wait(video, 90)
        assert told.state == "READY" and told.final_score > 0.5 and told.estimated_reward_rao > 0 and told.feedback
        assert all(v.video_id != video for v in ada.listed(1000)), "nobody sees what is not submitted"
        done = app.submit(video, eve)
        assert done.state == "SUBMITTED" and done.price_rao == told.estimated_reward_rao
        with SellerClient(world.url, world.keys["other app"]) as other, pytest.raises(SellerError, match="404"):
            other.state(video)

    shown = world.lab("market", "list", who="ada").communicate()[0]
    assert video in shown and "Shopping list" in shown and str(done.price_rao)[:3] in shown
    refused = world.lab("market", "buy", video, who="ada")
    assert refused.communicate()[0].endswith("without a terminal, say --yes\n") and refused.returncode == 1
    before, bought = world.balance(eve), world.lab("market", "buy", video[:20], "--yes", who="ada")
    told = bought.communicate()[0]
    assert bought.returncode == 0 and "is bought" in told and "rao) from" in told, told
    assert world.balance(eve) - before == done.price_rao

    assert video in world.lab("market", "history", who="ada").communicate()[0]
    scores = ada.purchase_scores().root
    assert scores[world.wallets["ada"].hotkey.ss58_address].focus_points_percentage == 1.0
    with SellerClient(world.url, world.keys["app"]) as app:
        assert (app.state(video).state, app.state(video).earned_rao) == ("REWARDED", done.price_rao)
    path = f"/api/focus/purchased/{video}"
    assert signed(world, "ada", "GET", path).content == world.film
    part = signed(world, "ada", "GET", path, more={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, world.film[10:20])
    assert signed(world, "ben", "GET", path).status_code == 404
    with pytest.raises(ServiceRefused, match="409.*sold"):
        ben.reserve(video)


@pytest.mark.full  # a dozen and a half of processes
def test_a_person_offers_from_their_own_book(world, tmp_path):
    "The commands of someone who records, against the running service; then the film, for whoever bought it."
    def lab(*arguments: str, code: int = 0, who: str = "eve") -> str:
        process = world.lab(*arguments, who=who)
        told = process.communicate(timeout=120)[0]
        assert process.returncode == code and "Traceback" not in told, told
        return told

    (world.folder / "state" / "focus" / "tasks").mkdir(exist_ok=True)
    boosted = make_task("Weekly list", "Open a text editor and write a shopping list: milk, bread and apples, each with its price.", "BOOSTED", 2.0)
    write_json(world.folder / "state" / "focus" / "tasks" / f"{boosted.id}.json", boosted)
    assert "nothing was offered" in lab("focus", "offered")
    assert f"{boosted.id}  BOOSTED ×2  Weekly list" in lab("focus", "task", "fetch")
    film = write_film(tmp_path / "weekly.mp4", writing(["Weekly list of the whole house", "bread 2.49", "apples 3.95", "milk 1.19", "and paper 4.00"]), 2)
    own = re.search(r"^(\w{26}):", lab("focus", "upload", str(film), "--task", "Weekly"), re.M)[1]
    assert "is not an SS58 address" in lab("focus", "offer", own, "--payee", "eve", "--yes", code=1)
    told = lab("focus", "offer", own, "--payee", account_of("//EveBook"), "--yes")
    video = re.search(r"(\w{26}) is up for sale at", told)[1]
    item = world.market.get(video)
    assert (item.task_type, item.multiplier, item.final) == ("BOOSTED", 2.0, 2 * item.score) and item.owner not in ("root", os.environ.get("USER"))
    assert "SUBMITTED" in lab("focus", "offered") and "up for sale already" in lab("focus", "offer", own, "--payee", account_of("//EveBook"), "--yes")
    assert "is taken back" in lab("focus", "withdraw", own, "--yes")
    assert world.market.get(video).state == "TAKEN_DOWN" and "nothing was offered" in lab("focus", "offered")
    again = re.search(r"(\w{26}) is up for sale at", lab("focus", "offer", own, "--payee", account_of("//EveBook"), "--yes"))[1]
    assert "is bought" in lab("market", "buy", again, "--yes", who="cleo")
    assert "REWARDED" in lab("focus", "offered") and "cannot be taken back" in lab("focus", "withdraw", own, "--yes", code=1)
    lab("market", "film", again, "--output", str(tmp_path / "bought.mp4"), who="cleo")
    assert (tmp_path / "bought.mp4").read_bytes() == film.read_bytes()
    assert "you have not bought it" in lab("market", "film", again, who="ben", code=1)
    assert "you bought" in lab("market", "buy", again, "--yes", who="cleo", code=1)
    assert "not for sale" in lab("market", "buy", again, "--yes", who="ben", code=1)
    assert "block_hash '0x12'" in lab("market", "verify", again, "0x12", who="ben", code=2)


def test_an_outside_buyer_comes_after_the_miner(world):
    video, key = world.listed(1), {"x-api-key": world.keys["buyer"]}
    cold = world.wallets["cleo"].coldkeypub.ss58_address

    def post(path: str, body: dict) -> httpx.Response:
        return httpx.post(f"{world.url}/api/focus/{path}", json=body, headers=key, timeout=30)

    assert post("purchase", {"video_id": video, "coldkey": cold}).status_code == 409
    ada = world.lab("market", "buy", video, "--yes", who="ada")
    assert "is bought" in ada.communicate()[0]
    assert "say which address" in post("purchase", {"video_id": video}).json()["detail"]
    assert video in [v["video_id"] for v in httpx.get(f"{world.url}/api/focus/get_list", headers=key).json()]
    before = world.client("ada").purchase_scores()
    offer = post("purchase", {"video_id": video, "coldkey": cold}).json()
    with Chain(world.net.endpoint, 24) as chain:
        chain.transfer(world.wallets["cleo"], offer["address"], offer["amount_rao"])
    wait_for(lambda: [p for p in httpx.get(f"{world.url}/api/focus/purchases", headers=key).json() if p["state"] == "PAID"])
    assert world.client("ada").purchase_scores() == before, "no miner's weight comes of it"
    assert world.market.get(video).earned_rao == 2 * offer["amount_rao"]


def test_two_recordings_of_one_person_are_bought_one_after_the_other(world):
    first, second = world.listed(2, "//Gil"), world.listed(3, "//Gil")
    with world.client("cleo") as cleo:
        cleo.reserve(first)
        with pytest.raises(ServiceRefused, match="409.*paid to the same address"):
            cleo.reserve(second)


# --- buyers that die


@pytest.mark.parametrize("number,step", [(10, "reserved"), (11, "paying"), (12, "paid")])
def test_a_buyer_killed_at_any_step_pays_once(world, number, step):
    owner = f"//Killed{number}"
    video, payee = world.listed(number, owner), account_of(owner)
    book = world.folder / "ben" / "buyer" / "ben-default"
    buyer = world.lab("market", "buy", video, "--yes", who="ben")

    def at_step() -> bool:
        return any(json.loads(p.read_text())["step"] == step and json.loads(p.read_text())["video_id"] == video for p in book.glob("*.json"))

    wait_for(lambda: at_step() or buyer.poll() is not None, 60, 0.001)
    buyer.send_signal(signal.SIGKILL)
    buyer.wait()
    if step == "reserved":
        assert world.market.get(video).state in ("PURCHASE_PENDING", "PURCHASED")
    again = world.lab("market", "buy", video, "--yes", who="ben")
    told = again.communicate()[0]
    assert "is bought" in told or "you bought" in told, told
    wait_for(lambda: world.market.get(video).state == "PURCHASED")
    assert world.balance(payee) == world.market.get(video).price_rao, "paid once"
    assert not [r for r in world.market.refunds() if r.recipient == payee]


def test_a_payment_is_found_without_its_buyer(world):
    video = world.listed(20, "//Hal")
    with world.client("ben") as ben, Chain(world.net.endpoint, 24) as chain:
        offer = ben.reserve(video)
        assert ben.reserve(video) == offer
        paid = chain.transfer(world.wallets["ben"], offer.address, offer.amount_rao + 5)
        wait_for(lambda: world.market.get(video).state == "PURCHASED")
        assert ben.verify(video, chain.block_hash(paid.block)).status == "success", "said late, it is still right"
        standing = ben.purchase_scores().root[world.wallets["ben"].hotkey.ss58_address]
        assert world.market.get(video).earned_rao == offer.amount_rao + 5
        assert standing.spent_rao % 10 == 0, "what is paid beyond the price makes no weight"


def test_a_late_payment_is_noted_to_be_given_back(world):
    video = world.listed(21, "//Ida")
    with world.client("ben") as ben, Chain(world.net.endpoint, 24) as chain:
        offer = ben.reserve(video)
        world.net.produce(offer.until_block - chain.block() + 2)
        wait_for(lambda: world.market.get(video).state == "SUBMITTED")
        paid = chain.transfer(world.wallets["ben"], offer.address, offer.amount_rao)
        told = ben.verify(video, chain.block_hash(paid.block))
        assert told.status == "refundable" and "the reservation ended with block" in told.message
        with pytest.raises(ServiceRefused, match="402.*nothing in block|402.*other|402"):
            ben.verify(video, chain.block_hash(paid.block - 1))
    key = {"x-api-key": world.keys["operator"]}
    [refund] = [r for r in httpx.get(f"{world.url}/api/focus/refunds", headers=key).json() if r["recipient"] == account_of("//Ida")]
    assert refund["rao"] == offer.amount_rao and refund["sender"] == world.wallets["ben"].coldkeypub.ss58_address
    done = httpx.post(f"{world.url}/api/focus/refunded", headers=key, json={"refund": refund["refund"], "note": "sent back by its owner"})
    assert done.status_code == 200 and world.market.get(video).state == "SUBMITTED"


def test_the_unattended_buyer_keeps_to_its_limits(world):
    cheap, dear = world.listed(30, "//Kim", 30_000_000), world.listed(31, "//Lou", 90_000_000)
    notebook = world.folder / "buyer.ipynb"
    limits = {"buyer.budget_tao": 0.2, "buyer.max_price_tao": 0.05, "buyer.most": 50}
    run = world.lab("run", "buyer", "--output", str(notebook), who="val", **limits)
    assert run.wait(timeout=180) == 0, run.stdout.read()
    assert (world.market.get(cheap).state, world.market.get(dear).state) == ("PURCHASED", "SUBMITTED")
    told = "".join("".join(o.get("text", "")) for c in json.loads(notebook.read_text())["cells"] for o in c.get("outputs", []))
    assert f"{cheap}: bought" in told and "share of the market" in told and "no unstaking" in told
    assert sum(p.amount_rao for p in world.client("val").history().root if p.state == "PAID") <= 200_000_000


def test_money_that_is_missing_is_said_and_unstaked_only_when_allowed(world):
    video = world.listed(32, "//Max", 950_000_000)
    poor = world.lab("market", "buy", video, "--yes", who="poor")
    told = poor.communicate()[0]
    assert poor.returncode == 1 and "are missing in" in told and "unstake = true" in told and "Traceback" not in told
    assert world.market.get(video).state == "SUBMITTED", "said before it was reserved"
    with Chain(world.net.endpoint, 24) as chain:
        chain.transfer(dev_wallet("//Alice"), world.wallets["poor"].coldkeypub.ss58_address, 10**9)
        chain.add_stake(world.wallets["poor"], 15 * 10**8)
    allowed = world.lab("market", "buy", video, "--yes", who="poor", **{"buyer.unstake": True})
    told = allowed.communicate()[0]
    assert allowed.returncode == 0 and "back from the stake" in told, told


# --- who may do what


def signed(world, who: str, method: str, path: str, body: bytes = b"", more: dict | None = None) -> httpx.Response:
    from omega_lab.chain import sign_request

    headers = sign_request(world.wallets[who].hotkey, method, world.url + path, body, world.service_hotkey) | (more or {})
    return httpx.request(method, world.url + path, content=body, headers=headers, timeout=60)


def test_the_older_signature_is_not_taken(world):
    key = world.wallets["ada"].hotkey
    basic = base64.b64encode(f"{key.ss58_address}:0x{key.sign(key.ss58_address.encode()).hex()}".encode()).decode()
    answer = httpx.get(f"{world.url}/api/focus/get_list", headers={"authorization": f"Basic {basic}"})
    assert answer.status_code == 401 and "replayed" in answer.json()["detail"]


def test_nothing_private_is_told_and_no_other_site_may_read(world):
    answer = httpx.get(f"{world.url}/api/focus/get_rewards_percent", headers={"origin": "https://elsewhere.example"})
    assert answer.status_code == 200 and not [name for name in answer.headers if name.startswith("access-control")]
    logs = "".join(p.read_text(errors="replace") for p in (world.folder / "state").glob("*.log"))
    assert not [key for key in world.keys.values() if key in logs] and "eve@example.org" not in logs
    assert "eve@example.org" not in signed(world, "ada", "GET", "/api/focus/get_list?limit=1000").text


KEYS = ("app", "reviewer", "operator", "buyer")
CALLERS = ("nobody", "guessed key", "stranger", "miner", "validator", *KEYS, "other app", "signed in")
EVERYBODY, MINERS, DECIDERS = set(CALLERS), {"miner", "validator"}, {"reviewer", "operator"}
APPS, BUYERS = {"app", "other app"}, {"miner", "validator", "buyer"}
OPEN = {"/", "/dashboard", "/leaderboard", "/miners/{hotkey}", "/dataset", "/rounds", "/rounds/{id}", "/recordings", "/recordings/{id}",
        "/recordings/{id}/frames/{n}", "/market", "/review", "/style.css", "/icon.svg", "/favicon.ico", "/healthz", "/metrics",
        "/api/leaderboard", "/api/mm/topics",
        "/api/mm/topic_video_count", "/api/mm/topic_relevant/{topic}", *(f"/api/focus/get_{name}" for name in (
            "rewards_percent", "task_percentage_map", "max_focus_alpha", "variable_reward_pool_alpha", "fixed_reward_pool_alpha", "alpha_to_tao_rate"))}
MAY = {f"GET {path}": EVERYBODY for path in OPEN} | {
    **{f"POST /api/{name}": {"validator"} for name in ("get_pinecone_novelty", "upload_video_metadata", "upload_audio_metadata", "get_proxy")},
    "GET /api/check_score": MINERS,
    **{f"{m} /api/focus/{name}": APPS for m, name in (("GET", "tasks"), ("POST", "nonce"), ("POST", "recordings"), ("GET", "recordings/{video_id}/film"), (
        "PUT", "recordings/{video_id}/film"), ("GET", "get_focus_score"), ("POST", "get_focus_score"), ("POST", "get_score_direct"), ("POST", "submit"), (
        "POST", "withdraw"))},
    **{f"{m} /api/focus/{name}": BUYERS for m, name in (("GET", "get_list"), ("POST", "purchase"), ("POST", "verify-purchase"), ("GET", "purchases"), (
        "GET", "purchased/{video_id}"))},
    **{f"GET /api/focus/miner_purchase_scores{more}": MINERS for more in ("", "/{hotkeys}")},
    **{f"{m} /api/focus/{name}": DECIDERS for m, name in (("GET", "review"), ("POST", "review"), ("POST", "take_down"))},
    **{f"{m} /api/focus/{name}": {"operator"} for m, name in (("GET", "refunds"), ("POST", "refunded"), ("POST", "unban"))},
    **{f"GET /review/{{id}}{more}": {"signed in"} for more in ("", "/frames/{n}", "/film")},
    "POST /review/{id}": set(), "POST /review/sign-out": set(), "POST /review/sign-in": set()}  # a form's mark, or a key, is missing here


def as_caller(world, who: str, method: str, path: str, body: bytes, session: str) -> httpx.Response:
    "The request as each kind of caller would make it."
    wallet = {"stranger": "stranger", "miner": "ada", "validator": "val"}.get(who)
    if wallet:
        return signed(world, wallet, method, path, body)
    headers = {"x-api-key": world.keys.get(who, f"olk_{'0' * 43}")} if who in (*KEYS, "other app", "guessed key") else {}
    cookies = {"omega_lab_review": session} if who == "signed in" else {}
    with httpx.Client(verify=False, headers=headers, cookies=cookies, timeout=60) as client:  # reading certificates takes longer than an answer
        return client.request(method, world.url + path, content=body)


def test_who_may_do_what(world):
    "Every endpoint and every kind of caller: let in, or turned away with 401 or 403 before anything else is looked at."
    schema = httpx.get(world.url + "/openapi.json").json()
    offered = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert offered == set(MAY)
    session = httpx.post(f"{world.url}/review/sign-in", data={"key": world.keys["reviewer"]}).cookies["omega_lab_review"]
    fill = {"video_id": ULID.format(99), "hotkeys": world.service_hotkey, "hotkey": world.service_hotkey, "id": "1", "n": "0", "topic": "cats"}
    query = {"GET /api/focus/get_focus_score": f"?video_id={ULID.format(99)}", "PUT /api/focus/recordings/{video_id}/film": "?offset=0"}
    wrong = []
    for operation, may in MAY.items():
        method, path = operation.split()
        target = path.format(**fill) + query.get(operation, "")
        for who in CALLERS:
            answer = as_caller(world, who, method, target, b"{}" if method != "GET" else b"", session)
            turned_away = answer.status_code in (401, 403)
            if turned_away == (who in may) or answer.status_code >= 500:
                wrong.append(f"{who}: {operation} {answer.status_code} {answer.text[:80]}")
    assert wrong == []


def test_an_app_sees_only_its_own(world):
    video = world.listed(40, "//Nan")
    for path, body in (("get_focus_score", {"video_id": video}), ("submit", {"video_id": video}), ("withdraw", {"video_id": video})):
        answer = httpx.post(f"{world.url}/api/focus/{path}", json=body, headers={"x-api-key": world.keys["other app"]})
        assert answer.status_code == 404, path
    own = httpx.get(f"{world.url}/api/focus/get_focus_score?video_id={video}", headers={"x-api-key": world.keys["app"]})
    assert own.status_code == 200 and own.json()["state"] == "SUBMITTED"


def test_the_older_signature_where_it_is_allowed(world, tmp_path):
    from omega_lab.api.callers import Callers
    from omega_lab.chain.auth import Gate, Refused
    from omega_lab.settings import ApiSettings

    with Chain(world.net.endpoint, 24) as chain:
        graph = chain.metagraph()
    callers = Callers(world.market.engine, Gate(world.service_hotkey, lambda: graph, need_permit=False), ApiSettings(legacy_auth=True))

    def basic(who: str) -> dict[str, str]:
        key = world.wallets[who].hotkey
        return {"authorization": "Basic " + base64.b64encode(f"{key.ss58_address}:0x{key.sign(key.ss58_address.encode()).hex()}".encode()).decode()}

    known = callers.identify("GET", "/api/focus/get_list", basic("ada"), b"", "127.0.0.1")
    assert (known.kind, known.coldkey) == ("legacy", world.wallets["ada"].coldkeypub.ss58_address)
    with pytest.raises(Refused, match="not registered"):
        callers.identify("GET", "/api/focus/get_list", basic("stranger"), b"", "127.0.0.1")


def test_the_tables_say_what_the_log_says(world):
    assert world.market.differences() == []
