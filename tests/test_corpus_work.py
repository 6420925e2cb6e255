"""The corpus commands that work on shards: real folders and films, one sentence for a mistake."""
import json
import re

import duckdb
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from omega_lab.chain import dev_wallet
from omega_lab.corpus import LocalHub, load, publish, shard_files
from omega_lab.corpus.beside import beside
from omega_lab.corpus.card import card_metadata
from omega_lab.corpus_work import corpus
from omega_lab.lab.rescore import write_rounds
from omega_lab.settings import CorpusSettings
from omega_lab.store import Store


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return make(tmp_path_factory.mktemp("published"))


@pytest.fixture
def dataset(tmp_path):
    return make(tmp_path)


def make(tmp_path):
    "A validator's state and the dataset it published, of made-up rounds."
    state, validator = tmp_path / "state", dev_wallet("//Alice").hotkey
    write_rounds(state, {"honest": 3}, rounds=2, sample=4)
    with duckdb.connect(str(state / "scores.duckdb")) as connection:
        connection.execute("update rounds set validator_hotkey = ?", [validator.ss58_address])
    send(tmp_path)
    return tmp_path


def send(place):
    settings, hub = CorpusSettings(folder=str(place / "corpus")), LocalHub(place / "corpus")
    with Store(place / "state") as store:
        return publish(store, hub, shard_rows=20, flush=True, min_rows=1, extra_files=beside(store, hub, settings, dev_wallet("//Alice").hotkey))


def say(*arguments, code=0):
    done = CliRunner().invoke(corpus, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return re.sub(r"\s+", " ", done.output)


def test_scores_again_equal_what_the_row_says(dataset):
    said = say("score", dataset / "corpus")
    assert said.startswith("relevance: 3 of 3 shards")
    assert say("score", dataset / "corpus").startswith("relevance: 0 of 3 shards"), "what is done is left alone"
    rows = load(dataset / "corpus", format="polars")[:].select("video_id", "description_relevance_score")
    again = load(dataset / "corpus", config="relevance", format="polars")[:]
    both = rows.join(again, on="video_id")
    assert len(both) == len(rows) > 20


def test_an_enrichment_of_media_that_are_gone_says_so_and_is_carried_through_a_takedown(dataset):
    assert "with an error" in say("enrich", "cuts", dataset / "corpus", "--set", "checks.fetch_timeout=0.2")
    before = load(dataset / "corpus", config="cuts", format="polars")[:]
    assert before["error"].null_count() == 0
    one = load(dataset / "corpus", columns=["video_id"])["video_id"][0]
    assert say("take-down", one, "--reason", "asked", "--state", dataset / "state").startswith("1 published or waiting")
    assert len(send(dataset).removed) == 1
    for config in ("default", "cuts"):
        ids = [i for path in shard_files(dataset / "corpus", config) for i in pq.read_table(path, columns=["video_id"])["video_id"].to_pylist()]
        assert one not in ids and len(ids) == len(before) - 1
    named = {config["config_name"] for config in card_metadata((dataset / "corpus" / "README.md").read_text())["configs"]}
    assert {"default", "evidence"} <= named


def test_rows_are_questioned(published):
    one = load(published / "corpus", columns=["video_id"])["video_id"][0]
    assert "holds" in say("verify", published / "corpus", one)
    found = json.loads(CliRunner().invoke(corpus, ["verify", str(published / "corpus"), "no-such-row", "--json"]).output)
    assert found[0]["problems"]


@pytest.mark.parametrize("arguments, words", [
    (["enrich", "nothing", "{}/corpus"], "there is no enricher 'nothing'; available: motion"), (["enrich", "cuts", "{}/none"], "holds no default/train"),
    (["enrich", "objects", "{}/corpus"], "weights"), (["enrich", "cuts", "{}/corpus", "-o", "fast"], "write key=value"),
    (["score", "{}/corpus", "--engine", "abacus"], "there is no engine 'abacus'"), (["embed", "{}/corpus", "--encoder", "eyes"], "there is no encoder 'eyes'"),
    (["enrich", "cuts", "{}/corpus", "-o", "speed=3"], "speed"), (["take-down", "youtube:x", "--reason", "r", "--state", "{}/none"], "holds no store")])
def test_mistakes_are_one_sentence(published, arguments, words):
    said = say(*(argument.replace("{}", str(published)) for argument in arguments), code=2)
    assert said.startswith("error: ") and words in said and "Traceback" not in said
