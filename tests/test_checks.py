"""What a validator looks at: which clips, whose footage, whose record; and that all of it is kept."""
import json
from dataclasses import replace
from datetime import datetime

import duckdb
import numpy as np
import pytest

from omega_lab.footage import fingerprint
from omega_lab.footage_index import FootageIndex
from omega_lab.footage_trials import make_copy
from omega_lab.lab.rescore import rescore, write_rounds
from omega_lab.novelty import NoveltyIndex, unit
from omega_lab.protocol import Clip, VideoRequest, WireError, parse
from omega_lab.samples import fetch_samples
from omega_lab.scoring.video import ClipEvidence, ClipVerdict, History, LatentThresholds, SpotCheck, Verdict, faults_of, no_answer, score_response
from omega_lab.settings import ScoringSettings, Settings
from omega_lab.sources import SourceError, canonical_id
from omega_lab.store import MIGRATIONS, ResponseRecord, RoundRecord, Store, stored_responses
from omega_lab.validation import choose_checks, commitment, draw_secret, response_seed, secret_seed, spot_check
from omega_lab.validator.round import KnownFootage, mark_entering, paid_once

DAY = datetime(2026, 1, 1)


def clip(video="youtube:aaaaaaaaaaa", start=0, end=30):
    return Clip(video_id=video, description="a cat on a wall", views=1, start_time=start, end_time=end, video_emb=[1.0, 0.0], audio_emb=None,
                description_emb=[1.0, 0.0])


# ---- which clips are checked

def test_the_choice_is_fixed_by_the_secret_and_the_secret_by_its_commitment():
    secret = draw_secret()
    assert len({draw_secret() for _ in range(50)}) == 50 and 0 <= secret_seed(secret) < 2**63
    chosen = [choose_checks(range(8), response_seed(secret_seed(secret), "5Miner"), 1.5) for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert commitment(secret) != commitment(draw_secret()) and str(secret_seed(secret)) not in commitment(secret)
    firsts = [choose_checks(range(8), response_seed(secret_seed(draw_secret()), "5Miner"), 1.0)[0][0] for _ in range(800)]
    assert min(np.bincount(firsts, minlength=8)) > 60, "every clip has the same chance"


def test_a_question_carries_the_commitment_and_an_older_one_reads_as_before():
    asked = VideoRequest(query="cats", num_videos=8, commitment=commitment("ab" * 32))
    assert parse(VideoRequest, asked.body()) == asked
    assert json.loads(VideoRequest(query="cats", num_videos=8).body()) == {"query": "cats", "num_videos": 8}
    with pytest.raises(WireError, match="commitment"):
        parse(VideoRequest, b'{"query": "cats", "num_videos": 8, "commitment": "yes"}')


class Nowhere:
    "An encoder that is only asked for captions, and a fetch that fails for some clips."
    dim, name, revision = 2, "toy", "1"

    def __init__(self, *blocked):
        self.blocked, self.asked = blocked, []

    def encode_text(self, texts):
        return np.float32([[1, 0]] * len(texts))

    def fetch(self, clip_id, start, end):
        self.asked.append(start)
        raise SourceError("blocked" if start in self.blocked else "gone", "not from here")


def test_one_honest_clip_does_not_vouch_for_those_that_nobody_can_fetch():
    """Under the subnet's policy the next clip is tried; under ours the drawn one counts."""
    clips, world = [clip(start=s, end=s + 30) for s in range(0, 240, 30)], Nowhere(*range(0, 210, 30))
    for seed in range(12):
        looks = spot_check(clips, range(8), world, world.fetch, 1.0, seed)
        assert len(looks) == 1
        position, = looks
        assert looks[position].check.problem == ("fake" if position == 7 else "unverified")
        tried = spot_check(clips, range(8), world, world.fetch, 1.0, seed, another=True)
        assert list(tried) == [7] and tried[7].check.problem == "fake"


def test_nothing_to_fetch_leaves_the_caption_to_look_at():
    world = Nowhere()
    looks = spot_check([clip()], [0], world, world.fetch, 0.0, 1)
    assert looks[0].check.kind == "description" and looks[0].check.description_cosine == pytest.approx(1) and not world.asked
    assert spot_check([clip(end=1)], [], world, world.fetch, 1.0, 1) == {}


# ---- whose footage

def a_record(hotkey, *ranges, refused=(), outcome="scored"):
    "An answer as it was judged by itself; `refused`: positions that fell to another rule."
    evidence = tuple(ClipEvidence(video_id=video, canonical_id=canonical_id(video), valid_id=True, start_time=start, end_time=end, unique_tokens=100,
                                  text_cosine=0.5, stuffed=i in refused, stuffed_confidence=0.7, really_bad=0, low_quality=0, chunks=1,
                                  index_novelty=0.9, check=SpotCheck(kind="media", problem="unverified", reason="blocked") if outcome == "unverified" else None)
                     for i, (video, start, end) in enumerate(ranges))
    vectors = unit(np.random.default_rng(sum(hotkey.encode())).normal(size=(len(ranges), 3, 32)))
    record = ResponseRecord(1, hotkey, "answered", "", 0.1, DAY, "", 0, (), evidence, vectors, no_answer(""), (False,) * len(ranges))
    return judged(record)


def judged(record):
    return replace(record, verdict=score_response(record.vectors[0, 0], record.vectors, record.evidence, 8))


SPELT = "url:https://www.youtube.com/watch?v=aaaaaaaaaaa"
REPORTED = ("youtube:aaaaaaaaaaa", 0, 60)


def test_the_same_seconds_are_paid_to_whoever_was_heard_first():
    first, second, third = paid_once([a_record("5First", REPORTED), a_record("5Second", (SPELT, 20, 50), ("youtube:aaaaaaaaaaa", 60, 90)),
                                      a_record("5Third", ("youtube:aaaaaaaaaaa", 70, 100))], judged)
    assert [c.accepted for c in first.verdict.clips] == [True]
    assert [c.accepted for c in second.verdict.clips] == [False, True], "a link is the same video, the next seconds are new"
    assert second.verdict.clips[0].reason == "shares 100% of its seconds with clip 0 of 5First in this round"
    assert third.evidence[0].known_overlap == pytest.approx(2 / 3) and third.evidence[0].known_overlap_id == "clip 1 of 5Second in this round"


@pytest.mark.parametrize("vandal", [a_record("5First", REPORTED, outcome="unverified"), a_record("5First", REPORTED, refused=[0]),
                                    replace(a_record("5First", REPORTED), verdict=Verdict(-5.0, "punished", "forged", (ClipVerdict(False, "forged"),)))])
def test_what_is_not_paid_takes_nothing_from_others(vandal):
    "A hotkey worth nothing cannot answer first, with what everybody will send, and leave nothing for them."
    honest = a_record("5Honest", REPORTED)
    _, after = paid_once([vandal, honest], judged)
    assert after is honest and after.verdict.reward > 0.005


def test_what_entered_is_known_in_later_rounds_and_not_before(tmp_path):
    write_rounds(tmp_path, {"honest": 3}, rounds=2, sample=3)
    with Store(tmp_path) as store:
        video, start, end, row = store.sql("select canonical_id, start_time, end_time, corpus_row from clips where corpus_row is not null limit 1").row(0)
        known = [KnownFootage(store, version, FootageIndex()).overlap(clip(video, start, end)) for version in (row, row + 1)]
    assert known[0] == (0.0, None) and known[1][0] == 1.0 and known[1][1].endswith(video)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    catalog, folder = fetch_samples("data"), tmp_path_factory.mktemp("films")
    return catalog / "cheetah.mp4", make_copy(catalog / "cheetah.mp4", ("mirrored", "letterbox"), 20, folder / "copy.mp4"), catalog / "arches.mp4"


def test_a_copy_under_another_name_is_dropped_by_its_frames(tmp_path, films):
    own, copy, other = films
    frames = FootageIndex(tmp_path / "frames")
    frames.add("1/5First/0/youtube:aaaaaaaaaaa", fingerprint(own, 0, 20))
    with Store(tmp_path) as store:
        known = KnownFootage(store, 0, FootageIndex(tmp_path / "frames"))
        share, whose, tool = known.copied(copy, clip("youtube:bbbbbbbbbbb", 0, 20))
        assert share > ScoringSettings().max_copied and whose == "1/5First/0/youtube:aaaaaaaaaaa" and tool.startswith("frames@")
        assert known.copied(other, clip("youtube:ccccccccccc", 0, 5))[0] <= ScoringSettings().max_copied
        assert set(known.prints) == {("youtube:bbbbbbbbbbb", 0, 20), ("youtube:ccccccccccc", 0, 5)}
    evidence = ClipEvidence(video_id="youtube:bbbbbbbbbbb", valid_id=True, start_time=0, end_time=20, unique_tokens=100, text_cosine=0.5, stuffed=False,
                            stuffed_confidence=0.9, really_bad=0, low_quality=0, chunks=1, index_novelty=0.9, nearest_id="x", copied=share, copy_of=whose)
    vectors = unit(np.random.default_rng(0).normal(size=(1, 3, 8)))
    assert "frames are those of 1/5First" in score_response(vectors[0, 0], vectors, (evidence,), 8).clips[0].reason
    assert score_response(vectors[0, 0], vectors, (evidence,), 8, ScoringSettings(profile="sn24")).outcome == "scored"


def test_two_that_enter_in_one_round_share_no_seconds():
    vectors = unit(np.random.default_rng(1).normal(size=(2, 1, 3, 8)))
    def answered(k, start):
        e = ClipEvidence(video_id="youtube:aaaaaaaaaaa", valid_id=True, start_time=start, end_time=start + 60, unique_tokens=1, text_cosine=0, stuffed=False,
                         stuffed_confidence=1, really_bad=0, low_quality=0, chunks=1, index_novelty=1)
        verdict = Verdict(0.1, "scored", "", (ClipVerdict(True),))
        return ResponseRecord(k, f"5M{k}", "answered", "", 1.0, DAY, "", 1, (clip(),), (e,), vectors[k], verdict, (False,))
    index = NoveltyIndex(None, 8)
    assert [r.entered for r in mark_entering([answered(0, 0), answered(1, 10)], index, 0, 0.1, 0.5)] == [(True,), (False,)]
    assert [r.entered for r in mark_entering([answered(0, 0), answered(1, 50)], index, 0, 0.1, 0.5)] == [(True,), (True,)]


# ---- records

def test_a_record_counts_what_was_looked_at(tmp_path):
    write_rounds(tmp_path, {"honest": 4, "forger": 1, "caption forger": 1}, rounds=30, sample=6, seed=2)
    with Store(tmp_path) as store:
        hotkeys = store.sql("select distinct hotkey from responses")["hotkey"].to_list()
        whole, short = store.histories([*hotkeys, "5New"], 100), store.histories(hotkeys, 5)
        for hotkey in hotkeys:
            rows = store.sql("select outcome, looked_at, unverified from responses where hotkey = ? and status = 'answered'", hotkey)
            assert (whole[hotkey].answers, whole[hotkey].punished) == (len(rows), (rows["outcome"] == "punished").sum())
            assert (whole[hotkey].looked_at, whole[hotkey].unverified) == (rows["looked_at"].sum(), rows["unverified"].sum())
            assert short[hotkey].answers == 5
        assert whole["5New"] == History(usual=whole[hotkeys[0]].usual, typical=whole[hotkeys[0]].typical)
        forger = next(h for h in hotkeys if "Captionforger" in h.replace(" ", "") or "CaptionForger" in h)
        assert whole[forger].unverified > 5
        said = store.sql("select reason from responses where hotkey = ? and outcome = 'no answer'", forger)["reason"]
        assert len(said) and said.str.contains("not verifiable too often").all()
        assert rescore(store).same


def test_who_cannot_be_verified_too_often_counts_as_not_answering_under_our_rules_only():
    lost = SpotCheck(kind="media", problem="unverified", reason="blocked", description_cosine=1.0)
    evidence = ClipEvidence(video_id="youtube:bbbbbbbbbbb", valid_id=True, start_time=0, end_time=20, unique_tokens=100, text_cosine=0.5, stuffed=False,
                            stuffed_confidence=0.9, really_bad=0, low_quality=0, chunks=1, index_novelty=0.9, nearest_id="x")
    vectors, bad = unit(np.random.default_rng(0).normal(size=(1, 3, 8))), History(answers=30, looked_at=30, unverified=10)
    def judged(history, **changes):
        return score_response(vectors[0, 0], vectors, (evidence.model_copy(update=changes),), 8, history=history)
    assert judged(History(answers=30, looked_at=30, unverified=1)).outcome == "scored"
    assert judged(bad).outcome == judged(bad, check=lost).outcome == "no answer" and judged(bad).reward == 0.005
    assert not judged(bad).clips[0].accepted
    assert judged(replace_usual(bad, 0.4), check=lost).outcome == "unverified", "when it happens to all it is nobody's fault"
    forged = lost.model_copy(update={"problem": "", "video_cosine": 0.1})
    assert judged(bad, check=forged).outcome == "punished"
    assert score_response(vectors[0, 0], vectors, (evidence,), 8, ScoringSettings(profile="sn24"), history=bad).outcome == "scored"


def replace_usual(history, usual):
    return history.model_copy(update={"usual": usual})


def test_every_decision_has_a_row_that_says_why(tmp_path):
    """A refused clip and an answer without its reward: some number is beyond its bound. An accepted clip: none is."""
    population = {"honest": 3, "stuffer": 1, "duplicator": 2, "recutter": 1, "forger": 2, "caption forger": 1}
    write_rounds(tmp_path, population, rounds=16, sample=8, seed=4)
    with Store(tmp_path) as store:
        rows = store.sql("select round, hotkey, position, what, holds from checks")
        beyond = {(r, h, p): {w for w in what} for r, h, p, what in rows.filter(~rows["holds"]).group_by("round", "hotkey", "position").agg("what").iter_rows()}
        clips = store.sql("select round, hotkey, position, accepted, c.reason, outcome from clips c join responses using (round, hotkey)").rows()
        kinds = set()
        for number, hotkey, position, accepted, reason, outcome in clips:
            own = beyond.get((number, hotkey, position), set())
            assert not (accepted and own), (own, reason)
            if outcome == "scored" and not accepted:
                assert own, reason
                kinds |= own
        assert "shared seconds" in kinds, kinds
        answers = store.sql("select round, hotkey, outcome, reason from responses where status = 'answered' and outcome <> 'scored'").rows()
        assert {o for *_, o, _ in answers} >= {"punished", "unverified", "no answer"}
        for number, hotkey, outcome, reason in answers:
            found = set().union(*(what for (r, h, _), what in beyond.items() if (r, h) == (number, hotkey)))
            assert found, (outcome, reason)
            assert "record" in found or "too often" not in reason


def test_a_clip_too_like_a_later_one_has_its_cosine_in_the_rows(tmp_path):
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(4, 3, 16))).astype(np.float32)
    vectors[0, 0], vectors[2, 0] = vectors[1, 0], unit(vectors[3, 0] + 0.12 * vectors[0, 0])
    evidence = tuple(ClipEvidence(video_id=f"youtube:{c * 11}", valid_id=True, start_time=0, end_time=2 if c == "b" else 30, unique_tokens=9, text_cosine=0.1,
                                  stuffed=False, stuffed_confidence=0.9, really_bad=0, low_quality=0, chunks=1, index_novelty=1) for c in "abcd")
    verdict = score_response(vectors[0, 0], vectors, evidence, 8)
    clips = tuple(clip(e.video_id, e.start_time, e.end_time) for e in evidence)
    answer = ResponseRecord(1, "5A", "answered", "", 1.0, DAY, "", 1, clips, evidence, vectors, verdict, tuple(c.accepted for c in verdict.clips))
    with Store(tmp_path) as store:
        store.commit_round(RoundRecord(1, "cats", vectors[0, 0], 1, DAY, DAY, 1, "toy@1", LatentThresholds(), Settings(), 0, (answer,)))
        rows = store.sql("select position, number, holds from checks where what = 'likeness in the answer' order by position").rows()
    assert [c.reason[:14] for c in verdict.clips] == ["", "2 s long, allo", "near-duplicate", ""]
    assert [(p, holds) for p, _, holds in rows] == [(0, True), (2, False)], "a clip that was refused before is no likeness"
    assert rows[1][1] == pytest.approx(float(vectors[2, 0] @ vectors[3, 0]), abs=1e-6)


# ---- stores of before

@pytest.mark.parametrize("edition, cheat", [(0, "duplicator"), (1, "nudger")])
def test_an_older_store_is_migrated_and_its_verdicts_stay(tmp_path, edition, cheat):
    """Rounds of before were judged by rules that did not look at shared seconds, or at claims: they are judged again as they were."""
    write_rounds(tmp_path, {cheat: 2}, rounds=6, sample=2)
    older = faults_of("lab", edition)
    with Store(tmp_path) as store:
        assert rescore(store).same
        then = [(r.round, r.hotkey, replace(r, faults=older).verdict()) for r in stored_responses(store)]
        assert any(v.reward != r.reward for (_, _, v), r in zip(then, stored_responses(store)))
    with duckdb.connect(str(tmp_path / "scores.duckdb")) as con:
        con.execute("update rounds set rules = ?", [edition])
        for number, hotkey, verdict in then:
            con.execute("update responses set reward = ?, outcome = ? where round = ? and hotkey = ?", [verdict.reward, verdict.outcome, number, hotkey])
    with Store(tmp_path) as store:
        assert rescore(store).responses["same"].all()


def test_a_store_of_the_first_schema_opens(tmp_path):
    with duckdb.connect(str(tmp_path / "scores.duckdb")) as con:
        con.execute("create table migrations(number integer primary key)")
        for number, statements in enumerate(MIGRATIONS[:3]):
            for statement in statements:
                con.execute(statement)
            con.execute("insert into migrations values (?)", [number])
        con.execute("""insert into rounds values (1, 'cats', 7, now()::timestamp, now()::timestamp, 5, 8, 'toy@1', '{}', 'abc', '{}', 0, 'own')""")
        con.execute("""insert into responses (round, hotkey, uid, status, detail, seconds, received_at, body_sha256, seed, outcome, reason, average)
            values (1, '5A', 1, 'refused', 'no', 1, now()::timestamp, '', 3, 'no answer', 'no', 0)""")
    with Store(tmp_path) as store:
        assert store.sql("select settings_hash, encoder, index_version from responses").row(0) == ("abc", "toy@1", 0)
        assert len(store.sql("select * from checks")) == 0 and store.histories(["5A"], 10)["5A"] == History()


def test_records_hold_the_history_they_were_judged_with(tmp_path):
    write_rounds(tmp_path, {"honest": 3}, rounds=4, sample=3)
    with Store(tmp_path) as store:
        kept = store.sql("select round, history, settings_hash, encoder, seed from responses order by round")
    assert [json.loads(h)["answers"] for h in kept["history"]] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert (kept["settings_hash"] == Settings().score_hash()).all() and (kept["encoder"] == "synthetic@1").all()
    assert replace(ResponseRecord(1, "5", "answered", "", 1.0, DAY, "", 1, (), (), np.zeros((0, 3, 2)), Verdict(0.1, "empty", "", ()), ())).looked_at == 0
