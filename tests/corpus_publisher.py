"""A validator's publishing in a process of its own: rounds of toy clips, each published; made to be killed at any moment.

`work` runs in a child of a fork server that has the slow imports done. It says `publish` down its pipe before each call and `done` after it.
"""
import os
import time
from datetime import datetime
from types import SimpleNamespace

os.environ["HF_HUB_DISABLE_XET"] = "1"

import huggingface_hub.utils._http as client
import numpy as np

from omega_lab.corpus import HubBusy, HubConflict, HuggingFaceHub, publish
from omega_lab.protocol import Clip
from omega_lab.scoring.video import ClipEvidence, LatentThresholds, score_response
from omega_lab.settings import Settings
from omega_lab.store import ResponseRecord, RoundRecord, Store

DIM, DAY, REPO, TOKEN, HASTE = 8, datetime(2026, 1, 1), "me/clips", "hf_test", 50
SHARDS = {"shard_rows": 4, "shards_per_commit": 3}


def hasten():
    "The client's own waits before another try, fifty times shorter."
    client.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / HASTE))


def toy_round(number, count, dim=DIM, validator="5Validator"):
    "A round of one answer with `count` clips that all enter, each from a video of its own."
    rng = np.random.default_rng(number)
    vectors, query = rng.normal(size=(count, 3, dim)).astype(np.float32), rng.normal(size=dim).astype(np.float32)
    clips = tuple(Clip(video_id=f"youtube:r{number:06d}c{i:03d}", description=f"clip {i}", views=1, start_time=0, end_time=30, video_emb=v[0].tolist(),
                       audio_emb=v[1].tolist(), description_emb=v[2].tolist()) for i, v in enumerate(vectors))
    evidence = tuple(ClipEvidence(video_id=c.video_id, valid_id=True, start_time=0, end_time=30, unique_tokens=150, text_cosine=0.5, stuffed=False,
                                  stuffed_confidence=0.9, really_bad=0, low_quality=0, chunks=1, index_novelty=1.0) for c in clips)
    response = ResponseRecord(1, "5Miner", "answered", "", 0.1, DAY, "", 1, clips, evidence, vectors, score_response(query, vectors, evidence, 8),
                              (True,) * count)
    return RoundRecord(number, f"topic {number}", query, 1, DAY, DAY, number, "toy@1", LatentThresholds(), Settings(), 0, (response,),
                       validator_hotkey=validator)


def work(state, url, say):
    "Rounds and publishing until killed; every tenth round something is taken down."
    hasten()
    hub = HuggingFaceHub(REPO, token=TOKEN, endpoint=url, commits_per_hour=None)
    with Store(state) as store:
        while True:
            number = store.next_round()
            store.commit_round(toy_round(number, 2 + number % 7))
            if number % 10 == 0:
                store.take_down([f"youtube:r{number // 2:06d}c000"], "asked")
            say.send_bytes(b"publish")
            try:
                publish(store, hub, patience=20, sleep=lambda seconds: time.sleep(seconds / HASTE), **SHARDS)
                say.send_bytes(b"done")
            except (HubBusy, HubConflict):  # the hub was busy for longer than one waits: the next round tries again
                say.send_bytes(b"failed")
