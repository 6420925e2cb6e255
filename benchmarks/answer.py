"""What an answer costs on a large shelf: `python benchmarks/answer.py [CLIPS] [ANSWERS]`.

The shelf holds random vectors under captions of some eighty words. Printed are the seconds of the first answer (every
caption is read), the median of the later ones, and for comparison what reading the captions costs alone: so much would each
answer cost more if they were not remembered.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from omega_lab.embedding import get_encoder
from omega_lab.embedding.text import sentence_vectors
from omega_lab.miner import Answerer, open_shelf
from omega_lab.novelty import unit
from omega_lab.protocol import VideoRequest

WORDS = "lion river kitchen mountain engine child dancer market snow harbour forest bridge guitar rocket garden runs sleeps shines over under near".split()


def rows(clips: int, dim: int) -> list[dict]:
    "Clips that nobody has filmed."
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(clips, 3, dim)))
    return [{"video_id": f"sha256:{i:064x}", "path": "", "description": f"{i} " + " ".join(rng.choice(WORDS, 80)), "views": 0, "start_time": 0, "end_time": 10,
             "video_emb": v, "audio_emb": a, "description_emb": d} for i, (v, a, d) in enumerate(vectors)]


def main(clips: int = 1000, answers: int = 10) -> None:
    encoder = get_encoder()
    with tempfile.TemporaryDirectory() as folder:
        shelf = open_shelf(folder, encoder)
        shelf.add(rows(clips, encoder.dim))
        answerer, seconds = Answerer(shelf, encoder, Path(folder) / "answers.jsonl"), []
        encoder.encode_text(["warm"])
        for n in range(answers + 1):
            began = time.perf_counter()
            answerer.answer(VideoRequest(query=f"{WORDS[n % len(WORDS)]} in the morning", num_videos=8), "5Validator")
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        sentence_vectors(shelf.read()["description"].to_list())
        reading = time.perf_counter() - began
    later = statistics.median(seconds[1:])
    print(f"{clips} clips: first answer {seconds[0]:.2f} s, later ones {later:.3f} s (median of {answers})")
    print(f"reading the captions alone {reading:.2f} s: {(reading + later) / later:.0f} times an answer's cost if it were done each time")
    print(f"load of the machine meanwhile {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
