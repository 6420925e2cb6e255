"""What a round costs besides its work: `python benchmarks/schedule.py [ROUNDS]`.

A pipeline of three cells that does nothing is run cold (a process of its own each time), and round after round on a warm
kernel. Printed are medians in seconds, and the memory of the kernel after the first and the last round.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import nbformat as nf
import psutil

from omega_lab.schedule import Schedule, make_plan
from omega_lab.settings import ScheduleSettings

CELLS = ("state = 'state'", "import statistics\nvalues = list(range(1000))", "print(statistics.mean(values))")


def write_pipeline() -> None:
    "`pipelines/trivial.ipynb` in the working directory."
    notebook = nf.v4.new_notebook(cells=[nf.v4.new_code_cell(source) for source in CELLS])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    Path("pipelines").mkdir()
    nf.write(notebook, "pipelines/trivial.ipynb")


def cold(rounds: int) -> list[float]:
    "Seconds of `omega-lab run trivial`, from the start of the process to its end."
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "omega_lab.cli", "run", "trivial"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return seconds


def warm(rounds: int) -> tuple[list[float], list[float]]:
    "(seconds of each round, memory of the kernel in MB after it), the schedule's own bookkeeping included."
    ends, memory = [time.perf_counter()], []

    def between() -> bool:
        ends.append(time.perf_counter())
        memory.append(psutil.Process(schedule.kernel.pid).memory_info().rss / 1e6)
        return len(memory) == rounds

    schedule = Schedule(make_plan("trivial", {}, every=1e-6), ScheduleSettings(), lambda line: None, between)
    schedule.play()
    return [after - before for before, after in zip(ends, ends[1:])], memory


def main(rounds: int = 30) -> None:
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        write_pipeline()
        process = cold(max(3, rounds // 6))
        first, *others = (measured := warm(rounds))[0]
    print(f"cold process      {statistics.median(process):.2f} s (median of {len(process)})")
    print(f"first round       {first:.2f} s (the kernel starts)")
    print(f"warm round        {statistics.median(others):.2f} s (median of {len(others)}, longest {max(others):.2f} s)")
    print(f"kernel's memory   {measured[1][0]:.0f} MB after the first round, {measured[1][-1]:.0f} MB after the last")
    print(f"load of the machine meanwhile {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
