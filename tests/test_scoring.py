"""The formulas against recorded input/output pairs, and the corrections of the reference's mistakes."""
import json
from pathlib import Path

import numpy as np
import pytest

from omega_lab.novelty import unit
from omega_lab.scoring.video import Case, ClipEvidence, SpotCheck, score_case, score_response

DOCUMENT = json.loads((Path(__file__).parent / "video_scoring_cases.json").read_text())


@pytest.mark.parametrize("number", range(len(DOCUMENT["cases"])))
def test_recorded_case(number):
    case = DOCUMENT["cases"][number]
    got, want = score_case(Case.model_validate(case)), case["expect"]
    assert got["reward"] == pytest.approx(want["reward"], abs=1e-6)
    assert got["accepted"] == want["accepted"]
    for key in ("description_relevance", "query_relevance"):
        assert (got[key] is None) == (want[key] is None)
        if got[key]:
            assert got[key] == pytest.approx(want[key], abs=1e-6)


def clip(**changes):
    base = {"video_id": "youtube:aaaaaaaaaaa", "valid_id": True, "start_time": 0, "end_time": 30, "unique_tokens": 150,
            "text_cosine": 0.6, "stuffed": False, "stuffed_confidence": 0.9, "really_bad": 0, "low_quality": 0,
            "chunks": 2, "index_novelty": 0.8}
    return ClipEvidence(**base | changes)


@pytest.fixture
def vectors():
    return unit(np.random.default_rng(1).normal(size=(6, 3, 32)))


def test_scores_stay_with_their_clip(vectors):
    """A clip's numbers do not depend on which others were dropped before it."""
    alone = score_response(vectors[0, 0], vectors[3:4], (clip(),), 8).clips[0]
    spoiled = (clip(end_time=300), clip(index_novelty=0.01), clip(stuffed=True, stuffed_confidence=0.6), clip())
    among = score_response(vectors[0, 0], vectors[:4], spoiled, 8).clips
    assert [c.accepted for c in among] == [False, False, False, True]
    assert among[3].description_relevance == alone.description_relevance
    assert among[3].query_relevance == alone.query_relevance


def test_all_out_of_range_is_the_minimum(vectors):
    verdict = score_response(vectors[0, 0], vectors[:2], (clip(end_time=1), clip(end_time=500)), 8)
    assert (verdict.reward, verdict.outcome) == (0.005, "empty")


def test_unverified_is_neither_passed_nor_punished(vectors):
    check = SpotCheck(kind="media", problem="unverified", reason="time-out")
    verdict = score_response(vectors[0, 0], vectors[:2], (clip(), clip(check=check)), 8)
    assert verdict.reward is None and not any(c.accepted for c in verdict.clips)


def test_a_fake_outweighs_an_unverified(vectors):
    lost = SpotCheck(kind="media", problem="unverified", reason="time-out")
    fake = SpotCheck(kind="media", problem="fake", reason="removed")
    assert score_response(vectors[0, 0], vectors[:2], (clip(check=lost), clip(check=fake)), 8).reward == -5


@pytest.mark.parametrize(("changes", "reward"), [({"really_bad": 6}, -5), ({"low_quality": 16}, -5), ({"chunks": 51}, 0.005),
                                                 ({"stuffed": True, "stuffed_confidence": 0.76}, -5),
                                                 ({"stuffed": True, "stuffed_confidence": 0.75}, 0.005)])
def test_caption_limits(vectors, changes, reward):
    assert score_response(vectors[0, 0], vectors[:1], (clip(**changes),), 8).reward == reward


def test_missing_audio_counts_as_no_similarity(vectors):
    silent = vectors[:1].copy()
    silent[:, 1] = 0
    verdict = score_response(silent[0, 0], silent, (clip(),), 8)
    assert np.isfinite(verdict.reward) and verdict.clips[0].query_relevance == pytest.approx((1 + 0.36) / 3, abs=1e-6)
