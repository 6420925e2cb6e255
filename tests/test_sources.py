"Sources against a real web server on the loopback interface, and against recorded answers of yt-dlp."

import hashlib
import json
import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from omega_lab.media import frames, probe, write_film
from omega_lab.sources import (
    FolderSource,
    Limits,
    SourceError,
    UrlSource,
    YoutubeSource,
    fetch_clip,
    parse_clip_id,
)
from omega_lab.sources.folder import HashMemory
from omega_lab.sources.net import Gate, download
from omega_lab.sources.web import hits_from_search
from omega_lab.sources.ytdlp import describe, fetch_media, sort_error, videos

DATA = Path(__file__).parent / "data"
SECONDS = 20


@pytest.fixture(scope="session")
def film(tmp_path_factory) -> bytes:
    "A film whose brightness tells the second, with a tone."
    pictures = (np.full((48, 64, 3), 12 * second, np.uint8) for second in range(SECONDS) for _ in range(10))
    tone = np.sin(np.arange(SECONDS * 16_000) / 16_000 * 2 * np.pi * 440).astype(np.float32) / 4
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", pictures, 10, tone).read_bytes()


class Web(BaseHTTPRequestHandler):
    "A web server with all its troubles; it understands range requests and notes what it was asked."

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        name = self.path.strip("/").split("/")[0]
        if name.isdecimal():
            return self.reply(int(name), b"")
        if name == "hang":
            return self.server.over.wait(60)
        if name == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.over.wait(0.1):
                self.wfile.write(b"X-More: 1\r\n")
            return None
        if name == "page":
            return self.reply(200, b"<html><head><title>No film here</title></head></html>", "text/html")
        if name == "away":
            return self.reply(302, b"", location=self.path.removeprefix("/away/"))
        return self.film(cut=name == "short")

    do_HEAD = do_GET

    def film(self, cut: bool):
        film = self.server.film
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or len(film) - 1)) if asked else (0, len(film) - 1)
        body = film[first : min(last + 1, len(film) // 2) if cut else last + 1]
        self.reply(206 if asked else 200, body, "video/mp4", last - first + 1, f"bytes {first}-{last}/{len(film)}")

    def reply(self, status, body, kind="text/plain", length=None, part=None, location=None):
        self.send_response(status)
        for key, value in {
            "Content-Type": kind,
            "Content-Length": len(body) if length is None else length,
            "Content-Range": part,
            "Location": location,
            "Accept-Ranges": "bytes" if part else None,
        }.items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass


@pytest.fixture
def web(film):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.daemon_threads, server.film, server.asked, server.over = True, film, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


HOME = Limits(seconds=20, max_bytes=10_000_000, allow_private=True)


def fetch_home(clip_id: str, start: float, end: float, folder: Path) -> Path:
    "As a validator fetches, from a server at home."
    return fetch_clip(clip_id, start, end, cache_dir=folder, timeout=20, allow_private=True)


def kind_of(call) -> str:
    with pytest.raises(SourceError) as caught:
        call()
    return caught.value.kind


# --- recorded answers of yt-dlp


@pytest.mark.parametrize(
    "case", json.loads((DATA / "ytdlp_errors.json").read_text()), ids=lambda case: case["message"][:60]
)
def test_errors_are_sorted(case):
    assert sort_error(case["message"]).kind == case["kind"]


def test_an_address_does_not_decide_whose_fault_it_is():
    link = "https://example.org/HTTP Error 403/proxy/captcha"
    assert sort_error(f"ERROR: Unsupported URL: {link}", link).kind == "gone"


def test_search_results_skip_live_and_keep_the_fullest_form():
    listed = videos((DATA / "ytdlp_search.json").read_text().replace("\n", ""))
    described = videos((DATA / "ytdlp_videos.json").read_text())
    hits = hits_from_search(listed, described, 10)
    assert [hit.id for hit in hits] == ["youtube:Aa0_-bCdEf1", "youtube:Cc2_-bCdEf3", "youtube:Ee4_-bCdEf5"]
    assert hits[1].tags == ("surfing", "beginner", "ocean") and hits[1].views == 9057 and hits[1].duration == 412
    assert hits[0].tags == () and hits[0].views == 184203 and hits[2].views == 0
    assert described[1].hit().live and hits_from_search(listed, described, 1) == hits[:1]


def test_an_answer_in_an_unknown_form_is_no_ones_fault():
    assert kind_of(lambda: videos('{"title": "without an id"}')) == "retry"
    assert kind_of(lambda: videos("<html>")) == "retry"


# --- yt-dlp's generic extractor on a real server


def test_only_the_wanted_part_is_fetched_and_the_clock_is_kept(web, tmp_path):
    path = fetch_media(f"{web.url}/film.mp4", 6, 9, tmp_path / "part", HOME)
    assert 8.5 < probe(path).duration < 12 and probe(path).has_audio
    assert [round(picture.mean() / 12) for picture in frames(path, [0.5, 6.5, 8.5])] == [0, 6, 8]
    assert any(part for _, part in web.asked), "by range requests"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["part.mp4"]


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("404", "gone"),
        ("410", "gone"),
        ("page", "gone"),
        ("403", "blocked"),
        ("429", "blocked"),
        ("500", "retry"),
        ("503", "retry"),
        ("short/film.mp4", "retry"),
    ],
)
def test_failing_pages(web, tmp_path, page, kind):
    assert (
        kind_of(
            lambda: fetch_clip(f"url:{web.url}/{page}", 0, SECONDS, cache_dir=tmp_path, timeout=20, allow_private=True)
        )
        == kind
    )
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize("page", ["hang", "drip"])
def test_a_hanging_server_costs_the_time_limit_only(web, tmp_path, page):
    began = time.monotonic()
    assert (
        kind_of(lambda: fetch_clip(f"url:{web.url}/{page}", 0, 5, cache_dir=tmp_path, timeout=3, allow_private=True))
        == "retry"
    )
    assert (
        kind_of(lambda: download(f"{web.url}/{page}", tmp_path / "x", seconds=1, max_bytes=10_000, allow_private=True))
        == "retry"
    )
    assert time.monotonic() - began < 7


def test_several_links_are_described_at_once_and_the_lost_ones_left_out(web, tmp_path):
    found = describe([f"{web.url}/film.mp4?{n}" for n in (1, 2)] + [f"{web.url}/404"], tmp_path, HOME)
    assert [info.title for info in found] == ["film", "film"]


def test_a_server_that_is_not_there_is_to_be_tried_again(web, tmp_path):
    web.over.set()
    web.shutdown()
    web.server_close()
    assert kind_of(lambda: describe([f"{web.url}/page"], tmp_path, HOME)) == "retry"


def test_ranges_outside_the_medium_are_the_miners_fault(web, tmp_path):
    for start, end in [(10, SECONDS + 10), (SECONDS + 5, SECONDS + 15)]:
        assert (
            kind_of(
                lambda s=start, e=end: fetch_clip(
                    f"url:{web.url}/film.mp4", s, e, cache_dir=tmp_path, timeout=20, allow_private=True
                )
            )
            == "gone"
        )
    assert fetch_clip(
        f"url:{web.url}/film.mp4", 10, SECONDS + 1, cache_dir=tmp_path, timeout=20, allow_private=True
    ).exists()


def test_too_many_bytes_are_our_limit(web, tmp_path):
    assert (
        kind_of(
            lambda: fetch_clip(
                f"url:{web.url}/film.mp4", 0, 10, cache_dir=tmp_path, timeout=20, max_bytes=5_000, allow_private=True
            )
        )
        == "blocked"
    )


def test_private_addresses_are_refused(web, tmp_path):
    for link in [f"{web.url}/film.mp4", "http://169.254.169.254/latest/meta-data"]:
        assert kind_of(lambda link=link: fetch_clip(f"url:{link}", 0, 5, cache_dir=tmp_path, timeout=20)) == "gone"
    assert not web.asked


def test_a_redirect_into_a_private_network_is_refused(web, tmp_path, monkeypatch):
    "The first server counts as public here; what it points to does not."
    monkeypatch.setattr("omega_lab.sources.net.is_public", lambda address: address == "127.0.0.1")
    link = f"{web.url}/away/http://127.0.0.2:9/film.mp4"
    assert kind_of(lambda: fetch_clip(f"url:{link}", 0, 5, cache_dir=tmp_path, timeout=20)) == "gone"
    assert len(web.asked) >= 1


def test_a_broken_proxy_is_our_trouble(web, tmp_path):
    for proxy in ["socks5://127.0.0.1:1", "http://127.0.0.1:1"]:
        assert (
            kind_of(
                lambda proxy=proxy: fetch_clip(
                    f"url:{web.url}/film.mp4", 0, 5, cache_dir=tmp_path, timeout=20, proxy=proxy, allow_private=True
                )
            )
            == "blocked"
        )


def test_media_come_through_a_proxy(web, tmp_path):
    with Gate(30, 10_000_000, allow_private=True) as outer:
        path = fetch_clip(
            f"url:{web.url}/film.mp4", 0, 5, cache_dir=tmp_path, timeout=20, proxy=outer.url, allow_private=True
        )
    assert probe(path).duration > 5 and outer.received > path.stat().st_size / 2


def test_a_list_of_links(web, tmp_path):
    source = UrlSource([f"{web.url}/film.mp4", f"{web.url}/404", f"{web.url}/500"], tmp_path, limits=HOME)
    assert [hit.title for hit in source.search("film", 5)] == ["film", "500"]
    assert {link.rsplit("/", 1)[1]: error.kind for link, error in source.failures.items()} == {
        "404": "gone",
        "500": "retry",
    }
    head = source.fetch(f"url:{web.url}/film.mp4", 0, 300)
    assert abs(probe(head).duration - SECONDS) < 0.5
    before = len(web.asked)
    assert source.fetch(f"url:{web.url}/film.mp4", 4, 9) == head and len(web.asked) == before
    assert UrlSource(["https://youtu.be/dQw4w9WgXcQ?t=4"], tmp_path).links.keys() == {"youtube:dQw4w9WgXcQ"}


def test_youtube_when_it_cannot_be_reached(tmp_path):
    source = YoutubeSource(tmp_path, limits=Limits(seconds=15, proxy="http://127.0.0.1:1"))
    assert source.search("  ", 5) == []
    assert kind_of(lambda: source.search("surfing", 3)) == "blocked"
    assert kind_of(lambda: source.fetch("youtube:Aa0_-bCdEf1", 0, 10)) == "blocked"
    assert kind_of(lambda: source.fetch("sha256:" + "0" * 64, 0, 10)) == "gone"


# --- a miner's own files


@pytest.fixture
def folder(tmp_path, film):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "tide_coming-in.mp4").write_bytes(film)
    return tmp_path / "films"


def test_folder_fetches_and_ranks(folder, tmp_path):
    write_film(folder / "cat.mp4", [np.zeros((48, 64, 3), np.uint8)] * 60, 10)
    source = FolderSource(
        folder, cache_dir=tmp_path / "cache", rank=lambda texts, topic: [text == "cat " for text in texts]
    )
    hits = source.search("anything", 2)
    assert [hit.title for hit in hits] == ["cat", "tide coming in"]
    assert source.fetch(hits[1].id, 0, 5) == folder / "tide_coming-in.mp4" == source.path_of(hits[1].id[7:])
    memory = HashMemory(tmp_path / "cache")
    assert len(memory.known) == 2
    assert kind_of(lambda: source.fetch("sha256:" + "0" * 64, 0, 5)) == "gone"
    assert kind_of(lambda: source.fetch("youtube:Aa0_-bCdEf1", 0, 5)) == "gone"


def test_a_broken_hash_memory_is_written_anew(folder, tmp_path):
    (tmp_path / "cache").mkdir()
    for broken in ["", "[]", "{"]:
        (tmp_path / "cache" / "sha256.json").write_text(broken)
        FolderSource(folder, cache_dir=tmp_path / "cache")
        assert len(json.loads((tmp_path / "cache" / "sha256.json").read_text())) == 1


class MediaEndpoint(BaseHTTPRequestHandler):
    def do_GET(self):
        status, body, length = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("status", "alter", "length", "kind"),
    [
        (200, lambda film: film, None, None),
        (200, lambda film: film[:-1] + b"x", None, "gone"),
        (200, lambda film: film + b"x", None, "gone"),
        (404, lambda film: b"", None, "gone"),
        (403, lambda film: b"", None, "blocked"),
        (500, lambda film: b"", None, "retry"),
        (302, lambda film: b"", None, "retry"),
        (200, lambda film: film[:1000], 5_000, "retry"),
    ],
)
def test_a_validator_fetches_from_the_miner(film, tmp_path, status, alter, length, kind):
    server = ThreadingHTTPServer(("127.0.0.1", 0), MediaEndpoint)
    server.answer = status, alter(film), length
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    clip_id = "sha256:" + hashlib.sha256(film).hexdigest()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        if kind:
            assert kind_of(lambda: fetch_clip(clip_id, 0, 5, cache_dir=tmp_path, base_url=url)) == kind
            assert list(tmp_path.iterdir()) == []
        else:
            assert fetch_clip(clip_id, 0, 5, cache_dir=tmp_path, base_url=url).read_bytes() == film
    finally:
        server.shutdown()
        server.server_close()
    if not kind:
        assert fetch_clip(clip_id, 5, 10, cache_dir=tmp_path, base_url=url).read_bytes() == film, "from the cache"


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "youtube:",
        "youtube:abc",
        "url:ftp://a/b",
        "url:javascript:alert(1)",
        "sha256:../../etc/passwd",
        "url:https://a b/",
        "URL:https://a/",
        "url:https://u:p@h/",
        "url:https://a/" + "x" * 3000,
    ],
)
def test_ids_that_are_none(wrong, tmp_path):
    with pytest.raises(ValueError, match="is no clip id"):
        parse_clip_id(wrong)
    assert kind_of(lambda: fetch_clip(wrong, 0, 5, cache_dir=tmp_path)) == "gone"


def test_encrypted_media_come_through_the_gate(web, tmp_path, monkeypatch):
    "The way YouTube's media take: yt-dlp and ffmpeg ask the gate for a tunnel, and trust the same authorities."
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "loopback_only.pem")  # self-signed, for this test alone
    web.socket = context.wrap_socket(web.socket, server_side=True)
    clip_id = "url:" + web.url.replace("http:", "https:") + "/film.mp4"
    assert kind_of(lambda: fetch_home(clip_id, 0, 5, tmp_path)) == "retry", "an authority that nobody knows"
    monkeypatch.setenv("SSL_CERT_FILE", str(DATA / "loopback_only.pem"))
    assert 5 <= probe(fetch_home(clip_id, 0, 5, tmp_path)).duration < 8
