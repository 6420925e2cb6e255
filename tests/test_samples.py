"""The sample catalog, and archives that are not what was pinned."""
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from omega_lab import samples
from omega_lab.media import file_sha256, frames, probe
from omega_lab.samples import FILMS, PHOTOS, TOPICS, Archive, SampleError, fetch_samples, golden_path, topics

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def catalog():
    folder = fetch_samples(DATA, progress=False)
    return folder, json.loads((folder / "catalog.json").read_text())


def test_catalog_is_large_and_varied(catalog):
    _, entries = catalog
    assert len(entries) >= 24 and len({e["subject"] for e in entries}) >= 12
    assert sum(len(e["ranges"]) for e in entries) >= 48
    assert len({e["file"] for e in entries}) == len(entries) == len({e["description"] for e in entries})


def test_every_clip_is_what_its_entry_says(catalog):
    folder, entries = catalog
    for entry in entries:
        info = probe(folder / entry["file"])
        assert info.has_video and info.has_audio, entry["file"]
        assert info.duration == pytest.approx(entry["duration"], abs=0.02)
        assert entry["kind"] in {"film", "photo pan"} and entry["license"] and "==" in entry["source"]
        for start, end in entry["ranges"]:
            assert 5 <= end - start <= 20 and end <= info.duration + 0.1
        assert len(frames(folder / entry["file"], [(a + b) / 2 for a, b in entry["ranges"]])) == len(entry["ranges"])


def test_ranges_of_a_clip_do_not_overlap():
    for recipe in PHOTOS + FILMS:
        ranges = sorted(recipe.ranges)
        assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False)), recipe.name


def test_topics_fit_the_catalog(catalog):
    _, entries = catalog
    assert len(topics(entries)) == len(TOPICS) >= 20
    assert topics([]) == []


def test_second_fetch_touches_nothing(catalog):
    folder, entries = catalog
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    fetch_samples(DATA, progress=False)
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_golden_file():
    assert file_sha256(golden_path(DATA)) == samples.GOLDEN_SHA256


@pytest.fixture()
def small_archive(tmp_path, monkeypatch):
    """A pinned archive that lies where a fetched one would."""
    packed = tmp_path / "archives" / "thing-1.0.tar.gz"
    packed.parent.mkdir()
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep/hello.txt", "hello")
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(inner, "thing-1.0/inner.zip")

    def pin(**changes):
        fields = {"requirement": "thing==1.0", "filename": packed.name, "sha256": file_sha256(packed),
                  "members": {"deep/hello.txt": "hello.txt"}, "license": "none", "inner": "inner.zip"}
        monkeypatch.setitem(samples.ARCHIVES, "thing", Archive(**(fields | changes)))

    pin()
    return tmp_path, pin


def test_archive_inside_an_archive(small_archive):
    data, _ = small_archive
    folder = samples.fetch_archive("thing", data)
    assert (folder / "hello.txt").read_text() == "hello"
    assert not (data / "archives" / "thing-1.0.tar.gz").exists()
    assert samples.fetch_archive("thing", data) == folder  # done: needs no archive


def test_member_that_is_missing(small_archive):
    data, pin = small_archive
    pin(members={"deep/other.txt": "other.txt"})
    with pytest.raises(SampleError, match=r"lacks.*other\.txt"):
        samples.fetch_archive("thing", data)
    assert not (data / "raw" / "thing" / ".done").exists()


def test_archive_with_another_hash_is_not_used(small_archive, monkeypatch):
    data, pin = small_archive
    pin(sha256="0" * 64)

    def pip(command, **_):  # stands in for the network: delivers the file pip would have found
        target = Path(command[command.index("--dest") + 1]) / "thing-1.0.tar.gz"
        target.write_bytes((data / "archives" / target.name).read_bytes())
        return samples.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(samples.subprocess, "run", pip)
    with pytest.raises(SampleError, match="pinned is 000"):
        samples.fetch_archive("thing", data)


def test_archive_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SampleError, match="could not be fetched"):
        samples.fetch_archive("imgaug", tmp_path)
