"""The dataset's shards: what is written is what is read, and what is missing is null."""
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omega_lab.corpus import PROVENANCE, ShardError, evidence_hash, read_shard, shard_path, shard_schema


def test_the_subnets_fields_come_first():
    names = shard_schema(8).names
    assert names[:13] == ["video_id", "youtube_id", "description", "views", "start_time", "end_time", "video_embed", "audio_embed", "description_embed",
                          "description_relevance_score", "query_relevance_score", "query", "submitted_at"]
    assert names[13:] == list(PROVENANCE)


def test_a_shard_without_provenance_reads_with_nulls(tmp_path):
    lists = pa.array([[0.25] * 8, [0.5] * 8], pa.list_(pa.float64()))
    pq.write_table(pa.table({"video_id": ["a", "b"], "video_embed": lists, "audio_embed": lists, "description_embed": lists}), tmp_path / "theirs.parquet")
    table = read_shard(tmp_path / "theirs.parquet")
    assert table.schema == shard_schema(8) and table["video_embed"].to_pylist() == [[0.25] * 8, [0.5] * 8]
    assert table["source_id"].to_pylist() == [None, None]


def test_what_is_no_shard_is_named(tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ShardError, match="torn.parquet"):
        read_shard(tmp_path / "torn.parquet")


def test_evidence_has_one_hash_in_any_spelling():
    assert evidence_hash('{"b": 1, "a": [2.0, null]}') == evidence_hash({"a": [2.0, None], "b": 1})
    assert evidence_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_a_shard_lies_in_a_bucket_of_its_name():
    assert shard_path("00000000000000000000000015") == "default/train/037/00000000000000000000000015.parquet"
