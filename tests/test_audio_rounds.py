"The audio task among real servers: both wires, the neurons of SDK 10.5, and a validator's rounds."
import asyncio
import hashlib
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from partner.environment import NoPartner, partner_python, run, running

from omega_lab.chain import Chain, Metagraph, Neuron, dev_wallet, open_wallet, sign_request
from omega_lab.chain.audios import audio_headers, audio_question
from omega_lab.chain.auth import Gate
from omega_lab.chain.localnet import LocalNet
from omega_lab.embedding import get_encoder
from omega_lab.embedding.diarizer import Turn, diarization_error, get_diarizer
from omega_lab.media import audio
from omega_lab.miner import Answerer, open_shelf, start_server, stop_server
from omega_lab.miner.audio import AudioAnswerer, open_sound_shelf, prepare_sound
from omega_lab.miner.server import make_app
from omega_lab.miner.work import MinerParts, StakeQueue
from omega_lab.protocol import AUDIOS_PATH, AudioClip, AudioRequest, AudioResponse
from omega_lab.samples import fetch_archive, golden_path
from omega_lab.settings import AudioSettings, load_settings
from omega_lab.sources import FolderSource
from omega_lab.store_audio import next_audio_round, rescore_audio
from omega_lab.validator import open_validator, recheck_audio, run_audio_round, run_round, set_weights, split_topics
from omega_lab.validator.ask import ask_all
from omega_lab.validator.audio import said_turns, task_of
from omega_lab.wav import RATE, decode_wav, encode_wav, from_text, to_text

TAO = 10**9
S = AudioSettings()


# servers


@pytest.fixture(scope="module")
def tools():
    return get_encoder("bridge"), get_diarizer("voices")


@pytest.fixture(scope="module")
def podcast(tmp_path_factory):
    "A folder with a talk of 52 seconds."
    folder = tmp_path_factory.mktemp("podcast")
    talk = audio(fetch_archive("pyannote.audio", "data") / "conversation.wav")
    (folder / "two people talk.wav").write_bytes(encode_wav(np.concatenate([talk, talk[8 * RATE:]])))
    return folder


@pytest.fixture(scope="module")
def shelf(tools, podcast, tmp_path_factory):
    "The talk prepared, once for all."
    state = tmp_path_factory.mktemp("miner")
    made = open_sound_shelf(state, *tools)
    assert prepare_sound(FolderSource(podcast), *tools, made, ["talk podcast"], S).added == 1
    return made


KEYS = {name: dev_wallet(f"//{name}").hotkey for name in ("Validator", "Miner", "Stranger", "Old")}
GRAPH = Metagraph(24, 1, (Neuron(0, KEYS["Validator"].ss58_address, "", 20_000 * TAO, True, None, 0, 0.0),))


def miner_parts(tools, podcast, shelf, folder: Path) -> MinerParts:
    encoder, diarizer = tools
    lab = load_settings({"tasks.audio": 0.5, "source.folder": str(podcast)}, environ={})
    gate = Gate(KEYS["Miner"].ss58_address, lambda: GRAPH, min_stake_rao=10_240 * TAO)
    return MinerParts(lab, gate, Answerer(open_shelf(folder, encoder), encoder, folder / "log.jsonl"), FolderSource(podcast), KEYS["Miner"],
                      StakeQueue(1, 4), audio=AudioAnswerer(shelf, encoder, diarizer, folder / "sound.jsonl"))


@contextmanager
def serving(parts):
    "The miner's application on a free port."
    server = uvicorn.Server(uvicorn.Config(make_app(parts), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def asked(port, wire, encoder, miner="Miner", version=0):
    miner = Neuron(1, KEYS[miner].ss58_address, "", 0, False, f"http://127.0.0.1:{port}", 0, 0.0, version)
    return asyncio.run(ask_all([miner], AudioRequest(query="talk podcast", num_audios=2), KEYS["Validator"], 30, 10**7, wire, encoder))[0]


def test_both_wires_give_the_same_sound(tools, podcast, shelf, tmp_path):
    space = f"{tools[0].name}@{tools[0].revision}"
    answers = {}
    for wire in ("lab", "axon"):
        (tmp_path / wire).mkdir()
        with serving(miner_parts(tools, podcast, shelf, tmp_path / wire)) as port:
            answers[wire], again = asked(port, wire, space), asked(port, wire, space)
            assert (answers[wire].status, answers[wire].wire) == ("answered", wire), answers[wire]
            assert json.loads(again.body)["audio_metadata"] == [], "nothing is sent twice"
    clip, = AudioResponse.model_validate_json(answers["lab"].body).audio_metadata
    assert AudioResponse.model_validate_json(answers["axon"].body).audio_metadata == [clip]
    assert answers["lab"].receipt and not answers["axon"].receipt
    assert (clip.start_time, clip.end_time, len(decode_wav(from_text(clip.audio_bytes)))) == (0, 52, 52 * RATE) and len(said_turns(clip)) > 5


def test_strangers_and_nonsense_are_turned_away(tools, podcast, shelf, tmp_path):
    with serving(miner_parts(tools, podcast, shelf, tmp_path)) as port:
        def status(who: str, body: bytes) -> int:
            headers = sign_request(KEYS[who], "POST", f"http://127.0.0.1:{port}{AUDIOS_PATH}", body, KEYS["Miner"].ss58_address)
            return httpx.post(f"http://127.0.0.1:{port}{AUDIOS_PATH}", content=body, headers=headers).status_code
        good = AudioRequest(query="talk podcast", num_audios=1).model_dump_json().encode()
        assert (status("Stranger", good), status("Validator", b'{"query": "a", "num_audios": 17}')) == (403, 422)
        headers = audio_headers(KEYS["Stranger"], KEYS["Miner"].ss58_address, "127.0.0.1", port, 5.0)
        refused = httpx.post(f"http://127.0.0.1:{port}/Audios", headers=headers,
                             json=audio_question(AudioRequest(query="a", num_audios=1), 5.0, headers))
        assert refused.status_code == 403 and refused.headers["name"] == "Audios"
    with serving(replace(miner_parts(tools, podcast, shelf, tmp_path), audio=None)) as port:
        assert asked(port, "auto", "x@1").status == "refused"


# the real SDK up to 10


@pytest.fixture(scope="session")
def sdk():
    try:
        return partner_python()
    except NoPartner as error:
        pytest.fail(str(error), pytrace=False)


def test_sdk_dendrite_is_sent_sound(sdk, tools, podcast, shelf, tmp_path):
    with serving(miner_parts(tools, podcast, shelf, tmp_path)) as port:
        said = run("ask", uri="//Validator//hot", receiver=KEYS["Miner"].ss58_address, port=port, query="talk podcast", num_videos=2, kind="Audios", timeout=20)
    assert (said["status"], said["signed"]) == (200, True)
    clip, = said["clips"]
    assert clip["end_time"] == 52 and len(clip["diar_speakers"]) == len(clip["diar_timestamps_start"]) > 5 and clip["audio_bytes"] > 2_000_000


def test_sdk_axon_sends_sound(sdk, tmp_path):
    clip = {"video_id": "dQw4w9WgXcQ", "views": 1, "start_time": 0, "end_time": 60, "audio_emb": [1.0, 0.0],
            "audio_bytes": to_text(encode_wav(np.zeros(RATE, np.float32))), "diar_timestamps_start": [0.0], "diar_timestamps_end": [60.0],
            "diar_speakers": ["a"]}
    with running("serve", 120, uri="//Old//hot", folder=str(tmp_path), allowed=[KEYS["Validator"].ss58_address], clips=[], audios=[clip]) as said:
        until, answer = time.monotonic() + 20, None
        while (answer is None or answer.status == "no answer") and time.monotonic() < until:
            answer = asked(said["port"], "auto", "toy@1", "Old", 10_005_000)
    assert (answer.status, answer.wire) == ("answered", "axon"), answer
    assert AudioResponse.model_validate_json(answer.body).audio_metadata == [AudioClip(**clip | {"video_id": "youtube:dQw4w9WgXcQ"})]


# rounds


def test_a_validator_with_both_tasks(tools, podcast, shelf, tmp_path):
    "An honest miner and one whose vectors are the query's, each a process; rounds of both kinds, weights, rewards recomputed."
    encoder, diarizer = tools
    names = ("honest", "forger", "validator")
    with LocalNet(golden_path("data"), block_seconds=0.2) as net, Chain(net.endpoint, 24) as chain:
        wallets = {name: open_wallet(name, "default", f"{tmp_path}/wallets", create=True) for name in names}
        made = {name: load_settings({"network.endpoint": net.endpoint, "wallet.name": name, "wallet.path": f"{tmp_path}/wallets", "paths.data": "data",
                                     "source.folder": str(podcast), "tasks.audio": 0.5, "tasks.focus": 0, "checks.policy": "always-one",
                                     "validator.weights_every": 1, "validator.num_videos": 2}, environ={}) for name in names}
        for wallet in wallets.values():
            chain.transfer(dev_wallet("//Alice"), wallet.coldkeypub.ss58_address, 30_000 * TAO)
            chain.register(wallet)
        chain.add_stake(wallets["validator"], 20_000 * TAO)
        for name in ("honest", "forger"):
            own = open_sound_shelf(tmp_path / name, encoder, diarizer)
            vector = encoder.encode_text(["people podcast"])[0]
            own.add([row | ({"audio_emb": vector} if name == "forger" else {}) for row in shelf.read().to_dicts()])
            chain.publish_endpoint(wallets[name], "127.0.0.1", start_server(made[name], tmp_path / name).port)
        validator = open_validator(made["validator"], tmp_path / "validator")
        try:
            who = {wallets[name].hotkey.ss58_address: name for name in names}
            record = run_audio_round(validator, "people", diarizer)
            got = {who[r.hotkey]: r for r in record.responses}
            assert record.query == "people podcast" and got["honest"].verdict.outcome == "scored" and got["honest"].verdict.reward > 0.5
            assert got["forger"].verdict.reward == -5 and "not that of the sound" in got["forger"].verdict.reason
            heard, clip = got["honest"].evidence.listening, got["honest"].clips[0]
            assert heard.error == diarization_error(said_turns(clip), [Turn(*t) for t in heard.turns], heard.seconds), "recomputed from what is kept"
            assert (validator.store.folder / "sound" / f"{hashlib.sha256(from_text(clip.audio_bytes)).hexdigest()}.wav").exists()
            assert list((validator.store.folder / "bodies").iterdir()), "what was punished is kept as it came"

            assert run_round(validator, "people").responses  # a round of videos beside it: their shelves are empty
            assert (validator.store.next_round(), next_audio_round(validator.store)) == (2, 2)
            assert rescore_audio(validator.store, 1, wallets["honest"].hotkey.ss58_address) == got["honest"].verdict
            again = recheck_audio(validator.store)
            assert again["reward"].to_list() == again["recomputed"].to_list() and len(again) == 2
            assert validator.store.averages("audio")[wallets["forger"].hotkey.ss58_address] == -1.5

            weights = set_weights(validator)
            assert weights.done, weights
            shown = {who[n.hotkey]: validator.chain.weights(chain.uid(wallets["validator"].hotkey.ss58_address)).get(n.uid, 0)
                     for n in chain.metagraph().neurons if n.hotkey in who}
            assert shown["honest"] > shown["forger"], "the videos give both the same, sound decides"

            videos, sounds = split_topics(validator, [f"topic {n}" for n in range(60)])
            assert len(videos) + len(sounds) == 60 and 15 < len(sounds) < 45 and not set(videos) & set(sounds)
            assert sounds == [f"topic {n}" for n in range(60) if task_of(wallets["validator"].hotkey.ss58_address, n + 3, 0.5) == "audio"]
        finally:
            validator.close()
            for name in ("honest", "forger"):
                stop_server(tmp_path / name)
