"""What knowing footage again costs: `python benchmarks/footage.py [FILM] [CLIPS]`. Prints JSON.

A clip of 120 s, 640 × 360, is fingerprinted; the limit is decoding it and looking at nothing, in turn with it in one run (processor
seconds, medians). Then clips are asked of an index of 10 000: fingerprints of the sample clips, each put together to a length of 5 to
120 s and made a stranger by turning the same signs in all its pictures (wall-clock seconds, medians and the slowest).
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from omega_lab.footage import RATE, Fingerprint, fingerprint, match
from omega_lab.footage_index import FootageIndex
from omega_lab.media import cut, decoded

DATA = Path(__file__).resolve().parent.parent / "data"


def timed(work, clock=time.process_time) -> float:
    began = clock()
    work()
    return clock() - began


def decode(film: Path) -> int:
    "How many pictures a film has, by decoding each."
    return sum(1 for _ in decoded(film))


def costs(film: Path, folder: Path, repeats: int = 5) -> dict:
    "Processor seconds of a fingerprint and of decoding alone."
    clip = cut(film, 0, 120, folder / "clip.mp4", height=360)
    pairs = [(timed(lambda: fingerprint(clip, 0, 120)), timed(lambda: decode(clip))) for _ in range(repeats)]
    ours, limit = (statistics.median(column) for column in zip(*pairs))
    return {"frames": decode(clip), "fingerprint_cpu_s": round(ours, 3), "decode_cpu_s": round(limit, 3), "ours_to_limit": round(ours / limit, 3),
            "bytes": len(fingerprint(clip, 0, 120).to_bytes())}


def strangers(real: list[Fingerprint], number: int):
    "Clips nobody has seen, each with the inner likeness of real ones."
    rng = np.random.default_rng(0)
    for _ in range(number):
        length, mask = int(rng.integers(5, 121)) * RATE, rng.integers(0, 2**64, 2, dtype=np.uint64)
        parts = [real[k] for k in rng.choice(len(real), 12)]
        hashes, weights = (np.concatenate([getattr(part, name) for part in parts])[:length] for name in ("hashes", "weights"))
        yield Fingerprint(np.arange(len(hashes), dtype=np.float32) / RATE, hashes ^ mask, weights)


def main(film: Path, number: int = 10_000) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        told = costs(film, Path(scratch), 5)
        real = [fingerprint(path, 0, 30) for path in sorted((DATA / "catalog").glob("*.mp4"))]
        index = FootageIndex()
        for n, clip in enumerate(strangers(real, number)):
            index.add(f"stranger {n}", clip)
        for n, clip in enumerate(real):
            index.add(f"real {n}", clip)
        asked = [Fingerprint(clip.times[:20], clip.hashes[4:24] ^ np.uint64(1), clip.weights[4:24]) for clip in real if len(clip) >= 24]
        seconds = [timed(lambda clip=clip: index.query(clip), time.perf_counter) for clip in asked]
        kept = FootageIndex(scratch)
        adding = [timed(lambda n=n, clip=clip: kept.add(f"real {n}", clip), time.perf_counter) for n, clip in enumerate(real)]
        long = max(real, key=len)
        return told | {"stored_clips": len(index), "stored_pictures": int(index._rows.ntotal), "query_10_s_ms": round(1e3 * statistics.median(seconds), 2),
                       "query_slowest_ms": round(1e3 * max(seconds), 2), "match_30_s_ms": round(1e3 * timed(lambda: match(long, real[0])), 2),
                       "durable_add_ms": round(1e3 * statistics.median(adding), 2)}


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "raw/moviepy/bunny.mp4"
    print(json.dumps(main(given, *map(int, sys.argv[2:])), indent=1))
