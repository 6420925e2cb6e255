"""Embedding at volume: the pool under killed workers and parents, the memory it holds, and a file that survives any interruption."""
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_batch

from omega_lab.embedding import bulk, get_encoder
from omega_lab.embedding.bulk import PoolError, PreparePool, Range, TextVectors, embed_batches, embed_clips
from omega_lab.embedding.files import Captions, embed_files, list_ranges
from omega_lab.embedding.vector_file import VectorFile
from omega_lab.media import MediaError, write_film

HERE = Path(__file__).parent
CLIPS = 24


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "Small films, each of other colours."
    folder = tmp_path_factory.mktemp("films")
    chance = np.random.default_rng(0)
    for n in range(CLIPS):
        tiles = chance.integers(0, 255, (12, 4, 6, 3), dtype=np.uint8)
        write_film(folder / f"{n:02d}.mp4", [np.kron(tile, np.ones((8, 8, 1), np.uint8)) for tile in tiles], fps=6)
        (folder / f"{n:02d}.txt").write_text(f"caption {n // 3}")
    return folder


def named(films, tmp_path, *names):
    "The first film under other names."
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes((films / "00.mp4").read_bytes())
    return [Range(tmp_path / f"{name}.mp4") for name in names]


def ranges(films):
    return [Range(path) for path in sorted(films.glob("*.mp4"))]


def processes(marker="omega_lab.embedding.bulk"):
    "Living workers on this machine whose parent is, or was, of this test run: known by a variable of the environment."
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("BULK_TEST") == os.environ.get("BULK_TEST")
            if ours and process.status() != psutil.STATUS_ZOMBIE and any(marker in part for part in process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(autouse=True)
def no_worker_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("BULK_TEST", str(tmp_path))
    yield
    until = time.monotonic() + 5
    while processes() and time.monotonic() < until:
        time.sleep(0.05)
    assert not processes()


# The pool

def test_batches_are_the_same_whoever_is_quicker(films):
    seen = []
    for workers in (1, 3):
        encoder = toy_batch.Batched()
        vectors = list(embed_clips(encoder, ranges(films), workers, batch=5))
        seen.append(([r for r, _ in vectors], encoder.batches, [v.video.tobytes() for _, v in vectors]))
    assert seen[0] == seen[1] and seen[0][0] == ranges(films) and [len(b) for b in seen[0][1]] == [5, 5, 5, 5, 4]


def test_without_a_pool_the_same_clips_come(films):
    alone = list(embed_clips(toy_batch.Alone(), ranges(films)[:5], batch=2))
    pooled = list(embed_clips(toy_batch.Batched(), ranges(films)[:5], workers=2, batch=1))
    assert [r for r, _ in alone] == [r for r, _ in pooled] and all(np.array_equal(a.video, b.video) for (_, a), (_, b) in zip(alone, pooled))


def test_preparing_goes_to_processes_with_one_thread(films):
    with closing(PreparePool(toy_batch.prepare, ranges(films)[:6], 2, 1e9, 60)) as pool:
        prepared = [inputs for _, inputs, _ in pool]
    assert {i["threads"] for i in prepared} == {"1"} and os.getpid() not in {i["pid"] for i in prepared}


def test_what_fails_costs_one_clip(films, tmp_path):
    wanted = named(films, tmp_path, "a", "break", "b", "die", "once", "bad", "c") + [Range(tmp_path / "gone.mp4")]
    encoder = toy_batch.Batched()
    said = {r.path.stem: v.cause if isinstance(v, MediaError) else "" for r, v in embed_clips(encoder, wanted, workers=2, batch=3)}
    assert list(said) == [r.path.stem for r in wanted]
    assert {name for name, cause in said.items() if not cause} == {"a", "b", "once", "c"}
    assert "IndexError: a bug" in said["break"] and "killed by signal 9" in said["die"] and "no direction" in said["bad"] and "no such file" in said["gone"]


def test_a_clip_that_hangs_is_given_up(films, tmp_path):
    done = list(embed_clips(toy_batch.Batched(), named(films, tmp_path, "hang", "a"), workers=1, patience=2))
    assert "within 2 s" in str(done[0][1]) and done[1][1].video.shape == (12,)


def test_memory_is_bounded_while_the_model_is_slow(films, monkeypatch):
    one = len(bulk.pickle.dumps(toy_batch.prepare(films / "00.mp4")))
    most, top = 3 * one, 0
    with closing(PreparePool(toy_batch.prepare, ranges(films), 3, most, 60)) as pool:
        for n, (found, _, size) in enumerate(pool):
            assert found == ranges(films)[n] and 0.9 * one < size < 1.1 * one
            if n in (0, 8):
                time.sleep(0.7)  # the workers could prepare everything meanwhile
            top = max(top, pool._waiting)
    assert n == CLIPS - 1 and one < top <= most + 1.1 * one


@pytest.mark.parametrize("most", [0.001, 0.2])
def test_a_batch_takes_at_most_half_of_the_memory(films, most):
    encoder = toy_batch.Batched()
    one = sum(v.nbytes for v in toy_batch.prepare(films / "00.mp4").values() if isinstance(v, np.ndarray))
    groups = bulk._in_pool(encoder, ranges(films), 2, 8, most * 1e6, 60)
    with closing(groups):
        assert [r for group in groups for r, _ in group] == ranges(films)
    assert all(1 <= len(batch) <= max(1, most * 1e6 // one) for batch in encoder.batches)


def test_ranges_are_read_as_they_are_needed(films):
    read = []

    def endless():
        while True:
            read.append(1)
            yield ranges(films)[len(read) % CLIPS]

    with closing(embed_batches(toy_batch.Batched(), endless(), workers=2, batch=2, most_waiting=1)) as groups:
        for _ in range(3):
            assert len(next(groups)) == 2
    assert len(read) < 60  # 1 MB holds twenty-seven


def test_an_error_of_the_list_or_the_model_ends_the_run(films):
    def broken():
        yield ranges(films)[0]
        raise KeyError("the list")

    with pytest.raises(KeyError, match="the list"):
        list(embed_clips(toy_batch.Batched(), broken(), workers=2, batch=1))
    encoder = toy_batch.Batched()
    encoder.encode_prepared = lambda inputs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(embed_clips(encoder, ranges(films), workers=2))


def test_a_function_the_workers_cannot_import_is_said(films, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry) != HERE])
    with pytest.raises(PoolError, match="No module named 'toy_batch'"):
        list(embed_clips(toy_batch.Batched(), ranges(films)[:2], workers=2))


def test_a_pool_in_a_thread_and_left_half_way(films):
    found = []

    def work():
        with closing(embed_clips(toy_batch.Batched(), ranges(films), workers=2, batch=2)) as clips:
            found.append(next(clips))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive() and len(found) == 1


# Captions

def test_texts_are_embedded_once():
    class Counting(toy_batch.Batched):
        read: list = []

        def encode_text(self, texts):
            self.read.append(list(texts))
            return super().encode_text(texts)

    texts = TextVectors(Counting(), most=2)
    assert [v.shape for v in texts(["a", "b", "a"])] == [(12,)] * 3 and Counting.read == [["a", "b"]]
    texts(["b", "c", "b"])
    texts(["a"])
    assert Counting.read == [["a", "b"], ["c"], ["a"]]


def test_token_ids_decide_what_is_one_text_up_to_a_piece():
    texts = TextVectors(toy_batch.Batched())
    texts._ids = lambda text: [len(word) for word in text.split()]
    assert texts.key("ab\ncd") == texts.key("xy zw") and texts.key("a " * 80) != texts.key("a\n" * 80) and texts.key("") == ""


# The command, killed and stopped

def command(films, out, encoder="toy_batch:Slow"):
    "The command as a process of its own."
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    line = [sys.executable, "-m", "omega_lab.cli", "embed", str(films), "-o", str(out), "--encoder", encoder, "--workers", "2", "--batch", "3"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})


def wait_for_parts(out, many, child):
    "Until so many parts are written."
    until = time.monotonic() + 60
    while len(list(Path(f"{out}.parts").glob("*.parquet"))) < many:
        if child.poll() == 0:
            return  # it was quicker
        assert child.poll() is None and time.monotonic() < until, child.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(films, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "films.parquet"
    child = command(films, out)
    said, trouble = child.communicate(timeout=60)
    assert child.returncode == 0 and f"{CLIPS} embedded, 0 copied" in said, trouble
    return out


def test_the_file_holds_what_it_says(films, undisturbed):
    table = pq.read_table(undisturbed)
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [f"{n:02d}.mp4" for n in range(CLIPS)]
    assert {row["encoder"] for row in rows} == {"batched"} and {row["revision"] for row in rows} == {"1"}
    assert table.schema.field("video").type == pa.list_(pa.float32(), 12)
    assert all(len(row["sha256"]) == 64 and row["audio"] is None and row["error"] is None and row["start"] is None for row in rows)
    assert [row["caption"] for row in rows] == [f"caption {n // 3}" for n in range(CLIPS)] and all(len(row["caption_vector"]) == 12 for row in rows)


def campaign(films, undisturbed, out, kills, seed):
    chance = random.Random(seed)
    for _ in range(kills):
        before = len(list(Path(f"{out}.parts").glob("*.parquet")))
        child = command(films, out)
        if not out.exists() and before < CLIPS // 3 - 1 and chance.random() < 0.7:
            wait_for_parts(out, before + 1, child)
            time.sleep(chance.uniform(0, 0.2))
        else:
            time.sleep(chance.uniform(0, 1.5))
        child.kill()
        child.communicate()
        after = len(list(Path(f"{out}.parts").glob("*.parquet")))
        assert after >= before or out.exists(), "what was stored stays"
    child = command(films, out)
    said, trouble = child.communicate(timeout=60)
    assert child.returncode == 0, trouble
    assert out.read_bytes() == undisturbed.read_bytes()
    assert not Path(f"{out}.parts").exists()


def test_killed_at_random_moments_the_file_is_the_same(films, undisturbed, tmp_path):
    campaign(films, undisturbed, tmp_path / "films.parquet", kills=2, seed=1)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_many_moments_the_file_is_the_same(films, undisturbed, tmp_path, seed):
    campaign(films, undisturbed, tmp_path / "films.parquet", kills=8, seed=10 + seed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly_and_it_goes_on(films, undisturbed, tmp_path, number, code):
    out = tmp_path / "films.parquet"
    child = command(films, out)
    wait_for_parts(out, 2, child)
    child.send_signal(number)
    _, trouble = child.communicate(timeout=60)
    assert child.returncode == code and "the same command goes on" in trouble and "Traceback" not in trouble and "Exception" not in trouble
    assert not processes() and not out.exists()
    kept = 3 * len(list(Path(f"{out}.parts").glob("*.parquet")))
    child = command(films, out)
    said, _ = child.communicate(timeout=60)
    assert f"{CLIPS - kept} embedded, 0 copied (known content), {kept} done before, 0 failed" in said and out.read_bytes() == undisturbed.read_bytes()


def test_killed_parents_leave_no_worker(films, tmp_path):
    wanted = tmp_path / "films"
    wanted.mkdir()
    named(films, wanted, "hang1", "hang2", "hang3")
    for film in ("hang1", "hang2", "hang3"):  # of different content, or they would be one
        with open(wanted / f"{film}.mp4", "ab") as file:
            file.write((12).to_bytes(4, "big") + b"free" + film.encode()[-4:])
    child = command(wanted, tmp_path / "films.parquet")
    until = time.monotonic() + 60
    while len(processes()) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.7)  # both are in the midst of a clip
    assert len(processes()) == 2
    child.kill()
    child.communicate()
    began = time.monotonic()
    while processes() and time.monotonic() < began + 5:
        time.sleep(0.02)
    assert not processes() and time.monotonic() - began < 3


def test_a_second_process_is_refused(films, tmp_path):
    with VectorFile(tmp_path / "films.parquet", toy_batch.Batched()):
        other = command(films, tmp_path / "films.parquet")
        assert "being written by another process" in other.communicate(timeout=60)[1] and other.returncode == 2


# The file

def test_another_revision_is_refused_and_the_old_file_stays(films, undisturbed, tmp_path):
    out = tmp_path / "films.parquet"
    out.write_bytes(undisturbed.read_bytes())
    with pytest.raises(ValueError, match="batched@1, and these are of batched@2.*name another file"):
        embed_files(toy_batch.Newer(), list_ranges([films]), out, workers=1)
    assert out.read_bytes() == undisturbed.read_bytes() and not Path(f"{out}.parts").exists()


def test_content_counts_and_captions_may_change(films, tmp_path):
    folder, out, encoder = tmp_path / "films", tmp_path / "films.parquet", toy_batch.Batched()
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.mp4").write_bytes((films / f"{n % 3:02d}.mp4").read_bytes())
    (folder / "broken.mp4").write_text("nothing")
    (folder / "broken2.mp4").write_text("nothing")
    first = embed_files(encoder, list_ranges([folder]), out, workers=1)
    assert (first.embedded, first.copied, first.done, first.failed) == (3, 1, 0, 2)
    (folder / "1.mp4").rename(folder / "new.mp4")
    (folder / "broken.mp4").write_bytes((films / "05.mp4").read_bytes())
    (folder / "catalog.json").write_text(json.dumps([{"file": "0.mp4", "description": "of the catalog"}]))
    (folder / "2.txt").write_text(" of the note\n")
    given = {("3.mp4", None, None): "given"}
    second = embed_files(encoder, list_ranges([folder]), out, Captions(folder, given), workers=1)
    assert (second.embedded, second.copied, second.done, second.failed) == (1, 4, 0, 1)
    rows = {row["path"]: row for row in pq.read_table(out).to_pylist()}
    assert {name: row["caption"] for name, row in rows.items() if row["caption"]} == {"0.mp4": "of the catalog", "2.mp4": "of the note", "3.mp4": "given"}
    assert rows["new.mp4"]["video"] == rows["1.mp4"]["video"] and rows["0.mp4"]["video"] == rows["3.mp4"]["video"]
    assert rows["broken.mp4"]["error"] is None and "cannot be decoded" in rows["broken2.mp4"]["error"]
    third = embed_files(encoder, list_ranges([folder]), out, Captions(folder, given), workers=1)
    assert (third.embedded, third.copied, third.done, third.failed) == (0, 0, 5, 1)


def test_a_changed_film_replaces_its_row(films, tmp_path):
    film, out = tmp_path / "a.mp4", tmp_path / "a.parquet"
    vectors = []
    for n in (0, 1):
        film.write_bytes((films / f"0{n}.mp4").read_bytes())
        assert embed_files(toy_batch.Batched(), list_ranges([film]), out, workers=1).embedded == 1
        vectors.append(pq.read_table(out)["video"].to_pylist())
    assert len(vectors[1]) == 1 and vectors[0] != vectors[1]


def test_a_kill_between_the_files_birth_and_the_parts_removal(films, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "films.parquet"

    def killed(path, *given):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(SystemExit):
            embed_files(toy_batch.Batched(), list_ranges([films]), out, Captions(films), workers=1, batch=3)
    assert out.exists() and len(list(Path(f"{out}.parts").glob("*.parquet"))) == 8
    assert embed_files(toy_batch.Batched(), list_ranges([films]), out, Captions(films), workers=1, batch=3).done == CLIPS
    assert out.read_bytes() == undisturbed.read_bytes() and not Path(f"{out}.parts").exists()


def test_too_large_a_batch_is_said(films, tmp_path):
    child = command(films, tmp_path / "films.parquet", encoder="toy_batch:Greedy")
    _, trouble = child.communicate(timeout=60)
    assert child.returncode == 1 and "out of memory" in trouble and "--batch" in trouble and "Traceback" not in trouble


def test_the_bridge_gives_what_it_gives_alone(films, tmp_path):
    bridge, out = get_encoder("bridge"), tmp_path / "films.parquet"
    wanted = [f"{films}/00.mp4@0-1", films / "01.mp4"]
    assert embed_files(bridge, list_ranges(wanted), out, Captions(films), batch=1).embedded == 2
    rows = pq.read_table(out).to_pylist()
    assert [(row["path"], row["start"], row["end"], row["caption"]) for row in rows] == [("00.mp4", 0, 1, "caption 0"), ("01.mp4", None, None, "caption 0")]
    for row, direct in zip(rows, [bridge.encode_clip(films / "00.mp4", 0, 1), bridge.encode_clip(films / "01.mp4")]):
        assert np.array_equal(np.float32(row["video"]), direct.video) and row["audio"] is None
        assert np.allclose(row["caption_vector"], bridge.encode_text(["caption 0"])[0], atol=1e-6)


def test_a_film_written_to_meanwhile_is_no_row_of_vectors(films, tmp_path):
    class Meddling(toy_batch.Alone):
        def encode_clip(self, path, start=None, end=None):
            with open(path, "ab") as file:
                file.write(b"more")
            return toy_batch.Batched().encode_clip(path, start, end)

    film, out = tmp_path / "a.mp4", tmp_path / "a.parquet"
    film.write_bytes((films / "00.mp4").read_bytes())
    assert embed_files(Meddling(), list_ranges([film]), out).errors == ["a.mp4: changed while it was read"]
    assert embed_files(toy_batch.Alone(), list_ranges([film]), out).embedded == 1


def test_a_broken_part_is_named(films, tmp_path):
    out = tmp_path / "films.parquet"
    Path(f"{out}.parts").mkdir()
    Path(f"{out}.parts", "00000000.parquet").write_text("half")
    with pytest.raises(ValueError, match=re.escape("00000000.parquet cannot be read")):
        embed_files(toy_batch.Batched(), list_ranges([films]), out)


def test_more_rows_than_a_group_and_odd_names(tmp_path, films, monkeypatch):
    monkeypatch.setattr("omega_lab.embedding.vector_file.GROUP", 7)
    folder, out = tmp_path / "films", tmp_path / "films.parquet"
    folder.mkdir()
    for name in (b"\xff.mp4", "ä b.mp4".encode(), b"a@1-2.mp4"):
        (folder / os.fsdecode(name)).write_bytes((films / "00.mp4").read_bytes())
    listed = list_ranges([folder, f"{folder}/a@1-2.mp4@0-1", *sorted(films.glob("*.mp4"))], root=tmp_path.parent.parent)
    tally = embed_files(toy_batch.Alone(), listed, out)
    assert (tally.embedded, tally.copied, tally.failed) == (CLIPS + 1, 3, 0)
    names = pq.read_table(out)["path"].to_pylist()
    assert names == sorted(names) and {name.rsplit("/", 1)[1] for name in names} >= {"\\xff.mp4", "ä b.mp4", "a@1-2.mp4"}
    assert pq.ParquetFile(out).num_row_groups == 4
