"""A small world in which clips never run out: real media files of a few kilobytes whose vectors follow from their bytes.

A miner's clip is about a topic, more or less (its `quality`). The encoder reads that from the file, so a validator that fetches the
bytes computes the same vectors, and a lie shows. Everything around it is the real thing: server, gate, signatures, checks, scores.
"""
import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from omega_lab.embedding.base import ClipVectors, Thresholds, unit
from omega_lab.protocol import Clip, VideoResponse

TOPICS = (
    "harbour cranes at dawn", "a potter shaping a bowl", "bees on lavender", "snow on a mountain pass", "children flying kites", "a night train",
    "bread from a clay oven", "river otters playing", "a lighthouse in a storm", "repairing a bicycle", "lanterns at a festival", "a chess game in a park",
    "wind turbines turning", "a market of spices", "street drummers", "a desert sunrise", "glass being blown", "a greenhouse of orchids",
    "skaters on a frozen lake", "an orchestra tuning", "fishing nets mended", "a robot arm welding", "horses in the surf", "rain on a tin roof",
)
DIM = 64


def direction(*seed: object) -> np.ndarray:
    "float32[DIM], the unit vector of a seed."
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return unit(np.random.default_rng(np.frombuffer(digest, np.uint32)).normal(size=DIM))


def towards(topic: int, quality: float, *seed: object) -> np.ndarray:
    "A unit vector whose cosine with the topic's is about `quality`."
    return unit(quality * direction("topic", topic) + np.sqrt(1 - quality**2) * direction(*seed))


class ToyEncoder:
    "Vectors from the note at the end of a file; text by the topics named in it."
    name, revision, dim, thresholds = "toy", "1", DIM, Thresholds()

    def encode_clip(self, path, start=None, end=None):
        note = read_note(Path(path))
        return ClipVectors(*(towards(note["topic"], note["quality"], sense, note["maker"], note["n"]) for sense in ("video", "audio")))

    def encode_video(self, path, start=None, end=None):
        return self.encode_clip(path, start, end).video

    def encode_audio(self, path, start=None, end=None):
        return self.encode_clip(path, start, end).audio

    def encode_text(self, texts):
        return np.stack([unit(sum((direction("topic", i) for i, name in enumerate(TOPICS) if name in text), 0.5 * direction(text))) for text in texts])


def blank_media(path: Path, seconds: int = 20) -> bytes:
    "A grey film without sound, a picture a second."
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 32
        for _ in range(seconds):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def write_note(media: bytes, note: dict) -> bytes:
    "The film with a note in a box that players skip."
    text = json.dumps(note).encode()
    return media + (len(text) + 8).to_bytes(4, "big") + b"free" + text


def read_note(path: Path) -> dict:
    "The note of a film."
    data = path.read_bytes()
    return json.loads(data[data.rindex(b"free{") + 4:])


@dataclass(frozen=True)
class Nature:
    "What a toy miner is like: how well its clips fit, and how it lies (copies another's clips, or sends vectors that are not its clips')."
    name: str
    quality: float
    lie: str = ""  # "" | vectors | copy
    copies: str = ""  # whose clips


class ToyAnswerer:
    "Endless clips on any topic, the same ones in the same order to every validator. Keeps its media under `folder`."

    def __init__(self, nature: Nature, folder: Path):
        self.nature, self.folder, self.encoder, self.shelf = nature, folder, ToyEncoder(), self
        folder.mkdir(parents=True, exist_ok=True)
        self._lock, self._media = threading.Lock(), blank_media(folder / "blank.mp4")
        self._files = {path.name: path for path in folder.iterdir() if len(path.name) == 64}  # what a killed process has left
        self._given: dict[tuple[str, int], int] = {}
        for line in (folder / "given").read_text().splitlines() if (folder / "given").exists() else []:
            caller, topic, count = line.split()
            self._given[caller, int(topic)] = int(count)

    def has(self, request, caller: str) -> bool:
        "Always."
        return True

    def answer(self, request, caller: str, claim=lambda: True) -> VideoResponse:
        topic = TOPICS.index(request.query)
        with self._lock:
            first = self._given.get((caller, topic), 0)
            self._given[caller, topic] = first + request.num_videos
            with open(self.folder / "given", "a") as file:
                file.write(f"{caller} {topic} {first + request.num_videos}\n")
        clips = [self._clip(topic, n) for n in range(first, first + request.num_videos)]
        return VideoResponse(encoder="toy@1", video_metadata=clips)

    def _clip(self, topic: int, n: int) -> Clip:
        maker = self.nature.copies or self.nature.name
        data = write_note(self._media, {"topic": topic, "quality": self.nature.quality, "maker": maker, "n": n})
        sha = hashlib.sha256(data).hexdigest()
        path = self.folder / sha
        path.write_bytes(data)
        self._files[sha] = path
        caption = f"{TOPICS[topic].capitalize()}: take {n} of what is seen about {TOPICS[topic]}, filmed by {maker} with a steady hand."
        vectors = self.encoder.encode_clip(path)
        if self.nature.lie == "vectors":
            vectors = ClipVectors(*(towards(topic, 0.9, sense, maker, n) for sense in ("video", "audio")))
        return Clip(video_id=f"sha256:{sha}", description=caption, views=n, start_time=0, end_time=10, video_emb=vectors.video.tolist(),
                    audio_emb=vectors.audio.tolist(), description_emb=self.encoder.encode_text([caption])[0].tolist())

    def read(self):
        "The shelf as the server knows it: which file has which hash."
        import polars as pl

        with self._lock:
            return pl.DataFrame({"video_id": [f"sha256:{sha}" for sha in self._files], "path": [str(p) for p in self._files.values()]},
                                schema={"video_id": pl.String, "path": pl.String})
