"""Real programs on virtual screens, recorded and judged: six short ones always, the whole calibration set in the long run."""

import sys
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import focus_calibrate  # noqa: E402
import focus_copies  # noqa: E402
import focus_set  # noqa: E402
from focus_desk import missing  # noqa: E402
from focus_packages import PACKAGES  # noqa: E402

from omega_lab.focus import reading  # noqa: E402
from omega_lab.focus.book import Book  # noqa: E402
from omega_lab.focus.calibration import figures, rule_table, summary  # noqa: E402
from omega_lab.focus.evidence import load  # noqa: E402
from omega_lab.focus.rules import RulesJudge  # noqa: E402
from omega_lab.focus.screen import video_vector, watch  # noqa: E402
from omega_lab.focus.task import make_task  # noqa: E402
from omega_lab.media import write_film  # noqa: E402
from omega_lab.novelty import NoveltyIndex  # noqa: E402
from omega_lab.runner import PipelineError, run_pipeline  # noqa: E402
from omega_lab.settings import FocusSettings, Settings, load_settings  # noqa: E402

screens = pytest.mark.skipif(bool(missing()), reason=f"virtual desks want {', '.join(missing())}: apt-get install --no-install-recommends {PACKAGES}")


@pytest.fixture(scope="module")
def short_ones(tmp_path_factory):
    "Six short recordings, three at a time: more, on a busy machine, and programs miss what is typed."
    folder = tmp_path_factory.mktemp("set")
    focus_set.make_set(folder, short=True, jobs=3)
    return folder


@pytest.fixture(scope="module")
def logbook(short_ones, tmp_path_factory):
    "The pipeline over them."
    out = tmp_path_factory.mktemp("out")
    settings = {"focus.min_seconds": 15, "focus.read_share": 0.8}  # seconds of a machine that other tests keep busy, too
    said = []
    run_pipeline("focus", {"state": str(out / "focus"), "recordings": str(short_ones), "settings": settings}, out / "focus.ipynb", said.append)
    return Book(out / "focus"), out / "focus.ipynb", said, load_settings(settings, environ={})


@screens
def test_work_is_told_from_no_work(logbook):
    book, _, _, _ = logbook
    by_name = {r.name.split("-")[1] + r.name.split("-")[2]: (r, book.verdict(r)) for r in book.all()}
    states = {name: (r.state, v.score) for name, (r, v) in by_name.items()}
    assert len(states) == 6 and not [s for s, _ in states.values() if s == "PENDING_HUMAN_REVIEW"], states
    for name, (state, score) in states.items():
        assert (state == "READY" and score > 0.5) if name.startswith("done") else state == "REJECTED", (name, state, score)
    failed = {name: {c.name for c in v.opinions[0].failed} for name, (_, v) in by_name.items()}
    assert "idle" in failed["idleweekly"] and "passive" in failed["videolook"] and not failed["wrongpython"]


@screens
def test_every_nonce_was_seen_and_every_program_known(logbook):
    book, _, _, _ = logbook
    seen = [load(book.path(recording) / "evidence").of("nonce")[0].value for recording in book.all()]
    assert sum(seen) >= len(seen) - 1, "a machine that is busy with other tests may miss one"
    for recording in book.all():
        evidence = load(book.path(recording) / "evidence")
        assert evidence.of("application") and evidence.about.inputs == "counts", recording.name
        assert not evidence.of("order", "loop") or evidence.of("loop")[0].value < 0.4


@screens
def test_the_logbook_tells_it(logbook):
    book, path, said, settings = logbook
    notebook = nbformat.read(path, 4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 12, "a timeline and key frames for each"
    text = "\n".join(said)
    assert "6 of 6 verdicts made anew from what is kept, and equal" in text and "idle: something happens in" in text
    for recording in book.all():
        assert recording.task.text in text and recording.name in text


@screens
def test_a_second_run_judges_nothing_twice(logbook, short_ones, tmp_path):
    book, _, _, _ = logbook
    said = []
    parameters = {"state": str(book.folder), "recordings": str(short_ones), "settings": {"focus.min_seconds": 15}}
    run_pipeline("focus", parameters, tmp_path / "again.ipynb", said.append)
    assert any("6 recordings, 0 to be judged" in line for line in said) and len(book.all()) == 6


def test_a_folder_that_is_none_ends_in_one_sentence(tmp_path):
    with pytest.raises(PipelineError, match="no folder of recordings") as caught:
        run_pipeline("focus", {"state": str(tmp_path / "focus"), "recordings": str(tmp_path / "nowhere")}, tmp_path / "out.ipynb")
    assert caught.value.lines == ()


def test_the_figures_in_the_docs_are_those_of_the_table():
    "What README says of the judge is what the kept table gives."
    cases = pl.read_csv(ROOT / "data" / "focus_calibration.csv")
    held = figures(cases, "held")
    assert held["recordings"] >= 20 and held["auc"] >= 0.85 and set(cases["half"]) == {"build", "held"} and len(cases) >= 40
    assert f"{held['auc']:.2f}" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "Two lists and minutes, written evenly in one and the same editor window."
    folder = tmp_path_factory.mktemp("drawn")
    return [focus_copies.draw_film(focus_copies.TEXTS[n], folder / f"{n}.mp4") for n in (0, 1, 10)]


def test_copies_are_told_from_other_lists_in_the_same_window(drawn):
    disguises = ("640 x 360", "thin border", "edges cropped", "first 4 s cut off", "clock")
    looked = [focus_copies.copies_of(film, disguises if n == 0 else ()) for n, film in enumerate(drawn)]
    told = focus_copies.table("drawn", looked, FocusSettings().uniqueness)
    copies, other = told.filter("copy"), told.filter(~pl.col("copy"))
    assert copies["pairs"].sum() == copies["called_copies"].sum() == 5 and copies["distance"].max() < 0.015, copies
    assert other["pairs"].sum() == 3 and other["called_copies"].sum() == 0 and other["distance"].min() > 0.03, other


def test_a_book_of_an_earlier_version_still_knows_its_copies(drawn, tmp_path):
    settings = load_settings({"focus.read_least": 1.0, "focus.read_share": 0.001}, environ={})
    book, rng = Book(tmp_path / "focus"), np.random.default_rng(0)
    task = make_task("Shopping list", "Write a shopping list with oat milk, rye bread, apples, potatoes, butter, each with its price, and the sum.")
    first, _ = book.score(book.upload(drawn[0], task, 10**8), [RulesJudge()], settings)
    earlier = rng.normal(size=2448).astype(np.float32)
    pl.DataFrame({"value": earlier}).write_parquet(book.path(first) / "evidence" / "video.parquet")
    first = book.submit(first, settings)  # what was scored before is measured anew
    film = book.folder / "index" / "film"
    film.rename(film.with_name("away"))
    NoveltyIndex(film.with_name("video"), 2448).add([first.id, "01LOST"], np.stack([earlier, -earlier]))
    copy = focus_copies.disguise(drawn[0], "thin border", tmp_path / "copy.mp4")
    second, verdict = book.score(book.upload(copy, task, 10**8), [RulesJudge()], settings)
    assert second.state == "REJECTED" and f"a copy of {first.id}" in verdict.reasons[0]
    third, verdict = book.score(book.upload(drawn[1], task, 10**8), [RulesJudge()], settings)
    assert "unique_video" not in verdict.reasons[0] and verdict.uniqueness.nearest == first.id
    assert film.with_name("video").is_dir(), "one film is gone: what was known of it stays"


def test_films_of_odd_shapes_have_vectors(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"portrait": (640, 360), "strip": (40, 600), "tiny": (16, 16), "one": (90, 160)}
    for name, shape in shapes.items():
        noise = (rng.integers(0, 255, (*shape, 3), np.uint8) for _ in range(1 if name == "one" else 6))
        vector = video_vector(watch(write_film(tmp_path / f"{name}.mp4", noise, 1)))
        assert np.isfinite(vector).all() and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5), name


def test_rows_that_are_all_alike_are_compared_with_few(monkeypatch):
    "A long film of ever new prose must not take the square of its rows."
    rng, compared = np.random.default_rng(0), []
    monkeypatch.setattr(reading, "alike", lambda a, b: compared.append(1))
    texts = ["a line without digits " + "".join(rng.choice(list("abcdefghij "), 20)) for _ in range(1500)]
    pages = [reading.Page(float(k), tuple(reading.Line(text, 0.1, n / 60, 0.9, n / 60 + 0.01, 0.9) for n, text in enumerate(texts[60 * k : 60 * k + 60])),
                          np.zeros((0, 0), np.uint8)) for k in range(25)]  # fmt: skip
    assert sum(len(text.rows) for text in reading.new_text(pages)) == 1500 and len(compared) <= 1500 * 100


@screens
@pytest.mark.full
def test_copies_in_the_whole_set():
    "Every disguise of every recording in which somebody works, and every pair of them but those of one script."
    films = focus_set.make_set(ROOT / "data" / "focus_set", names=focus_copies.works("held"))
    told = focus_copies.table("held", [focus_copies.copies_of(film) for film in films], FocusSettings().uniqueness)
    assert told.filter("copy").select((pl.col("called_copies") == pl.col("pairs")).all()).item(), told
    assert not told.filter(kind="other work")["called_copies"].sum() and not told.filter(kind="begun by the same script")["called_copies"].sum(), told


@screens
@pytest.mark.full
def test_the_whole_set(capsys):
    "Records what is missing of the set, judges all, and prints the figures."
    cases = focus_calibrate.judge_set(focus_set.make_set(ROOT / "data" / "focus_set"), Settings())
    held = figures(cases, "held")
    with capsys.disabled():
        print(summary(held, "held"), rule_table(held), sep="\n")
    assert len(cases) >= 40 and held["auc"] >= 0.85
