"""The dataset: shards, the hub they go to, and how nothing is lost on the way."""
from omega_lab.corpus.hub import Commit, Hub, HubBusy, HubConflict, HubError, HuggingFaceHub, LocalHub, open_hub
from omega_lab.corpus.publish import ExtraFiles, MixedSpaces, PlannedShard, Published, card_files, dataset_card, forget_footage, load, publish
from omega_lab.corpus.shards import EMBEDDINGS, PROVENANCE, ShardError, evidence_hash, read_shard, shard_path, shard_schema, shard_table, write_shard

__all__ = ["EMBEDDINGS", "PROVENANCE", "Commit", "ExtraFiles", "Hub", "HubBusy", "HubConflict", "HubError", "HuggingFaceHub", "LocalHub", "MixedSpaces",
           "PlannedShard", "Published", "ShardError", "card_files", "dataset_card", "evidence_hash", "forget_footage", "load", "open_hub", "publish",
           "read_shard", "shard_path", "shard_schema", "shard_table", "write_shard"]
