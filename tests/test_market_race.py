"""The market on SQLite and on PostgreSQL: its tables, and buyers that race for recordings and die between the steps, as the service does."""

import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from postgres import MISSING, make_database, postgres_server, programs
from sqlalchemy import select
from sqlalchemy.orm import Session

from omega_lab.api.buyer import MarketClient
from omega_lab.api.client import ServiceError
from omega_lab.api.serve import start_service, stop_service
from omega_lab.chain import Chain, dev_wallet, open_wallet
from omega_lab.chain.claims import Claim
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.rules import Genesis, account_of
from omega_lab.chain.transfers import read_payments
from omega_lab.focus.log import Purchase
from omega_lab.focus.market import Market
from omega_lab.focus.tables import open_database, read_events
from omega_lab.focus.task import make_task
from omega_lab.focus.watch import watch_once
from omega_lab.samples import golden_path
from omega_lab.settings import MarketSettings, load_settings

BUYERS, PRICE = 50, 20_000_000
SIZES = [(12, 24, 10), pytest.param((BUYERS, 100, 40), marks=pytest.mark.full)]  # buyers, recordings, their owners
RULES = MarketSettings(reservation_minutes=12, lapses=1000, emission_tao=1000, watch_seconds=0.3)  # 60 blocks to pay


@pytest.fixture(scope="module")
def subnet():
    "A chain with the buyers on it, and connections to it."
    endowed = {f"//Racer{n}": 10 * 10**9 for n in range(BUYERS)}
    with LocalNet(golden_path("data"), block_seconds=0.12, genesis=Genesis(endowed=endowed), kept_states=100_000) as net:
        chains = [Chain(net.endpoint, 24) for _ in range(5)]
        wallets = [dev_wallet(f"//Racer{n}") for n in range(BUYERS)]
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda n: chains[n % 5].register(wallets[n]), range(BUYERS)))
        yield net, chains, wallets
        for chain in chains:
            chain.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    "Where the market is, and how many service processes share it."
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/market.sqlite", 1
    elif programs() is None:
        pytest.skip(MISSING)
    else:
        with postgres_server() as server:
            yield make_database(server, "market"), 2


def race(market: Market, recordings: int, urls: list[str], hotkey: str, wallet, chain: Chain, seed: int, until: float) -> Counter:
    "A buyer that buys until all is sold, and dies here and there: what it had in hand is left, and it starts anew."
    chance, told = random.Random(seed), Counter()
    while time.monotonic() < until:
        with MarketClient(chance.choice(urls), hotkey, wallet.hotkey, timeout=20, attempts=2) as client:
            try:
                listed = client.listed(40)
                if not listed and market.counts().get("PURCHASED", 0) >= recordings:
                    return told
                if not listed:
                    time.sleep(0.3)
                    continue
                offer = client.reserve(chance.choice(listed[:20]).video_id)
                if chance.random() < 0.12:
                    told["died after reserving"] += 1
                    continue
                paid = chain.transfer(wallet, offer.address, offer.amount_rao)
                told["paid"] += 1
                if chance.random() < 0.04:
                    chain.transfer(wallet, offer.address, offer.amount_rao)
                    told["paid"] += 1
                    told["paid twice"] += 1
                if chance.random() < 0.2:
                    told["died after paying"] += 1
                    continue
                video = next(p.video_id for p in client.history(20).root if p.purchase == offer.purchase)
                told[client.verify(video, chain.block_hash(paid.block)).status] += 1
            except ServiceError:
                told["refused or down"] += 1
                time.sleep(0.02)
    return told


@pytest.mark.parametrize("size", SIZES, ids=["some", "many"])
def test_each_is_sold_once_and_no_payment_is_lost(subnet, database, tmp_path, size):
    net, chains, wallets = subnet
    buyers, recordings, owners = size
    url, processes = database
    open_wallet("service", "default", str(tmp_path / "wallets"), create=True)
    settings = load_settings({"network.endpoint": net.endpoint, "wallet.name": "service", "wallet.path": str(tmp_path / "wallets"),
                              "service.per_minute": 100_000, "api.key_per_minute": 100_000, "api.anonymous_per_minute": 100_000, "api.workers": 0}, environ={})
    settings = settings.model_copy(update={"market": RULES.model_copy(update={"database": url, "folder": str(tmp_path / "focus")})})
    engine = open_database(url)
    market = Market(engine, RULES)
    fill(market, recordings, owners)
    first = chains[0].block()
    states = [tmp_path / f"state{n}" for n in range(processes)]
    cards = [start_service(settings, state) for state in states]
    hotkey = open_wallet("service", "default", str(tmp_path / "wallets")).hotkey.ss58_address
    try:
        until, killer = time.monotonic() + 240, threading.Thread(target=kill_and_restart, args=(market, recordings // 3, settings, states[0]))
        killer.start()
        with ThreadPoolExecutor(buyers) as pool:
            told = sum(pool.map(lambda n: race(market, recordings, [c.url for c in cards], hotkey, wallets[n], chains[n % 5], n, until), range(buyers)),
                       Counter())
        killer.join()
    finally:
        for state in states:
            stop_service(state)
    print(dict(told))
    while watch_once(market, chains[0]).blocks:  # what came after the last look
        pass
    check(market, engine, chains[0], first, told, recordings, owners)
    assert recordings < 100 or (told["died after paying"] and told["died after reserving"])
    engine.dispose()


def fill(market: Market, recordings: int, owners: int) -> None:
    "The recordings, for sale."
    task = make_task("Shopping list", "Write a shopping list with prices.")
    for n in range(recordings):
        name, owner = f"01ARZ3NDEKTSV4RRFFQ69G{n:04d}", f"//Seller{n % owners}"
        market.announce(name, "desk", owner, task, "list.mp4", 10)
        market.uploaded(name, "ab" * 32, 10)
        market.judged(name, "READY", "good", 0.8, 0.8, PRICE)
        market.submit(name, "owner", PRICE, account_of(owner), False)


def kill_and_restart(market: Market, sold: int, settings, state) -> None:
    "The service dies in the midst of it, and comes back at its old address."
    from omega_lab.serving import read_card

    while market.counts().get("PURCHASED", 0) < sold:
        time.sleep(0.05)
    os.kill(read_card(state).pid, signal.SIGKILL)
    time.sleep(0.5)
    start_service(settings, state)


def check(market: Market, engine, chain: Chain, first: int, told: Counter, recordings: int, owners: int) -> None:
    "Everything against the chain: each sold once, each payment in one place."
    assert market.counts() == {"PURCHASED": recordings}
    racers, sellers = {dev_wallet(f"//Racer{n}").coldkeypub.ss58_address for n in range(BUYERS)}, {account_of(f"//Seller{n}") for n in range(owners)}
    made = {p.key: p for number in range(first, chain.final_block() + 1) for p in read_payments(chain, number)
            if p.sender in racers and p.recipient in sellers}
    assert len(made) == told["paid"]
    with Session(engine) as session:
        claims = {(c.block, c.extrinsic, c.event): c for c in session.scalars(select(Claim))}
        events = read_events(session)
    sales = [e for e in events if e.kind == "PURCHASED"]
    assert len({e.item for e in sales}) == len(sales) == recordings, "each sold once"
    bought = {(e.data["block"], e.data["extrinsic"], e.data["event"]) for e in sales}
    refunds = {tuple(map(int, r.id.split("-"))) for r in market.refunds()}
    assert len(bought) == recordings and not bought & refunds, "no payment is counted twice"
    assert set(made) == set(claims) == bought | refunds, "no payment is lost"
    assert sum(market.get(e.item).earned_rao for e in sales) == sum(made[key].rao for key in bought)
    for key, c in claims.items():
        offer: Purchase = market.purchase(c.purchase_id)
        assert (offer.coldkey, offer.payee) == (made[key].sender, made[key].recipient)
    assert sum(s.spent_rao for s in market.standings().values()) == recordings * PRICE
    assert market.differences() == []


# ---- the tables


def test_the_migrations_make_what_the_code_expects(database):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from omega_lab.chain.claims import Base
    from omega_lab.focus.tables import INDEXES

    engine = open_database(database[0])
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    others = [d for d in found if not (d[0] == "remove_index" and d[1].name in INDEXES or d[0] == "remove_table" and d[1].name == "market_schema")]
    assert others == []
    engine.dispose()


def test_an_older_database_is_taken_over_and_a_newer_one_refused(database):
    from omega_lab.chain.claims import claim, open_claims
    from omega_lab.chain.payments import Payment
    from omega_lab.focus.tables import MIGRATIONS, MarketError, migrate

    older = open_claims(database[0])
    with Session(older) as session, session.begin():
        claim(session, Payment(7, "0x7", 1, 2, 300, "5A", "5B"), "bought before there was a market")
    assert migrate(older) == len(MIGRATIONS) and migrate(older) == 0
    with Session(older) as session:
        assert session.scalars(select(Claim.purchase_id)).all() == ["bought before there was a market"]
    with pytest.raises(MarketError, match="newer version"):
        migrate(older, MIGRATIONS[:1])
    older.dispose()


def test_many_open_a_new_database_at_once(database):
    def open_it(_: int) -> int:
        engine = open_database(database[0])
        counts = len(Market(engine, RULES).counts())
        engine.dispose()
        return counts

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_it, range(8))) == [0] * 8
