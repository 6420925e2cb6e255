"""Real server processes (miner, shared service) on a local chain, with a validator that may ask and a stranger that may not."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from omega_lab.api.serve import start_service, stop_service
from omega_lab.chain import Chain, dev_wallet, open_wallet, sign_request
from omega_lab.chain.localnet import LocalNet
from omega_lab.embedding import CachedEncoder, get_encoder
from omega_lab.miner import make_source, open_shelf, prepare, start_server, stop_server
from omega_lab.samples import golden_path
from omega_lab.settings import Settings, load_settings

TAO = 10**9


@dataclass(frozen=True)
class Live:
    "A server: where it listens, whose it is, and the keys of those who ask."
    url: str
    hotkey: str
    wallets: dict[str, Any]
    state: Path

    def headers(self, method: str, target: str, body: bytes = b"", who: str = "validator") -> dict[str, str]:
        "A signature for one request."
        return sign_request(self.wallets[who].hotkey, method, target, body, self.hotkey)

    def post(self, body: bytes, who: str | None = "validator", path: str = "/v1/videos") -> httpx.Response:
        "The miner's answer."
        return httpx.post(self.url + path, content=body, headers=self.headers("POST", path, body, who) if who else {}, timeout=60)


@contextmanager
def subnet(folder: Path, given: dict[str, Any]) -> Iterator[tuple[Settings, dict[str, Any]]]:
    "(settings of the miner, wallets by name) on a chain of its own."
    with LocalNet(golden_path("data"), block_seconds=0.2) as net:
        wallets = {name: open_wallet(name, "default", folder / "wallets", create=True) for name in ("miner", "validator", "stranger")}
        with Chain(net.endpoint, 24) as chain:
            for name in ("miner", "validator"):
                chain.transfer(dev_wallet("//Alice"), wallets[name].coldkeypub.ss58_address, 30_000 * TAO)
                chain.register(wallets[name])
            chain.add_stake(wallets["validator"], 20_000 * TAO)
        yield load_settings({"network.endpoint": net.endpoint, "wallet.name": "miner", "wallet.path": str(folder / "wallets"),
                           "source.subjects": "lion", "miner.per_minute": 10**6} | given, environ={}), wallets


@contextmanager
def live_miner(folder: Path, **settings: Any) -> Iterator[Live]:
    "A miner with a small shelf; `settings` are {section__key: value}."
    with subnet(folder, {name.replace("__", "."): value for name, value in settings.items()}) as (s, wallets):
        encoder = CachedEncoder(get_encoder("bridge"), Path("data/cache/miner"))
        prepare(make_source(s), encoder, open_shelf(folder / "state", encoder), ["lion"])
        card = start_server(s, folder / "state")
        try:
            yield Live(card.url, wallets["miner"].hotkey.ss58_address, wallets, folder / "state")
        finally:
            assert stop_server(folder / "state") and not card.alive()


@contextmanager
def live_service(folder: Path) -> Iterator[Live]:
    "A shared service, on the miner's key."
    with subnet(folder, {"service.per_minute": 10**6, "api.anonymous_per_minute": 10**6, "api.key_per_minute": 10**6}) as (s, wallets):
        card = start_service(s, folder / "service")
        try:
            yield Live(card.url, wallets["miner"].hotkey.ss58_address, wallets, folder / "service")
        finally:
            assert stop_service(folder / "service") and not card.alive()
