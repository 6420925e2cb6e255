"""The novelty index: recall, error, bytes a vector and latency, against numpy and FAISS reading every row, in the same run.

    python benchmarks/novelty.py [--rows 1000000] [--dim 1024] [--dtype float32] [--folder DIR] [--json]

Nine tenths of the rows lie in clusters of various width, the others anywhere. Questions come eight at a time, of these kinds: near copies of
a row (cosine 0.8 to 1), half way to one (0.4 to 0.8), further members of the clusters, and vectors unlike anything. Half way to rows that
lie in no cluster is measured too: there the lists say little of what is near, and no encoder makes such vectors. The folder takes 4 bytes
a number (2 in float16) and is removed in the end. All latencies are medians, in milliseconds."""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import faiss
import numpy as np

from omega_lab.novelty import NoveltyIndex, unit
from omega_lab.novelty_copy import EXACT_NUMBERS
from omega_lab.novelty_search import compress, lists_for, scan

BATCH, ASKED, CHUNK = 8, 128, 20_000
FAR = 30_000_000
ALONE = "half way to what lies alone"


def made_up(rng: np.random.Generator, rows: int, dim: int, clustered: bool) -> np.ndarray:
    "Vectors of length 1, around one of 3 000 centres or anywhere."
    anywhere = unit(rng.standard_normal((rows, dim), dtype=np.float32))
    if not clustered:
        return anywhere
    centres = unit(np.random.default_rng(1).standard_normal((3000, dim), dtype=np.float32))
    share = 1 / np.arange(1, 3001) ** 0.7
    return unit(centres[rng.choice(3000, rows, p=share / share.sum())] + rng.uniform(0.3, 1.6, (rows, 1)).astype(np.float32) * anywhere)


def copies(rng: np.random.Generator, rows: np.ndarray, low: float, high: float) -> np.ndarray:
    "Vectors whose cosines with their rows lie between low and high."
    noise, cosine = rng.standard_normal(rows.shape), rng.uniform(low, high, (len(rows), 1))
    return unit(cosine * rows + np.sqrt(1 - cosine**2) * unit(noise - (noise * rows).sum(1, keepdims=True) * rows))


def median_ms(work, items) -> float:
    "The median time of `work` on each item."
    took = []
    for item in items:
        began = time.perf_counter()
        work(item)
        took.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(took), 2)


def anonymous_bytes() -> int:
    "Memory of this process that no file backs."
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))


def memory_of(folder: Path, dim: int) -> float:
    "Megabytes that opening and asking the index takes, in a process of its own."
    before = anonymous_bytes()
    index = NoveltyIndex(folder, dim, exact_rows=0)
    index.query(np.ones((BATCH, dim)), exclude=["youtube:00000000007"])
    return round((anonymous_bytes() - before) / 1e6, 1)


def brute_force(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    "Highest cosine of each question with any row, by numpy."
    best = np.full(len(asked), -1, np.float32)
    for start in range(0, len(rows), 65536):
        best = np.maximum(best, (np.asarray(rows[start:start + 65536], np.float32) @ asked.T).max(axis=0))
    return best


def fill(folder: Path, rows: int, dim: int, dtype: str) -> NoveltyIndex:
    "An index that reads every row."
    rng, index = np.random.default_rng(0), NoveltyIndex(folder, dim, dtype, exact_rows=2**62)
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        vectors = np.concatenate([made_up(rng, n - n // 10, dim, True), made_up(rng, n // 10, dim, False)])  # the last tenth lies anywhere
        index.add([f"youtube:{row:011d}" for row in range(start, start + n)], vectors)
    return index


def questions(rows: np.ndarray) -> dict[str, np.ndarray]:
    "Of each kind."
    rng, dim = np.random.default_rng(7), rows.shape[1]
    picked = rng.choice(len(rows), ASKED, replace=False)
    some, clustered = (np.asarray(rows[at], np.float32) for at in (picked, picked // CHUNK * CHUNK + picked % CHUNK % min(CHUNK, len(rows)) * 9 // 10))
    return {"near copies": copies(rng, some, 0.8, 1), "half way": copies(rng, clustered, 0.4, 0.8), "new members": made_up(rng, ASKED, dim, True),
            "unlike anything": made_up(rng, ASKED, dim, False), ALONE: copies(rng, np.asarray(rows[CHUNK - 1::CHUNK][:ASKED], np.float32), 0.4, 0.8)}


def crossing(rows: np.ndarray, batches: list[np.ndarray]) -> dict[str, dict[str, float]]:
    "What eight questions cost by reading every row, and by a compressed copy with its rescoring, of fewer rows."
    found = {}
    for n in (size for size in (16_000, 64_000, 256_000) if size <= len(rows)):
        copy, every = compress(rows[:n], np.arange(n), n), np.ones(n, bool)
        found[str(n)] = {"every row": median_ms(lambda q: scan(q, rows, every), batches),  # noqa: B023
                         "compressed": median_ms(lambda q: [rows[np.sort(near)] @ v for v, near in zip(q, copy.propose(q))], batches)}  # noqa: B023
    return found


def accuracy(index: NoveltyIndex, asked: dict[str, np.ndarray], best: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    "How the answers differ from the exact ones, by kind of question."
    found = {}
    for kind, vectors in asked.items():
        exact = 1 - best[kind]
        excess = np.concatenate([index.query(vectors[i:i + BATCH]).novelty for i in range(0, len(vectors), BATCH)]) - exact
        found[kind] = {"exact novelty from": round(float(exact.min()), 3), "to": round(float(exact.max()), 3),
                       "recall": round(float((excess < 1e-5).mean()), 4), "too high by at most": round(float(excess.max()), 5),
                       "too low by at most": round(max(0.0, -float(excess.min())), 7)}
    return found


def extrapolate(index: NoveltyIndex, batches: list[np.ndarray], query_ms: float, bytes_a_row: float) -> dict[str, float | str]:
    "What thirty million rows would take: a question's time is that of ranking the lists' centres, of reading the near lists, and of rescoring."
    copy, rows = index._copy._copy, index.version
    assert copy is not None
    one, some = (median_ms(lambda q: copy.propose(q, probes=p), batches) for p in (1, copy.probes))  # noqa: B023
    reading = (some - one) / (copy.probes - 1) * copy.probes
    lists = lists_for(FAR)
    ms = query_ms - reading - one + one * lists / copy.lists + reading * (FAR / lists) / (rows / copy.lists)
    return {"rows": FAR, "lists": lists, "GB of memory": round(bytes_a_row * FAR / 1e9, 1), "8 questions, ms": round(ms, 1),
            "reasoning": f"{lists} lists instead of {copy.lists}: ranking them costs {lists / copy.lists:.1f} times the {one:.1f} ms, "
                         f"reading {copy.probes} lists of {FAR // lists} rows {FAR / lists / (rows / copy.lists):.1f} times the {reading:.1f} ms; "
                         "rescoring stays, while the rows it reads are in the page cache"}


def measure(folder: Path, rows: int, dim: int, dtype: str) -> dict:
    "Everything, as one record."
    exact = fill(folder, rows, dim, dtype)
    vectors = exact._rows.vectors
    asked = questions(vectors)
    best = {kind: brute_force(vectors, some) for kind, some in asked.items()}
    mixed = np.concatenate([some[i:i + 2] for i in range(0, ASKED, 2) for kind, some in asked.items() if kind != ALONE])
    batches = [mixed[i:i + BATCH] for i in range(0, len(mixed), BATCH)]
    found: dict = {"rows": rows, "dim": dim, "dtype": dtype, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    found["crossing"] = crossing(vectors, batches[:15]) | {"exact up to": EXACT_NUMBERS // dim}
    flat = {"numpy": median_ms(lambda q: brute_force(vectors, q), batches[:7]), "index, reading every row": median_ms(exact.query, batches[:7])}
    if dtype == "float32":  # the kernel of IndexFlatIP, on the mapped rows
        flat["FAISS flat"] = median_ms(lambda q: faiss.knn(q, vectors, 1, metric=faiss.METRIC_INNER_PRODUCT), batches[:7])
    began = time.perf_counter()
    NoveltyIndex(folder, dim, exact_rows=0).wait()
    found["made in s"] = round(time.perf_counter() - began, 1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found["MB of memory"] = pool.submit(memory_of, folder, dim).result()
    index = NoveltyIndex(folder, dim, exact_rows=0)
    found["bytes a vector"] = round(index.snapshot().stat().st_size / rows, 1)  # type: ignore[union-attr]
    found["8 questions, ms"] = flat | {"compressed": median_ms(index.query, batches),
                                       "compressed, excluding one": median_ms(lambda q: index.query(q, exclude=["youtube:00000000007"]), batches)}
    found["accuracy"] = accuracy(index, asked, best)
    found["extrapolated"] = extrapolate(index, batches, found["8 questions, ms"]["compressed"], found["bytes a vector"] + 25)  # of the ids and marks
    found["adding 8, ms"] = median_ms(lambda n: index.add([f"late {n} {i}" for i in range(BATCH)], batches[n]), range(20))
    found["load after"] = round(os.getloadavg()[0], 1)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--dim", type=int, default=1024)
    options.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    options.add_argument("--folder", help="where the temporary folder is made")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = measure(Path(folder), given.rows, given.dim, given.dtype)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name}:" if isinstance(value, dict) else f"{name}: {value}")
        for key, part in value.items() if isinstance(value, dict) else ():
            print(f"    {key}: {', '.join(f'{k} {v}' for k, v in part.items()) if isinstance(part, dict) else part}")


if __name__ == "__main__":
    main()
