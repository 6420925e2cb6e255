"""Many machines: the vector server answers as a folder does; shards come out the same on every engine."""

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omega_lab.corpus.engines import EnrichShard, ScoreShard, run, stacked_vectors
from omega_lab.corpus.enrich import Enriched, clip_fetch, get_enricher
from omega_lab.corpus.enrich import run as enrich
from omega_lab.corpus.shards import EMBEDDINGS, read_shard, shard_schema, write_shard
from omega_lab.media import file_sha256, write_film
from omega_lab.novelty import NoveltyIndex, unit
from omega_lab.novelty_milvus import EXACT, MilvusIndex, milvus_client, open_index
from omega_lab.settings import ScoringSettings
from omega_lab.sources.folder import FolderSource

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


# --- engines

daft = pytest.mark.skipif(not importlib.util.find_spec("daft"), reason="pip install 'omega_lab[scale]' in an environment of its own")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Three shards of two films each, one of them with a film that is not there."
    folder = tmp_path_factory.mktemp("corpus")
    films = folder / "films"
    films.mkdir()
    shards, rng = [], np.random.default_rng(0)
    for n in range(3):
        rows = []
        for i in range(2):
            film = write_film(films / f"{n}{i}.mp4", [np.full((48, 64, 3), (80 * (t // (6 + n)) + 20 * i) % 256, np.uint8) for t in range(24)], 12)
            source = f"sha256:{file_sha256(film)}" if (n, i) != (1, 1) else f"sha256:{'0' * 64}"
            vectors = unit(rng.normal(size=(3, 16)).astype(np.float32))
            rows.append({"video_id": f"{n}-{i}", "youtube_id": source, "source_id": source, "description": f"a grey film, number {i}", "start_time": 0,
                         "end_time": 2, **dict(zip(EMBEDDINGS, vectors))})
        shards.append(folder / f"default/train/00{n}/S{n}.parquet")
        write_shard(pa.Table.from_pylist(rows, shard_schema(16)), shards[-1])
    return shards, EnrichShard("cuts", clip_fetch(FolderSource(films).fetch))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(Path(folder).rglob("*.parquet"))}


def test_functions_of_a_shard_give_what_one_machine_gives(corpus, tmp_path):
    shards, cuts = corpus
    assert run(cuts, shards, tmp_path, progress=False) == [tmp_path / f"cuts/train/00{n}/S{n}.parquet" for n in range(3)]
    enrich(get_enricher("cuts"), shards, cuts.fetch, tmp_path / "other", progress=False)
    assert contents(tmp_path / "cuts") == contents(tmp_path / "other/cuts")
    assert run(cuts, shards, tmp_path / "other", progress=False) == [], "each way goes on where the other one stopped"
    assert enrich(get_enricher("cuts"), shards, cuts.fetch, tmp_path, progress=False) == Enriched(skipped=3)
    errors = pq.read_table(tmp_path / "cuts/train/001/S1.parquet")["error"].to_pylist()
    assert errors[0] is None and errors[1].startswith("gone: sha256:000")


def test_relevance_is_what_the_formula_says(corpus):
    table = ScoreShard()(read_shard(corpus[0][0]))
    vectors = stacked_vectors(read_shard(corpus[0][0])).astype(np.float64)
    cosines = [[float(row[m] @ row[2]) for m in (0, 1)] for row in vectors]
    assert np.allclose(table["video_cosine"], [c[0] for c in cosines], atol=1e-6)
    assert np.allclose(table["description_relevance"], [0.65 * (0.65 * v + 0.35 * a) for v, a in cosines], atol=1e-6), "captions this short count 0.65"
    other = ScoreShard(ScoringSettings(video_share=0.5))
    assert other.revision != ScoreShard().revision
    assert not np.allclose(other(read_shard(corpus[0][0]))["description_relevance"], table["description_relevance"])


def test_a_shard_that_fails_is_named_and_the_finished_ones_stay(corpus, tmp_path):
    shards = [tmp_path / path.relative_to(path.parents[3]) for path in corpus[0]]
    for one, other in zip(corpus[0], shards):
        other.parent.mkdir(parents=True)
        other.write_bytes(one.read_bytes() if other != shards[1] else b"no parquet")
    with pytest.raises(RuntimeError, match="S1.parquet: ShardError"):
        run(ScoreShard(), shards, tmp_path, progress=False)
    assert len(contents(tmp_path / "relevance")) == 1
    shards[1].write_bytes(corpus[0][1].read_bytes())
    assert [path.name for path in run(ScoreShard(), shards, tmp_path, progress=False)] == ["S1.parquet", "S2.parquet"]
    assert run(ScoreShard(), shards, tmp_path, progress=False) == []
    assert len(run(ScoreShard(ScoringSettings(video_share=0.5)), shards, tmp_path, progress=False)) == 3, "another revision"


def test_shards_are_read_from_any_address(corpus, tmp_path):
    "Here from a folder by its file:// address."
    addresses = [f"file://{path}" for path in corpus[0]]
    run(ScoreShard(), addresses, tmp_path / "a", progress=False)
    run(ScoreShard(), corpus[0], tmp_path / "b", progress=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("runner, package", [("native", "daft"), ("ray", "ray")])
def test_a_missing_engine_is_named_with_its_remedy(corpus, tmp_path, monkeypatch, runner, package):
    if package == "ray" and not importlib.util.find_spec("daft"):
        monkeypatch.setitem(sys.modules, "daft", type(sys)("daft"))  # so that the next one is missed
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}: pip install 'omega_lab\[scale\]'"):
        run(ScoreShard(), corpus[0], tmp_path, engine="daft", runner=runner, progress=False)
    with pytest.raises(ValueError, match="no engine 'spark'"):
        run(ScoreShard(), corpus[0], tmp_path, engine="spark")


@daft
def test_daft_gives_the_same_bytes_and_names_what_fails(corpus, tmp_path):
    shards, cuts = corpus
    for function in (cuts, ScoreShard()):
        run(function, shards, tmp_path / "local", progress=False)
        assert len(run(function, shards, tmp_path / "daft", engine="daft", progress=False)) == 3
        assert run(function, shards, tmp_path / "daft", engine="daft", progress=False) == []
    assert contents(tmp_path / "local") == contents(tmp_path / "daft") and len(contents(tmp_path / "local")) == 6
    bad = tmp_path / "default/train/000/bad.parquet"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no parquet")
    with pytest.raises(RuntimeError, match="bad.parquet: ShardError"):
        run(ScoreShard(), [bad], tmp_path, engine="daft", progress=False)


HEAD = """
import sys, ray
ray.init(_node_ip_address="127.0.0.1", num_cpus=1, include_dashboard=False, log_to_driver=False)
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""
ON_RAY = """
import sys
from omega_lab.corpus.engines import EnrichShard, ScoreShard, run
from omega_lab.corpus.enrich import clip_fetch
from omega_lab.sources.folder import FolderSource
films, out, address, *shards = sys.argv[1:]
for function in (EnrichShard("cuts", clip_fetch(FolderSource(films).fetch)), ScoreShard()):
    assert len(run(function, shards, out, engine="daft", runner="ray", address=address, progress=False)) == 3
"""


@pytest.fixture
def cluster():
    "The address and the environment of a Ray cluster of one node that listens on the loopback interface alone."
    env = {**HERE, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which is how Ray is told to stay on 127.0.0.1
           "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen([sys.executable, "-c", HEAD], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as head:
        address = next((line.split()[1] for line in head.stdout if line.startswith("address ")), None)
        assert address and address.startswith("127.0.0.1:")
        yield address, env
        head.stdin.close()


@pytest.mark.full
@daft
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="pip install 'omega_lab[scale]' in an environment of its own")
def test_a_ray_cluster_gives_the_same_bytes(corpus, cluster, tmp_path):
    (shards, cuts), (address, env) = corpus, cluster
    films = shards[0].parents[3] / "films"
    subprocess.run([sys.executable, "-c", ON_RAY, str(films), str(tmp_path / "ray"), address, *map(str, shards)], env=env, check=True, timeout=300)
    for function in (cuts, ScoreShard()):
        run(function, shards, tmp_path / "local", progress=False)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
