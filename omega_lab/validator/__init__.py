"""The validator: ask, examine, score, keep, set weights, report."""
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

__all__ = ["Table", "check_encoder", "leaderboard", "open_validator", "plot_averages", "plot_novelty", "plot_scores", "plot_similarity",
           "profile_agreement", "profile_weights", "publish_corpus", "purchases", "recheck", "refusals", "refused_duplicate", "run_round", "run_rounds",
           "set_weights", "short", "spot_checks"]
