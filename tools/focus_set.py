"""Record the calibration set of the Focus judge: `python tools/focus_set.py [--short] [--out FOLDER] [--jobs N] [NAME …]`.

Real programs on virtual screens, recorded by the lab's own recorder, several side by side. What is there already, made by the
same revision of the scenarios, is kept. Each recording is NAME.mp4 with NAME.task.json and NAME.inputs.jsonl beside it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from focus_desk import Desk, missing
from focus_packages import PACKAGES
from focus_scenarios import REVISION, SCENARIOS, SHORT, Scenario
from imageio_ffmpeg import get_ffmpeg_exe

from omega_lab.focus.files import write_json
from omega_lab.focus.record import Recorder, join_parts, make_nonce
from omega_lab.samples import fetch_archive
from omega_lab.settings import RecorderSettings

ROOT = Path(__file__).resolve().parent.parent
PACE = {"done": 1.8, "wrong": 1.8, "half": 3.0}  # of a recording of a minute; everything else at 1
SHORT_PACE, SHORT_SECONDS, SECONDS = 0.45, 22.0, 62.0


def record(scenario: Scenario, out: Path, films: Path, *, short: bool = False) -> Path:
    "Play a scenario on a desk of its own and record it; returns the film."
    pace = SHORT_PACE if short else PACE.get(scenario.truth, 1.0)
    with tempfile.TemporaryDirectory(prefix="focus-set-") as scratch, Desk(pace, scenario.theme, films) as desk:
        nonce, least = make_nonce(), (SHORT_SECONDS if short else SECONDS) / scenario.repeat
        scenario.start(desk)
        settings = RecorderSettings(display=desk.display, nonce_seconds=4)
        with Recorder(scratch, settings, nonce if scenario.repeat == 1 else "") as recorder:
            recorder.start()
            time.sleep(0 if scenario.repeat > 1 else 4.5)
            for step in scenario.steps:
                if not short or recorder.seconds < least * 3:
                    step(desk)
            while recorder.seconds < least + 0.5:
                time.sleep(0.2)
        film = join_parts(recorder.parts, Path(scratch) / "film.mp4").path
        return _keep(scenario, film, Path(scratch) / "inputs.jsonl", out, nonce, short)


def _keep(scenario: Scenario, film: Path, inputs: Path, out: Path, nonce: str, short: bool) -> Path:
    "Lay a film and what belongs to it into the set; the task's file comes last and marks it complete."
    target = out / f"{scenario.name}.mp4"
    if scenario.repeat > 1:
        looped = film.with_name("looped.mp4")
        subprocess.run([get_ffmpeg_exe(), "-loglevel", "error", "-stream_loop", str(scenario.repeat - 1), "-i", str(film), "-c", "copy", str(looped)],
                       check=True, stdin=subprocess.DEVNULL)  # fmt: skip
        film = looped
    elif inputs.exists():
        shutil.copyfile(inputs, out / f"{scenario.name}.inputs.jsonl")
    shutil.copyfile(film, target)
    about = {"title": scenario.task.title, "text": scenario.task.text, "nonce": nonce, "revision": revision(scenario, short)}
    write_json(out / f"{scenario.name}.task.json", about)
    return target


def revision(scenario: Scenario, short: bool) -> str:
    return f"{REVISION}{'-short' if short else ''}-{scenario.theme}"


def complete(scenario: Scenario, out: Path, short: bool) -> bool:
    try:
        return json.loads((out / f"{scenario.name}.task.json").read_text())["revision"] == revision(scenario, short)
    except (OSError, ValueError, KeyError):
        return False


def make_set(out: Path, *, short: bool = False, names: tuple[str, ...] = (), jobs: int = 4) -> list[Path]:
    "Record what is missing; the films of the set, in its order."
    chosen = [s for s in SCENARIOS if (s.name in names if names else not short or s.name in SHORT)]
    todo = [s for s in chosen if not complete(s, out, short)]
    if todo and (lacking := missing()):
        raise SystemExit(f"the desks need {', '.join(lacking)}: apt-get install --no-install-recommends {PACKAGES}")
    out.mkdir(parents=True, exist_ok=True)
    films = fetch_archive("moviepy", ROOT / "data") / "bunny.mp4" if todo else Path()
    with ThreadPoolExecutor(jobs) as pool:
        for number, film in enumerate(pool.map(lambda s: record(s, out, films, short=short), todo), start=1):
            print(f"{number} of {len(todo)}: {film.name}", flush=True)
    return [out / f"{s.name}.mp4" for s in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="scenarios; without any: all")
    parser.add_argument("--short", action="store_true", help="the short ones, in a hurry")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "focus_set")
    parser.add_argument("--jobs", type=int, default=4, help="desks side by side")
    given = parser.parse_args()
    films = make_set(given.out, short=given.short, names=tuple(given.names), jobs=given.jobs)
    print(f"{len(films)} recordings in {given.out}")


if __name__ == "__main__":
    sys.exit(main())
