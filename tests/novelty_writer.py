"""A process that changes a novelty index without end: told the folder and a seed, it prints a line for each change that was acknowledged."""
import json
import random
import sys
from pathlib import Path

import numpy as np

from omega_lab.novelty import NoveltyIndex

DIM, EXACT_ROWS = 128, 400  # so that the compressed copy, too, is made and written under fire


def vector(row: int) -> np.ndarray:
    "What row number `row` holds, for whoever checks."
    rng = np.random.default_rng(row)
    return np.random.default_rng(row % 37).normal(size=DIM) + rng.normal(size=DIM)


def main(folder: Path, seed: int) -> None:
    chance, index = random.Random(seed), NoveltyIndex(folder, DIM, exact_rows=EXACT_ROWS)
    print(json.dumps(["open", index.version]), flush=True)
    while True:
        first, n = index.version, chance.randint(1, 40)
        act = chance.choices(["add", "remove", "snapshot", "compact"], [8, 2, 2, 1])[0]
        if act == "add":
            index.add([f"row {row}" for row in range(first, first + n)], np.stack([vector(row) for row in range(first, first + n)]))
            done = [first, first + n]
        elif act == "remove":
            done = sorted({row for row in chance.choices(range(max(1, first)), k=n) if f"row {row}" in index})
            print(json.dumps(["removing", done]), flush=True)
            index.remove([f"row {row}" for row in done])
        else:
            done = getattr(index, act)() and None
        print(json.dumps([act, done]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
