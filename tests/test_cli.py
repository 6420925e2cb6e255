"""The command line as a user meets it: real processes, real files, one sentence for a mistake and never a traceback."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import nbformat as nf
import pytest

from omega_lab.flags import FLAGS, endpoint_of, overrides
from omega_lab.settings import Settings

CASES = Path(__file__).parent / "video_scoring_cases.json"


def lab(*arguments, env=None, cwd=None):
    command = [sys.executable, "-m", "omega_lab.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}), cwd=cwd, timeout=120)


def test_score_prints_what_the_file_expects():
    done = lab("score", CASES)
    assert done.returncode == 0, done.stderr
    got, want = json.loads(done.stdout), [case["expect"] for case in json.loads(CASES.read_text())["cases"]]
    assert [set(g) for g in got] == [{"reward", "accepted", "description_relevance", "query_relevance"}] * len(want)
    assert [g["reward"] for g in got] == pytest.approx([w["reward"] for w in want], abs=1e-6)
    assert [g["accepted"] for g in got] == [w["accepted"] for w in want]


@pytest.mark.parametrize(("text", "said"), [
    (None, "No such file"), ("{", "Invalid JSON"), ('{"cases": [{"query_emb": [1], "clips": [{"video_id": 3}]}]}', "cases.0.clips.0"),
    ('{"cases": [{"query_emb": [1, 2], "clips": [{"video_id": "a", "start_time": 0, "end_time": 9, "video_emb": [1], "audio_emb": [1],'
     ' "description_emb": [1, 2], "text_similarity": 0, "unique_tokens": 1, "stuffed": [false, 1], "extraneous": [0, 0, 1],'
     ' "index_novelty": 1}]}]}', "want 2")])
def test_score_of_a_bad_file_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "cases.json"
    if text is not None:
        path.write_text(text)
    done = lab("score", path)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    assert str(path) in done.stderr


@pytest.mark.parametrize(("env", "said"), [
    ({"OMEGA_LAB_SCORING_MINIMUM": "abc"}, "[scoring] minimum = abc"), ({"OMEGA_LAB_FOO_BAR": "1"}, "unknown section [foo]"),
    ({"OMEGA_LAB_CHECKS_POLCY": "protocol"}, "has no key 'polcy'")])
def test_a_wrong_setting_names_its_place(env, said):
    done = lab("settings", env=env)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_file_names_itself(tmp_path):
    (tmp_path / "settings.ini").write_text("[validator]\nnum_videos = 0\n")
    done = lab("settings", cwd=tmp_path)
    assert done.returncode == 2 and "settings.ini: [validator] num_videos = 0" in done.stderr


def test_the_shipped_settings_are_the_defaults(tmp_path):
    assert lab("settings", cwd=tmp_path).stdout == Path("settings.ini").read_text()


def test_a_proxys_password_is_not_shown(tmp_path):
    shown = lab("settings", env={"OMEGA_LAB_SOURCE_PROXY": "socks5://me:hush@10.0.0.1:9050,http://10.0.0.2:3128"}, cwd=tmp_path).stdout
    assert "hush" not in shown and "proxy = socks5://***@10.0.0.1:9050,http://10.0.0.2:3128" in shown


def test_unknown_pipelines_and_parameters():
    assert "no pipeline named 'nothing'" in lab("run", "nothing").stderr
    done = lab("run", "miner", "-p", "nonsense=1")
    assert done.returncode == 2 and "has no parameter nonsense" in done.stderr and "topics" in done.stderr


def test_a_neuron_without_a_chain_says_so(tmp_path):
    done = lab("validator", "--state", tmp_path / "state", "--output", tmp_path / "out.ipynb", "--set", "network.endpoint=ws://127.0.0.1:9",
               "--set", f"wallet.path={tmp_path}")
    assert done.returncode == 1 and "Traceback" not in done.stderr and (tmp_path / "out.ipynb").exists()


def test_the_bridge_is_refused_on_a_chain_that_is_not_local(tmp_path):
    done = lab("miner", "--state", tmp_path / "state", "--output", tmp_path / "out.ipynb", "--set", "network.endpoint=wss://node.example.org:443")
    assert done.returncode == 1 and "for a local chain only" in done.stderr


SEED_MINER = ("--netuid 24 --wallet.name W --wallet.hotkey H --wallet.path P --axon.port 8091 --axon.external_ip 203.0.113.7 --axon.external_port 9 "
              "--subtensor.network test --blacklist.force_validator_permit --blacklist.allow_non_registered --blacklist.validator_min_stake 100 "
              "--neuron.query_augment NoAugment --neuron.name x --logging.trace --wandb.off")


def says_its_settings(folder, neuron):
    "A pipeline of the working directory's own, which only says what it was given."
    cells = ["state = ''\ntopics = []\nsettings = {}", "print('given', __import__('json').dumps(settings))"]
    notebook = nf.v4.new_notebook(cells=[nf.v4.new_code_cell(source) for source in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    (folder / "pipelines").mkdir()
    nf.write(notebook, folder / "pipelines" / f"{neuron}.ipynb")


@pytest.mark.parametrize("neuron", ["miner", "validator"])
def test_one_line_starts_either_neuron(tmp_path, neuron):
    says_its_settings(tmp_path, neuron)
    line = ("--netuid 24 --wallet.name W --wallet.hotkey H --axon.port 8091 --subtensor.network test --blacklist.force_validator_permit "
            "--logging.trace --wandb.off")
    done = lab(neuron, *line.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    given, common = json.loads(done.stdout.split("given ")[1].splitlines()[0]), {
        "network.netuid": 24, "network.endpoint": "wss://test.finney.opentensor.ai:443", "wallet.name": "W", "wallet.hotkey": "H",
        "log.level": "debug", "log.experiment": "off"}
    notes = [said for said in done.stderr.splitlines() if said.startswith("note: ")]
    if neuron == "miner":
        assert given == common | {"miner.port": 8091, "miner.force_validator_permit": True} and not notes
    else:
        assert given == common and notes == [f"note: {flag}: no effect on a validator" for flag in ("--axon.port", "--blacklist.force_validator_permit")]


def test_the_networks_own_flags_become_settings(tmp_path):
    says_its_settings(tmp_path, "miner")
    done = lab("miner", *SEED_MINER.split(), "--set", "network.endpoint=ws://127.0.0.1:9", "--set", "network.attempts=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: --neuron.name has no effect" in done.stderr and "note: --blacklist.allow_non_registered has no effect" in done.stderr
    assert json.loads(done.stdout.split("given ")[1].splitlines()[0]) == {
        "network.netuid": 24, "network.endpoint": "ws://127.0.0.1:9", "network.attempts": 1, "wallet.name": "W", "wallet.hotkey": "H", "wallet.path": "P",
        "miner.port": 8091, "miner.host": "0.0.0.0", "miner.external_ip": "203.0.113.7", "miner.external_port": 9, "miner.force_validator_permit": True,
        "miner.min_stake_tao": 100.0, "miner.augment": "none", "log.level": "debug", "log.experiment": "off"}


@pytest.mark.parametrize(("written", "said"), [
    (["--subtensor.network", "finny"], "Unknown network 'finny'"), (["--wallet.nam", "W"], "--wallet.name"), (["--axon.port", "x"], "--axon.port"),
    (["--mock"], "omega-lab demo"), (["--neuron.query_augment", "Some"], "NoAugment, LocalLLMAugment"), (["--set", "wallet"], "write it as name=value")])
def test_a_flag_written_wrongly_names_what_is_meant(tmp_path, written, said):
    done = lab("miner", "--state", tmp_path / "state", *written, env={"COLUMNS": "200"})
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "state").exists()


@pytest.mark.parametrize(("network", "endpoint"), [
    ("finney", "wss://entrypoint-finney.opentensor.ai:443"), ("test", "wss://test.finney.opentensor.ai:443"), ("local", "ws://127.0.0.1:9944"),
    ("archive", "wss://archive.chain.opentensor.ai:443"), ("ws://10.1.2.3:9944", "ws://10.1.2.3:9944")])
def test_networks_are_those_of_the_sdk(monkeypatch, network, endpoint):
    monkeypatch.delenv("BT_CHAIN_ENDPOINT", raising=False)
    assert endpoint_of(network) == endpoint
    by_name = {flag.name: flag for flag in FLAGS}
    both = {by_name["--subtensor.network"]: network, by_name["--subtensor.chain_endpoint"]: "ws://127.0.0.1:1"}
    assert overrides(both, Settings())[0] == {"network.endpoint": "ws://127.0.0.1:1"}


def test_every_flag_is_shown_with_its_setting():
    shown = lab("validator", "--help", env={"COLUMNS": "240"}).stdout
    assert all(flag.name in shown and flag.key in shown for flag in FLAGS if flag.neuron in ("", "validator") and not flag.refused)
    assert "--axon.port" not in shown and "Exit codes: 0" in shown


def test_help_comes_quickly_and_loads_nothing_heavy():
    code = "import sys, omega_lab.cli; print([m for m in ('torch', 'bittensor', 'papermill', 'duckdb', 'polars', 'fastapi', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_chain_by_hand_says_what_is_wrong():
    done = lab("chain", "show", "--endpoint", "ws://127.0.0.1:9")
    assert done.returncode == 1 and "is not reachable" in done.stderr and "Traceback" not in done.stderr
    assert lab("verify-payment").returncode == 64


def test_a_taken_port_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for command in (["localnet", "--port", port], ["api", "--set", f"service.port={port}"]):
            done = lab(*command)
            assert done.returncode == 1 and f"port {port} of 127.0.0.1 is taken by another process" in done.stderr and "Traceback" not in done.stderr


def test_a_bad_period_and_a_missing_folder(tmp_path):
    done = lab("miner", "--every", "soon", cwd=tmp_path)
    assert done.returncode == 2 and "is no period" in done.stderr
    gone = lab("stop", tmp_path / "nowhere")
    assert gone.returncode == 1 and "no such folder" in gone.stderr


def test_doctor_tells_what_would_be_used(tmp_path):
    done = lab("doctor", env={"COLUMNS": "200"}, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bridge@" in done.stdout and "set [network] endpoint" in done.stdout and "omega-lab samples" in done.stdout
    broken = lab("doctor", env={"COLUMNS": "200", "OMEGA_LAB_NETWORK_ENDPOINT": "ws://127.0.0.1:9"}, cwd=tmp_path)
    assert broken.returncode == 1 and "✗  chain" in broken.stdout
