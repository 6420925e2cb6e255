"""Checks of the repository: `python tools/check.py sync clean readme` (quick) and `outputs` (runs every notebook).

sync     every module of omega_lab/ is what its notebook exports
clean    notebooks carry nothing that nbdev-clean would remove; pipelines have no outputs and one cell of parameters
readme   README.md is what nbs/index.ipynb renders to
outputs  the stored outputs are what the notebooks give when run anew (may be followed by the notebooks to run, each
         by its name or path, with or without its suffix)

One line per finding; the exit status is 1 when there is one.
"""

import difflib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

import readme
from notebooks import ROOT, TUTORIALS, notebooks, read

HAND_KEPT = ("**/__init__.py", "_modidx.py")  # files of omega_lab/ that no notebook makes (the index is not kept in git)


def sync(root: Path = ROOT) -> list[str]:
    "Export all notebooks of a copy and compare the modules."
    from nbdev.export import nb_export

    found = []
    with tempfile.TemporaryDirectory() as scratch:
        copy, library = Path(scratch), Path(scratch) / "omega_lab"
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".*", "_*"))
        shutil.copy(root / "pyproject.toml", copy)
        library.mkdir()
        with chdir(copy):
            for path in notebooks(Path("nbs")):
                nb_export(path, library)
        made = {path.relative_to(library): path.read_text(encoding="utf-8") for path in library.rglob("*.py")}
    kept = {
        path.relative_to(root / "omega_lab") for pattern in HAND_KEPT for path in (root / "omega_lab").glob(pattern)
    }
    here = {
        path.relative_to(root / "omega_lab"): path.read_text(encoding="utf-8")
        for path in (root / "omega_lab").rglob("*.py")
    }
    for name in sorted(made.keys() | here.keys()):
        if name not in here:
            found.append(f"omega_lab/{name}: missing; run nbdev-export")
        elif name not in made and name not in kept:
            found.append(
                f"omega_lab/{name}: made by no notebook; move it into one, or name it in HAND_KEPT of tools/check.py"
            )
        elif name in made and made[name] != here[name]:
            found.append(
                f"omega_lab/{name}: differs from what its notebook exports ({_first_change(here[name], made[name])})"
            )
    return found


def _first_change(old: str, new: str) -> str:
    changed = (
        line
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
        if line[:2] not in ("--", "++", "@@")
    )
    return next(changed, "line endings").strip()[:100]


def clean(root: Path = ROOT) -> list[str]:
    "Clean copies of the notebooks and compare; look at the pipelines."
    found, paths = [], notebooks(root / "nbs") + notebooks(root / "pipelines")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        shutil.copy(root / "pyproject.toml", copy)
        for path in paths:
            (copy / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(root))
        _clean_all(copy)
        for path in paths:
            name = path.relative_to(root)
            if (copy / name).read_bytes() != path.read_bytes():
                found.append(f"{name}: not clean; run nbdev-clean --fname {name}")
    for path in notebooks(root / "pipelines"):
        cells, name = read(path).cells, path.relative_to(root)
        if any(cell.get("outputs") or cell.get("execution_count") for cell in cells):
            found.append(f"{name}: carries outputs; a pipeline is kept without, clear them")
        if (tagged := sum("parameters" in cell.metadata.get("tags", []) for cell in cells)) != 1:
            found.append(f"{name}: {tagged} cells are tagged `parameters`; papermill needs exactly one")
    return found


def _clean_all(copy: Path) -> None:
    from nbdev.clean import nbdev_clean

    with chdir(copy):
        for folder in ("nbs", "pipelines"):
            for path in notebooks(Path(folder)):
                nbdev_clean(fname=str(path))


def outputs(root: Path = ROOT, only: tuple[str, ...] = ()) -> list[str]:
    "Run the notebooks of a copy, keep what they give, and compare byte for byte."
    wanted = {Path(name).name.removesuffix(".ipynb") for name in only}
    listed = {path.stem: path.relative_to(root / "nbs").as_posix() for path in notebooks(root / "nbs")}
    names = [name for stem, name in listed.items() if stem in wanted or not only]
    if unknown := wanted - listed.keys():
        return [f"{name}: there is no such notebook in nbs/ or nbs/{TUTORIALS}/" for name in sorted(unknown)]
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / root.name
        _copy_project(root, copy)
        failed, order = _run_notebooks(copy, names), []
        _clean_all(copy)
        for name in names:
            old, new = root / "nbs" / name, copy / "nbs" / name
            if name in failed:
                order.append(f"nbs/{name}: does not run: {failed[name]}")
            elif old.read_bytes() != new.read_bytes():
                order.append(f"nbs/{name}: {_changed_cell(old, new)}; run nbdev-test --save on it, then nbdev-clean")
    return order


def _copy_project(root: Path, copy: Path) -> None:
    "All that git knows or would take in, with the data folder as a link: media and models are large and only read."
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file() and not name.startswith("data/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    if (root / "data").is_dir():
        (copy / "data").symlink_to(root / "data", target_is_directory=True)


def _run_notebooks(copy: Path, names: list[str]) -> dict[str, str]:
    "Run each notebook in a process of its own, two at a time; the last line of the complaint of those that fail."
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        complaints = list(pool.map(lambda name: _run_notebook(copy, name), names))
    return {name: complaint for name, complaint in zip(names, complaints, strict=True) if complaint}


def _run_notebook(copy: Path, name: str) -> str:
    "Run a notebook in place; empty when it went well."
    began = time.monotonic()
    program = shutil.which("nbdev-test", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    done = subprocess.run(
        [program, f"nbs/{name}", "--save", "--n-workers", "0"],
        cwd=copy,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    print(f"  {time.monotonic() - began:5.1f} s  {name}", file=sys.stderr, flush=True)
    if not done.returncode:
        return ""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line and not line.startswith(" ")), "no reason given")


def _changed_cell(old: Path, new: Path) -> str:
    "The first cell that is not as stored, and how."
    stored, made = read(old).cells, read(new).cells
    if len(stored) != len(made):
        return "another number of cells: was it edited meanwhile?"
    for number, (before, after) in enumerate(zip(stored, made, strict=True)):
        part = next((key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)), None)
        if part:
            was, now = (str(cell.get(part)) for cell in (before, after))
            at = next((n for n, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
            return (
                f"cell {number} ({before.id}), {part}: stored …{was[max(0, at - 20) : at + 40]!r}, "
                f"now …{now[max(0, at - 20) : at + 40]!r}"
            )
    return "differs outside its cells"


CHECKS: dict[str, Callable[..., list[str]]] = {
    "sync": sync,
    "clean": clean,
    "readme": readme.differences,
    "outputs": outputs,
}


def main(arguments: list[str]) -> int:
    wanted = [name for name in arguments if name in CHECKS]
    rest = tuple(name for name in arguments if name not in CHECKS)
    if not wanted or (rest and wanted != ["outputs"]):
        print(__doc__)
        return 2
    status = 0
    for name in wanted:
        found = CHECKS[name](only=rest) if name == "outputs" else CHECKS[name]()
        print("\n".join(found) if found else f"{name}: in order", flush=True)
        status |= bool(found)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
