"""What preparing a clip for ImageBind costs: `python benchmarks/preprocessing.py [--film FILM] [--keys N] [--json]`.

A clip of 120 s, 640 × 360, 25 frames a second, H.264 as x264 makes it by default with a key every N (250) frames, stereo AAC at 44.1 kHz, is
made of a sample film (or one's own is taken) and prepared in turn: the plain way, which decodes the whole picture and the whole
sound, turns every frame to RGB, picks, scales, crops and normalises, resamples all of the sound; and the lab's way. Printed are medians
of processor seconds, their ratio, and what the lab's time consists of. The results are compared, too.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from slow_imagebind import slow_clips, slow_views  # noqa: E402

from omega_lab.embedding.inputs import clip_inputs  # noqa: E402
from omega_lab.embedding.sound import audio_clips  # noqa: E402
from omega_lab.embedding.views import FrameIndex, _groups, frame_rate, open_tracks, video_views, wanted_frames  # noqa: E402
from omega_lab.media import audio  # noqa: E402
from omega_lab.samples import fetch_archive  # noqa: E402

SECONDS, FPS, SIZE, RATE = 120, 25, (640, 360), 44_100


def pictures(scenes: Path):
    "The trailer over and over, mirrored every other time, until there are two minutes."
    mirrored, n = False, 0
    while True:
        with av.open(str(scenes)) as container:
            for frame in container.decode(video=0):
                if n == SECONDS * FPS:
                    return
                picture = frame.reformat(*SIZE, "rgb24").to_ndarray()
                yield np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture
                n += 1
        mirrored = not mirrored


def sound(scenes: Path) -> np.ndarray:
    "float32[2, n]: the trailer's sound, again and again; the second channel turned round."
    heard = np.resize(audio(scenes, rate=RATE), SECONDS * RATE)
    return np.stack([heard, heard[::-1]])


def make_film(path: Path, keys: int = 250) -> None:
    scenes = fetch_archive("moviepy", ROOT / "data") / "bunny.mp4"
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=FPS)
        film.width, film.height, film.pix_fmt = *SIZE, "yuv420p"
        film.codec_context.gop_size = keys
        film.options = {"crf": "23", "sc_threshold": "0", "threads": "1"}  # keys nowhere else
        track = container.add_stream("aac", rate=RATE, layout="stereo")
        heard, given = sound(scenes), 0
        for n, picture in enumerate(pictures(scenes)):
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            while given < (n + 1) * RATE // FPS:
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(heard[:, given:given + 1024]), format="fltp", layout="stereo")
                block.sample_rate, block.pts, block.time_base = RATE, given, Fraction(1, RATE)
                container.mux(track.encode(block))
                given += 1024
        container.mux([*film.encode(), *track.encode()])


def processor_seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def decode_alone(film: Path) -> None:
    "What no way of this kind can do without: reading all packets, decoding all sound and what leads to the ten frames."
    index = FrameIndex()
    with open_tracks(film) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream, container.streams.audio[0]):
            index.add(packet) if packet.stream_index == stream.index else packet.decode()
        index, stream.codec_context.thread_count = index.settled(), 1
        shown = [index.shown[k] for k in wanted_frames(len(index.shown), frame_rate(stream, index.shown))]
        for key, wanted in _groups(shown, index.keys).items():
            container.seek(key, stream=stream)
            left = set(wanted)
            for packet in container.demux(stream):
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                packet.decode()
                left.discard(packet.pts)
                if not left:
                    break


def measure(film: Path, times: int = 5) -> dict[str, float]:
    quick, views, clips = clip_inputs(film), slow_views(film), slow_clips(film)
    found = {"views_error": float(np.abs(np.repeat(quick.views, 15 // len(quick.views), axis=0) - views).max()),
             "clips_error": float(np.abs(quick.clips - clips).max())}
    works = {"plain_s": lambda: (slow_views(film), slow_clips(film)), "inputs_s": lambda: clip_inputs(film), "views_s": lambda: video_views(film),
             "sound_s": lambda: audio_clips(film), "floor_s": lambda: decode_alone(film)}
    spent = {name: [] for name in works}
    for _ in range(times):  # in turn, so that a busy moment of the machine falls on all of them
        for name, work in works.items():
            spent[name].append(processor_seconds(work))
    found |= {name: statistics.median(seconds) for name, seconds in spent.items()}
    return found | {"ratio": found["plain_s"] / found["inputs_s"], "load": os.getloadavg()[0]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--film", type=Path, help="a clip of one's own, with sound")
    options.add_argument("--keys", type=int, default=250, help="frames from one key to the next")
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        film = asked.film or Path(folder) / "film.mp4"
        if not asked.film:
            make_film(film, asked.keys)
        found = measure(film)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"the plain way {found['plain_s']:.2f} s of processor time, the lab's {found['inputs_s']:.2f} s: {found['ratio']:.1f} times less")
    print(f"decoding the sound and what leads to the ten frames is {found['floor_s']:.2f} s of it, {found['floor_s'] / found['inputs_s']:.0%}")
    print(f"each from a file of its own: the picture {found['views_s']:.2f} s, the sound {found['sound_s']:.2f} s")
    print(f"largest difference between the two: picture {found['views_error']:.1e}, sound {found['clips_error']:.1e}")
    print(f"load of the machine meanwhile {found['load']:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
