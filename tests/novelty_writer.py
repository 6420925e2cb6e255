"""A process that changes a novelty index without end, and tells of each change once it is acknowledged."""
import random
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from omega_lab.novelty import NoveltyIndex

DIM, EXACT_ROWS = 128, 400  # so that the compressed copy, too, is made and written under fire


@cache
def vector(row: int) -> np.ndarray:
    "What row number `row` holds, for whoever checks."
    return np.random.default_rng(row % 37).normal(size=DIM) + np.random.default_rng(row).normal(size=DIM)


def write(folder: Path, seed: int, told: Connection) -> None:
    "Open the index, then add, take down, snapshot and compact as chance has it."
    chance, index = random.Random(seed), NoveltyIndex(folder, DIM, exact_rows=EXACT_ROWS)
    told.send(("open", index.version))
    while True:
        first, n = index.version, chance.randint(1, 40)
        act = chance.choices(["add", "remove", "snapshot", "compact"], [6, 2, 1, 2])[0]
        if act == "add":
            told.send(("added", index.add([f"row {row}" for row in range(first, first + n)], np.stack([vector(row) for row in range(first, first + n)]))))
        elif act == "remove":
            rows = {row for row in chance.choices(range(max(1, first)), k=n // 4) if f"row {row}" in index}
            told.send(("removing", rows))
            index.remove([f"row {row}" for row in rows])
            told.send(("removed", rows))
        else:
            getattr(index, act)()
            told.send((act, None))
