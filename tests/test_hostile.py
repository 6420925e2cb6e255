"""The miner's real server process on a real (local) chain, and everything a stranger may send it."""
import hashlib
import json
import socket
from pathlib import Path

import httpx
import polars as pl
import pytest

from omega_lab.chain import Chain, dev_wallet, open_wallet, sign_request
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.synapse import request_headers
from omega_lab.embedding import CachedEncoder, get_encoder
from omega_lab.miner import make_source, open_shelf, prepare, read_log, start_server, stop_server
from omega_lab.protocol import VideoRequest, parse_response
from omega_lab.samples import golden_path
from omega_lab.settings import ScheduleSettings, Settings, load_settings

TAO = 10**9
GOOD = json.dumps({"query": "a big cat", "num_videos": 2}).encode()


@pytest.fixture(scope="module")
def miner(tmp_path_factory):
    """(card, hotkey of the miner, wallets by name, state folder) of a miner with a small shelf."""
    folder = tmp_path_factory.mktemp("miner")
    with LocalNet(golden_path("data"), block_seconds=0.2) as net:
        wallets = {name: open_wallet(name, "default", folder / "wallets", create=True) for name in ("miner", "validator", "poor", "stranger")}
        with Chain(net.endpoint, 24) as chain:
            for name in ("miner", "validator", "poor"):
                chain.transfer(dev_wallet("//Alice"), wallets[name].coldkeypub.ss58_address, 30_000 * TAO)
                chain.register(wallets[name])
            chain.add_stake(wallets["validator"], 20_000 * TAO)
        settings = load_settings({"network.endpoint": net.endpoint, "wallet.name": "miner", "wallet.path": str(folder / "wallets"),
                                  "source.subjects": "lion"}, environ={})
        encoder = CachedEncoder(get_encoder("bridge"), Path("data/cache/miner"))
        prepare(make_source(settings), encoder, open_shelf(folder / "state", encoder), ["lion"])
        card = start_server(settings, folder / "state")
        yield card, wallets["miner"].hotkey.ss58_address, wallets, folder / "state"
        assert stop_server(folder / "state") and not card.alive()


def post(miner, body=GOOD, who="validator", path="/v1/videos", headers=None, sent=None, receiver=None):
    card, hotkey, wallets, _ = miner
    signed = sign_request(wallets[who].hotkey, "POST", card.url + path, body, receiver or hotkey)
    return httpx.post(card.url + path, content=body if sent is None else sent, headers=signed if headers is None else headers, timeout=60)


def test_a_good_request_is_answered(miner):
    answer = post(miner)
    assert answer.status_code == 200, answer.text
    encoder = answer.json()["encoder"]
    dim = len(answer.json()["video_metadata"][0]["video_emb"])
    response = parse_response(answer.content, VideoRequest(query="a big cat", num_videos=2), encoder, dim)
    assert 1 <= len(response.video_metadata) <= 2
    sent = [(c.video_id, c.start_time) for c in response.video_metadata]
    again = [(c["video_id"], c["start_time"]) for c in post(miner).json()["video_metadata"]]
    assert not set(sent) & set(again), "a clip was sent twice to one validator"
    assert read_log(miner[3] / "answers.jsonl")[0]["query"] == "a big cat"


@pytest.mark.parametrize(("name", "body", "status"), [
    ("oversized", b" " * 70_000, 413), ("no JSON", b"\x00\xff", 422), ("other fields", b'{"q": 1}', 422),
    ("a bool for a number", b'{"query": "a", "num_videos": true}', 422), ("too many", b'{"query": "a", "num_videos": 10000}', 422),
    ("empty topic", b'{"query": "", "num_videos": 1}', 422), ("long topic", json.dumps({"query": "a" * 501, "num_videos": 1}).encode(), 422),
    ("NaN", b'{"query": "a", "num_videos": NaN}', 422), ("nested", b"[" * 20_000, 422)])
def test_malformed(miner, name, body, status):
    answer = post(miner, body)
    assert answer.status_code == status and answer.json()["detail"], name


def test_unsigned(miner):
    assert post(miner, headers={}).status_code == 401


def test_other_body_than_signed(miner):
    assert post(miner, sent=GOOD.replace(b"2", b"3")).status_code == 401


def test_replayed(miner):
    card, hotkey, wallets, _ = miner
    headers = sign_request(wallets["validator"].hotkey, "POST", card.url + "/v1/videos", GOOD, hotkey)
    assert post(miner, headers=headers).status_code == 200
    replay = post(miner, headers=headers)
    assert replay.status_code == 409 and "replayed" in replay.json()["detail"]


def test_signed_for_another(miner):
    assert post(miner, receiver=miner[2]["poor"].hotkey.ss58_address).status_code == 403


@pytest.mark.parametrize(("who", "reason"), [("stranger", "not registered"), ("poor", "permit")])
def test_not_entitled(miner, who, reason):
    answer = post(miner, who=who)
    assert answer.status_code == 403 and reason in answer.json()["detail"]


def test_unknown_paths_and_methods(miner):
    assert post(miner, path="/v1/nothing").status_code == 404
    assert httpx.get(miner[0].url + "/v1/videos").status_code == 405


def test_garbage_and_half_requests_leave_it_alive(miner):
    for data in (b"\x16\x03\x01" + bytes(200), b"POST /v1/videos HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\nhalf",
                 b"POST /v1/videos HTTP/1.1\r\n" + b"x: y\r\n" * 20_000):
        with socket.create_connection((miner[0].host, miner[0].port), timeout=5) as connection:
            connection.sendall(data)
    assert httpx.get(miner[0].url + "/healthz").status_code == 200
    assert miner[0].alive()


def test_the_older_wire_on_the_same_port(miner):
    card, hotkey, wallets, _ = miner
    headers = request_headers(wallets["validator"].hotkey, hotkey, card.host, card.port, 12.0)
    statuses = [httpx.post(card.url + "/Videos", content=GOOD, headers=headers, timeout=60).status_code for _ in range(2)]
    assert statuses == [200, 401], "a question is answered once"
    assert httpx.post(card.url + "/Videos", content=GOOD).status_code == 422
    assert httpx.post(card.url + "/Audios", content=GOOD).json()["message"]


def test_media_by_its_hash(miner):
    sha = pl.read_parquet(next(miner[3].glob("shelf-*.parquet")))["video_id"][0].removeprefix("sha256:")

    def get(name):
        url = f"{miner[0].url}/v1/media/{name}"
        return httpx.get(url, headers=sign_request(miner[2]["validator"].hotkey, "GET", url, b"", miner[1]))

    assert httpx.get(f"{miner[0].url}/v1/media/{sha}").status_code == 401
    assert hashlib.sha256(get(sha).content).hexdigest() == sha
    for wrong in ("0" * 64, "..%2f..%2fsettings.json", "%00"):
        assert get(wrong).status_code in (401, 404)


def test_starting_twice_is_one_server(miner):
    settings = Settings.model_validate_json((miner[3] / "settings.json").read_text())
    assert start_server(settings, miner[3]) == miner[0]
    assert start_server(settings.model_copy(update={"schedule": ScheduleSettings(keep_runs=7)}), miner[3]) == miner[0], "the server does not look at it"


def test_changed_settings_start_the_server_anew(miner):
    "The last test: it ends the server of the others."
    settings = Settings.model_validate_json((miner[3] / "settings.json").read_text())
    changed = settings.model_copy(update={"miner": settings.miner.model_copy(update={"per_minute": 1})})
    card = start_server(changed, miner[3])
    assert card != miner[0] and not miner[0].alive() and start_server(changed, miner[3]) == card
    assert (miner[3] / "settings.json").stat().st_mode & 0o777 == 0o600
    assert "uvicorn" in (miner[3] / "miner.log").read_text() and not (miner[3] / "server.log").read_text()
