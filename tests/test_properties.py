"""What must hold for every answer, whatever is in it: drawn by the hundred."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_lab.novelty import unit
from omega_lab.scoring.policy import caught, ceiling, checks_wanted, forging_value, least_checks, leaving, loss
from omega_lab.scoring.video import (
    GRANTED,
    OVERCLAIM,
    PROFILES,
    ClipEvidence,
    History,
    LatentThresholds,
    SpotCheck,
    all_cosines,
    chance_of,
    media_cosines,
    overlapping,
    score_response,
    shared_seconds,
    unverifiable,
)
from omega_lab.settings import ScoringSettings, Settings

PLAIN = settings(max_examples=50, deadline=None)
S, T = ScoringSettings(), LatentThresholds()
share, finite = st.floats(0, 1), st.floats(-1, 1)
checks = st.none() | st.builds(SpotCheck, kind=st.sampled_from(["media", "description"]), description_cosine=st.none() | finite,
                               video_cosine=st.none() | finite, audio_cosine=st.none() | finite, problem=st.sampled_from(["", "", "fake", "unverified"]))


@st.composite
def clips(draw, good=False):
    """Evidence of a clip: anything, or (`good`) of one that no filter drops."""
    start, seconds = draw(st.integers(0, 10**6)), draw(st.integers(5, 120) if good else st.integers(-10, 300))
    return ClipEvidence(
        video_id=f"youtube:{draw(st.integers(0, 10**9)):011d}", valid_id=True if good else draw(st.booleans()), start_time=start, end_time=start + seconds,
        unique_tokens=draw(st.integers(0, 2000)), supported_tokens=draw(st.none() | st.integers(0, 2000)), text_cosine=draw(finite),
        stuffed=False if good else draw(st.booleans()), stuffed_confidence=draw(st.floats(0.5, 1)), really_bad=0 if good else draw(st.integers(0, 8)),
        low_quality=0 if good else draw(st.integers(0, 20)), chunks=2 if good else draw(st.integers(0, 60)),
        index_novelty=1.0 if good else draw(st.floats(0, 2)), known_overlap=0.0 if good else draw(share), copied=None if good else draw(st.none() | share),
        check=None if good else draw(checks))


def vectors_of(seed, n, dim=64):
    return unit(np.random.default_rng(seed).normal(size=(n, 3, dim)))


@st.composite
def answers(draw, good=False, least=0):
    evidence = draw(st.lists(clips(good), min_size=least, max_size=8, unique_by=lambda c: c.video_id))
    vectors = vectors_of(draw(st.integers(0, 10**6)), len(evidence))
    if not good:
        for i in range(len(evidence)):  # silent clips, and vectors of nothing
            vectors[i] *= draw(st.sampled_from([[[1], [1], [1]], [[1], [0], [1]], [[0], [0], [0]]]))
    return draw(st.sampled_from([vectors_of(7, 1)[0, 0], np.zeros(64, np.float32)])) if not good else vectors_of(7, 1)[0, 0], vectors, tuple(evidence)


@PLAIN
@given(answers(), st.sampled_from(sorted(PROFILES)), st.integers(0, 30), st.integers(0, 30))
def test_no_answer_leads_to_what_is_no_number(answer, profile, looked_at, unverified):
    query, vectors, evidence = answer
    history = History(looked_at=looked_at, unverified=min(unverified, looked_at))
    verdict = score_response(query, vectors, evidence, 8, ScoringSettings(profile=profile), T, history=history)
    assert len(verdict.clips) == len(evidence)
    assert (verdict.reward is None) == (verdict.outcome == "unverified")
    if verdict.reward is not None:
        assert S.punishment <= verdict.reward <= 8 * ceiling(S, 8)
    assert all(math.isfinite(x) for c in verdict.clips for x in (c.novelty, c.description_relevance, c.query_relevance) if x is not None)
    assert all(c.accepted or c.reason for c in verdict.clips) and (verdict.outcome == "scored") == any(c.accepted for c in verdict.clips)


@PLAIN
@given(answers(good=True, least=1), st.randoms(use_true_random=False))
def test_the_order_of_clips_does_not_matter(answer, random):
    """But where the protocol says so: of two that look alike the earlier is dropped, and novelty looks at later clips."""
    query, vectors, evidence = answer
    order = random.sample(range(len(evidence)), len(evidence))
    first = score_response(query, vectors, evidence, 8)
    other = score_response(query, vectors[order], tuple(evidence[i] for i in order), 8)
    assert other.reward == first.reward
    for place, i in enumerate(order):
        assert other.clips[place].description_relevance == first.clips[i].description_relevance
        assert other.clips[place].query_relevance == first.clips[i].query_relevance


@PLAIN
@given(answers(good=True, least=2), st.integers(0, 7), clips(), st.integers(0, 10**6))
def test_a_refused_clip_changes_no_other_clips_score(answer, place, other, seed):
    query, vectors, evidence = answer
    place %= len(evidence)
    refused = {"valid_id": True, "check": None, "stuffed": False, "really_bad": 0, "low_quality": 0, "known_overlap": 0.9}
    def judged(clip, own):
        changed = vectors.copy()
        changed[place] = own
        return score_response(query, changed, (*evidence[:place], clip, *evidence[place + 1:]), 8)
    one = judged(evidence[place].model_copy(update=refused), vectors[place])
    two = judged(other.model_copy(update=refused | {"video_id": "youtube:zzzzzzzzzzz"}), vectors_of(seed, 1)[0])
    assert not one.clips[place].accepted and not two.clips[place].accepted
    assert one.reward == two.reward
    assert [c for i, c in enumerate(one.clips) if i != place] == [c for i, c in enumerate(two.clips) if i != place]


@PLAIN
@given(answers(good=True, least=1), st.integers(0, 7), st.integers(1, 400), share)
def test_better_is_never_worth_less(answer, place, tokens, similarity):
    query, vectors, evidence = answer
    place %= len(evidence)
    clip = evidence[place].model_copy(update={"supported_tokens": None, "text_cosine": abs(evidence[place].text_cosine)})
    relevant = all_cosines(vectors, query).description[place] @ [S.video_share, 1 - S.video_share] >= 0
    def reward(changed):
        return score_response(query, vectors, (*evidence[:place], changed, *evidence[place + 1:]), 8).reward
    base = reward(clip)
    assert reward(clip.model_copy(update={"text_cosine": min(1.0, clip.text_cosine + similarity)})) >= base
    longer = reward(clip.model_copy(update={"unique_tokens": clip.unique_tokens + tokens}))
    assert longer >= base if relevant else longer <= base, "a longer caption gives its relevance more weight, for better or worse"
    unsupported = clip.model_copy(update={"supported_tokens": clip.unique_tokens, "unique_tokens": clip.unique_tokens + tokens})
    assert reward(unsupported) == base, "words that nothing supports count for nothing"


@PLAIN
@given(st.tuples(st.integers(0, 500), st.integers(1, 200)), st.tuples(st.integers(0, 500), st.integers(1, 200)), st.integers(0, 100))
def test_shared_seconds_are_a_share_and_nobody_is_first(a, b, shift):
    a, b = (a[0], sum(a)), (b[0], sum(b))
    assert 0 <= shared_seconds(a, b) == shared_seconds(b, a) <= 1 == shared_seconds(a, a)
    moved = [(x + shift, y + shift) for x, y in (a, b)]
    assert shared_seconds(*moved) == shared_seconds(a, b)


@PLAIN
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 60)), max_size=8), st.floats(0.05, 1))
def test_what_is_left_of_a_response_shares_no_footage(spans, limit):
    evidence = tuple(ClipEvidence(video_id=f"youtube:{video:011d}", valid_id=True, start_time=start, end_time=start + seconds, unique_tokens=1,
                                  text_cosine=0, stuffed=False, stuffed_confidence=1, really_bad=0, low_quality=0, chunks=1, index_novelty=1)
                     for video, start, seconds in spans)
    dropped = {i for i, _, _ in overlapping(list(range(len(evidence))), evidence, limit)}
    left = [c for i, c in enumerate(evidence) if i not in dropped]
    for k, c in enumerate(left):
        assert all(c.video_id != d.video_id or shared_seconds((c.start_time, c.end_time), (d.start_time, d.end_time)) <= limit for d in left[k + 1:])


# ---- what is taken off

def looked_at(evidence, fresh, query, drawn):
    """The same evidence after a fetch that gave the vectors `fresh` float32[3, dim]."""
    recomputed = (*media_cosines(fresh[None])[0].tolist(), *media_cosines(fresh[None], query)[0].tolist())
    return evidence.model_copy(update={"check": SpotCheck(kind="media", description_cosine=1.0, video_cosine=1.0, audio_cosine=1.0,
                                                          recomputed=recomputed, drawn=drawn)})


@PLAIN
@given(answers(good=True, least=1), st.integers(0, 10**6), st.floats(0, 0.33), st.floats(0.01, 1))
def test_turning_vectors_towards_the_topic_loses_what_it_brings(answer, seed, turn, drawn):
    """Drawn with that chance, a clip that claims too much loses on average twice its gain; one that does not loses nothing."""
    query, vectors, evidence = answer
    evidence = tuple(e.model_copy(update={"text_cosine": 1.0}) for e in evidence)  # rewards above the least
    true = unit(vectors + 0.3 * query)
    sent = true.copy()
    sent[0, :2] = unit(true[0, :2] + turn * query)
    honest = score_response(query, true, evidence, 8).reward
    unseen = score_response(query, sent, evidence, 8).reward
    seen = score_response(query, sent, (looked_at(evidence[0], true[0], query, drawn), *evidence[1:]), 8)
    gain = unseen - honest
    assert unseen - seen.reward == pytest.approx(min(OVERCLAIM * max(0, gain) / drawn, unseen - S.punishment), abs=1e-5 / drawn)
    assert drawn * seen.reward + (1 - drawn) * unseen <= honest + 1e-5 or seen.reward == S.punishment
    assert bool(seen.reason) == (unseen - seen.reward >= 0.001)


@PLAIN
@given(answers(good=True, least=2), st.integers(0, 10**6))
def test_a_refused_clips_media_take_nothing_off(answer, seed):
    query, vectors, evidence = answer
    refused = evidence[0].model_copy(update={"known_overlap": 0.9})
    base = score_response(query, vectors, (refused, *evidence[1:]), 8)
    seen = score_response(query, vectors, (looked_at(refused, vectors_of(seed, 1)[0], query, 0.1), *evidence[1:]), 8)
    assert seen.reward == base.reward and seen.clips == base.clips


@PLAIN
@given(answers(good=True, least=1), st.integers(0, 200), st.integers(0, 200), st.floats(0, 0.2))
def test_bad_luck_beyond_the_usual_is_never_worth_more(answer, looked, failed, usual):
    query, vectors, evidence = answer
    failed = min(failed, looked)
    worse, better = (History(looked_at=looked, unverified=n, usual=usual) for n in (failed, max(0, failed - 1)))
    assert unverifiable(worse) >= unverifiable(better) >= 0 == unverifiable(History(looked_at=looked, unverified=int(usual * looked), usual=usual))
    assert unverifiable(worse) <= failed / (looked + GRANTED)
    rewards = [score_response(query, vectors, evidence, 8, history=h).reward for h in (History(), better, worse)]
    assert rewards[0] >= rewards[1] >= rewards[2] >= S.minimum
    as_today = [score_response(query, vectors, evidence, 8, ScoringSettings(profile="sn24"), history=h).reward for h in (History(), worse)]
    assert as_today[0] == as_today[1]


@PLAIN
@given(answers(good=True, least=1), st.integers(0, 7), st.integers(0, 2), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_what_is_no_number_is_refused_by_name(answer, clip, part, bad, in_query):
    query, vectors, evidence = (answer[0].copy(), answer[1].copy(), answer[2])
    clip %= len(evidence)
    (query if in_query else vectors[clip, part])[3] = bad
    with pytest.raises(ValueError, match="the query" if in_query else f"clip {clip} hold"):
        score_response(query, vectors, evidence, 8)


@PLAIN
@given(answers(good=True, least=1), st.sampled_from([1e-30, 1e-3, 7.0, 1e30]), st.sampled_from([np.float32, np.float64]))
def test_the_length_of_vectors_does_not_matter(answer, length, kind):
    query, vectors, evidence = answer
    scaled = score_response((query * np.float32(length)).astype(kind), (vectors * np.float32(length)).astype(kind), evidence, 8)
    assert scaled.reward == pytest.approx(score_response(query, vectors, evidence, 8).reward, abs=1e-6)


@pytest.mark.parametrize(("cut", "said"), [
    (lambda q, v: (q, v[:2]), "3 clips"), (lambda q, v: (q[:32], v), "of 32 numbers"), (lambda q, v: (q, v[:, :2]), "shape")])
def test_parts_that_do_not_belong_together_are_refused(cut, said):
    clip = ClipEvidence(video_id="", valid_id=True, start_time=0, end_time=9, unique_tokens=1, text_cosine=0, stuffed=False, stuffed_confidence=1,
                        really_bad=0, low_quality=0, chunks=1, index_novelty=1)
    with pytest.raises(ValueError, match=said):
        score_response(*cut(vectors_of(1, 1)[0, 0], vectors_of(2, 3)), (clip,) * 3, 8)
    with pytest.raises(ValueError, match="num_videos is 0"):
        score_response(vectors_of(1, 1)[0, 0], vectors_of(2, 3), (clip,) * 3, 0)


# ---- the policy

@PLAIN
@given(st.integers(1, 64), st.floats(0, 64), st.data())
def test_being_caught_is_a_probability_that_grows(n, checked, data):
    forged = data.draw(st.integers(1, n))
    p = caught(n, forged, checked)
    assert -1e-12 <= p <= 1 + 1e-12
    assert caught(n, forged, min(n, checked + 0.5)) >= p - 1e-12 and caught(n, min(n, forged + 1), checked) >= p - 1e-12


@PLAIN
@given(st.integers(1, 24), st.floats(0.001, 2), st.floats(0.01, 20))
def test_the_least_number_of_checks_makes_forging_a_loss_and_one_less_does_not(n, gain, cost):
    least = least_checks(n, gain, cost)
    values = [forging_value(n, k, least, gain, cost) for k in range(1, n + 1)]
    assert 0 < least <= n and max(values) <= 1e-9
    assert max(forging_value(n, k, least - min(0.01, least / 2), gain, cost) for k in range(1, n + 1)) > 0
    assert least_checks(n, gain, cost * 2) <= least <= least_checks(n, gain * 2, cost) + 1e-9


@PLAIN
@given(st.floats(-5, 2), st.floats(0, 2), st.floats(-10, -0.1), st.floats(0.05, 1))
def test_a_punishment_costs_something_and_never_more_than_without_the_floor(average, honest, punishment, alpha):
    cost = loss(average, honest, punishment, alpha)
    assert -1e-9 <= cost <= (honest - punishment) + 1e-6


@PLAIN
@given(st.floats(0, 2), st.floats(0.01, 2), st.floats(0.05, 1), st.floats(0, 0.5))
def test_leaving_costs_the_standing_and_nothing_else(average, honest, alpha, more):
    lost, path, fresh = 0.0, average, 0.0
    for _ in range(600):
        path, fresh = alpha * honest + (1 - alpha) * path, alpha * honest + (1 - alpha) * fresh
        lost += path - fresh
    cost = leaving(average, honest, alpha)
    newcomer = honest  # it is not asked again in the round of its punishment
    assert cost == pytest.approx(lost + newcomer, rel=1e-6) or alpha < 0.06
    assert leaving(average + more, honest, alpha) >= cost and leaving(-honest * 10 / (1 - alpha) if alpha < 1 else -1.0, honest, alpha) >= 0


@PLAIN
@given(st.integers(0, 12), st.builds(History, answers=st.integers(0, 200), punished=st.integers(0, 3), average=st.floats(-5, 2),
                                     typical=st.floats(0, 1), looked_at=st.just(40), unverified=st.integers(0, 40)),
       st.sampled_from(["protocol", "always-one", "economic"]))
def test_never_more_checks_than_clips(n, history, policy):
    lab = Settings()
    wanted = checks_wanted(n, history, lab.checks.model_copy(update={"policy": policy}), lab.scoring, lab.validator)
    assert 0 <= wanted <= n and math.isfinite(wanted)
    if policy == "economic" and n and (history.answers < 20 or history.punished):
        assert wanted >= 1


@pytest.mark.parametrize("usual", [0.01, 0.05, 0.5])
def test_chance_is_a_tail(usual):
    tails = [chance_of(k, 50, usual) for k in range(52)]
    assert tails[0] == 1 and tails[51] == 0 and all(a >= b for a, b in zip(tails, tails[1:]))
    draws = np.random.default_rng(0).binomial(50, usual, 200_000)
    assert chance_of(3, 50, usual) == pytest.approx((draws >= 3).mean(), abs=0.005)
