"""Make the lab's lists from its taxonomy: `python tools/topics.py` rewrites data/topics.txt and data/actions.txt.gz.

data/taxonomy.toml says what happens where; this writes it out, takes out near-duplicates by the cosine of their sentence
vectors, and says how many went. Vectors are kept in data/cache/, so that after a correction only new phrases are embedded.
`--sample N` shows N phrases of each list for reading, `--seed` which ones.
"""

import argparse
import gzip
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omega_lab.embedding.text import sentence_vectors
from omega_lab.topics import Scenario, action_phrases, by_scenario, distinct, list_digest, read_taxonomy, usable_topics

DATA = Path(__file__).resolve().parent.parent / "data"
TOPIC_COSINE, ACTION_COSINE = 0.85, 0.90  # nearer than this, the later of two goes


def candidates(scenarios: Sequence[Scenario]) -> dict[str, dict[str, tuple[str, ...]]]:
    "Everything the taxonomy says, before near-duplicates go: file name → scenario → phrases, each phrase once."
    found: dict[str, dict[str, tuple[str, ...]]] = {"topics.txt": {}, "actions.txt.gz": {}}
    seen: set[str] = set()
    for scenario in scenarios:
        for name, phrases in (("topics.txt", scenario.topics), ("actions.txt.gz", tuple(action_phrases(scenario)))):
            fresh = [phrase for phrase in usable_topics(phrases) if phrase.casefold() not in seen]
            seen.update(phrase.casefold() for phrase in fresh)
            found[name][scenario.title] = tuple(fresh)
    return found


def flat(sections: dict[str, tuple[str, ...]]) -> list[str]:
    return [phrase for phrases in sections.values() for phrase in phrases]


def vectors(phrases: list[str], cache: Path) -> np.ndarray:
    "float32[n, 384]: sentence vectors, those known from `cache` not computed again."
    keys = [hashlib.sha256(phrase.encode()).hexdigest()[:24] for phrase in phrases]
    known: dict[str, np.ndarray] = {}
    if cache.is_file():
        with np.load(cache) as kept:
            known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))
    missing = [n for n, key in enumerate(keys) if key not in known]
    if missing:
        print(f"embedding {len(missing)} phrases", flush=True)
        for n, vector in zip(missing, sentence_vectors([phrases[n] for n in missing], batch=64), strict=True):
            known[keys[n]] = vector
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, keys=np.array(keys), vectors=np.stack([known[key] for key in keys]))
    return np.stack([known[key] for key in keys])


def thinned(sections: dict[str, tuple[str, ...]], threshold: float, cache: Path) -> dict[str, tuple[str, ...]]:
    "The sections without their near-duplicates."
    phrases = flat(sections)
    stays = {phrase for phrase, keep in zip(phrases, distinct(vectors(phrases, cache), threshold), strict=True) if keep}
    return {title: tuple(phrase for phrase in lines if phrase in stays) for title, lines in sections.items()}


def note(sections: dict[str, tuple[str, ...]], threshold: float) -> str:
    "A list's first line: what it was made from. The digest is that of the phrases before thinning."
    return (
        f"#! made from taxonomy.toml by tools/topics.py; candidates {list_digest(flat(sections))}, cosine {threshold:.2f}"
    )


def written(sections: dict[str, tuple[str, ...]], head: str) -> str:
    blocks = (f"# {title}\n" + "".join(f"{phrase}\n" for phrase in phrases) for title, phrases in sections.items())
    return f"{head}\n" + "".join(blocks)


def make(data: Path = DATA, out: Path = DATA) -> None:
    "Rewrite both lists."
    for name, sections in candidates(read_taxonomy(data / "taxonomy.toml")).items():
        threshold = TOPIC_COSINE if name == "topics.txt" else ACTION_COSINE
        kept = thinned(sections, threshold, data / "cache" / f"{name.split('.')[0]}_vectors.npz")
        text = written(kept, note(sections, threshold)).encode()
        (out / name).write_bytes(gzip.compress(text, mtime=0) if name.endswith(".gz") else text)
        total, left = len(flat(sections)), len(flat(kept))
        print(f"{name}: {left} of {total} phrases over {len(kept)} scenarios; {total - left} nearer than {threshold:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=0, help="show so many phrases of each list instead")
    parser.add_argument("--seed", type=int, default=0, help="which phrases are shown")
    options = parser.parse_args()
    if not options.sample:
        return make()
    for name in ("topics.txt", "actions.txt.gz"):
        phrases = flat(by_scenario(DATA / name))
        print(f"--- {name}", *random.Random(options.seed).sample(phrases, options.sample), sep="\n")


if __name__ == "__main__":
    main()
