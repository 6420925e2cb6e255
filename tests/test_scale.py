"""Many machines: the vector server answers as a folder does; shards come out the same on every engine."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from omega_lab.novelty import NoveltyIndex
from omega_lab.novelty_milvus import EXACT, MilvusIndex, milvus_client, open_index

ROOT = Path(__file__).parent.parent
DIM = 32
HERE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}

milvus = pytest.mark.skipif(not importlib.util.find_spec("milvus_lite") or not importlib.util.find_spec("pymilvus"),
                            reason="pip install pymilvus milvus-lite")


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


@pytest.fixture
def pair(tmp_path):
    server, local = MilvusIndex(tmp_path / "novelty.db", DIM), NoveltyIndex(None, DIM)
    yield server, local
    server.close()


def agree(pair, asked, **how):
    one, other = (index.query(asked, **how) for index in pair)
    assert one.novelty.tobytes() == other.novelty.tobytes() and one.nearest == other.nearest and one.version == other.version
    return one


@milvus
def test_a_random_life_is_answered_bit_for_bit_as_by_a_folder(pair):
    rng, known, n = np.random.default_rng(1), [], 0
    for step in range(12):
        some = rng.normal(size=(int(rng.integers(1, 60)), DIM)).astype(np.float32)
        if step % 3 == 2:
            some[0] = rows(1)[0]  # the same clip again under another name: the earlier one is nearest
        names = [f"{n + i}" for i in range(len(some))]
        n += len(some)
        known += names
        assert pair[0].add(names, some) == pair[1].add(names, some) == n
        if step % 4 == 3:
            gone = [known.pop(int(rng.integers(len(known)))) for _ in range(5)]
            assert pair[0].remove(gone) == pair[1].remove(gone) == 5
        asked = np.concatenate([rows(2), some[:3] + 0.1, rng.normal(size=(4, DIM)).astype(np.float32)])
        agree(pair, asked)
        agree(pair, asked, exclude=known[::7])
        agree(pair, asked, version=int(rng.integers(0, n + 5)))
    assert len(pair[0]) == len(pair[1]) == len(known) and pair[0].removed == pair[1].removed


@milvus
def test_names_of_any_signs(pair):
    names = ["a 'b' \"c\"", "日本\\x{y}", "] or row >= 0", "same", "same"]
    for index in pair:
        index.add(names, rows(5))
    for name in names:
        assert name in pair[0]
        agree(pair, rows(5), exclude=[name])
    assert pair[0].remove(["same", names[2]]) == pair[1].remove(["same", names[2]]) == 3
    agree(pair, rows(5))


@milvus
def test_bad_input_changes_nothing(pair):
    index = pair[0]
    index.add(["a"], rows(1))
    with pytest.raises(ValueError, match="want finite"):
        index.add(["b"], np.full((1, DIM), np.nan))
    with pytest.raises(ValueError, match=r"2 ids and vectors of shape \(1, 32\)"):
        index.add(["b", "c"], rows(1))
    with pytest.raises(ValueError, match="line break"):
        index.add(["b\nc"], rows(1))
    with pytest.raises(ValueError, match="not in the index: 'b'"):
        index.remove(["a", "b"])
    with pytest.raises(ValueError, match="want finite"):
        index.query(rows(1)[:, :5])
    assert index.version == len(index) == 1 and index.removed == 0


@milvus
def test_compacting_keeps_answers_and_versions(pair):
    for index in pair:
        index.add([f"{i}" for i in range(200)], rows(200))
        index.remove([f"{i}" for i in range(0, 200, 2)])
    before = agree(pair, rows(20))
    pair[0].compact()
    pair[1].compact()
    assert agree(pair, rows(20)).novelty.tobytes() == before.novelty.tobytes() and pair[0].version == 200


@milvus
def test_another_dimension_or_a_foreign_collection_is_refused(tmp_path):
    MilvusIndex(tmp_path / "novelty.db", DIM).close()
    with pytest.raises(ValueError, match="holds 32 numbers a vector, not 8"):
        MilvusIndex(tmp_path / "novelty.db", 8)
    client = milvus_client(str(tmp_path / "novelty.db"), "", 30)
    client.create_collection("other", dimension=DIM)
    with pytest.raises(ValueError, match="holds no novelty index"):
        MilvusIndex(tmp_path / "novelty.db", DIM, "other")
    client.close()


@milvus
def test_a_server_that_is_not_there_is_named_without_its_secret():
    with pytest.raises(OSError, match=r"Milvus at http://127.0.0.1:1: ") as told:
        MilvusIndex("http://me:secret@127.0.0.1:1", DIM, timeout=2)
    assert "secret" not in str(told.value)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r"pip install 'omega_lab\[scale\]'"):
        open_index(tmp_path / "novelty.db", DIM)
    with pytest.raises(ValueError, match="names no Milvus"):
        MilvusIndex(tmp_path / "index", DIM)


ADDER = """
import sys
import numpy as np
from omega_lab.novelty_milvus import MilvusIndex
index, rng = MilvusIndex(sys.argv[1], 32), np.random.default_rng(5)
for n in range(500):
    index.add([f"{n}-{i}" for i in range(4)], rng.normal(size=(4, 32)))
    print(n, flush=True)
"""


@milvus
def test_what_was_acknowledged_survives_a_kill(tmp_path):
    place = tmp_path / "novelty.db"
    adder = subprocess.Popen([sys.executable, "-c", ADDER, str(place)], stdout=subprocess.PIPE, text=True, env=HERE)
    for _ in range(8):
        acknowledged = int(adder.stdout.readline())
    time.sleep(0.05)
    adder.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, adder.stdout.read().split())])
    adder.wait()
    index, rng = MilvusIndex(place, DIM, index=EXACT), np.random.default_rng(5)
    there = np.concatenate([rng.normal(size=(4, DIM)) for _ in range(acknowledged + 1)])
    assert index.version >= 4 * (acknowledged + 1)
    assert index.query(there).novelty.max() < 1e-6
    index.close()
