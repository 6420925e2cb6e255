"""The partner's environment: made once in data/cache/sdk10, some 200 MB, and used by separate processes only."""
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

HERE, PLACE = Path(__file__).parent, Path("data/cache/sdk10").resolve()


class NoPartner(RuntimeError):
    """The environment could not be made; says why and what to do."""


def partner_python(seconds: float = 900) -> Path:
    """The interpreter of the partner's environment, installed when it is not there or its pins have changed."""
    wanted = hashlib.sha256(b"".join((HERE / f"{name}.txt").read_bytes() for name in ("requirements", "constraints"))).hexdigest()
    PLACE.mkdir(parents=True, exist_ok=True)
    with open(PLACE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = PLACE / ".ready"
        if not ready.exists() or ready.read_text() != wanted:
            _install(seconds)
            ready.write_text(wanted)
    return PLACE / "bin" / "python"


def _install(seconds: float) -> None:
    steps = [[sys.executable, "-m", "venv", str(PLACE)],
             [str(PLACE / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
              "-r", str(HERE / "requirements.txt"), "-c", str(HERE / "constraints.txt")]]
    for step in steps:
        try:
            subprocess.run(step, check=True, timeout=seconds, capture_output=True, text=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = (error.stderr or "nothing was said")[-800:]
            raise NoPartner(f"the partner's environment {PLACE} could not be made ({' '.join(step[2:4])}): it needs the package registry once."
                            f" Connect and run again, or leave these tests out with -k 'not sdk'.\n{said}") from error


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "BT_"))} | {"BT_NO_PARSE_CLI_ARGS": "1"}


def _said(line: str) -> dict | None:
    return json.loads(line.removeprefix("PARTNER ")) if line.startswith("PARTNER ") else None


def run(script: str, seconds: float = 40, **order) -> dict:
    """What a partner script says once it is done."""
    done = subprocess.run([str(partner_python()), str(HERE / f"{script}.py"), json.dumps(order)], timeout=seconds, env=_environ(),
                          capture_output=True, text=True)
    found = [said for line in done.stdout.splitlines() if (said := _said(line))]
    assert found, f"the partner said nothing:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return found[-1]


@contextmanager
def running(script: str, seconds: float = 40, **order):
    """A partner script that serves: what it said when it was ready."""
    process = subprocess.Popen([str(partner_python()), str(HERE / f"{script}.py"), json.dumps(order)], env=_environ(),
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.start()
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if said := _said(line):
                break
        else:
            raise AssertionError(f"the partner did not start:\n{''.join(lines)[-2000:]}")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield said
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        watchdog.cancel()
