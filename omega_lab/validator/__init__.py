"""The validator: ask, examine, score, keep, set weights, report."""
from omega_lab.validator.audio import audio_board, next_number, recheck_audio, run_audio_round, split_topics
from omega_lab.validator.report import (
    Table,
    leaderboard,
    plot_averages,
    plot_novelty,
    plot_scores,
    plot_similarity,
    profile_agreement,
    profile_weights,
    purchases,
    recheck,
    refusals,
    refused_duplicate,
    short,
    spot_checks,
)
from omega_lab.validator.round import check_encoder, open_validator, publish_corpus, run_round, run_rounds, set_weights

__all__ = ["Table", "audio_board", "check_encoder", "leaderboard", "next_number", "open_validator", "plot_averages", "plot_novelty", "plot_scores",
           "plot_similarity", "profile_agreement", "profile_weights", "publish_corpus", "purchases", "recheck", "recheck_audio", "refusals",
           "refused_duplicate", "run_audio_round", "run_round", "run_rounds", "set_weights", "short", "split_topics", "spot_checks"]
