"Where clips come from: a folder, links on the web, YouTube; and how a validator fetches what it checks."

from omega_lab.sources.base import (
    ClipId,
    Hit,
    OwnLimit,
    Rank,
    Source,
    SourceError,
    Transcribed,
    best_hits,
    canonical_id,
    check_range,
    clip_id_of_link,
    is_link,
    parse_clip_id,
    word_overlap,
    youtube_id,
)
from omega_lab.sources.fetch import fetch_clip
from omega_lab.sources.folder import CatalogEntry, CatalogError, FolderSource, read_catalog
from omega_lab.sources.proxies import ProxyPool, proxy_pool
from omega_lab.sources.web import UrlSource, YoutubeSource, link_of, read_links
from omega_lab.sources.ytdlp import Limits

__all__ = [
    "CatalogEntry",
    "CatalogError",
    "ClipId",
    "FolderSource",
    "Hit",
    "Limits",
    "OwnLimit",
    "ProxyPool",
    "Rank",
    "Source",
    "SourceError",
    "Transcribed",
    "UrlSource",
    "YoutubeSource",
    "best_hits",
    "canonical_id",
    "check_range",
    "clip_id_of_link",
    "fetch_clip",
    "is_link",
    "link_of",
    "parse_clip_id",
    "proxy_pool",
    "read_catalog",
    "read_links",
    "word_overlap",
    "youtube_id",
]
