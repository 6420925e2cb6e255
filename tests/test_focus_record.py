"""Recording for real: a virtual screen, a program in a window, keys that are pressed, a recorder that is paused and killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from omega_lab.focus.book import Book
from omega_lab.focus.evidence import gather
from omega_lab.focus.inputs import moments, read_inputs
from omega_lab.focus.reading import RapidReader
from omega_lab.focus.record import Recorder, join_parts, part_arguments
from omega_lab.focus.task import FocusError, make_task
from omega_lab.media import MediaError, frames, probe
from omega_lab.settings import FocusSettings, RecorderSettings

lacking = [name for name in ("Xvfb", "xterm", "xdotool") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f"a virtual screen wants {', '.join(lacking)}: apt-get install xvfb xterm xdotool")


class Screen:
    "A virtual screen with a terminal on it."

    def __init__(self):
        read, write = os.pipe()
        self.processes = [subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "800x480x24", "-nolisten", "tcp"], pass_fds=[write],
                                           stderr=subprocess.DEVNULL)]
        os.close(write)
        with os.fdopen(read) as file:
            self.display = f":{file.readline().strip()}"
        self.environ = os.environ | {"DISPLAY": self.display}
        terminal = ["xterm", "-fs", "12", "-geometry", "80x24+0+0", "-e", "bash", "--norc"]
        self.processes.append(subprocess.Popen(terminal, env=self.environ, stderr=subprocess.DEVNULL))
        self.hands("search", "--sync", "--onlyvisible", "--class", "xterm", "windowfocus")
        time.sleep(0.5)

    def hands(self, *arguments):
        subprocess.run(["xdotool", *arguments], env=self.environ, check=True, timeout=30, stdout=subprocess.DEVNULL)

    def close(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()


@pytest.fixture
def screen():
    it = Screen()
    yield it
    it.close()


def lab(*arguments, environ, **how):
    return subprocess.Popen([sys.executable, "-m", "omega_lab.cli", "focus", *arguments], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **how)


def done(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, (out, err)
    return out


def recorded(part, seconds, patience=90):
    "Wait until so many seconds of a film that is being recorded can be played: how soon that is depends on the machine."
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if probe(part).duration >= seconds:
                return
        except MediaError:
            pass  # nothing is in it yet
        time.sleep(0.2)
    raise AssertionError(f"{part} does not grow")


def book_in(folder):
    book = Book(folder)
    return book, book.tasks.add(make_task("Hello", "Say hello in a terminal, twice."))


def test_parts_whose_rates_differ_join_to_their_sum(tmp_path):
    "A grabber that starts on a busy machine takes 10.2 frames a second for its rate, the next one 10."
    parts = []
    for rate, seconds in (("10", 3), ("61/6", 2)):
        command = part_arguments(RecorderSettings(display=":0"), tmp_path / f"part-{len(parts)}.mp4", "linux")
        encode = command[command.index("-vf"):]
        subprocess.run([command[0], "-v", "error", "-f", "lavfi", "-i", f"testsrc=r={rate}:s=320x240:d={seconds}", *encode], check=True)
        parts.append(Path(command[-1]))
    joined = join_parts(parts, tmp_path / "film.mp4")
    assert joined.info.duration == pytest.approx(5, abs=0.2)


def test_a_recording_with_a_pause_shows_nonce_and_work(screen, tmp_path):
    settings = RecorderSettings(display=screen.display, inputs="full", nonce_seconds=2)
    with Recorder(tmp_path, settings, "HX7PL4WM") as recorder:
        recorder.start()
        time.sleep(2.6)
        screen.hands("type", "--delay", "30", "echo hello 42")
        screen.hands("key", "Return", "ctrl+l")
        recorder.pause()
        screen.hands("type", "in the pause")  # not in the film, nor in the events
        time.sleep(0.5)
        before = recorder.seconds
        recorder.start()
        screen.hands("mousemove", "400", "240", "click", "1")
        time.sleep(1.5)
        assert recorder.seconds > before + 1
    joined = join_parts(recorder.parts, tmp_path / "film.mp4")
    assert len(recorder.parts) == 2 and not joined.skipped
    assert joined.info.duration == pytest.approx(sum(probe(part).duration for part in recorder.parts), abs=0.5)
    events = read_inputs(tmp_path / "inputs.jsonl").events
    keys = [event.key for event in events if event.kind == "key"]
    assert keys == [*["letter"] * 4, "space", *["letter"] * 5, "space", "digit", "digit", "Return", "Ctrl+L"], "classes of characters, names of keys"
    click = next(event for event in events if event.kind == "click")
    assert (click.x, click.y, click.button, click.down) == (0.5, 0.5, "left", True) and before - 0.2 <= click.t <= joined.info.duration + 0.5
    evidence = gather(joined.path, FocusSettings(read_least=30), RapidReader(), nonce="HX7PL4WM", inputs=tmp_path / "inputs.jsonl")
    assert evidence.of("nonce")[0].value == 1 and evidence.about.inputs == "full"
    assert int(evidence.signals["key"].sum()) == len(keys)


def test_counts_alone_hold_neither_keys_nor_places(screen, tmp_path):
    with Recorder(tmp_path, RecorderSettings(display=screen.display)) as recorder:
        recorder.start()
        time.sleep(0.5)  # what is pressed before the first picture is none of the film's
        screen.hands("type", "secret")
        screen.hands("mousemove", "10", "10", "click", "3")
        time.sleep(0.3)
    text = (tmp_path / "inputs.jsonl").read_text()
    assert '"level":"counts"' in text and not {"key\":", '"x"', "button"} & set(text.replace("{", ",").split(",")), text
    counts = read_inputs(tmp_path / "inputs.jsonl").per_second(60).sum(0)
    assert counts[0] == 6 and counts[1] == 1


def test_the_command_records_and_a_signal_ends_it(screen, tmp_path):
    book, task = book_in(tmp_path / "focus")
    place = ["--set", f"paths.focus={tmp_path / 'focus'}", "--set", f"recorder.display={screen.display}"]
    process = lab("record", "Hello", *place, environ=screen.environ)
    until = time.monotonic() + 60
    while not (parts := list((tmp_path / "focus").glob("recordings/*/parts/part-000.mp4"))) and time.monotonic() < until:
        time.sleep(0.1)
    recorded(parts[0], 2)
    with pytest.raises(FocusError, match="by another process"):
        book.finish(book.all()[0])
    with pytest.raises(FocusError, match="by another process"):
        book.delete(book.all()[0])
    process.send_signal(signal.SIGINT)
    out = done(process)
    assert "omega-lab focus score" in out
    recording = book.all()[0]
    assert recording.state == "PROCESSING" and probe(book.film(recording)).duration > 1.5
    assert book.film(recording).name == f"{recording.sha256}.mp4" and not (book.path(recording) / "parts").exists()
    assert (tmp_path / "focus").stat().st_mode & 0o077 == 0, "for the owner alone"


def test_a_killed_recorder_loses_two_seconds_at_most(screen, tmp_path):
    book, task = book_in(tmp_path / "focus")
    place = ["--set", f"paths.focus={tmp_path / 'focus'}", "--set", f"recorder.display={screen.display}"]
    process = lab("record", "Hello", *place, environ=screen.environ, start_new_session=True)
    until = time.monotonic() + 60
    while not (parts := list((tmp_path / "focus").glob("recordings/*/parts/part-000.mp4"))) and time.monotonic() < until:
        time.sleep(0.1)
    grabbers = subprocess.run(["pgrep", "-f", str(parts[0])], capture_output=True, text=True).stdout.split()
    time.sleep(6)
    for pid in [*map(int, grabbers), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    recording = book.all()[0]
    assert recording.state == "IN_PROGRESS"
    with pytest.raises(FocusError, match="focus finish"):
        book.score(recording, [], None)
    assert "clips joined" in done(lab("finish", recording.id, *place, environ=screen.environ))
    assert probe(book.film(book.get(recording.id))).duration >= 3.5


def test_no_grabber_outlives_its_recorder(screen, tmp_path):
    book_in(tmp_path / "focus")
    place = ["--set", f"paths.focus={tmp_path / 'focus'}", "--set", f"recorder.display={screen.display}"]
    process = lab("record", "Hello", *place, environ=screen.environ)
    until = time.monotonic() + 60
    while not (parts := list((tmp_path / "focus").glob("recordings/*/parts/part-000.mp4"))) and time.monotonic() < until:
        time.sleep(0.1)
    recorded(parts[0], 1)
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", str(parts[0])], capture_output=True).returncode == 0 and time.monotonic() < until:
        time.sleep(0.1)
    assert subprocess.run(["pgrep", "-f", str(parts[0])], capture_output=True).returncode == 1, "it still records"
    assert probe(parts[0]).duration >= 1, "and what it had is whole"


def test_no_screen_is_said_and_leaves_nothing(tmp_path):
    book, task = book_in(tmp_path / "focus")
    environ = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    for more, said in (([], "DISPLAY is not set"), (["--set", "recorder.display=:4711"], "cannot be recorded")):
        process = lab("record", "Hello", "--seconds", "2", "--set", f"paths.focus={tmp_path / 'focus'}", *more, environ=environ)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1 and said in err and "Traceback" not in err, err
    assert book.all() == []


def test_part_of_the_screen(screen, tmp_path):
    with Recorder(tmp_path / "a", RecorderSettings(display=screen.display, size="320x200+5+7", inputs="off")) as recorder:
        recorder.start()
        time.sleep(1)
    assert frames(recorder.parts[0], [0.2]).shape == (1, 200, 320, 3) and np.ptp(frames(recorder.parts[0], [0.5])) > 0
    assert not Path(tmp_path / "a" / "inputs.jsonl").exists()


def test_places_of_events_are_where_the_film_shows_the_pointer(screen, tmp_path):
    "The pointer goes to known places; the film's clock and the events' agree, and so do the places, though the film shows a part of the screen."
    subprocess.run(["xdotool", "mousemove", "700", "400"], env=screen.environ, check=True)
    with Recorder(tmp_path, RecorderSettings(display=screen.display, size="400x240+300+200", inputs="full")) as recorder:
        recorder.start()
        time.sleep(1.2)
        for place in ((400, 300), (500, 400), (10, 10), (600, 260)):
            screen.hands("mousemove", *map(str, place), "click", "1")
            time.sleep(0.8)
    log = read_inputs(tmp_path / "inputs.jsonl")
    assert log.header.area == (300, 200, 400, 240)
    found = list(moments(recorder.parts[0], log, 0.1))
    clicks = [(m.t, a) for m in found for a in m.actions if a.kind == "click" and a.down]
    assert [(round(a.x * 400), round(a.y * 240)) for _, a in clicks] == [(100, 100), (200, 200), (300, 60)], "the one beside the film is left out"
    still = found[0].frame.astype(int)
    for at, click in clicks:  # the pointer comes to where the click was within a fifth of a second of the event
        x, y = round(click.x * 400), round(click.y * 240)
        near = (slice(y - 8, y + 8), slice(x - 8, x + 8))
        first = next(m.t for m in found if np.abs(m.frame[near] - still[near]).max() > 60)
        assert abs(first - click.t) <= 0.25, (first, click.t, at)


def test_a_number_block_and_accents_give_nothing_away(screen, tmp_path):
    with Recorder(tmp_path, RecorderSettings(display=screen.display, inputs="full")) as recorder:
        recorder.start()
        screen.hands("key", "KP_1", "KP_End", "KP_5", "KP_Add", "KP_Enter", "shift+a", "ctrl+alt+q", "ctrl+space")
        time.sleep(0.5)
    keys = [event.key for event in read_inputs(tmp_path / "inputs.jsonl").events if event.kind == "key" and event.key != "Num_Lock"]
    assert keys == ["digit", "digit", "digit", "sign", "KP_Enter", "letter", "letter", "Ctrl+space"]
