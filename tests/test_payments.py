"""Payments on a local chain, through the real SDK: each case is accepted, or refused for a reason of its own."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import bittensor as bt
import pytest
from sqlalchemy.orm import Session

from omega_lab.chain import Chain
from omega_lab.chain.claims import AlreadyClaimed, Claim, claim, claimed_in, open_claims
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.payments import (
    Payment,
    PaymentRefused,
    PaymentUnknown,
    Question,
    Reason,
    Transfer,
    choose,
    main_verify_payment,
    transfers,
    verify_payment,
    why_not,
)
from omega_lab.chain.rules import Genesis, account_of
from omega_lab.chain.scenarios import Scenario, allow_proxy, as_proxy, batch, pay
from omega_lab.chain.state import Storage, from_hex, load_golden
from omega_lab.samples import golden_path

TAO = 10**9
TOO_MUCH = 10**18
ROOT = Path(__file__).parent.parent
ALICE, BOB, CAROL, DAVE, ERIN = (account_of(f"//{name}") for name in ("Alice", "Bob", "Carol", "Dave", "Erin"))
NEVER_SEEN = "0x" + "ab" * 32


@pytest.fixture(scope="module")
def golden_file():
    return golden_path(ROOT / "data")


@pytest.fixture(scope="module")
def scene(golden_file):
    """Carol may do anything for Alice, Dave may stake for her, Alice may pay for Erin."""
    with Scenario(golden_file) as scene:
        scene.fund("Bob", "Carol", "Dave", "Erin")
        scene.run("Alice", allow_proxy("Carol"), allow_proxy("Dave", "Staking"))
        scene.run("Erin", allow_proxy("Alice", "Transfer"))
        yield scene


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    engine = open_claims(tmp_path_factory.mktemp("market") / "market.db")
    yield engine
    engine.dispose()


def abandoned(scene: Scenario, drop: bool):
    """A block with a payment that a fork removes from the chain."""
    sent = scene.send("Alice", pay("Bob", TAO))
    block = scene.net.produce()
    scene.fork_away(block, drop=(sent,) if drop else ())
    return block


def comes_again(scene: Scenario):
    """The block of the other branch in which a payment stands after a fork."""
    return scene.fork_away(scene.run("Alice", pay("Bob", TAO))).branch[0]


def everything(scene: Scenario):
    """Frank gives Bob all he has: the call names no amount, the event does."""
    scene.fund("Frank", rao=3 * TAO)
    return scene.run("Frank", bt.calls.Balances.transfer_all(dest=BOB, keep_alive=True))


def next_block(scene: Scenario):
    """An empty block; the payment stands in the next."""
    block = scene.net.produce()
    scene.run("Alice", pay("Bob", TAO))
    return block


def alice(*calls):
    return lambda scene: scene.run("Alice", *calls)


def carol(*calls):
    return lambda scene: scene.run("Carol", *calls)


def allow_death(rao: int):
    return bt.calls.Balances.transfer_allow_death(dest=BOB, value=rao)


def stake(rao: int):
    return bt.calls.SubtensorModule.add_stake(hotkey=BOB, netuid=24, amount_staked=rao)


# what happens on the chain, what is asked when it is not "did Alice pay Bob 1 TAO?", and how many purchases it is good for, or why for none
CASES = {
    # paid
    "plainly": (alice(pay("Bob", TAO)), {}, 1),
    "by a call that lets the account die": (alice(allow_death(TAO)), {}, 1),
    "more than the price": (alice(pay("Bob", TAO + 1)), {}, 1),
    "by one of two extrinsics": (alice(pay("Dave", TAO), pay("Bob", TAO)), {}, 1),
    "in a batch, last": (alice(batch(pay("Dave", TAO), pay("Carol", 5), pay("Bob", TAO))), {}, 1),
    "in a batch_all": (alice(batch(pay("Bob", TAO), pay("Dave", TAO), kind="batch_all")), {}, 1),
    "in a force_batch with another item that failed": (alice(batch(pay("Dave", TOO_MUCH), pay("Bob", TAO), kind="force_batch")), {}, 1),
    "in a batch that broke off later": (alice(batch(pay("Bob", TAO), pay("Bob", TOO_MUCH))), {}, 1),
    "in a batch in a batch": (alice(batch(pay("Dave", 5), batch(pay("Bob", TAO), kind="batch_all"))), {}, 1),
    "by a proxy": (carol(as_proxy("Alice", pay("Bob", TAO))), {}, 1),
    "by a proxy's batch": (carol(as_proxy("Alice", batch(pay("Dave", 5), pay("Bob", TAO), kind="batch_all"))), {}, 1),
    "by a batch of proxied calls": (carol(batch(as_proxy("Alice", pay("Dave", 5)), as_proxy("Alice", pay("Bob", TAO)))), {}, 1),
    "by the proxy of a proxy": (carol(as_proxy("Alice", as_proxy("Erin", pay("Bob", TAO)))), {"sender": ERIN}, 1),
    "everything there was": (everything, {"sender": account_of("//Frank")}, 1),
    "in the very block the purchase began": (alice(pay("Bob", TAO)), {"not_before": lambda block: block.number}, 1),
    "too little at first, then enough": (alice(pay("Bob", TAO - 1), pay("Bob", TAO)), {}, 1),
    "in a block that came after a fork": (comes_again, {}, 1),
    "twice, by two extrinsics": (alice(pay("Bob", TAO), pay("Bob", 2 * TAO)), {}, 2),
    "three times, in a batch": (alice(batch(pay("Bob", TAO), pay("Bob", TAO), pay("Bob", TAO))), {}, 3),
    # not paid
    "without the money": (alice(pay("Bob", TOO_MUCH)), {"rao": TOO_MUCH}, Reason.FAILED),
    "in a batch_all that was undone": (alice(batch(pay("Bob", TAO), pay("Bob", TOO_MUCH), kind="batch_all")), {}, Reason.FAILED),
    "by someone who is no proxy": (lambda scene: scene.run("Erin", as_proxy("Alice", pay("Bob", TAO))), {}, Reason.FAILED),
    "behind the failure of a batch": (alice(batch(pay("Dave", TOO_MUCH), pay("Bob", TAO))), {}, Reason.INTERRUPTED),
    "as the failed item of a force_batch": (alice(batch(pay("Bob", TOO_MUCH), pay("Dave", 5), kind="force_batch")), {}, Reason.INTERRUPTED),
    "by a proxy, without the money": (carol(as_proxy("Alice", pay("Bob", TOO_MUCH))), {}, Reason.INTERRUPTED),
    "by a proxy that may only stake": (lambda scene: scene.run("Dave", as_proxy("Alice", pay("Bob", TAO))), {}, Reason.INTERRUPTED),
    "one rao too little": (alice(pay("Bob", TAO - 1)), {}, Reason.TOO_SMALL),
    "in two halves": (alice(pay("Bob", TAO // 2), pay("Bob", TAO // 2)), {}, Reason.TOO_SMALL),
    "in two halves of a batch": (alice(batch(pay("Bob", TAO // 2), pay("Bob", TAO // 2))), {}, Reason.TOO_SMALL),
    "to someone else": (alice(pay("Dave", TAO)), {}, Reason.OTHER_RECIPIENT),
    "by someone else": (carol(pay("Bob", TAO)), {}, Reason.OTHER_SENDER),
    "by a proxy who claims it as hers": (carol(as_proxy("Alice", pay("Bob", TAO))), {"sender": CAROL}, Reason.OTHER_SENDER),
    "the other way round": (lambda scene: scene.run("Bob", pay("Alice", TAO)), {}, Reason.NO_TRANSFER),
    "in an empty block": (lambda scene: scene.net.produce(), {}, Reason.NO_TRANSFER),
    "in the next block": (next_block, {}, Reason.NO_TRANSFER),
    "in block 0": (lambda scene: scene.ledger.blocks[0], {}, Reason.NO_TRANSFER),
    "as stake": (alice(stake(TAO)), {}, Reason.NO_TRANSFER),
    "before the purchase began": (alice(pay("Bob", TAO)), {"not_before": lambda block: block.number + 1}, Reason.TOO_EARLY),
    "in a block that was forked away": (lambda scene: abandoned(scene, drop=True), {}, Reason.FORKED),
    "in an abandoned block, and again in the branch": (lambda scene: abandoned(scene, drop=False), {}, Reason.FORKED),
    # not known
    "in a block that is not final": (alice(pay("Bob", TAO)), {}, Reason.UNFINALISED),
    "in a block nobody has seen": (lambda scene: NEVER_SEEN, {}, Reason.UNSEEN),
}


@pytest.mark.parametrize("name", CASES)
def test_paid(name, scene, market):
    play, asked, expected = CASES[name]
    block = play(scene)
    if expected is not Reason.UNFINALISED:
        scene.settle()
    asked = {key: value(block) if callable(value) else value for key, value in asked.items()}
    question = {"sender": ALICE, "recipient": BOB, "rao": TAO, "block_hash": getattr(block, "hash", block)} | asked
    bought = []
    with pytest.raises((PaymentRefused, PaymentUnknown)) as refused:
        while True:  # as many purchases as it is good for, each as the market does it
            with Session(market) as session, session.begin():
                payment = verify_payment(scene.chain, **question, claimed=claimed_in(session, question["block_hash"]))
                assert (payment.sender, payment.recipient) == (question["sender"], BOB) and payment.rao >= question["rao"]
                claim(session, payment, f"{name} {len(bought)}")
                bought.append(payment)
    wanted = Reason.ALREADY_USED if bought else expected
    assert len(bought) == (0 if isinstance(expected, Reason) else expected) == len({payment.key for payment in bought})
    assert refused.value.reason is wanted, refused.value
    assert isinstance(refused.value, PaymentUnknown) == (wanted in (Reason.UNFINALISED, Reason.UNSEEN))
    for payment in bought:  # a purchase that did not look first is stopped all the same
        with Session(market) as session, pytest.raises(AlreadyClaimed):
            claim(session, payment, "another purchase")


def test_there_are_enough_cases_and_every_reason_is_met():
    met = {expected for _, _, expected in CASES.values() if isinstance(expected, Reason)}
    elsewhere = {Reason.ALREADY_USED, Reason.UNREACHABLE, Reason.DISCARDED, Reason.UNREADABLE}
    assert len(CASES) >= 24 and met | elsewhere == set(Reason) and not met & elsewhere


def test_the_recorded_block_is_read_as_its_authors_read_it(golden_file):
    golden = load_golden(golden_file)
    storage = Storage(golden)
    raw = golden["block"]["raw"]["block"]["extrinsics"]
    events = storage.runtime.decode(storage.runtime.storage_entry("System", "Events").value_type, from_hex(golden["events"]["raw_hex"]))
    assert json.loads(json.dumps(events)) == golden["events"]["decoded"]
    assert transfers(events) == [Transfer(event=4, extrinsic=2, sender=ALICE, recipient=BOB, rao=TAO)]
    asked = Question(golden["events"]["block_hash"], ALICE, BOB, TAO)
    assert choose(9, events, asked, ()) == Payment(9, asked.block_hash, 2, 4, TAO, ALICE, BOB)
    without_success = [event for event in events if event["event_id"] != "ExtrinsicSuccess"]
    assert choose(9, without_success, asked, ()) is None and choose(9, events, asked, {(9, 2, 4)}) is None
    decoded = [storage.runtime.decode_extrinsic(from_hex(extrinsic)) for extrinsic in raw]
    assert why_not(9, decoded, events, Question(asked.block_hash, ALICE, BOB, TAO + 1)).reason is Reason.TOO_SMALL


def test_no_answer_of_the_sdk_s_memory_is_believed(scene):
    """Asked for an abandoned hash's number, the SDK takes the hash for canonical; the judgement does not."""
    lost = abandoned(scene, drop=False)
    scene.settle()

    async def ask(client):
        number = await client.substrate.raw.get_block_number(lost.hash)
        return await client.substrate.block_hash(number)

    assert scene.chain.link.ask("a hash", ask) == lost.hash != scene.ledger.blocks[lost.number].hash
    with pytest.raises(PaymentRefused) as refused:
        verify_payment(scene.chain, lost.hash, ALICE, BOB, TAO)
    assert refused.value.reason is Reason.FORKED


def test_an_abandoned_block_may_come_back_until_another_is_final(scene):
    lost = abandoned(scene, drop=True)
    with pytest.raises(PaymentUnknown) as unknown:
        verify_payment(scene.chain, lost.hash, ALICE, BOB, TAO)
    scene.settle()
    with pytest.raises(PaymentRefused) as refused:
        verify_payment(scene.chain, lost.hash, ALICE, BOB, TAO)
    assert (unknown.value.reason, refused.value.reason) == (Reason.UNFINALISED, Reason.FORKED)


def test_a_node_that_is_away_leaves_it_open(golden_file):
    with Scenario(golden_file, finality_lag=0) as scene:
        block = scene.run("Alice", pay("Bob", TAO))
        for trouble in (scene.net.hanging, scene.net.down):
            with trouble(), pytest.raises(PaymentUnknown) as unknown:
                verify_payment(scene.net.endpoint, block.hash, ALICE, BOB, TAO, timeout=0.5)
            assert unknown.value.reason is Reason.UNREACHABLE
        assert verify_payment(scene.net.endpoint, block.hash, ALICE, BOB, TAO).block == block.number
    with pytest.raises(PaymentUnknown) as unknown:
        verify_payment(scene.net.endpoint, block.hash, ALICE, BOB, TAO, timeout=2)
    assert unknown.value.reason is Reason.UNREACHABLE


def test_the_next_endpoint_is_asked_when_one_is_away(golden_file):
    with Scenario(golden_file, finality_lag=0) as scene:
        block = scene.run("Alice", pay("Bob", TAO))
        with Chain("ws://127.0.0.1:9", 24, fallback=[scene.net.endpoint]) as chain:
            assert verify_payment(chain, block.hash, ALICE, BOB, TAO).block == block.number
            with pytest.raises(PaymentRefused):
                verify_payment(chain, block.hash, ALICE, BOB, TAO + 1)


def test_an_archive_node_knows_what_others_have_dropped(golden_file):
    shared = {"block_seconds": None, "clock": lambda: 1.7e9}
    with Scenario(golden_file, finality_lag=1, kept_states=4, **shared) as scene, LocalNet(golden_file, **shared) as archive:
        block = scene.run("Alice", pay("Bob", TAO))
        archive.ledger.submit(from_hex(block.extrinsics[1]))
        scene.net.produce(8)
        archive.produce(9)
        assert archive.ledger.block(block.hash) == block  # the same chain
        question = (scene.chain, block.hash, ALICE, BOB, TAO)
        with pytest.raises(PaymentUnknown, match="archive") as unknown:
            verify_payment(*question)
        assert unknown.value.reason is Reason.DISCARDED
        assert verify_payment(*question, archive=archive.endpoint).extrinsic == 1
        with pytest.raises(PaymentRefused) as refused:  # what the header says is known without the state
            verify_payment(*question, not_before=block.number + 1)
        assert refused.value.reason is Reason.TOO_EARLY


def test_events_that_cannot_be_decoded_leave_it_open(golden_file):
    with Scenario(golden_file, finality_lag=0) as scene:
        block = scene.run("Alice", pay("Bob", TAO))
        key = scene.ledger.storage.key("System", "Events")
        for raw, reason in ((b"\x08\xff\xff", Reason.UNREADABLE), (b"\x00", Reason.DISCARDED)):
            scene.ledger._states[block.hash][key] = raw
            with pytest.raises(PaymentUnknown) as unknown:
                verify_payment(scene.chain, block.hash, ALICE, BOB, TAO)
            assert unknown.value.reason is reason


@pytest.mark.parametrize(("wrong", "named"), [
    ({"block_hash": ""}, "block hash ''"), ({"block_hash": None}, "None"), ({"block_hash": "ab" * 32}, "abab"), ({"block_hash": "latest"}, "latest"),
    ({"block_hash": "0x" + "ab" * 31}, "0xab"), ({"block_hash": NEVER_SEEN + "\n"}, "0xab"), ({"sender": ""}, "sender ''"),
    ({"recipient": ALICE[:-1] + "Z"}, "recipient"), ({"sender": "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5"}, "15oF"), ({"recipient": ALICE}, "both"),
    ({"rao": 0}, "price 0"), ({"rao": -1}, "-1"), ({"rao": 1.0}, "1.0"), ({"rao": True}, "True"), ({"rao": "5"}, "'5'"),
    ({"not_before": -1}, "-1"), ({"not_before": 1.5}, "1.5"), ({"chain": "nowhere"}, "nowhere"),
])
def test_questions_that_are_none(wrong, named):
    question = {"chain": "ws://127.0.0.1:9", "block_hash": NEVER_SEEN, "sender": ALICE, "recipient": BOB, "rao": TAO}
    with pytest.raises(ValueError, match=named.replace("'", ".")):
        verify_payment(**question | wrong)


def test_the_program_answers_with_its_exit_code(scene, capfd):
    block, refused = scene.run("Alice", pay("Bob", TAO)), scene.net.produce()
    scene.settle()
    options = ["--endpoint", scene.net.endpoint, "--sender", ALICE, "--recipient", BOB]

    def run(*more: str) -> tuple[int, str, str]:
        code = main_verify_payment([*options, *more])
        return code, *capfd.readouterr()

    code, out, err = run("--block-hash", block.hash, "--rao", str(TAO))
    assert (code, err, json.loads(out)) == (0, "", {"block": block.number, "extrinsic": 1, "event": 2}) and out.count("\n") == 1
    for code, word, more in [
        (1, "no_transfer:", ["--block-hash", refused.hash, "--rao", "5"]),
        (1, "too_early:", ["--block-hash", block.hash, "--rao", "5", "--not-before", str(block.number + 1)]),
        (2, "unseen:", ["--block-hash", NEVER_SEEN, "--rao", "5"]),
        (2, "unreachable:", ["--block-hash", NEVER_SEEN, "--rao", "5", "--endpoint", "ws://127.0.0.1:9", "--timeout", "3"]),
        (64, "block hash", ["--block-hash", "", "--rao", "5"]),
        (64, "invalid int", ["--block-hash", NEVER_SEEN, "--rao", "1.5"]),
        (64, "required: --block-hash", ["--rao", "5"]),
        (64, "unrecognized", ["--block-hash", NEVER_SEEN, "--rao", "5", "--amount", "5"]),
        (64, "nowhere", ["--block-hash", NEVER_SEEN, "--rao", "5", "--endpoint", "nowhere"]),
    ]:
        got, out, err = run(*more)
        assert (got, out) == (code, "") and word in err, (more, got, err)
    assert run("--help")[0] == 0


def test_the_command_as_a_script_calls_it(scene):
    block = scene.run("Alice", pay("Bob", TAO))
    command = [sys.executable, "-m", "omega_lab.cli", "verify-payment", "--endpoint", scene.net.endpoint, "--block-hash", block.hash, "--sender", ALICE,
               "--recipient", BOB, "--rao", str(TAO)]
    early = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (early.returncode, early.stdout) == (2, "") and early.stderr.startswith("unfinalised: ")
    scene.settle()
    paid = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (paid.returncode, paid.stderr) == (0, "") and json.loads(paid.stdout) == {"block": block.number, "extrinsic": 1, "event": 2}
    wrong = subprocess.run([*command, "--rao", "many"], capture_output=True, text=True, cwd=ROOT)
    assert (wrong.returncode, wrong.stdout) == (64, "")


PAYMENT = Payment(block=9, block_hash=NEVER_SEEN, extrinsic=1, event=2, rao=TAO, sender=ALICE, recipient=BOB)


def test_200_threads_claim_one_payment(tmp_path):
    engine, start, granted, refused = open_claims(tmp_path / "market.db"), threading.Barrier(200), [], []

    def buy(number: int) -> None:
        start.wait()
        try:
            with Session(engine) as session, session.begin():
                claim(session, PAYMENT, f"purchase {number}")
            granted.append(f"purchase {number}")
        except AlreadyClaimed as error:
            refused.append(error.purchase_id)

    threads = [threading.Thread(target=buy, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Session(engine) as session:
        assert [row.purchase_id for row in session.query(Claim)] == granted
    assert len(granted) == 1 and refused == granted * 199
    engine.dispose()


PROCESSES = """
import os, sys
from pathlib import Path
from sqlalchemy.orm import Session
from omega_lab.chain.claims import AlreadyClaimed, claim, open_claims
from omega_lab.chain.payments import Payment

payment = Payment(*eval(sys.argv[2]))
ready, go = os.pipe(), os.pipe()
children = []
for number in range(200):
    if (child := os.fork()) == 0:
        os.close(go[1])
        os.write(ready[1], b".")
        os.read(go[0], 1)  # returns when the parent lets go
        try:
            with Session(open_claims(Path(sys.argv[1]))) as session, session.begin():
                claim(session, payment, f"purchase {number}")
        except AlreadyClaimed:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    children.append(child)
seen = 0
while seen < 200:
    seen += len(os.read(ready[0], 200))
os.close(go[1])
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_200_processes_claim_one_payment(tmp_path):
    arguments = (PAYMENT.block, PAYMENT.block_hash, PAYMENT.extrinsic, PAYMENT.event, PAYMENT.rao, ALICE, BOB)
    done = subprocess.run([sys.executable, "-c", PROCESSES, str(tmp_path / "market.db"), repr(arguments)], capture_output=True, text=True,
                          cwd=ROOT, timeout=120, check=True)
    codes = json.loads(done.stdout)
    assert sorted(codes) == [0] + [1] * 199, done.stderr
    engine = open_claims(tmp_path / "market.db")
    with Session(engine) as session:
        assert [row.purchase_id for row in session.query(Claim)] == [f"purchase {codes.index(0)}"]
    engine.dispose()


def test_a_claim_lives_and_dies_with_the_purchase(tmp_path):
    engine = open_claims(f"sqlite:///{tmp_path / 'market.db'}")
    with pytest.raises(InterruptedError), Session(engine) as session, session.begin():
        claim(session, PAYMENT, "never granted")
        raise InterruptedError
    with Session(engine) as session, session.begin():
        assert claimed_in(session, PAYMENT.block_hash) == set()
        claim(session, PAYMENT, "granted")
        with pytest.raises(AlreadyClaimed, match="granted"):
            claim(session, PAYMENT, "granted")
        assert claimed_in(session, PAYMENT.block_hash.upper().replace("X", "x")) == {PAYMENT.key}
    engine.dispose()


@pytest.mark.skipif("SUBTENSOR_WS" not in os.environ, reason="SUBTENSOR_WS names no node")
def test_a_live_node():
    endpoint, genesis = os.environ["SUBTENSOR_WS"], Genesis()
    with Chain(endpoint, genesis.netuid) as chain:
        head, final = chain.block(), chain.link.ask("the final block", lambda client: client.finalized_block())
        assert 0 < final <= head
        block_hash = chain.link.ask("its hash", lambda client: client.substrate.block_hash(final))
        events = chain.link.ask("its events", lambda client: client.substrate.events(block_hash))
        assert any(event["event_id"] == "ExtrinsicSuccess" for event in events)
        for transfer in transfers(events):
            asked = Question(block_hash, transfer.sender, transfer.recipient, max(transfer.rao, 1))
            if transfer.rao:
                assert verify_payment(endpoint, *(asked.block_hash, asked.sender, asked.recipient, asked.rao)).rao >= transfer.rao
        with pytest.raises(PaymentRefused) as refused:
            verify_payment(chain, block_hash, account_of("//Nobody//1"), account_of("//Nobody//2"), TAO)
        assert refused.value.reason is Reason.NO_TRANSFER
