"""A process of toy miners: the real miner server, once per miner, over the endless clips of `toy`.

`python toy_miners.py CONFIG`: a JSON file {endpoint, wallets, folder, ready, miners: [[name, quality, lie, copies], …]}. Each miner publishes
its port on the chain; `ready` appears when all serve. A file named `hang` in a miner's folder makes it sit on its answers.
"""
import asyncio
import json
import signal
import socket
import sys
import time
from pathlib import Path

import uvicorn
from toy import Nature, ToyAnswerer

from omega_lab.chain import Chain, open_wallet
from omega_lab.chain.auth import Gate, NonceStore
from omega_lab.chain.cache import MetagraphCache
from omega_lab.miner.server import make_app
from omega_lab.miner.work import MinerParts, StakeQueue
from omega_lab.settings import Settings, load_settings
from omega_lab.sources import FolderSource


class Moody(ToyAnswerer):
    "Hangs while told so."

    def answer(self, request, caller: str, claim=lambda: True):
        while (self.folder / "hang").exists():
            time.sleep(0.05)
        return super().answer(request, caller, claim)


def parts(settings: Settings, wallet, nature: Nature, folder: Path, metagraph: MetagraphCache) -> MinerParts:
    "A toy miner's parts: all real but the answerer."
    gate = Gate(wallet.hotkey.ss58_address, metagraph, nonce_store=NonceStore(folder / "nonces.db"))
    return MinerParts(settings, gate, Moody(nature, folder), FolderSource(folder), wallet.hotkey, StakeQueue(4, 64))


async def serve(config: dict) -> None:
    "All miners of the process, until SIGTERM."
    settings = load_settings({"miner.min_stake_tao": 0, "miner.deadline": 30}, environ={})
    servers, tasks = [], []
    with Chain(config["endpoint"], 24) as chain:
        metagraph = MetagraphCache(chain.metagraph)
        for miner in config["miners"]:
            nature = Nature(*miner)
            wallet = open_wallet(nature.name, "default", config["wallets"])
            folder = Path(config["folder"]) / nature.name
            folder.mkdir(parents=True, exist_ok=True)
            listener = socket.create_server(("127.0.0.1", 0))
            app = make_app(parts(settings, wallet, nature, folder, metagraph))
            servers.append(uvicorn.Server(uvicorn.Config(app, log_level="warning")))
            servers[-1].install_signal_handlers = lambda: None
            tasks.append(asyncio.create_task(servers[-1].serve(sockets=[listener])))
            await asyncio.to_thread(chain.publish_endpoint, wallet, "127.0.0.1", listener.getsockname()[1])
        while not all(server.started for server in servers):
            await asyncio.sleep(0.02)
        Path(config["ready"]).write_text("ready")
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
