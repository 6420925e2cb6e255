"""ImageBind against a slow, obvious implementation of the same architecture, and against recorded outputs of the original code."""
import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_imagebind_model import SlowImageBind
from torch.nn import functional as F

from omega_lab.doctor import check_encoder_choice
from omega_lab.embedding import Encoder, ImageBind, get_encoder
from omega_lab.embedding.bulk import Range, embed_clips
from omega_lab.embedding.checkpoint import CheckpointError, convert, hub_name, open_checkpoint, read_weights
from omega_lab.embedding.imagebind import agreement, clip_inputs, views_at_once
from omega_lab.embedding.trunks import HUGE, Linear, Shape, Tower, expected_shapes, weights_by_rule
from omega_lab.media import MediaError, write_film
from omega_lab.settings import load_settings

SMALL = Shape(32, Tower(64, 3, 2), Tower(48, 2, 2), Tower(40, 2, 2))
RECORDED = json.loads((Path(__file__).parent / "imagebind_outputs.json").read_text())


@pytest.fixture(scope="module")
def weights():
    "Not around zero, as the rule's are: attention and logit scales have something to do."
    return {name: array * 5 if array.ndim > 1 else array for name, array in weights_by_rule(SMALL).items()}


@pytest.fixture(scope="module")
def slow(weights):
    model = SlowImageBind(SMALL)
    model.load_state_dict(weights, strict=True)
    return model


@pytest.fixture(scope="module")
def encoder(weights):
    return ImageBind(weights, device="cpu", shape=SMALL)


def inputs(seed=0, views=3, clips=2):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(5, 77, dtype=torch.int64)
    for row, length in zip(ids, (2, 9, 30, 76, 77)):
        row[:length] = torch.cat([torch.tensor([49406]), torch.randint(1, 49000, (length - 2,), generator=generator), torch.tensor([49407])])
    ids[4, 76] = 17  # cut off without an end token
    return torch.randn(2, views, 3, 2, 224, 224, generator=generator), torch.randn(2, clips, 1, 128, 204, generator=generator), ids


def recorded_inputs():
    generator = torch.Generator().manual_seed(6)
    views, clips = torch.randn(1, 2, 3, 2, 224, 224, generator=generator), torch.randn(1, 2, 1, 128, 204, generator=generator)
    ids = torch.zeros(3, 77, dtype=torch.int64)
    for row, tokens in zip(ids, RECORDED["tokens"]):
        row[:len(tokens)] = torch.tensor(tokens)
    return views, clips, ids


def test_names_and_shapes_are_the_official_ones():
    named = {**expected_shapes(), "modality_preprocessors.text.mask": (77, 77)}
    lines = "".join(f"{name} {size}\n" for name, size in sorted(named.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == "242d83262d6a94438ad189fc6ee76860bf50ee335672c33807f5de33ab334542"
    assert expected_shapes(SMALL).keys() == SlowImageBind(SMALL).state_dict().keys()


def test_numbers_equal_the_slow_model(slow, encoder):
    views, clips, ids = inputs()
    for fast, obvious in ((encoder.encode_views(views), slow.vision(views.flatten(0, 1)).unflatten(0, (2, 3)).mean(1)),
                          (encoder.encode_audio_clips(clips), slow.audio(clips.flatten(0, 1)).unflatten(0, (2, 2)).mean(1)),
                          (encoder.encode_tokens(ids), slow.text(ids))):
        assert fast.shape == obvious.shape and (fast - obvious).abs().max() < 2e-6


def test_the_plain_product_gives_the_numbers_of_the_fused_one(weights, slow, monkeypatch):
    monkeypatch.setattr("omega_lab.embedding.trunks._has_onednn", lambda: False)
    plain = ImageBind(weights, device="cpu", shape=SMALL)
    views, clips, ids = inputs(1, 1, 1)
    assert (plain.encode_views(views) - slow.vision(views[:, 0])).abs().max() < 2e-6
    assert (plain.encode_tokens(ids) - slow.text(ids)).abs().max() < 2e-6


def test_batches_do_not_change_numbers(weights, encoder):
    one_by_one = ImageBind(weights, device="cpu", shape=SMALL, memory_gb=1e-9)
    assert one_by_one.at_once == 1 < encoder.at_once
    views, clips, ids = inputs(2)
    assert (one_by_one.encode_views(views) - encoder.encode_views(views)).abs().max() < 2e-6
    assert (one_by_one.encode_tokens(ids) - encoder.encode_tokens(ids)).abs().max() < 2e-6


def test_threads_share_an_encoder(weights):
    fresh, alone = (ImageBind(weights, device="cpu", shape=SMALL) for _ in range(2))
    texts = [["a cat", f"number {n}"] for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fresh.encode_text, texts))
    assert all(np.allclose(rows, alone.encode_text(given), atol=1e-6) for rows, given in zip(found, texts))


@pytest.mark.parametrize("precision, least", [("bf16", 0.999), ("int8", 0.995)])
def test_other_precisions_are_near(weights, encoder, precision, least):
    other = ImageBind(weights, device="cpu", precision=precision, shape=SMALL)
    views, clips, ids = inputs(3, 2, 1)
    for name, given in (("encode_views", views), ("encode_audio_clips", clips), ("encode_tokens", ids)):
        cosines = F.cosine_similarity(getattr(encoder, name)(given), getattr(other, name)(given))
        assert least < cosines.min() < 1 - 1e-9, f"{name}: {cosines.min()}"
    assert other.revision == f"{encoder.revision}.{precision}"


def test_int8_minds_a_row_of_zeros():
    layer = Linear(torch.eye(20), torch.ones(20), "int8", torch.device("cpu"))
    assert torch.equal(layer(torch.zeros(2, 20)), torch.ones(2, 20))


@pytest.mark.parametrize("options, words", [
    ({"precision": "fp8"}, "precision 'fp8' is none of"), ({"precision": "fp16", "device": "cpu"}, "fp16 is for GPUs"),
    ({"device": "abacus"}, "device 'abacus' cannot be used"), ({"memory_gb": -1}, "memory_gb is -1")])
def test_bad_choices(weights, options, words):
    with pytest.raises(ValueError, match=words):
        ImageBind(weights, shape=SMALL, **options)


@pytest.mark.parametrize("method, shape", [("encode_views", (1, 2, 3, 2, 224, 225)), ("encode_views", (3, 2, 224, 224)),
                                           ("encode_views", (1, 0, 3, 2, 224, 224)),
                                           ("encode_audio_clips", (1, 128, 204)), ("encode_tokens", (77,)), ("encode_tokens", (2, 76))])
def test_bad_shapes_are_named(encoder, method, shape):
    with pytest.raises(ValueError, match=r"have shape \[.*\], not \[b"):
        getattr(encoder, method)(torch.zeros(shape))


def test_memory_bound_counts_views():
    assert views_at_once(1.0, torch.device("cuda"), HUGE, "fp32") < views_at_once(1.0, torch.device("cuda"), HUGE, "bf16")
    assert views_at_once(1e-6, torch.device("cuda")) == 1


def test_all_that_is_wrong_with_weights_is_said_at_once(weights):
    spoilt = {name: array for name, array in weights.items() if not name.endswith("bias_k")}
    spoilt["modality_heads.text.proj.1.weight"] = torch.zeros(3, 3)
    spoilt["modality_heads.vision.0.bias"] = torch.zeros(64, dtype=torch.int64)
    with pytest.raises(CheckpointError) as raised:
        ImageBind(spoilt, shape=SMALL)
    for words in ("2 missing: modality_trunks.audio.blocks.0.attn.bias_k", "1 misshapen: modality_heads.text.proj.1.weight (3x3 instead of 32x40)",
                  "1 no floats: modality_heads.vision.0.bias"):
        assert words in str(raised.value)
    with pytest.raises(CheckpointError, match="misshapen"):
        ImageBind(weights)  # a small one is not the published one


def test_files_of_every_form_give_the_same_encoder(tmp_path, weights, encoder):
    from safetensors.torch import save_file

    torch.save(weights, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"model.{name}": array for name, array in weights.items()}, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(SlowImageBind(SMALL), tmp_path / "module.pt")
    save_file(weights, tmp_path / "table.safetensors")
    ids = inputs()[2]
    for name in ("plain.pth", "wrapped.pt", "old.pth", "table.safetensors"):
        opened = ImageBind(tmp_path / name, device="cpu", shape=SMALL)
        assert torch.equal(opened.encode_tokens(ids), encoder.encode_tokens(ids)), name
        assert opened.revision == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:12]


def test_a_pickled_module_becomes_a_table_without_running_it(tmp_path, weights, slow):
    torch.save(slow, tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="checkpoint convert"):
        read_weights(tmp_path / "module.pt")
    program = ("import sys; sys.path = [p for p in sys.path if not p.endswith('tests')]\n"  # where the module's classes are not
               "from omega_lab.embedding.checkpoint import convert; print(convert(sys.argv[1], sys.argv[2]))")
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "module.pt", tmp_path / "table.safetensors"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert open_checkpoint(tmp_path / "table.safetensors", SMALL).sha256() and int(done.stdout) == len(weights)
    assert all(torch.equal(array, weights[name]) for name, array in read_weights(tmp_path / "table.safetensors").items())
    (tmp_path / "no.pt").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="no.pt"):
        convert(tmp_path / "no.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize("text, found", [("a/b", ("a/b", None, "")), ("a/b:c.pth", ("a/b", None, "c.pth")),
                                         ("a/b-2.x@v1:d/c.pth", ("a/b-2.x", "v1", "d/c.pth")),
                                         ("/a/b.pth", None), ("b.pth", None), ("a b/c", None)])
def test_hub_names(text, found):
    assert hub_name(text) == found


def test_it_is_an_encoder_of_the_lab(tmp_path, encoder):
    grey = (np.full((90, 160, 3), n * 9, np.uint8) for n in range(24))
    silent = write_film(tmp_path / "silent.mp4", grey)
    assert isinstance(encoder, Encoder) and encoder.prepare is clip_inputs
    vectors = encoder.encode_clip(silent)
    assert vectors.audio is None and encoder.encode_audio(silent) is None
    assert np.allclose(np.linalg.norm(vectors.video), 1, atol=1e-5) and np.allclose(vectors.video, encoder.encode_video(silent), atol=1e-5)


def test_long_captions_in_pieces_or_cut(weights, encoder):
    cut = ImageBind(weights, device="cpu", pieces=False, shape=SMALL)
    short, long = "a rabbit in the grass", "The rabbit eats an apple, and then another. " * 20
    assert np.allclose(encoder.encode_text([short]), cut.encode_text([short]), atol=1e-6)
    assert encoder.encode_text([long])[0] @ cut.encode_text([long])[0] < 0.9999
    assert cut.revision == f"{encoder.revision}.whole"


def test_agreement_is_of_the_worst(weights, encoder, tmp_path):
    film = write_film(tmp_path / "film.mp4", (np.full((90, 160, 3), n * 9, np.uint8) for n in range(24)), sound=np.sin(np.arange(32000) / 9) / 2)
    other = ImageBind(weights, device="cpu", precision="bf16", shape=SMALL)
    found = agreement(encoder, other, [clip_inputs(film)], ["a", "a longer text"])
    assert found.keys() == {"video", "audio", "text"} and all(0.99 < cosine < 1.00001 for cosine in found.values())


def test_settings_open_it(tmp_path, weights):
    missing = load_settings({"encoder.name": "imagebind"})
    assert "[encoder] checkpoint" in next(iter(check_encoder_choice(missing))).detail
    with pytest.raises(ValueError, match="does not take these options .precision"):
        get_encoder("bridge", **load_settings({"encoder.precision": "bf16"}).encoder.options())
    torch.save(weights, tmp_path / "small.pth")
    chosen = load_settings({"encoder.name": "imagebind", "encoder.checkpoint": str(tmp_path / "small.pth"), "encoder.device": "cpu"})
    with pytest.raises(CheckpointError, match="misshapen"):  # of another size, but found and read
        get_encoder(chosen.encoder.name, **chosen.encoder.options())
    assert chosen.score_hash() == missing.score_hash() != load_settings({}).score_hash()


def test_notice_comes_once(weights):
    program = ("from omega_lab.embedding import ImageBind; from omega_lab.embedding.trunks import *\n"
               f"s = {SMALL!r}\nfor _ in range(2): ImageBind(weights_by_rule(s), shape=s)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.count("CC-BY-NC-SA 4.0") == 1, done.stderr


def test_workers_read_while_the_model_computes(tmp_path, encoder):
    films = [write_film(tmp_path / f"{name}.mp4", (np.full((90, size, 3), n * k, np.uint8) for n in range(24)), sound=np.sin(np.arange(32000) / k) / 2)
             for name, size, k in (("wide", 160, 3), ("square", 90, 5), ("tall", 60, 7))]
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    ranges = [*map(Range, films), Range(films[0], 0.5, 1.5), Range(tmp_path / "broken.mp4")]
    found = [given for _, given in embed_clips(encoder, ranges, workers=2, batch=3)]
    assert isinstance(found.pop(), MediaError)
    for one, given in zip(ranges, found):
        alone = encoder.encode_clip(one.path, one.start, one.end)
        assert np.allclose(given.video, alone.video, atol=1e-5) and np.allclose(given.audio, alone.audio, atol=1e-5)


@pytest.mark.full
def test_full_size_meets_the_original(capsys):
    "Needs about 10 GB of memory: weights, and their copy laid out for the product."
    encoder = ImageBind(weights_by_rule(), device="cpu")
    views, clips, ids = recorded_inputs()
    for name, found in (("vision", encoder.encode_views(views)), ("audio", encoder.encode_audio_clips(clips)), ("text", encoder.encode_tokens(ids))):
        error = (found - torch.tensor(RECORDED[name])).abs().max()
        with capsys.disabled():
            print(f"\n{name}: largest difference from the original {error:.1e}", end="")
        assert error < 1e-3
