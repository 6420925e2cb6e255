"""Encoders behind one interface: video, sound and text as unit vectors in one space."""
from typing import Any

from omega_lab.embedding.base import (
    ENCODERS,
    CachedEncoder,
    ClipVectors,
    Encoder,
    Thresholds,
    get_encoder,
    unit,
)

__all__ = ["ENCODERS", "CachedEncoder", "ClipVectors", "Encoder", "ImageBind", "Thresholds", "get_encoder", "unit"]


def __getattr__(name: str) -> Any:
    "ImageBind when it is asked for: it imports torch, which processes that only read media do without."
    if name == "ImageBind":
        from omega_lab.embedding.imagebind import ImageBind

        return ImageBind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
