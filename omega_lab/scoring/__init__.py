"""Formulas: arrays in, numbers out, no I/O."""
from omega_lab.scoring.audio import AudioEvidence, score_audio_response
from omega_lab.scoring.video import ClipEvidence, LatentThresholds, SpotCheck, Verdict, score_response, update_average
from omega_lab.scoring.weights import combine, task_shares

__all__ = ["AudioEvidence", "ClipEvidence", "LatentThresholds", "SpotCheck", "Verdict", "combine", "score_audio_response", "score_response", "task_shares",
           "update_average"]
