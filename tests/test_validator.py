"""Rounds side by side, a chain that goes away, two profiles: a validator among real servers with endless clips."""
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import TOPICS

from omega_lab.chain import Chain, dev_wallet, open_wallet
from omega_lab.chain.localnet import localnet_process
from omega_lab.scoring.video import update_average
from omega_lab.settings import load_settings
from omega_lab.validator import open_validator, profile_agreement, profile_weights, run_rounds, set_weights

TAO = 10**9
MINERS = [["good", 0.8, "", ""], ["fair", 0.55, "", ""], ["poor", 0.3, "", ""], ["liar", 0.3, "vectors", ""]]
GOLDEN = "data/chain/golden.json"


def enroll(endpoint, wallets, names, stake):
    "Wallets with money, places on the subnet, and stake for the validators."
    with Chain(endpoint, 24) as chain:
        for name in [*names, *stake]:
            wallet = open_wallet(name, "default", wallets, create=True)
            chain.transfer(dev_wallet("//Alice"), wallet.coldkeypub.ss58_address, 100 * TAO + stake.get(name, 0))
            chain.register(wallet)
            if name in stake:
                chain.add_stake(wallet, stake[name])


def start_miners(folder, endpoint, wallets, miners):
    "A process of toy miners; returns when they serve."
    folder.mkdir(parents=True, exist_ok=True)
    ready, config, log = folder / "ready", folder / "config.json", folder / "log"
    ready.unlink(missing_ok=True)
    config.write_text(json.dumps({"endpoint": endpoint, "wallets": str(wallets), "folder": str(folder), "ready": str(ready), "miners": miners}))
    with open(log, "ab") as out:
        process = subprocess.Popen([sys.executable, str(Path(__file__).parent / "toy_miners.py"), str(config)], stdout=out, stderr=out)
    until = time.monotonic() + 150
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
        time.sleep(0.05)
    return process


@pytest.fixture(scope="module")
def subnet(tmp_path_factory):
    "A chain in a process of its own, four toy miners, and a maker of validators."
    place = tmp_path_factory.mktemp("subnet")
    with localnet_process(GOLDEN, place / "chain.json", block_seconds=0.25) as endpoint:
        enroll(endpoint, place / "wallets", [name for name, *_ in MINERS], {"validator": 20_000 * TAO})
        miners = start_miners(place / "miners", endpoint, place / "wallets", MINERS)
        chain_pid = json.loads((place / "chain.json").read_text())["pid"]

        def make(state, **overrides):
            settings = {"network.endpoint": endpoint, "network.timeout": 3.0, "network.attempts": 1, "wallet.name": "validator",
                        "wallet.path": str(place / "wallets"), "encoder.name": "toy:ToyEncoder", "paths.data": str(place / "data"), "validator.num_videos": 4,
                        "validator.timeout": 10, "validator.margin": 1, "validator.weights_every": 1, "checks.policy": "always-one"}
            return open_validator(load_settings(settings | {k.replace("__", "."): v for k, v in overrides.items()}, environ={}), place / state)
        yield make, chain_pid
        miners.terminate()
        miners.wait(10)


def names_of(validator):
    return {open_wallet(name, "default", validator.settings.wallet.path).hotkey.ss58_address: name for name, *_ in MINERS}


def test_overlapping_rounds_are_kept_in_the_order_they_began(subnet):
    validator = subnet[0]("overlap", validator__concurrent_rounds=3, validator__download_slots=2)
    try:
        records = list(run_rounds(validator, TOPICS[:7]))
        assert [r.number for r in records] == list(range(1, 8)) and [r.query for r in records] == list(TOPICS[:7])
        assert any(later.started_at < earlier.ended_at for earlier, later in zip(records, records[1:])), "no two rounds overlapped"
        averages: dict[str, float] = {}
        for record in records:  # the averages are those of the rounds in their order
            for r in record.responses:
                averages[r.hotkey] = update_average(averages.get(r.hotkey, 0.0), r.verdict.reward)
        assert validator.store.averages() == averages
        names = names_of(validator)
        ranked = sorted(averages, key=averages.__getitem__, reverse=True)
        assert [names[h] for h in ranked] == ["good", "fair", "poor", "liar"]
        entered = validator.store.sql("select video_id, count(*) n from clips where corpus_row is not null group by all")
        assert entered["n"].max() == 1
    finally:
        validator.close()


def test_a_chain_that_is_down_stops_nothing_but_weights(subnet):
    import os

    make, chain_pid = subnet
    validator = make("down")
    try:
        list(run_rounds(validator, TOPICS[:1]))
        os.kill(chain_pid, signal.SIGSTOP)
        try:
            validator.metagraph.max_age = 0
            record, = run_rounds(validator, TOPICS[1:2])
            assert any(r.verdict.outcome == "scored" for r in record.responses)
            outcome = set_weights(validator)
            assert not outcome.done and outcome.detail and validator.metagraph.trouble
        finally:
            os.kill(chain_pid, signal.SIGCONT)
        until = time.monotonic() + 20
        while not (outcome := set_weights(validator)).done:
            assert time.monotonic() < until, outcome
            time.sleep(0.5)
    finally:
        validator.close()


def test_both_profiles_are_kept_and_one_counts(subnet):
    validator = subnet[0]("profiles", scoring__profile="sn24")
    try:
        list(run_rounds(validator, TOPICS[:3]))
        first = validator.store.sql("select outcome, rewards from responses where round = 1 and status = 'answered'")
        assert set(first["outcome"]) <= {"empty", "punished"}, "the network's empty index knows everything"
        assert any(json.loads(r)["lab"] > 0.1 for r in first["rewards"])
        assert validator.store.averages() == validator.store.profile_averages("sn24") != validator.store.profile_averages("lab")
        both = profile_weights(validator.store)
        assert both["lab"].sum() == pytest.approx(1) and 0 < profile_agreement(both) < 1
    finally:
        validator.close()
