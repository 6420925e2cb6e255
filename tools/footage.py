"""How many copies the match of footage finds, and what it takes for one: `python tools/footage.py [--beyond] [--write] [--workers N]`.

Copies of all sample clips are made in data/footage/ (those that are there are kept): every kind alone, and for each clip six pairs of
kinds drawn with its name as the seed. The threshold is chosen on the half `train` of the subjects; the table tells of the half `held out`.
`--write` also keeps the table as data/footage.csv, which the docs show. `--beyond` tries the kinds that nothing was tuned for instead, on every
third clip (data/footage_beyond.csv).
"""

import argparse
import itertools
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from omega_lab.footage import COPY_SCORE, COPY_SECONDS, Fingerprint, fingerprint, match
from omega_lab.footage_trials import FURTHER, KINDS, Trial, best_threshold, make_copy, rates, stored_range

ROOT = Path(__file__).resolve().parent.parent
CATALOG, COPIES = ROOT / "data/catalog", ROOT / "data/footage"
PAIRS = 6  # of each clip


def length_of(entry: dict) -> float:
    "Seconds of a clip that are used."
    return min(entry["duration"] - 0.15, 13.0)


def kinds_of(entry: dict) -> list[tuple[str, ...]]:
    "The disguises of a clip: each alone, and its pairs."
    pairs = list(itertools.combinations(KINDS[1:], 2))
    drawn = np.random.default_rng(zlib.crc32(Path(entry["file"]).stem.encode())).choice(len(pairs), PAIRS, replace=False)
    return [*((kind,) for kind in KINDS), *(pairs[k] for k in drawn)]


def fingerprints(entry: dict) -> dict[str, Fingerprint]:
    "Of one clip: the `stored` range, the range `after` it that shares no second with it, and its copies (made when missing)."
    film, length, taken = CATALOG / entry["file"], length_of(entry), {}
    end = stored_range(length)[1]
    taken["stored"] = fingerprint(film, *stored_range(length))
    if entry["duration"] > end + 5.2:
        taken["after"] = fingerprint(film, end + 0.1, min(entry["duration"] - 0.1, 2 * end))
    for kinds in kinds_of(entry):
        copy = COPIES / f"{film.stem}__{'+'.join(kinds)}.mp4"
        if not copy.exists():
            make_copy(film, kinds, length, copy)
        taken["+".join(kinds)] = fingerprint(copy, 0, 60)
    return taken


def halves(entries: list[dict]) -> dict[str, str]:
    "Of each subject, whether it is in `train` or `held out`: drawn by chance, seeded."
    subjects = sorted({entry["subject"] for entry in entries})
    train = set(np.random.default_rng(24).permutation(subjects)[:len(subjects) // 2])
    return {subject: "train" if subject in train else "held out" for subject in subjects}


def score(a: Fingerprint, b: Fingerprint) -> float:
    "The score of a match that is long enough to count, as `is_copy` asks."
    found = match(a, b)
    return found.score if found.seconds >= COPY_SECONDS else 0.0


def trials(entries: list[dict], taken: list[dict[str, Fingerprint]]) -> list[Trial]:
    "Every copy against what it is a copy of, and every pair of clips of one half that share no second of film."
    half, found = halves(entries), []
    for entry, prints in zip(entries, taken):
        of, still = half[entry["subject"]], entry["kind"] == "photo pan"
        for kind, copy in prints.items():
            if kind not in ("stored", "after"):
                found.append(Trial("two at once" if "+" in kind else kind, True, score(copy, prints["stored"]), of, f"{entry['file']} {kind}"))
        if "after" in prints:
            kind = "the same photograph, another part" if still else "the same film, another range"
            found.append(Trial(kind, False, score(prints["after"], prints["stored"]), of, entry["file"]))
    for (one, a), (two, b) in itertools.combinations(zip(entries, taken), 2):
        if half[one["subject"]] == half[two["subject"]]:
            found += [Trial("different clips", False, score(a[x], b[y]), half[one["subject"]], f"{one['file']} {two['file']}")
                      for x in ("stored", "after") for y in ("stored", "after") if x in a and y in b]
    return found


def beyond(entry: dict) -> list[Trial]:
    "A clip against its copies of the kinds that nothing was tuned for."
    film, length = CATALOG / entry["file"], length_of(entry)
    stored, found = fingerprint(film, *stored_range(length)), []
    for kind in FURTHER:
        copy = COPIES / f"{film.stem}__{kind}.mp4"
        if not copy.exists():
            make_copy(film, (kind,), length, copy)
        found.append(Trial(kind, True, score(fingerprint(copy, 0, 60), stored), "all", entry["file"]))
    return found


def show(table: pl.DataFrame) -> None:
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=40, tbl_width_chars=160):
        print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the table for the docs")
    parser.add_argument("--beyond", action="store_true", help="try the kinds that nothing was tuned for")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    COPIES.mkdir(exist_ok=True)
    entries = json.loads((CATALOG / "catalog.json").read_text())
    with ProcessPoolExecutor(options.workers) as pool:
        if options.beyond:
            some = entries[::3]
            table = pl.DataFrame(rates([t for one in tqdm(pool.map(beyond, some), "clips", len(some)) for t in one], COPY_SCORE))
            show(table)
            return table.write_csv(ROOT / "data/footage_beyond.csv") if options.write else None
        taken = list(tqdm(pool.map(fingerprints, entries), "clips", len(entries)))
    found = trials(entries, taken)
    chosen = best_threshold([t for t in found if t.half == "train" and t.kind != "the same photograph, another part"])
    rows = [{"half": half, "threshold": COPY_SCORE, **row} for half in ("train", "held out")
            for row in rates([t for t in found if t.half == half], COPY_SCORE)]
    table = pl.DataFrame(rows)
    print(f"threshold chosen on the training half: {chosen:.2f} (the module has {COPY_SCORE})")
    show(table)
    for trial in found:
        if (trial.score >= COPY_SCORE) != trial.truth:
            print(f"{'missed' if trial.truth else 'false alarm'}: {trial.clips} ({trial.half}, score {trial.score:.2f})")
    if options.write:
        table.write_csv(ROOT / "data/footage.csv")


if __name__ == "__main__":
    main()
