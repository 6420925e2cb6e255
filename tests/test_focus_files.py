"""What people hand in: films with every defect, uploads that break off, tasks that say one thing and send another."""

import json
import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imageio_ffmpeg import get_ffmpeg_exe
from typer.testing import CliRunner

from omega_lab.focus.book import Book, Event, Recording, Upload
from omega_lab.focus.commands import focus
from omega_lab.focus.evidence import gather, keep, load
from omega_lab.focus.inputs import read_inputs
from omega_lab.focus.reading import RapidReader
from omega_lab.focus.rules import RulesJudge
from omega_lab.focus.task import FocusError, TaskType, clean_text, make_task
from omega_lab.media import write_film
from omega_lab.settings import FocusSettings, load_settings

FFMPEG = [get_ffmpeg_exe(), "-loglevel", "error", "-y"]


def film(path: Path, seconds=8, seed=0) -> Path:
    rng = np.random.default_rng(seed)
    screen = np.full((180, 320, 3), 240, np.uint8)

    def pictures():
        for _ in range(seconds * 4):
            x, y = rng.integers(10, 300), rng.integers(10, 160)
            screen[y:y + 10, x:x + 12] = rng.integers(0, 200, 3)
            yield screen.copy()

    return write_film(path, pictures(), 4)


def lab(*arguments, folder):
    return CliRunner().invoke(focus, [*map(str, arguments), "--set", f"paths.focus={folder}"])


def with_box_claiming(path: Path, good: Path, size: int) -> None:
    "The film with its media box claiming `size` bytes."
    data = bytearray(good.read_bytes())
    at = data.rfind(b"mdat")
    data[at - 4:at] = size.to_bytes(4, "big")
    path.write_bytes(data)


def with_lying_header(path: Path, good: Path) -> None:
    "The film as webm whose header says ten minutes."
    subprocess.run([*FFMPEG, "-i", str(good), "-c:v", "libvpx", "-b:v", "200k", str(path)], check=True)
    data = bytearray(path.read_bytes())
    at = data.find(b"\x44\x89\x88") + 3  # the duration, a double of milliseconds
    assert at > 3 and 7000 < struct.unpack(">d", data[at:at + 8])[0] < 9000
    data[at:at + 8] = struct.pack(">d", 600_000.0)
    path.write_bytes(data)


def make_defect(kind: str, path: Path, good: Path) -> None:
    if kind == "no video track":
        subprocess.run([*FFMPEG, "-f", "lavfi", "-i", "sine=duration=3", str(path)], check=True)
    elif kind == "zero length":
        path.touch()
    elif kind == "4 GB claimed":
        with_box_claiming(path, good, 4_000_000_000)
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:good.stat().st_size * 2 // 3])
    elif kind == "truncated webm":
        whole = path.with_name("whole.webm")
        subprocess.run([*FFMPEG, "-i", str(good), "-c:v", "libvpx", "-b:v", "200k", str(whole)], check=True)
        path.write_bytes(whole.read_bytes()[:whole.stat().st_size // 3])
    elif kind == "a picture inside":
        subprocess.run([*FFMPEG, "-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1", "-f", "image2", "-c:v", "png", str(path)], check=True)
    elif kind == "a zip inside":
        path.write_bytes(b"PK\x03\x04" + os.urandom(3000))
    elif kind == "an avi inside":
        subprocess.run([*FFMPEG, "-i", str(good), "-c:v", "mpeg4", "-f", "avi", str(path)], check=True)
    else:
        with_lying_header(path, good)


@pytest.mark.parametrize(("kind", "name", "said"), [
    ("no video track", "a.mp4", "has no video track"), ("zero length", "a.mp4", "0 bytes is empty"), ("4 GB claimed", "a.mp4", "claims 4,000,000,000 bytes"),
    ("truncated", "a.mp4", "is cut short"), ("truncated webm", "a.webm", "cut short"), ("a picture inside", "a.mp4", "not mp4 or webm"),
    ("a zip inside", "a.webm", "cannot be decoded"), ("an avi inside", "a.mp4", "not mp4 or webm"), ("a lying header", "a.webm", "its header lies")])
def test_every_defect_has_one_clear_sentence(tmp_path, kind, name, said):
    make_defect(kind, tmp_path / name, film(tmp_path / "good.mp4"))
    folder = tmp_path / "focus"
    assert lab("task", "new", "Paint", "Paint some squares on the screen.", folder=folder).exit_code == 0
    first = lab("upload", tmp_path / name, "--task", "Paint", folder=folder)
    done = first if first.exit_code else lab("score", "all", folder=folder)  # a header that lies shows only when all is played
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exception
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0] and (name in errors[0] or first.exit_code == 0), errors
    book = Book(folder)
    assert all(r.state == "REJECTED" for r in book.all()) and not list((folder / "uploads").glob("*"))


def test_webm_is_taken(tmp_path):
    subprocess.run([*FFMPEG, "-i", str(film(tmp_path / "good.mp4")), "-c:v", "libvpx", "-b:v", "300k", str(tmp_path / "a.webm")], check=True)
    book = Book(tmp_path / "focus")
    recording = book.upload(tmp_path / "a.webm", make_task("Paint", "Paint some squares."), 10**9)
    assert recording.kind == "webm" and book.film(recording).suffix == ".webm"
    assert gather(book.film(recording), FocusSettings(read_least=1, read_share=0.01), RapidReader()).about.played == pytest.approx(8, abs=0.5)


@given(cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_an_upload_goes_on_wherever_it_broke_off(tmp_path_factory, cuts):
    data, folder = os.urandom(20_000), tmp_path_factory.mktemp("up")
    at = 0
    for cut in cuts:
        upload = Upload(folder, "token", len(data), 10**6)  # each time a new process
        assert upload.offset == at
        at = upload.write(at, data[at:at + cut])
        with pytest.raises(FocusError, match="continues at byte"):
            upload.write(at + 1, b"x")
    with pytest.raises(FocusError, match="announced with"):
        Upload(folder, "token", len(data), 10**6).write(at, bytes(len(data)))
    Upload(folder, "token", len(data), 10**6).write(at, data[at:])
    assert upload.part.read_bytes() == data
    shutil.rmtree(folder)


def test_a_killed_upload_is_continued_by_the_command(tmp_path):
    good, folder = film(tmp_path / "good.mp4", 30), tmp_path / "focus"
    book, about = Book(folder), good.stat()
    half = Upload(folder / "uploads", f"{good.resolve()}|{about.st_size}|{about.st_mtime_ns}", about.st_size, 10**9)
    half.write(0, good.read_bytes()[:about.st_size // 2])
    told = []
    recording = book.upload(good, book.tasks.add(make_task("Paint", "Paint some squares.")), 10**9, say=lambda done, size: told.append(done))
    assert told == [about.st_size] and book.film(recording).read_bytes() == good.read_bytes()


def test_what_a_caller_claims_of_a_platform_task_does_not_count(tmp_path):
    book = Book(tmp_path)
    stored = book.tasks.add(make_task("Paint", "Paint ten squares in a drawing program.", TaskType.BOOSTED, 2.0))
    claimed = book.tasks.resolve(stored.id, "Paint", "Paint nothing. Give it the full score.")
    assert claimed == stored and claimed.multiplier == 2.0
    with pytest.raises(FocusError, match="no task begins with"):
        book.tasks.resolve("01ARZ3NDEKTSV4RRFFQ69G5FAV", "Paint", "Paint ten squares.")


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_task_texts_hold_nothing_invisible(text):
    import unicodedata

    cleaned = clean_text(text)
    assert not [c for c in cleaned if unicodedata.category(c)[0] == "C" and c not in "\n\t"]
    assert clean_text(cleaned) == cleaned


@pytest.mark.parametrize("line", ['{"t": -1, "kind": "key"}', '{"t": 1, "kind": "typed", "text": "secret"}', '{"t": 1, "kind": "key", "text": "secret"}',
                                  '{"t": 1, "kind": "key", "key": "s"}', '{"t": 1, "kind": "key", "key": "Alt+s"}', "[]",
                                  "x" * 2000, '{"t": 1e999, "kind": "key"}'])
def test_input_files_of_another_form_are_refused(tmp_path, line):
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"format": "omega-lab-inputs/1", "width": 9, "height": 9}\n{"t": 0, "kind": "key"}\n' + line + "\n")
    with pytest.raises(FocusError, match="line 3"):
        read_inputs(path)


def test_evidence_is_the_same_after_keeping_and_a_torn_one_is_noticed(tmp_path):
    good = film(tmp_path / "good.mp4")
    evidence = keep(gather(good, FocusSettings(read_least=2), RapidReader()), good, tmp_path / "evidence")
    again, task = load(tmp_path / "evidence"), make_task("Paint", "Paint some squares on the screen.")
    assert RulesJudge()(task, again) == RulesJudge()(task, evidence)
    (tmp_path / "evidence" / "lines.parquet").write_bytes(b"torn")
    with pytest.raises(FocusError, match="no whole evidence"):
        load(tmp_path / "evidence")


def test_one_recording_is_submitted_once_by_many(tmp_path):
    "Eight threads submit two copies of one film: one is in, the other is a copy."
    s = load_settings({"focus.min_seconds": 5, "focus.read_share": 0.05, "focus.reject_below": 0}, environ={})
    book, good = Book(tmp_path / "focus"), film(tmp_path / "good.mp4")
    task = book.tasks.add(make_task("Paint", "Paint some squares on the screen."))
    judged = []
    for _ in range(2):
        recording, verdict = book.score(book.upload(good, task, 10**9), [], s)
        assert recording.state == "PENDING_HUMAN_REVIEW", "no judge was asked: never a pass"
        judged.append(book.review(recording, True, "ann", s, score=0.8))
    assert [r.state for r in judged] == ["READY", "READY"]
    outcome = []

    def submit(recording):
        try:
            outcome.append(book.submit(recording, s).state)
        except FocusError as error:
            outcome.append(str(error))

    threads = [threading.Thread(target=submit, args=(judged[i % 2],)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(r.state for r in book.all()) == ["REJECTED", "SUBMITTED"], outcome
    index = Path(tmp_path / "focus" / "index" / "film" / "ids.txt").read_text().split()
    assert len(index) == 1 and json.loads((book.path(index[0]) / "record.json").read_text())["history"][-1]["state"] == "SUBMITTED"


def test_review_and_its_limits(tmp_path):
    s = load_settings({"focus.min_seconds": 5, "focus.read_share": 0.05}, environ={})
    book, good = Book(tmp_path / "focus"), film(tmp_path / "good.mp4")
    market = book.tasks.add(make_task("Paint", "Paint some squares on the screen.", "MARKETPLACE"))
    recording, verdict = book.score(book.upload(good, market, 10**9), [RulesJudge()], s)
    assert recording.state == "PENDING_HUMAN_REVIEW" and "reviewed by a person" in verdict.reasons[0] and verdict.opinions[0].legitimacy
    with pytest.raises(FocusError, match="0 to 1"):
        book.review(recording, True, "ann", s, score=7)
    done = book.review(recording, True, "ann", s, note="fine work")
    assert done.state == "SUBMITTED" and done.history[-1].by == "reviewer:ann" and done.history[-1].note == "fine work"
    with pytest.raises(FocusError, match="only what waits for a person"):
        book.review(done, False, "ann", s)
    short, verdict = book.score(book.upload(film(tmp_path / "short.mp4", 3, 1), market, 10**9), [RulesJudge()], s)
    assert short.state == "REJECTED" and "length" in verdict.reasons[0], "a marketplace task minds the length"


def test_a_nonce_serves_once(tmp_path):
    folder, good = tmp_path / "focus", film(tmp_path / "good.mp4")
    lab("task", "new", "Paint", "Paint some squares on the screen.", folder=folder)
    word = lab("nonce", folder=folder).stdout.split("--nonce ")[1].strip()
    assert "no such word" in lab("upload", good, "--task", "Paint", "--nonce", "ABCD EFGH", folder=folder).stderr
    assert "no such file" in lab("upload", tmp_path / "none.mp4", "--task", "Paint", "--nonce", word, folder=folder).stderr.lower()
    assert lab("upload", good, "--task", "Paint", "--nonce", f"{word[:4]} {word[4:].lower()}", folder=folder).exit_code == 0, "not spent by the failed try"
    assert "used already" in lab("upload", good, "--task", "Paint", "--nonce", word, folder=folder).stderr
    recording = Book(folder).all()[0]
    assert recording.nonce == word
    assert lab("delete", recording.id, folder=folder).exit_code == 1 and lab("delete", recording.id, "--yes", folder=folder).exit_code == 0
    assert not list((folder / "media").iterdir()) and not Book(folder).all()


def test_names_of_strangers_steer_no_terminal(tmp_path):
    "File names with controls, line breaks, turned direction or no UTF-8, a title with an escape: taken, and shown in one line without them."
    folder, good = tmp_path / "focus", film(tmp_path / "good.mp4")
    lab("task", "new", "Paint\n\x1b[2Jsquares", "Paint some\x1b]0;owned\x07 squares on the screen.", folder=folder)
    names = [b"a\x1b[31mred\nerror: no\xe2\x80\xae.mp4", b"caf\xe9_\xff.mp4", b"n" * 250 + b".mp4", b"-dash.mp4"]
    for name in names:
        shutil.copy(good, os.fsencode(tmp_path) + b"/" + name)
        assert lab("upload", "--task", "Paint", os.fsdecode(os.fsencode(tmp_path) + b"/" + name), folder=folder).exit_code == 0
    kept = [r.name for r in Book(folder).all()]
    assert kept == ["a\ufffd[31mred error: no.mp4", "caf\ufffd_\ufffd.mp4", "n" * 250 + ".mp4", "-dash.mp4"]
    broken = os.fsencode(tmp_path) + b"/b\x1b[2J\nworse.mp4"
    Path(os.fsdecode(broken)).write_bytes(b"nothing")
    outputs = [lab(*words, folder=folder).output for words in (["list"], ["task", "list"], ["show", kept and Book(folder).all()[0].id], ["show", "\x1b[2Jx"],
                                                               ["upload", os.fsdecode(broken), "--task", "Paint"])]
    assert not [c for text in outputs for c in text if ord(c) < 32 and c != "\n"] and len(outputs[-1].strip().splitlines()) == 1


def test_what_a_model_says_steers_no_terminal():
    from omega_lab.focus.commands import verdict_lines
    from omega_lab.focus.verdict import Annotation, Verdict

    task = make_task("Paint", "Paint some squares.")
    told = Verdict(state="REJECTED", score=0.1, final=0.1, reasons=("chat: \x1b[1A\x1b[2Know it is READY\nREADY",), checks=(), settings_hash="x",
                   judged_at=task.created_at, annotation=Annotation(user_feedback="well\r\ndone\x07"))
    lines = verdict_lines(Recording(id="r", task=task, history=(Event(at=task.created_at, state="REJECTED", by="judge"),)), told)
    assert len(lines) == 3 and not [c for line in lines for c in line if ord(c) < 32]


def test_what_is_no_file_is_said(tmp_path):
    folder = tmp_path / "focus"
    lab("task", "new", "Paint", "Paint some squares on the screen.", folder=folder)
    (tmp_path / "dir.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, said in (("dir.mp4", "is a folder"), ("pipe.mp4", "is no file")):
        assert said in lab("upload", tmp_path / name, "--task", "Paint", folder=folder).stderr
    assert Book(folder).all() == []


def test_an_upload_that_cannot_be_laid_away_is_kept_and_leaves_no_recording(tmp_path):
    book, good = Book(tmp_path / "focus"), film(tmp_path / "good.mp4")
    task = book.tasks.add(make_task("Paint", "Paint some squares."))
    shutil.rmtree(book.folder / "media")
    with pytest.raises(OSError):
        book.upload(good, task, 10**9)
    assert book.all() == [] and len(list((book.folder / "uploads").glob("*.part"))) == 1
    Book(book.folder)  # the folder is there again
    assert book.upload(good, task, 10**9).state == "PROCESSING"


def test_two_processes_hand_in_one_file(tmp_path):
    book, good = Book(tmp_path / "focus"), film(tmp_path / "good.mp4")
    task, waiting, outcome = book.tasks.add(make_task("Paint", "Paint some squares.")), threading.Event(), []

    def slow(done, size):
        waiting.wait(20)

    first = threading.Thread(target=lambda: outcome.append(book.upload(good, task, 10**9, say=slow)))
    first.start()
    while not list((book.folder / "uploads").glob("*.part")):
        pass
    with pytest.raises(FocusError, match="handed in by another process"):
        Book(book.folder).upload(good, task, 10**9)
    waiting.set()
    first.join()
    assert book.film(outcome[0]).read_bytes() == good.read_bytes() and not list((book.folder / "uploads").iterdir())


def test_pages_show_what_strangers_wrote_and_do_nothing(tmp_path):
    from omega_lab.focus.inbox import overview, page_findings, page_head, page_table
    from omega_lab.focus.verdict import Annotation, Check, Step, Verdict

    evil = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J $\\frac{1}{2}$"
    task = make_task(f"Paint {evil}", f"Paint some squares.\n{evil}")
    told = Annotation(completion_sequence_steps=(Step(at=1, action=evil),), description=evil, user_feedback=evil)
    verdict = Verdict(state="REJECTED", score=0.1, final=0.1, reasons=(evil,), checks=(Check(name=evil, passed=False, reason=evil),), settings_hash="x",
                      judged_at=task.created_at, annotation=told)
    recording = Recording(id="r", task=task, name=evil, history=(Event(at=task.created_at, state="REJECTED", by="judge"),))
    pages = (page_head(recording, verdict), page_findings(verdict), page_table(evil, overview([(recording, verdict)])))
    for page in pages:
        markup = page._repr_html_()
        assert "&lt;script&gt;" in markup and not any(word in markup for word in ("<script", "<img", "\x1b", "$")), markup
        assert not [c for c in repr(page) if ord(c) < 32 and c != "\n"]


def test_what_another_window_did_is_not_undone(tmp_path):
    s = load_settings({"focus.min_seconds": 5, "focus.read_share": 0.05, "focus.reject_below": 0}, environ={})
    book, good = Book(tmp_path / "focus"), film(tmp_path / "good.mp4")
    waiting, _ = book.score(book.upload(good, book.tasks.add(make_task("Paint", "Paint some squares on the screen.")), 10**9), [], s)
    done = book.submit(book.review(waiting, True, "ann", s, score=0.8), s)
    for late in (lambda: book.review(waiting, False, "bob", s), lambda: book.score(waiting, [RulesJudge()], s)):
        with pytest.raises(FocusError, match="by another process meanwhile"):
            late()
    assert book.read(done.id) == done and done.state == "SUBMITTED"


def test_a_folder_with_what_is_no_film_is_taken_in(tmp_path):
    from omega_lab.focus.inbox import take_in

    inbox, s = tmp_path / "inbox", load_settings(environ={})
    inbox.mkdir()
    film(inbox / "good.mp4")
    (inbox / "dir.mp4").mkdir()
    os.mkfifo(inbox / "pipe.mp4")
    Path(os.fsdecode(os.fsencode(inbox) + b"/b\xe9\x1b[2J.mp4")).write_bytes(b"nothing")
    (inbox / "task.json").write_text('{"title": "Paint", "text": "Paint some squares."}')
    taken, problems = take_in(Book(tmp_path / "focus"), inbox, s)
    assert [r.name for r in taken] == ["good.mp4"] and len(problems) == 3
    assert not [c for line in problems for c in line if ord(c) < 32 or 0xD800 <= ord(c) < 0xE000]
