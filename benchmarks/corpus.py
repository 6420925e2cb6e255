"""The corpus: writing, loading, filtering, searching and counting a million made-up rows, and writing and reading beside the subnet's way.

    python benchmarks/corpus.py [--rows 1000000] [--dim 1024] [--shards 16] [--folder DIR] [--json]

The subnet's way, measured in the same run on `--shards` shards of 1024 rows: a dict for each row, the embeddings lists of floats, from these a
`datasets.Dataset`, from that a parquet file. Both ways begin with the same float32 matrices and lists of texts in memory and take the shards in
turns, so that what else runs on the machine is shared. Times are medians, ours with the wait until the file is on the disk; beside them those
of the processor, which know nothing of the disk nor of other programs. Reading means three float32 matrices and the other columns.

Peak memory is that of a process which does nothing else, at `--shards` shards and at all rows. The folder takes about 11 kB a row of dimension
1024 and is removed in the end. `--rows 0` compares only."""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omega_lab.corpus import EMBEDDINGS, connect, load, refresh_card, search, shard_files, shard_schema, synth, write_shard
from omega_lab.corpus.search import _vectors
from omega_lab.corpus.synth import Generator, lab_topics
from omega_lab.settings import CorpusSettings

ROWS = 1024  # of a shard


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def arrays(table: pa.Table) -> dict:
    "A shard's rows as a validator holds them: matrices and lists of the other values."
    return {name: _vectors(table[name].combine_chunks()).copy() if name in EMBEDDINGS else table[name].to_pylist() for name in table.column_names}


def write_ours(rows: dict, dim: int, path: Path) -> None:
    schema = shard_schema(dim)
    write_shard(pa.table([pa.FixedSizeListArray.from_arrays(pa.array(rows[f.name].ravel()), dim) if f.name in EMBEDDINGS else pa.array(rows[f.name], f.type)
                          for f in schema], schema=schema), path)


def write_lists(rows: dict, path: Path) -> None:
    "The subnet's thirteen columns: a dict for each row, with lists of floats."
    from datasets import Dataset

    columns = {name: rows[name].tolist() if name in EMBEDDINGS else rows[name] for name in list(rows)[:13]}
    Dataset.from_list([dict(zip(columns, row)) for row in zip(*columns.values())]).to_parquet(str(path))


def read(path: Path) -> None:
    "Matrices of float32 and the other columns that the subnet's shards have."
    table = pq.ParquetFile(path, memory_map=True).read(columns=shard_schema(1).names[:13])
    for name in EMBEDDINGS:
        assert _vectors(table[name].combine_chunks()).dtype == np.float32


def compare(folder: Path, shards: int, dim: int) -> dict:
    "Both ways, shard by shard in turns."
    import datasets

    datasets.disable_progress_bars()
    made = Generator(dim, 0, lab_topics(), 8)
    wall, cpu = ({name: [] for name in ("write ours", "write lists", "read ours", "read lists")} for _ in range(2))
    sizes = {"ours": 0, "lists": 0}

    def turn(name: str, work: Callable[[], object], times: int = 1) -> None:
        for _ in range(times):
            began, busy = time.perf_counter(), time.process_time()
            work()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - busy)

    for number in range(shards):
        table = made.table(number, number * ROWS, ROWS)
        ours, lists = folder / f"ours-{number}.parquet", folder / f"lists-{number}.parquet"
        held = arrays(table)
        turn("write ours", lambda: write_ours(held, dim, ours))  # noqa: B023
        turn("write lists", lambda: write_lists(held, lists))  # noqa: B023
        turn("read ours", lambda: read(ours), 3)  # noqa: B023
        turn("read lists", lambda: read(lists), 3)  # noqa: B023
        sizes = {"ours": sizes["ours"] + ours.stat().st_size, "lists": sizes["lists"] + lists.stat().st_size}
    found = {f"{name}, bytes/row": round(size / shards / ROWS) for name, size in sizes.items()} | {"of the size": round(sizes["ours"] / sizes["lists"], 3)}
    for kind, took in (("", wall), (" of processor time", cpu)):
        median = {name: statistics.median(seconds) for name, seconds in took.items()}
        found |= {f"{name}, rows/s{kind}": round(ROWS / seconds) for name, seconds in median.items()}
        found |= {f"{verb} faster{kind}": round(median[f"{verb} lists"] / median[f"{verb} ours"], 1) for verb in ("write", "read")}
    return found


def write_phase(folder: Path, rows: int, dim: int) -> dict:
    seconds = timed(lambda: synth(folder, rows, dim))
    return {"rows/s": round(rows / seconds), "bytes/row": round(sum(path.stat().st_size for path in shard_files(folder)) / rows)}


def load_phase(folder: Path, rows: int, dim: int) -> dict:
    "Every column of every row, as a stream of arrays in batches."
    seen = 0

    def stream() -> None:
        nonlocal seen
        for batch in load(folder, streaming=True, format="numpy").iter(batch_size=ROWS):
            seen += len(batch["video_embed"])

    seconds = timed(stream)
    assert seen == rows
    return {"rows/s": round(rows / seconds)}


def filter_phase(folder: Path, rows: int, dim: int) -> dict:
    "Clips of a topic with a condition on two scores, in SQL."
    asked = "select query, count(*), avg(novelty) from clips where novelty > 0.5 and query_relevance_score > 0.2 group by query"
    with connect(folder) as connection:
        seconds = statistics.median(timed(lambda: connection.sql(asked).fetchall()) for _ in range(3))
    return {"rows/s": round(rows / seconds), "seconds": round(seconds, 2)}


def search_phase(folder: Path, rows: int, dim: int) -> dict:
    "The ten nearest of all rows, exact."
    asked = np.random.default_rng(3).standard_normal((3, dim), dtype=np.float32)
    seconds = statistics.median(timed(lambda: search(folder, vector=vector)) for vector in asked)  # noqa: B023
    return {"rows/s": round(rows / seconds), "seconds": round(seconds, 2)}


def card_phase(folder: Path, rows: int, dim: int) -> dict:
    "All rows counted anew; publishing counts only what is new."
    seconds = timed(lambda: refresh_card(folder, CorpusSettings()))
    return {"rows/s": round(rows / seconds), "seconds": round(seconds, 2)}


def alone(phase: Callable[[Path, int, int], dict], folder: Path, rows: int, dim: int) -> dict:
    "A phase in a process of its own, with the most memory it took."
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(phase, folder, rows, dim).result()
        return {**found, "peak MB": pool.submit(peak).result()}


def peak() -> int:
    "The most memory this process has taken (the figure of `getrusage` begins with what its parent took)."
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) // 1024


def measure(folder: Path, rows: int, dim: int, shards: int) -> dict:
    "Everything, as one record."
    found: dict = {"rows": rows, "dim": dim, "cores": os.cpu_count(), "load average": round(os.getloadavg()[0], 1), "both ways": compare(folder, shards, dim)}
    for phase in (write_phase, load_phase, filter_phase, search_phase, card_phase) if rows else ():
        name = phase.__name__.removesuffix("_phase")
        small = alone(phase, folder / "small", shards * ROWS, dim)
        found[name] = {**alone(phase, folder / "all", rows, dim), f"peak MB at {shards} shards": small["peak MB"], "load average": round(os.getloadavg()[0], 1)}
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--dim", type=int, default=1024)
    options.add_argument("--shards", type=int, default=16, help="how many both ways write and read")
    options.add_argument("--folder", help="where the temporary folder is made")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = measure(Path(folder), given.rows, given.dim, given.shards)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name}:" if isinstance(value, dict) else f"{name}: {value}")
        for key, part in value.items() if isinstance(value, dict) else ():
            print(f"    {key}: {part}")


if __name__ == "__main__":
    main()
