"""The chain room against the real SDK: a local node in a thread or a process, never a mock."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import bittensor as bt
import httpx
import psutil
import pytest
from fastapi import FastAPI, HTTPException, Request
from websockets.sync.client import connect

from omega_lab.chain import (
    Chain,
    ChainDown,
    ChainError,
    Gate,
    Metagraph,
    Neuron,
    NonceStore,
    Refused,
    compare,
    dev_wallet,
    open_wallet,
    revealed,
    sign_request,
    to_u16,
)
from omega_lab.chain.ledger import KEPT_STATES, InvalidTransaction, Ledger, StateDiscarded
from omega_lab.chain.localnet import LocalNet, localnet_process
from omega_lab.chain.rules import Genesis, account_of, free_rao
from omega_lab.chain.state import Storage, from_hex, load_golden
from omega_lab.chain.views import FEE_RAO
from omega_lab.samples import golden_path

TAO = 10**9
NETUID = 24
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def golden_file():
    return golden_path(ROOT / "data")


@pytest.fixture(scope="module")
def golden(golden_file):
    return load_golden(golden_file)


@pytest.fixture
def start(golden_file):
    """Start local chains with a client each; all stop at the end of the test."""
    opened = []

    def go(block_seconds: float = 0.1, timeout: float = 10, **genesis) -> Chain:
        net = LocalNet(golden_file, block_seconds=block_seconds, genesis=Genesis(**genesis)).start()
        opened.append((net, chain := Chain(net.endpoint, NETUID, timeout=timeout, submit_timeout=20)))
        return chain

    yield go
    for net, chain in opened:
        chain.close()
        net.stop()


def neurons(chain: Chain, *stakes: int) -> list:
    """One registered neuron per stake (rao), all owned by Alice."""
    wallets = [dev_wallet("//Alice", f"n{i}") for i in range(len(stakes))]
    for wallet, stake in zip(wallets, stakes, strict=True):
        chain.register(wallet)
        if stake:
            chain.add_stake(wallet, stake)
    return wallets


def test_the_recorded_block_decodes(golden):
    storage, recorded = Storage(golden), golden["block"]
    decoded = [storage.runtime.decode_extrinsic(from_hex(x)) for x in recorded["raw"]["block"]["extrinsics"]]
    plain = json.loads(json.dumps(decoded))
    assert [x["call"]["call_function"] for x in plain] == ["set", "announce_next_key", "transfer_keep_alive"]
    assert plain[2] == recorded["decoded_extrinsics"][2]
    for case in golden["storage_values"]:
        entry = storage.runtime.storage_entry(case["pallet"], case["storage_function"])
        if case["raw_hex"]:
            value = storage.runtime.decode(entry.value_type, from_hex(case["raw_hex"]))
            assert json.loads(json.dumps(value)) == case["decoded"]


def test_a_whole_life_in_another_process_with_wallets_on_disk(golden_file, tmp_path, capfd):
    miner, validator = (open_wallet("lab", name, tmp_path, create=True) for name in ("miner", "validator"))
    # blocks come with the extrinsics here; few by time, so that no epoch pays anybody in between
    with localnet_process(golden_file, tmp_path / "ready.json", block_seconds=2) as endpoint, Chain(endpoint, NETUID) as chain:
        assert chain.metagraph().neurons == ()
        chain.transfer(dev_wallet("//Alice"), miner.coldkeypub.ss58_address, 1000 * TAO)
        assert [chain.register(miner), chain.register(validator), chain.register(miner)] == [0, 1, 0]
        before = chain.balance_rao(miner.coldkeypub.ss58_address)
        receipt = chain.add_stake(validator, 100 * TAO)
        assert before - chain.balance_rao(miner.coldkeypub.ss58_address) == 100 * TAO + receipt.fee_rao
        assert chain.publish_endpoint(miner, "127.0.0.1", 8091).block > receipt.block
        assert chain.publish_endpoint(miner, "127.0.0.1", 8091) is None
        result = chain.set_weights(validator, {0: 0.9, 1: 0.3})
        assert result.sent == to_u16({0: 0.9, 1: 0.3}) == chain.weights(1) and not result.sealed
        graph = chain.metagraph()
        one, two = graph.neurons
        assert (one.url, one.stake_rao, one.validator_permit) == ("http://127.0.0.1:8091", 0, False)
        assert (two.url, two.stake_rao, two.validator_permit) == (None, 100 * TAO, True)
        assert two.last_update == result.block and graph.by_hotkey(one.hotkey) is one and graph.by_hotkey("5F") is None
        assert one.incentive == 1.0  # the validator's weight on itself does not count
        assert chain.wait_for_block(timeout=10) > graph.block
    secrets = [json.loads(path.read_text()).get("secretPhrase") for path in (tmp_path / "lab" / "hotkeys").iterdir() if path.suffix != ".txt"]
    shown = "".join(capfd.readouterr())
    assert all(secrets) and not any(secret in shown for secret in secrets)


@pytest.mark.parametrize(("genesis", "weights", "name"), [
    ({"min_allowed_weights": 3}, {1: 1.0}, "invalid_argument"),
    ({"weights_version": 3}, {0: 1.0, 1: 1.0}, "IncorrectWeightVersionKey"),
    ({"stake_threshold_rao": 1000 * TAO}, {0: 1.0, 1: 1.0}, "NotEnoughStakeToSetWeights"),
    ({"max_validators": 1}, {0: 1.0, 1: 1.0}, "NeuronNoValidatorPermit"),
    ({}, {0: 1.0, 7: 1.0}, "UidVecContainInvalidOne"),
])
def test_weights_the_chain_refuses(start, genesis, weights, name):
    chain = start(**genesis)
    wallet = neurons(chain, 10 * TAO, 20 * TAO)[0]
    chain.wait_for_block()
    with pytest.raises(ChainError) as refused:
        chain.set_weights(wallet, weights)
    assert refused.value.name == name and not isinstance(refused.value, ChainDown)
    assert chain.weights(0) == {}


def test_the_rate_limit_and_its_end(start):
    chain = start(weights_rate_limit=6)
    wallet = neurons(chain, TAO, 0)[0]
    chain.wait_for_block(chain.metagraph().neurons[0].last_update + 6)
    first = chain.set_weights(wallet, {0: 1, 1: 3})
    with pytest.raises(ChainError, match="Retry in"):
        chain.set_weights(wallet, {0: 1})
    chain.wait_for_block(first.block + 6)
    assert chain.set_weights(wallet, {0: 1, 1: 1}).block >= first.block + 6


def test_largest_weight_is_cut_to_the_limit(start):
    chain = start(max_weights_limit=40_000)
    wallet = neurons(chain, TAO, 0, 0)[0]
    chain.wait_for_block()
    sent = chain.set_weights(wallet, {0: 0.9, 1: 0.1}).sent
    assert sent == chain.weights(0) and max(sent.values()) / sum(sent.values()) <= 40_000 / 65_535 + 1e-6
    assert not compare({0: 0.9, 1: 0.1}, sent).agrees


def test_timelocked_weights_open_after_the_reveal_period(start):
    chain = start(commit_reveal=True, tempo=10, reveal_period=2)
    wallet = neurons(chain, TAO, 0)[0]
    chain.wait_for_block()
    result = chain.set_weights(wallet, {0: 1, 1: 1})
    assert result.sealed and chain.weights(0) == {} and chain.sealed_commits(wallet.hotkey.ss58_address) == (result.block,)
    assert revealed(chain, wallet, result) is None
    chain.wait_for_block((result.block // 10 + 3) * 10 + 1)
    assert revealed(chain, wallet, result).agrees and chain.weights(0) == result.sent
    assert chain.metagraph().neurons[0].last_update == result.block


def test_what_the_sdk_seals_for_a_round_to_come_stays_sealed(start):
    chain = start(commit_reveal=True, tempo=5)
    wallet = neurons(chain, TAO, 0)[0]
    chain.wait_for_block()
    chain.link.ask("the SDK's own way", lambda c: c.execute(bt.SetWeights(netuid=NETUID, weights={0: 1, 1: 1}), wallet), 20)
    chain.wait_for_block(chain.block() + 12)
    assert chain.weights(0) == {} and len(chain.sealed_commits(wallet.hotkey.ss58_address)) == 1


def test_a_full_subnet_gives_the_worst_place_to_a_newcomer(start):
    chain = start(max_uids=3, immunity_period=1, weights_rate_limit=0)
    first, second, _ = neurons(chain, TAO, 0, 0)
    chain.publish_endpoint(second, "127.0.0.1", 9)
    chain.set_weights(first, {0: 1, 2: 1})
    chain.wait_for_block()
    newcomer = dev_wallet("//Alice", "newcomer")
    assert chain.register(newcomer) == 1 and chain.uid(second.hotkey.ss58_address) is None
    place = chain.metagraph().neurons[1]
    assert (place.hotkey, place.url, place.stake_rao, place.incentive) == (newcomer.hotkey.ss58_address, None, 0, 0)


def test_immune_neurons_stay(start):
    chain = start(max_uids=1)
    neurons(chain, 0)
    with pytest.raises(ChainError) as refused:
        chain.register(dev_wallet("//Alice", "late"))
    assert refused.value.name == "NoNeuronIdAvailable"


def test_money_is_exact_with_many_senders(start):
    chain, alice = start(), dev_wallet("//Alice")
    clients = [chain, chain, Chain(chain.endpoint, NETUID), Chain(chain.endpoint, NETUID)]
    receivers = [account_of(f"//Receiver{i}") for i in range(len(clients))]
    failures, before, fees = [], chain.balance_rao(account_of("//Alice")), []

    def pay(client, receiver):
        try:
            fees.extend(client.transfer(alice, receiver, TAO + 1).fee_rao for _ in range(4))
        except ChainError as error:
            failures.append(error)

    threads = [threading.Thread(target=pay, args=pair) for pair in zip(clients, receivers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients[2:]:
        client.close()
    assert failures == [] and [chain.balance_rao(receiver) for receiver in receivers] == [4 * (TAO + 1)] * 4
    assert before - chain.balance_rao(account_of("//Alice")) == 16 * (TAO + 1) + sum(fees)


def test_an_interrupted_batch_keeps_what_went_before(start):
    chain, alice, bob = start(), dev_wallet("//Alice"), account_of("//Bob")

    async def batch(client, kind):
        calls = [await client.compose(bt.calls.Balances.transfer_keep_alive(dest=bob, value=rao)) for rao in (TAO, 10**18)]
        return await client.submit_call(getattr(bt.calls.Utility, kind)(calls=calls), alice)

    outcome = chain.link.ask("a batch", lambda client: batch(client, "batch"), 20)
    assert not outcome.success and chain.balance_rao(bob) == TAO  # the SDK calls it failed; the money moved
    outcome = chain.link.ask("a batch", lambda client: batch(client, "batch_all"), 20)
    assert not outcome.success and chain.balance_rao(bob) == TAO
    events = chain.link.ask("events", lambda client: client.query(("System", "Events"), [], block=int(outcome.extrinsic_id.split("-")[0])))
    assert [e["event_id"] for e in events if e["extrinsic_idx"] == 1] == ["Withdraw", "TransactionFeePaid", "ExtrinsicFailed"]


def test_hotkey_calls_are_paid_by_the_coldkey(start):
    chain, alice = start(), account_of("//Alice")
    (wallet,) = neurons(chain, TAO)
    before = chain.balance_rao(alice)
    assert chain.balance_rao(wallet.hotkey.ss58_address) == 0
    chain.publish_endpoint(wallet, "127.0.0.1", 8091)
    assert before - chain.balance_rao(alice) == FEE_RAO


def test_the_same_extrinsic_twice_and_on_another_chain(golden):
    ledgers = [Ledger(golden, clock=lambda: 1.7e9), Ledger(golden, Genesis(tempo=7), clock=lambda: 1.7e9)]
    key, runtime = dev_wallet("//Alice").coldkey, ledgers[0].storage.runtime
    call = bytes(runtime.compose_call("Balances", "transfer_keep_alive", {"dest": account_of("//Bob"), "value": TAO}))
    fields = {"era": "00", "nonce": 0, "tip": 0, "tip_asset_id": None}
    genesis = from_hex(ledgers[0].blocks[0].hash)
    payload = runtime.signature_payload(call, **fields, genesis_hash=genesis, era_block_hash=genesis)
    raw = bytes(runtime.encode_signed_extrinsic(call, public_key=bytes(key.public_key), signature=key.sign(bytes(payload)),
                                                signature_version=1, **fields)[0])
    with pytest.raises(InvalidTransaction, match="bad signature"):
        ledgers[1].submit(raw)
    ledgers[0].submit(raw)
    ledgers[0].produce()
    with pytest.raises(InvalidTransaction, match="outdated"):
        ledgers[0].submit(raw)
    assert free_rao(ledgers[0].storage, account_of("//Bob")) == TAO


def test_old_state_is_dropped_and_old_signatures_still_hold(golden, start):
    ledger = Ledger(golden, clock=lambda: 1.7e9)
    for _ in range(KEPT_STATES + 1):
        ledger.produce()
    with pytest.raises(StateDiscarded):
        ledger.at(ledger.blocks[1].hash)
    assert ledger.at(ledger.blocks[2].hash).get("System", "Number") == 2
    assert len({block.hash for block in ledger.blocks}) == KEPT_STATES + 2
    chain = start(block_seconds=0.004)  # eras are 128 blocks long: pass several
    chain.wait_for_block(300)
    chain.transfer(dev_wallet("//Alice"), account_of("//Bob"), TAO)


def test_a_node_that_dies_and_one_that_hangs(golden_file, tmp_path):
    ready = tmp_path / "ready.json"
    with localnet_process(golden_file, ready) as endpoint, Chain(endpoint, NETUID, timeout=1) as chain:
        assert chain.block() >= 0
        process = json.loads(ready.read_text())["pid"]
        os.kill(process, signal.SIGSTOP)
        while psutil.Process(process).status() != psutil.STATUS_STOPPED:  # the signal is on its way; an answer may be quicker
            time.sleep(0.01)
        with pytest.raises(ChainDown, match="did not answer in time"):
            chain.block()
        os.kill(process, signal.SIGCONT)
        assert chain.block() >= 0  # connected anew
        os.kill(process, signal.SIGKILL)
        started = time.monotonic()
        for call in (chain.block, chain.metagraph, lambda: chain.set_weights(dev_wallet("//Alice"), {0: 1})):
            with pytest.raises(ChainDown):
                call()
        assert time.monotonic() - started < 5


def test_clients_that_send_rubbish_do_not_harm_the_node(golden_file):
    with LocalNet(golden_file, block_seconds=5) as net, connect(net.endpoint) as client:
        def ask(text):
            client.send(text)
            return json.loads(client.recv())

        for text in ("", "{}", "[]x", '{"method": 1}', "[1]", "null", '"x"'):
            assert ask(text)["error"]["code"] == -32700
        bad = [("chain_getHeader", [{}]), ("state_getStorage", [7]), ("state_getStorage", ["0x", "0x99"]), ("state_call", ["x"]),
               ("chain_getBlockHash", ["0x1"]), ("author_submitExtrinsic", ["zz"]), ("author_submitAndWatchExtrinsic", []),
               ("state_getKeysPaged", ["0x", -1, None, None, 5]), ("account_nextIndex", ["nobody"]), ("chain_getBlock", [1, 2, 3])]
        for method, params in bad:
            reply = ask(json.dumps({"jsonrpc": "2.0", "id": 4, "method": method, "params": params}))
            assert reply["id"] == 4 and ("error" in reply or reply["result"] is None), (method, reply)
        assert ask('[{"id": 1, "method": "system_chain"}, {"id": 2, "method": "chain_getHead"}]')[1]["id"] == 2


def test_the_program_says_what_is_wrong_and_cleans_up(golden_file, tmp_path):
    def run(*options):
        command = [sys.executable, "-m", "omega_lab.chain.localnet", "--ready", str(tmp_path / "r.json"), *map(str, options)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    with LocalNet(golden_file) as net:
        taken = run("--golden", golden_file, "--port", net.port)
        absent = run("--golden", tmp_path / "nothing.json")
        good = run("--golden", golden_file)
        assert "address already in use" in taken.communicate(timeout=30)[1] and taken.returncode == 2
        assert "is missing" in absent.communicate(timeout=30)[1] and absent.returncode == 2
    while not (tmp_path / "r.json").exists() and good.poll() is None:
        time.sleep(0.05)
    good.send_signal(signal.SIGTERM)
    good.communicate(timeout=10)
    assert good.returncode == 0 and not list(tmp_path.iterdir())


def test_keys_that_need_a_password_never_ask_for_it(start, tmp_path, monkeypatch):
    monkeypatch.delenv("BT_WALLET_PASSWORD", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    wallet = bt.Wallet(name="lab", hotkey="plain", path=str(tmp_path))
    wallet.create_new_coldkey(coldkey_password="secret", suppress=True)
    open_wallet("lab", "plain", tmp_path, create=True)
    chain, fresh = start(), open_wallet("lab", "plain", tmp_path)
    chain.transfer(dev_wallet("//Alice"), fresh.coldkeypub.ss58_address, TAO)
    with pytest.raises(ChainError, match="BT_WALLET_PASSWORD"):
        chain.register(fresh)
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret")
    assert chain.register(fresh) == 0
    locked = bt.Wallet(name="lab", hotkey="locked", path=str(tmp_path))
    locked.create_new_hotkey(use_password=True, hotkey_password="secret", suppress=True)
    with pytest.raises(ChainError, match="is encrypted"):
        open_wallet("lab", "locked", tmp_path)


def test_what_only_a_local_chain_allows():
    far = Chain("ws://192.0.2.1:9944", NETUID)  # an address for documentation: nothing may be sent there
    with pytest.raises(ChainError, match="development key"):
        far.transfer(dev_wallet("//Alice"), account_of("//Bob"), 1)
    with pytest.raises(ChainError, match="cannot be reached from elsewhere"):
        far.publish_endpoint(dev_wallet("//Alice"), "127.0.0.1", 8091)
    assert far.link._client is None
    with pytest.raises(ValueError, match="-1"):
        far.set_weights(dev_wallet("//Alice"), {0: -1.0})


def test_no_such_subnet(golden_file):
    with LocalNet(golden_file) as net, Chain(net.endpoint, 99) as chain:
        for call in (chain.metagraph, chain.hyperparameters):
            with pytest.raises(ChainError, match="no subnet 99"):
                call()
        with pytest.raises(ChainError) as refused:
            chain.register(dev_wallet("//Alice"))
        assert refused.value.name == "SubnetNotExists"


@pytest.mark.parametrize("weights", [{}, {0: 0.0}, {0: float("inf")}, {0: float("nan")}, {0: 1.0, 1: -1e-9}, {-1: 1.0}, {65_536: 1.0}])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError):
        to_u16(weights)


def test_weights_at_the_ends_of_the_scale():
    assert to_u16({0: 5e-324}) == {0: 65_535}
    assert to_u16({0: 1.7e308, 1: 1.7e308}) == {0: 65_535, 1: 65_535}
    assert to_u16({1: 1 / 65_535, 0: 1.0, 2: 0.49 / 65_535}) == {0: 65_535, 1: 1}


def service(gate: Gate) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/videos")
    async def videos(request: Request):
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            return gate.check(request.method, target, request.headers, await request.body()).uid
        except Refused as refused:
            raise HTTPException(refused.status, refused.reason) from refused

    return app


def test_signed_http_from_the_metagraph_of_a_real_chain(start):
    chain = start()
    miner, validator = neurons(chain, 0, 7 * TAO)
    me = miner.hotkey.ss58_address
    gate = Gate(me, chain.metagraph, min_stake_rao=7 * TAO)

    async def post(wallet, target="http://miner/v1/videos?topic=ein%20Käfer&n=4", body=b'{"query": "\xc3\xa9"}', headers=None):
        headers = sign_request(wallet.hotkey, "POST", target, body, me) if headers is None else headers
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service(gate))) as client:
            answer = await client.post(target, content=body, headers=headers)
        return answer.status_code, answer.json()

    assert asyncio.run(post(validator)) == (200, 1)
    assert asyncio.run(post(miner)) == (403, {"detail": "hotkey has no validator permit"})
    assert asyncio.run(post(dev_wallet("//Stranger")))[0] == 403
    assert asyncio.run(post(validator, headers={}))[0] == 401
    once = sign_request(validator.hotkey, "POST", "/v1/videos", b"", me)
    assert asyncio.run(post(validator, "http://miner/v1/videos", b"", once)) == (200, 1)
    assert asyncio.run(post(validator, "http://miner/v1/videos", b"", once))[0] == 409


def test_every_refusal_has_its_own_reason():
    caller, me = dev_wallet("//Caller"), dev_wallet("//Me").hotkey.ss58_address
    neuron = Neuron(0, caller.hotkey.ss58_address, "", 5, True, None, 0, 0.0)
    gate = Gate(me, lambda: Metagraph(NETUID, 1, (neuron,)), per_minute=1)
    good = sign_request(caller.hotkey, "GET", "/x", b"", me)
    old = bt.http_auth.sign(caller.hotkey, method="GET", path="/x", receiver_ss58=me, nonce_ns=time.time_ns() - 20 * TAO)
    early = bt.http_auth.sign(caller.hotkey, method="GET", path="/x", receiver_ss58=me, nonce_ns=time.time_ns() + 20 * TAO)
    seen = {}

    def refusal(headers, path="/x"):
        with pytest.raises(Refused) as refused:
            gate.check("GET", path, headers, b"")
        seen[refused.value.reason] = refused.value.status

    refusal({})
    refusal(good | {"X-Bittensor-Signature": "0xzz"})
    refusal(good, "/y")
    refusal(old)
    refusal(early)
    refusal(sign_request(caller.hotkey, "GET", "/x", b"", caller.hotkey.ss58_address))
    refusal(sign_request(dev_wallet("//Other").hotkey, "GET", "/x", b"", me))
    assert gate.check("GET", "/x", {name.lower(): value for name, value in good.items()}, b"") == neuron
    refusal(good)
    refusal(sign_request(caller.hotkey, "GET", "/x", b"", me))
    assert sorted(seen.values()) == [401, 401, 401, 401, 403, 403, 409, 429] and len(seen) == 8


def test_a_gate_remembers_at_least_as_long_as_requests_are_fresh():
    with pytest.raises(ValueError, match="retention"):
        Gate("5F", lambda: Metagraph(NETUID, 1, ()), max_age=60, nonce_store=NonceStore(retention=60))


def test_nonces_are_shared_by_processes_and_forgotten_in_time(tmp_path):
    code = ("import sys; from omega_lab.chain import NonceStore; s = NonceStore(sys.argv[1]);"
            "print(sum(s.check_and_store('5F', n) for n in range(200)))")
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "n.db")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
               for _ in range(3)]
    assert sum(int(worker.communicate(timeout=60)[0]) for worker in workers) == 200  # each nonce was new to one only
    store = NonceStore(tmp_path / "n.db", retention=0.05)
    time.sleep(0.1)
    assert store.check_and_store("5F", 7)
