"""A chain whose nodes leave, hang and come back: reads go on, and nothing is done twice."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import bittensor as bt
import pytest

from omega_lab.chain import Chain, ChainDown, ChainError, dev_wallet, open_chain, set_weights_until_seen
from omega_lab.chain.link import Link
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.rules import Genesis, account_of, free_rao
from omega_lab.chain.state import Storage, from_hex, load_golden
from omega_lab.chain.submit import deliver, find, sign
from omega_lab.samples import golden_path
from omega_lab.settings import load_settings

TAO = 10**9
GOLDEN = golden_path(Path(__file__).parent.parent / "data")
BOB = account_of("//Bob")


class Way:
    """A way to a node: a port of its own that passes bytes on. It may be closed, or swallow what the node answers."""

    def __init__(self, endpoint: str):
        self.target = ("127.0.0.1", int(endpoint.rsplit(":", 1)[1]))
        self.swallowing = False
        self.sockets: list[socket.socket] = []
        self.port = 0
        self.open()

    def open(self) -> None:
        self.swallowing = False
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                node = socket.create_connection(self.target)
                self.sockets += [client, node]
                for source, sink in ((client, node), (node, client)):
                    threading.Thread(target=self._pass, args=(source, sink, source is node), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not (answers and self.swallowing):
                    sink.sendall(data)
            sink.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        for one in (self.listener, *self.sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.sockets.clear()


@pytest.fixture
def net():
    with LocalNet(GOLDEN, block_seconds=0.1, genesis=Genesis(emission_rao=0)) as net:
        yield net


@pytest.fixture
def ways(net):
    both = [Way(net.endpoint), Way(net.endpoint)]
    yield both
    for way in both:
        way.close()


def extrinsics_of(net: LocalNet, who: str) -> list[dict]:
    """What an account has on the chain."""
    runtime, found = net.ledger.storage.runtime, []
    for block in net.ledger.blocks:
        decoded = [runtime.decode_extrinsic(from_hex(x)) for x in block.extrinsics[1:]]
        found += [x for x in decoded if x["address"] == who]
    return found


def test_when_the_first_node_dies_the_second_goes_on(net, ways):
    first, second = ways
    with Chain(first.endpoint, 24, fallback=[second.endpoint], timeout=3, submit_timeout=10) as chain:
        chain.transfer(dev_wallet("//Alice"), BOB, TAO)
        assert chain.endpoint == first.endpoint
        first.close()
        started = time.monotonic()
        assert chain.block() > 0 and chain.endpoint == second.endpoint
        chain.transfer(dev_wallet("//Alice"), BOB, TAO)
        assert chain.register(dev_wallet("//Alice", "new")) == 0
        assert time.monotonic() - started < 10
        second.close()
        first.open()  # and back
        assert chain.balance_rao(BOB) == 2 * TAO and chain.endpoint == first.endpoint


def test_a_chain_that_is_down_names_every_endpoint(ways):
    for way in ways:
        way.close()
    with Chain(ways[0].endpoint, 24, fallback=[ways[1].endpoint], attempts=3, timeout=2) as chain, pytest.raises(ChainDown) as down:
        chain.metagraph()
    assert all(way.endpoint in str(down.value) for way in ways) and "3 attempts" in str(down.value)


def test_a_hung_node_is_left_within_the_timeout(net, ways):
    first, second = ways
    with Chain(first.endpoint, 24, fallback=[second.endpoint], timeout=1) as chain:
        chain.block()
        first.swallowing = True
        started = time.monotonic()
        assert chain.metagraph().neurons == () and chain.endpoint == second.endpoint
        assert 1 <= time.monotonic() - started < 4
    with Chain(net.endpoint, 24, timeout=0.5, attempts=2) as chain:
        chain.block()
        with net.hanging():
            started = time.monotonic()
            with pytest.raises(ChainDown, match="did not answer in time"):
                chain.block()
            assert time.monotonic() - started < 5


def test_a_node_that_restarts_is_found_again(net):
    with Chain(net.endpoint, 24, timeout=3, submit_timeout=10, attempts=6) as chain:
        chain.block()
        net.drop_connections()
        assert chain.block() >= 0
        with net.down():
            with pytest.raises(ChainDown), Chain(net.endpoint, 24, timeout=1, attempts=1) as hasty:
                hasty.block()
        assert chain.transfer(dev_wallet("//Alice"), BOB, TAO).block > 0
        reading = threading.Thread(target=lambda: seen.append(chain.block()))
        seen: list[int] = []
        with net.down():
            reading.start()
            time.sleep(0.6)  # the reader meets a closed door a few times
        reading.join(15)
        assert seen and seen[0] > 0
    assert free_rao(net.ledger.storage, BOB) == TAO


@pytest.mark.parametrize("stand_in", [True, False])
def test_a_payment_whose_answer_is_lost_is_made_once(net, ways, stand_in):
    first, second = ways
    fallback, alice = ([second.endpoint] if stand_in else []), dev_wallet("//Alice")
    link = Link(first.endpoint, timeout=5, fallback=fallback, attempts=4)
    signed = link.read("signing", lambda client: sign(client, alice, bt.Transfer(dest_ss58=BOB, amount_tao=bt.Balance.from_rao(TAO))))
    first.swallowing = True  # the node gets the payment, the payer hears nothing
    waking = threading.Timer(1.5, lambda: setattr(first, "swallowing", False))
    waking.start()
    result = deliver(link, "paying", signed, 1)
    waking.join()
    assert result.success and free_rao(net.ledger.storage, BOB) == TAO
    (once,) = extrinsics_of(net, alice.coldkeypub.ss58_address)
    assert once["nonce"] == signed.nonce
    link.close()


def test_a_payment_that_never_left_is_sent_by_the_stand_in(net, ways):
    first, second = ways
    link, alice = Link(first.endpoint, timeout=3, fallback=[second.endpoint]), dev_wallet("//Alice")
    signed = link.read("signing", lambda client: sign(client, alice, bt.Transfer(dest_ss58=BOB, amount_tao=bt.Balance.from_rao(TAO))))
    first.close()
    deliver(link, "paying", signed, 5)
    assert free_rao(net.ledger.storage, BOB) == TAO and len(extrinsics_of(net, alice.coldkeypub.ss58_address)) == 1
    link.close()


def test_a_payment_forked_away_is_not_taken_for_made():
    alice = dev_wallet("//Alice")
    with LocalNet(GOLDEN, block_seconds=None, finality_lag=2) as net:
        link = Link(net.endpoint, timeout=5)
        signed = link.read("signing", lambda client: sign(client, alice, bt.Transfer(dest_ss58=BOB, amount_tao=bt.Balance.from_rao(TAO))))
        link.ask("sending", lambda client: client.substrate.submit_signed(signed.extrinsic, signed.key, wait_for_finalization=False))
        block = net.ledger.head
        net.fork(block.number - 1, [signed.extrinsic.extrinsic_hash])
        assert free_rao(net.ledger.storage, BOB) == 0
        net.produce(4)
        assert link.read("looking", lambda client: find(client, signed)) is None
        link.close()


def test_who_is_down_for_good_does_not_know_and_says_so(net, ways):
    way = ways[0]
    link, alice = Link(way.endpoint, timeout=1, attempts=1), dev_wallet("//Alice")
    signed = link.read("signing", lambda client: sign(client, alice, bt.Transfer(dest_ss58=BOB, amount_tao=bt.Balance.from_rao(TAO))))
    way.swallowing = True
    with pytest.raises(ChainDown, match="looking whether it was done"):
        deliver(link, "paying", signed, 1)
    assert free_rao(net.ledger.storage, BOB) in (0, TAO)
    link.close()


def test_settings_open_the_chain_with_its_stand_ins(net, ways):
    for way in ways:
        way.close()
    values = {"network.endpoint": ways[0].endpoint, "network.fallback": f"{ways[1].endpoint}, {net.endpoint}", "network.timeout": 3}
    with open_chain(load_settings(values, environ={})) as chain:
        assert chain.block() >= 0 and chain.endpoint == net.endpoint and chain.netuid == 24


def test_weights_survive_a_chain_that_goes_away_for_a_while(net):
    with Chain(net.endpoint, 24, timeout=2, submit_timeout=5, attempts=1) as chain:
        for name, stake in (("v", TAO), ("m", 0)):
            wallet = dev_wallet("//Alice", name)
            chain.register(wallet)
            if stake:
                chain.add_stake(validator := wallet, stake)
        chain.wait_for_block()
        with net.down():
            report = set_weights_until_seen(chain, validator, {1: 1.0}, attempts=2)
            assert report.state == "down" and net.endpoint in report.detail
        with net.down():
            late: list = []
            setter = threading.Thread(target=lambda: late.append(set_weights_until_seen(chain, validator, {1: 1.0}, attempts=8)))
            setter.start()
            time.sleep(0.7)
        setter.join(30)
        assert late[0].state == "seen" and late[0].attempts > 1 and chain.weights(0) == {1: 65_535}
    assert len(extrinsics_of(net, validator.hotkey.ss58_address)) == 1


def test_weights_on_a_runtime_without_the_newer_entry(monkeypatch):
    monkeypatch.setattr("omega_lab.chain.state.add_epoch_consensus", lambda metadata: metadata)
    assert "SubnetEpochConsensus" not in repr(Storage(load_golden(GOLDEN)).runtime.metadata_ir())
    with LocalNet(GOLDEN, block_seconds=0.1) as net, Chain(net.endpoint, 24, submit_timeout=10) as chain:
        for name in ("v", "m"):
            chain.register(dev_wallet("//Alice", name))
        chain.add_stake(validator := dev_wallet("//Alice", "v"), TAO)
        chain.wait_for_block()
        with pytest.raises(ChainError, match="runtime may be another"):  # the SDK's own way
            chain.link.ask("setting weights", lambda c: c.execute(bt.SetWeights(netuid=24, weights={1: 1.0}), validator))
        assert set_weights_until_seen(chain, validator, {1: 1.0}).state == "seen" and chain.weights(0) == {1: 65_535}
