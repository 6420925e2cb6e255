"""How many copies of a recording are found, and how much other work is taken for one: `python tools/focus_copies.py [--write] [--kinds N] [--jobs N]`.

Copies of every recording in which somebody works are made and looked at, each in N of the twelve disguises (the next one in the next N), and
all recordings of a half are held against one another. Besides the two halves of the calibration set (recorded first, where missing) there are
films drawn for this: different texts written evenly in one and the same editor window, the hardest to tell apart. Pairs by the same script,
word for word and key for key, are told apart from other work. `--write` keeps the table as data/focus_copies.csv, which the docs show.
"""

import argparse
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
from focus_scenarios import SCENARIOS, Scenario
from focus_set import ROOT, make_set
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont

from omega_lab.focus.screen import video_vector, watch
from omega_lab.media import probe, write_film
from omega_lab.settings import FocusSettings

# --- copies

CLOCK_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
EVEN = "scale=trunc(iw*{0}/2)*2:trunc(ih*{0}/2)*2"
FILTERS = {
    "coded coarsely": "null",
    "640 x 360": "scale=640:360",
    "3 frames a second": "fps=3",
    "brighter": "eq=brightness=0.06:contrast=1.08",
    "first 4 s cut off": "trim=4,setpts=PTS-STARTPTS",
    "last 4 s cut off": "trim=0:{end}",
    "3 % faster": "setpts=PTS/1.03",
    "thin border": EVEN.format(0.98) + ",pad=ceil(iw/1.96)*2:ceil(ih/1.96)*2:(ow-iw)/2:(oh-ih)/2",
    "edges cropped": "crop=trunc(iw*0.49)*2:trunc(ih*0.49)*2",
    "pause of 6 s": "split[a][b];[a]trim=0:{middle},tpad=stop_mode=clone:stop_duration=6[x];[b]trim={middle},setpts=PTS-STARTPTS[y];[x][y]concat",
    "logo": "drawbox=x=iw*0.86:y=ih*0.03:w=iw*0.11:h=ih*0.07:color=red:t=fill",
    "clock": f"drawtext=fontfile={CLOCK_FONT}:text='%{{{{pts\\:hms}}}}':x=w*0.82:y=h*0.93:fontsize=h/25:box=1:boxcolor=white",
}


def disguise(film: Path, kind: str, out: Path) -> Path:
    "Write a copy of a film in a disguise."
    length = probe(film).duration
    told = FILTERS[kind].format(end=length - 4, middle=length * 0.45)
    crf = "35" if kind == "coded coarsely" else "28"
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-threads", "1", "-i", str(film), "-vf", told, "-an"]
    subprocess.run([*command, "-threads", "1", "-preset", "ultrafast", "-crf", crf, "-y", str(out)], check=True, stdin=subprocess.DEVNULL)
    return out


# --- drawn films


@dataclass(frozen=True)
class Text:
    "What is written in a drawn film, its lines divided by |; in how many seconds, evenly or by fits and starts; the file's name."

    lines: str
    seconds: int = 75
    evenly: bool = True
    name: str = "shopping.txt"


LIST = "Shopping list for "
TEXTS = (
    Text(LIST + "Saturday||oat milk 2.19|rye bread 3.40|apples 2.85|potatoes 1.99|butter 2.79|tomatoes 3.10|cheese 4.25|coffee 7.49||sum 28.06"),
    Text(LIST + "Sunday||soy milk 1.99|white bread 2.10|pears 3.05|carrots 1.49|honey 4.79|onions 1.10|yogurt 2.25|green tea 5.49||sum 22.26"),
    Text("Shopping list||flour 0.99|eggs 3.20|sugar 1.15|lemons 2.49|cream 1.79|vanilla 2.10|almonds 4.25|cocoa 3.49||total 19.46"),
    Text(LIST + "the party||crisps 2.19|lemonade 3.40|grapes 2.85|baguettes 4.99|olives 2.79|napkins 1.10|candles 4.25|cheese cubes 7.49||sum 29.06"),
    Text(LIST + "Saturday||rice 2.29|lentils 3.10|apples 2.65|spinach 2.99|butter 2.89|garlic 0.90|cheese 4.55|coffee 6.99||sum 26.36"),
    Text("Things to buy||nails 2.19|hammer 13.40|paint 22.85|brushes 7.99|tape 2.79|screws 3.10|sandpaper 4.25|gloves 5.49||sum 62.06", 68),
    Text("Groceries, week 12||bananas 1.89|milk 1.29|pasta 0.99|tuna 2.49|cucumber 0.79|peppers 2.99|butter 2.79|bread 2.40||sum 15.63", 90),
    Text(LIST + "Monday||ham 3.19|rolls 1.40|plums 2.15|leeks 1.79|quark 1.29|radishes 0.99|gouda 3.25|tea 2.49||sum 16.55", evenly=False),
    Text(LIST + "Friday||fish 9.19|bread 3.40|lemon 0.85|potatoes 1.99|dill 1.29|cream 1.10|wine 8.25|salad 1.49||sum 27.56", evenly=False),
    Text("Packing list||tent 1|sleeping bags 2|stove 1|matches 2|rope 20 m|torch 2|map 1|water 6 l||sum 35 things", name="packing.txt"),
    Text("Minutes of the meeting||Present: Ines, Paul, Amara|The pump is repaired by June|A new shed costs 400 euros|Paul asks for two offers"
         "|The hedge is cut in autumn||Next meeting 7 July, 18:00", name="minutes.txt"),
    Text("def square(n):|    return n * n||for number in range(1, 9):|    print(number, square(number))||# prints 1, 4, 9, 16, 25|# and so on until 64",
         evenly=False, name="squares.py"),
)  # fmt: skip
NONCE_SECONDS = 6


def written(text: Text, tick: float, shares: np.ndarray) -> Image.Image:
    "The screen at a time in seconds: a word first, then the editor with the share of the text that is there by then."
    small, large, huge = (ImageFont.load_default(size) for size in (16, 22, 64))
    screen = Image.new("RGB", (960, 600), (250, 250, 250))
    draw = ImageDraw.Draw(screen)
    if tick < NONCE_SECONDS:
        word = np.random.default_rng(sum(map(ord, text.lines))).choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ23456789"), 8)
        draw.text((480, 300), f"{''.join(word[:4])} {''.join(word[4:])}", (20, 20, 20), huge, "mm")
        return screen
    draw.rectangle((0, 0, 960, 34), fill=(52, 58, 70))
    draw.text((480, 17), f"{'*' if tick < text.seconds - 4 else ''}{text.name} - Mousepad", "white", small, "mm")
    draw.text((12, 44), "File  Edit  Search  View  Document  Help", (60, 60, 60), small)
    done = text.lines[: round(len(text.lines) * shares[int(tick)])]
    for n, line in enumerate(done.split("|")):
        draw.text((40, 84 + 38 * n), line, "black", large)
    return screen


def draw_film(text: Text, out: Path, fps: int = 2) -> Path:
    "A film of somebody who writes a text."
    pauses = np.ones(text.seconds) if text.evenly else np.random.default_rng(len(text.lines)).gamma(0.6, 1, text.seconds)
    pauses[:NONCE_SECONDS] = pauses[-6:] = 0
    shares = pauses.cumsum() / pauses.sum()
    return write_film(out, (np.asarray(written(text, tick / fps, shares)) for tick in range(text.seconds * fps)), fps)


# --- the measure


def vector_of(film: Path) -> np.ndarray:
    return video_vector(watch(film, FocusSettings().sample_every))


def copies_of(film: Path, kinds: tuple[str, ...] = tuple(FILTERS)) -> dict[str, np.ndarray]:
    "The vectors of a film (under its own name) and of its copies, which are gone afterwards."
    with tempfile.TemporaryDirectory(prefix="focus-copies-") as scratch:
        return {film.stem: vector_of(film)} | {kind: vector_of(disguise(film, kind, Path(scratch) / "copy.mp4")) for kind in kinds}


def same_script(one: Scenario, two: Scenario) -> bool:
    "Whether two scenarios play the same steps from the same start on the same desk: nobody has worked twice then."
    shorter, longer = sorted((one.steps, two.steps), key=len)
    return one.theme == two.theme and one.start is two.start and shorter == longer[: len(shorter)] and bool(shorter)


def others(vectors: dict[str, np.ndarray]) -> Iterator[tuple[str, str, str, float]]:
    "(kind, name, name, distance) of every pair of recordings."
    known = {scenario.name: scenario for scenario in SCENARIOS}
    for one, two in itertools.combinations(vectors, 2):
        same = one in known and same_script(known[one], known[two])
        pace = same and len(known[one].steps) == len(known[two].steps)
        yield "the same script again" if pace else "begun by the same script" if same else "other work", one, two, float(1 - vectors[one] @ vectors[two])


def table(half: str, looked: list[dict[str, np.ndarray]], threshold: float) -> pl.DataFrame:
    "For each disguise how many copies are found and the farthest, for each kind of pair how many are taken for copies and the nearest."
    vectors = {next(iter(of)): next(iter(of.values())) for of in looked}
    rows = [(kind, True, float(1 - next(iter(of.values())) @ of[kind]), next(iter(of))) for of in looked for kind in list(of)[1:]]
    rows += [(kind, False, distance, f"{one} | {two}") for kind, one, two, distance in others(vectors)]
    frame = pl.DataFrame(rows, schema=["kind", "copy", "distance", "which"], orient="row").sort("distance", maintain_order=True)
    called = (pl.col("distance") < threshold).sum().alias("called_copies")
    edge = [pl.when(pl.col("copy").first()).then(pl.col(c).last()).otherwise(pl.col(c).first()).alias(c) for c in ("distance", "which")]
    told = frame.group_by("kind", "copy", maintain_order=True).agg(pl.len().alias("pairs"), called, *edge)
    return told.sort("copy", "distance", descending=True).select(pl.lit(half).alias("half"), pl.all()).with_columns(pl.col("distance").round(4))


def summary(told: pl.DataFrame) -> str:
    "The counts of a half in words."
    copies, other = told.filter("copy"), told.filter(pl.col("kind").is_in(["other work", "begun by the same script"]))
    return (f"{told['half'][0]}: {copies['called_copies'].sum()} of {copies['pairs'].sum()} copies found (the farthest at {copies['distance'].max():.4f}), "
            f"{other['called_copies'].sum()} of {other['pairs'].sum()} pairs of other work refused (the nearest at {other['distance'].min():.4f})")  # fmt: skip


def in_turn(count: int, films: int) -> list[tuple[str, ...]]:
    "For each film so many of the disguises, taken in turn."
    kinds = tuple(FILTERS)
    return [tuple(kinds[(n * count + k) % len(kinds)] for k in range(count)) for n in range(films)]


def works(half: str) -> tuple[str, ...]:
    "The recordings of a half in which somebody works."
    return tuple(s.name for s in SCENARIOS if s.half == half and s.truth in ("done", "half", "wrong"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, default=ROOT / "data" / "focus_set", help="folder of the recordings")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--kinds", type=int, default=4, choices=range(1, len(FILTERS) + 1), help="disguises of each recording of the set", metavar="N")
    parser.add_argument("--write", action="store_true", help="keep the table for the docs")
    given, threshold, found = parser.parse_args(), FocusSettings().uniqueness, []
    with tempfile.TemporaryDirectory(prefix="focus-drawn-") as folder, ProcessPoolExecutor(given.jobs) as pool:
        drawn = list(pool.map(draw_film, TEXTS, (Path(folder) / f"drawn-{n:02d}.mp4" for n in range(len(TEXTS)))))
        for half, films in (("drawn", drawn), *((half, make_set(given.set, names=works(half))) for half in ("build", "held"))):
            kinds = in_turn(len(FILTERS) if half == "drawn" else given.kinds, len(films))
            found.append(table(half, list(pool.map(copies_of, films, kinds)), threshold))
            print(summary(found[-1]), flush=True)
    told = pl.concat(found)
    if given.write:
        told.write_csv(ROOT / "data" / "focus_copies.csv")
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_cols=-1, tbl_width_chars=160, fmt_str_lengths=80):
        print(told)


if __name__ == "__main__":
    main()
