"""What reading a recording costs: `python benchmarks/focus.py [FILM]`. Prints JSON.

Compares, on the same frames in one run: every sampled frame read in full (the straightforward way), and the lab's way, which reads
of each frame only what no neighbour has. The limit is the text detector alone, which must run on every frame that is looked at.
Without a film one is drawn: a terminal that fills and scrolls.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from omega_lab.focus.reading import RapidReader, picture_at, plan_reads, read_page
from omega_lab.focus.screen import watch
from omega_lab.media import write_film

FRAMES = 16


def terminal(seconds: int = 64, fps: int = 2):
    "Somebody types, and the screen fills."
    words, rng, font = "alpha beta gamma delta river stone light green table house".split(), np.random.default_rng(0), ImageFont.load_default(17)
    lines = [" ".join(rng.choice(words, 5)) + f" {n}" for n in range(seconds)]
    for tick in range(seconds * fps):
        image = Image.new("RGB", (1280, 720), "#fdfdfd")
        for n, line in enumerate(lines[: 1 + tick // fps][-26:]):
            ImageDraw.Draw(image).text((40, 20 + 26 * n), line, "black", font)
        yield np.asarray(image)


def timed(work) -> tuple[float, object]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main(film: Path) -> dict:
    watching, track = timed(lambda: watch(film))
    reader, samples = RapidReader(), plan_reads(track)[:FRAMES]
    pictures = {i: picture_at(film, i * track.every) for i in samples}
    reader.texts(pictures[samples[0]], reader.boxes(pictures[samples[0]]))  # the models are loaded
    full, ours, detect, pages = [], [], [], {}
    for i in samples:
        near = [pages[k] for k in sorted(pages, key=lambda k: abs(k - i))[:3]]
        full.append(timed(lambda i=i: read_page(reader, pictures[i], i * track.every))[0])
        seconds, pages[i] = timed(lambda i=i, near=near: read_page(reader, pictures[i], i * track.every, near))
        ours.append(seconds)
        detect.append(timed(lambda i=i: reader.boxes(pictures[i]))[0])
    told = {"frames": len(samples), "seconds_played": round(track.played, 1), "watching_per_second_played": round(watching / track.played, 4)}
    told |= {name: round(statistics.median(times), 3) for name, times in (("full_read_s", full), ("our_read_s", ours), ("detector_s", detect))}
    return told | {"full_to_ours": round(sum(full) / sum(ours), 2), "ours_to_limit": round(sum(ours) / sum(detect), 2)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else write_film(Path(scratch) / "terminal.mp4", terminal(), 2)
        print(json.dumps(main(given), indent=1))
