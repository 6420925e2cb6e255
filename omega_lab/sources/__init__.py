"Where clips come from: a folder, links on the web, YouTube; and how a validator fetches what it checks."

from omega_lab.sources.base import (
    ClipId,
    Hit,
    Rank,
    Source,
    SourceError,
    best_hits,
    check_range,
    clip_id_of_link,
    is_link,
    parse_clip_id,
    word_overlap,
    youtube_id,
)

__all__ = [
    "ClipId",
    "Hit",
    "Rank",
    "Source",
    "SourceError",
    "best_hits",
    "check_range",
    "clip_id_of_link",
    "is_link",
    "parse_clip_id",
    "word_overlap",
    "youtube_id",
]
