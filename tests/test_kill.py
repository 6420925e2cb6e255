"""kill -9 at any moment: nothing acknowledged is lost, nothing counts twice, the index and the shards follow the store."""
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from omega_lab.novelty import NoveltyIndex
from omega_lab.scoring.video import update_average
from omega_lab.store import Store, StoreError, rescore_response, sync_index

WRITER = Path(__file__).parent / "rounds_writer.py"


def run_and_kill(folder, seconds):
    """The number of the last round the writer acknowledged before it was killed."""
    child = subprocess.Popen([sys.executable, str(WRITER), str(folder)], stdout=subprocess.PIPE, text=True)
    first = child.stdout.readline()  # it works now
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    child.wait()
    return int(rest[-1] if rest else first)


def check_consistency(folder, acknowledged):
    with Store(folder) as store:
        rounds = store.sql("select round from rounds order by round")["round"].to_list()
        assert rounds == list(range(1, len(rounds) + 1)) and len(rounds) >= acknowledged
        averages = {}
        for hotkey, reward in store.sql("select hotkey, reward from responses order by round").iter_rows():
            averages[hotkey] = update_average(averages.get(hotkey, 0.0), reward)
        assert store.averages() == pytest.approx(averages, abs=1e-12)
        index = NoveltyIndex(folder / "index", 16)
        assert index.version <= store.corpus_rows()
        sync_index(index, store)
        assert index.version == store.corpus_rows()
        last = rounds[-1]
        for hotkey, reward in store.sql("select hotkey, reward from responses where round = ?", last).iter_rows():
            assert rescore_response(store, last, hotkey).reward == reward
        written = store.sql("select path, first_row, rows from shards where written order by first_row").rows()
    end = 0
    for path, first, rows in written:
        assert first == end and pq.read_table(folder / "corpus" / path).num_rows == rows
        end = first + rows


def campaign(folder, kills, seed):
    chance = random.Random(seed)
    for _ in range(kills):
        acknowledged = run_and_kill(folder, chance.uniform(0, 0.5))
        check_consistency(folder, acknowledged)


def test_killed_at_random_moments(tmp_path):
    campaign(tmp_path, kills=5, seed=1)


@pytest.mark.full
def test_killed_at_many_moments(tmp_path):
    campaign(tmp_path, kills=40, seed=2)


def test_a_second_owner_is_told(tmp_path):
    with Store(tmp_path):
        script = f"from omega_lab.store import Store; Store({str(tmp_path)!r}, patience=0.1)"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert other.returncode and "owned by another process" in other.stderr


def test_a_newer_schema_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store.sql("insert into migrations values (99) returning number")
    with pytest.raises(StoreError, match="newer version"):
        Store(tmp_path)
