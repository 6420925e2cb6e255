"""The dataset: what is written is what is read, and a row reaches the hub exactly once whatever is refused, cut off or killed."""
import multiprocessing
import os
import random
import resource
import time
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from corpus_publisher import HASTE, REPO, SHARDS, TOKEN, toy_round, work
from loopback_hub import Faults, LoopbackHub

from omega_lab.corpus import (
    PROVENANCE,
    HubBusy,
    HubError,
    HuggingFaceHub,
    LocalHub,
    ShardError,
    card_hook,
    evidence_hash,
    forget_footage,
    publish,
    read_shard,
    shard_path,
    shard_schema,
    shard_table,
)
from omega_lab.footage import Fingerprint
from omega_lab.footage_index import FootageIndex
from omega_lab.novelty import NoveltyIndex
from omega_lab.settings import CorpusSettings
from omega_lab.store import MIGRATIONS, Store, entry_id, sync_index


def test_the_subnets_fields_come_first():
    names = shard_schema(8).names
    assert names[:13] == ["video_id", "youtube_id", "description", "views", "start_time", "end_time", "video_embed", "audio_embed", "description_embed",
                          "description_relevance_score", "query_relevance_score", "query", "submitted_at"]
    assert names[13:] == list(PROVENANCE)


def test_a_shard_without_provenance_reads_with_nulls(tmp_path):
    lists = pa.array([[0.25] * 8, [0.5] * 8], pa.list_(pa.float64()))
    pq.write_table(pa.table({"video_id": ["a", "b"], "video_embed": lists, "audio_embed": lists, "description_embed": lists}), tmp_path / "theirs.parquet")
    table = read_shard(tmp_path / "theirs.parquet")
    assert table.schema == shard_schema(8) and table["video_embed"].to_pylist() == [[0.25] * 8, [0.5] * 8]
    assert table["source_id"].to_pylist() == [None, None]


def test_what_is_no_shard_is_named(tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ShardError, match="torn.parquet"):
        read_shard(tmp_path / "torn.parquet")


def test_evidence_has_one_hash_in_any_spelling():
    assert evidence_hash('{"b": 1, "a": [2.0, null]}') == evidence_hash({"a": [2.0, None], "b": 1})
    assert evidence_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_a_shard_lies_in_a_bucket_of_its_name():
    assert shard_path("00000000000000000000000015") == "default/train/037/00000000000000000000000015.parquet"


@pytest.fixture
def hasty(monkeypatch):
    "The hub's client waits shorter and uploads without xet."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / HASTE)))


def far_hub(server, **more):
    return HuggingFaceHub(REPO, token=TOKEN, endpoint=server.url, **more)


read_once = cache(read_shard)


def rows_of(repo):
    "All rows of a repository of the loopback hub, as one table sorted by video_id."
    with repo.lock:
        oids = [oid for path, oid in repo.files.items() if path.endswith(".parquet")]
    tables = [read_once(repo.blobs[oid]) for oid in oids]
    return pa.concat_tables(tables).sort_by("video_id") if tables else None


def expected(store):
    "What the hub should hold: what entered and is not taken down."
    entries = store.corpus_entries(0, store.corpus_rows())
    return shard_table(entries.filter(~pl.col("corpus_row").is_in(list(store.rows_taken_down())))).sort_by("video_id")


def publish_all(store, hub, **more):
    return publish(store, hub, **SHARDS | {"flush": True, "min_rows": 1, "sleep": lambda seconds: time.sleep(seconds / HASTE)} | more)


@pytest.mark.parametrize("script", ["", "lost", "busy", "broken", "cut", "foreign", "foreign lost", "cut busy foreign broken lost"])
def test_each_fault_is_survived_with_one_commit(tmp_path, hasty, script):
    with LoopbackHub(Faults(script=script.split()), TOKEN) as server, Store(tmp_path) as store:
        store.commit_round(toy_round(1, 10))
        published = publish_all(store, far_hub(server))
        repo = server.repos[REPO]
        assert len([c for c in repo.commits if c["summary"] != "somebody else's"]) == 1 and not server.faults.script
        assert (published.rows, len(published.shards), published.waiting) == (10, 3, 0)
        assert all(shard.split("/")[-1][:-8] in repo.commits[-1]["description"] for shard in published.shards)
        assert rows_of(repo).equals(expected(store)) and not store.planned_shards(f"huggingface:{REPO}")


def test_a_hub_that_stays_busy_is_left_with_the_plan_kept(tmp_path, hasty):
    with LoopbackHub(Faults(script=["broken"] * 40), TOKEN) as server, Store(tmp_path) as store:
        store.commit_round(toy_round(1, 10))
        with pytest.raises(HubBusy, match="503"):
            publish_all(store, far_hub(server), patience=2)
        planned = store.planned_shards(f"huggingface:{REPO}")
        assert len(planned) == 3 and not server.repos[REPO].commits
        server.faults.script.clear()
        assert set(publish_all(store, far_hub(server)).shards) == {plan.path for plan in planned}


def test_an_earlier_attempt_that_arrives_late_is_found(tmp_path, hasty):
    """The process is killed with its commit under way; the next one has looked already when the old one arrives."""
    class Late(HuggingFaceHub):
        def commit(self, files, message, deletions=(), parent=None):
            if not server.repos[REPO].commits:
                super().commit(files, message, deletions, parent)  # the old one arrives just now
            return super().commit(files, message, deletions, parent)

    with LoopbackHub(token=TOKEN) as server, Store(tmp_path) as store:
        store.commit_round(toy_round(1, 10))
        assert publish_all(store, Late(REPO, token=TOKEN, endpoint=server.url)).rows == 10
        assert len(server.repos[REPO].commits) == 1 and rows_of(server.repos[REPO]).equals(expected(store))


def test_what_is_taken_down_leaves_the_hub_in_one_commit_with_its_replacement(tmp_path, hasty):
    with LoopbackHub(token=TOKEN) as server, Store(tmp_path) as store:
        hub = far_hub(server)
        store.commit_round(toy_round(1, 10))
        before = publish_all(store, hub).shards
        one = rows_of(server.repos[REPO]).filter(pc.field("youtube_id") == "r000001c008")["video_id"][0].as_py()
        assert store.take_down(["youtube:r000001c000", one], "asked") == 2
        store.commit_round(toy_round(2, 4))
        store.take_down(["youtube:r000002c001"], "asked before it was published")
        after = publish_all(store, hub, shards_per_commit=10)
        commits = server.repos[REPO].commits
        assert set(after.removed) < set(before) and len(commits) == 3  # the first; the rewriting; the new rows
        assert rows_of(server.repos[REPO]).num_rows == 11 and rows_of(server.repos[REPO]).equals(expected(store))
        assert not publish_all(store, hub) and len(commits) == 3


def test_a_takedown_while_a_commit_was_in_doubt_is_not_forgotten(tmp_path, hasty):
    with LoopbackHub(Faults(script=["lost"]), TOKEN) as server, Store(tmp_path) as store:
        store.commit_round(toy_round(1, 4))
        with pytest.raises(HubBusy):
            publish_all(store, far_hub(server), patience=0)
        store.take_down(["youtube:r000001c000"], "asked")
        publish_all(store, far_hub(server))  # finds the shard there, with the row
        assert rows_of(server.repos[REPO]).num_rows == 3 and rows_of(server.repos[REPO]).equals(expected(store))


def test_side_files_go_into_the_same_commit_and_may_be_deleted(tmp_path, hasty):
    def audit(shards):
        return {f"audit/{s.plan.shard}.json": str(s.table.num_rows).encode() for s in shards if s.file} | {
            f"audit/{s.plan.replaces}.json": None for s in shards if s.replaced}

    with LoopbackHub(token=TOKEN) as server, Store(tmp_path) as store:
        hub = far_hub(server)
        store.commit_round(toy_round(1, 4))
        publish_all(store, hub, extra_files=(card_hook(hub, CorpusSettings()), audit))
        assert len(server.repos[REPO].commits) == 1 and len(hub.tree("audit")) == 1 and {"README.md", "space.json"} <= hub.tree().keys()
        store.take_down(["youtube:r000001c000"], "asked")
        publish_all(store, hub, extra_files=(card_hook(hub, CorpusSettings()), audit))
        path, = hub.tree("audit")
        assert hub.read(path) == b"3" and len(server.repos[REPO].commits) == 2


def test_a_full_disk_loses_nothing(tmp_path):
    with Store(tmp_path / "state") as store:
        hub, before = LocalHub(tmp_path / "corpus"), resource.getrlimit(resource.RLIMIT_FSIZE)
        store.commit_round(toy_round(1, 200, dim=1024))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))  # a shard of 200 rows is larger
        try:
            with pytest.raises(OSError):
                publish(store, hub, shard_rows=200)
            with pytest.raises(OSError):
                hub.commit({"large.bin": bytes(2 * 10**6)}, "too large")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert hub.tree() == {} and hub.head() == "00000000" and len(store.planned_shards("local")) == 1
        assert not list((tmp_path / "state").glob("outbox/*"))
        assert publish(store, hub, shard_rows=200).rows == 200
        path, = hub.tree("default")
        assert read_shard(hub.read(path)).equals(shard_table(store.corpus_entries(0, 200)))


def test_no_more_commits_an_hour_than_the_hub_takes(tmp_path):
    hub = LocalHub(tmp_path / "corpus")
    hub.commits_per_hour = 2
    with Store(tmp_path / "state") as store:
        done = []
        for number in range(1, 5):
            store.commit_round(toy_round(number, 4))
            done.append(publish(store, hub, **SHARDS))
        assert [len(p.commits) for p in done] == [1, 1, 0, 0] and "2 commits were made within the hour" in done[-1].held_back
        assert publish_all(store, hub).rows == 8, "at the end everything goes"


def test_shards_grow_while_more_waits_than_the_commits_can_take(tmp_path):
    hub = LocalHub(tmp_path / "corpus")
    hub.commits_per_hour = 2
    with Store(tmp_path / "state") as store:
        store.commit_round(toy_round(1, 30))
        published = publish(store, hub, shard_rows=2, shards_per_commit=2)  # room for 8 clips an hour; 30 need it eight times doubled, less a fifth
        assert (published.shard_rows, len(published.shards), published.waiting) == (16, 1, 14)
        assert publish(store, hub, shard_rows=2, shards_per_commit=2).shard_rows == 8, "and shrink when it is less"


def test_what_is_taken_down_leaves_the_indices(tmp_path):
    rng, index, frames = np.random.default_rng(0), NoveltyIndex(tmp_path / "index", 8), FootageIndex(tmp_path / "frames")
    with Store(tmp_path / "state") as store:
        store.commit_round(toy_round(1, 3))
        sync_index(index, store)
        names = [entry_id(1, "5Miner", i, f"youtube:r000001c{i:03d}") for i in range(3)]
        for name in names:
            frames.add(name, Fingerprint(np.arange(4, dtype=np.float32), rng.integers(0, 2**63, (4, 2), dtype=np.uint64), np.ones(4, np.float32)))
        store.take_down(["youtube:r000001c001"], "asked")
        assert forget_footage(frames, store) == 1 and sync_index(index, store) == 0
        assert [n in index for n in names] == [n in frames for n in names] == [True, False, True] and index.version == 3
        fresh = NoveltyIndex(None, 8)
        sync_index(fresh, store)
        assert len(fresh) == 2 and fresh.version == 3, "an index built anew forgets it again"


def test_a_private_dataset_does_not_go_public(tmp_path, hasty):
    with LoopbackHub(token=TOKEN) as server:
        far_hub(server, private=True).head()
        assert server.repos[REPO].private
        server.repos[REPO].private = False
        with pytest.raises(HubError, match="is public"):
            far_hub(server, private=True).head()
        with pytest.raises(HubError, match="HF_TOKEN") as refused:
            HuggingFaceHub(REPO, token="hf_wrong", endpoint=server.url).head()
        assert "hf_wrong" not in str(refused.value)


def test_load_dataset_reads_what_was_published_from_the_hub(tmp_path, hasty, monkeypatch):
    from datasets import load_dataset

    with LoopbackHub() as server, Store(tmp_path / "state") as store:
        store.commit_round(toy_round(1, 10))
        publish_all(store, far_hub(server))
        local = LocalHub(tmp_path / "copy")
        hub = far_hub(server)
        local.commit({path: hub.read(path) for path in hub.tree()}, "a copy")
        rows = load_dataset(str(local.folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert sorted(rows["video_id"]) == expected(store)["video_id"].to_pylist()


def test_a_store_of_an_earlier_version_opens_and_keeps_its_shards(tmp_path, monkeypatch):
    """Written with the tables of before there were hubs: one shard written, one planned."""
    monkeypatch.setattr("omega_lab.store.MIGRATIONS", MIGRATIONS[:5])
    with Store(tmp_path / "state") as store:
        con = store._con
        con.execute("insert into shards values ('01AAAAAAAAAAAAAAAAAAAAAAAA', 'default/train/000/old.parquet', 0, 4, true)")
        con.execute("insert into shards values ('01BBBBBBBBBBBBBBBBBBBBBBBB', 'default/train/000/next.parquet', 4, 4, false)")
    monkeypatch.undo()
    with Store(tmp_path / "state") as store:
        store.commit_round(toy_round(1, 8))
        (old, held), = store.live_shards("local")
        assert (old.path, held) == ("default/train/000/old.parquet", 4)
        published = publish(store, LocalHub(tmp_path / "corpus"), **SHARDS)
        assert published.shards == ["default/train/000/next.parquet"] and published.rows == 4


# ---------------------------------------------------------------------------------------------------------------------------------- killed
FAULTS = {"busy": 0.05, "broken": 0.05, "cut": 0.05, "lost": 0.08, "foreign": 0.06}


def run_until_killed(context, state, url, publishes, seconds):
    "What a publisher said until it was killed: so many seconds after it began so many calls of publish."
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(state, url, theirs), daemon=True)
    child.start()
    theirs.close()
    said, until = Counter(), None
    try:
        while until is None or time.monotonic() < until:
            if ours.poll(0.2 if until is None else max(0.0, until - time.monotonic())):
                said[ours.recv_bytes().decode()] += 1
                until = time.monotonic() + seconds if until is None and said["publish"] == publishes else until
    finally:
        child.kill()
        child.join()
    while ours.poll():
        try:
            said[ours.recv_bytes().decode()] += 1
        except EOFError:
            break
    return said


def campaign(folder, publishes, seed):
    "Publish so often, with faults and kills; then once without, and compare. (what was said, kills, shards, rows, those taken down)"
    context, chance, said, kills = multiprocessing.get_context("forkserver"), random.Random(seed), Counter(), 0
    context.set_forkserver_preload(["corpus_publisher"])
    with LoopbackHub(Faults(**FAULTS, seed=seed), TOKEN) as server:
        while said["publish"] < publishes:
            said += run_until_killed(context, folder, server.url, chance.randint(1, 6), chance.uniform(0, 0.3))
            kills += 1
            if kills % 10 == 0:
                Store(folder).close()  # what was written ahead goes into the file: opening it stays quick
            there = rows_of(server.repos[REPO]) if REPO in server.repos else None
            assert there is None or len(there) == len(set(there["video_id"].to_pylist())), "a row is there twice"
        server.faults = Faults()
        with Store(folder) as store:
            hub = far_hub(server)
            publish_all(store, hub)
            assert rows_of(server.repos[REPO]).equals(expected(store)), "the hub's rows are those that were accepted"
            assert {plan.path for plan, _ in store.live_shards(hub.name)} == set(hub.tree("default"))
            return said, kills, len(hub.tree("default")), store.corpus_rows(), len(store.rows_taken_down())


@pytest.fixture
def prepared(monkeypatch):
    "The fork server finds what it imports beforehand."
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(Path(__file__).parent), os.environ.get("PYTHONPATH")) if p))


def test_published_exactly_once_with_faults_and_kills(tmp_path, hasty, prepared):
    said, kills, shards, rows, _ = campaign(tmp_path, publishes=12, seed=1)
    assert said["publish"] >= 12 and kills >= 2 and shards and rows


@pytest.mark.full
def test_published_exactly_once_five_hundred_times(tmp_path, hasty, prepared):
    said, kills, shards, rows, taken = campaign(tmp_path, publishes=500, seed=2)
    print(f"{dict(said)}, {kills} kills, {dict(FAULTS)} -> {rows} rows accepted, {taken} taken down, {shards} shards")
    assert kills >= 50
