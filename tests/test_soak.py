"""Three validators that share novelty, many miners, one chain, and everything that can go wrong, at random moments.

The short one plays a few rounds with a few faults; the long one (`make test-full`) 200 rounds of each validator with 16 miners.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_validator import GOLDEN, TAO, enroll, start_miners

from omega_lab.api.serve import start_service, stop_service
from omega_lab.chain import Chain, open_wallet
from omega_lab.chain.localnet import localnet_process
from omega_lab.chain.weights import to_u16
from omega_lab.scoring.video import update_average
from omega_lab.scoring.weights import combine, task_shares
from omega_lab.settings import load_settings
from omega_lab.store import Store, rescore_response

VALIDATORS = ("vera", "vito", "viola")
STAKE = {"vera": 30_000 * TAO, "vito": 25_000 * TAO, "viola": 20_000 * TAO, "house": 1_000 * TAO}


@dataclass
class Scale:
    "How long a soak is: rounds of each validator, miners, seconds between faults, faults by name, how many, and the calm rounds at the end."
    rounds: int
    miners: int
    pause: float
    faults: tuple[str, ...]
    most: int  # faults in all
    calm: int  # rounds without new faults at the end
    seconds: float  # longest it may take
    seed: int = 24


SHORT = Scale(6, 6, 3.0, ("hang a miner", "kill a validator"), 3, 0, 150)
LONG = Scale(200, 16, 6.0, ("kill miners", "hang a miner", "chain hangs", "disk full", "kill a validator", "kill the service"), 10**6, 20, 3000)


def miners_of(scale):
    "Honest ones of all qualities, one that sends vectors that are not its clips', one that copies."
    honest = [[f"m{i:02d}", round(0.35 + 0.5 * i / (scale.miners - 2), 3), "", ""] for i in range(scale.miners - 2)]
    return [*honest, ["liar", 0.3, "vectors", ""], ["copycat", honest[-1][1], "", honest[-1][0]]]


class Soak:
    "The processes, and what can be done to them."

    def __init__(self, place: Path, scale: Scale, endpoint: str):
        self.place, self.scale, self.endpoint, self.random = place, scale, endpoint, random.Random(scale.seed)
        self.chain = psutil.Process(json.loads((place / "chain.json").read_text())["pid"])
        self.miners: dict[int, subprocess.Popen] = {}
        self.validators: dict[str, subprocess.Popen] = {}
        self.memory: dict[str, list[int]] = {}
        self.done: dict[str, int] = {}
        self.began = time.monotonic()

    def begin(self):
        natures = miners_of(self.scale)
        enroll(self.endpoint, self.place / "wallets", [name for name, *_ in natures], STAKE)
        self.groups = [natures[i::4] for i in range(4)]
        for i in range(4):
            self.start_miners(i)
        self.start_service()
        for name in VALIDATORS:
            self.start_validator(name)

    def start_miners(self, i):
        self.miners[i] = start_miners(self.place / f"miners{i}", self.endpoint, self.place / "wallets", self.groups[i])

    def start_service(self):
        settings = {"network.endpoint": self.endpoint, "network.timeout": 3, "wallet.name": "house", "wallet.path": str(self.place / "wallets"),
                    "encoder.name": "toy:ToyEncoder", "service.port": getattr(self, "service_port", 0), "service.per_minute": 100_000,
                    "paths.data": str(self.place / "data")}
        card = start_service(load_settings(settings, environ={}), self.place / "service")
        self.service_port, self.service_url = card.port, card.url
        self.service = psutil.Process(card.pid)

    def start_validator(self, name):
        house = open_wallet("house", "default", self.place / "wallets").hotkey.ss58_address
        settings = {"network.endpoint": self.endpoint, "network.timeout": 3, "network.attempts": 1, "wallet.name": name,
                    "wallet.path": str(self.place / "wallets"), "encoder.name": "toy:ToyEncoder", "paths.data": str(self.place / f"data-{name}"),
                    "validator.num_videos": 4, "validator.timeout": 4, "validator.margin": 1, "validator.weights_every": 20,
                    "checks.policy": "always-one", "validator.service": self.service_url, "validator.service_hotkey": house}
        config = {"settings": settings, "state": str(self.place / name), "rounds": self.scale.rounds, "seed": name,
                  "progress": str(self.place / f"{name}.progress"), "full_disk": str(self.place / f"{name}.full")}
        path = self.place / f"{name}.json"
        path.write_text(json.dumps(config))
        with open(self.place / f"{name}.log", "ab") as log:
            command = [sys.executable, str(Path(__file__).parent / "toy_validator.py"), str(path)]
            self.validators[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def running(self):
        return [name for name, process in self.validators.items() if process.poll() is None]

    def progress(self, name):
        path = self.place / f"{name}.progress"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def played(self):
        "Rounds of the validator that is furthest behind."
        return min(max((line["round"] for line in self.progress(name) if "round" in line), default=0) for name in VALIDATORS)

    def fault(self, kind):
        "One thing goes wrong, for a while."
        self.done[kind] = self.done.get(kind, 0) + 1
        pick, i = self.random.choice(self.running()), self.random.randrange(4)
        if kind == "kill miners":
            self.miners[i].kill()
            self.miners[i].wait()
            time.sleep(2)
            self.start_miners(i)
        elif kind == "hang a miner":
            flag = self.place / f"miners{i}" / self.groups[i][0][0] / "hang"
            flag.touch()
            time.sleep(6)
            flag.unlink()
        elif kind == "chain hangs":
            self.chain.suspend()
            time.sleep(12)
            self.chain.resume()
        elif kind == "disk full":
            flag = self.place / f"{pick}.full"
            flag.touch()
            time.sleep(4)
            flag.unlink()
        elif kind == "kill a validator":
            self.validators[pick].send_signal(signal.SIGKILL)
            self.validators[pick].wait()
            self.start_validator(pick)
        elif kind == "kill the service":
            self.service.kill()
            self.service.wait(10)
            time.sleep(2)
            self.start_service()

    def watch(self):
        "Memory of each process."
        for name, process in self.validators.items():
            if process.poll() is None:
                self.memory.setdefault(f"{name}/{process.pid}", []).append(psutil.Process(process.pid).memory_info().rss)
        self.memory.setdefault(f"service/{self.service.pid}", []).append(self.service.memory_info().rss)

    def play(self):
        "Faults at random until every validator has played its rounds."
        until = self.began + self.scale.seconds
        while self.running():
            assert time.monotonic() < until, f"not done in {self.scale.seconds} s: {[(n, len(self.progress(n))) for n in VALIDATORS]}"
            self.watch()
            time.sleep(self.scale.pause * self.random.uniform(0.3, 1.7))
            if self.running() and sum(self.done.values()) < self.scale.most and self.played() < self.scale.rounds - self.scale.calm:
                self.fault(self.scale.faults[sum(self.done.values()) % len(self.scale.faults)])
        assert all(process.wait() == 0 for process in self.validators.values())

    def end(self):
        self.chain.resume()
        for process in [*self.miners.values(), *self.validators.values()]:
            process.kill()
            process.wait()
        stop_service(self.place / "service")


def check_scores(soak, name, store):
    "Every acknowledged round is there once, with the rewards that were acknowledged; every reward and average can be recomputed."
    told = [line for line in soak.progress(name) if "round" in line]
    assert store.sql("select round from rounds order by round")["round"].to_list() == list(range(1, soak.scale.rounds + 1))
    assert [line["round"] for line in told] == sorted({line["round"] for line in told}), "a round was acknowledged twice"
    rows = store.sql("select round, hotkey, reward, average from responses join rounds using (round) order by round, received_at, uid").rows()
    kept = {(number, hotkey): reward for number, hotkey, reward, _ in rows}
    for line in told:
        assert {h: r for (n, h), r in kept.items() if n == line["round"]} == line["rewards"]
    averages: dict[str, float] = {}
    for number, hotkey, reward, average in rows:
        assert rescore_response(store, number, hotkey).reward == reward
        averages[hotkey] = update_average(averages.get(hotkey, 0.0), reward)
        assert average == averages[hotkey]
    assert averages == store.averages()


def check_weights(store):
    "Each row set is the combination of the averages as they stood after its round, and the chain showed what was sent."
    shares = task_shares(0.05, 0.0)
    for number, in store.sql("select distinct round from weights").rows():
        rows = store.sql("select hotkey, uid, weight, sent, on_chain from weights where round = ?", number).to_dicts()
        then = dict(store.sql("""select hotkey, arg_max(average, round) from responses where round <= ? group by hotkey""", number).rows())
        meant = {h: w for h, w in combine({"video": then}, {"video": shares["video"]}).items() if w > 0}
        assert {row["hotkey"]: row["weight"] for row in rows if row["weight"]} == pytest.approx(meant)
        assert {row["uid"]: row["sent"] for row in rows if row["sent"]} == to_u16({row["uid"]: row["weight"] for row in rows})
        assert all(row["on_chain"] == row["sent"] for row in rows)


def agreement(vectors):
    "The least cosine between any two rows of weights."
    keys = sorted({k for v in vectors for k in v})
    rows = [np.array([v.get(k, 0.0) for k in keys]) for v in vectors]
    return min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for i, a in enumerate(rows) for b in rows[:i])


def soak_through(place, scale):
    with localnet_process(GOLDEN, place / "chain.json", block_seconds=0.25) as endpoint:
        soak = Soak(place, scale, endpoint)
        try:
            soak.begin()
            soak.play()
            with Chain(endpoint, 24) as chain:
                graph = chain.metagraph()
                shown = [chain.weights(graph.by_hotkey(open_wallet(n, "default", place / "wallets").hotkey.ss58_address).uid) for n in VALIDATORS]
        finally:
            soak.end()
    finals = []
    for name in VALIDATORS:
        with Store(place / name) as store:
            check_scores(soak, name, store)
            check_weights(store)
            assert not store.not_uploaded(), "the service was not told everything"
            finals.append({h: max(0.0, s) for h, s in store.averages().items()})
    return soak, finals, shown


def report(soak, finals, shown):
    "What a reader of the log wants to know."
    growth = {name: [round(rss / 2**20) for rss in (line[0], line[len(line) // 2], line[-1])] for name, line in soak.memory.items() if len(line) > 4}
    print(f"\n{soak.scale.rounds} rounds × {len(VALIDATORS)} validators, {soak.scale.miners} miners, {time.monotonic() - soak.began:.0f} s, faults {soak.done}")
    print(f"least cosine of averages {agreement(finals):.4f}, of weights on chain {agreement(shown):.4f}; MiB at start, middle, end: {growth}")
    for name in VALIDATORS:
        errors = [line["error"][:90] for line in soak.progress(name) if "error" in line]
        print(name, len(errors), "failed attempts:", sorted(set(errors))[:6])


@pytest.fixture(autouse=True)
def toys_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def test_a_short_soak(tmp_path):
    report(*soak_through(tmp_path, SHORT))


@pytest.mark.full
def test_two_hundred_rounds_and_every_fault(tmp_path):
    soak, finals, shown = soak_through(tmp_path, LONG)
    report(soak, finals, shown)
    assert agreement(finals) >= 0.95 and agreement(shown) >= 0.95
    assert set(soak.done) == set(LONG.faults)
    for name, line in soak.memory.items():
        if len(line) >= 12:  # after the first third everything is loaded: what grows from there would grow for ever
            later = line[len(line) // 3:]
            assert max(later) < 1.25 * later[0] + 30 * 2**20, f"{name} grows: {[round(rss / 2**20) for rss in later]} MiB"
