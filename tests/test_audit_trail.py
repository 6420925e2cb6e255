"""The corpus's audit: real rounds of a small subnet, published with their evidence; then everything in the folder is tampered with."""
import json
import random
import shutil
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_publisher import HASTE, TOKEN
from loopback_hub import Faults, LoopbackHub
from test_validator import GOLDEN, MINERS, TAO, enroll, start_miners
from toy import TOPICS, ToyEncoder
from typer.testing import CliRunner

from omega_lab.chain import dev_wallet, open_wallet
from omega_lab.chain.auth import sign_request
from omega_lab.chain.localnet import localnet_process
from omega_lab.cli import app
from omega_lab.corpus import HuggingFaceHub, LocalHub, card_hook, publish
from omega_lab.corpus.audit import AuditTrail, canonical, coordinates, pack, same_cosines, signature_path, unpack, without_addresses
from omega_lab.corpus.shards import EMBEDDINGS, shard_schema
from omega_lab.corpus.verify import audit_dataset, verify_rows
from omega_lab.settings import CorpusSettings, load_settings
from omega_lab.sources import SourceError
from omega_lab.sources.fetch import fetch_clip
from omega_lab.validator import open_validator, run_rounds, set_weights

SHARDS = {"shard_rows": 12, "flush": True, "min_rows": 1}


class World:
    "A validator that has played rounds, with the chain and the miners still there."

    def __init__(self, place, endpoint):
        self.endpoint, self.place, self.corpus = endpoint, place, place / "corpus"
        self.base = {"network.endpoint": endpoint, "wallet.name": "validator", "wallet.path": str(place / "wallets"), "encoder.name": "toy:ToyEncoder",
                    "paths.data": str(place / "data"), "validator.num_videos": 4, "validator.timeout": 10, "validator.margin": 1,
                    "validator.weights_every": 1, "checks.policy": "always-one"}
        self.validator = open_validator(load_settings(self.base, environ={}), place / "validator")
        self.hub = LocalHub(self.corpus)

    @property
    def store(self):
        return self.validator.store

    def trail(self, hub=None, kind=AuditTrail):
        return kind(self.store, hub or self.hub, self.validator.wallet.hotkey)

    def hotkey(self, name):
        return open_wallet(name, "default", self.place / "wallets").hotkey.ss58_address

    def weights(self):
        self.validator.chain.wait_for_block()  # one row a block
        outcome = set_weights(self.validator, force=True)
        assert outcome.done, outcome

    def rounds(self, topics):
        for n, _ in enumerate(run_rounds(self.validator, topics), start=self.store.next_round()):
            bought = {self.hotkey("good"): (1, 3 * TAO, 4 * TAO, 0.75), self.hotkey("poor"): (1, TAO, 4 * TAO, 0.25)}
            self.store.keep_purchases(self.store.next_round() - 1, datetime(2026, 1, 1, n), bought)
            self.weights()
            publish(self.store, self.hub, shard_rows=12, extra_files=[card_hook(self.hub, CorpusSettings()), self.trail()])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("audit")
    with localnet_process(GOLDEN, place / "chain.json", block_seconds=0.1) as endpoint:
        enroll(endpoint, place / "wallets", [name for name, *_ in MINERS], {"validator": 20_000 * TAO})
        miners = start_miners(place / "miners", endpoint, place / "wallets", MINERS)
        world = World(place, endpoint)
        try:
            world.rounds(TOPICS[:2])
            world.poor = world.hotkey("poor")
            world.store.forget([world.poor])  # as when it has left the subnet
            world.weights()
            world.validator.settings = load_settings(world.base | {"validator.average_alpha": 0.5, "scoring.query_factor": 1.2, "tasks.focus": 0.2}, environ={})
            world.rounds(TOPICS[2:4])
            publish(world.store, world.hub, **SHARDS, extra_files=[card_hook(world.hub, CorpusSettings()), world.trail()])
            yield world
        finally:
            world.validator.close()
            miners.terminate()
            miners.wait(10)


@pytest.fixture
def copy(world, tmp_path):
    shutil.copytree(world.corpus, tmp_path / "copy", ignore=shutil.ignore_patterns(".commits"))
    return tmp_path / "copy"


def files(folder, pattern):
    found = sorted(folder.glob(pattern))
    assert found, pattern
    return found


def events_of(folder):
    "(file, row, payload) of every event, in order."
    signed = sorted((json.loads(p.read_text()) for p in files(folder, "evidence/train/*/*.json")), key=lambda said: said["first"])
    return [(said["path"], row, json.loads(text)) for said in signed
            for row, text in enumerate(pq.read_table(folder / said["path"])["payload"].to_pylist())]


def name_of(folder, path):
    return str(path.relative_to(folder))


# ---- what holds

def test_a_stranger_can_check_everything(world):
    audit = audit_dataset(world.corpus, world.endpoint)
    assert audit.ok, audit.findings
    rows = world.store.corpus_rows()
    assert audit.counts["rows of the dataset compared with their evidence"] == rows > 12
    assert audit.counts["answers judged again: same reward, bit for bit"] == 4 * len(MINERS) == audit.counts["answers signed by their miners"]
    assert audit.counts["averages moved as the rewards say"] == 4 * len(MINERS) and audit.counts["clips refused, with the reason"] > 0
    assert audit.counts["rows of weights are those of the chain"] == audit.counts["rows of weights computed again, bit for bit"] >= 4
    assert audit.counts["purchases add up"] == 8 and audit.counts["averages that began anew (the hotkey had left)"] == 1
    assert audit.notes == ["1 times a miner that had earned something was given no weight: it must have left the subnet by then"]
    assert audit.counts["files of the dataset"] == len(files(world.corpus, "evidence/train/*/*.parquet")) > 2


def test_a_refusal_is_published_with_its_reason(world):
    answers = [fact for _, _, fact in events_of(world.corpus) if fact["kind"] == "response"]
    punished = [a for a in answers if a["outcome"] == "punished"]
    assert punished and all("embedding is not the clip's" in a["reason"] for a in punished)
    assert all(clip["reason"] and clip["evidence"] for a in punished for clip in a["clips"])


def test_nothing_but_keys_tells_who_somebody_is(world):
    text = "".join(canonical(fact) for _, _, fact in events_of(world.corpus))
    captions = world.store.sql("select distinct description from clips")["description"].to_list()
    assert str(world.place) not in text and "127.0.0.1" not in text and "://" not in text.replace("sha256:", "")
    assert not any(caption in text for caption in captions)
    assert without_addresses("retry: http://10.0.0.1:80/x, see /home/jane/a/b.mp4 or [2001:db8::1]:80") == "retry: <address>, see <address> or <address>"


def test_coordinates_give_the_same_cosines():
    rng = np.random.default_rng(1)
    for n in (1, 3, 8):
        query, vectors = rng.normal(size=512).astype(np.float32), rng.normal(size=(n, 3, 512)).astype(np.float32)
        vectors[0, 1] = 0
        vectors[-1, 0] = vectors[0, 0]
        turned = coordinates(query, vectors)
        assert turned.shape == (1 + 3 * n, 1 + 3 * n) and same_cosines(query, vectors, turned)
        assert coordinates(query[:3], vectors[:, :, :3]).shape == (1 + 3 * n, 3), "short vectors stand as they are"
        assert not same_cosines(query, vectors, turned * np.linspace(1, 1.1, turned.shape[1])) and np.array_equal(unpack(pack(turned)), turned)


def test_settings_are_told_where_they_change(world):
    events = [fact for _, _, fact in events_of(world.corpus) if fact["kind"] in ("settings", "round")]
    told = [fact["settings"] if fact["kind"] == "settings" else fact["round"] for fact in events]
    first, one, two, second, three, four = told
    assert (one, two, three, four) == (1, 2, 3, 4)
    assert (first["validator"]["average_alpha"], second["validator"]["average_alpha"], second["tasks"]["focus"]) == (0.3, 0.5, 0.2)


# ---- tampering: bytes

def flip(path, offset, bit=0):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def assert_flips_found(folder, count, seed):
    rng = random.Random(seed)
    paths = [p for pattern in ("default/train/*/*.parquet", "evidence/train/*/*.parquet", "evidence/train/*/*.json", "evidence/heads/*.json")
             for p in files(folder, pattern)]
    for _ in range(count):
        path = rng.choice(paths)
        whole = path.read_bytes()
        offset, bit = rng.randrange(len(whole)), rng.randrange(8)
        flip(path, offset, bit)
        found = audit_dataset(folder).findings
        assert any(f.file == name_of(folder, path) for f in found), f"bit {bit} of byte {offset} of {path}: {found}"
        path.write_bytes(whole)
    assert audit_dataset(folder).ok


def test_any_flipped_bit_is_found_in_its_file(copy):
    assert_flips_found(copy, 60, seed=1)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_flipped_bits_are_found(copy, seed):
    assert_flips_found(copy, 500, seed)


def test_a_flipped_bit_of_a_value_is_found_in_its_column(copy):
    "A bit within a column's pages: the finding names the column, whether it cannot be unpacked or has another value."
    rng = random.Random(3)
    for pattern in ("default/train/*/*.parquet", "evidence/train/*/*.parquet"):
        path = files(copy, pattern)[0]
        whole, meta = path.read_bytes(), pq.read_metadata(path).row_group(0)
        for index in rng.sample(range(meta.num_columns), 4):
            column = meta.column(index)
            start = column.dictionary_page_offset or column.data_page_offset
            flip(path, start + column.total_compressed_size - 1 - rng.randrange(3))
            found = [f for f in audit_dataset(copy).findings if f.file == name_of(copy, path)]
            name = column.path_in_schema.split(".")[0]
            assert found and (found[0].column == name or "bytes are not those" in found[0].problem), (name, found)
            path.write_bytes(whole)


def test_removed_cut_off_and_added_files_are_found(copy):
    for pattern in ("default/train/*/*.parquet", "evidence/train/*/*.parquet", "evidence/train/*/*.json", "evidence/heads/*.json"):
        for path in files(copy, pattern):
            whole = path.read_bytes()
            path.unlink()
            assert any(f.file == name_of(copy, path) for f in audit_dataset(copy).findings), path
            path.write_bytes(whole[:len(whole) * 2 // 3])
            assert any(f.file == name_of(copy, path) for f in audit_dataset(copy).findings), path
            path.write_bytes(b"")
            assert any(f.file == name_of(copy, path) for f in audit_dataset(copy).findings), path
            path.write_bytes(whole)
    first = files(copy, "default/train/*/*.parquet")[0]
    added = first.with_name("01KNQ0Z3T3F0X9M0D5J8Q6W7E2.parquet")
    shutil.copy(first, added)
    finding, = audit_dataset(copy).findings
    assert finding.file == name_of(copy, added) and "no evidence names this file" in finding.problem


def test_the_newest_shard_cannot_be_cut_off_with_its_evidence(copy):
    path, _, last = events_of(copy)[-1]
    for name in (path, signature_path(path), last["path"]):
        (copy / name).unlink()
    finding, = audit_dataset(copy).findings
    assert finding.file == path and "the head tells of" in finding.problem


def test_an_old_copy_is_told_by_a_hash_seen_later(world, copy):
    head = next(iter(audit_dataset(copy).heads.values()))
    assert audit_dataset(copy, known=head).ok
    finding, = audit_dataset(copy, known="ab" * 32).findings
    assert "cut back or written anew" in finding.problem


# ---- tampering: values in good files

def rewritten(path, change):
    "A parquet file with changed columns, itself in order."
    table = pq.read_table(path)
    columns = change(table.to_pydict())
    pq.write_table(pa.table({name: pa.array(columns[name], table.schema.field(name).type) for name in table.column_names}), path)


def with_value(path, column, row, change):
    "One value changed."
    rewritten(path, lambda c: c | {column: [change(v) if i == row else v for i, v in enumerate(c[column])]})


def with_rows(path, order):
    "Its rows in another order, some left out or twice."
    rewritten(path, lambda c: {name: [values[i] for i in order] for name, values in c.items()})


def other(value):
    "Something that is not `value`."
    if isinstance(value, str):
        return value[:-1] + ("x" if value[-1:] != "x" else "y")
    return [np.nextafter(np.float32(value[0]), np.float32(2)).item(), *value[1:]] if isinstance(value, list) else (value or 0) + type(value or 0)(1)


def test_an_altered_value_of_any_column_is_named(copy):
    path = files(copy, "default/train/*/*.parquet")[0]
    whole, rng = path.read_bytes(), random.Random(0)
    for column in shard_schema(1).names:
        row = rng.randrange(pq.read_metadata(path).num_rows)
        with_value(path, column, row, other)
        found = audit_dataset(copy).findings
        assert (name_of(copy, path), row, column) in [(f.file, f.row, f.column) for f in found], (column, found)
        assert len(found) == 1 or (column in EMBEDDINGS and "cosines" in found[1].problem), "nothing else is called wrong"
        path.write_bytes(whole)


def test_rows_of_the_dataset_removed_moved_or_twice_are_found(copy):
    path = files(copy, "default/train/*/*.parquet")[0]
    whole, last = path.read_bytes(), pq.read_metadata(path).num_rows - 1
    for order in ([*range(last)], [1, 0, *range(2, last + 1)], [*range(last + 1), last]):
        with_rows(path, order)
        found = audit_dataset(copy).findings
        assert found[0].file == name_of(copy, path) and found[0].column == "video_id", found
        path.write_bytes(whole)
    rewritten(path, lambda c: c)
    finding, = audit_dataset(copy).findings
    assert "every row and column reads as published" in finding.problem


def test_altered_moved_and_removed_events_are_found(copy):
    path = files(copy, "evidence/train/*/*.parquet")[0]
    whole, rows = path.read_bytes(), pq.read_metadata(path).num_rows
    def expect(row, column):
        found = audit_dataset(copy).findings[0]
        assert (found.file, found.row, found.column) == (name_of(copy, path), row, column), found
        path.write_bytes(whole)
    for row in (0, rows // 2, rows - 1):
        for column in ("payload", "seq", "kind"):
            with_value(path, column, row, (lambda text: text.replace('"', '"x', 1)) if column == "payload" else other)
            expect(row, column)
    with_value(path, "hash", 1, other)
    expect(1, "hash")
    for order, row, column in (([0, 2, 1, *range(3, rows)], 1, "payload"), ([0, 1, *range(3, rows)], 2, "payload"), (range(rows - 1), rows - 2, "seq")):
        with_rows(path, order)
        expect(row, column)


def test_evidence_of_other_places_and_keys_is_refused(world, copy):
    one, two = files(copy, "evidence/train/*/*.json")[:2]
    texts = one.read_text(), two.read_text()
    one.write_text(texts[1])
    assert any(f.file == name_of(copy, one) and "another file" in f.problem for f in audit_dataset(copy).findings)
    said = json.loads(texts[0])
    said["validator"] = dev_wallet("//Bob").hotkey.ss58_address
    one.write_text(canonical(said))
    assert any(f.file == name_of(copy, one) and "did not sign" in f.problem for f in audit_dataset(copy).findings)


# ---- a validator that lies, and signs it

def lied(world, tmp_path, change, endpoint=""):
    "The findings in a dataset whose validator changes its events before it chains and signs them."
    class Liar(AuditTrail):
        def events(self, *args):
            return [change(dict(fact)) for fact in super().events(*args)]
    world.store._con.execute("delete from shards")
    hub = LocalHub(tmp_path / "lie")
    publish(world.store, hub, shard_rows=1000, flush=True, min_rows=1, extra_files=[world.trail(hub, Liar)])
    return audit_dataset(tmp_path / "lie", endpoint).findings


def changed(kind, **changes):
    "Change fields of the last event of a kind; a function is applied."
    return lambda fact: fact | {k: v(fact[k]) if callable(v) else v for k, v in changes.items()} if fact["kind"] == kind else fact


def first_clip(**changes):
    return lambda clips: [clips[0] | {k: v(clips[0][k]) if callable(v) else v for k, v in changes.items()}, *clips[1:]] if clips else clips


@pytest.mark.parametrize(("change", "column"), [
    (changed("response", reward=lambda r: r and r + 1e-12), "reward"),
    (changed("response", average=lambda a: a + 1e-12), "average"),
    (changed("response", outcome="empty"), "outcome"),
    (changed("response", clips=first_clip(novelty=0.5)), "clips[0].novelty"),
    (changed("response", clips=first_clip(evidence=lambda e: e | {"text_cosine": 0.99})), "reward"),
    (changed("response", body_sha256="00" * 32), "receipt"),
    (changed("response", seed=7), "seed"),
    (changed("settings", settings=lambda s: s | {"scoring": s["scoring"] | {"query_factor": 1.2}}), "settings_hash"),
    (changed("round", query="something else"), "receipt"),
    (changed("purchases", scores=lambda s: {k: v | {"share": 0.5} for k, v in s.items()}), "share"),
    (changed("weights", rows=lambda rows: [row | {"weight": row["weight"] * 1.0001} for row in rows]), "weight"),
    (changed("weights", rows=lambda rows: [row | {"sent": again["sent"]} for row, again in zip(rows, reversed(rows))]), "rows"),
    (changed("weights", counted=lambda counted: counted | {"video": counted["video"][:-1]}), "weight"),
    (changed("round", validator=dev_wallet("//Bob").hotkey.ss58_address), "validator"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_signed_lie_does_not_compute(world, tmp_path, change, column):
    found = lied(world, tmp_path, change)
    assert any(f.row is not None and column in f.column for f in found), found


def test_weights_that_the_chain_does_not_show_are_found(world, tmp_path):
    def doubled(fact):
        return fact | {"rows": [row | {"sent": row["sent"] // 2} for row in fact["rows"]]} if fact["kind"] == "weights" else fact
    assert not lied(world, tmp_path / "alone", doubled), "in the order of the averages: nothing but the chain can tell"
    found = lied(world, tmp_path / "asked", doubled, world.endpoint)
    assert found and all("the chain shows" in f.problem and f.row is not None for f in found)


def test_vectors_that_are_not_those_of_the_scores_are_found(world, tmp_path):
    "Coordinates that score better, with a reward that fits them."
    def better(fact):
        if fact["kind"] != "response" or not fact["clips"]:
            return fact
        rows = unpack(fact["coordinates"])
        rows[0] = rows[1]  # the topic is what the first clip shows
        return fact | {"coordinates": pack(rows)}
    assert any("cosines of the" in f.problem for f in lied(world, tmp_path, better))


# ---- going on: restarts, faults, takedowns

def test_the_trail_goes_on_where_the_hub_has_it(world, tmp_path, monkeypatch):
    "Publishers that know nothing of each other, one after another, and a commit whose acknowledgement was lost."
    world.store._con.execute("delete from shards")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / HASTE)))
    with LoopbackHub(Faults(script=["lost", "none", "foreign"]), TOKEN) as server:
        for size in (10, 12, 7, 100):
            hub = HuggingFaceHub("me/clips", token=TOKEN, endpoint=server.url, commits_per_hour=None)
            publish(world.store, hub, shard_rows=size, flush=size == 100, min_rows=1, shards_per_commit=1,
                    extra_files=[card_hook(hub, CorpusSettings()), world.trail(hub)], sleep=lambda seconds: None)
        for name in hub.tree():
            (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "got" / name).write_bytes(hub.read(name))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        answer = CliRunner().invoke(app, ["audit", "me/clips", "--json"])
        assert CliRunner().invoke(app, ["audit", "me/nothing"]).exit_code == 2
    audit = audit_dataset(tmp_path / "got")
    assert audit.ok, audit.findings
    assert audit.counts["rows of the dataset compared with their evidence"] == world.store.corpus_rows()
    seen = [fact["round"] for _, _, fact in events_of(tmp_path / "got") if fact["kind"] == "round"]
    assert seen == list(range(1, world.store.next_round())), "each round once"
    assert answer.exit_code == 0 and json.loads(answer.stdout)["ok"], answer.output


def test_what_is_taken_down_leaves_numbers_and_hashes(world, tmp_path):
    world.store._con.execute("delete from shards")
    hub = LocalHub(tmp_path / "corpus")
    publish(world.store, hub, **SHARDS, extra_files=[world.trail(hub)])
    path = files(hub.folder, "default/train/*/*.parquet")[0]
    row = pq.read_table(path).slice(1, 1).to_pylist()[0]
    try:
        assert world.store.take_down([row["video_id"]], "asked") == 1
        done = publish(world.store, hub, **SHARDS, extra_files=[world.trail(hub)])
    finally:
        world.store._con.execute("delete from takedowns")
    assert done.removed == [name_of(hub.folder, path)]
    audit = audit_dataset(hub.folder)
    assert audit.ok and audit.counts["rows of the dataset compared with their evidence"] == world.store.corpus_rows() - 1
    assert not verify_rows(hub.folder, [row["video_id"]])[0].ok
    assert row["description"] not in "".join(canonical(fact) for _, _, fact in events_of(hub.folder))


def test_who_left_counts_no_more_and_begins_at_zero(world):
    """The store does not keep when a hotkey left; its absence shows in the weights."""
    events = [fact for _, _, fact in events_of(world.corpus)]
    weights = [(fact["round"], *(world.poor in fact["counted"][task] for task in ("video", "focus"))) for fact in events if fact["kind"] == "weights"]
    assert (2, False, False) in weights and {(counts, bought) for number, counts, bought in weights if (number, counts) != (2, False)} == {(True, True)}
    anew = [(fact["round"], fact["hotkey"]) for fact in events if fact["kind"] == "response" and fact["anew"]]
    assert anew == [(3, world.poor)]


# ---- single rows, and the command

@pytest.fixture
def from_miners(world, tmp_path):
    "Fetches from the miners' own servers, as the validator."
    addresses = {n.hotkey: n for n in world.validator.chain.metagraph().neurons if n.url}
    def fetch(clip, start, end):
        for miner in addresses.values():
            try:
                return fetch_clip(clip, start, end, cache_dir=tmp_path / "media", base_url=miner.url,
                                  sign=lambda method, url: sign_request(world.validator.wallet.hotkey, method, url, b"", miner.hotkey))  # noqa: B023
            except SourceError as error:
                trouble = error
        raise trouble
    return fetch


def test_rows_are_verified_down_to_their_media(world, copy, from_miners):
    path = files(copy, "default/train/*/*.parquet")[-1]
    ids = pq.read_table(path)["video_id"].to_pylist()[:3]
    checks = verify_rows(copy, ids, from_miners, ToyEncoder())
    assert all(c.ok and c.media == "looked at" and c.cosines["video"] > 0.99 and c.reward > 0 for c in checks), checks
    newer = ToyEncoder()
    newer.revision = "2"
    assert "by revision 2, the row's is 1" in verify_rows(copy, ids[:1], from_miners, newer)[0].media
    def nowhere(*_):
        raise SourceError("blocked", "not from here")
    unseen, = verify_rows(copy, ids[:1], nowhere, ToyEncoder())
    assert unseen.ok and "not from here" in unseen.media
    rewritten(path, lambda c: c | {"audio_embed": [c["video_embed"][0], *c["audio_embed"][1:]]})
    bad, fine = verify_rows(copy, ids[:2], from_miners, ToyEncoder())
    assert fine.ok and any(p.startswith("audio_embed") and "cosine" in p for p in bad.problems)


def test_the_command_says_it_in_words_and_by_its_exit_code(world, copy):
    run = CliRunner().invoke(app, ["audit", str(copy), "--endpoint", world.endpoint])
    assert run.exit_code == 0 and "everything holds" in run.stdout and "rows of weights are those of the chain" in run.stdout
    flip(files(copy, "default/train/*/*.parquet")[0], 200)
    run = CliRunner().invoke(app, ["audit", str(copy), "--json"])
    said = json.loads(run.stdout)
    assert run.exit_code == 1 and not said["ok"] and said["findings"][0]["file"].startswith("default/train/") and "no endpoint" in said["notes"][-1]
    assert CliRunner().invoke(app, ["audit", str(copy / "nowhere")]).exit_code == 2
    assert "holds no dataset" in CliRunner().invoke(app, ["audit", str(Path(world.place / "wallets"))]).stderr
    down = CliRunner().invoke(app, ["audit", str(copy), "--endpoint", "ws://127.0.0.1:9"])
    assert down.exit_code == 1 and "could not be asked" in down.stdout
