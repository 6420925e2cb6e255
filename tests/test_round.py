"""The whole round with real processes: chain, four miners, validator, dataset; the roles are shuffled against the demo's."""
import html
import json
import os
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import datasets
import httpx
import nbformat
import polars as pl
import psutil
import pytest

from omega_lab.chain import AnswerReceipt, Chain, ReceiptError, verify_receipt
from omega_lab.corpus import load
from omega_lab.corpus.verify import audit_dataset, verify_rows
from omega_lab.corpus.viewer import viewer_findings
from omega_lab.demo import PLAYERS, TOPICS, Demo, Player, Stage
from omega_lab.scoring.weights import combine, task_shares
from omega_lab.settings import TasksSettings
from omega_lab.store import Store, rescore_response
from omega_lab.validator import leaderboard, purchases

ROLES = ("forger", "honest", "stuffer", "honest")  # the demo's own order is honest, honest, stuffer, forger


def players(roles):
    return tuple(Player(p.name, role, p.half) for p, role in zip(PLAYERS, roles, strict=True))


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A demo played through, its chain and miners still running, and what it said."""
    said = []
    demo = Demo("data", players(ROLES), TOPICS, folder=tmp_path_factory.mktemp("demo") / "run", stage=Stage(said.append))
    try:
        demo.play()
        yield demo, said
    finally:
        running = [psutil.Process(child.pid) for child in demo.children if child.poll() is None]
        demo.stop()
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in running)


def board(demo, roles):
    names = {demo.hotkeys[p.name]: p.behaviour for p in players(roles)}
    with Store(demo.folder / "state" / "validator") as store:
        return leaderboard(store, names)


def assert_honest_lead(table):
    assert table["miner"].to_list()[:2] == ["honest", "honest"], table
    honest = table["miner"] == "honest"
    assert (table.filter(honest)["weight_on_chain"] > 0).all() and (table.filter(~honest)["weight_on_chain"] == 0).all()
    assert (table.filter(honest)["punished"] == 0).all(), "an honest miner was punished"
    assert (table.filter(~honest)["score"] < table.filter(honest)["score"].min()).all()


def test_honest_miners_lead_whatever_their_place(played):
    demo, _ = played
    table = board(demo, ROLES)
    assert_honest_lead(table)
    assert (table["answered"] == len(TOPICS)).all()


def test_each_verdict_can_be_recomputed(played):
    with Store(played[0].folder / "state" / "validator") as store:
        stored = store.sql("select round, hotkey, reward from responses").rows()
        assert len(stored) == 4 * len(TOPICS)
        for number, hotkey, reward in stored:
            assert rescore_response(store, number, hotkey).reward == reward
        meta = store.sql("select encoder, settings_hash, index_version, seed from rounds order by round")
        assert meta["index_version"].to_list() == sorted(meta["index_version"]) and meta["encoder"].str.starts_with("bridge@").all()


def test_no_miner_can_disown_its_answer(played):
    hotkeys = played[0].hotkeys
    with Store(played[0].folder / "state" / "validator") as store:
        stored = store.sql("select hotkey, body_sha256, receipt, wire from responses where status = 'answered'").rows()
    assert len(stored) == 4 * len(TOPICS) and {hotkey for hotkey, *_ in stored} == {hotkeys[p.name] for p in PLAYERS}
    for hotkey, body_sha256, receipt, wire in stored:
        assert wire == "lab"
        verify_receipt(AnswerReceipt.of_text(receipt), signer=hotkey, caller=hotkeys["validator"], response_sha256=body_sha256)
    with pytest.raises(ReceiptError, match="another"):
        verify_receipt(AnswerReceipt.of_text(stored[0][2]), signer=stored[0][0], caller=hotkeys["validator"], response_sha256="0" * 64)


def test_weights_on_chain_are_the_stored_scores(played):
    demo, _ = played
    with Chain(demo.endpoint, 24) as chain, Store(demo.folder / "state" / "validator") as store:
        graph = chain.metagraph()
        seen = chain.weights(graph.by_hotkey(demo.hotkeys["validator"]).uid)
        told = combine({task: store.averages(task) for task in ("video", "focus")}, task_shares(TasksSettings().focus, 0.0))
    scores = {graph.by_hotkey(h).uid: s for h, s in told.items()}
    best = max(scores.values())
    assert {u for u, s in scores.items() if s > 0} == set(seen)
    for uid, weight in seen.items():
        assert weight / 65535 == pytest.approx(scores[uid] / best, abs=1e-3)


def test_a_recording_was_sold_and_everybody_can_see_it(played):
    demo, said = played
    told = "\n".join(said)
    assert f"{demo.buyer}: {demo.recording} is bought" in told and "drawn by the demo" in told and "of its weight" in told
    with Store(demo.folder / "state" / "validator") as store:
        assert store.averages("focus") == {demo.hotkeys[demo.buyer]: 1.0}
        assert purchases(store)["recordings"].to_list() == [1]
    page = httpx.get(f"{demo.service.url}/recordings/{demo.recording}").text
    assert ">sold<" in page and "Mousepad" in page and "Shopping list" in page
    rounds = httpx.get(f"{demo.service.url}/rounds").text
    assert all(html.escape(topic) in rounds for topic in demo.topics), "the validator told the service of its rounds"


def test_the_dataset_loads(played, tmp_path):
    demo, _ = played
    with Store(demo.folder / "state" / "validator") as store:
        rows = store.corpus_rows()
    dataset = load(demo.folder / "corpus")
    assert len(dataset) == rows > 0
    assert {"youtube_id", "video_embed", "query_relevance_score"} <= set(dataset.column_names)
    plain = datasets.load_dataset(str(demo.folder / "corpus"), split="train", cache_dir=str(tmp_path))
    assert plain.column_names == dataset.column_names and plain["video_id"] == dataset["video_id"]
    assert viewer_findings(demo.folder / "corpus") == []


def test_the_dataset_stands_up_to_an_audit(played):
    demo, _ = played
    found = audit_dataset(demo.folder / "corpus")
    assert found.ok, [str(finding) for finding in found.findings]
    shard, = sorted((demo.folder / "corpus").glob("default/train/*/*.parquet"))
    row = load(demo.folder / "corpus", columns=["video_id"])["video_id"][0]
    assert all(check.ok for check in verify_rows(demo.folder / "corpus", [row])), shard


def test_notebooks_are_executed_and_hold_no_secret(played):
    demo, _ = played
    notebooks = sorted((demo.folder / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 5
    secrets = [json.loads(p.read_text())["secretSeed"] for p in (demo.folder / "wallets").glob("*/hotkeys/*") if "pub" not in p.name]
    assert len(secrets) >= 5
    for path in notebooks:
        text = path.read_text()
        assert not any(secret.removeprefix("0x") in text for secret in secrets)
        cells = nbformat.reads(text, 4).cells
        assert all(c.execution_count for c in cells if c.cell_type == "code")
    assert sum("image/png" in str(c.get("outputs")) for c in cells) >= 3, "the logbook has pictures"


def test_the_reasons_are_said(played):
    _, said = played
    text = "\n".join(said)
    for words in ("stuffed caption", "honest", "report page", "seconds:"):
        assert words in text


def test_killed_validator_resumes(played):
    """kill -9 in the middle of a round: the next run goes on with the next number, on the same chain and miners."""
    demo, _ = played
    state = demo.folder / "state" / "validator"
    with Store(state) as store:
        before, rows = store.next_round(), store.sql("select * from responses order by round, hotkey")
    child = demo._pipeline("validator", "validator-killed", {"state": str(state), "topics": list(TOPICS), "settings": demo.settings("validator")},
                           stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.strip().startswith("round"):  # the first round is acknowledged, the second begins
            break
    time.sleep(0.7)
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    for process in family:
        os.kill(process.pid, signal.SIGKILL)
    child.wait()
    with Store(state, patience=15) as store:
        after = store.next_round()
        assert before + 1 <= after <= before + 2
        kept = store.sql("select * from responses where round < ? order by round, hotkey", before)
        assert kept.equals(rows)
    demo.topics = TOPICS[3:4]
    demo.run_validator()
    with Store(state) as store:
        assert store.next_round() == after + 1
        counted = store.sql("select hotkey, count(*) as n from responses group by hotkey")
        assert (counted["n"] == after).all()


def test_an_interrupt_leaves_nothing_running(tmp_path):
    """Ctrl-C while the miners prepare."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("catalog", "chain", "cache"):
        (data / name).symlink_to(Path("data", name).resolve())
    child = subprocess.Popen([sys.executable, "-m", "omega_lab.cli", "demo", "--data", str(data)], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if "miners prepare" in line:
            break
    time.sleep(3)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 5
    child.send_signal(signal.SIGINT)
    rest = child.stdout.read()
    assert child.wait(30) == 130 and "nothing is left running" in rest
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


@pytest.mark.full
@pytest.mark.parametrize("roles", sorted(set(permutations([p.behaviour for p in PLAYERS])) - {ROLES}))
def test_every_order_of_roles(tmp_path, roles):
    demo = Demo("data", players(roles), TOPICS, folder=tmp_path / "run", stage=Stage(lambda line: None))
    try:
        demo.play()
        assert_honest_lead(board(demo, roles))
    finally:
        demo.stop()
    assert isinstance(board(demo, roles), pl.DataFrame)
