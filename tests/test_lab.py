"""The lab: stored rounds judged again, cheats against policies, the same from the command line."""
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from omega_lab.lab.attack import Scene, attack_report, copier_advantage, policies, stored_report, tune
from omega_lab.lab.commands import lab
from omega_lab.lab.population import draw, read_pool, synthetic_pool
from omega_lab.lab.rescore import rescore, write_rounds
from omega_lab.lab.simulate import Costs, Rates, advantage, interval, simulate
from omega_lab.lab.strategies import STRATEGIES
from omega_lab.scoring.video import LatentThresholds
from omega_lab.settings import Settings
from omega_lab.store import Store, StoreError, rescore_response

ROOT = Path(__file__).parent.parent
MIX = {"honest": 5, "lazy": 1, "stuffer": 1, "forger": 1, "caption forger": 1, "abstainer": 1}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    write_rounds(folder, MIX, rounds=10, sample=8)
    return folder


def test_every_stored_reward_is_recomputed_bit_for_bit(state):
    with Store(state) as store:
        again = rescore(store)
        outcomes = set(store.sql("select distinct outcome from responses")["outcome"])
    assert again.same and len(again.responses) == 80
    assert {"scored", "punished", "no answer"} <= outcomes


@pytest.mark.parametrize("environment", [{"OMP_NUM_THREADS": "1"}, {"OPENBLAS_CORETYPE": "Prescott", "OMP_NUM_THREADS": "2"}])
def test_another_process_with_other_arithmetic_comes_to_the_same(state, environment):
    """Other kernels sum in another order, as on another kind of CPU: nine decimals of each cosine hide it."""
    said = subprocess.run([sys.executable, "-c", f"""
from omega_lab.store import Store, stored_responses
with Store({str(state)!r}) as store:
    for r in stored_responses(store):
        print(repr(r.verdict().reward))
"""], capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout.split()
    with Store(state) as store:
        stored = rescore(store).responses["reward"].to_list()
    assert [None if s == "None" else float(s) for s in said] == pytest.approx(stored, abs=1e-6)


def test_an_altered_number_is_found(state, tmp_path):
    write_rounds(tmp_path, {"honest": 3}, rounds=2, sample=3)
    with Store(tmp_path) as store:
        store._con.execute("update clips set evidence = json_merge_patch(evidence, '{\"text_cosine\": 0.99}') where round = 2 and position = 0")
        assert rescore(store).responses.filter(~pl.col("same"))["round"].unique().to_list() == [2]
    assert CliRunner().invoke(lab, ["rescore", "--state", str(tmp_path)]).exit_code == 1


def test_other_rules_change_who_earns(state):
    with Store(state) as store:
        blind = rescore(store, thresholds=LatentThresholds(same_embedding=-1.0))
        forger = blind.board.filter(pl.col("hotkey").str.contains("Forger"))
        assert (forger["weight"] == 0).all() and forger["new_weight"].max() < 0.05, "what a fetched clip claims too much is taken off nevertheless"
        paid = rescore(store, {"profile": "sn24"}, LatentThresholds(same_embedding=-1.0)).board.filter(pl.col("hotkey").str.contains("Forger"))
        assert paid["new_weight"].max() > 0.1
        assert rescore(store, {"minimum": 0.006}).board["new_average"].min() < 0
        with pytest.raises(StoreError, match="no response of nobody"):
            rescore_response(store, 1, "nobody")


def test_the_view_of_checks_agrees_with_the_verdicts(state):
    with Store(state) as store:
        failed = store.sql("""select distinct round, hotkey from checks where what like '% embedding' and not holds""").rows()
        punished = store.sql("select round, hotkey from responses where reason like 'embedding is not%'").rows()
        newness = store.sql("select bool_and(holds) from checks where what = 'novelty'").item()
    assert sorted(failed) == sorted(punished) and newness is not None


# ---- the simulation

def test_the_kept_table_says_what_the_readme_says():
    """A lone sleeper and the whitewasher, next to honest as they are, are not told from it by six games."""
    kept = stored_report()
    ours, theirs = (kept.filter(pl.col("rules") == r) for r in ("lab", "protocol"))
    shown = ours.filter((pl.col("strategy") != "whitewasher") & ((pl.col("strategy") != "sleeper") | (pl.col("cheats") > 0.1)))
    assert shown["high"].max() < 0, shown.filter(pl.col("high") >= 0)
    assert ours["advantage"].max() < 0.005
    assert ours["honest wronged"].drop_nulls().max() < 0.005 and ours["wronged high"].drop_nulls().max() < 0.005
    assert set(ours["strategy"]) == set(STRATEGIES) - {"honest"} | {"weight copier"}
    paying = set(theirs.filter(pl.col("low") > 0)["strategy"])
    assert {"forger", "caption forger", "nudger", "opportunist", "whitewasher", "weight copier", "colluder"} <= paying


def test_a_seed_gives_the_same_rounds():
    one, two, other = (simulate({"honest": 6, "forger": 2}, Settings(), 20, seed, sample=4) for seed in (1, 1, 2))
    assert np.array_equal(one.income, two.income) and not np.array_equal(one.income, other.income)


def test_rates_are_those_that_were_measured():
    rates = Rates()
    with open(ROOT / "data" / "captions.csv") as file:
        held = [r for r in csv.DictReader(file) if r["half"] == "held" and r["classifier"] == "features"]
    def share(kinds):
        rows = [r for r in held if r["kind"] in kinds]
        return sum(int(r["punished"]) for r in rows) / sum(int(r["captions"]) for r in rows)
    assert rates.list_seen == pytest.approx(share({"keywords", "hashtags", "thesaurus"}), abs=0.005)
    assert rates.text_seen == pytest.approx(share({"appended"}), abs=0.005)
    assert rates.honest_stuffed == share({r["kind"] for r in held if r["stuffed"] == "false"})
    with open(ROOT / "data" / "footage.csv") as file:
        trials = {r["kind"]: r for r in csv.DictReader(file) if r["half"] == "held out"}
    assert rates.copy_seen == pytest.approx(float(trials["two at once"]["share"]), abs=0.001)
    assert rates.copy_false == float(trials["different clips"]["share"])


def test_an_interval_holds_what_it_promises():
    rng = np.random.default_rng(0)
    inside = [low <= 1 <= high for _, low, high in (interval(rng.normal(1, 2, 10)) for _ in range(2000))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_forging_pays_under_the_subnets_policy_and_not_under_ours():
    report = attack_report(names=["forger", "caption forger"], shares=(0.3,), workers=1, seed=3,
                           scene=Scene(miners=20, rounds=150, sample=8, games=3, search_rounds=40, tries=3))
    rows = {(r["strategy"], r["rules"]): r for r in report.iter_rows(named=True)}
    for name in ("forger", "caption forger"):
        assert rows[name, "protocol"]["low"] > 0 > rows[name, "lab"]["high"]
    assert report["honest wronged"].max() < 0.02 and (report["detected low"] <= report["detected"]).all()


def test_a_cheat_that_does_what_honest_miners_do_earns_what_they_earn():
    """The same chance for the same seat: only what is done differently makes a difference."""
    scene = Scene(miners=16, rounds=40, sample=6, games=2, search_rounds=16, tries=2)
    report = attack_report(names=["honest", "nudger"], shares=(0.05, 0.4), workers=1, scene=scene).filter(pl.col("rules") == "lab")
    same, other = report.partition_by("strategy", maintain_order=True)
    assert np.allclose(same.select("advantage", "low", "high").to_numpy(), 0, atol=1e-12)
    assert (other["advantage"].abs() > 1e-3).all()


@pytest.mark.parametrize(("cheat", "seen"), [
    ("nudger", 0.0), ("whitewasher", 0.01), ("sleeper", 0.0), ("opportunist", 0.0)])
def test_cheats_that_no_check_fails_or_no_punishment_holds_do_not_pay(cheat, seen):
    """Turned vectors pass every check, a washed name leaves its punishment behind, a counting cheat stays below every bound."""
    strategies = {"honest": STRATEGIES["honest"], "cheat": STRATEGIES[cheat]}
    found = {rules: simulate({"honest": 14, "cheat": 6}, settings, 150, 2, strategies, sample=8) for rules, settings in policies().items()}
    assert advantage(found["lab"], "cheat")[0] < -0.03
    assert found["lab"].rate("cheat", "punished") >= seen
    if cheat in ("nudger", "opportunist"):
        assert advantage(found["protocol"], "cheat")[0] > 0.2


def test_a_whitewasher_pays_for_its_new_name_and_begins_anew():
    strategies = {"honest": STRATEGIES["honest"], "cheat": STRATEGIES["whitewasher"]}
    dear, cheap = (simulate({"honest": 6, "cheat": 2}, Settings(), 30, 0, strategies, sample=8, costs=Costs(registration=price)) for price in (5.0, 0.0))
    assert np.array_equal(dear.income, cheap.income), "the price changes what it keeps, not what happens"
    caught = dear.punished[dear.of("cheat")].sum()
    assert caught and (dear.cost - cheap.cost).sum() == pytest.approx(5.0 * caught)
    assert (dear.income[:, dear.of("cheat")] >= 0).all()


def test_a_copy_of_weights_ages():
    sealed = [copier_advantage(Settings(), n, epochs=22, validators=3)[0] for n in (0, 6)]
    assert sealed[0] > sealed[1]
    with pytest.raises(ValueError, match="12 epochs are too few"):
        copier_advantage(Settings(), 6, epochs=12)


def test_a_search_stays_within_bounds_and_does_not_lose_to_where_it_began():
    strategy, scene = STRATEGIES["recutter"], Scene(miners=20, rounds=20, sample=6, search_rounds=16, tries=5)
    best = tune(strategy, policies()["protocol"], scene, seed=1)
    assert all(low <= getattr(best, name) <= high for name, (low, high) in best.bounds.items())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_answers_within_the_wires_bounds(name):
    played = simulate({"honest": 2, name: 4} if name != "honest" else {name: 4}, Settings(), 12, sample=4)
    assert np.isfinite(played.income).all() and (played.cost >= 0).all()
    assert len(advantage(played, name)) == 3


def test_real_embeddings_can_be_played_on(tmp_path):
    pool = synthetic_pool(5, topics=3, clips=6, dim=16)
    names = ("video", "audio", "description")
    frame = pl.DataFrame({f"{m}_embed": v.tolist() for m, v in zip(names, pool.rows.transpose(1, 0, 2))} | {"query": [f"t{t}" for t in pool.topic]})
    frame.write_parquet(tmp_path / "shard.parquet")
    mine = read_pool(tmp_path / "shard.parquet")
    assert draw(mine, 1, 4, np.random.default_rng(0)).shape == (4, 3, 16)
    assert simulate({"honest": 3}, Settings(), 12, pool=mine, sample=3, costs=Costs(clip=0)).net("honest").mean() > 0.9
    frame.drop("audio_embed").write_parquet(tmp_path / "shard.parquet")
    with pytest.raises(ValueError, match="no column audio_emb"):
        read_pool(tmp_path / "shard.parquet")
    with pytest.raises(ValueError, match="no parquet"):
        read_pool(tmp_path / "nothing")


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["simulate", "honest=ten"], 2, "whole number above 0"), (["simulate", "honest"], 2, "name=value"), (["simulate", "thief=3"], 2, "no strategy 'thief'"),
    (["attack", "--strategy", "thief"], 2, "no strategy 'thief'"), (["attack", "--embeddings", "nowhere.parquet", "--quick"], 2, "no parquet file"),
    (["rescore", "--state", "nowhere"], 2, "--state"), (["rescore", "-s", "scoring.nothing=1"], 2, "no scoring number"),
    (["simulate", "honest=3", "-s", "checks.policy=never"], 2, "policy")])
def test_a_users_mistake_is_one_sentence(arguments, code, said):
    done = CliRunner().invoke(lab, arguments)
    assert done.exit_code == code and said in done.stderr and "Traceback" not in done.output + done.stderr


@pytest.mark.full
def test_what_every_cheat_earns_is_what_the_table_says():
    """What the README says, as it says how to see it."""
    report, kept = attack_report(), stored_report()
    assert np.allclose(report["advantage"].to_numpy(), kept["advantage"].to_numpy(), atol=1e-3), "data/attacks.csv is not what the code gives"
