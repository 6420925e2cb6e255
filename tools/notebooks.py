"Notebooks as Markdown: what the README, the site and the checks share."

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = "tutorials"  # the folder below nbs/ for notebooks that export nothing
SaveImage = Callable[[str, bytes], str]  # takes a file name and its bytes, gives the address to write into the Markdown


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, 4)


def notebooks(folder: Path) -> list[Path]:
    "The notebooks of a folder in the order of their names, then its tutorials; those beginning with `_` or `.` are left out."
    listed = [sorted(place.glob("*.ipynb")) for place in (folder, folder / TUTORIALS)]
    return [path for paths in listed for path in paths if path.name[0] not in "_."]


def directives(source: str) -> dict[str, str]:
    "nbdev's `#| name: value` lines of a cell, by name; a name without a value is the empty string."
    found = re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", source, flags=re.MULTILINE)
    return {name: value.strip() for name, value in found}


def without_directives(source: str) -> str:
    return re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip("\n")


def heading(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    "Title and one-line description, from the first Markdown cell."
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title = re.search(r"^# (.+)$", first, flags=re.MULTILINE)
    about = re.search(r"^> (.+)$", first, flags=re.MULTILINE)
    return (title[1].strip() if title else ""), (about[1].strip() if about else "")


def fenced(text: str, language: str) -> str:
    "A fenced block whose fence is longer than any inside."
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{' ' if language.startswith('{') else ''}{language}\n{text.rstrip()}\n{fence}"


def plain(text: str | list[str]) -> str:
    "Output text without terminal colours, and of a line rewritten by carriage returns only its last state."
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(text))
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")).strip("\n")


def output_markdown(
    output: nbformat.NotebookNode, name: str, save: SaveImage, *, html: bool, block: str = "text"
) -> str:
    "One output of a cell; `name` names its image file, `html` takes a table's HTML form instead of its text."
    data = output.get("data", {})
    for kind, suffix in (("image/png", ".png"), ("image/jpeg", ".jpg")):
        if kind in data:
            return f"![]({save(name + suffix, base64.b64decode(''.join(data[kind])))})"
    if "image/svg+xml" in data:
        return f"![]({save(name + '.svg', ''.join(data['image/svg+xml']).encode())})"
    if html and "text/html" in data:
        inner = re.sub(r"<style.*?</style>\s*", "", "".join(data["text/html"]), flags=re.DOTALL)
        inner = re.sub(r"\n\s*\n", "\n", inner).strip()
        return f'<div class="nb-html" markdown="0">\n{inner}\n</div>'
    if "text/markdown" in data:
        return "".join(data["text/markdown"]).strip()
    text = plain(output.get("text") or data.get("text/plain") or "\n".join(output.get("traceback", [])))
    return fenced(text, block) if text.strip() else ""


def blocks(
    notebook: nbformat.NotebookNode, save: SaveImage, prefix: str, *, html: bool, block: str = "text"
) -> Iterator[str]:
    """The visible parts of a notebook as Markdown, one after the other.

    Hidden cells are left out, and of exported cells the source (nbdev's directives `hide`, `export`, `echo: false`).
    Image files are named `<prefix>_<cell>_<output>`.
    """
    for number, cell in enumerate(notebook.cells):
        told = directives(cell.source)
        if cell.cell_type == "raw" or told.keys() & {"hide", "default_exp"} or cell.source.startswith("<!-- WARNING"):
            continue
        source = without_directives(cell.source)
        if cell.cell_type == "markdown":
            yield source
            continue
        silent = told.get("echo") == "false" or told.keys() & {"export", "exporti", "hide_input"}
        if source.strip() and not silent:
            yield fenced(source, "python")
        for place, output in enumerate(_joined(cell.outputs)):
            text = output_markdown(output, f"{prefix}_{number}_{place}", save, html=html, block=block)
            yield re.sub(r"^---\n+", "", text) if told.get("output") == "asis" else text


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    "Neighbouring pieces of printed text as one output."
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type:
            joined[-1] = nbformat.from_dict({**joined[-1], "text": "".join(joined[-1].text) + "".join(output.text)})
        else:
            joined.append(output)
    return joined
