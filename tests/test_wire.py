"""Both wires over loopback: our own with signed answers, and that of SDK 10.5, whose real axon and dendrite are the partners."""
import asyncio
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from partner.environment import NoPartner, partner_python, run, running

from omega_lab.chain import LAB_VERSION, Chain, Metagraph, Neuron, ReceiptError, dev_wallet, sign_request, verify_receipt
from omega_lab.chain.auth import Gate, Meter, exchange_of, sha256, sign_response
from omega_lab.chain.localnet import LocalNet
from omega_lab.chain.synapse import check_answer_signature, question_body, request_headers
from omega_lab.embedding import CachedEncoder, get_encoder
from omega_lab.miner import Answerer, make_source, open_shelf, prepare
from omega_lab.miner.server import make_app
from omega_lab.miner.watch import MinerMetrics
from omega_lab.miner.work import MinerParts, StakeQueue
from omega_lab.protocol import VIDEOS_PATH, VideoRequest, VideoResponse, parse_response
from omega_lab.samples import golden_path
from omega_lab.settings import load_settings
from omega_lab.sources import SourceError, fetch_clip
from omega_lab.validator.ask import ask_all

TAO = 10**9
QUESTION = VideoRequest(query="a big cat", num_videos=2)
KEYS = {name: dev_wallet(f"//{name}").hotkey for name in ("Validator", "Rich", "Miner", "Old", "Poor", "Stranger")}
WHO = {name: key.ss58_address for name, key in KEYS.items()}
RULES = {"Validator": (20_000, True), "Rich": (90_000, True), "Poor": (1, True), "Miner": (0, False)}
GRAPH = Metagraph(24, 1, tuple(
    Neuron(uid, WHO[name], "", stake * TAO, permit, None, 0, 0.0) for uid, (name, (stake, permit)) in enumerate(RULES.items())))


@contextmanager
def serving(parts):
    """The miner's application on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(make_app(parts), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """(encoder, shelf, source) with a lion on it."""
    folder = tmp_path_factory.mktemp("shelf")
    settings = load_settings({"source.subjects": "lion"}, environ={})
    encoder = CachedEncoder(get_encoder("bridge"), Path("data/cache/miner"))
    filled, source = open_shelf(folder, encoder), make_source(settings)
    prepare(source, encoder, filled, ["lion"])
    return encoder, filled, source


def make_parts(shelf, folder):
    """A miner behind a gate with a fixed picture of the subnet; it has sent nobody anything yet."""
    encoder, filled, source = shelf
    settings = load_settings({"source.subjects": "lion"}, environ={})
    gate = Gate(WHO["Miner"], lambda: GRAPH, min_stake_rao=10_240 * TAO)
    return MinerParts(settings, gate, Answerer(filled, encoder, folder / "log.jsonl"), source, KEYS["Miner"], StakeQueue(2, 8))


@pytest.fixture
def parts(shelf, tmp_path):
    """A miner of one's own."""
    return make_parts(shelf, tmp_path)


@pytest.fixture
def port(parts):
    """Where that miner listens."""
    with serving(parts) as where:
        yield where


@pytest.fixture(scope="module")
def refusing_port(shelf, tmp_path_factory):
    """Where a miner listens that all questions which are none may share."""
    with serving(make_parts(shelf, tmp_path_factory.mktemp("refusing"))) as where:
        yield where


def without(parts, **change):
    """The same miner with other settings, as load_settings names them."""
    settings = load_settings({name.replace("__", "."): value for name, value in change.items()}, environ={})
    return replace(parts, settings=settings, metrics=MinerMetrics())


def neuron(port, version=0, who="Miner", uid=9):
    return Neuron(uid, WHO[who], "", 0, False, f"http://127.0.0.1:{port}", 0, 0.0, version)


def asked(*miners, who="Validator", seconds=20, **how):
    return asyncio.run(ask_all(miners, QUESTION, KEYS[who], seconds, 4_000_000, encoder="bridge@assumed", **how))


def old_question(port, who="Validator", path="/Videos", body=None, to="Miner", **change):
    """One question on the older wire, by hand."""
    headers = request_headers(KEYS[who], WHO[to], "127.0.0.1", port, 12.0)
    content = json.dumps(question_body(QUESTION, 12.0, headers)).encode() if body is None else body
    return httpx.post(f"http://127.0.0.1:{port}{path}", content=content, headers=headers | change, timeout=30)


# ---------------------------------------------------------------- signed answers on our own wire


def test_an_answer_cannot_be_disowned(port, parts):
    answer, = asked(neuron(port, LAB_VERSION))
    encoder = parts.answerer.encoder
    clips = parse_response(answer.body, QUESTION, f"{encoder.name}@{encoder.revision}", encoder.dim).video_metadata
    assert (answer.status, answer.wire) == ("answered", "lab") and 1 <= len(clips) <= 2
    stored = json.loads(answer.receipt.text())
    evidence = type(answer.receipt)(**stored)
    facts = {"signer": WHO["Miner"], "caller": WHO["Validator"], "response_sha256": answer.body_sha256}
    verify_receipt(evidence, **facts, request_sha256=sha256(QUESTION.body()))
    assert answer.body_sha256 == sha256(answer.body)
    for change in ({"signer": WHO["Old"]}, {"caller": WHO["Rich"]}, {"response_sha256": sha256(b"")}, {"request_sha256": sha256(b"")}):
        with pytest.raises(ReceiptError, match="another"):
            verify_receipt(evidence, **facts | change)
    forged = replace(evidence, message=evidence.message.replace(answer.body_sha256, sha256(b"other")))
    with pytest.raises(ReceiptError, match="did not sign"):
        verify_receipt(forged, **facts | {"response_sha256": sha256(b"other")})


def tampering(alter):
    """A miner's answer on its way through the hands of `alter(body, headers, exchange) -> (body, headers)`."""
    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        sent = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        question = await reader.readexactly(int(sent["content-length"]))
        body = VideoResponse(encoder="toy@1", video_metadata=[]).model_dump_json().encode()
        exchange = exchange_of(sent, "POST", VIDEOS_PATH, question, body)
        body, headers = alter(body, sign_response(KEYS["Miner"], exchange), exchange)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 200 OK\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    async def exchange():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            found, = await ask_all([neuron(server.sockets[0].getsockname()[1])], QUESTION, KEYS["Validator"], 10, 10_000, wire="lab")
        return found

    return asyncio.run(exchange())


def signed_for(**other):
    """Signed by the right miner, for something else."""
    return lambda body, headers, exchange: (body, sign_response(KEYS["Miner"], replace(exchange, **other)))


OTHER = {"method": "GET", "path": "/v1/other", "nonce": "1", "caller": WHO["Rich"], "request_sha256": sha256(b"{}"), "response_sha256": sha256(b"[]")}
TAMPERED = {
    "nothing": (lambda body, headers, e: (body, headers), "answered"),
    "no signature": (lambda body, headers, e: (body, {}), "unsigned"),
    "the body": (lambda body, headers, e: (body.replace(b"toy", b"boy"), headers), "bad signature"),
    "a space in the body": (lambda body, headers, e: (body + b" ", headers), "bad signature"),
    "the time": (lambda body, headers, e: (body, headers | {"X-Omega-Signed-At": str(time.time_ns())}), "bad signature"),
    "a time long past": (lambda body, headers, e: (body, headers | {"X-Omega-Signed-At": "1"}), "bad signature"),
    "no time": (lambda body, headers, e: (body, headers | {"X-Omega-Signed-At": "soon"}), "bad signature"),
    "the signature": (lambda body, headers, e: (body, headers | {"X-Omega-Signature": "0x" + "00" * 64}), "bad signature"),
    "no hex": (lambda body, headers, e: (body, headers | {"X-Omega-Signature": "0xzz"}), "bad signature"),
    "a long signature": (lambda body, headers, e: (body, headers | {"X-Omega-Signature": "0x" + "00" * 5000}), "bad signature"),
    "the signer": (lambda body, headers, e: (body, sign_response(KEYS["Old"], e)), "bad signature"),
} | {f"the {fact} signed for": (signed_for(**{fact: value}), "bad signature") for fact, value in OTHER.items()}


@pytest.mark.parametrize("what", TAMPERED)
def test_altered(what):
    alter, status = TAMPERED[what]
    answer = tampering(alter)
    assert (answer.status, answer.receipt is not None, answer.body is not None) == (status, status == "answered", status == "answered")


# ---------------------------------------------------------------- the gate


RACE = """
import json, sys, time
from omega_lab.chain.auth import NonceStore
store = NonceStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps({"seen": [n for n in range(200) if store.check_and_store("5Caller", n)],
                  "grown": [n for n in range(1, 201) if store.advance("5Caller:one", n)]}))
"""


def test_two_worker_processes_share_their_nonces(tmp_path):
    workers = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path / "nonces.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    told = [json.loads(worker.communicate(timeout=30)[0]) for worker in workers]
    assert sorted(told[0]["seen"] + told[1]["seen"]) == list(range(200))  # each nonce let in once, by one of them
    assert len(told[0]["grown"] + told[1]["grown"]) == len(set(told[0]["grown"] + told[1]["grown"]))
    assert 200 in told[0]["grown"] + told[1]["grown"]


def test_per_minute_counts_both_wires_together(parts):
    parts.gate.meter = Meter(2)
    with serving(parts) as port:
        assert old_question(port).status_code == 200
        assert asked(neuron(port), wire="lab")[0].status == "answered"
        assert old_question(port).status_code == 429
        assert "429" in asked(neuron(port), wire="lab")[0].detail
        assert old_question(port, "Rich").status_code == 200, "another caller has its own count"


def test_a_busy_miner_serves_higher_stake_first_and_turns_the_rest_away(parts):
    parts = replace(parts, queue=StakeQueue(1, 1))
    release = threading.Event()
    answer = parts.answerer.answer
    order = []

    def slow(request, caller, claim):
        order.append(caller)
        release.wait(20)
        return answer(request, caller, claim)

    parts.answerer.answer = slow
    with serving(parts) as port:
        found = {}
        threads = {name: threading.Thread(target=lambda name=name, who=who, wire=wire: found.update({name: asked(neuron(port), who=who, wire=wire)[0]}))
                   for name, who, wire in (("first", "Validator", "lab"), ("waits", "Validator", "axon"), ("richer", "Rich", "axon"))}
        for name, thread in threads.items():
            thread.start()
            until = time.monotonic() + 10
            while time.monotonic() < until and not (order if name == "first" else parts.queue.queued):
                time.sleep(0.02)
        threads["waits"].join(10)  # the richer one has taken its place
        assert found["waits"].status == "refused" and "503" in found["waits"].detail
        release.set()
        for thread in threads.values():
            thread.join(20)
    assert (found["first"].status, found["richer"].status) == ("answered", "answered")
    assert order == [WHO["Validator"], WHO["Rich"]]


def test_media_only_for_who_may_ask(port, parts, tmp_path):
    clip_id = parts.answerer.shelf.read()["video_id"][0]
    url = f"http://127.0.0.1:{port}"
    path = f"{url}/v1/media/{clip_id.removeprefix('sha256:')}"

    def signer(who):
        return lambda method, target: sign_request(KEYS[who], method, target, b"", WHO["Miner"])

    assert httpx.get(path).status_code == 401
    assert [httpx.get(path, headers=signer(who)("GET", path)).status_code for who in ("Stranger", "Poor", "Validator")] == [403, 403, 200]
    for sign in (None, signer("Stranger")):
        with pytest.raises(SourceError) as error:
            fetch_clip(clip_id, 0, 5, cache_dir=tmp_path / "c", base_url=url, sign=sign)
        assert error.value.kind == "blocked", "our own missing right never speaks against the miner"
    assert sha256(fetch_clip(clip_id, 0, 5, cache_dir=tmp_path / "c", base_url=url, sign=signer("Validator")).read_bytes()) in clip_id


# ---------------------------------------------------------------- the older wire, by hand


@pytest.mark.parametrize(("body", "status"), [
    (b" " * 70_000, 413), (b"\x00\xff", 422), (b"[" * 20_000, 422), (b"", 422), (b"null", 422), (b'{"query": 1, "num_videos": 2}', 422),
    (b'{"query": "", "num_videos": 2}', 422), (json.dumps({"query": "a" * 501, "num_videos": 2}).encode(), 422),
    (b'{"query": "a", "num_videos": 10000}', 422), (b'{"query": "a", "num_videos": 0}', 422), (b'{"query": "a", "num_videos": true}', 422),
    (b'{"query": "a", "num_videos": 2.5}', 422), (b'{"query": "a", "num_videos": NaN}', 422), (b'{"num_videos": 2}', 422)])
def test_malformed_questions_on_the_older_wire(refusing_port, body, status):
    answer = old_question(refusing_port, body=body)
    assert answer.status_code == status and answer.json()["message"]
    assert answer.headers["bt_header_axon_status_code"] == str(status)


def header(name, value):
    return {f"bt_header_dendrite_{name}": value}


@pytest.mark.parametrize(("change", "status"), [
    (header("signature", "0x" + "00" * 64), 401), (header("signature", "0xzz"), 401), (header("nonce", str(time.time_ns() - 60 * TAO)), 401),
    (header("uuid", "other"), 401), (header("hotkey", WHO["Rich"]), 401), (header("hotkey", "5Nobody" * 7), 401), (header("hotkey", ""), 422),
    (header("nonce", "soon"), 422), (header("nonce", "9" * 40), 422), (header("nonce", "-1"), 422), (header("signature", "0x" + "00" * 999), 422),
    ({"timeout": "nan"}, 422), ({"timeout": "-1"}, 422), (header("uuid", "x" * 999), 422)])
def test_headers_that_prove_nothing(refusing_port, change, status):
    assert old_question(refusing_port, **change).status_code == status


def test_stale_replayed_and_misdirected(port, monkeypatch):
    now = time.time_ns()
    headers = request_headers(KEYS["Validator"], WHO["Miner"], "127.0.0.1", port, 12.0)
    assert [old_question(port, **headers).status_code for _ in range(2)] == [200, 401], "replayed"
    earlier = {"bt_header_dendrite_uuid": headers["bt_header_dendrite_uuid"]}
    assert old_question(port, **headers | earlier).status_code == 401
    for age, timeout, status in ((17, 12.0, 401), (10, 12.0, 200), (400, 1e6, 401), (-60, 12.0, 401)):
        monkeypatch.setattr("omega_lab.chain.synapse.time.time_ns", lambda age=age: now - age * TAO)
        stale = request_headers(KEYS["Validator"], WHO["Miner"], "127.0.0.1", port, timeout)
        monkeypatch.undo()
        assert old_question(port, **stale).status_code == status, age
    assert old_question(port, to="Old").status_code == 401
    assert old_question(port, to="Old", bt_header_axon_hotkey=WHO["Miner"]).status_code == 401
    assert [old_question(port, who).status_code for who in ("Stranger", "Poor", "Miner")] == [403, 403, 403]


def test_what_the_older_wire_cannot_protect(port):
    """The body is not signed: a question changed on its way, within the bounds, is answered. It asks for little."""
    answer = old_question(port, body=b'{"query": "another topic", "num_videos": 1, "unknown": [1, 2]}')
    assert answer.status_code == 200 and len(answer.json()["video_metadata"]) <= 1
    assert check_answer_signature(answer.headers, WHO["Validator"], WHO["Miner"], 0) == "signed"


def test_audio_is_a_clean_no(refusing_port):
    answer = old_question(refusing_port, path="/Audios")
    assert answer.status_code == 404 and "Audios" in answer.json()["message"] and answer.headers["bt_header_axon_status_code"] == "404"


def test_older_wire_switched_off(parts):
    parts = without(parts, miner__axon_wire=False)
    with serving(parts) as port:
        assert old_question(port).status_code == 404
        found, = asked(neuron(port, 10_005_000))
        assert (found.status, found.wire) == ("answered", "lab"), "not there: asked on our own"
        assert asked(neuron(port), wire="axon")[0].status == "refused"


# ---------------------------------------------------------------- the real SDK up to 10


@pytest.fixture(scope="session")
def sdk():
    """The partner's environment, made when it is not there yet."""
    try:
        return partner_python()
    except NoPartner as error:
        pytest.fail(str(error), pytrace=False)


CLIP = {"video_id": "dQw4w9WgXcQ", "description": "A man sings and dances.", "views": 10, "start_time": 3, "end_time": 20,
        "video_emb": [1.0, 0.0], "audio_emb": [0.0, 0.0], "description_emb": [0.6, 0.8]}


def sdk_asks(port, who="Validator", receiver="Miner", kind="Videos"):
    return run("ask", uri=f"//{who}//hot", receiver=WHO[receiver], port=port, query=QUESTION.query, num_videos=2, kind=kind, timeout=20)


@pytest.fixture(scope="module")
def old_port(sdk, tmp_path_factory):
    """SDK 10.5's axon, which serves one clip to the validator and to nobody else."""
    with running("serve", 120, uri="//Old//hot", folder=str(tmp_path_factory.mktemp("wallets")), allowed=[WHO["Validator"]], clips=[CLIP]) as said:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                httpx.get(f"http://127.0.0.1:{said['port']}/")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield said["port"]


def test_sdk_dendrite_is_answered(sdk, port):
    said = sdk_asks(port)
    assert (said["status"], said["message"], said["signed"]) == (200, "Success", True)
    assert 1 <= len(said["clips"]) <= 2 and all(clip["video_id"].startswith("sha256:") for clip in said["clips"])


@pytest.mark.parametrize(("how", "status"), [({"who": "Stranger"}, 403), ({"receiver": "Old"}, 401), ({"kind": "Audios"}, 404)])
def test_sdk_dendrite_is_refused(sdk, refusing_port, how, status):
    said = sdk_asks(refusing_port, **how)
    assert said["status"] == status and said["message"] and not said["clips"]


def test_sdk_dendrite_where_the_wire_is_off(sdk, parts):
    with serving(without(parts, miner__axon_wire=False)) as port:
        assert sdk_asks(port)["status"] == 404


def test_sdk_axon_answers(old_port):
    answer, = asked(neuron(old_port, 10_005_000, "Old"))
    clips = parse_response(answer.body, QUESTION, "bridge@assumed", 2).video_metadata
    assert (answer.status, answer.wire, answer.receipt) == ("answered", "axon", None) and answer.body_sha256 != sha256(answer.body)
    assert [(c.video_id, c.start_time, c.end_time, c.audio_emb) for c in clips] == [("youtube:dQw4w9WgXcQ", 3, 20, None)]


def test_sdk_axon_refuses(old_port):
    assert "403" in asked(neuron(old_port, 10_005_000, "Old"), who="Rich")[0].detail
    assert "401" in asked(neuron(old_port, 10_005_000, "Miner"))[0].detail, "our question was for another hotkey"


def test_sdk_and_lab_are_told_apart(old_port, parts):
    known = {}
    with serving(parts) as port, serving(without(parts, miner__axon_wire=False)) as lab_only:
        miners = [neuron(port, LAB_VERSION, uid=0), neuron(old_port, 10_005_000, "Old", uid=1), neuron(lab_only, LAB_VERSION, uid=2)]
        for versions in ((LAB_VERSION, 10_005_000, LAB_VERSION), (1, 1, 1), (0, LAB_VERSION, 9_009_000)):  # the last two: nonsense on chain
            found = asked(*(replace(m, version=v) for m, v in zip(miners, versions, strict=True)), known=known)
            assert {a.miner.uid: (a.status, a.wire) for a in found} == {0: ("answered", "lab"), 1: ("answered", "axon"), 2: ("answered", "lab")}
            if versions != (1, 1, 1):
                known.clear()
        assert all(a.status == "refused" for a in asked(miners[1], wire="lab"))


def test_the_chain_tells_which_wire():
    with LocalNet(golden_path("data"), block_seconds=0.2) as net, Chain(net.endpoint, 24) as chain:
        wallet = dev_wallet("//Fresh")
        chain.transfer(dev_wallet("//Alice"), wallet.coldkeypub.ss58_address, 10 * TAO)
        uid = chain.register(wallet)
        assert chain.metagraph().neurons[uid].url is None
        chain.publish_endpoint(wallet, "127.0.0.1", 8091)
        assert (chain.metagraph().neurons[uid].url, chain.metagraph().neurons[uid].version) == ("http://127.0.0.1:8091", LAB_VERSION)
        assert chain.publish_endpoint(wallet, "127.0.0.1", 8091) is None
