"Copies are found and others are not; one name for one medium; the index outlives kill -9."

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw

from omega_lab.footage import CopyMatch, Fingerprint, fingerprint, fingerprint_of, is_copy, match
from omega_lab.footage_index import FootageIndex
from omega_lab.footage_trials import DISGUISES, FURTHER, KINDS, Trial, best_threshold, make_copy, stored_range, wilson
from omega_lab.media import MediaError, write_film
from omega_lab.sources.base import MAX_LINK, canonical_id, is_link, youtube_id

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from footage import halves  # noqa: E402

CATALOG = ROOT / "data" / "catalog"
CLIPS = ("bunny_gliding", "bunny_meadow", "carphone", "street", "globe", "city", "lion", "china", "coins", "flower", "page", "brick")


@pytest.fixture(scope="module")
def known():
    "Fingerprints of some sample clips, films and photographs."
    return {name: fingerprint(CATALOG / f"{name}.mp4", 0, 6) for name in CLIPS}


# ---- one name for one medium

SAME = {
    "youtube:dQw4w9WgXcQ": [
        "url:https://www.youtube.com/watch?v=dQw4w9WgXcQ", "url:http://youtube.com./watch?v=dQw4w9WgXcQ&t=42s", "url:https://youtu.be/dQw4w9WgXcQ?si=x",
        "url:https://M.YouTube.COM:443/watch?list=PL0&v=dQw4w9WgXcQ", "url:https://www.youtube.com/shorts/dQw4w9WgXcQ/", "url:https://music.youtube.com//watch?v=%64Qw4w9WgXcQ",
        "url:https://www.youtube-nocookie.com/embed/dQw4w9WgXcQ?autoplay=1", "url:https://www.youtube.com/v/dQw4w9WgXcQ&hl=en", "url:https://de.youtube.com/live/dQw4w9WgXcQ#x",
        "url:https://www.youtube.com/watch?v=dQw4w9WgXcQ?feature=share", "url:https://www.youtube.com/watch/dQw4w9WgXcQ", "youtube:dQw4w9WgXcQ",
        "url:https://www.youtubekids.com/watch?v=dQw4w9WgXcQ", "url:https://youtube.com/a/../embed/dQw4w9WgXcQ", "url:https://youtube.com/./Shorts/dQw4w9WgXcQ",
        "url:https://youtube.googleapis.com/v/dQw4w9WgXcQ", "url:https://www.youtube.com/shorts/aaaaaaaaaaa/%2e%2e/dQw4w9WgXcQ"],
    "url:https://example.org/a%20b/tide.mp4?id=7&x=%C3%A9": [
        "url:http://example.org/a%20b/tide.mp4?x=%c3%a9&id=7", "url:https://EXAMPLE.ORG.:443/./a%20b//c/../tide.mp4/?id=7&x=é&utm_medium=m&fbclid=1&t=1h2m3s#at",
        "url:http://example.org:80/a%20b/%74ide.mp4?&x=%C3%A9&id=7&start=90&si=a&id=7"],
    "url:https://xn--bcher-kva.example/": ["url:http://Bücher.example", "url:https://xn--BCHER-kva.example/?utm_source=z"],
    "url:https://[::1]:8080/": ["url:http://[0:0:0::1]:8080/"],
}


@pytest.mark.parametrize(("name", "spelling"), [(name, text) for name, texts in SAME.items() for text in texts])
def test_spellings_of_one_medium(name, spelling):
    assert canonical_id(spelling) == name == canonical_id(name)


def test_different_media_keep_different_names():
    texts = ["youtube:dQw4w9WgXcQ", "youtube:dQw4w9WgXcq", "sha256:" + "0" * 64, *(f"url:https://{rest}" for rest in (
        "example.org/a", "example.org/A", "example.org/a?id=1", "example.org/a?id=2", "example.org/a%2Fb", "example.org/a/b", "example.org:81/a",
        "example.com/a", "example.org/a?t=never", "notyoutube.com/watch?v=dQw4w9WgXcQ", "youtube.com.example.org/watch?v=dQw4w9WgXcQ",
        "www.youtube.com/playlist?list=dQw4w9WgXcQ"))]
    assert len({canonical_id(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", ["", "youtube:short", "youtube:dQw4w9WgXcQ\n", "vimeo:1", "url:ftp://a/b", "url:https://me@host/", "url:https://[::1/",
                                  "url:https://a:99999/", "url:https://./", "url:https://y%6futube.com/",
                                  "url:https://a..b/", "url:https://" + "a" * 64 + ".org/", "sha256:" + "A" * 64])
def test_what_is_no_id_is_refused_with_its_value(text):
    with pytest.raises(ValueError) as refusal:
        canonical_id(text)
    assert repr(text[:100])[:40] in str(refusal.value)


def test_canonical_twice_is_canonical_once():
    pieces = [*"ab.%/?#&=:;+é。ß[]@~-_A9 ", "youtube.com", "watch?v=", "dQw4w9WgXcQ",
              "%zz", "%2F", "%2e", "..", "utm_a=", "t=1s", "xn--", "::1", "：", "％", "İ"]
    chance, valid = random.Random(3), 0
    for _ in range(20_000):
        text = f"url:http{chance.choice(['', 's'])}://{chance.choice(['', 'a.b', 'youtu.be'])}{''.join(chance.choices(pieces, k=chance.randint(0, 8)))}"
        if is_link(text[4:]):
            valid += 1
            assert canonical_id(canonical_id(text)) == canonical_id(text), text
    assert valid > 4_000


def test_a_name_is_never_longer_than_a_link():
    text = "url:https://example.org/" + "é" * (MAX_LINK - 40)
    name = canonical_id(text)
    assert is_link(name[4:]) and canonical_id(name) == name != canonical_id(text + "a")
    assert youtube_id("https://[") is None


# ---- copies and others

TWO_AT_ONCE = (("mirrored", "recoded"), ("shifted", "letterbox"), ("faster", "subtitle"))


@pytest.mark.parametrize(("number", "kinds"), list(enumerate([*((kind,) for kind in KINDS), *TWO_AT_ONCE])))
def test_every_kind_of_copy_is_found_on_held_out_clips(tmp_path, number, kinds):
    entries = json.loads((CATALOG / "catalog.json").read_text())
    held_out = [e for e in entries if halves(entries)[e["subject"]] == "held out" and e["duration"] > 11]
    films, photographs = ([e["file"] for e in held_out if e["kind"] == kind] for kind in ("film", "photo pan"))
    name = (films, photographs)[number % 2][number % 5]
    copy = make_copy(CATALOG / name, kinds, 10, tmp_path / "copy.mp4")
    found = match(fingerprint(copy, 0, 60), fingerprint(CATALOG / name, *stored_range(10)))
    assert is_copy(found), (name, kinds, found)
    assert found.mirrored == ("mirrored" in kinds)


def test_different_clips_are_no_copies(known):
    for a in CLIPS:
        for b in CLIPS:
            assert is_copy(match(known[a], known[b])) == (a == b), (a, b)


def test_a_match_is_the_same_from_both_sides(known):
    whole, part = known["street"], fingerprint(CATALOG / "street.mp4", 2, 5)
    there, back = match(part, whole), match(whole, part)
    assert there.score == back.score and there.seconds == back.seconds and back == there.backwards()
    assert there.offset == pytest.approx(2, abs=0.5)
    for a, b in [("globe", "lion"), ("city", "brick")]:
        assert match(known[a], known[b]).score == match(known[b], known[a]).score


def test_nothing_to_see_matches_nothing(known):
    noise = np.random.default_rng(0).integers(126, 129, (12, 96, 96)).astype(np.uint8)
    for pictures in (np.zeros((12, 96, 96), np.uint8), np.full((1, 96, 96), 255, np.uint8), noise):
        flat = fingerprint_of(pictures)
        assert flat.evidence == 0 and match(flat, flat) == match(flat, known["city"]) == CopyMatch()
        assert FootageIndex().query(flat) == []
    with pytest.raises(ValueError, match="'other/1'"):
        match(known["city"], Fingerprint(known["city"].times, known["city"].hashes, known["city"].weights, "other/1"))


def still(seed, title, lines=()):
    "Ten seconds of a page: white words on black, with a little noise."
    image = Image.new("L", (640, 360))
    draw = ImageDraw.Draw(image)
    for n, line in enumerate((title, *lines)):
        draw.text((60, 30 + 50 * n) if lines else (200, 160), line, fill=230, font_size=40 if n == 0 else 24)
    page = np.asarray(image.resize((96, 96), Image.Resampling.BOX))
    return fingerprint_of(np.clip(page + np.random.default_rng(seed).normal(0, 1, (20, 96, 96)), 0, 255).astype(np.uint8))


def test_two_pages_are_two_and_one_page_is_itself():
    words = "lion river market train guitar window coffee planet engine garden mirror forest".split()
    chance = random.Random(4)
    cards = [still(n, " ".join(chance.sample(words, 2))) for n in range(8)]
    slides = [still(n, " ".join(chance.sample(words, 2)), [" ".join(chance.sample(words, chance.randint(2, 6))) for _ in range(4)]) for n in range(8)]
    for pages in (cards, slides):
        called = sum(is_copy(match(one, other)) for k, one in enumerate(pages) for other in pages[:k])
        assert called <= 1, f"{called} of 28 pairs of pages with other words on them"
    assert is_copy(match(still(1, "lion river"), still(2, "lion river")))


def test_a_black_second_is_no_evidence(known):
    pictures = np.zeros((12, 96, 96), np.uint8)
    pictures[:2] = np.random.default_rng(1).integers(0, 255, (2, 12, 12)).repeat(8, 1).repeat(8, 2)
    assert fingerprint_of(pictures).evidence == 2
    assert not is_copy(match(fingerprint_of(pictures), known["city"]))


def test_broken_media(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    whole = (CATALOG / "city.mp4").read_bytes()
    (tmp_path / "torn.mp4").write_bytes(whole[:2000])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode()])
    for name, start, end in [("text.mp4", 0, 5), ("torn.mp4", 0, 5), ("sound.mp4", 0, 5), ("missing.mp4", 0, 5)]:
        with pytest.raises(MediaError, match=name):
            fingerprint(tmp_path / name, start, end)
    for start, end in [(5, 5), (-1, 5), (0, float("inf")), (float("nan"), 3), (100, 105)]:
        with pytest.raises(MediaError, match="city.mp4"):
            fingerprint(CATALOG / "city.mp4", start, end)


def test_sampling_is_by_time_not_by_frames(tmp_path):
    shades = [np.full((48, 64, 3), 40 * n, np.uint8) for n in range(6)]
    slow = write_film(tmp_path / "slow.mp4", shades, fps=1)
    assert len(fingerprint(slow, 0, 6)) == pytest.approx(12, abs=1) and len(fingerprint(slow, 2.5, 4.5)) == 4


# ---- the index

WRITER = """
import sys, numpy as np
from omega_lab.footage import Fingerprint
from omega_lab.footage_index import FootageIndex
index, rng = FootageIndex(sys.argv[1]), np.random.default_rng(len(sys.argv))
while True:
    n = len(index)
    index.add(f"clip {n}", Fingerprint(np.arange(40, dtype=np.float32) / 2, rng.integers(0, 2**64, (40, 2), dtype=np.uint64), np.ones(40, np.float32)))
    print(n, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path):
    chance = random.Random(5)
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        first = child.stdout.readline()
        time.sleep(chance.uniform(0.05, 0.3))
        child.send_signal(signal.SIGKILL)
        last = int((child.stdout.read().split() or [first])[-1])
        child.wait()
        index = FootageIndex(tmp_path)
        assert len(index) in (last + 1, last + 2) and all(f"clip {n}" in index for n in range(last + 1))


def test_every_torn_end_is_cut_off_and_the_file_grows_on(tmp_path, known):
    index = FootageIndex(tmp_path)
    index.add("city", known["city"])
    file = tmp_path / "footage.bin"
    whole = file.read_bytes()
    for torn in [*(whole[:n] for n in (1, 3, 14, 15, 17, len(whole) - 1)), bytes(64)]:
        file.write_bytes(whole + torn)
        assert len(FootageIndex(tmp_path)) == 1 and file.read_bytes() == whole
    FootageIndex(tmp_path).add("lion", known["lion"])
    assert FootageIndex(tmp_path).query(known["lion"])[0][0] == "lion"


def test_damage_before_the_end_is_reported_not_cut_off(tmp_path, known):
    index = FootageIndex(tmp_path)
    for name in ("city", "lion"):
        index.add(name, known[name])
    data = bytearray((tmp_path / "footage.bin").read_bytes())
    data[40] ^= 1
    (tmp_path / "footage.bin").write_bytes(data)
    with pytest.raises(ValueError, match="footage.bin: the record at byte 0 of .* is damaged"):
        FootageIndex(tmp_path)
    assert (tmp_path / "footage.bin").read_bytes() == data


def test_add_query_remove(tmp_path, known):
    index = FootageIndex(tmp_path)
    for name, clip in known.items():
        index.add(name, clip)
        index.add(name, clip)  # the same again
    assert len(index) == len(CLIPS)
    with pytest.raises(ValueError, match="'city' is known with another fingerprint"):
        index.add("city", known["lion"])
    mirrored = fingerprint(make_copy(CATALOG / "street.mp4", ("mirrored",), 8, tmp_path / "copy.mp4"), 0, 60)
    (name, found), *others = index.query(mirrored)
    assert name == "street" and found.mirrored and is_copy(found) and not any(is_copy(one) for _, one in others)
    assert "street" not in dict(index.query(mirrored, exclude={"street"}))
    index.remove("street")
    with pytest.raises(KeyError, match="'street' is not in the index of 11 clips"):
        index.remove("street")
    for one in (index, FootageIndex(tmp_path)):
        assert "street" not in one and len(one) == 11 and "street" not in dict(one.query(mirrored))
    index.add("street", known["street"])  # again, and found once
    assert [name for name, _ in index.query(known["street"])].count("street") == 1 and len(FootageIndex(tmp_path)) == 12


def test_bytes_of_a_fingerprint(known):
    clip = known["globe"]
    again = Fingerprint.from_bytes(clip.to_bytes())
    assert again.to_bytes() == clip.to_bytes() and match(again, clip).score == 1
    for wrong in [b"", clip.to_bytes()[:-1], b"x" * 200, "é\n".encode()]:
        with pytest.raises(ValueError, match="are no fingerprint"):
            Fingerprint.from_bytes(wrong)


# ---- what the trials say

def test_the_threshold_is_the_one_the_trials_choose():
    trials = [Trial("copy", True, s / 10, "train") for s in (5, 9)] + [Trial("other", False, s / 10, "train") for s in (0, 1)]
    assert best_threshold(trials) == pytest.approx(0.305, abs=0.02)
    with pytest.raises(ValueError, match="needs both"):
        best_threshold(trials[:2])
    assert wilson(0, 1406)[1] == pytest.approx(0.00273, abs=1e-4)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_what_goes_beyond_is_told_as_it_is(tmp_path):
    table = pl.read_csv(ROOT / "data" / "footage_beyond.csv")
    assert table["kind"].to_list() == list(FURTHER) and table["trials"].min() >= 15
    stored = fingerprint(CATALOG / "street.mp4", *stored_range(8))
    for kind, share in zip(table["kind"], table["share"]):
        if share == 1 or share == 0:
            found = match(fingerprint(make_copy(CATALOG / "street.mp4", (kind,), 8, tmp_path / f"{kind}.mp4"), 0, 60), stored)
            assert is_copy(found) == bool(share), (kind, found)


def test_the_table_in_data_keeps_the_promise():
    table = pl.read_csv(ROOT / "data" / "footage.csv").filter(pl.col("half") == "held out")
    share = dict(zip(table["kind"], table["share"]))
    assert all(share[kind] >= 0.95 for kind in KINDS) and share["different clips"] < 0.01 and set(DISGUISES) <= set(share)
