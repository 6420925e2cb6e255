"""Rounds that follow one another: real processes, real kernels, real signals, and small notebooks of a folder of their own."""
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat as nf
import psutil
import pytest
from typer.testing import CliRunner

from omega_lab.cli import app
from omega_lab.schedule import parse_period, thin

COUNT = """import json, os, time
from pathlib import Path
log = Path(state) / "log.jsonl"
number = len(log.read_text().splitlines()) + 1 if log.exists() else 1
with open(log, "a") as file:
    file.write(json.dumps({"pid": os.getpid(), "at": time.time(), "warm": "statistics" in __import__("sys").modules}) + "\\n")
print("round", number, "of the notebook")
leaked = "before" in globals()
import statistics
before = True"""
WORK = """assert not leaked, "names of an earlier round"
if number in fail_at:
    raise ValueError(f"round {number} fails")
if number in die_at:
    os.kill(os.getpid(), 9)
(Path(state) / "working").touch()
time.sleep(seconds)
(Path(state) / f"ended-{number}").touch()"""


@pytest.fixture
def lab(tmp_path):
    "A working directory with one pipeline, and a function that starts `omega-lab run` in it."
    (tmp_path / "pipelines").mkdir()
    parameters = "state = 'state'\nseconds = 0.0\nfail_at = []\ndie_at = []\nsettings = {}"
    notebook = nf.v4.new_notebook(cells=[nf.v4.new_code_cell(source) for source in (parameters, COUNT, WORK)])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nf.write(notebook, tmp_path / "pipelines" / "small.ipynb")
    started = []

    def run(*arguments, name="small", **options):
        command = [sys.executable, "-m", "omega_lab.cli", "run", name, "--state", "state", *map(str, arguments)]
        with open(tmp_path / f"said-{len(started)}", "w") as said:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT, start_new_session=True, **options)
        process.said = lambda path=said.name: Path(path).read_text()
        started.append(process)
        return process

    run.folder = tmp_path
    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def rounds(lab):
    log = lab.folder / "state" / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def memory(lab):
    return json.loads((lab.folder / "state" / "schedule-small.json").read_text())


def until(what, process, seconds=90.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return
        assert process.poll() is None, process.said()
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s:\n{process.said()}")


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    assert process.wait(60) == 0, process.said()


def test_rounds_follow_each_other_on_one_warm_kernel_and_notebooks_are_thinned(lab):
    process = lab("--every", "0.5s", "--set", "schedule.keep_runs=2")
    until(lambda: memory(lab)["round"] >= 5 if (lab.folder / "state" / "schedule-small.json").exists() else False, process)
    stop(process)
    seen = rounds(lab)
    assert len({each["pid"] for each in seen}) == 1 and [each["warm"] for each in seen[:3]] == [False, True, True]
    assert all(later["at"] - earlier["at"] > 0.3 for earlier, later in zip(seen[1:], seen[2:]))  # the first pays for the start
    kept = sorted((lab.folder / "runs" / "small").glob("*.ipynb"))
    assert len(kept) == 2 and "round 5" in process.said()
    last = nf.read(kept[-1], 4)
    assert f"round {len(seen)} of the notebook" in str(last.cells) and all(cell.execution_count <= 4 for cell in last.cells)
    assert not psutil.pid_exists(seen[0]["pid"])


def test_a_failed_round_is_shown_kept_and_followed_after_a_wait(lab):
    process = lab("--every", "0.2s", "-p", "fail_at=[2, 3]", "-p", "die_at=[5]", "--set", "schedule.backoff_first=0.5")
    until(lambda: (lab.folder / "state" / "ended-6").exists(), process)
    stop(process)
    said, seen = process.said(), rounds(lab)
    assert "small: cell 3 failed: ValueError: round 2 fails" in said and 'raise ValueError(f"round {number} fails")' in said
    assert "next try in 0.5 s (1 failed in a row)" in said and "next try in 1 s (2 failed in a row)" in said
    assert "the kernel died by SIGKILL" in said and said.count("(1 failed in a row)") == 2
    assert seen[2]["at"] - seen[1]["at"] > 0.5 and seen[3]["at"] - seen[2]["at"] > 1.0
    assert memory(lab)["failures"] == 0 and len({each["pid"] for each in seen}) == 4
    failed = sorted((lab.folder / "runs" / "small").glob("*.failed.ipynb"))
    assert len(failed) == 3 and all(path.name in said for path in failed)
    assert "DeadKernelError" in failed[-1].read_text()


def test_a_signal_lets_the_round_end(lab):
    process = lab("--every", "1h", "-p", "seconds=0.7")
    until(lambda: (lab.folder / "state" / "working").exists(), process)
    stop(process)
    assert (lab.folder / "state" / "ended-1").exists() and memory(lab) | {"due": ""} == {"round": 1, "due": "", "failures": 0, "running": ""}
    [kept] = (lab.folder / "runs" / "small").glob("*.ipynb")
    assert nf.read(kept, 4).metadata.papermill.exception is None and "stopping" in process.said()


@pytest.mark.parametrize(("settings", "signals"), [([], 2), (["--set", "schedule.stop_within=0.5"], 1)])
def test_a_second_signal_or_the_end_of_patience_interrupts_the_round(lab, settings, signals):
    process = lab("--every", "1h", "-p", "seconds=60", *settings)
    until(lambda: (lab.folder / "state" / "working").exists(), process)
    for _ in range(signals - 1):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    stop(process, signal.SIGINT)
    assert not (lab.folder / "state" / "ended-1").exists() and memory(lab)["running"] == ""
    [kept] = (lab.folder / "runs" / "small").glob("*.stopped.ipynb")
    assert "KeyboardInterrupt" in kept.read_text()


def test_two_on_one_state_folder_are_refused_and_one_that_waits_stops_at_once(lab):
    first = lab("--every", "1h")
    until(lambda: (lab.folder / "state" / "ended-1").exists(), first)
    second = lab()
    assert second.wait(60) == 1 and f"process {first.pid}" in second.said() and "Traceback" not in second.said()
    began = time.monotonic()
    stop(first)
    assert time.monotonic() - began < 5 and len(rounds(lab)) == 1


def test_after_kill_9_no_kernel_is_left_and_the_next_start_goes_on(lab):
    process = lab("--every", "1h", "-p", "seconds=60")
    until(lambda: (lab.folder / "state" / "working").exists(), process)
    kernel = psutil.Process(rounds(lab)[0]["pid"])
    process.kill()
    process.wait()
    assert psutil.wait_procs([kernel], 5)[1] == [] and memory(lab)["running"]
    again = lab("--every", "1h")
    until(lambda: (lab.folder / "state" / "ended-2").exists(), again)
    stop(again)
    assert "round 1 was cut off" in again.said() and memory(lab)["round"] == 2
    assert len(list((lab.folder / "runs" / "small").glob("*.failed.ipynb"))) == 1
    third = lab("--every", "1h")  # nothing is due for an hour
    until(lambda: (lab.folder / "state" / "schedule-small.lock").read_text() == f"{third.pid}\n", third)
    time.sleep(0.5)
    stop(third)
    assert memory(lab)["round"] == 2


def test_a_kernel_busy_in_c_ends_with_its_starter_as_well(lab):
    code = "import ctypes; (Path(state) / 'busy').touch(); ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock"
    notebook = nf.read(lab.folder / "pipelines" / "small.ipynb", 4)
    notebook.cells[2].source = code
    nf.write(notebook, lab.folder / "pipelines" / "small.ipynb")
    process = lab("--every", "1h")
    until(lambda: (lab.folder / "state" / "busy").exists(), process)
    kernel = psutil.Process(rounds(lab)[0]["pid"])
    process.kill()
    process.wait()
    assert psutil.wait_procs([kernel], 5)[1] == []


def test_a_round_longer_than_the_period_is_followed_at_once_and_none_pile_up(lab):
    process = lab("--every", "0.3s", "-p", "seconds=1")
    until(lambda: (lab.folder / "state" / "ended-3").exists(), process)
    stop(process)
    seen = rounds(lab)
    assert all(1.0 < later["at"] - earlier["at"] < 2.5 for earlier, later in zip(seen, seen[1:]))


@pytest.mark.parametrize(("arguments", "name", "said", "code"), [
    (["-p", "second=1"], "small", "has no parameter second; it has: state, seconds", 2),
    (["-p", "fail_at=2"], "small", "is a number, it wants a list", 2),
    (["--every", "soon"], "small", "'soon' is no period", 2),
    ([], "focs", "no pipeline named 'focs'; there are: ", 2),
    (["--every", "1m", "--output", "x.ipynb"], "small", "--runs", 2)])
def test_what_is_written_wrongly_is_told_before_anything_starts(lab, monkeypatch, arguments, name, said, code):
    monkeypatch.chdir(lab.folder)
    done = CliRunner().invoke(app, ["run", name, "--state", "state", *arguments])
    assert done.exit_code == code and said in done.stderr and "Traceback" not in done.output
    assert not (lab.folder / "state").exists() and not (lab.folder / "runs").exists()


def test_once_is_once(lab):
    process = lab("--output", "one.ipynb")
    assert process.wait(60) == 0 and (lab.folder / "one.ipynb").exists() and len(rounds(lab)) == 1
    failed = lab("-p", "fail_at=[2]")
    assert failed.wait(60) == 1 and "ValueError: round 2 fails" in failed.said() and "Traceback (most recent call last):\n  File" not in failed.said()


def test_a_memory_that_cannot_be_read_says_what_to_do(lab, monkeypatch):
    monkeypatch.chdir(lab.folder)
    (lab.folder / "state").mkdir()
    (lab.folder / "state" / "schedule-small.json").write_text("{")
    done = CliRunner().invoke(app, ["run", "small"])
    assert done.exit_code == 1 and "schedule-small.json cannot be read" in done.stderr and "remove it" in done.stderr


def test_thinning_leaves_other_files_alone(tmp_path):
    names = [f"20260101T00000{n}.000Z{how}.ipynb" for n in range(4) for how in ("", ".failed")] + ["mine.ipynb", "20260101.txt"]
    for name in names:
        (tmp_path / name).touch()
    assert len(thin(tmp_path, 1)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20260101.txt", *names[6:8][::-1], "mine.ipynb"]


def test_the_lock_is_not_inherited(lab):
    "What a round starts and leaves running, a miner's server for instance, must not hold the state folder."
    notebook = nf.read(lab.folder / "pipelines" / "small.ipynb", 4)
    notebook.cells[2].source = "import subprocess\nprint('left', subprocess.Popen(['sleep', '20'], start_new_session=True, close_fds=False).pid)"
    nf.write(notebook, lab.folder / "pipelines" / "small.ipynb")
    process = lab()
    assert process.wait(60) == 0
    left = int(process.said().split("left ")[1].split()[0])
    try:
        with open(lab.folder / "state" / "schedule-small.lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(left, signal.SIGKILL)


def test_another_pipeline_may_share_the_state_folder(lab):
    (lab.folder / "pipelines" / "other.ipynb").write_bytes((lab.folder / "pipelines" / "small.ipynb").read_bytes())
    first = lab("--every", "1h", "-p", "seconds=60")
    until(lambda: (lab.folder / "state" / "working").exists(), first)
    assert lab(name="other").wait(60) == 0


def test_periods():
    assert [parse_period(text) for text in ("90s", "20m", "2h", "7")] == [90, 1200, 7200, 7]
