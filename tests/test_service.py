"""What keeps a neuron running: units that the machine's own tools accept, and updates that only signed tags bring."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omega_lab.cli import app
from omega_lab.settings import UpdateSettings
from omega_lab.units import Service, UnitError, pm2_file, program, systemd_unit
from omega_lab.update import Checkout, UpdateError, Updater, open_updater, version


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
@pytest.mark.parametrize("user", ["", "root"])
def test_systemd_takes_the_unit(tmp_path, user):
    unit = tmp_path / "omega-lab-miner.service"
    folder = tmp_path / "a folder, 100%"
    folder.mkdir()
    unit.write_text(systemd_unit(Service("miner", arguments=["--topic", 'rivers & "lakes"', "--netuid", "24"], folder=folder, user=user)))
    done = subprocess.run(["systemd-analyze", "verify", *([] if user else ["--user"]), str(unit)], capture_output=True, text=True,
                          env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert "omega-lab-miner.service" not in done.stderr, done.stderr
    text = unit.read_text()
    assert f"ExecStart={program()} miner --every 20m" in text and "\nRestartPreventExitStatus=2\n" in text and ("User=root" in text) == bool(user)


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_node_reads_the_pm2_file(tmp_path):
    path = tmp_path / "omega-lab-validator.config.js"
    path.write_text(pm2_file(Service("validator", "5m", ["--topic", "it's `$x`"], tmp_path, stop_within=60)))
    code = f"const a = require({str(path)!r}).apps[0]; console.log([a.script, ...a.args, a.kill_timeout, a.treekill].join('|'))"
    read = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout.strip()
    assert read == f"{program()}|validator|--every|5m|--topic|it's `$x`|90000|false"


@pytest.mark.parametrize("secret", ["--api-key=abc", "language.openai_api_key=abc", "source.proxy=http://me:pw@h:1", "wallet.password=x"])
def test_a_unit_holds_no_secrets(secret):
    with pytest.raises(UnitError, match="environment file"):
        Service("miner", arguments=["--set", secret])


def test_the_service_command(tmp_path):
    run = CliRunner()
    done = run.invoke(app, ["service", "systemd", "miner", "--every", "30m", "-o", str(tmp_path / "u"), "--wallet.name", "W", "--state", "s"])
    assert done.exit_code == 0, done.output
    assert "miner --every 30m --wallet.name W --state s\n" in (tmp_path / "u").read_text()
    assert "systemctl --user enable --now omega-lab-miner.service" in done.stderr and "loginctl enable-linger" in done.stderr
    typo = run.invoke(app, ["service", "systemd", "validator", "--walet.name", "x"], env={"COLUMNS": "200"})
    assert typo.exit_code == 2 and "--walet.name" in typo.stderr and not typo.stdout
    assert "omega-lab api\n" in run.invoke(app, ["service", "systemd", "api"]).stdout
    for wrong, said in ((["upstart", "miner"], "systemd, pm2"), (["pm2", "minor"], "miner, validator, api"), (["pm2", "miner", "--every", "x"], "no period")):
        done = run.invoke(app, ["service", *wrong])
        assert done.exit_code == 2 and said in done.stderr


class Repositories:
    "A remote with releases, a checkout of its first one, and keys."

    def __init__(self, top: Path):
        self.top, self.origin, self.here = top, top / "origin", top / "here"
        for name in ("ours", "stranger"):
            self.sh(top, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name)
        (top / "signers").write_text(f'ours namespaces="git" {(top / "ours.pub").read_text()}')
        self.origin.mkdir()
        self.sh(self.origin, "git", "init", "-q", "-b", "main")
        self.release("0.1.0")
        self.sh(top, "git", "clone", "-q", "origin", "here")
        self.said: list[str] = []

    def sh(self, folder: Path, *command: str) -> str:
        who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "A"), ("EMAIL", "a@example.org"))}
        env = os.environ | who | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=env).stdout.strip()

    def commit(self, number: str, text: str = "") -> None:
        (self.origin / "pyproject.toml").write_text(f'[project]\nname = "tried"\nversion = "{number}"\n{text}')
        (self.origin / "code.py").write_text(f"number = {number!r}\n")
        self.sh(self.origin, "git", "add", "-A")
        self.sh(self.origin, "git", "commit", "-qm", number)

    def tag(self, name: str, key: str | None = "ours", force: bool = False) -> None:
        sign = ["-c", "gpg.format=ssh", "-c", f"user.signingkey={self.top / str(key)}.pub", "tag", "-s"] if key else ["tag", "-a"]
        self.sh(self.origin, "git", *sign, *(["-f"] if force else []), "-m", name, name)

    def release(self, number: str, key: str | None = "ours") -> None:
        self.commit(number)
        self.tag(f"v{number}", key)

    def updater(self, running: str = "0.1.0") -> Updater:
        updater = Updater(Checkout(self.here, self.top / "signers"), running, say=self.said.append)
        updater._pip = lambda: self.said.append("pip")  # the real one has a test of its own
        return updater

    def code(self) -> str:
        return (self.here / "code.py").read_text()


@pytest.fixture
def repositories(tmp_path):
    return Repositories(tmp_path)


def test_a_good_tag_is_taken_and_the_requirements_with_it(repositories):
    repositories.release("0.2.0")
    repositories.release("0.10.0")
    assert repositories.updater().update() == "v0.10.0" and repositories.code() == "number = '0.10.0'\n"
    assert repositories.said == ["pip", "updated from 0.1.0 to v0.10.0, signed by an allowed signer"]
    assert repositories.updater("0.10.0").update() is None


@pytest.mark.parametrize(("name", "key", "said"), [
    ("v0.2.0", None, "v0.2.0 is not signed by ssh"), ("v0.2.0", "stranger", "signed by nobody in"), ("v0.3.0", "ours", "v0.3.0 holds version 0.2.0")])
def test_a_tag_that_is_not_to_be_trusted_is_refused_and_not_kept(repositories, name, key, said):
    repositories.commit("0.2.0")
    repositories.tag(name, key)
    updater = repositories.updater()
    assert updater.update() is None and updater.update() is None
    assert len(repositories.said) == 1 and said in repositories.said[0] and repositories.code() == "number = '0.1.0'\n"
    assert repositories.sh(repositories.here, "git", "tag") == "v0.1.0"


def test_a_bare_name_for_a_commit_and_a_good_tag_under_a_new_name_are_refused(repositories):
    repositories.commit("0.2.0")
    repositories.sh(repositories.origin, "git", "tag", "v0.2.0")
    old = repositories.sh(repositories.origin, "git", "rev-parse", "refs/tags/v0.1.0")
    repositories.sh(repositories.origin, "git", "update-ref", "refs/tags/v9.0.0", old)
    assert repositories.updater().update() is None
    assert "v9.0.0: the signed text speaks of v0.1.0" in repositories.said[0] and "v0.2.0 is not signed: it is a bare name" in repositories.said[1]


def test_a_moved_tag_is_refused(repositories):
    repositories.release("0.2.0")
    repositories.sh(repositories.here, "git", "fetch", "-q", "--tags")
    repositories.commit("0.2.0", "# changed\n")
    repositories.tag("v0.2.0", force=True)
    assert repositories.updater().update() is None and "v0.2.0 was moved" in repositories.said[0] and repositories.code() == "number = '0.1.0'\n"


def test_an_older_version_is_no_update_and_a_bad_one_does_not_hide_a_good_one(repositories):
    repositories.release("0.2.0")
    repositories.release("0.3.0", "stranger")
    assert repositories.updater("0.2.0").update() is None and "v0.3.0 is signed by nobody" in repositories.said[0]
    assert repositories.updater().update() == "v0.2.0"


@pytest.mark.parametrize("change", ["tracked", "commit"])
def test_work_in_the_checkout_is_never_touched(repositories, change):
    repositories.release("0.2.0")
    (repositories.here / "code.py").write_text("mine = 1\n")
    if change == "commit":
        repositories.sh(repositories.here, "git", "commit", "-qam", "mine")
    assert repositories.updater().update() is None and repositories.code() == "mine = 1\n"
    assert ("were changed" if change == "tracked" else "commits of its own") in repositories.said[0]


def test_a_remote_that_is_gone_does_not_end_the_rounds(repositories):
    repositories.origin.rename(repositories.top / "elsewhere")
    updater = repositories.updater()
    with pytest.raises(UpdateError, match="git ls-remote"):
        updater.update()
    assert updater.between_rounds() is False and "no update: git ls-remote" in repositories.said[0]


BACKEND = """import os, zipfile

def build_editable(folder, settings=None, metadata=None):
    name = "tried-VERSION-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("tried.pth", os.getcwd())
        wheel.writestr("tried-VERSION.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tried\\nVersion: VERSION\\n")
        wheel.writestr("tried-VERSION.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: tests\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tried-VERSION.dist-info/RECORD", "")
    return name
"""


def test_pip_installs_the_new_version_and_a_failure_puts_the_old_one_back(repositories):
    r = repositories
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (r.origin / "backend.py").write_text(BACKEND.replace("VERSION", "0.2.0"))
    (r.origin / ".gitignore").write_text("__pycache__\n")
    r.commit("0.2.0", build)
    r.tag("v0.2.0")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(r.top / "venv")], check=True)
    python = str(r.top / "venv" / "bin" / "python")
    if subprocess.run([python, "-c", "import pip"], capture_output=True).returncode:
        subprocess.run([python, "-m", "ensurepip"], check=True)
    updater = Updater(Checkout(r.here, r.top / "signers"), "0.1.0", say=r.said.append, python=python)
    assert updater.update() == "v0.2.0"
    shown = [python, "-c", "import importlib.metadata as m; print(m.version('tried'))"]
    assert subprocess.run(shown, capture_output=True, text=True, cwd=r.top).stdout.strip() == "0.2.0"
    (r.origin / "backend.py").write_text("raise OSError('does not build')\n")
    r.commit("0.3.0", build)
    r.tag("v0.3.0")
    updater.running = "0.2.0"
    with pytest.raises(UpdateError, match="pip install"):
        updater.update()
    assert r.code() == "number = '0.2.0'\n" and updater.update() is None


def test_what_an_update_needs_is_said(tmp_path):
    with pytest.raises(UpdateError, match=r"signers must name a file|needs a git checkout"):
        open_updater(UpdateSettings(auto=True))
    assert version("v1.2.3") == (1, 2, 3) and version("v1.2") is None and version("1.2.3 --upload-pack=x") is None
