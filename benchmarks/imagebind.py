"""How near ImageBind is to what this machine can do: `python benchmarks/imagebind.py [--write] [--small] [FILM]`. Prints JSON.

Weights by rule, of full size (made once: 5 GB in the data folder, removed again with `--tidy`). FILM: a clip with sound; without one,
120 s at 640 x 360 with a key frame every 250 frames are made from a sample. Everything is measured in one run, medians of five:

product    the machine's matrix product, by torch's BLAS and by oneDNN with the weight laid out; before, between and after the towers
stages     each stage of one clip: seconds, work, limit, fraction
load       opening the checkpoint, and laying it out, against building modules, initialising, reading and copying
precision  vision tower in bf16 and int8: seconds and the lowest cosine with fp32
memory     anonymous memory of a process of its own (weights, highest with 1 and with 8 square clips), by precision
straight   the straightforward way on one clip: decode everything, one thread, modules of torch; against ours

`--write` keeps the figures in data/speed_of_light.json, which nbs/04n_embedding_light.ipynb shows. `--small`: a model of a thousandth
of the size, to see that everything runs; its figures say nothing.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from slow_imagebind import slow_clips, slow_views  # noqa: E402
from slow_imagebind_model import SlowImageBind  # noqa: E402

from omega_lab.embedding.imagebind import ClipInputs, ImageBind, clip_inputs, tokenize  # noqa: E402
from omega_lab.embedding.light import as_rows, copy_rate, media_stages, median_seconds, model_stages, product_rates, this_machine  # noqa: E402
from omega_lab.embedding.trunks import HUGE, Shape, Tower, weights_by_rule  # noqa: E402

SMALL = "--small" in sys.argv
SHAPE = Shape(32, Tower(64, 3, 2), Tower(48, 2, 2), Tower(40, 2, 2)) if SMALL else HUGE
WEIGHTS = ROOT / "data" / f"imagebind_by_rule{'_small' * SMALL}.pth"
CAPTION = ["a rabbit comes out of its burrow, stretches and looks at the morning over the meadow"]
MEMORY = """
import os, sys, threading, time, torch
from omega_lab.embedding.imagebind import ClipInputs, ImageBind
from omega_lab.embedding.trunks import Shape, Tower
path, precision, shape = sys.argv[1:]
def anonymous(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1e6
before, highest, stop = anonymous(), [0.0], threading.Event()
def watch():
    while not stop.wait(0.005): highest[0] = max(highest[0], anonymous())
encoder = ImageBind(path, device="cpu", precision=precision, shape=eval(shape)).lay_out()
print(round(anonymous() - before, 2))
threading.Thread(target=watch, daemon=True).start()
for n in (1, 8):
    highest[0] = 0.0
    encoder.encode_prepared([ClipInputs(torch.randn(5, 3, 2, 224, 224).numpy(), torch.randn(3, 1, 128, 204).numpy()) for _ in range(n)])
    print(round(highest[0] - before, 2))
"""


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def naive_load() -> SlowImageBind:
    model = SlowImageBind(SHAPE)
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return model


def load_times(repeats: int = 5) -> dict:
    "In turn, so that both meet the same machine; the file is in the system's cache."
    naive, opened, ready = [], [], []
    for _ in range(repeats):
        naive.append(seconds(naive_load))
        gc.collect()
        opened.append(seconds(lambda: ImageBind(WEIGHTS, device="cpu", shape=SHAPE)))
        ready.append(seconds(lambda: ImageBind(WEIGHTS, device="cpu", shape=SHAPE).lay_out()))
        gc.collect()
    n, o, r = map(statistics.median, (naive, opened, ready))
    return {"naive_s": round(n, 2), "opened_s": round(o, 2), "laid_out_s": round(r, 2),
            "naive_to_opened": round(n / o, 1), "naive_to_laid_out": round(n / r, 1)}


def precision_costs(fp32: ImageBind, inputs: ClipInputs, fp32_seconds: float) -> dict:
    views = torch.from_numpy(inputs.views)[None]
    truth, found = fp32.encode_views(views)[0], {"fp32": {"vision_s": round(fp32_seconds, 2), "cosine": 1.0}}
    for precision in ("bf16", "int8"):
        other = ImageBind(WEIGHTS, device="cpu", shape=SHAPE, precision=precision).lay_out()
        cosine = torch.nn.functional.cosine_similarity(other.encode_views(views)[0], truth, dim=0)
        found[precision] = {"vision_s": round(median_seconds(lambda: other.encode_views(views), 3), 2), "cosine": round(float(cosine), 5)}  # noqa: B023
    return found


def memory() -> dict:
    found = {}
    for precision in ("fp32", "bf16", "int8"):
        done = subprocess.run([sys.executable, "-c", MEMORY, str(WEIGHTS), precision, repr(SHAPE)], capture_output=True, text=True, check=True)
        found[precision] = dict(zip(("weights_gb", "highest_1_clip_gb", "highest_8_clips_gb"), map(float, done.stdout.split())))
    return found


def straight_way(film: Path, ours: float) -> dict:
    "Once: it takes minutes."
    torch.set_num_threads(1)
    model = naive_load()
    read = seconds(lambda: (slow_views(film), slow_clips(film)))
    views, clips, ids = torch.from_numpy(slow_views(film)), torch.from_numpy(slow_clips(film)), torch.from_numpy(tokenize(CAPTION))
    computed = seconds(lambda: (model.vision(views), model.audio(clips), model.text(ids)))
    torch.set_num_threads(this_machine()["cores"])
    return {"read_s": round(read, 2), "model_s": round(computed, 2), "ours_s": round(ours, 2), "straight_to_ours": round((read + computed) / ours, 2)}


def sample(folder: Path) -> Path:
    from preprocessing import make_film

    make_film(folder / "film.mp4")
    return folder / "film.mp4"


def main(arguments: list[str]) -> None:
    if not WEIGHTS.exists():
        torch.save(weights_by_rule(SHAPE), WEIGHTS)
    named = [Path(a) for a in arguments if not a.startswith("--")]
    with tempfile.TemporaryDirectory() as folder:
        film = named[0] if named else sample(Path(folder))
        inputs, ids = clip_inputs(film), torch.from_numpy(tokenize(CAPTION))
        load, encoder = load_times(), ImageBind(WEIGHTS, device="cpu", shape=SHAPE).lay_out()
        torch.set_num_threads(1)
        one_thread, copy = max(product_rates().values()), copy_rate()
        torch.set_num_threads(this_machine()["cores"])
        read = media_stages(film, one_thread, copy)
        rates, model = [product_rates()], []
        for _ in range(5):
            model.append(model_stages(encoder, inputs, ids, 1.0, repeats=1))
            rates.append(product_rates())
        product = {name: statistics.median(r[name] for r in rates) for name in rates[0]}
        product["best"] = max(product.values())
        stages = [s for s in read] + [type(s[0])(s[0].name, statistics.median(x.seconds for x in s), s[0].work, s[0].unit, product["best"], s[0].bytes)
                                      for s in zip(*model)]
        precision = precision_costs(encoder, inputs, next(s.seconds for s in stages if s.name == "vision"))
        ours = sum(s.seconds for s in stages)
        del encoder
        gc.collect()
        found = {"machine": this_machine(), "product": product, "one_thread": one_thread, "copy": copy, "stages": as_rows(stages), "load": load,
                 "precision": precision, "memory": memory(), "straight": straight_way(film, ours)}
    if "--tidy" in arguments:
        WEIGHTS.unlink()
    text = json.dumps(found, indent=1)
    if "--write" in arguments and not SMALL:
        (ROOT / "data" / "speed_of_light.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
