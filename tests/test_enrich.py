"""Enrichment: nothing is computed twice or lost, whatever ends a run; and what each part says of clips whose truth is known."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_publisher import toy_round
from onnx import TensorProto, helper, numpy_helper

from omega_lab.corpus import LocalHub, card_hook, publish
from omega_lab.corpus.enrich import (
    Enriched,
    EnrichError,
    carried,
    clip_fetch,
    enrich_row,
    enriched_path,
    enrichment_configs,
    get_enricher,
    orphaned,
    run,
    side_file,
)
from omega_lab.corpus.enrichers import Box, Detector, EmotionEnricher, MotionEnricher, ObjectsEnricher, OcrEnricher, TranscriptEnricher, follow
from omega_lab.focus.speech import make_transcriber
from omega_lab.media import write_film
from omega_lab.settings import CorpusSettings, load_settings
from omega_lab.sources.base import SourceError
from omega_lab.store import Store

ROOT = Path(__file__).parent.parent
HERE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


class Length:
    "The only thing it says of a clip is how long its range is."
    name, revision = "length", "1"
    schema = pa.schema([("seconds", pa.float32()), ("words", pa.list_(pa.string()))])

    def enrich(self, path, start, end, row):
        return {"seconds": end - start, "words": row["description"].split()}


def shard(folder, name, rows=6):
    path = folder / "default/train/001" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"video_id": [f"{name}-{n}" for n in range(rows)], "source_id": [f"url:https://a.example/{name}/{n}" for n in range(rows)],
                      "youtube_id": [""] * rows, "description": [f"clip number {n}" for n in range(rows)],
                      "start_time": list(range(rows)), "end_time": [n + 1 + n / 3 for n in range(rows)],
                      "video_embed": pa.array([[0.5, 0.5]] * rows, pa.list_(pa.float32(), 2))})
    pq.write_table(table, path)
    return path


def here(id, start, end):
    return Path("film.mp4")


def test_rows_follow_the_shard_and_vectors_are_not_read(tmp_path):
    seen = []

    class Seeing(Length):
        def enrich(self, path, start, end, row):
            seen.append(set(row))
            return super().enrich(path, start, end, row)

    assert run(Seeing(), [shard(tmp_path, "A")], clip_fetch(here), tmp_path, progress=False) == Enriched(1, 0, 6, 0)
    assert all("video_embed" not in names for names in seen)
    table = pq.read_table(tmp_path / "length/train/001/A.parquet")
    assert table["video_id"].to_pylist() == [f"A-{n}" for n in range(6)]
    assert table["seconds"].to_pylist()[1] == pytest.approx(4 / 3) and table["words"].to_pylist()[3] == ["clip", "number", "3"]
    assert table.schema.field("seconds").type == pa.float32()


def test_what_cannot_be_fetched_is_tried_again_only_when_asked(tmp_path):
    path, gone, asked = shard(tmp_path, "A"), {"A/1": "gone", "A/4": "blocked"}, []

    def get(id, start, end):
        asked.append(id[-3:])
        if kind := gone.get(id[-3:]):
            raise SourceError(kind, "proxy.example:3128 says no")
        return Path("film.mp4")

    assert run(Length(), [path], clip_fetch(get), tmp_path, progress=False).errors == 2
    errors = pq.read_table(enriched_path(path, "length", tmp_path))["error"].to_pylist()
    assert errors[1] == "gone: proxy.example:3128 says no" and errors[4] == "blocked", "what was refused to us names nobody"
    assert run(Length(), [path], clip_fetch(get), tmp_path, progress=False) == Enriched(skipped=1)
    del gone["A/4"], asked[:]
    assert run(Length(), [path], clip_fetch(get), tmp_path, retry=True, progress=False) == Enriched(1, 0, 2, 1)
    assert asked == ["A/1", "A/4"]
    assert pq.read_table(enriched_path(path, "length", tmp_path))["error"].null_count == 5


def test_another_revision_and_other_columns_are_computed_anew(tmp_path):
    path = shard(tmp_path, "A")
    run(Length(), [path], clip_fetch(here), tmp_path, progress=False)
    newer = Length()
    newer.revision = "2"
    assert run(newer, [path], clip_fetch(here), tmp_path, progress=False).rows == 6
    newer.schema = pa.schema([("seconds", pa.float64()), ("words", pa.list_(pa.string()))])
    assert run(newer, [path], clip_fetch(here), tmp_path, progress=False).rows == 6
    assert pq.read_table(enriched_path(path, "length", tmp_path))["revision"].unique().to_pylist() == ["2"]


def test_a_rewritten_shard_computes_only_what_is_new(tmp_path):
    path = shard(tmp_path, "A")
    run(Length(), [path], clip_fetch(here), tmp_path, progress=False)
    pq.write_table(pq.ParquetFile(path).read().slice(2), path)
    assert run(Length(), [path], clip_fetch(here), tmp_path, progress=False) == Enriched(1, 0, 0, 0)
    assert pq.read_table(enriched_path(path, "length", tmp_path)).num_rows == 4


def test_a_mistake_of_an_enricher_stops_the_run_names_the_clip_and_keeps_the_rows(tmp_path):
    class Broken(Length):
        broken = True

        def enrich(self, path, start, end, row):
            if self.broken and row["video_id"] == "A-3":
                raise ZeroDivisionError("no")
            return super().enrich(path, start, end, row)

    path, part = shard(tmp_path, "A"), Broken()
    with pytest.raises(ZeroDivisionError) as told:
        run(part, [path], clip_fetch(here), tmp_path, progress=False)
    assert "A-3" in told.value.__notes__[0]
    assert not enriched_path(path, "length", tmp_path).exists()
    part.broken = False
    assert run(part, [path], clip_fetch(here), tmp_path, progress=False).rows == 3


@pytest.mark.parametrize("values, told", [({"seconds": 1}, "words"), ({"seconds": "long", "words": []}, "clip x"), ({"seconds": 1, "words": 3}, "clip x")])
def test_values_outside_the_schema_are_refused(values, told):
    class Wrong(Length):
        def enrich(self, path, start, end, row):
            return values

    with pytest.raises(EnrichError, match=told):
        enrich_row(Wrong(), {"video_id": "x", "youtube_id": "a" * 11, "start_time": 0, "end_time": 1}, clip_fetch(here))


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_enrich import Length, clip_fetch, run
def get(id, start, end):
    time.sleep(0.05)
    with open({log!r}, "a") as file: file.write(id[-1])
    return Path("film.mp4")
run(Length(), [{shard!r}], clip_fetch(get), {out!r}, progress=False)
"""


def test_a_killed_run_loses_the_clip_in_hand_and_no_other(tmp_path):
    path, out, log = shard(tmp_path, "A", 9), tmp_path / "killed", tmp_path / "log"
    code = SLOW.format(tests=str(ROOT / "tests"), log=str(log), shard=str(path), out=str(out))
    side = side_file(enriched_path(path, "length", out))
    first = subprocess.Popen([sys.executable, "-c", code], env=HERE)
    until = time.monotonic() + 30
    while not side.exists() or side.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = side.read_bytes().count(b"\n")
    assert 3 <= kept < 9
    with open(side, "ab") as file:
        file.write(b'{"video_id": "A-')  # torn, as a kill within the write would leave it
    log.unlink()
    subprocess.run([sys.executable, "-c", code], env=HERE, check=True, timeout=60)
    assert log.read_text() == "012345678"[kept:] and not side.exists()
    run(Length(), [path], clip_fetch(here), tmp_path, progress=False)
    whole, resumed = (enriched_path(path, "length", folder).read_bytes() for folder in (tmp_path, out))
    assert whole == resumed, "a resumed file is the same to the last byte"


def test_configs_load_by_name_and_orphans_are_found(tmp_path):
    paths = [shard(tmp_path, name) for name in "AB"]
    run(Length(), paths, clip_fetch(here), tmp_path, progress=False)
    configs = enrichment_configs(tmp_path)
    (tmp_path / "README.md").write_text("---\n" + json.dumps({"configs": configs}) + "\n---\n")
    from datasets import load_dataset

    loaded = load_dataset(str(tmp_path), "length", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 12 and loaded.column_names[:3] == ["video_id", "revision", "error"]
    paths[0].unlink()
    assert orphaned(tmp_path) == [enriched_path(paths[0], "length", tmp_path)]


def test_a_takedown_takes_its_row_out_of_the_enrichments_in_the_same_commit(tmp_path):
    hub, part = LocalHub(tmp_path / "hub"), Length()
    with Store(tmp_path / "state") as store:
        store.commit_round(toy_round(1, 5))
        hooks = (card_hook(hub, CorpusSettings()), carried(tmp_path / "hub"))
        publish(store, hub, shard_rows=10, flush=True, min_rows=1, extra_files=hooks)
        shards = sorted((tmp_path / "hub/default").rglob("*.parquet"))
        clips = pl.concat(pl.read_parquet(path, columns=["video_id", "source_id"]) for path in shards)
        asked = []

        def get(id, start, end):
            asked.append(id)
            return Path("film.mp4")

        run(part, shards, clip_fetch(get), tmp_path / "hub", progress=False)
        assert len(asked) == len(clips) > 1
        store.take_down([clips["source_id"][0]], "asked")
        publish(store, hub, shard_rows=10, extra_files=hooks)
    left = pl.read_parquet(tmp_path / "hub/length/train/*/*.parquet")
    assert set(left["video_id"]) == set(clips["video_id"][1:]) and orphaned(tmp_path / "hub") == []
    shards = sorted((tmp_path / "hub/default").rglob("*.parquet"))
    assert run(part, shards, clip_fetch(get), tmp_path / "hub", progress=False) == Enriched(skipped=len(shards)), "nothing is computed again"


def test_own_enrichers_by_name():
    assert get_enricher("omega_lab.corpus.enrichers:MotionEnricher", pairs=3).pairs == 3
    with pytest.raises(EnrichError, match="mood.*motion"):
        get_enricher("mood")


# --- the parts


def texture(seed=0, height=120, width=400):
    "Blotches with edges, which a flow can hold on to."
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(40, 220, (height // 10, width // 10, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))


@pytest.mark.parametrize("right", [3, -3])
def test_motion_of_a_known_pan(tmp_path, right):
    still = texture()
    film = write_film(tmp_path / "pan.mp4", [still[:, 120 - right * n:280 - right * n] for n in range(36)], 12, crf=10)
    found = MotionEnricher().enrich(film, 0, 3, {})
    speed = right * 12 / 160  # widths a second
    assert found["camera_right"] == pytest.approx(speed, rel=0.15) and abs(found["camera_down"]) < 0.02
    assert found["speed"] == pytest.approx(abs(speed), rel=0.2) and found["things"] < 0.1 and found["moving"] > 0.9


def test_a_still_film_does_not_move_and_cuts_are_no_movement(tmp_path):
    still = [texture(n)[:, :160] for n in range(2)]
    film = write_film(tmp_path / "still.mp4", [still[n >= 24] for n in range(48)], 12, crf=10)
    found = MotionEnricher().enrich(film, 0, 4, {})
    assert found["speed"] < 0.01 and found["moving"] == 0 and found["pairs"] >= 3
    flicker = write_film(tmp_path / "flicker.mp4", [texture(n)[:, :160] for n in range(24)], 12, crf=10)
    assert MotionEnricher().enrich(flicker, 0, 2, {}) == {**dict.fromkeys(MotionEnricher.schema.names), "pairs": 0}


def test_cuts_lie_in_the_clip_and_count_from_its_beginning(tmp_path):
    film = write_film(tmp_path / "cuts.mp4", [np.full((48, 64, 3), 60 * (n // 12), np.uint8) for n in range(48)], 12)
    found = get_enricher("cuts").enrich(film, 1.5, 3.5, {})
    assert found["cuts"] == pytest.approx([0.5, 1.5], abs=0.05) and found["shots"] == 3


def test_reading_stops_at_its_budget(tmp_path):
    class Blind:
        name, revision = "blind", "1"

        def boxes(self, picture):
            return np.zeros((0, 4), int)

        def texts(self, picture, boxes):
            return []

    film = write_film(tmp_path / "grey.mp4", [np.full((48, 64, 3), 99, np.uint8)] * 40, 4)
    assert OcrEnricher(every=2, budget=0, reader=Blind()).enrich(film, 0, 10, {}) == {"lines": [], "moments": 1}
    assert OcrEnricher(every=2, reader=Blind()).enrich(film, 0, 10, {})["moments"] == 5


def model(path, nodes, inputs, outputs, consts, names=None):
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in some.items()] for some in (inputs, outputs)]
    graph = helper.make_graph([helper.make_node(op, ins, [out], **more) for op, ins, out, more in nodes], "toy", *values,
                              [numpy_helper.from_array(value, name) for name, value in consts.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(made, {"names": repr(names)} if names else {})
    onnx.save(made, path)
    return path


def colour_detector(path, ended=False, names=None):
    "Finds red things (class 0) of 32 pixels in 64 × 64: the four quarters. `ended`: as [1, n, 6], else [1, 4 + 2, n]."
    middles = np.float32([[16, 48, 16, 48], [16, 16, 48, 48]])
    mix = np.float32([[[[1]], [[-1]], [[0]]], [[[0]], [[-1]], [[1]]]])
    cells = [("AveragePool", ["picture"], "cells", {"kernel_shape": [32, 32], "strides": [32, 32]}), ("Conv", ["cells", "mix"], "colours", {})]
    picture = {"picture": [1, 3, 64, 64]}
    if not ended:
        boxes = np.concatenate([middles, np.full_like(middles, 32)])[None]
        return model(path, [*cells, ("Reshape", ["colours", "shape"], "scores", {}), ("Concat", ["boxes", "scores"], "found", {"axis": 1})], picture,
                     {"found": [1, 6, 4]}, {"mix": mix, "shape": np.int64([1, 2, 4]), "boxes": boxes}, names)
    boxes = np.concatenate([middles - 16, middles + 16]).T[None]
    return model(path, [*cells, ("Reshape", ["colours", "shape"], "scores", {}), ("Concat", ["boxes", "scores", "classes"], "found", {"axis": 2})], picture,
                 {"found": [1, 4, 6]}, {"mix": mix[:1], "shape": np.int64([1, 4, 1]), "boxes": boxes, "classes": np.zeros((1, 4, 1), np.float32)}, names)


@pytest.mark.parametrize("ended", [False, True])
def test_both_kinds_of_detectors(tmp_path, ended):
    picture = np.full((64, 128, 3), 100, np.uint8)  # fitted into 64 × 64: half as large, 16 grey rows above
    picture[:32, 64:128] = 250, 0, 0
    weights = colour_detector(tmp_path / "d.onnx", ended, {0: "red thing", 1: "blue thing"})
    found = Detector(weights, "objects", least_score=0.2)(picture)
    assert [box.label for box in found] == ["red thing"]
    assert [found[0].left, found[0].top, found[0].right, found[0].bottom] == pytest.approx([0.5, 0, 1, 0.5])
    assert Detector(weights, "objects", ["rouge", "bleu"], 0.2)(picture)[0].label == "rouge"


def test_tracks_through_a_clip(tmp_path):
    weights = colour_detector(tmp_path / "d.onnx")
    pictures = []
    for n in range(48):  # a red thing on the left; a blue one on the right from the second second on
        pictures.append(np.full((64, 64, 3), 100, np.uint8))
        pictures[-1][:32, :32] = 250, 0, 0
        if n >= 12:
            pictures[-1][32:, 32:] = 0, 0, 250
    film = write_film(tmp_path / "two.mp4", pictures, 12, crf=10)
    found = enrich_row(ObjectsEnricher(weights), {"video_id": "x", "youtube_id": "a" * 11, "start_time": 0, "end_time": 4},
                       clip_fetch(lambda *_: film))
    red, blue = found["tracks"]
    assert (red["label"], blue["label"]) == ("0", "1") and len(red["boxes"]) == found["moments"] > len(blue["boxes"])
    assert blue["boxes"][0]["time"] == pytest.approx(1.1, abs=0.2) and blue["boxes"][0]["left"] == pytest.approx(0.5)


def test_tracks_swap_no_identities():
    "Two alike that pass each other at a distance, one of them unseen once."
    def at(n):
        x = n / 20
        boxes = [Box(x, 0.0, x + 0.2, 0.3, 0.9, "car"), Box(0.8 - x, 0.5, 1 - x, 0.8, 0.9, "car")]
        return n / 4, boxes[n % 2:] + boxes[:n % 2] if n != 8 else boxes[:1]

    first, second = follow([at(n) for n in range(16)])
    assert {box.top for box in first.boxes} == {0.0} and {box.top for box in second.boxes} == {0.5}
    assert len(first.boxes) == 16 and len(second.boxes) == 15
    assert len(follow([at(0), (9.0, at(1)[1])])) == 4, "after its patience a track has ended"


def test_what_is_no_detector_is_refused_by_name(tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    flat = model(tmp_path / "flat.onnx", [("Flatten", ["picture"], "found", {})], {"picture": [1, 3, 8, 8]}, {"found": [1, 192]}, {})
    grey = model(tmp_path / "grey.onnx", [("Identity", ["picture"], "found", {})], {"picture": [1, 1, 8, 8]}, {"found": [1, 1, 8, 8]}, {})
    with pytest.raises(EnrichError, match="text.onnx is no ONNX model"):
        ObjectsEnricher(tmp_path / "text.onnx")
    with pytest.raises(EnrichError, match="grey.onnx wants"):
        ObjectsEnricher(grey)
    with pytest.raises(EnrichError, match=r"flat.onnx gives an output of shape \[1, 192\]"):
        Detector(flat, "objects")(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(EnrichError, match="objects.*needs weights"):
        get_enricher("objects")


def test_emotions_need_consent_and_average_over_faces(tmp_path):
    faces = colour_detector(tmp_path / "faces.onnx")
    nodes = [("GlobalAveragePool", ["face"], "light", {}), ("Flatten", ["light"], "flat", {}), ("Gemm", ["flat", "a", "b"], "logits", {})]
    classifier = model(tmp_path / "e.onnx", nodes, {"face": [1, 1, 16, 16]}, {"logits": [1, 2]},
                       {"a": np.float32([[0.1, 0]]), "b": np.float32([-10, 0])})  # bright: the first, dark: the second
    with pytest.raises(EnrichError, match="consent=True"):
        EmotionEnricher(classifier, faces)
    with pytest.raises(EnrichError, match="2 classes, labels has 8"):
        EmotionEnricher(classifier, faces, consent=True).judge(np.zeros((9, 9, 3), np.uint8))
    picture = np.full((64, 64, 3), 100, np.uint8)
    picture[:32, :32] = 250, 0, 0
    film = write_film(tmp_path / "face.mp4", [picture] * 24, 12, crf=10)
    found = EmotionEnricher(classifier, faces, consent=True, labels=["glad", "sad"]).enrich(film, 0, 2, {})
    assert found["faces"] == 1
    shares = {one["label"]: one["probability"] for one in found["emotions"]}
    assert sum(shares.values()) == pytest.approx(1) and shares["sad"] > 0.8, "the red face is dark in grey"


@pytest.fixture
def endpoint():
    "A speech model behind the OpenAI-compatible interface that hears one sentence in everything."
    asked = []

    class Speech(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"text": " good morning "}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Speech)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    server.shutdown()
    server.server_close()


def test_speech_is_written_down_and_silence_is_not_asked_about(tmp_path, endpoint):
    url, asked = endpoint
    part = TranscriptEnricher(transcriber=make_transcriber(load_settings({"language.base_url": url, "focus.speech_model": "toy"}, environ={})))
    assert part.revision.startswith("1-endpoint:toy")
    grey = [np.full((48, 64, 3), 99, np.uint8)] * 20
    silent = write_film(tmp_path / "silent.mp4", grey, 4)
    assert part.enrich(silent, 0, 5, {}) == {"text": "", "speech": 0.0, "segments": []} and not asked
    voice = ROOT / "data/raw/pyannote.audio/conversation.wav"
    if not voice.exists():
        pytest.skip("the sample media are not there: omega-lab samples fetches them")
    found = part.enrich(voice, 5, 15, {})
    assert found["speech"] > 0.3 and found["text"] == "good morning" and len(asked) == 1
    assert found["segments"] == [{"start": 0, "end": 10, "text": "good morning"}]
