"""The market's database: what a page and a sale cost with 50, 10 000 and 100 000 recordings, SQLite and (where its server is) PostgreSQL.

    python benchmarks/market.py [--postgres URL]

Prints JSON: medians in milliseconds, and ratios within this run."""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from omega_lab.chain.payments import Payment
from omega_lab.chain.rules import account_of
from omega_lab.focus.log import Item
from omega_lab.focus.market import LISTED, Market
from omega_lab.focus.tables import ITEMS, open_database
from omega_lab.settings import MarketSettings

PAYEES = [account_of(f"//Payee{n}") for n in range(20)]


def made_up(n: int) -> dict:
    "A recording for sale."
    return asdict(Item(id=f"{n:026d}", state="SUBMITTED", changed_at=float(n), app="desk", owner=f"p{n % 700}", title=f"Task {n}", payee=PAYEES[n % 20],
                       final=n % 97 / 97, price_rao=1_000_000 + n, submitted_at=float(n)))


def median_ms(work, times: int = 15) -> float:
    "The median of some runs."
    took = []
    for k in range(times):
        began = time.perf_counter()
        work(k)
        took.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(took), 2)


def measure(market: Market, rows: int) -> dict[str, float]:
    "Page, line and sale with so many recordings."
    with market.engine.begin() as connection:
        connection.execute(ITEMS.delete())
        for start in range(0, rows, 2000):
            connection.execute(ITEMS.insert(), [made_up(n) for n in range(start, min(rows, start + 2000))])

    def sale(k: int) -> None:
        buyer = account_of(f"//Buyer{k}")
        offer = market.reserve(f"{k:026d}", buyer, buyer, 10 * k, 10**18)
        market.settle(Payment(10 * k + 1, f"0x{rows * 100 + k:064x}", rows + k, 1, offer.price_rao, offer.coldkey, offer.payee))

    return {"page sorted by price": median_ms(lambda k: market.items(LISTED, 50, rows // 2, (ITEMS.c.price_rao.desc(),))),
            "first page of the line": median_ms(lambda k: market.line(50)), "sale (reserve and settle)": median_ms(sale)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--postgres", help="URL of an empty database")
    given, found = options.parse_args(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, url in (("sqlite", Path(folder) / "market.sqlite"), ("postgresql", given.postgres)):
            if url is None:
                continue
            market = Market(open_database(url), MarketSettings(reservations=1000))
            sizes = {str(rows): measure(market, rows) for rows in (50, 10_000, 100_000)}
            ratios = {what: round(sizes["10000"][what] / sizes["50"][what], 2) for what in sizes["50"]}
            found[name] = {"ms": sizes, "10 000 against 50": ratios}
            with suppress(Exception):
                market.engine.dispose()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
