"""The shared service as a real process on a local chain: who may do what, what is answered, and what survives a kill."""
import base64
import io
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import psutil
import pytest
import uvicorn
from fastapi.testclient import TestClient

from omega_lab.api import Book, BookError, Conflict, ServiceClient, ServiceDown, ServiceRefused, ServiceUntrue, Space, Unfit
from omega_lab.api.app import Door, Rotation, Service, make_app
from omega_lab.api.book import each_unit
from omega_lab.api.models import JudgedAudio, JudgedClip, NoveltyQuestion, Submission
from omega_lab.api.serve import start_service, stop_service
from omega_lab.chain import Chain, Metagraph, Neuron, dev_wallet, open_wallet, sign_request
from omega_lab.chain.auth import Gate
from omega_lab.chain.localnet import LocalNet
from omega_lab.novelty import exact_cosine, unit
from omega_lab.samples import golden_path
from omega_lab.settings import load_settings
from omega_lab.validator.round import NotAllowed, open_service

TAO, DIM = 10**9, 660
NAMES = ("service", "ada", "ben", "poor", "mia", "noa", "stranger")
ADDRESS = {name: dev_wallet(f"//{name}").hotkey.ss58_address for name in ("ada", "ben", "cyd", "mia", "noa", "oli", "pia", "quy")}
ROUNDS = itertools.count(1)
TOY = Space("toy@1", 8)


def verdict(miner, vectors=(), number=None, space="toy@1", **changes):
    clips = [JudgedClip(video_id=f"youtube:{i:011d}", description="a clip", views=1, start_time=0, end_time=30, accepted=True, novelty=1.0,
                        query_relevance=0.1 * i, video_emb=np.float64(v).tolist(), description_emb=np.float64(v).tolist()) for i, v in enumerate(vectors)]
    return Submission(**{"encoder": space, "round": number or next(ROUNDS), "miner": miner, "query": "cats", "num_videos": 8, "status": "answered",
                         "outcome": "scored", "reward": 0.1, "settings_hash": "0" * 16, "index_version": 0, "clips": clips} | changes)


# ---- the service's process ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(card, settings, state folder, wallets by name, latent space) of a running service."""
    folder = tmp_path_factory.mktemp("service")
    with LocalNet(golden_path("data"), block_seconds=0.2) as net:
        wallets = {name: open_wallet(name, "default", folder / "wallets", create=True) for name in NAMES}
        with Chain(net.endpoint, 24) as chain:
            for name in ("ada", "ben", "poor", "mia", "noa"):
                chain.transfer(dev_wallet("//Alice"), wallets[name].coldkeypub.ss58_address, 30_000 * TAO)
                chain.register(wallets[name])
            for name, stake in (("ada", 20_000), ("ben", 20_000), ("poor", 10)):
                chain.add_stake(wallets[name], stake * TAO)
        (folder / "topics.txt").write_text("cats\ndogs\n")
        settings = load_settings({"network.endpoint": net.endpoint, "wallet.name": "service", "wallet.path": str(folder / "wallets"),
                                  "service.min_stake_tao": 1000, "service.max_body_bytes": 500_000,
                                  "validator.topics": str(folder / "topics.txt")}, environ={})
        card = start_service(settings, folder / "state")
        space = httpx.get(card.url + "/healthz").json()["encoder"]
        yield card, settings, folder / "state", wallets, space
        stop_service(folder / "state")


def hotkey(place, name):
    return place[3][name].hotkey.ss58_address


def client(place, name, **options):
    return ServiceClient(place[0].url, hotkey(place, "service"), place[3][name].hotkey, **{"backoff": 0.01} | options)


def question(place, vector=None, miner="mia"):
    return NoveltyQuestion(encoder=place[4], miner=hotkey(place, miner), embeddings=[(vector if vector is not None else np.ones(DIM)).tolist()])


def post(place, body, who="ada", path="/api/get_pinecone_novelty", sent=None, receiver="service", headers=None, method="POST"):
    url = place[0].url + path
    signed = sign_request(place[3][who].hotkey, method, url, body, hotkey(place, receiver)) if headers is None else headers
    return httpx.request(method, url, content=body if sent is None else sent, headers=signed, timeout=60)


def test_each_refusal_has_its_reason(place):
    body = question(place).model_dump_json().encode()
    signed = sign_request(place[3]["ada"].hotkey, "POST", place[0].url + "/api/get_pinecone_novelty", body, hotkey(place, "service"))
    attempts = [
        (post(place, body, headers={}), 401, "unsigned"), (post(place, body, sent=body.replace(b"1.0", b"2.0", 1)), 401, "bad signature"),
        (post(place, body, receiver="ben"), 403, "another receiver"), (post(place, body, who="stranger"), 403, "not registered"),
        (post(place, body, who="mia"), 403, "permit"), (post(place, body, who="poor"), 403, "stake too low: 10 TAO, 1 000 TAO needed"),
        (post(place, body, headers=signed), 200, None), (post(place, body, headers=signed), 409, "replayed"),
        (post(place, b"", who="stranger", path="/api/check_score", method="GET"), 403, "not registered"),
        (post(place, b"", path="/api/get_proxy"), 404, "no proxies")]
    for answer, status, reason in attempts:
        assert answer.status_code == status, answer.text
        assert reason is None or reason in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/api/get_pinecone_novelty", "/api/upload_video_metadata", "/api/upload_audio_metadata"])
@pytest.mark.parametrize(("name", "body", "status"), [
    ("oversized", b" " * 600_000, 413), ("no JSON", b"\x00\xff", 422), ("nothing", b"", 422), ("a list", b"[]", 422), ("nested", b"[" * 20_000, 422),
    ("other fields", b'{"q": 1}', 422), ("surrogate", b'{"encoder": "\\ud800"}', 422)])
def test_malformed(place, path, name, body, status):
    answer = post(place, body, path=path)
    assert answer.status_code == status and isinstance(answer.json()["detail"], str), name


@pytest.mark.parametrize(("change", "status"), [
    ({"embeddings": [[float("nan")] * DIM]}, 422), ({"embeddings": [[float("inf")] * DIM]}, 422), ({"embeddings": [[True] * DIM]}, 422),
    ({"embeddings": [["1"] * DIM]}, 422), ({"embeddings": [[1e300] * DIM]}, 422), ({"embeddings": [[1.0] * 3]}, 422), ({"embeddings": [[]]}, 422),
    ({"embeddings": []}, 422), ({"embeddings": [[1.0]] * 65}, 422), ({"embeddings": [[0.0] * 5000]}, 422), ({"embeddings": None}, 422),
    ({"encoder": "imagebind@1"}, 409), ({"encoder": ""}, 422), ({"miner": "5Nobody"}, 422), ({"miner": 7}, 422), ({"at": -1}, 422), ({"at": 10**6}, 422),
    ({"at": True}, 422), ({"more": 1}, 422)])
def test_hostile_questions(place, change, status):
    body = json.dumps(question(place).model_dump() | change).encode()
    answer = post(place, body)
    assert answer.status_code == status and answer.json()["detail"]


@pytest.mark.parametrize("change", [
    {"reward": float("nan")}, {"reward": True}, {"reward": 1e9}, {"round": 0}, {"round": 1.5}, {"query": ""}, {"outcome": "rich"}, {"settings_hash": "x" * 16},
    {"clips": [{}]}, {"num_videos": 65}, {"profile": "mine"}, {"run": "a b"}])
def test_hostile_verdicts(place, change):
    body = json.dumps(verdict(hotkey(place, "mia"), space=place[4]).model_dump() | change).encode()
    answer = post(place, body, path="/api/upload_video_metadata")
    assert answer.status_code == 422 and answer.json()["detail"]


def test_half_a_body_and_noise_leave_it_alive(place):
    for data in (b"\x16\x03\x01" + bytes(200), b"POST /api/get_pinecone_novelty HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\nhalf",
                 b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000):
        with socket.create_connection((place[0].host, place[0].port), timeout=5) as connection:
            connection.sendall(data)
    assert httpx.get(place[0].url + "/healthz").status_code == 200 and place[0].alive()
    assert httpx.get(place[0].url + "/api/nothing").json()["detail"] and httpx.get(place[0].url + "/api/get_proxy").status_code == 405


@pytest.mark.parametrize("first", ["ada", "ben"])
def test_either_order(place, first):
    """Both ask, one uploads, the other asks again: the miner's clip stays its own offer, and a copy is known to both."""
    second, rng = {"ada": "ben", "ben": "ada"}[first], np.random.default_rng(len(first) * (first == "ben"))
    clip = unit(rng.normal(size=DIM))
    copy = unit(clip + 0.01 * unit(rng.normal(size=DIM)))
    mia, noa, asked = hotkey(place, "mia"), hotkey(place, "noa"), []

    def ask(who, miner, vector, at=None):
        with client(place, who) as service:
            answer = service.novelty(vector, miner, place[4], at)
        if at is None:
            asked.append((who, miner, vector, answer))
        return float(answer.novelty[0])

    assert ask(first, mia, clip) > 0.5 and ask(second, mia, clip) > 0.5
    with client(place, first) as service:
        receipt = service.upload(verdict(mia, [clip], space=place[4]))
    assert receipt.clips[0].duplicate_of is None
    assert ask(second, mia, clip) > 0.5 and ask(first, mia, clip) < 1e-6
    assert ask(first, noa, copy) < 0.01 and ask(second, noa, copy) < 0.01
    with client(place, second) as service:
        assert service.upload(verdict(mia, [clip], space=place[4])).clips[0].duplicate_of == receipt.clips[0].row
    assert ask(second, mia, clip) < 1e-6
    for who, miner, vector, answer in asked:
        with client(place, who) as service:
            again = service.novelty(vector, miner, place[4], answer.version)
        assert again.novelty.tolist() == answer.novelty.tolist() and again.met == answer.met and again.version == answer.version
        assert not answer.met[0] or answer.nearest[0].startswith(f"{answer.met[0].row}/{answer.met[0].miner}/youtube:")


def test_uploading_again(place):
    sent = verdict(hotkey(place, "mia"), np.random.default_rng(7).normal(size=(2, DIM)), space=place[4])
    with client(place, "ada") as service, client(place, "ben") as other:
        receipt = service.upload(sent)
        assert all(service.upload(sent) == receipt for _ in range(2))
        assert other.upload(sent).submission != receipt.submission
        with pytest.raises(ServiceRefused, match="another verdict") as refused:
            service.upload(sent.model_copy(update={"reward": 0.2}))
        assert refused.value.status == 409
        assert service.upload(sent.model_copy(update={"run": "second", "reward": 0.2})).submission > receipt.submission


def test_check_score_shows_only_ones_own(place):
    short = JudgedClip(video_id="a\nb\x00", description="", views=0, start_time=0, end_time=2, accepted=False, reason="2 s long")
    with client(place, "ada") as service:
        service.upload(verdict(hotkey(place, "noa"), space=place[4], clips=[short], outcome="empty", reason="no clip survived", reward=0.005))
    with client(place, "noa") as service:
        own = service.scores()
        assert {s.validator for s in own.scores} == {hotkey(place, "ada")} and own.miner == hotkey(place, "noa")
        assert own.scores[0].clips[0].reason == "2 s long" and own.scores[0].clips[0].video_id == "a\nb\x00" and own.scores[0].reward == 0.005
    with client(place, "mia") as service:
        everything, page, before = service.scores(limit=100).scores, [], None
        while True:
            some = service.scores(limit=2, before=before)
            page += some.scores
            if (before := some.before) is None:
                break
        assert page == everything and len(page) > 3 and all(c.video_id != "a\nb\x00" for s in page for c in s.clips)
    for query in ("limit=0", "limit=101", "limit=x", "before=0"):
        assert post(place, b"", who="mia", path=f"/api/check_score?{query}", method="GET").status_code == 422


def test_what_anyone_may_read(place):
    url = place[0].url
    assert httpx.get(url + "/api/mm/topics").json() == ["cats", "dogs"]
    rows = {r["miner"]: r for r in httpx.get(url + "/api/leaderboard").json()}
    assert rows[hotkey(place, "mia")]["accepted"] > rows[hotkey(place, "noa")]["accepted"] == 0
    counts, clips = httpx.get(url + "/api/mm/topic_video_count").json(), httpx.get(url + "/api/mm/topic_relevant/cats").json()
    assert counts["cats"] == len(clips) and [c["query_relevance"] for c in clips] == sorted((c["query_relevance"] for c in clips), reverse=True)
    assert httpx.get(url + "/api/mm/topic_relevant/a%00b%2Fc").status_code in (200, 404)
    page = httpx.get(url + "/leaderboard")
    assert hotkey(place, "mia") in page.text and "<script" not in page.text
    assert httpx.get(url + "/metrics").status_code == 200
    described = httpx.get(url + "/openapi.json").json()
    assert "clips" in json.dumps(described["paths"]["/api/upload_video_metadata"]["post"]["requestBody"])


def test_a_validator_learns_whom_it_asks(place):
    """A wrong hotkey or latent space is said before the first round; a service that is down is no error."""
    def opened(space=place[4], **changes):
        changes = {"validator.service": place[0].url, "validator.service_hotkey": hotkey(place, "service")} | changes
        return open_service(load_settings(changes, environ={}), place[3]["ada"], space)

    with opened() as service:
        assert service.health().hotkey == hotkey(place, "service") and service.health().encoder == place[4]
    with pytest.raises(NotAllowed, match=f"signs as {hotkey(place, 'service')}, .*service_hotkey is {hotkey(place, 'ben')}: set it"):
        opened(**{"validator.service_hotkey": hotkey(place, "ben")})
    with pytest.raises(NotAllowed, match="latent space .* gives imagebind@1"):
        opened("imagebind@1")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with opened(**{"validator.service": f"http://127.0.0.1:{port}"}) as down:
        assert down.health() is None
    with opened(**{"validator.service": place[0].url + "/elsewhere"}) as other:
        assert other.health() is None
    said = (place[2] / "server.log").read_text()
    assert f"shared service at {place[0].url}, signs as {hotkey(place, 'service')}, latent space {place[4]};" in said


def test_silence_is_no_answer(tmp_path):
    with Book(tmp_path, TOY) as book:
        for status, reward in (("answered", 0.1), ("timeout", -0.005)):
            book.upload(ADDRESS["ada"], verdict(ADDRESS["mia"], status=status, reward=reward))
        [row] = book.leaderboard()
        assert (row.asked, row.answers) == (2, 1)


def recording(seconds=1.0, rate=16_000):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(np.random.default_rng(0).integers(-99, 99, int(seconds * rate)).astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


def test_audio_is_kept_as_it_is(place):
    told = {"encoder": place[4], "round": 1, "miner": hotkey(place, "mia"), "query": "cats podcast", "position": 0, "video_id": "youtube:00000000000",
            "views": 1, "start_time": 0, "end_time": 60, "audio_emb": [0.1] * DIM, "audio_bytes": recording(), "diar_timestamps_start": [0.0, 0.5],
            "diar_timestamps_end": [0.5, 1.0], "diar_speakers": ["a", "b"], "reward": 0.3}
    with client(place, "ada") as service:
        receipt = service.upload_audio(JudgedAudio(**told))
        assert service.upload_audio(JudgedAudio(**told)) == receipt
        with pytest.raises(ServiceRefused, match="another recording"):
            service.upload_audio(JudgedAudio(**told | {"reward": 0.4}))
    assert (place[2] / "audio" / f"{receipt.audio_sha256}.wav").read_bytes() == base64.b64decode(told["audio_bytes"])
    for change, reason in [({"audio_bytes": "no!"}, "base64"), ({"audio_bytes": "UklGRg=="}, "WAV"), ({"audio_bytes": recording(rate=8000)}, "8000 Hz"),
                           ({"diar_speakers": ["a"]}, "speakers"), ({"diar_timestamps_end": [0.5, 0.4]}, "ends before"), ({"audio_emb": [0.1]}, "numbers")]:
        answer = post(place, json.dumps(told | {"round": 2} | change).encode(), path="/api/upload_audio_metadata")
        assert answer.status_code == 422 and reason in answer.json()["detail"]


@pytest.mark.full
def test_a_second_process_is_told(place):
    second = subprocess.run([sys.executable, "-m", "omega_lab.api.serve", str(place[2])], capture_output=True, text=True, timeout=180)
    assert second.returncode and f"owned by another process (pid {place[0].pid})" in second.stderr


def test_killed_while_uploading(place):
    """kill -9 at random moments: what was acknowledged is there, once, and what was not can be told again."""
    card, settings, state, wallets, space = place
    chance, rng, sent, receipts = random.Random(1), np.random.default_rng(11), [], {}
    known = httpx.get(card.url + "/healthz").json()["index_version"]

    def upload_until_it_dies(name, url):
        with ServiceClient(url, hotkey(place, "service"), wallets[name].hotkey, attempts=1) as service:
            while True:
                submission = verdict(hotkey(place, "mia"), rng.normal(size=(2, DIM)), space=space)
                sent.append((name, submission))
                try:
                    receipts[name, submission.round] = service.upload(submission)
                except ServiceDown:
                    return

    for _ in range(2):
        uploaders = [threading.Thread(target=upload_until_it_dies, args=(name, card.url)) for name in ("ada", "ben")]
        for uploader in uploaders:
            uploader.start()
        time.sleep(chance.uniform(0.2, 0.8))
        psutil.Process(card.pid).send_signal(signal.SIGKILL)
        for uploader in uploaders:
            uploader.join(60)
        card = start_service(settings, state)
    clients = {name: ServiceClient(card.url, hotkey(place, "service"), wallets[name].hotkey) for name in ("ada", "ben")}
    rows = []
    for name, submission in sent:
        again = clients[name].upload(submission)
        assert receipts.get((name, submission.round), again) == again
        rows += [clip.row for clip in again.clips]
    assert len(receipts) >= 3 and sorted(rows) == list(range(known, known + 2 * len(sent)))
    for service in clients.values():
        service.close()
    assert stop_service(state)
    with Book(state, Space(space, DIM)) as book:
        assert book.version == known + 2 * len(sent)


# ---- the book -------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_rule_and_stay_so(tmp_path):
    """Random uploads of near copies by three validators from five miners: each answer is the plain reading of the rule, and can be recomputed."""
    rng, chance = np.random.default_rng(0), random.Random(0)
    validators, miners = [ADDRESS[n] for n in ("ada", "ben", "cyd")], [ADDRESS[n] for n in ("mia", "noa", "oli", "pia", "quy")]
    seeds, rows, answers = rng.normal(size=(12, TOY.dim)), [], []
    with Book(tmp_path, TOY) as book:
        for number in range(1, 41):
            validator, miner = chance.choice(validators), chance.choice(miners)
            vectors = seeds[rng.integers(12, size=3)] + 0.05 * rng.normal(size=(3, TOY.dim))
            reply = book.novelty(vectors, validator, miner)
            for vector, novelty, met in zip(each_unit(vectors), reply.novelty, reply.nearest):
                counted = [(exact_cosine(vector, r["vector"]), -r["row"]) for r in rows if r["validator"] == validator or (r["miner"] != miner and r["first"])]
                assert novelty == (max(0.0, 1 - max(counted)[0]) if counted else 1.0)
                assert (met.row if met else None) == (-max(counted)[1] if counted else None)
            answers.append((validator, miner, vectors, reply))
            for vector, clip in zip(each_unit(vectors), book.upload(validator, verdict(miner, vectors, number)).clips):
                rows.append({"row": clip.row, "vector": vector, "validator": validator, "miner": miner, "first": clip.duplicate_of is None})
                assert clip.duplicate_of is None or 1 - exact_cosine(vector, rows[clip.duplicate_of]["vector"]) < 0.1
    assert [r["row"] for r in rows] == list(range(len(rows))) and 8 <= sum(r["first"] for r in rows) < len(rows) / 2
    with Book(tmp_path, TOY) as book:
        for validator, miner, vectors, reply in answers:
            assert book.novelty(vectors, validator, miner, at=reply.index_version) == reply
        with pytest.raises(Unfit, match="yet to come"):
            book.novelty(vectors, validator, miner, at=len(rows) + 1)


def test_other_spaces_and_owners(tmp_path):
    with Book(tmp_path, TOY) as book:
        with pytest.raises(Conflict, match="latent space is toy@1, not other@1"):
            book.upload(ADDRESS["ada"], verdict(ADDRESS["mia"], np.ones((1, 8)), space="other@1"))
        with pytest.raises(Unfit, match="toy@1 has 8"):
            book.upload(ADDRESS["ada"], verdict(ADDRESS["mia"], np.ones((1, 9))))
        with pytest.raises(BookError, match="owned by another process"):
            Book(tmp_path, TOY, patience=0)
    with pytest.raises(BookError, match="holds vectors of toy@1"):
        Book(tmp_path, Space("toy@2", 8))
    Book(tmp_path, TOY).close()


# ---- the application, without a process -----------------------------------------------------------------------------


def application(folder, **options):
    ours, ada = dev_wallet("//service").hotkey, dev_wallet("//ada").hotkey
    neuron = Neuron(uid=0, hotkey=ada.ss58_address, coldkey="", stake_rao=5, validator_permit=True, url=None, last_update=0, incentive=0.0)
    gate = Gate(ours.ss58_address, lambda: Metagraph(24, 1, (neuron,)), per_minute=options.pop("per_minute", None))
    book = Book(folder, TOY)
    app = make_app(Service(book, Door(ours, **{"max_body": 100_000} | options), gate, gate, Rotation([]), lambda: ["cats"]))

    def upload(submission):
        body, path = submission.model_dump_json().encode(), "/api/upload_video_metadata"
        return TestClient(app).post(path, content=body, headers=sign_request(ada, "POST", path, body, ours.ss58_address))
    return book, upload


def test_too_many_requests(tmp_path):
    book, upload = application(tmp_path, per_minute=2)
    with book:
        answers = [upload(verdict(ADDRESS["mia"])) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429] and "too many" in answers[2].json()["detail"]


def test_a_full_disk_keeps_nothing_by_halves(tmp_path):
    book, upload = application(tmp_path, max_body=2_000_000)
    big = verdict(ADDRESS["mia"], np.random.default_rng(0).normal(size=(60, 8)))
    big = big.model_copy(update={"clips": [c.model_copy(update={"description": "a" * 8000}) for c in big.clips]})
    with book:
        assert upload(verdict(ADDRESS["mia"], np.ones((1, 8)))).status_code == 200
        pages = book._con.execute("pragma page_count").fetchone()[0]
        book._con.execute(f"pragma max_page_count = {pages + 2}")
        full = upload(big)
        assert full.status_code == 503 and "nothing was kept" in full.json()["detail"] and book.version == 1
        book._con.execute("pragma max_page_count = 1000000")
        assert upload(big).json()["index_version"] == book.version == 61


def test_a_slow_body_is_not_waited_for(tmp_path):
    book, _ = application(tmp_path)
    ours = dev_wallet("//service").hotkey
    gate = Gate(ours.ss58_address, lambda: Metagraph(24, 1, ()))
    app = make_app(Service(book, Door(ours, 1000, body_seconds=0.3), gate, gate, Rotation([]), lambda: []))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    with book, socket.create_connection(listener.getsockname(), timeout=10) as connection:
        connection.sendall(b"POST /api/get_proxy HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf")
        assert b"408" in connection.recv(100)
        server.should_exit = True
        thread.join(10)


# ---- the caller -----------------------------------------------------------------------------------------------------


@pytest.fixture
def moody():
    """A server that answers what its `moods` say, in turn; yields (url, moods, times it was asked)."""
    moods, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.headers["X-Bittensor-Nonce"] or self.headers)
            self.rfile.read(int(self.headers["content-length"]))
            status, body = moods.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", moods, asked
    server.shutdown()
    server.server_close()


def test_patience_has_an_end(moody):
    url, moods, asked = moody
    pauses = []
    service = ServiceClient(url, ADDRESS["ada"], dev_wallet("//ben").hotkey, attempts=3, sleep=pauses.append)
    moods += [(503, b'{"detail": "the disk is full"}')] * 3
    with pytest.raises(ServiceDown, match="503 the disk is full"):
        service.proxy()
    assert len(asked) == 3 and len(pauses) == 2 and 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1
    moods += [(429, b""), (404, b'{"detail": "no proxies"}')]
    with pytest.raises(ServiceRefused, match="no proxies"):
        service.proxy()
    moods += [(200, b'{"proxy": "socks5://evil"}'), (302, b"")]
    with pytest.raises(ServiceUntrue, match="unsigned"):
        service.proxy()
    with pytest.raises(ServiceRefused, match="302"):
        service.proxy()
    assert len(asked) == 7
    service.close()
    with pytest.raises(ServiceDown, match="in 1 attempts"), socket.create_server(("127.0.0.1", 0)) as silent:
        ServiceClient(f"http://127.0.0.1:{silent.getsockname()[1]}", ADDRESS["ada"], dev_wallet("//ben").hotkey, timeout=0.2, attempts=1).proxy()
