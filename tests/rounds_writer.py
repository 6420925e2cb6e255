"""A process that commits rounds without end; told the state folder, it prints each round's number once it is acknowledged."""
import sys
from datetime import datetime
from pathlib import Path

import numpy as np

from omega_lab.corpus import LocalHub, publish
from omega_lab.novelty import NoveltyIndex
from omega_lab.protocol import Clip
from omega_lab.scoring.video import ClipEvidence, LatentThresholds, score_response
from omega_lab.settings import Settings
from omega_lab.store import ResponseRecord, RoundRecord, Store, sync_index

DIM, DAY = 16, datetime(2026, 1, 1)


def response(uid, rng, query):
    vectors = rng.normal(size=(3, 3, DIM)).astype(np.float32)
    clips = tuple(Clip(video_id=f"youtube:{rng.integers(10**11):011d}", description="a clip", views=1, start_time=0, end_time=30,
                       video_emb=v[0].tolist(), audio_emb=v[1].tolist(), description_emb=v[2].tolist()) for v in vectors)
    evidence = tuple(ClipEvidence(video_id=c.video_id, valid_id=True, start_time=0, end_time=30, unique_tokens=150, text_cosine=0.5,
                                  stuffed=False, stuffed_confidence=0.9, really_bad=0, low_quality=0, chunks=1, index_novelty=1.0)
                     for c in clips)
    verdict = score_response(query, vectors, evidence, 8)
    return ResponseRecord(uid, f"5Miner{uid}", "answered", "", 0.1, DAY, "", uid, clips, evidence, vectors, verdict,
                          tuple(c.accepted for c in verdict.clips))


def main(folder):
    store = Store(folder)
    index = NoveltyIndex(folder / "index", DIM)
    sync_index(index, store)
    while True:
        number = store.next_round()
        rng = np.random.default_rng(number)
        query = rng.normal(size=DIM).astype(np.float32)
        store.commit_round(RoundRecord(number, f"topic {number}", query, number, DAY, DAY, number, "toy@1", LatentThresholds(), Settings(),
                                       index.version, tuple(response(uid, rng, query) for uid in range(4))))
        print(number, flush=True)
        sync_index(index, store)
        publish(store, LocalHub(folder / "corpus"), shard_rows=10)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
