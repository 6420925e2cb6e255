"The audio task: formulas against numbers made by hand, sound that is none, and hostile messages."
import json
import struct
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_lab.chain.audios import audio_answer
from omega_lab.embedding.diarizer import Turn, covered, diarization_error, overlapped, speaking_times
from omega_lab.media import audio
from omega_lab.miner.audio import sound_ranges
from omega_lab.protocol import AudioClip, AudioRequest, WireError, parse_audio_response
from omega_lab.samples import fetch_archive
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
from omega_lab.settings import AudioSettings, ChecksSettings, Settings
from omega_lab.sources import SourceError
from omega_lab.store import Store
from omega_lab.store_audio import AudioResponseRecord, AudioRoundRecord, commit_audio_round, heard_before
from omega_lab.validator.audio import AudioExaminer, Sound, first_look, loudness_correlation
from omega_lab.wav import RATE, WavError, decode_wav, encode_wav, to_text

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


# what was looked at


def offered(video, start=0, end=60):
    return AudioClip(video_id=video, views=0, start_time=start, end_time=end, audio_emb=[1.0, 0.0], audio_bytes="", diar_timestamps_start=[],
                     diar_timestamps_end=[], diar_speakers=[])


def sounds(*lengths):
    return [Sound(bytes([n]), np.ones(length * RATE, np.float32)) for n, length in enumerate(lengths)]


def test_one_recording_under_two_names_is_paid_once():
    known = heard_before([("youtube:aaaaaaaaaaa", 0, 60, "f00d", "round 1")])
    clips = [offered("url:https://youtu.be/aaaaaaaaaaa?t=5"), offered("youtube:bbbbbbbbbbb"), offered("url:https://www.youtube.com/watch?v=bbbbbbbbbbb&x=1")]
    assert [look.known for look in first_look(clips, sounds(60, 60, 60), known, S)] == ["round 1", "", "clip 1 of this answer"]


def test_what_earns_nothing_stands_in_nobodys_way():
    clips = [offered("youtube:aaaaaaaaaaa", 0, 20), offered("youtube:aaaaaaaaaaa", 0, 60), offered("nonsense")]
    assert [look.known for look in first_look(clips, sounds(20, 60, 60), heard_before([]), S)] == ["", "", ""]


class Ear:
    "An encoder and a diarizer that hear nothing: the fetch decides."
    dim, name, revision = 2, "toy", "1"

    def encode_audio(self, *_):
        return np.float32([1, 0])

    def diarize(self, *_):
        return ()


@pytest.mark.parametrize(("policy", "tried"), [("protocol", 3), ("always-one", 1), ("economic", 1)])
def test_one_clip_that_can_be_fetched_vouches_for_no_other(policy, tried):
    asked = []

    def blocked(clip_id, start, end):
        asked.append(clip_id)
        raise SourceError("blocked", "not from here")
    minute = to_text(encode_wav(np.ones(60 * RATE, np.float32)))
    clips = [offered(f"url:https://host{n}.example/a").model_copy(update={"audio_bytes": minute}) for n in range(3)]
    examiner = AudioExaminer(Ear(), Ear(), S, ChecksSettings(policy=policy, fetch_probability=1.0), heard_before([]))
    _, evidence = examiner.examine(clips, blocked, 1)
    looked, = (c.check for c in evidence.clips if c.check)
    assert len(asked) == tried and looked.problem == "unverified" and f"url:https://{looked.source}/a" == asked[-1]


def test_every_number_of_an_audio_answer_stands_beside_its_bound(tmp_path):
    lost = SpotCheck(kind="media", problem="unverified", reason="blocked", source="youtube")
    looks = (seen(own_cosine=0.99, check=lost), seen(end_time=44, wav_seconds=44.0), seen(wav_problem="torn", wav_seconds=0.0), seen(known="round 3"))
    clips = tuple(offered(look.video_id, look.start_time, look.end_time) for look in looks)
    evidence = AudioEvidence(seed=1, diarizer="d@1", clips=looks, picked=0, listening=HEARD)
    vectors, day = np.tile(np.float32([1, 0]), (4, 1)), datetime(2026, 1, 1)
    answer = AudioResponseRecord(1, "5A", "answered", "", 1.0, day, "", clips, evidence, vectors, score_audio_response(vectors[0], vectors, evidence, S, T))
    with Store(tmp_path) as store:
        commit_audio_round(store, AudioRoundRecord(1, "t", "t podcast", vectors[0], 1, day, day, 1, "toy@1", "d@1", T, Settings(), (answer,)))
        beyond = store.sql("select position, what, looked_at, number from audio_checks where not holds order by position").rows()
        kinds = set(store.sql("select what from audio_checks where position = 0")["what"])
    assert answer.verdict.outcome == "unverified" and answer.verdict.reward is None
    assert beyond == [(0, "fetch", "youtube", 0.0), (1, "wanted length", looks[1].video_id, 44.0), (2, "sound", "00", 0.0), (3, "heard before", "round 3", 1.0)]
    assert kinds == {"id", "length", "wanted length", "sound", "length of sound", "heard before", "own embedding", "fetch", "overlap said"}


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


def riff(header, *chunks):
    "A WAV file of a format chunk and others, (name, bytes) or (name, bytes, promised)."
    packed = [name + struct.pack("<I", promised[0] if promised else len(data)) + data for name, data, *promised in [(b"fmt ", header), *chunks]]
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, packed))) + b"WAVE" + b"".join(packed)


def header(tag=1, channels=1, rate=RATE, bits=16, more=b""):
    return struct.pack("<HHIIHH", tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits) + more


PCM = encode_wav(np.linspace(-1, 1, 600, dtype=np.float32))[44:]
EXTENSIBLE = struct.pack("<HHI", 22, 16, 4)
SUBFORMAT = bytes.fromhex("00001000800000aa00389b71")


@pytest.mark.parametrize("data", [
    riff(header(), (b"data", PCM)), riff(header(0xFFFE, more=EXTENSIBLE + b"\x01\0\0\0" + SUBFORMAT), (b"data", PCM)),
    riff(header(), (b"LIST", b"INFO"), (b"data", PCM), (b"LIST", b"more")), riff(header(), (b"data", PCM)) + bytes(50)])
def test_every_reader_hears_the_same_in_a_plain_file(data, tmp_path):
    assert decode_wav(data) == pytest.approx(np.frombuffer(PCM, "<i2") / 32767)
    (tmp_path / "sound.wav").write_bytes(data)
    assert audio(tmp_path / "sound.wav")[:600] == pytest.approx(decode_wav(data), abs=1e-3), "as FFmpeg reads it"


@pytest.mark.parametrize(("data", "said"), [
    (riff(header(bits=8), (b"data", PCM)), "8 bits"), (riff(header(bits=24), (b"data", PCM)), "24 bits"),
    (riff(header(3, bits=32), (b"data", PCM)), "format 0x0003"), (riff(header(channels=6), (b"data", PCM)), "6 channel"),
    (riff(header(0xFFFE, more=EXTENSIBLE + b"\x03\0\0\0" + SUBFORMAT), (b"data", PCM)), "format 0xfffe"),
    (riff(header(channels=2), (b"data", PCM)), "2 channel"), (riff(header(bits=12), (b"data", PCM)), "12 bits"), (riff(header(rate=0), (b"data", PCM)), "0 Hz"),
    (riff(header(), (b"data", PCM, 0xFFFFFFFE)), "1200 of 4294967294"), (riff(header(), (b"data", PCM[:-1])), "1199 of 1199"),
    (riff(header(), (b"data", b"")), "0 of 0"), (riff(header()), "no chunk data"), (riff(header(), (b"data", PCM), (b"data", PCM)), "two chunks data"),
    (riff(header(), (b"fmt ", header(rate=8000)), (b"data", PCM)), "two chunks fmt"), (b"RIFX" + riff(header(), (b"data", PCM))[4:], "RIFX"),
    (riff(b"\x01\0", (b"data", PCM)), "2 of 16 bytes")])
def test_other_files_are_refused_by_their_kind(data, said):
    with pytest.raises(WavError, match=said):
        decode_wav(data)


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
