"""What a stranger, a node that lags, or a full disk may do to a validator, and may not."""
import errno
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from toy import DIM, TOPICS, Nature, ToyAnswerer, blank_media, write_note

from omega_lab.api.client import ServiceDown
from omega_lab.chain import Metagraph, Neuron
from omega_lab.media import file_sha256
from omega_lab.novelty import NoveltyIndex
from omega_lab.protocol import VideoRequest, WireError, parse_response
from omega_lab.sources import SourceError, fetch_clip
from omega_lab.validator.ask import is_global, serving_miners
from omega_lab.validator.shared import shared_novelty


@pytest.mark.parametrize("number", ["1e300", "-1e39", "1001"])
def test_numbers_that_would_overflow_are_malformed(tmp_path, number):
    request = VideoRequest(query=TOPICS[0], num_videos=1)
    body = ToyAnswerer(Nature("ann", 0.5), tmp_path).answer(request, "caller").model_dump_json()
    first = body.split('"video_emb":[')[1].split(",")[0]
    assert parse_response(body.encode(), request, "toy@1", DIM)
    with pytest.raises(WireError, match="video_emb"):
        parse_response(body.replace(f'"video_emb":[{first}', f'"video_emb":[{number}').encode(), request, "toy@1", DIM)


def test_one_miners_bytes_never_stand_under_anothers_hash(tmp_path):
    "Two miners are asked for one file at the same time; the slow one sends other bytes."
    good = write_note(blank_media(tmp_path / "blank.mp4"), {"topic": 0})
    bad, meet = write_note(good, {"topic": 1}), threading.Barrier(2)
    (tmp_path / "good.mp4").write_bytes(good)
    sha = file_sha256(tmp_path / "good.mp4")

    def serve(data):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                meet.wait(5)
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    servers = [serve(good), serve(bad)]
    outcomes = {}

    def fetch(name, server):
        try:
            outcomes[name] = fetch_clip(f"sha256:{sha}", 0, 10, cache_dir=tmp_path / "cache", base_url=f"http://127.0.0.1:{server.server_port}")
        except SourceError as error:
            outcomes[name] = error
    try:
        for turn in range(8):
            threads = [threading.Thread(target=fetch, args=(name, server)) for name, server in zip(("good", "bad"), servers)]
            [t.start() for t in threads]
            [t.join(10) for t in threads]
            assert file_sha256(outcomes["good"]) == sha, turn
            assert isinstance(outcomes["bad"], SourceError) and outcomes["bad"].kind == "gone"
            outcomes["good"].unlink()
        assert not list((tmp_path / "cache").iterdir())
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("url, may", [("http://127.0.0.1:80", False), ("http://10.0.0.8:80", False), ("http://169.254.169.254:80", False),
                                      ("http://[::1]:80", False), ("http://8.8.8.8:8091", True), ("http://[2606:4700::1111]:80", True)])
def test_no_published_address_leads_into_our_own_network(url, may):
    neuron = Neuron(uid=1, hotkey="5M", coldkey="5C", stake_rao=0, validator_permit=False, url=url, last_update=0, incentive=0.0)
    assert is_global(url) is may
    assert bool(serving_miners(Metagraph(24, 1, (neuron,)), "5V", 0, local=False)) is may
    assert serving_miners(Metagraph(24, 1, (neuron,)), "5V", 0, local=True)


def test_an_index_on_a_full_disk_stays_whole(tmp_path, monkeypatch):
    index = NoveltyIndex(tmp_path, 3)
    index.add(["a"], np.eye(3, dtype=np.float32)[:1])
    real = os.fsync

    def full_after(writes):
        def fsync(fd):
            nonlocal writes
            writes -= 1
            if writes < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(fd)
        return fsync
    for writes in (0, 1):  # the vectors do not fit; the vectors do, their ids do not
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(os, "fsync", full_after(writes))
            index.add(["b"], np.eye(3, dtype=np.float32)[1:2])
    index.add(["c"], np.eye(3, dtype=np.float32)[2:])
    again = NoveltyIndex(tmp_path, 3)
    assert len(again) == len(index) == 2 and again.query(np.eye(3, dtype=np.float32)[2]).nearest == ("c",)


def test_a_service_that_is_down_is_waited_for_once_a_round():
    asked = []

    def novelty(*_, **__):
        asked.append(1)
        raise ServiceDown("nobody there")
    ask = shared_novelty(SimpleNamespace(url="http://x", novelty=novelty), "toy@1")
    for _ in range(5):
        with pytest.raises(ServiceDown):
            ask(np.zeros((1, DIM), np.float32), [], "5M")
    assert len(asked) == 1
