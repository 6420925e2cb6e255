"""What a neuron tells of itself: log lines, metrics, health, round numbers, experiment logs."""
import json
import logging
import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from live_miner import live_miner
from prometheus_client.parser import text_string_to_metric_families

from omega_lab.observe import Experiment, Metrics, add_metrics, note_round, round_metrics, setup_logging
from omega_lab.scoring.video import ClipVerdict, LatentThresholds, Verdict
from omega_lab.settings import LogSettings, load_settings
from omega_lab.store import ResponseRecord, RoundRecord


def families(text: str) -> dict[str, list]:
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


def value(found: dict[str, list], name: str, **labels: str) -> float:
    return next(s.value for samples in found.values() for s in samples if s.name == name and s.labels == labels)


@pytest.fixture
def logged(tmp_path):
    "Set up logging into a file, and undo it: returns (start, read)."
    levels = {name: logging.getLogger(name).level for name in ("omega_lab", "uvicorn", "uvicorn.access")}
    handlers = []

    def start(**settings):
        handlers.append(setup_logging(LogSettings(**settings), tmp_path / "neuron.log"))
        return lambda: (tmp_path / "neuron.log").read_text().splitlines()

    yield start
    for handler in handlers:
        logging.getLogger().removeHandler(handler)
        handler.close()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(False)


# ---- log lines

def test_json_lines_parse_with_their_fields(logged):
    read = logged(format="json", level="debug")
    log = logging.getLogger("omega_lab.validator.round")
    log.debug("asked %d miners", 3, extra={"round": 7, "topic": "cats\nand “dogs”", "seconds": 1.5, "uids": (1, 2), "novelty": float("nan")})
    line, = map(json.loads, read())
    assert line["message"] == "asked 3 miners" and line["logger"] == "omega_lab.validator.round" and line["level"] == "debug"
    assert (line["round"], line["topic"], line["seconds"], line["uids"], line["novelty"]) == (7, "cats\nand “dogs”", 1.5, [1, 2], "nan")
    at = datetime.fromisoformat(line["time"])
    assert line["time"].endswith("Z") and len(line["time"]) == 24 and abs((datetime.now(at.tzinfo) - at).total_seconds()) < 60


def test_a_field_cannot_replace_the_lines_own(logged):
    read = logged(format="json")
    logging.getLogger("omega_lab").info("true", extra={"level": "forged", "time": "forged", "logger": "forged"})
    line, = map(json.loads, read())
    assert line["level"] == "info" and line["logger"] == "omega_lab" and line["time"] != "forged"


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(logged, level, heard):
    read = logged(level=level)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("omega_lab.miner"), name)("said")
    logging.getLogger("some.library").info("not ours")
    assert len(read()) == heard


def test_an_exception_is_one_field(logged):
    read = logged(format="json")
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        logging.getLogger("omega_lab").exception("could not judge", extra={"miner": "5Hot"})
    line, = map(json.loads, read())
    assert line["exception"].startswith("Traceback") and "broken\nin two" in line["exception"] and line["miner"] == "5Hot"


def test_text_cannot_be_forged(logged):
    read = logged()
    logging.getLogger("omega_lab.miner").info("topic: %s", "a\n2030-01-01T00:00:00.000Z error miner: \x1b[31mstolen", extra={"query": "b\nc"})
    assert len(read()) == 1 and "\x1b" not in read()[0]


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_blotted_out(logged, monkeypatch, form):
    monkeypatch.setenv("SOME_API_KEY", "k-123456789")
    read = logged(format=form)
    try:
        raise RuntimeError("refused k-123456789 at https://ann:pw123@example.org/x")
    except RuntimeError:
        logging.getLogger("omega_lab").exception("sent k-123456789", extra={"mnemonic": "one two", "settings": {"proxy_password": "hush"}})
    text = "\n".join(read())
    assert not any(secret in text for secret in ("k-123456789", "pw123", "one two", "hush")) and "***" in text


def test_setting_up_twice_says_everything_once(logged):
    logged(), logged(format="json")
    read = logged(format="json")
    logging.getLogger("omega_lab").info("once")
    assert len(read()) == 1


def test_a_file_is_rolled_over(tmp_path):
    handler = setup_logging(LogSettings(), tmp_path / "a.log", max_bytes=2000)
    try:
        for i in range(200):
            logging.getLogger("omega_lab").warning("line %d", i)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        logging.captureWarnings(False)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["a.log", "a.log.1", "a.log.2", "a.log.3"] and all(p.stat().st_size <= 2000 for p in tmp_path.iterdir())


# ---- metrics

@pytest.fixture(scope="module")
def miner(tmp_path_factory):
    with live_miner(tmp_path_factory.mktemp("miner"), log__format="json") as live:
        yield live


def test_what_a_miner_counts(miner):
    sent = len(miner.post(b'{"query": "a big cat", "num_videos": 2}').json()["video_metadata"])
    assert sent == 2
    assert [miner.post(b"{}", who).status_code for who in (None, "stranger", "validator")] == [401, 403, 422]
    httpx.get(miner.url + "/5Hotkey/of/a/stranger")
    page = httpx.get(miner.url + "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    found = families(page.text)
    assert value(found, "omega_lab_clips_sent_total") == 2
    assert value(found, "omega_lab_requests_total", method="POST", path="/v1/videos", status="200") == 1
    assert value(found, "omega_lab_requests_total", method="GET", path="other", status="404") == 1
    assert value(found, "omega_lab_request_seconds_count", path="/v1/videos") == 4
    reasons = {s.labels["reason"] for s in found["omega_lab_refusals"] if s.name.endswith("_total")}
    assert {"unsigned request", "hotkey not registered on the subnet"} <= reasons
    assert value(found, "omega_lab_shelf_clips") > 2 and value(found, "omega_lab_chain_block") > 0
    assert 0 <= value(found, "omega_lab_chain_block_age_seconds") < 60 and value(found, "omega_lab_answers_running") == 0
    assert value(found, "process_resident_memory_bytes") > 10**7
    assert not any(wallet.hotkey.ss58_address in page.text for wallet in miner.wallets.values())


def test_health_of_a_miner(miner):
    miner.post(b'{"query": "a big cat", "num_videos": 1}')
    answer = httpx.get(miner.url + "/healthz")
    facts = answer.json()
    assert answer.status_code == 200 and facts["encoder"].startswith("bridge@") and facts["clips"] > 2 and facts["block"] > 0
    assert facts["version"] and facts["answering"] == 0 and facts["last_answer"].endswith("Z")


def test_a_miners_log_is_lines_of_json(miner):
    lines = (miner.state / "miner.log").read_text().splitlines()
    assert all(json.loads(line)["logger"] for line in lines if line)
    assert any("uvicorn" in json.loads(line)["logger"] for line in lines)
    answered = [line for line in map(json.loads, lines) if line["message"] == "answered"]
    assert answered and answered[0]["validator"] == miner.wallets["validator"].hotkey.ss58_address
    assert answered[0]["topic"] == "a big cat" and answered[0]["clips"] == 2 and answered[0]["seconds"] >= 0


def test_labels_are_bounded():
    metrics = Metrics()
    for i in range(500):
        metrics.note(f"VERB{i}", "other", 403, json.dumps({"detail": "made up " + "abcdefghijklmnopqrstuvwxyz"[i % 26] * (1 + i // 26)}).encode(), 0.1)
    found = families(metrics.page()[0].decode())
    assert len([s for s in found["omega_lab_refusals"] if s.name.endswith("_total")]) == 41
    assert value(found, "omega_lab_requests_total", method="other", path="other", status="403") == 500


def test_a_handler_that_fails_is_counted():
    app = FastAPI()
    metrics = add_metrics(app)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("inside")

    assert TestClient(app, raise_server_exceptions=False).get("/broken").status_code == 500
    assert value(families(metrics.page()[0].decode()), "omega_lab_requests_total", method="GET", path="/broken", status="500") == 1


# ---- rounds

def invented_round(number: int = 1, answers: int = 2) -> RoundRecord:
    def at(second: int) -> datetime:
        return datetime(2026, 1, 31, 4, number, second)
    scored = Verdict(0.6, "scored", "", (ClipVerdict(True, novelty=0.5), ClipVerdict(False, "near-duplicate", novelty=0.1)))
    punished = Verdict(-5.0, "punished", "fake", (ClipVerdict(False, "fake"), ClipVerdict(False, "fake")))
    records = tuple(ResponseRecord(uid, f"5M{uid}", "answered", "", 3.0, at(3 + uid), "", 7, (), (), np.zeros((0, 3, 4)), verdict, (uid == 0, False))
                    for uid, verdict in enumerate((scored, punished)[:answers]))
    return RoundRecord(number, "cats", np.zeros(4), 7, at(0), at(9), 100, "toy@1", LatentThresholds(), load_settings(environ={}), 12, records)


def test_round_metrics():
    numbers = round_metrics(invented_round(), weights_set=False)
    assert {k: numbers[k] for k in ("miners", "clips_asked", "clips_accepted", "clips_entered", "punished", "index_version", "weights_set")} == {
        "miners": 2, "clips_asked": 16, "clips_accepted": 1, "clips_entered": 1, "punished": 1, "index_version": 12, "weights_set": 0}
    assert numbers["reward_mean"] == pytest.approx(-2.2) and numbers["novelty_mean"] == pytest.approx(0.3)
    assert (numbers["seconds"], numbers["seconds_asking"], numbers["seconds_judging"]) == (9, 4, 5)


def test_a_round_that_nobody_answered():
    numbers = round_metrics(invented_round(answers=0))
    assert numbers["miners"] == numbers["reward_mean"] == numbers["seconds_asking"] == 0 and "weights_set" not in numbers


def test_textfile(tmp_path):
    for number in (1, 2):
        note_round(invented_round(number), tmp_path, weights_set=True, weights_block=345)
    found = families((tmp_path / "metrics.prom").read_text())
    assert value(found, "omega_lab_round") == 2 and value(found, "omega_lab_weights_block") == 345
    assert value(found, "omega_lab_round_clips_accepted") == 1
    assert datetime.fromtimestamp(value(found, "omega_lab_round_ended_timestamp_seconds"), UTC) == datetime(2026, 1, 31, 4, 2, 9, tzinfo=UTC)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.prom"]


def test_a_textfile_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    assert note_round(invented_round(), tmp_path / "file", weights_set=False)["miners"] == 2
    assert "could not be written" in caplog.text


# ---- experiment logs, each in a process of its own: both libraries keep one place per process

PROGRAM = """
import sys
from omega_lab.observe import Experiment
from omega_lab.settings import LogSettings
with Experiment(LogSettings(experiment=sys.argv[1], project="lab"), sys.argv[2], "validator 5Hot") as experiment:
    for step in map(int, sys.argv[3:]):
        experiment.log({"reward_mean": step / 10, "clips_accepted": step}, step)
"""
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}


def play(kind, state, *steps, **environ):
    done = subprocess.run([sys.executable, "-c", PROGRAM, kind, str(state), *map(str, steps)], capture_output=True, text=True, timeout=120,
                          env=os.environ | NO_NETWORK | environ)
    assert done.returncode == 0, done.stderr
    return done


def test_trackio_is_read_back_from_its_file(tmp_path):
    assert play("trackio", tmp_path, 1, 2).stdout == ""
    play("trackio", tmp_path, 2, 3)  # after a restart: the same run goes on, a step told twice counts once
    with sqlite3.connect(tmp_path / "trackio" / "lab.db") as db:
        rows = db.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(run, step, json.loads(text)["reward_mean"]) for run, step, text in rows] == [("validator 5Hot", s, s / 10) for s in (1, 2, 3)]


def test_wandb_offline(tmp_path):
    play("wandb", tmp_path, 1, 2, WANDB_MODE="offline", WANDB_API_KEY="")
    run, = (tmp_path / "wandb").glob("offline-run-*")
    assert run.name.endswith("-validator-5Hot") and next(run.glob("*.wandb")).stat().st_size > 0


@pytest.mark.full  # W&B gives up after 20 s
def test_wandb_without_a_network_costs_one_warning(tmp_path):
    done = play("wandb", tmp_path, 1, 2, WANDB_MODE="online", WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.stderr.count("no experiment log any more: could not open it") == 1


def test_a_diary_that_fails_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    with Experiment(LogSettings(experiment="wandb"), tmp_path / "file" / "below", "validator") as experiment:
        for step in range(3):
            experiment.log({"a": 1}, step)
    assert [r.levelname for r in caplog.records if r.name == "omega_lab.observe"] == ["WARNING"]


def test_a_library_that_is_not_there_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with Experiment(LogSettings(), tmp_path, "validator") as experiment:
        experiment.log({"a": 1}, 1)
    assert "pip install" in caplog.text
