"""Formulas: arrays in, numbers out, no I/O."""
from omega_lab.scoring.video import ClipEvidence, LatentThresholds, SpotCheck, Verdict, score_response, update_average
from omega_lab.scoring.weights import combine, task_shares

__all__ = ["ClipEvidence", "LatentThresholds", "SpotCheck", "Verdict", "combine", "score_response", "task_shares", "update_average"]
