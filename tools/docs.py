"""Build the site from the notebooks, offline: `python tools/docs.py [--out site]`.

nbdev renders signatures and docstrings (`show_doc`), the notebooks become Markdown, Zensical makes the pages. The work
lies in build/docs/ and is reused: only notebooks that changed are rendered again. A page fetches nothing elsewhere.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat
from notebooks import ROOT, TUTORIALS, blocks, directives, fenced, heading, notebooks, read, without_directives

ASSETS = Path(__file__).resolve().parent / "site"
# A browser that reads this asks nobody else for anything, whatever a script on the page would like to fetch.
POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'self' 'unsafe-inline' data:; "
    "worker-src 'self' blob:\">"
)


@dataclass(frozen=True)
class Page:
    "One page: `name` without suffix, `room` is the two digits its notebook begins with, or `tutorials` (empty: neither)."

    notebook: Path
    name: str
    title: str
    about: str
    room: str


def page_of(path: Path) -> Page:
    title, about = heading(read(path))
    number = re.match(r"(\d\d)[a-z]?_", path.stem)
    room = TUTORIALS if path.parent.name == TUTORIALS else number[1] if number else ""
    return Page(path, re.sub(r"^\d+[a-z]?_", "", path.stem), title or path.stem, about, room)


# --- notebooks as nbdev sees them


def stage(pages: list[Page], work: Path) -> None:
    "Copy the notebooks for nbdev. It would run every cell that imports something; only exported ones are needed."
    (work / "nbs").mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / "pyproject.toml", work)
    kept = {page.notebook.name for page in pages}
    for old in [*(work / "nbs").glob("*.ipynb"), *(work / "_proc").glob("*.ipynb")]:
        if old.name not in kept:
            old.unlink()
    for page in pages:
        target, changed = work / "nbs" / page.notebook.name, page.notebook.stat()
        if target.exists() and target.stat().st_mtime_ns == changed.st_mtime_ns:
            continue
        notebook = read(page.notebook)
        for cell in notebook.cells:
            if cell.cell_type == "code" and not directives(cell.source).keys() & {"export", "exporti", "default_exp"}:
                cell.source = f"#| eval: false\n{cell.source}"
        nbformat.write(notebook, target)
        os.utime(target, ns=(changed.st_atime_ns, changed.st_mtime_ns))


# nbdev's part, with two changes. It evaluates annotations and fails over a name that is imported for type checkers only: such
# a one is shown as written. And it runs exported cells of all notebooks in one process, where a table that one defines meets
# the module of another that defines the same: each gets a child of its own, forked when the slow imports are done.
RENDER = """
import inspect
import os
import traceback

import fastcore.docments
from nbdev import serve, serve_drv

import omega_lab.validator.round

render = serve_drv.main


def signature(symbol, eval_str=False):
    try:
        return inspect.signature(symbol, eval_str=eval_str)
    except NameError:
        return inspect.signature(symbol)


def apart(task):
    child = os.fork()
    if child:
        if os.waitpid(child, 0)[1]:
            raise SystemExit(1)
        return
    status = 1
    try:
        render(task)
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    os._exit(status)


fastcore.docments.signature, serve_drv.main = signature, apart
serve.proc_nbs("nbs", n_workers=0)
"""


def render(work: Path) -> None:
    "Let nbdev add signatures and docstrings: nbs/ to _proc/."
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RENDER],
        cwd=work,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"nbdev could not render the notebooks:\n{(done.stdout + done.stderr)[-3000:]}")


# --- and as Markdown


def read_processed(path: Path) -> nbformat.NotebookNode:
    "A notebook of nbdev's, without the mark that it leaves in cells and that is no part of the format."
    told = json.loads(path.read_text(encoding="utf-8"))
    for cell in told["cells"]:
        cell.pop("has_sd", None)
    return nbformat.reads(json.dumps(told), 4)


def sources_of(path: Path) -> dict[str, str]:
    "The source of each exported function and class, with its decorators, by its name."
    found = {}
    for cell in read(path).cells:
        if cell.cell_type == "code" and "export" in directives(cell.source):
            source = without_directives(cell.source)
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                    found[node.name] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    return found


def tidy(markdown: str, sources: dict[str, str]) -> str:
    "nbdev's Markdown, made fit for a page: its link attributes go, a source to unfold comes below a signature."
    markdown = re.sub(r"\]\([^)]*\)\{target=[^}]*\}", "]()", markdown)
    markdown = re.sub(r"\[([^\]]*)\]\(\)", r"\1", markdown)
    shown = re.match(r"### ([\w.]+)\s", markdown)
    if not shown:
        return markdown
    signature = re.search(r"^```python\n(.*?)^```$", markdown, flags=re.MULTILINE | re.DOTALL)
    source = sources.get(shown[1], "")
    is_class = re.search(rf"^class {shown[1]}\b", source, flags=re.MULTILINE) is not None
    if signature and is_class and ("**data" in signature[1] or source.count("\n") < 25):
        return markdown[: signature.start()] + fenced(source, "{ .python .nb-signature }")  # its fields say more
    if signature:
        text = short_names(signature[1]).replace("def ", "class ", 1) if is_class else short_names(signature[1])
        markdown = markdown.replace(signature[0], fenced(text, "{ .python .nb-signature }"))
    if source:
        body = "\n".join(f"    {line}".rstrip() for line in fenced(source, "python").splitlines())
        markdown = f'{markdown}\n\n??? source "Source"\n\n{body}'
    return markdown


def short_names(signature: str) -> str:
    "Types in a signature by their own names: `Limits` for `omega_lab.sources.ytdlp.Limits`; spaces round the arrow."
    short = re.sub(
        r"\b(?:omega_lab|pathlib|collections|numpy|typing|datetime|__main__)\.(?:\w+\.)*(?=\w)", "", signature
    )
    return short.replace(")->", ") -> ")


def local_links(markdown: str, pages: dict[str, str]) -> str:
    "Links to notebooks become links to their pages."

    def turned(found: re.Match[str]) -> str:
        name = Path(found[1]).name
        return f"]({pages[name]}.md{found[2]})" if name in pages else found[0]

    return re.sub(
        r"\]\((?![a-z]+:)([^)\s#]+\.ipynb)(#[^)\s]*)?\)",
        lambda m: turned(re.match(r"\]\(([^)\s#]+)(#[^)\s]*|)\)", m[0])),
        markdown,
    )


def write_page(page: Page, processed: Path, docs: Path, pages: dict[str, str]) -> None:
    def save(name: str, content: bytes) -> str:
        (docs / f"{page.name}_files").mkdir(exist_ok=True)
        (docs / f"{page.name}_files" / name).write_bytes(content)
        return f"{page.name}_files/{name}"

    sources = sources_of(page.notebook)
    top = [f"# {page.title}", f"*{page.about}*" if page.about else ""]
    body = [
        tidy(text, sources)
        for text in blocks(read_processed(processed), save, "out", html=True, block="{ .text .nb-out }")
    ]
    text = "\n\n".join(part for part in [*top, *body] if part)
    (docs / f"{page.name}.md").write_text(local_links(text, pages) + "\n", encoding="utf-8")


def overview(pages: list[Page]) -> str:
    "Tables of the tutorials and of all rooms, for the front page."
    listed = [page for page in pages if page.name != "index"]
    tutorials = sorted((page for page in listed if page.room == TUTORIALS), key=lambda page: page.title)
    parts = {"Tutorials": tutorials, "The rooms": [page for page in listed if page not in tutorials]}
    return "\n".join(line for title, members in parts.items() if members for line in _table(title, members))


def _table(title: str, pages: list[Page]) -> list[str]:
    rows = [f"| [{page.title}]({page.name}.md) | {page.about} |" for page in pages]
    return [f"## {title}", "", "| notebook | what happens there |", "|---|---|", *rows, ""]


# --- the site


def navigation(pages: list[Page]) -> list[dict[str, object]]:
    "Pages in their order; the tutorials are a section, and so is a room of several notebooks, named by what their titles share."
    rooms: dict[str, list[Page]] = {}
    for page in pages:
        rooms.setdefault(page.room or page.name, []).append(page)
    listed: list[dict[str, object]] = []
    for members in rooms.values():
        if len(members) == 1 and members[0].room != TUTORIALS:
            listed.append({"Welcome" if members[0].name == "index" else members[0].title: f"{members[0].name}.md"})
        else:
            room = _room_name(members)
            listed.append({room: [{_short(page.title, room): f"{page.name}.md"} for page in members]})
    return listed


def _room_name(members: list[Page]) -> str:
    if members[0].room == TUTORIALS:
        return TUTORIALS.capitalize()
    before = {page.title.partition(":")[0] for page in members if ":" in page.title}
    return before.pop() if len(before) == 1 else members[0].name.partition("_")[0].capitalize()


def _short(title: str, room: str) -> str:
    rest = title.removeprefix(f"{room}:").strip()
    return rest[:1].upper() + rest[1:]


def configuration(pages: list[Page]) -> str:
    "zensical.toml. JSON's strings and lists are TOML's too; a table within a list is not, so those are written out."

    def value(item: object) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {value(v)}" for k, v in item.items()) + " }"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item, ensure_ascii=False)

    return (
        (ASSETS / "zensical.toml").read_text(encoding="utf-8").replace("nav = []", f"nav = {value(navigation(pages))}")
    )


def build(paths: list[Path], out: Path, work: Path) -> Path:
    "Build the site of these notebooks into `out`. The one named `index` is the front page; without one, a list is."
    pages = [page_of(path) for path in paths]
    if twice := [name for name, count in Counter(page.name for page in pages).items() if count > 1]:
        raise SystemExit(f"two notebooks make the page {twice[0]}.html: rename one")
    work.mkdir(parents=True, exist_ok=True)
    stage(pages, work)
    render(work)
    docs = work / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ASSETS / "assets", docs / "assets")
    if (ROOT / "nbs/images").is_dir():
        shutil.copytree(ROOT / "nbs/images", docs / "images")
    names = {page.notebook.name: page.name for page in pages}
    for page in pages:
        write_page(page, work / "_proc" / page.notebook.name, docs, names)
    index = docs / "index.md"
    front = index.read_text(encoding="utf-8") if index.exists() else "# omega_lab\n"
    index.write_text(f"{front}\n{overview(pages)}", encoding="utf-8")
    if not any(page.name == "index" for page in pages):
        pages.insert(0, Page(index, "index", "Welcome", "", ""))
    pages.sort(key=lambda page: (page.name != "index", page.room != TUTORIALS, page.title if page.room == TUTORIALS else ""))
    (work / "zensical.toml").write_text(configuration(pages), encoding="utf-8")
    zensical(work)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(work / "site", out)
    return out


def zensical(work: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean"], cwd=work, capture_output=True, text=True
    )
    if done.returncode or not (work / "site" / "index.html").exists():
        raise SystemExit(f"zensical could not build the site:\n{(done.stdout + done.stderr)[-3000:]}")
    for page in (work / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("<head>", f"<head>{POLICY}", 1), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the finished site")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "docs", help="folder for the work, kept between builds"
    )
    options = parser.parse_args()
    out = build(notebooks(ROOT / "nbs"), options.out, options.work)
    print(
        f"{len(list(out.rglob('*.html')))} pages in {out}; to read: python -m http.server --bind 127.0.0.1 -d {out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
