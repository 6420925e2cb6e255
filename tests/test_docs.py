"The site, built from some notebooks, a tutorial and a front page: pages exist, links lead on, nothing is fetched elsewhere."

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import docs  # noqa: E402

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Addresses(HTMLParser):
    "What a page points to: links, and what a browser would load by itself."

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.append(given["href"])
        elif given.get("src"):
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    "An index with a link and a picture, beside notebooks of the lab: some that are hard to render together, and a tutorial."
    folder = tmp_path_factory.mktemp("docs")
    picture = nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    table = nbformat.v4.new_output(
        "execute_result", {"text/html": "<style>b{}</style><table><tr><td>7</td></tr></table>", "text/plain": "7"}
    )
    index = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Front page\n\n> About.\n\nSee [the settings](00_settings.ipynb)."),
            nbformat.v4.new_code_cell("#| hide\nsecret = 1"),
            nbformat.v4.new_code_cell("import math\nraise SystemExit('not to be run')", outputs=[picture, table]),
        ]
    )
    nbformat.write(index, folder / "index.ipynb")
    names = ("00_settings", "03a_sources_base", "06d_captions", "13t_focus_tables", "14i_api_market", "15b_lab_strategies", "15d_lab_attack",
             "tutorials/cheating_pays", "tutorials/what_a_score_is")
    return docs.build([folder / "index.ipynb", *(ROOT / f"nbs/{name}.ipynb" for name in names)], folder / "site", folder / "work")


def test_pages_hold_prose_signatures_sources_and_outputs(site):
    front, base = ((site / name).read_text() for name in ("index.html", "sources_base.html"))
    assert "Front page" in front and "secret" not in front and ">7<" in front and "<style>b" not in front
    assert (site / "index_files/out_2_0.png").stat().st_size > 50
    assert "Clip ids, hits" in base and 'class="source"' in base and "parse_clip_id" in base
    assert "is no clip id" in re.sub(r"<[^>]+>", "", base), "the output of a cell"


def test_a_type_that_only_checkers_import_is_shown_as_written(site):
    text = re.sub(r"<[^>]+>", "", (site / "captions.html").read_text())
    assert re.search(r"classifier:\s*(&#39;|')?CaptionClassifier", text)


def test_tables_of_one_notebook_do_not_meet_those_of_another(site):
    for name, shown in (("focus_tables", "table_of"), ("api_market", "focus_routes")):
        page = (site / f"{name}.html").read_text()
        assert 'class="source"' in page and shown in page, name


def test_two_notebooks_of_one_name_are_refused(tmp_path):
    (tmp_path / "tutorials").mkdir()
    paths = [tmp_path / "00_settings.ipynb", tmp_path / "tutorials/settings.ipynb"]
    for path in paths:
        nbformat.write(nbformat.v4.new_notebook(), path)
    with pytest.raises(SystemExit, match="settings.html: rename one"):
        docs.build(paths, tmp_path / "site", tmp_path / "work")


def test_tutorials_stand_behind_the_front_page_and_have_pictures(site):
    for name in ("what_a_score_is", "cheating_pays"):
        page = Addresses(site / f"{name}.html")
        pictures = [address for address in page.loaded if address.startswith(f"{name}_files/")]
        assert len(pictures) >= 5 and all((site / address).stat().st_size > 10_000 for address in pictures), name
        assert not [link for link in page.links if ".ipynb" in link], "a link out of the folder leads to a page"
    front = (site / "index.html").read_text()
    menu = [re.sub(r"<[^>]+>", "", item).strip() for item in re.findall(r'<span class="md-ellipsis">(.*?)</span>', front, flags=re.DOTALL)]
    assert menu.index("Welcome") < menu.index("Tutorials") < menu.index("What a score is") < menu.index("Settings"), menu


def test_internal_links_lead_somewhere(site):
    pages = {page.name: Addresses(page) for page in site.glob("*.html")}
    assert {"index.html", "settings.html", "sources_base.html"} <= pages.keys()
    assert any(urlsplit(link).path.endswith("settings.html") for link in pages["index.html"].links)
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or name == "404.html":
                continue
            target = (site / unquote(parts.path)).resolve() if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{name}: {link}"
            if parts.fragment and target.name in pages:
                assert unquote(parts.fragment) in pages[target.name].ids, f"{name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        assert docs.POLICY in text.split("<script")[0].split("<link")[0], page.name
        for address in Addresses(page).loaded:
            assert not urlsplit(address).netloc, f"{page.name}: {address}"
            if page.name != "404.html" and urlsplit(address).scheme != "data":
                assert (site / urlsplit(address).path).is_file(), f"{page.name}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", sheet.read_text()), sheet.name


def test_the_readme_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links and [link for link in links if not (ROOT / link).exists()] == []
