"""Topic lists: what the lab brings, and what happens when the address of another list does not behave."""

import http.server
import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omega_lab.embedding.text import sentence_vectors
from omega_lab.protocol import MAX_QUERY
from omega_lab.topics import (
    LAB,
    MAX_LIST_BYTES,
    TopicError,
    TopicList,
    by_scenario,
    draw_topic,
    lab_file,
    list_digest,
    list_text,
    load_topics,
    nearest_cosine,
    parse_topics,
    read_taxonomy,
)

ROOT = Path(__file__).resolve().parent.parent


def tool():
    spec = importlib.util.spec_from_file_location("topics_tool", ROOT / "tools" / "topics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = tool()
LISTS = {name: by_scenario(lab_file(name)) for name in ("topics.txt", "actions.txt.gz")}
LINES = {name: [phrase for phrases in sections.values() for phrase in phrases] for name, sections in LISTS.items()}
LEAST = {"topics.txt": 1_000, "actions.txt.gz": 15_000}
COSINE = {"topics.txt": TOOL.TOPIC_COSINE, "actions.txt.gz": TOOL.ACTION_COSINE}


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_are_long_and_cover_every_scenario(name: str) -> None:
    titles = [scenario.title for scenario in read_taxonomy(lab_file("taxonomy.toml"))]
    assert len(titles) == len(set(titles)) >= 50
    assert list(LISTS[name]) == titles
    assert len(LINES[name]) >= LEAST[name]
    least = min(len(phrases) for phrases in LISTS[name].values())
    assert least >= (10 if name == "topics.txt" else 100)


def test_no_phrase_comes_twice_and_each_can_be_asked_for() -> None:
    everything = LINES["topics.txt"] + LINES["actions.txt.gz"]
    folded = ["".join(phrase.casefold().split()) for phrase in everything]
    assert len(set(folded)) == len(folded)
    for phrase in everything:
        assert phrase == " ".join(phrase.split()) and phrase.isprintable() and 3 <= len(phrase) <= min(MAX_QUERY, 120), phrase


@pytest.mark.parametrize("name", LISTS)
def test_no_two_phrases_of_a_sample_are_nearly_the_same(name: str) -> None:
    "Stretches of the list, for near-duplicates stand together."
    begins = np.random.default_rng(5).choice(len(LINES[name]) - 40, 4, replace=False)
    phrases = list(dict.fromkeys(phrase for n in begins for phrase in LINES[name][n:n + 40]))
    assert nearest_cosine(sentence_vectors(phrases)).max() <= COSINE[name] + 1e-4  # float sums of another batch


def test_the_lists_are_made_from_this_taxonomy() -> None:
    for name, sections in TOOL.candidates(read_taxonomy(lab_file("taxonomy.toml"))).items():
        head = list_text(lab_file(name)).splitlines()[0]
        assert head == TOOL.note(sections, COSINE[name]), f"{name} is older than taxonomy.toml; run: python tools/topics.py"
        for title, phrases in LISTS[name].items():
            order = {phrase: n for n, phrase in enumerate(sections[title])}
            places = [order[phrase] for phrase in phrases]  # KeyError: a line that the taxonomy does not say
            assert places == sorted(places)


@pytest.mark.full
def test_the_lists_are_remade_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / "taxonomy.toml").write_bytes(lab_file("taxonomy.toml").read_bytes())
    TOOL.make(tmp_path, tmp_path)  # no vectors known here: all are computed
    for name in LISTS:
        assert list_text(tmp_path / name) == list_text(lab_file(name))  # another zlib may pack otherwise


def test_a_taxonomy_with_a_gap_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "taxonomy.toml"
    path.write_text('[bakery]\ntitle = "Bakery"\ntopics = "bread"\n[bakery.oven]\nwhere = "at dawn"\nbaking = "rolls; ; cake"\n', encoding="utf-8")
    with pytest.raises(TopicError, match=r"bakery\.oven.*baking"):
        read_taxonomy(path)


# ------------------------------------------------------------------------------------------------ lists elsewhere


class Service(http.server.BaseHTTPRequestHandler):
    "A service of topics whose behaviour a test decides."

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.pause.wait(self.server.delay):
            return
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        for name, value in self.server.headers:
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(self.server.body)
        except OSError:  # the reader had enough
            return

    def log_message(self, *_: object) -> None:
        return


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Service)
        self.asked, self.delay, self.pause = 0, 0.0, threading.Event()
        self.says(["barn owls", "fjords at dawn"])

    def says(self, body: object, status: int = 200, delay: float = 0.0, headers: tuple = ()) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.delay, self.headers = status, delay, headers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api/mm/topics"


@pytest.fixture
def service() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.pause.set()
        server.shutdown()


FAULTS = {
    "500": {"body": b"down", "status": 500},
    "gone": {"body": b"", "status": 404},
    "huge": {"body": b'["' + b"owl " * (MAX_LIST_BYTES // 4 + 1000) + b'"]'},
    "cut": {"body": b'["barn owls", "fjo'},
    "object": {"body": {"topics": 3}},
    "numbers": {"body": [1, 2, 3]},
    "page": {"body": b"<!doctype html><title>Please log in</title>"},
    "not text": {"body": b"\xff\xfe\x00binary"},
    "too many": {"body": [f"t{n}" for n in range(100_001)]},
    "nested": {"body": b"[" * 100_000},
    "empty": {"body": b""},
    "redirect": {"body": b"", "status": 302, "headers": (("Location", "http://127.0.0.1:1/"),)},
    "slow": {"body": ["kites"], "delay": 30.0},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_address_never_stops_a_round(service: Server, tmp_path: Path, fault: str) -> None:
    now = [0.0]
    listed = TopicList(service.url, tmp_path, reload=3600, seconds=0.7, clock=lambda: now[0])
    good = listed.topics()
    service.says(**FAULTS[fault])
    now[0] = 3600
    began = time.monotonic()
    assert listed.topics() == good and listed.in_force == service.url
    assert time.monotonic() - began < 8
    assert listed.problem
    if fault not in ("500", "page", "cut"):
        return
    restarted = TopicList(service.url, tmp_path, seconds=1.0)  # the service is still down: its last list, from the disk
    assert restarted.topics() == good and restarted.in_force.endswith("(as kept)")
    fresh = TopicList(service.url, tmp_path / "elsewhere", seconds=1.0)  # never seen a list: the lab's own
    assert fresh.in_force == LAB and fresh.topics() == tuple(LINES["topics.txt"]) and fresh.problem


def test_a_reload_picks_up_a_change_when_due_and_comes_sooner_after_a_failure(service: Server) -> None:
    now = [0.0]
    listed = TopicList(service.url, reload=3600, seconds=2.0, clock=lambda: now[0])
    before = listed.digest
    service.says(["kites", "tides"])
    now[0] = 3599
    assert listed.topics() == ("barn owls", "fjords at dawn") and service.asked == 1
    now[0] = 3600
    assert listed.topics() == ("kites", "tides") and service.asked == 2
    assert listed.digest == list_digest(("kites", "tides")) != before
    service.says(b"", status=503)
    now[0] = 7200
    assert listed.topics() == ("kites", "tides") and "503" in listed.problem
    service.says(["comets"])
    now[0] = 7200 + 299
    assert listed.topics() == ("kites", "tides") and service.asked == 3
    now[0] = 7200 + 301
    assert listed.topics() == ("comets",) and not listed.problem


def test_a_kept_list_of_another_address_or_a_damaged_one_is_not_used(service: Server, tmp_path: Path) -> None:
    TopicList(service.url, tmp_path)
    service.says(b"", status=500)
    assert TopicList(service.url + "?other", tmp_path, seconds=1.0).in_force == LAB
    (tmp_path / "topics.json").write_text('{"source": "', encoding="utf-8")
    assert TopicList(service.url, tmp_path, seconds=1.0).in_force == LAB
    assert not (tmp_path / "topics.json").exists()


def test_many_threads_ask_the_address_once(service: Server) -> None:
    listed = TopicList(service.url, reload=3600)
    drawn: list[str] = []
    threads = [threading.Thread(target=lambda n=n: drawn.append(listed.draw(n))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 20 and set(drawn) <= set(listed.topics()) and service.asked == 1


def test_files_and_slips_of_the_pen(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# Mine\nbarn owls\n\nbarn  OWLS\nkites\n", encoding="utf-8")
    assert load_topics(str(path)).topics() == ("barn owls", "kites")
    for wrong in (str(tmp_path / "missing.txt"), str(tmp_path), "http://", "https:// spaced out"):
        with pytest.raises(TopicError):
            load_topics(wrong)
    path.write_text("kites\n" * 800_000, encoding="utf-8")
    with pytest.raises(TopicError, match="more than our limit"):
        load_topics(str(path))


def test_a_draw_is_decided_by_seed_and_list_alone() -> None:
    topics = parse_topics(json.dumps([f"topic {n}" for n in range(50)]), "here")
    assert [draw_topic(topics, seed) for seed in range(40)] == [draw_topic(topics, str(seed)) for seed in range(40)]
    assert len({draw_topic(topics, seed) for seed in range(1000)}) == 50
    with pytest.raises(TopicError):
        draw_topic((), 1)
