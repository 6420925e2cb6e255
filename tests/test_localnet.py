"""The local chain's blocks: on demand, late to be final, forked away; and a node that cannot be reached."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import bittensor as bt
import pytest
from websockets.sync.client import connect

from omega_lab.chain import Chain, ChainDown, dev_wallet
from omega_lab.chain.hand import main_chain_fund, main_chain_register, main_chain_show, main_chain_stake
from omega_lab.chain.ledger import Ledger, StateDiscarded
from omega_lab.chain.localnet import LocalNet, run_localnet
from omega_lab.chain.node import hash_of
from omega_lab.chain.rules import Genesis, account_of, free_rao
from omega_lab.chain.scenarios import Scenario, pay
from omega_lab.chain.state import load_golden
from omega_lab.samples import golden_path

TAO = 10**9
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def golden_file():
    return golden_path(ROOT / "data")


class Rpc:
    """Plain JSON-RPC, so that nothing of a client's memory stands between a test and the node."""

    def __init__(self, endpoint: str):
        self.socket, self.pushed = connect(endpoint), []

    def __call__(self, method, *params):
        self.socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
        while "id" not in (frame := json.loads(self.socket.recv(timeout=5))):
            self.pushed.append(frame["params"])
        return frame["result"]

    def heard(self, subscription):
        """All that was pushed to a subscription so far; a question brings up what is under way."""
        self("system_chain")
        return [push["result"] for push in self.pushed if push["subscription"] == subscription]

    def number(self, block_hash):
        return int(self("chain_getHeader", block_hash)["number"], 16)


@pytest.fixture
def scene(golden_file):
    with Scenario(golden_file, finality_lag=2) as scene:
        yield scene


@pytest.fixture
def rpc(scene):
    rpc = Rpc(scene.net.endpoint)
    yield rpc
    rpc.socket.close()


def test_blocks_come_on_demand_and_become_final_late(scene, rpc):
    new, final = rpc("chain_subscribeNewHeads"), rpc("chain_subscribeFinalizedHeads")
    for expected in (0, 0, 1, 2, 3):
        scene.net.produce()
        assert rpc.number(rpc("chain_getFinalizedHead")) == expected == scene.ledger.final.number
    assert [int(header["number"], 16) for header in rpc.heard(new)] == [1, 2, 3, 4, 5]
    assert [int(header["number"], 16) for header in rpc.heard(final)] == [1, 2, 3]
    time.sleep(0.3)
    assert scene.ledger.head.number == 5 == scene.chain.block()


def test_produce_is_safe_from_many_threads(scene):
    threads = [threading.Thread(target=lambda: scene.net.produce(5)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blocks = scene.ledger.blocks
    assert [block.number for block in blocks] == list(range(41))
    assert all(block.header["parentHash"] == before.hash for before, block in zip(blocks, blocks[1:], strict=False))


def test_a_fork_replaces_blocks_and_forgets_none(scene, rpc):
    new = rpc("chain_subscribeNewHeads")
    first, second = scene.run("Alice", pay("Bob", TAO)), scene.run("Alice", pay("Carol", TAO))
    dropped = scene.send("Alice", pay("Dave", TAO))
    waiting = scene.send("Alice", pay("Dave", 2 * TAO))
    change = scene.net.fork(0, drop=[dropped])
    assert change.abandoned == (first, second) and [block.number for block in change.branch] == [1, 2, 3]
    assert set(change.lost) == {dropped, waiting}  # the second built on the first's nonce
    for block in (first, second):
        assert rpc("chain_getBlock", block.hash)["block"]["extrinsics"] == list(block.extrinsics)
        assert rpc("chain_getHeader", block.hash)["number"] == hex(block.number)
        assert rpc("chain_getBlockHash", block.number) != block.hash
    assert rpc("chain_getHead") == change.branch[-1].hash
    assert [scene.balance(name) for name in ("Bob", "Carol", "Dave")] == [TAO, TAO, 0]
    assert free_rao(scene.ledger.at(first.hash), account_of("//Carol")) == 0  # its own state is still known
    assert [int(header["number"], 16) for header in rpc.heard(new)] == [1, 2, 1, 2, 3]
    scene.run("Alice", pay("Dave", TAO))  # the account goes on where the branch left it
    assert scene.balance("Dave") == TAO


def test_final_blocks_stay(scene):
    scene.run("Alice", pay("Bob", TAO))
    scene.net.produce(3)
    assert scene.ledger.final.number == 2
    before = list(scene.ledger.blocks)
    for ancestor in (0, 1, 4, 99, -1):
        with pytest.raises(ValueError, match="cannot fork above"):
            scene.net.fork(ancestor)
    assert scene.ledger.blocks == before
    scene.net.fork(2)
    with pytest.raises(ValueError, match="cannot become final"):
        scene.net.finalise(1)
    assert scene.ledger.blocks[:3] == before[:3] and scene.ledger.final.number == 3


def test_finality_by_hand(golden_file):
    with Scenario(golden_file, finality_lag=None) as scene:
        scene.net.produce(20)
        assert scene.ledger.final.number == 0
        assert scene.net.finalise(7).number == 7 and scene.settle().number == 20


def test_a_reader_of_the_sdk_sees_finality(scene):
    scene.net.produce(5)
    assert scene.chain.link.ask("finality", lambda client: client.finalized_block()) == 3

    async def next_final(client):
        async for header in client.blocks(finalized=True):
            return header.number

    timer = threading.Timer(0.2, scene.net.produce)
    timer.start()
    assert scene.chain.link.ask("the next final block", next_final) == 4
    timer.join()


def test_who_waits_for_finality_waits_for_the_blocks_it_takes(golden_file):
    with LocalNet(golden_file, block_seconds=0.1, finality_lag=3) as net, Chain(net.endpoint, 24, submit_timeout=20) as chain:
        receipt = chain.transfer(dev_wallet("//Alice"), account_of("//Bob"), TAO)
        assert receipt.block + 3 <= net.ledger.head.number and net.ledger.final.number >= receipt.block


@pytest.mark.parametrize("keep", [True, False])
def test_who_watches_an_extrinsic_hears_of_the_fork(scene, rpc, keep):
    raw = scene.run("Alice", pay("Bob", TAO)).extrinsics[1]
    scene.net.fork(0, drop=[hash_of(raw)])  # as if it had never been sent
    watch = rpc("author_submitAndWatchExtrinsic", raw)
    first = scene.ledger.head
    change = scene.net.fork(first.number - 1, drop=() if keep else [hash_of(raw)])
    scene.net.produce(3)
    again = [{"inBlock": change.branch[0].hash}, {"finalized": change.branch[0].hash}]
    assert rpc.heard(watch) == ["ready", {"inBlock": first.hash}, {"retracted": first.hash}, *(again if keep else ["dropped"])]


def test_the_sdk_is_told_that_its_extrinsic_was_retracted(scene):
    def fork_soon():
        while scene.ledger.head.number == 0:
            time.sleep(0.01)
        scene.net.fork(0)

    thread = threading.Thread(target=fork_soon)
    thread.start()
    outcome = scene.chain.link.ask("a transfer", lambda client: client.submit_call(pay("Bob", TAO), dev_wallet("//Alice")))
    thread.join()
    assert not outcome.success and "retracted" in outcome.message


def test_state_is_kept_for_as_many_blocks_as_wanted(golden_file):
    ledger = Ledger(load_golden(golden_file), clock=lambda: 1.7e9, finality_lag=2, kept_states=3)
    old = ledger.produce()
    forked = ledger.fork(0).abandoned[0]
    ledger.produce()
    ledger.produce()
    for block in (old, forked, ledger.blocks[0]):
        with pytest.raises(StateDiscarded):
            ledger.at(block.hash)
    assert ledger.at(ledger.blocks[2].hash).get("System", "Number") == 2 and len(ledger._states) == 3


def test_bad_options_say_so(golden_file):
    for options in ({"finality_lag": -1}, {"kept_states": 0}, {"block_seconds": 0}, {"block_seconds": -1}):
        with pytest.raises(ValueError):
            LocalNet(golden_file, **options)


def test_the_demo_s_chain_is_final_at_once(golden_file):
    with LocalNet(golden_file, block_seconds=60) as net, Chain(net.endpoint, 24) as chain:
        receipt = chain.transfer(dev_wallet("//Alice"), account_of("//Bob"), TAO)
        assert receipt.block == 1 == net.ledger.head.number == net.ledger.final.number


def test_troubles_end_and_nothing_is_lost(scene):
    with Chain(scene.net.endpoint, 24, timeout=0.5) as chain:
        for trouble in (scene.net.hanging, scene.net.down):
            assert chain.block() == scene.ledger.head.number
            with trouble():
                scene.net.produce(2)  # the chain goes on
                for _ in range(2):
                    with pytest.raises(ChainDown):
                        chain.block()
            assert chain.block() == scene.ledger.head.number
        with connect(scene.net.endpoint) as client:
            scene.net.drop_connections()
            with pytest.raises(Exception, match="close|reset|no close frame"):
                client.recv(timeout=2)
        assert chain.balance_rao(account_of("//Alice")) == 1_000_000 * TAO


def test_neurons_by_the_dozen(golden_file):
    with Scenario(golden_file, finality_lag=0, genesis=Genesis(max_uids=24)) as scene:
        wallets = scene.neurons(24, stake_rao=3 * TAO)
        graph = scene.chain.metagraph()
        assert [neuron.hotkey for neuron in graph.neurons] == [wallet.hotkey.ss58_address for wallet in wallets]
        assert {(neuron.stake_rao, neuron.coldkey == wallet.coldkey.ss58_address) for neuron, wallet in zip(graph.neurons, wallets, strict=True)} \
            == {(3 * TAO, True)}


def test_a_scene_on_a_chain_that_runs_by_itself(golden_file):
    with Scenario(golden_file, finality_lag=1, block_seconds=0.02) as scene:
        wallets = scene.neurons(4, stake_rao=TAO)
        sent = [scene.send("Alice", pay("Bob", TAO)) for _ in range(20)]
        scene.settle()
        included = [hash_of(raw) for block in scene.ledger.blocks for raw in block.extrinsics]
        assert [included.count(one) for one in sent] == [1] * 20 and scene.balance("Bob") == 20 * TAO
        assert len(scene.chain.metagraph().neurons) == len(wallets)


def test_a_call_the_model_has_no_rule_for_fails_and_says_so(scene):
    block = scene.run("Alice", bt.calls.System.remark(remark="0x00"))
    events = scene.ledger.at(block.hash).get("System", "Events")
    assert [event["attributes"]["dispatch_error"] for event in events if event["event_id"] == "ExtrinsicFailed"] == ["CannotLookup"]


def test_the_program_with_money_and_finality(golden_file):
    command = [sys.executable, "-m", "omega_lab.chain.localnet", "--golden", str(golden_file), "--block-seconds", "0.1", "--finality-lag", "5",
               "--netuid", "7", "--fund", "//Bob=1.5", "--fund", f"{account_of('//Carol')}=0.000001"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        endpoint = process.stdout.readline().split()[3].rstrip(",")
        with Chain(endpoint, 7) as chain:
            assert [chain.balance_rao(account_of(f"//{name}")) for name in ("Alice", "Bob", "Carol")] == [1_000_000 * TAO, 1_500_000_000, 1000]
            assert chain.metagraph().neurons == ()
            block = chain.wait_for_block(7)
            assert 0 < block - chain.link.ask("finality", lambda client: client.finalized_block()) <= 6
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("fund", [{"Bob": TAO}, {"//Bob": 1}, {account_of("//Bob")[:-1]: TAO}, {"//Bob": 2**63}])
def test_money_for_nobody(golden_file, fund):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(ValueError):
            run_localnet(golden_file, fund=fund)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_subnet_by_hand(golden_file, tmp_path, capsys):
    with LocalNet(golden_file, block_seconds=None) as net:
        def said(main, *arguments, **options) -> tuple[int, str]:
            return main(net.endpoint, *arguments, **options), "".join(capsys.readouterr())

        wallet = {"name": "lab", "path": str(tmp_path)}
        assert said(main_chain_register, hotkey="miner", **wallet)[0] == 1  # no such wallet yet
        code, text = said(main_chain_register, hotkey="miner", create=True, fund="10", **wallet)
        assert code == 0 and text.startswith("uid 0 on subnet 24")
        assert said(main_chain_register, hotkey="validator", create=True, **wallet)[1].startswith("uid 1")
        code, text = said(main_chain_stake, "2.5", hotkey="validator", **wallet)
        assert code == 0 and text.startswith("uid 1 has 2.5 TAO of stake and may validate; miners may want more: [miner] min_stake_tao is 10240")
        assert said(main_chain_fund, "//Bob", "0.000001")[1] == f"{account_of('//Bob')} has 0.000001 TAO\n"
        shown = said(main_chain_show)[1].splitlines()
        assert shown[0].endswith("subnet 24, 2 neurons") and "2.5 TAO  permit" in shown[2]
        for code, word, main, *arguments in [(64, "'much'", main_chain_fund, "//Bob", "much"), (64, "receiver 'Bob'", main_chain_fund, "Bob", "1"),
                                             (64, "0.0000000001", main_chain_fund, "//Bob", "0.0000000001"), (64, "'-1'", main_chain_stake, "-1"),
                                             (1, "no coldkey", main_chain_stake, "1")]:
            options = {} if main is main_chain_fund else {"path": str(tmp_path / "none")}
            got, text = said(main, *arguments, **options)
            assert got == code and word in text, text
    assert main_chain_show(net.endpoint) == 1 and "not reachable" in capsys.readouterr().err
    assert main_chain_stake("ws://192.0.2.7", "1", **wallet) == 1 and "--yes" in capsys.readouterr().err


def test_who_is_connected_hears_at_once_that_the_node_has_gone(golden_file):
    "Left open, a socket of a node that ended would keep its client waiting for the whole of its patience."
    slow = []
    for _ in range(6):
        net = LocalNet(golden_file, block_seconds=60).start()
        sockets = [connect(net.endpoint) for _ in range(3)]
        net.stop()
        began = time.monotonic()
        for socket in sockets:
            with pytest.raises(Exception):  # noqa: B017 - closed in whichever way
                socket.recv(timeout=5)
            socket.close()
        slow.append(time.monotonic() - began)
    assert max(slow) < 3, slow
