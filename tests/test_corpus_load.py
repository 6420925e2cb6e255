"""The corpus as its readers meet it: card, loading, SQL, search, the hub's limits, made-up corpora; on rows that were really published."""
import os
import re
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from corpus_publisher import REPO, SHARDS, TOKEN, toy_round
from loopback_hub import Faults, Handler, LoopbackHub

from omega_lab.corpus import (
    EMBEDDINGS,
    HuggingFaceHub,
    LocalHub,
    SearchError,
    ShardError,
    Statistics,
    card_hook,
    connect,
    load,
    publish,
    read_shard,
    refresh_card,
    search,
    shard_files,
    shard_schema,
    shard_statistics,
    synth,
    viewer,
    write_shard,
)
from omega_lab.corpus.card import STATISTICS, _png, card, card_metadata, count, hub_statistics, language, plot_topic_counts
from omega_lab.corpus.synth import Generator, zipf_shares
from omega_lab.corpus.viewer import viewer_findings
from omega_lab.settings import CorpusSettings
from omega_lab.store import Store

OPERATOR = CorpusSettings(licence="cc-by-4.0", rights="Clips belong to whoever made them.", contact="data@example.org")
TOPICS = ["old trams", "street food", "glass blowing", "knots"]


def published(store, hub):
    return publish(store, hub, **SHARDS, flush=True, min_rows=1, extra_files=[card_hook(hub, OPERATOR)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "2 500 made-up rows in five shards, with their card."
    folder = tmp_path_factory.mktemp("made")
    synth(folder, 2500, dim=16, topics=TOPICS, shard_rows=500)
    refresh_card(folder, OPERATOR)
    return folder


def whole(folder):
    "Every row, as one table in the order of the files."
    return pa.concat_tables([read_shard(path) for path in shard_files(folder)])


def subnets(table, path):
    "The rows as the subnet wrote them: thirteen columns, embeddings lists of double."
    from datasets import Dataset

    path.parent.mkdir(parents=True)
    Dataset.from_list(table.select(table.column_names[:13]).to_pylist()).to_parquet(str(path))
    assert pq.read_schema(path).field("video_embed").type == pa.list_(pa.float64())


# The card

def test_the_published_card_counts_what_is_there_through_takedowns(tmp_path):
    hub = LocalHub(tmp_path / "hub")
    with Store(tmp_path / "store") as store:
        for number in range(1, 4):
            store.commit_round(toy_round(number, 3 + number))
            published(store, hub)
            assert hub_statistics(hub) == count(shard_files(hub.folder)) and hub_statistics(hub)["totals"]["rows"] == store.corpus_rows()
        store.take_down(["youtube:r000002c000", "youtube:r000003c001"], "asked")
        published(store, hub)
        assert hub_statistics(hub) == count(shard_files(hub.folder)) and hub_statistics(hub)["totals"]["rows"] == store.corpus_rows() - 2
    assert viewer_findings(hub.folder) == []
    before = hub.read("README.md")
    refresh_card(hub.folder, OPERATOR)
    assert hub.read("README.md") == before


def test_publishing_reads_no_shard_that_was_there(tmp_path):
    "A shard more costs the counts, not the dataset: what lies there may as well be unreadable."
    hub = LocalHub(tmp_path / "hub")
    with Store(tmp_path / "store") as store:
        store.commit_round(toy_round(1, 4))
        published(store, hub)
        shard_files(hub.folder)[0].write_bytes(b"")
        store.commit_round(toy_round(2, 4))
        published(store, hub)
    assert hub_statistics(hub)["totals"]["rows"] == 8


def test_a_dataset_from_before_the_counts_is_counted_once(tmp_path):
    hub = LocalHub(tmp_path / "hub")
    with Store(tmp_path / "store") as store:
        store.commit_round(toy_round(1, 4))
        publish(store, hub, **SHARDS)
        assert STATISTICS not in hub.tree()
        store.commit_round(toy_round(2, 4))
        published(store, hub)
    assert hub_statistics(hub)["totals"]["rows"] == 8 and STATISTICS in hub.tree()


def test_faults_of_a_far_hub_do_not_count_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with LoopbackHub(Faults(script="lost foreign lost".split()), TOKEN) as server, Store(tmp_path / "store") as store:
        hub = HuggingFaceHub(REPO, token=TOKEN, endpoint=server.url)
        for number in (1, 2):
            store.commit_round(toy_round(number, 6))
            published(store, hub)
        repo = server.repos[REPO]
        there = count(repo.blobs[oid] for path, oid in repo.files.items() if path.endswith(".parquet"))
        assert hub_statistics(hub) == there and there["totals"]["rows"] == 12
        assert card_metadata(hub.read("README.md").decode())["dataset_info"]["splits"][0]["num_examples"] == 12


def test_counts_do_not_depend_on_the_order_or_on_the_cuts(made, tmp_path):
    paths = shard_files(made)
    forth, back = count(paths), count(reversed(paths))
    assert forth == back == Statistics.from_json(forth.to_json()) and forth.to_json() == back.to_json() == (made / STATISTICS).read_bytes()
    write_shard(whole(made), tmp_path / "one.parquet")
    one = shard_statistics(tmp_path / "one.parquet")
    assert all(one[s] == forth[s] for s in ("topic", "month", "source", "miner", "novelty", "query_relevance_score", "description_relevance_score"))
    scores = whole(made)["novelty"].to_numpy()
    assert forth["novelty"]["micro"] / 1e6 == pytest.approx(scores.sum(), abs=2e-3) and forth["novelty"]["known"] == 2500
    assert forth["novelty"]["20"] == ((scores >= 0.5) & (scores < 0.525)).sum()
    assert forth - shard_statistics(paths[0]) == count(paths[1:])


def test_the_metadata_are_what_the_files_hold(made):
    said = yaml.safe_load((made / "README.md").read_text().split("---\n")[1])
    rows = whole(made)
    assert said["license"] == "cc-by-4.0" and said["size_categories"] == ["1K<n<10K"] and said["language"] == ["en"]
    assert said["dataset_info"]["splits"][0]["num_examples"] == len(rows)
    assert said["dataset_info"]["download_size"] == sum(path.stat().st_size for path in shard_files(made))
    assert [c["name"] for c in said["dataset_info"]["features"]] == rows.column_names
    assert all((made / "assets" / name).read_bytes().startswith(b"\x89PNG") for name in ("scores.png", "topics.png"))
    text = (made / "README.md").read_text()
    assert "Clips belong to whoever made them." in text and "write to data@example.org" in text and "| knots |" in text
    assert "Nothing is known of the rights" in card(count(shard_files(made)), CorpusSettings()) and "license: unknown" in card(Statistics(), CorpusSettings())


def test_what_comes_from_outside_stays_in_its_cell():
    topics = Statistics({"topic": Counter({"a | b\n## Owned": 3, "<script>": 1})})
    text = card(topics, OPERATOR)
    assert "| a \\| b ## Owned | 3 |" in text and "<script>" not in text and "\n## Owned" not in text


def test_every_topic_has_its_bar_whatever_its_name():
    "Names that are cut to the same text, dollars, and a script that the font lacks."
    topics = Statistics({"topic": Counter({"a" * 60: 3, "a" * 61: 2, "$x_$": 1, "路面電車": 1})})
    figure = plot_topic_counts(topics)
    assert [round(bar.get_width()) for bar in figure.axes[0].patches][::-1] == [3, 2, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _png(figure).startswith(b"\x89PNG")


def test_made_up_rows_are_not_called_accepted(made):
    text = (made / "README.md").read_text()
    assert "Made-up rows, of no real clips" in text and "accepted by validators" not in text


def test_languages_are_told_apart_or_not_determined():
    assert language("Der Hund läuft über die Wiese und bellt laut, während die Kinder lachen.") == "de"
    assert language("Мужчина в красной куртке показывает, как поменять колесо велосипеда.") == "ru"
    assert language("x9 !!") == language("") == "not determined"


def test_configurations_in_the_folder_are_named(made, tmp_path):
    synth(tmp_path, 20, dim=8, topics=TOPICS)
    (tmp_path / "motion/train/001").mkdir(parents=True)
    pq.write_table(pa.table({"video_id": ["a", "b"], "revision": ["1", "1"], "speed": [0.5, 1.5]}), tmp_path / "motion/train/001/x.parquet")
    refresh_card(tmp_path, OPERATOR)
    assert [c["config_name"] for c in card_metadata((tmp_path / "README.md").read_text())["configs"]] == ["default", "motion"]
    assert load(tmp_path, config="motion")["speed"] == [0.5, 1.5]
    assert viewer_findings(tmp_path) == []


# Loading

def test_every_way_of_loading_gives_the_rows(made):
    rows = whole(made)
    for options in ({}, {"streaming": True}):
        assert [row["video_id"] for row in load(made, columns=["video_id"], **options)] == rows["video_id"].to_pylist()
    numpy = load(made, format="numpy")[:5]["video_embed"]
    assert numpy.dtype == np.float32 and np.array_equal(numpy, np.array(rows["video_embed"][:5].to_pylist(), np.float32))
    assert tuple(load(made, format="torch")[:7]["audio_embed"].shape) == (7, 16)
    assert load(made, format="polars")[:].schema["video_embed"] == pl.Array(pl.Float32, 16)


def test_the_library_alone_loads_a_folder_and_sees_new_shards(tmp_path):
    from datasets import load_dataset

    hub = LocalHub(tmp_path / "hub")
    with Store(tmp_path / "store") as store:
        for number in (1, 2):
            store.commit_round(toy_round(number, 8))
            published(store, hub)
            plain = load_dataset(str(hub.folder), split="train", cache_dir=str(tmp_path / "cache"))
            assert plain.num_rows == 8 * number == load(hub.folder).num_rows
    assert plain.features["video_embed"].length == 8 and plain.features["video_embed"].feature.dtype == "float32"


def test_the_subnets_shards_are_read_alone_and_beside_ours(made, tmp_path):
    rows = whole(made).slice(0, 40)
    subnets(rows, tmp_path / "default/train/005/theirs.parquet")
    assert np.array_equal(load(tmp_path, format="numpy")[:]["audio_embed"], np.array(rows["audio_embed"].to_pylist(), np.float32))
    assert load(tmp_path)[0]["source_id"] is None
    asked = rows["video_embed"][3].as_py()
    assert search(tmp_path, vector=asked, n=1)["video_id"][0] == rows["video_id"][3].as_py()
    assert count(shard_files(tmp_path))["totals"]["rows"] == 40 and count(shard_files(tmp_path))["dim"] == {"16": 1}
    with connect(tmp_path) as connection:
        assert connection.sql("select count(*), count(source_id) from clips").fetchone() == (40, 0)
    (tmp_path / "default/train/004").mkdir()
    write_shard(rows.slice(0, 10), tmp_path / "default/train/004/ours.parquet")
    assert load(tmp_path).num_rows == 50
    with connect(tmp_path) as connection:
        assert connection.sql("select rows, topics from shards order by rows").fetchall() == [(10, len(set(rows["query"].to_pylist()[:10]))),
                                                                                             (40, len(set(rows["query"].to_pylist())))]
    with pytest.raises(SearchError, match="several latent spaces"):
        search(tmp_path, vector=asked)


def test_sql_agrees_with_the_rows(made):
    rows = pl.DataFrame(pl.from_arrow(whole(made).drop(list(EMBEDDINGS))))
    with connect(made) as connection:
        found = dict(connection.sql("select query, count(*) from clips where novelty > 0.5 group by query").fetchall())
        shards = connection.sql("select sum(rows), sum(bytes), count(*) from shards").fetchone()
        assert connection.sql("select path from shards limit 1").fetchone()[0] == shard_files(made)[0].relative_to(made).as_posix()
    assert found == dict(rows.filter(pl.col("novelty") > 0.5).group_by("query").len().rows())
    assert shards == (2500, sum(path.stat().st_size for path in shard_files(made)), 5)


def test_a_folder_with_a_quote_in_its_name(tmp_path):
    synth(tmp_path / "o'clock", 10, dim=4, topics=TOPICS)
    with connect(tmp_path / "o'clock") as connection:
        assert connection.sql("select count(*) from clips").fetchone() == (10,)


def test_what_is_not_there_is_said(made, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no default/train"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no column 'colour'"):
        load(made, columns=["colour"])
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load("/nowhere/at/all")


class Folders(Handler):
    "A hub that lists folders as well: `datasets` looks for files by walking them."

    def tree(self, body, name, revision, prefix=None):
        "Files and folders below a folder, all of them or those directly in it, as the question says."
        status, files, headers = super().tree(body, name, revision, prefix)
        if status != 200:
            return status, files, headers
        start = f"{prefix.strip('/')}/" if prefix else ""
        parents = {"/".join(f["path"].split("/")[:n]) for f in files for n in range(1, f["path"].count("/") + 1)}
        found = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(parents) if path.startswith(start)] + files
        deep = "recursive=true" in self.path.lower()
        return 200, [f for f in found if deep or "/" not in f["path"][len(start):]], headers


def test_a_dataset_on_the_hub_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("loopback_hub.Handler", Folders)
    with LoopbackHub(token=TOKEN) as server, Store(tmp_path / "store") as store:
        store.commit_round(toy_round(1, 8))
        published(store, HuggingFaceHub(REPO, token=TOKEN, endpoint=server.url))
        code = (f"from omega_lab.corpus import load\nrows = load({REPO!r})\nprint(rows.num_rows, rows.features['video_embed'].length)\n"
                f"print(sum(1 for _ in load({REPO!r}, streaming=True, columns=['query'])))")
        told = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **told, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["8", "8", "8"], done.stderr


# Search

@pytest.mark.parametrize("modality", ["video", "audio", "description"])
def test_search_is_what_comparing_with_everything_gives(made, modality):
    rows, asked = whole(made), np.random.default_rng(4).normal(size=16)
    vectors = np.array(rows[f"{modality}_embed"].to_pylist(), np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    exact = np.where(lengths > 0, vectors @ (asked / np.linalg.norm(asked)) / np.maximum(lengths, 1e-9), -2)
    found = search(made, vector=asked, modality=modality, n=30)
    assert found["video_id"].to_list() == rows["video_id"].take(np.argsort(-exact)[:30]).to_pylist()
    assert np.allclose(found["cosine"], np.sort(exact)[::-1][:30], atol=1e-6)
    everything = search(made, vector=asked, modality=modality, n=10_000)
    assert len(everything) == (lengths > 0).sum() and (modality == "audio") == (len(everything) < 2500)


def test_search_only_where_it_holds(made):
    asked = np.ones(16)
    found = search(made, vector=asked, n=2500, where="query = 'knots' and novelty > 0.5")
    rows = pl.DataFrame(pl.from_arrow(whole(made).drop(list(EMBEDDINGS))))
    assert set(found["video_id"]) == set(rows.filter((pl.col("query") == "knots") & (pl.col("novelty") > 0.5))["video_id"])
    assert search(made, vector=asked, where="novelty > 9").is_empty()
    for where, message in (("colour = 1", "no column"), ("novelty >", "cannot read where"), ("novelty + 1", "not true or false")):
        with pytest.raises(SearchError, match=message):
            search(made, vector=asked, where=where)


class Axes:
    "An encoder of four texts: each is an axis."
    name, revision, dim = "axes", "1", 16

    def encode_text(self, texts):
        return np.eye(16, dtype=np.float32)[[TOPICS.index(text) for text in texts]]


def test_text_needs_the_encoder_of_the_shards(made, tmp_path):
    rows = whole(made).slice(0, 4)
    for column in EMBEDDINGS:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(16, dtype=np.float32)[:4].ravel()), type=rows.schema.field(column).type)
        rows = rows.set_column(rows.column_names.index(column), rows.schema.field(column), vectors)
    rows = rows.set_column(rows.column_names.index("encoder"), "encoder", pa.array(["axes@1"] * 4))
    write_shard(rows, tmp_path / "default/train/000/axes.parquet")
    found = search(tmp_path, text="glass blowing", modality="description", n=1, encoder=Axes())
    assert found["video_id"][0] == rows["video_id"][2].as_py() and found["cosine"][0] == 1
    with pytest.raises(SearchError, match="there is no encoder 'axes'"):
        search(tmp_path, text="glass blowing")
    other = Axes()
    other.revision = "2"
    with pytest.raises(SearchError, match="the shards are of axes@1 and the encoder is axes@2"):
        search(tmp_path, text="glass blowing", encoder=other)


# The hub's limits

@pytest.mark.parametrize("limit,value,message", [
    ("ROW_BYTES", 300, "has a row of"), ("SCAN_BYTES", 10_000, "has a row group of"), ("FILE_BYTES", 10_000, "the hub recommends"),
    ("FOLDER_ENTRIES", 4, r"holds 5 entries|holds 4 entries"), ("FILES", 5, "there are 9 files")])
def test_each_limit_is_looked_at(made, monkeypatch, limit, value, message):
    assert viewer_findings(made) == []
    monkeypatch.setattr(viewer, limit, value)
    assert any(re.search(message, found) for found in viewer_findings(made)), viewer_findings(made)


def test_a_card_that_lies_is_found(tmp_path):
    synth(tmp_path, 20, dim=8, topics=TOPICS)
    refresh_card(tmp_path, OPERATOR)
    text = (tmp_path / "README.md").read_text()
    for old, new, message in (("num_examples: 20", "num_examples: 21", "says 21 rows"), ("length: 8", "length: 9", "describes the column"),
                              ("dtype: int64", "dtype: int32", "describes the column")):
        assert old in text
        (tmp_path / "README.md").write_text(text.replace(old, new))
        assert any(message in found for found in viewer_findings(tmp_path))


# Made-up corpora

def test_made_up_rows_are_clustered_and_follow_from_the_seed(made):
    rows, shares = whole(made), zipf_shares(len(TOPICS))
    counts = {v["values"].as_py(): v["counts"].as_py() / 2500 for v in rows["query"].value_counts()}
    assert np.allclose([counts[topic] for topic in TOPICS], shares, atol=0.04)
    video, topic = np.array(rows["video_embed"].to_pylist()), np.array(rows["query"].to_pylist())
    same = video[topic == "knots"]
    assert (same @ same.T).mean() > (same @ video[topic == "old trams"].T).mean() + 0.2
    assert np.allclose(np.linalg.norm(video, axis=1), 1, atol=1e-5) and all(column.null_count == 0 for column in rows.columns)
    assert rows.schema == shard_schema(16) and len(set(rows["video_id"].to_pylist())) == 2500
    again = Generator(16, 0, TOPICS, 8).table(2, 1000, 500)
    assert any(read_shard(path).equals(again) for path in shard_files(made))


def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path):
    with pytest.raises(OSError, match="GB are free: make fewer rows"):
        synth(tmp_path / "much", 10**12)
    assert not any((tmp_path / "much").iterdir())


def test_no_shard_is_named(tmp_path):
    (tmp_path / "default/train/000").mkdir(parents=True)
    (tmp_path / "default/train/000/torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ShardError, match="torn.parquet is no shard"):
        refresh_card(tmp_path, OPERATOR)
    assert "cannot be read" in viewer_findings(tmp_path)[0]


PEAK = """
import sys
from pathlib import Path
import numpy as np
from omega_lab.corpus import refresh_card, search, synth
from omega_lab.settings import CorpusSettings
rows, folder = int(sys.argv[1]), Path(sys.argv[2])
synth(folder, rows, dim=512)
refresh_card(folder, CorpusSettings())
search(folder, vector=np.ones(512), n=5)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.full
def test_ten_times_the_rows_take_no_more_memory(tmp_path):
    few, many = (int(subprocess.run([sys.executable, "-c", PEAK, str(rows), str(tmp_path / str(rows))], capture_output=True, text=True, check=True,
                                    timeout=600).stdout) for rows in (8192, 81_920))
    assert many < few + 60_000  # kB; the rows take 500 000
