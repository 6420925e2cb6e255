"""From scores to what the chain shows. The numbers are worked out by hand, in the comments, not by the code under test."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from omega_lab.chain import Chain, ChainDown, ChainError, compare, dev_wallet, revealed, set_weights_until_seen, to_u16
from omega_lab.chain.beacon import Pulse, write_pulse
from omega_lab.chain.epoch import consensus, split, yuma
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.rules import Genesis
from omega_lab.chain.weights import WeightRules, cut, fit, pad, wait_blocks
from omega_lab.samples import golden_path
from omega_lab.scoring.weights import combine, task_shares

TAO = 10**9
GOLDEN = golden_path(Path(__file__).parent.parent / "data")


@pytest.fixture
def start():
    """Start local chains with a client each; all stop at the end of the test."""
    opened = []

    def go(block_seconds: float = 0.1, **genesis) -> tuple[Chain, LocalNet]:
        net = LocalNet(GOLDEN, block_seconds=block_seconds, genesis=Genesis(**{"emission_rao": 0} | genesis)).start()
        opened.append((net, chain := Chain(net.endpoint, 24, timeout=10, submit_timeout=20)))
        return chain, net

    yield go
    for net, chain in opened:
        chain.close()
        net.stop()


def join(chain: Chain, *names: str, stake: int = 0) -> list:
    """Register hotkeys of Alice, the first with stake."""
    wallets = [dev_wallet("//Alice", name) for name in names]
    for wallet in wallets:
        chain.register(wallet)
    if stake:
        chain.add_stake(wallets[0], stake)
    chain.wait_for_block()
    return wallets


def by_uid(chain: Chain, weights: dict[str, float]) -> dict[int, float]:
    """Weights of those who are registered, by uid."""
    uids = {neuron.hotkey: neuron.uid for neuron in chain.metagraph().neurons}
    return {uids[hotkey]: weight for hotkey, weight in weights.items() if hotkey in uids}


def test_two_tasks_combined_by_hand():
    # video: 6 + 2 + 0 = 8 (the punished one counts 0); shares 3/4, 1/4, 0
    # focus: 5 + 15 = 20; shares 1/4, 3/4
    # weights, video 90 %, focus 10 %: a = .9·3/4 = .675; b = .9·1/4 + .1·1/4 = .25; c = .1·3/4 = .075
    scores = {"video": {"a": 6.0, "b": 2.0, "c": -3.0}, "focus": {"b": 5.0, "c": 15.0}}
    weights = combine(scores, task_shares(0.1, 0.0))
    assert weights == pytest.approx({"a": 0.675, "b": 0.25, "c": 0.075})
    # u16: .25/.675·65535 = 24272.22 -> 24272; .075/.675·65535 = 7281.67 -> 7282
    assert to_u16({0: weights["a"], 1: weights["b"], 2: weights["c"]}) == {0: 65_535, 1: 24_272, 2: 7_282}


def test_a_share_nobody_earned_goes_to_nobody():
    # audio has 20 %, and all of its scores are 0 or below: a and b still stand 3 to 1
    weights = combine({"video": {"a": 0.3, "b": 0.1}, "audio": {"a": 0.0, "b": -1.0}}, task_shares(0.0, 0.2))
    assert weights == pytest.approx({"a": 0.6, "b": 0.2})
    assert to_u16({0: weights["a"], 1: weights["b"]}) == {0: 65_535, 1: 21_845}


def test_nothing_earned_sets_nothing_and_says_so(start):
    chain, _ = start()
    validator, miner = join(chain, "v", "m", stake=TAO)
    weights = combine({"video": {miner.hotkey.ss58_address: -5.0}}, {"video": 1.0})
    report = set_weights_until_seen(chain, validator, by_uid(chain, weights))
    assert report.state == "nothing" and not report.done and "all of 1 weights are zero" in report.detail and chain.weights(0) == {}
    with pytest.raises(ValueError, match="nothing to set"):
        set_weights_until_seen(chain, validator, {})


def test_one_validators_view_after_a_replaced_hotkey_and_a_larger_network(start):
    """Three miners are scored; one is replaced, two newcomers make the network larger; everybody else keeps what they had."""
    chain, _ = start(max_uids=4, immunity_period=1, tempo=10_000)
    validator, ann, bob, cid = join(chain, "v", "ann", "bob", "cid", stake=100 * TAO)
    a, b, c = (wallet.hotkey.ss58_address for wallet in (ann, bob, cid))
    video, focus, shares = {a: 4.0, b: 1.0, c: 3.0}, {a: 0.0, b: 1.0, c: 1.0}, task_shares(0.25, 0.0)
    # video: 4 + 1 + 3 = 8, so 1/2, 1/8, 3/8; focus: 0, 1/2, 1/2
    # a = .75·1/2 = .375; b = .75·1/8 + .25·1/2 = .21875; c = .75·3/8 + .25·1/2 = .40625 (together 1)
    weights = combine({"video": video, "focus": focus}, shares)
    assert weights == pytest.approx({a: 0.375, b: 0.21875, c: 0.40625})
    report = set_weights_until_seen(chain, validator, by_uid(chain, weights))
    # .375/.40625·65535 = 60493.85 -> 60494; .21875/.40625·65535 = 35288.08 -> 35288
    assert report.state == "seen" and chain.weights(0) == {1: 60_494, 2: 35_288, 3: 65_535} and report.check.agrees
    # the consensus of one validator is its own row: incentives 60494, 35288, 65535 of 161317
    shown = [neuron.incentive for neuron in chain.metagraph().neurons]
    assert shown == pytest.approx([0, 0.37500, 0.21875, 0.40625], abs=2e-5)

    dan = join(chain, "dan")[0]  # the subnet is full: bob earns least and loses his place, uid 2
    d = dan.hotkey.ss58_address
    assert chain.uid(b) is None and chain.uid(d) == 2
    # what was said of uid 2 was said of bob: dan has nothing of it; 60494 and 65535 of 126029
    assert [n.incentive for n in chain.metagraph().neurons] == pytest.approx([0, 0.48000, 0, 0.52000], abs=2e-5)

    # the validator's view: bob's scores go with him, in every task; dan starts at zero; ann and cid stay as they are
    here = {neuron.hotkey for neuron in chain.metagraph().neurons}
    video, focus = ({hotkey: table.get(hotkey, 0.0) for hotkey in here - {validator.hotkey.ss58_address}} for table in (video, focus))
    assert (video, focus) == ({a: 4.0, d: 0.0, c: 3.0}, {a: 0.0, d: 0.0, c: 1.0})
    # video: 4/7, 0, 3/7; focus: 0, 0, 1; a = .75·4/7 = 3/7; d = 0; c = .75·3/7 + .25 = 4/7
    weights = combine({"video": video, "focus": focus}, shares)
    assert weights == pytest.approx({a: 3 / 7, d: 0.0, c: 4 / 7})
    report = set_weights_until_seen(chain, validator, by_uid(chain, weights))
    # 3/4·65535 = 49151.25 -> 49151; dan's zero is left out
    assert report.state == "seen" and chain.weights(0) == {1: 49_151, 3: 65_535}


def test_a_larger_network_keeps_everybodys_scores(start):
    chain, _ = start(tempo=10_000)
    validator, ann, bob = join(chain, "v", "ann", "bob", stake=TAO)
    video = {ann.hotkey.ss58_address: 2.0, bob.hotkey.ss58_address: 1.0}
    audio = {ann.hotkey.ss58_address: 1.0, bob.hotkey.ss58_address: 3.0}
    set_weights_until_seen(chain, validator, by_uid(chain, combine({"video": video, "audio": audio}, task_shares(0.0, 0.5))))
    # ann: .5·2/3 + .5·1/4 = 11/24; bob: .5·1/3 + .5·3/4 = 13/24; 11/13·65535 = 55452.69 -> 55453
    assert chain.weights(0) == {1: 55_453, 2: 65_535}
    newcomers = join(chain, *(f"n{i}" for i in range(5)))
    n0 = newcomers[0].hotkey.ss58_address
    video[n0] = 1.0  # one of them answers; its audio score is nobody else's
    set_weights_until_seen(chain, validator, by_uid(chain, combine({"video": video, "audio": audio}, task_shares(0.0, 0.5))))
    # ann: .5·2/4 + .5·1/4 = 3/8; bob: .5·1/4 + .5·3/4 = 1/2; n0: .5·1/4 = 1/8
    assert chain.weights(0) == {1: 49_151, 2: 65_535, 3: 16_384}


@pytest.mark.parametrize(("block", "last", "limit", "every", "wait"), [
    (100, 0, 100, 100, 0),  # nothing was ever written
    (100, 100, 100, 0, 100),  # in the very block
    (199, 100, 100, 0, 1),
    (200, 100, 100, 0, 0),
    (200, 100, 20, 150, 50),  # the validator's own rhythm is slower than the chain's
    (200, 100, 150, 20, 50),  # the chain's is slower
    (101, 100, 0, 0, 0),
])
def test_when_a_row_is_due(block, last, limit, every, wait):
    assert wait_blocks(WeightRules(0, block, last, limit), every) == wait


def test_a_row_too_short_is_filled_and_one_too_tall_is_cut():
    # two of five earn; four are wanted: uid 4 would have had 1e-7 of a share and comes first, then uid 0; the own uid 1 last
    rules = WeightRules(uid=1, block=9, last_update=1, minimum=4, neurons=5)
    assert pad({2: 65_535, 3: 9}, {2: 1.0, 3: 9 / 65_535, 4: 1e-7}, rules) == {0: 1, 2: 65_535, 3: 9, 4: 1}
    # at most half: 60 + 20 + 20 -> c = ½·40/(1 − ½) = 40; rows 40, 20, 20 = 1, ½, ½
    assert cut({0: 60, 1: 20, 2: 20}, WeightRules(9, 9, 1, limit=32_767, neurons=9)) == {0: 65_535, 1: 32_769, 2: 32_769}
    with pytest.raises(ChainError, match="wants at least 6 weights and has 5 neurons"):
        fit({0: 1.0}, WeightRules(1, 9, 1, minimum=6, neurons=5))
    with pytest.raises(ChainError, match="cannot all stay below"):
        fit({0: 1.0, 2: 1.0}, WeightRules(1, 9, 1, limit=20_000, neurons=5))
    assert fit({1: 0.3}, WeightRules(1, 9, 1, limit=100, minimum=7, neurons=9)) == {1: 65_535}  # oneself alone: exempt


def test_the_chain_takes_what_was_fitted(start):
    chain, _ = start(min_allowed_weights=4, max_weights_limit=26_214)  # at most 40 %
    validator, *_ = join(chain, "v", *"abcdef", stake=TAO)
    report = set_weights_until_seen(chain, validator, {1: 7.0, 2: 2.0, 3: 1.0})
    # filled with uid 4 at 1 of 65535; then two may have 40 % at most: their level is c, with c = .4·S/(1 − 2·.4) = 2·S
    row = report.result.sent
    assert report.state == "seen" and set(row) == {1, 2, 3, 4} and chain.weights(0) == row
    shares = {uid: Fraction(value, sum(row.values())) for uid, value in row.items()}
    assert float(shares[1]) == pytest.approx(0.4, abs=1e-4) and float(shares[2]) == pytest.approx(0.4, abs=1e-4)
    assert float(shares[3]) == pytest.approx(0.2, abs=1e-4) and shares[4] < Fraction(1, 10_000)


def test_a_row_waits_for_its_time_before_anything_is_sent(start):
    chain, net = start(weights_rate_limit=5)
    validator, _ = join(chain, "v", "m", stake=TAO)
    chain.wait_for_block(chain.metagraph().neurons[0].last_update + 5)
    first = set_weights_until_seen(chain, validator, {1: 1.0})
    balance = chain.balance_rao(validator.coldkeypub.ss58_address)
    early = set_weights_until_seen(chain, validator, {1: 1.0}, every=50)
    assert first.state == "seen" and early.state == "wait" and 40 < early.wait <= 50
    with pytest.raises(ChainError, match="Retry in") as limited:
        chain.set_weights(validator, {1: 1.0})
    assert limited.value.name == "rate_limited" and chain.balance_rao(validator.coldkeypub.ss58_address) == balance  # no fee for nothing


def test_what_the_chain_refuses_is_reported_not_raised(start):
    chain, _ = start()
    validator, miner = join(chain, "v", "m", stake=TAO)
    assert "NeuronNoValidatorPermit" in set_weights_until_seen(chain, miner, {0: 1.0, 1: 1.0}).detail
    assert set_weights_until_seen(chain, dev_wallet("//Stranger"), {0: 1.0}).state == "refused"
    assert "uid 7 is not registered" in set_weights_until_seen(chain, validator, {7: 1.0}).detail
    for wrong in ({1: float("nan")}, {1: -0.1}):
        with pytest.raises(ValueError, match="weight of uid 1"):
            set_weights_until_seen(chain, validator, wrong)


def test_a_sealed_row_is_compared_once_it_is_open(start):
    chain, _ = start(commit_reveal=True, tempo=8)
    validator, *_ = join(chain, "v", "a", "b", stake=TAO)
    report = set_weights_until_seen(chain, validator, {1: 1.0, 2: 3.0})
    assert report.state == "sealed" and report.done and report.result.sent == {1: 21_845, 2: 65_535} and chain.weights(0) == {}
    assert revealed(chain, validator, report.result) is None
    chain.wait_for_block(chain.block() + 18)
    assert revealed(chain, validator, report.result).agrees and chain.weights(0) == {1: 21_845, 2: 65_535}


class Forgetful(Chain):
    """A chain whose first answer to a row is lost, after the row arrived."""

    lost = 0

    def set_weights(self, wallet, weights, version_key=0):
        result = super().set_weights(wallet, weights, version_key)
        if not self.lost:
            self.lost = result.block
            raise ChainDown("setting weights: the connection broke")
        return result


@pytest.mark.parametrize("sealed", [False, True])
def test_a_row_whose_answer_was_lost_is_found_not_sent_again(start, sealed):
    chain, net = start(commit_reveal=sealed, tempo=10_000)
    validator, _ = join(chain, "v", "m", stake=TAO)
    with Forgetful(net.endpoint, 24) as forgetful:
        report = set_weights_until_seen(forgetful, validator, {1: 1.0})
    assert (report.state, report.attempts, report.result.block) == ("sealed" if sealed else "seen", 2, forgetful.lost)
    assert net.ledger.storage.get("System", "Account", validator.hotkey.ss58_address)["nonce"] == 1


def test_a_pulse_nobody_signed_opens_nothing(start):
    _, net = start()
    with pytest.raises(ValueError, match="did not sign"):
        write_pulse(net.ledger.storage, Pulse(1001, "b4" * 48))


def test_yuma_by_hand():
    # A 60 %, B 40 %. A: 1 0, B: 0 1. Half of the stake stands behind A's row only: consensus 1 and 0; B earns nothing.
    agreed, incentive, dividends = yuma(np.array([6.0, 4.0, 0, 0]), np.array([[0, 0, 1, 0], [0, 0, 0, 1], [0] * 4, [0] * 4], dtype=float))
    assert (agreed.tolist(), incentive.tolist(), dividends.tolist()) == ([0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0])
    # 40 %, 35 %, 25 % give 0.2, 0.5, 0.8: 0.8 has 25 %, 0.5 has 60 %: 0.5
    assert consensus(np.array([0.4, 0.35, 0.25]), np.array([[0.2], [0.5], [0.8]])).tolist() == [0.5]
    assert split(100, np.array([1.0, 1.0, 1.0])) == [34, 33, 33]


def test_weights_move_balances(start):
    # emission 1 TAO a block, 10 blocks: 5 TAO to the miners, by 3 to 1, and 5 to the validator, every epoch
    chain, net = start(emission_rao=TAO, tempo=10)
    validator, *_ = join(chain, "v", "a", "b", stake=100 * TAO)
    set_weights_until_seen(chain, validator, {1: 3.0, 2: 1.0})
    last = net.ledger.storage.get("SubtensorModule", "LastEpochBlock", 24)
    before = [neuron.stake_rao for neuron in chain.metagraph().neurons]
    chain.wait_for_block(last + 20)
    after = [neuron.stake_rao for neuron in chain.metagraph().neurons]
    gained = [now - then for now, then in zip(after, before, strict=True)]
    epochs = sum(gained) / (10 * TAO)
    assert epochs >= 1 and epochs == int(epochs)
    # from the second epoch on the miners' stake gives them a permit, but no dividends: they set no weights
    assert gained == pytest.approx([5 * TAO * epochs, 3.75 * TAO * epochs, 1.25 * TAO * epochs], rel=2e-4)


def test_rows_are_compared_by_their_shares():
    # meant 1 : 1 : 2; shown 1 : 1 : 1: largest error 1/2 − 1/3 = 1/6
    check = compare({0: 1.0, 1: 1.0, 2: 2.0}, {0: 5, 1: 5, 2: 5})
    assert check.largest_error == pytest.approx(1 / 6, abs=1e-5) and not check.agrees and check.missing == check.extra == ()
