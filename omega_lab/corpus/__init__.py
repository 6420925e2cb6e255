"""The dataset: shards, the hub they go to, and how nothing is lost on the way."""
from omega_lab.corpus.card import Statistics, card_hook, other_configs, refresh_card, shard_statistics
from omega_lab.corpus.hub import Commit, Hub, HubBusy, HubConflict, HubError, HuggingFaceHub, LocalHub, open_hub
from omega_lab.corpus.load import connect, load, shard_files
from omega_lab.corpus.publish import ExtraFiles, MixedSpaces, PlannedShard, Published, forget_footage, publish
from omega_lab.corpus.search import SearchError, search
from omega_lab.corpus.shards import EMBEDDINGS, PROVENANCE, ShardError, evidence_hash, read_shard, shard_path, shard_schema, shard_table, write_shard
from omega_lab.corpus.synth import synth

__all__ = ["EMBEDDINGS", "PROVENANCE", "Commit", "ExtraFiles", "Hub", "HubBusy", "HubConflict", "HubError", "HuggingFaceHub", "LocalHub", "MixedSpaces",
           "PlannedShard", "Published", "SearchError", "ShardError", "Statistics", "card_hook", "connect", "evidence_hash",
           "forget_footage", "load", "open_hub", "other_configs", "publish", "read_shard", "refresh_card", "search", "shard_files", "shard_path",
           "shard_schema", "shard_statistics", "shard_table", "synth", "write_shard"]
