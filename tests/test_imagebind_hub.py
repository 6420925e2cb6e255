"""Weights from a hub: a loopback server that lends a file by ranges, breaks off, or lies about it; the real client in a process of its own."""
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from omega_lab.embedding.trunks import Shape, Tower, weights_by_rule

SMALL = Shape(32, Tower(64, 3, 2), Tower(48, 2, 2), Tower(40, 2, 2))
COMMIT = "1" * 40
PROGRAM = """
import sys
from omega_lab.embedding.checkpoint import CheckpointError, open_checkpoint
from omega_lab.embedding.trunks import Shape, Tower
try: print(open_checkpoint(sys.argv[1], Shape(32, Tower(64, 3, 2), Tower(48, 2, 2), Tower(40, 2, 2))).sha256())
except CheckpointError as error: print(f"refused: {error}")
"""


class Lender(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body

    def do_HEAD(self):
        hub = self.server
        if "/resolve/" not in self.path or not self.path.endswith(hub.name):
            return self.answer(404, X_Error_Code="EntryNotFound")
        self.send_response(200)
        for name, value in {"ETag": f'"{hub.stated}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(hub.content)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        hub = self.server
        if "/api/models/" in self.path:
            body = json.dumps([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in hub.listed]).encode()
            return self.wfile.write(self.answer(200, body, Content_Type="application/json"))
        begin = int(re.findall(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[0])
        hub.asked.append(begin)
        body = hub.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(hub.content) - 1}/{len(hub.content)}")
        for name, value in {"ETag": f'"{hub.stated}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if hub.breaks:
            hub.breaks -= 1
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    unread = {"modality_trunks.depth.large": torch.zeros(8_000_000)}  # so that half a file is more than the client holds back
    torch.save(weights_by_rule(SMALL) | unread, path)
    return path.read_bytes()


@pytest.fixture
def hub(content):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    server.name, server.content, server.stated, server.breaks, server.asked = "w.pth", content, hashlib.sha256(content).hexdigest(), 0, []
    server.listed = ["README.md", "w.pth"]
    server.handle_error = lambda *_: None  # connections that break are what is tested
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def opened(hub, home, name):
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}", "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"),
                   "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for proxy in ("HTTP_PROXY", "http_proxy", "HF_HUB_OFFLINE"):
        environment.pop(proxy, None)
    done = subprocess.run([sys.executable, "-c", PROGRAM, name], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_only_file_of_weights_comes_once(hub, tmp_path):
    assert opened(hub, tmp_path, "someone/model") == hub.stated
    assert opened(hub, tmp_path, "someone/model:w.pth") == hub.stated
    assert hub.asked == [0]  # the second time it was there


def test_a_broken_download_goes_on_where_it_was(hub, tmp_path):
    hub.breaks = 1
    assert opened(hub, tmp_path, "someone/model:w.pth") == hub.stated
    assert hub.asked[0] == 0 and hub.asked[1] > 0


def test_other_bytes_than_stated_are_refused_and_removed(hub, tmp_path):
    hub.stated = "f" * 64
    said = opened(hub, tmp_path, "someone/model:w.pth")
    assert said.startswith("refused: ") and "SHA-256 other than the hub's" in said
    assert not list((tmp_path / "hf").rglob("blobs/*"))


def test_several_files_of_weights_want_a_name(hub, tmp_path):
    hub.listed = ["a.pth", "b.safetensors"]
    assert "holds 2 files of weights (a.pth, b.safetensors): name one" in opened(hub, tmp_path, "someone/model")
    assert opened(hub, tmp_path, "someone/model:none.pth").startswith("refused: someone/model cannot be had from the hub")


def test_a_hub_that_is_not_there_is_one_sentence(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    said = opened(hub, tmp_path, "someone/model:w.pth")
    assert said.startswith("refused: someone/model cannot be had from the hub: ") and said.endswith("give its path")
