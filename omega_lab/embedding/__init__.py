"""Encoders behind one interface: video, sound and text as unit vectors in one space."""
from omega_lab.embedding.base import (
    ENCODERS,
    CachedEncoder,
    ClipVectors,
    Encoder,
    Thresholds,
    get_encoder,
    unit,
)

__all__ = ["ENCODERS", "CachedEncoder", "ClipVectors", "Encoder", "Thresholds", "get_encoder", "unit"]
