"The audio task: formulas against numbers made by hand, hostile sound, both wires, and rounds among real servers."
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
from hypothesis import given, settings
from hypothesis import strategies as st
from partner.environment import NoPartner, partner_python, run, running

from omega_lab.chain import Chain, Metagraph, Neuron, dev_wallet, open_wallet, sign_request
from omega_lab.chain.audios import audio_answer, audio_headers, audio_question
from omega_lab.chain.auth import Gate
from omega_lab.chain.localnet import LocalNet
from omega_lab.embedding import get_encoder
from omega_lab.embedding.diarizer import Turn, covered, diarization_error, get_diarizer, overlapped, speaking_times
from omega_lab.media import audio
from omega_lab.miner import Answerer, open_shelf, start_server, stop_server
from omega_lab.miner.audio import AudioAnswerer, open_sound_shelf, prepare_sound, sound_ranges
from omega_lab.miner.server import make_app
from omega_lab.miner.work import MinerParts, StakeQueue
from omega_lab.protocol import AUDIOS_PATH, AudioClip, AudioRequest, AudioResponse, WireError, parse_audio_response
from omega_lab.samples import fetch_archive, golden_path
from omega_lab.scoring.audio import (
    AudioClipEvidence,
    AudioEvidence,
    Listening,
    diarization_score,
    length_problem,
    quality_score,
    score_audio_response,
    signal_to_noise,
    speakers_score,
)
from omega_lab.scoring.video import LatentThresholds, SpotCheck
from omega_lab.settings import AudioSettings, Settings, load_settings
from omega_lab.sources import FolderSource
from omega_lab.store_audio import next_audio_round, rescore_audio
from omega_lab.validator import open_validator, recheck_audio, run_audio_round, run_round, set_weights, split_topics
from omega_lab.validator.ask import ask_all
from omega_lab.validator.audio import loudness_correlation, said_turns, task_of
from omega_lab.wav import RATE, WavError, decode_wav, encode_wav, from_text, to_text

TAO = 10**9
S, T = AudioSettings(), LatentThresholds()
HEARD = Listening(seconds=64, speech=48, speaking={"a": 32, "b": 16}, snr=20, error=0.25, said=50, overlap=1)


def seen(**changes):
    return AudioClipEvidence(**{"video_id": "youtube:aaaaaaaaaaa", "valid_id": True, "start_time": 0, "end_time": 64, "wav_seconds": 64.0,
                                "wav_sha256": "00"} | changes)


def judged(*clips, heard=HEARD, vectors=None):
    vectors = np.tile(np.float32([1, 0]), (len(clips), 1)) if vectors is None else vectors
    return score_audio_response(np.float32([1, 0]), vectors, AudioEvidence(seed=1, diarizer="d@1", clips=clips, picked=0, listening=heard), S, T)


# formulas


def test_a_score_made_by_hand():
    quality = 0.2 * 48 / 64 + 0.2 * (1 - 16 / 64) + 0.1 * 20 / 50 + 0.5 * 1
    assert quality_score(HEARD, S) == pytest.approx(quality)
    got = judged(seen(), seen(end_time=80, wav_seconds=80.0), vectors=np.float32([[3, 0], [3, 4]]))
    assert got.outcome == "scored" and got.reward == pytest.approx(0.6 * 0.75 + 0.1 * (64 + 80) / 320 + 0.2 * quality + 0.1 * (1 + 0.6) / 2)
    assert [c.query_relevance for c in got.clips] == pytest.approx([1, 0.6])


def test_speakers_and_noise():
    assert [speakers_score(n) for n in range(7)] == [0, 0, 1, 1 / 2, 1 / 3, 0, 0]
    loud, quiet = np.ones(400, np.float32), np.full(400, 0.1, np.float32)
    assert signal_to_noise(np.concatenate([quiet, loud]), RATE) == pytest.approx(10 * np.log10((0.505) / np.percentile([0.01, 1], 10)))
    assert signal_to_noise(np.concatenate([0 * quiet] * 3 + [loud]), RATE) == 100 and signal_to_noise(loud[:7], RATE) == 0


@pytest.mark.parametrize(("change", "outcome", "reward"), [
    ({"valid_id": False}, "punished", -5), ({"own_cosine": 0.95}, "punished", -5), ({"own_cosine": 0.951}, "scored", None),
    ({"check": SpotCheck(kind="media", audio_cosine=0.2)}, "punished", -5), ({"check": SpotCheck(kind="media", problem="fake")}, "punished", -5),
    ({"check": SpotCheck(kind="media", audio_cosine=0.99), "sound_correlation": 0.49}, "punished", -5),
    ({"check": SpotCheck(kind="media", problem="unverified")}, "unverified", None), ({"end_time": 44, "wav_seconds": 44.0}, "empty", 0.005),
    ({"end_time": 81, "wav_seconds": 81.0}, "empty", 0.005), ({"wav_seconds": 62.9}, "empty", 0.005), ({"wav_problem": "torn"}, "empty", 0.005),
    ({"known": "round 3"}, "empty", 0.005)])
def test_what_becomes_of_a_clip(change, outcome, reward):
    got = judged(seen(**change))
    assert got.outcome == outcome and (reward is None or got.reward == reward) and (got.reward is None) == (outcome == "unverified")
    assert got.clips[0].accepted == (outcome == "scored") and bool(got.clips[0].reason) == (outcome != "scored")


def test_a_forgery_in_a_clip_that_earns_nothing_is_punished_all_the_same():
    assert judged(seen(), seen(end_time=20, wav_seconds=20.0, own_cosine=0.1)).outcome == "punished"
    assert [bool(length_problem(n, S)) for n in (4.9, 45, 80, 80.1, 121)] == [True, False, False, True, True]


def test_silence_and_talk_all_at_once_are_no_diarization():
    assert diarization_score(HEARD.model_copy(update={"speech": 0, "said": 0, "error": 0}), S) == 0
    assert diarization_score(HEARD.model_copy(update={"overlap": 50, "error": 0}), S) == 0
    both = [Turn(0, 60, "a"), Turn(0, 60, "b")]
    assert diarization_error(both, [Turn(0, 30, "x")], 60) in (0, 1) and overlapped(both) == 60  # nothing to compare: the bound must catch it


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 10), st.sampled_from("abc")), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_turns_add_up(spans):
    turns = [Turn(start, start + length, who) for start, length, who in spans]
    times = speaking_times(turns)
    assert covered(t[:2] for t in turns) <= sum(times.values()) + 1e-9 and overlapped(turns) <= covered(t[:2] for t in turns) + 1e-9
    assert 0 <= diarization_error(turns, turns[::-1], 70) < 1e-9
    assert 0 <= diarization_error(turns, turns[:1], 70) <= 1


def test_the_hash_covers_what_can_change_a_score():
    base = Settings()
    changed = {name: base.model_copy(update={"audio": S.model_copy(update={name: value})}).audio_hash()
               for name, value in {"max_overlap": 0.2, "diarizer": "x", "timeout": 1.0, "max_response_bytes": 10**5, "suffix": "talk"}.items()}
    assert [name for name, value in changed.items() if value == base.audio_hash()] == ["timeout", "max_response_bytes"]


# sound


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_bytes_break_the_decoder(data):
    whole = encode_wav(np.zeros(100, np.float32))
    for attempt in (data, whole[:20] + data, whole[:44] + data, data + whole):
        try:
            assert decode_wav(attempt).dtype == np.float32
        except WavError as error:
            assert str(error)


def test_sound_is_its_own_fingerprint():
    talk = audio(fetch_archive("pyannote.audio", "data") / "conversation.wav")
    assert loudness_correlation(talk, 0.2 * np.roll(talk, 5000)) > 0.95 > 0.5 > loudness_correlation(talk[:10 * RATE], talk[15 * RATE:25 * RATE])
    assert loudness_correlation(talk, np.zeros_like(talk)) == 0 and loudness_correlation(talk[:100], talk) == 0


def test_ranges_do_not_overlap_and_fit():
    for seconds in (0, 44.9, 45, 80, 81, 124, 126, 300):
        ranges = sound_ranges(seconds)
        assert all(45 <= b - a <= 80 and b <= seconds for a, b in ranges) and all(x[1] <= y[0] for x, y in zip(ranges, ranges[1:]))
    assert len(sound_ranges(125)) == 2


# the wire


def spoken(**changes):
    return {"video_id": "youtube:aaaaaaaaaaa", "views": 1, "start_time": 0, "end_time": 60, "audio_emb": [1.0, 0.0], "audio_bytes": "UklGRg==",
            "diar_timestamps_start": [0.0], "diar_timestamps_end": [60.0], "diar_speakers": ["a"]} | changes


@pytest.mark.parametrize("change", [
    {"audio_emb": [1e9, 0]}, {"audio_emb": []}, {"audio_emb": None}, {"audio_bytes": 5}, {"audio_bytes": "A" * 3_600_000}, {"views": -1}, {"views": True},
    {"start_time": 1.5}, {"end_time": -1}, {"diar_speakers": ["a", "b"]}, {"diar_speakers": ["x" * 51]}, {"diar_timestamps_end": [61.5]},
    {"diar_timestamps_start": [60.0]}, {"diar_timestamps_start": [-0.1]}, {"extra": 1}, {"end_time": 3},
    {"diar_timestamps_start": [0.0] * 1001, "diar_timestamps_end": [1.0] * 1001, "diar_speakers": ["a"] * 1001}])
def test_hostile_clips_are_refused_at_the_edge(change):
    asked, body = AudioRequest(query="talk podcast", num_audios=1), {"encoder": "toy@1", "audio_metadata": [spoken(**change)]}
    assert parse_audio_response(json.dumps({"encoder": "toy@1", "audio_metadata": [spoken()]}).encode(), asked, "toy@1", 2)
    with pytest.raises(WireError):
        parse_audio_response(json.dumps(body).encode(), asked, "toy@1", 2)
    if "extra" not in change:
        with pytest.raises(WireError):
            audio_answer(json.dumps(body).encode(), "toy@1")


def test_more_clips_or_another_space_than_asked():
    asked, two = AudioRequest(query="talk", num_audios=1), json.dumps({"encoder": "toy@1", "audio_metadata": [spoken()] * 2}).encode()
    for encoder, dim, word in (("toy@1", 2, "asked were 1"), ("toy@2", 2, "toy@2")):
        with pytest.raises(WireError, match=word):
            parse_audio_response(two, asked, encoder, dim)


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
    clip = spoken(video_id="dQw4w9WgXcQ", audio_bytes=to_text(encode_wav(np.zeros(RATE, np.float32))))
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
