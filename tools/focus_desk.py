"A desk on a virtual screen: real programs in real windows, worked on by keyboard and mouse as a person would."

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from focus_packages import PROGRAMS
from imageio_ffmpeg import get_ffmpeg_exe

SIZE = (1280, 720)
BROWSER = (
    "--no-sandbox --test-type --disable-gpu --no-first-run --no-default-browser-check --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic --mute-audio --password-store=basic "
    "--autoplay-policy=no-user-gesture-required --disable-features=Translate,MediaRouter"
).split()
TERMINALS = {"light": ("white", "black"), "dark": ("#1d1f21", "#d0d0d0"), "green": ("black", "#33ff66")}


def missing() -> list[str]:
    "Programs a desk needs and this machine lacks."
    return [name for name in PROGRAMS if not shutil.which(name)]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        "Nobody reads it."


class Desk:
    """A virtual screen with a window manager, a home folder and a web server of its own; gone with everything on it when closed.

    `pace` multiplies every pause and keystroke: 1 is a quick typist, 2 a thoughtful one. `films` is a film to show pieces of.
    """

    def __init__(self, pace: float = 1.0, theme: str = "light", films: Path | None = None):
        self.pace, self.theme, self.films = pace, theme, films
        self.home = Path(tempfile.mkdtemp(prefix="focus-desk-"))
        self.pages = self.home / "www"
        self.pages.mkdir()
        self._processes: list[subprocess.Popen] = []
        self.display = self._screen()
        self.environ = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL")},
            "DISPLAY": self.display, "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home), "NO_AT_BRIDGE": "1",
            "GTK_THEME": "Adwaita:dark" if theme == "dark" else "Adwaita", "PS1": "$ ", "GSETTINGS_BACKEND": "memory",
            "LIBGL_ALWAYS_SOFTWARE": "1",
        }  # fmt: skip
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(self.pages)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.launch("openbox", wait=0.6)

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in reversed(self._processes):
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            except ProcessLookupError:
                process.wait()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _screen(self) -> str:
        "A free display number, chosen by the server itself."
        read, write = os.pipe()
        command = ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{SIZE[0]}x{SIZE[1]}x24", "-nolisten", "tcp"]
        self._processes.append(subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL, start_new_session=True))
        os.close(write)
        with os.fdopen(read) as file:
            number = file.readline().strip()
        if not number:
            raise RuntimeError("Xvfb did not start")
        return f":{number}"

    # --- programs

    def launch(self, *command: str, wait: float = 1.5, cwd: Path | None = None) -> subprocess.Popen:
        "Start a program; `wait` seconds are not shortened by the pace, since a program needs them."
        process = subprocess.Popen(command, env=self.environ, cwd=cwd or self.home, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        self._processes.append(process)
        time.sleep(wait)
        return process

    def window(self, pattern: str, by: str = "class", patience: float = 20.0) -> str:
        "The id of the window whose class (or name) matches, once it is there; it gets the keyboard."
        until = time.monotonic() + patience
        while time.monotonic() < until:
            found = self._do("search", "--onlyvisible", f"--{by}", pattern).split()
            if found:
                self._do("windowactivate", found[-1])
                time.sleep(0.3)
                return found[-1]
            time.sleep(0.2)
        raise RuntimeError(f"no window of class {pattern} came up")

    def place(self, pattern: str, x: int, y: int, width: int, height: int, by: str = "class") -> None:
        window = self.window(pattern, by)
        self._do("windowsize", window, str(width), str(height))
        self._do("windowmove", window, str(x), str(y))
        time.sleep(0.3)

    def terminal(self, geometry: str = "100x30+30+30", command: Sequence[str] = ("bash", "--norc", "--noprofile"), title: str = "Terminal") -> None:
        back, fore = TERMINALS[self.theme]
        self.launch("xterm", "-fa", "DejaVu Sans Mono", "-fs", "11", "-bg", back, "-fg", fore, "-T", title, "-geometry", geometry, "-e", *command)
        self.window("xterm")

    def editor(self, name: str, text: str | None = None, box: tuple[int, int, int, int] = (120, 60, 900, 560)) -> None:
        path = self.home / name
        if text is not None:
            path.write_text(text)
        self.launch("mousepad", str(path))
        self.place("mousepad", *box)

    def sheet(self) -> None:
        self.launch("gnumeric", "--no-splash", wait=3)
        self.place("gnumeric", 40, 20, 1150, 660)

    def paint(self) -> None:
        self.launch("mtpaint", wait=2)
        self.place("Settings Toolbar", 980, 480, 260, 200, by="name")
        self.place("^mtPaint", 20, 20, 940, 660, by="name")

    def page(self, name: str, html: str) -> str:
        "Put a page on the desk's server; returns its address."
        (self.pages / name).write_text(html, encoding="utf-8")
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def film(self, begin: float, seconds: float) -> None:
        "Lay a piece of the catalog's film on the server as film.mp4."
        cut = [get_ffmpeg_exe(), "-loglevel", "error", "-ss", str(begin), "-t", str(seconds), "-i", str(self.films), "-an"]
        small = ["-vf", "scale=640:-2", "-preset", "ultrafast"]
        subprocess.run([*cut, *small, "-y", str(self.pages / "film.mp4")], check=True, stdin=subprocess.DEVNULL)

    def browser(self, url: str, box: tuple[int, int, int, int] = (60, 20, 1120, 680)) -> None:
        where = [f"--window-position={box[0]},{box[1]}", f"--window-size={box[2]},{box[3]}", f"--user-data-dir={self.home}/chromium"]
        self.launch("chromium", *BROWSER, *where, url, wait=4)
        self.window("chromium")

    # --- hands

    def _do(self, *arguments: str) -> str:
        return subprocess.run(["xdotool", *arguments], env=self.environ, capture_output=True, text=True, timeout=120).stdout

    def wait(self, seconds: float) -> None:
        time.sleep(seconds * self.pace)

    def type(self, text: str, key: str = "") -> None:
        self._do("type", "--delay", str(round(85 * self.pace)), "--", text)
        if key:
            self.key(key)

    def line(self, text: str) -> None:
        "Type a line and look at what comes of it."
        self.type(text, "Return")
        self.wait(1.2)

    def key(self, *names: str) -> None:
        for name in names:
            self._do("key", name)
            self.wait(0.25)

    def click(self, x: int, y: int) -> None:
        self._do("mousemove", str(x), str(y))
        self.wait(0.3)
        self._do("click", "1")
        self.wait(0.5)

    def scroll(self, notches: int, down: bool = True) -> None:
        for _ in range(notches):
            self._do("click", "5" if down else "4")
            self.wait(0.4)

    def drag(self, *points: tuple[int, int]) -> None:
        "Press at the first point, move along the others, let go."
        self._do("mousemove", *map(str, points[0]), "mousedown", "1")
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            steps = max(2, int(12 * self.pace))
            for k in range(1, steps + 1):
                self._do("mousemove", str(x0 + (x1 - x0) * k // steps), str(y0 + (y1 - y0) * k // steps))
                self.wait(0.08)
        self._do("mouseup", "1")
        self.wait(0.4)
