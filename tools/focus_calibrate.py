"""Judge the calibration set and print how well: `python tools/focus_calibrate.py [--set FOLDER] [--write]`.

Records what is missing of the set first (tools/focus_set.py). Evidence is kept beside the recordings and taken anew when the
recording or what takes it has changed. `--write` also keeps the table as data/focus_calibration.csv, which the docs show.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import polars as pl
from focus_set import ROOT, make_set

from omega_lab.focus import evidence as evidence_module
from omega_lab.focus import reading, screen
from omega_lab.focus.calibration import case_row, figures, rule_table, summary
from omega_lab.focus.evidence import Evidence, gather, keep, load
from omega_lab.focus.judge import judge_recording
from omega_lab.focus.reading import RapidReader
from omega_lab.focus.rules import RulesJudge
from omega_lab.focus.task import FocusError, make_task
from omega_lab.focus.unique import Indexes
from omega_lab.settings import Settings


def fingerprint(settings: Settings) -> str:
    "Changes with the settings and the code that take evidence."
    code = "".join(Path(module.__file__).read_text() for module in (evidence_module, reading, screen))
    return hashlib.sha256((settings.focus.model_dump_json() + code).encode()).hexdigest()[:16]


def evidence_of(film: Path, settings: Settings) -> Evidence:
    "The evidence of a recording of the set, from its folder or taken now."
    folder, mark = film.parent / "evidence" / film.stem, fingerprint(settings) + str(film.stat().st_mtime_ns)
    try:
        if (folder / "taken.txt").read_text() == mark:
            return load(folder)
    except (OSError, FocusError):
        pass  # not taken yet, or not whole: it is taken now
    inputs = film.with_suffix(".inputs.jsonl")
    about = json.loads(film.with_suffix(".task.json").read_text())
    found = keep(gather(film, settings.focus, RapidReader(), nonce=about["nonce"], inputs=inputs if inputs.exists() else None), film, folder)
    (folder / "taken.txt").write_text(mark)
    return found


def judge_set(films: list[Path], settings: Settings) -> pl.DataFrame:
    "A row for each recording."
    found = []
    for number, film in enumerate(films, start=1):
        evidence, about = evidence_of(film, settings), json.loads(film.with_suffix(".task.json").read_text())
        verdict = judge_recording(film.stem, make_task(about["title"], about["text"]), evidence, [RulesJudge()], Indexes(None), settings)
        found.append(case_row(film.stem, evidence, verdict))
        print(f"{number} of {len(films)}: {film.stem} {found[-1]['score']:.2f}", file=sys.stderr, flush=True)
    return pl.DataFrame(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, default=ROOT / "data" / "focus_set", help="folder of the recordings")
    parser.add_argument("--write", action="store_true", help="keep the table for the docs")
    given = parser.parse_args()
    cases = judge_set(make_set(given.set), Settings())
    if given.write:
        cases.write_csv(ROOT / "data" / "focus_calibration.csv")
    for half in ("build", "held"):
        told = figures(cases, half)
        print(summary(told, half))
        with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_cols=-1, tbl_width_chars=120):
            print(rule_table(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
