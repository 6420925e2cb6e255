"The checks of the repository find what they are for, each on a small repository of its own."

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import check  # noqa: E402
import readme  # noqa: E402
from notebooks import notebooks, plain  # noqa: E402

CODE, TEXT = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell


def write(path: Path, *cells: nbformat.NotebookNode) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(cells):
        cell.id = f"cell{number}"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=kernel), path)


@pytest.fixture
def repository(tmp_path) -> Path:
    "One notebook, its module, one pipeline, an index, a tutorial that reads a file of the project; all in order."
    root = tmp_path / "lab"
    root.mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    write(
        root / "nbs/00_sum.ipynb",
        TEXT("# Sum\n\n> Adds."),
        CODE("#| default_exp sum"),
        CODE("#| export\ndef add(a, b):\n    return a + b"),
        CODE("print(1 + 2)", outputs=[nbformat.v4.new_output("stream", name="stdout", text="3\n")]),
    )
    write(
        root / "nbs/index.ipynb",
        TEXT("# Lab\n\nSee [sums](00_sum.ipynb) and [a site](https://example.org/x)."),
        CODE("print('```')", outputs=[nbformat.v4.new_output("stream", name="stdout", text="```\n")]),
    )
    write(
        root / "nbs/tutorials/a_story.ipynb",
        TEXT("# A story\n\n> Of a sum."),
        CODE(
            "from pathlib import Path\nprint(Path('../../data/two.txt').read_text())",
            outputs=[nbformat.v4.new_output("stream", name="stdout", text="2\n")],
        ),
    )
    (root / "data").mkdir()
    (root / "data/two.txt").write_text("2")
    write(root / "pipelines/run.ipynb", CODE("rounds = 1", metadata={"tags": ["parameters"]}))
    (root / "omega_lab").mkdir()
    (root / "omega_lab/__init__.py").write_text("")
    check._clean_all(root)
    with check.chdir(root):
        check_export = "from nbdev.export import nb_export; nb_export('nbs/00_sum.ipynb', 'omega_lab')"
        subprocess.run([sys.executable, "-c", check_export], check=True)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    readme.main(root)
    return root


def test_all_in_order(repository):
    assert check.sync(repository) == check.clean(repository) == readme.differences(repository) == []


def test_tutorials_come_after_the_rooms(repository):
    write(repository / "nbs/tutorials/_draft.ipynb", TEXT("# Draft"))
    assert [path.name for path in notebooks(repository / "nbs")] == ["00_sum.ipynb", "index.ipynb", "a_story.ipynb"]


def test_tutorials_are_cleaned_and_run(repository):
    story = repository / "nbs/tutorials/a_story.ipynb"
    notebook = nbformat.read(story, 4)
    notebook.cells[1].execution_count = 3
    nbformat.write(notebook, story)
    assert check.clean(repository) == [
        "nbs/tutorials/a_story.ipynb: not clean; run nbdev-clean --fname nbs/tutorials/a_story.ipynb"
    ]
    check._clean_all(repository)
    (repository / "data/two.txt").write_text("3")
    for name in ("a_story", "tutorials/a_story.ipynb", "nbs/tutorials/a_story.ipynb"):
        found = check.outputs(repository, only=(name,))
        assert len(found) == 1 and found[0].startswith("nbs/tutorials/a_story.ipynb: cell 1 (cell1), outputs"), found


def test_outputs_of_an_unknown_notebook_are_not_in_order(repository):
    assert check.outputs(repository, only=("00_sum", "a_tale")) == [
        "a_tale: there is no such notebook in nbs/ or nbs/tutorials/"
    ]


def test_sync_finds_changed_missing_and_stray_modules(repository):
    module = repository / "omega_lab/sum.py"
    module.write_text(module.read_text().replace("a + b", "a - b"))
    (repository / "omega_lab/stray.py").write_text("")
    found = check.sync(repository)
    assert len(found) == 2 and "stray.py: made by no notebook" in found[0] and "a - b" in found[1]
    module.unlink()
    assert any("sum.py: missing" in line for line in check.sync(repository))


def test_clean_finds_counts_outputs_and_parameters(repository):
    write(repository / "nbs/00_sum.ipynb", TEXT("# Sum"), CODE("1", execution_count=4))
    write(
        repository / "pipelines/run.ipynb",
        CODE("print(1)", outputs=[nbformat.v4.new_output("stream", name="stdout", text="1\n")]),
    )
    found = "\n".join(check.clean(repository))
    assert "nbs/00_sum.ipynb: not clean" in found and "carries outputs" in found and "0 cells are tagged" in found


def test_readme_is_made_from_the_index(repository):
    text = (repository / "README.md").read_text()
    assert "[sums](nbs/00_sum.ipynb)" in text and "(https://example.org/x)" in text
    assert "````text\n```\n````" in text, "a fence longer than the one inside"
    (repository / "README.md").write_text("by hand")
    assert readme.differences(repository) == ["README.md: not what nbs/index.ipynb renders to"]


def test_outputs_finds_the_cell_that_changed(repository):
    assert check.outputs(repository) == []
    notebook = nbformat.read(repository / "nbs/00_sum.ipynb", 4)
    notebook.cells[3].outputs[0].text = "4\n"
    notebook.cells[3].source = "print(1 + 2)"
    nbformat.write(notebook, repository / "nbs/00_sum.ipynb")
    found = check.outputs(repository, only=("nbs/00_sum.ipynb",))
    assert len(found) == 1 and "cell 3 (cell3)" in found[0] and "4" in found[0]
    write(repository / "nbs/00_sum.ipynb", CODE("1 / 0"))
    assert "does not run" in check.outputs(repository, only=("00_sum.ipynb",))[0]


def test_printed_text_without_colours_and_progress():
    assert plain("\x1b[32mok\x1b[0m\n10%\r50%\r100%\n") == "ok\n100%"
