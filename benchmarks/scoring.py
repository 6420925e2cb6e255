"""What judging a response costs, and a whole history: `python benchmarks/scoring.py [--json]`.

A response of eight clips with vectors of 1024 numbers, evidence given. Compared in the same run with its lower bound, the
multiplications that the cosines need, done as fast as this machine's matrix product can; and with the same formulas written
the plain way, one cosine at a time in Python. Then stored rounds are judged again from a store on disk.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time

import numpy as np

from omega_lab.lab.rescore import rescore, write_rounds
from omega_lab.novelty import unit
from omega_lab.scoring.video import ClipEvidence, score_response
from omega_lab.settings import ScoringSettings
from omega_lab.store import Store

CLIPS, DIM = 8, 1024


def median_us(work, times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e6


def an_answer() -> tuple[np.ndarray, np.ndarray, tuple[ClipEvidence, ...]]:
    vectors = unit(np.random.default_rng(0).normal(size=(CLIPS, 3, DIM)))
    evidence = tuple(ClipEvidence(video_id=f"youtube:{k:011d}", valid_id=True, start_time=0, end_time=60, unique_tokens=140, supported_tokens=120,
                                  text_cosine=0.5, stuffed=False, stuffed_confidence=0.9, really_bad=0, low_quality=0, chunks=2, index_novelty=0.6)
                     for k in range(CLIPS))
    return vectors[0, 0], vectors, evidence


def cosine(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b)) / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def plainly(query: list[float], vectors: list, evidence: tuple[ClipEvidence, ...], s: ScoringSettings) -> float:
    "The reward of clips that no filter drops, as one would write it on paper."
    for i, (video, _, _) in enumerate(vectors):
        assert all(cosine(video, later[0]) < 0.9 for later in vectors[i + 1:])
    total = 0.0
    for (video, audio, description), clip in zip(vectors, evidence):
        tokens = min(max(clip.supported_tokens, s.short_caption), s.long_caption)
        scale = 1 - s.length_share * (1 - math.log2(tokens / s.short_caption) / math.log2(s.long_caption / s.short_caption))
        d = (s.video_share * cosine(video, description) + (1 - s.video_share) * cosine(audio, description)) * scale
        q = (cosine(video, query) + cosine(audio, query) + min(s.text_similarity_cap, clip.text_cosine**2)) / 3
        total += s.description_factor * d + s.query_factor * q
    return max(s.minimum, total / 2 / CLIPS)


def measure() -> dict[str, float]:
    query, vectors, evidence = an_answer()
    s, rows = ScoringSettings(), vectors[:, 0].astype(np.float64)
    lists, asked = vectors.astype(float).tolist(), query.astype(float).tolist()
    assert math.isclose(score_response(query, vectors, evidence, CLIPS).reward, plainly(asked, lists, evidence, s), abs_tol=1e-6)
    found = {"score_us": median_us(lambda: score_response(query, vectors, evidence, CLIPS), 2000),
             "plain_us": median_us(lambda: plainly(asked, lists, evidence, s), 20)}
    product = median_us(lambda: rows @ rows.T, 2000)  # 64 of the 64 + 24 + 16 + 16 dot products
    found |= {"bound_us": product * (64 + 24 + 32) / 64}
    with tempfile.TemporaryDirectory() as folder:
        write_rounds(folder, {"honest": 8, "lazy": 2, "forger": 2}, rounds=40, sample=12)
        with Store(folder) as store:
            began = time.perf_counter()
            again = rescore(store)
            found |= {"rescored": len(again.responses), "rescore_ms_each": (time.perf_counter() - began) * 1e3 / len(again.responses)}
            assert again.same
    return found | {"load": os.getloadavg()[0]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    found = measure()
    if options.parse_args().json:
        print(json.dumps(found))
        return
    print(f"a response of {CLIPS} clips, {DIM} numbers a vector: {found['score_us']:.0f} µs (median of 2000)")
    print(f"the same on paper, in Python: {found['plain_us'] / found['score_us']:.0f} times as long")
    print(f"the multiplications alone, at the rate of this machine's matrix product: {found['bound_us']:.0f} µs, {found['bound_us'] / found['score_us']:.0%}")
    print(f"judged again from a store on disk: {found['rescored']} responses, {found['rescore_ms_each']:.2f} ms each, all bit for bit")
    print(f"load of the machine meanwhile {found['load']:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
