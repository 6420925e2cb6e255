"""Encoders for the pool, with real media and no model. The workers import this module: it loads little."""
import os
import signal
import time
from pathlib import Path

import numpy as np

from omega_lab.embedding.base import ClipVectors, Thresholds, unit
from omega_lab.media import MediaError, frames, probe


def prepare(path, start=None, end=None):
    """Pictures of a range. A file's name may ask for trouble: `die` ends the process as the kernel would,
    `once` only the first time, `break` is a bug, `hang` never comes back, `bad` is what the model refuses."""
    name = Path(path).name
    if name.startswith("hang"):
        time.sleep(1000)
    if name.startswith("break"):
        raise IndexError("a bug")
    if name.startswith("die") or (name.startswith("once") and not Path(f"{path}.seen").exists()):
        Path(f"{path}.seen").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    begin, until = start or 0.0, end or probe(path).duration
    pictures = frames(path, np.linspace(begin, max(begin, until - 0.3), 4))
    return {"pictures": pictures, "name": name, "pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


class Batched:
    "Vectors from pictures, whose last digits depend on what else is in the batch, as a model's may."
    name, revision, dim, thresholds = "batched", "1", 12, Thresholds()
    prepare = staticmethod(prepare)

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.batches = seconds, []

    def encode_prepared(self, inputs):
        self.batches.append([i["name"] for i in inputs])
        time.sleep(self.seconds)
        if any(i["name"].startswith("bad") for i in inputs):
            raise ValueError("a vector of length 0 or with a non-finite number has no direction")
        together = np.float32(1 + len(inputs) * 1e-6)
        looks = [np.concatenate([i["pictures"].mean((1, 2)).ravel()]) for i in inputs]
        return [ClipVectors(unit(look * together + np.float32(len(inputs) * 1e-4)), None) for look in looks]

    def encode_clip(self, path, start=None, end=None):
        return self.encode_prepared([prepare(path, start, end)])[0]

    def encode_video(self, path, start=None, end=None):
        return self.encode_clip(path, start, end).video

    def encode_audio(self, path, start=None, end=None):
        return None

    def encode_text(self, texts):
        "Also a matter of the company."
        rows = [np.resize(np.frombuffer(text.encode() or b"-", np.uint8), 12).astype(np.float32) for text in texts]
        return unit(np.stack(rows) + np.float32(len(texts) * 1e-4))


class Slow(Batched):
    "A tenth of a second for a batch."

    def __init__(self):
        super().__init__(0.1)


class Greedy(Batched):
    "Wants more memory than its device has."

    def encode_prepared(self, inputs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Newer(Batched):
    revision = "2"


class Alone(Batched):
    "The same without what the pool needs."
    prepare = None

    def __getattribute__(self, name):
        if name in ("prepare", "encode_prepared"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def encode_clip(self, path, start=None, end=None):
        if Path(path).name.startswith("bad"):
            raise MediaError(path, "refused")
        return Batched().encode_clip(path, start, end)
