"""A PostgreSQL server of one's own for tests, from Debian's packages; on a socket in its own folder, gone afterwards."""

import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MISSING = "PostgreSQL's server is not on this machine (Debian's package: postgresql): what wants it is skipped"


def programs() -> Path | None:
    "Where initdb and postgres are."
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [p for p in [shutil.which("initdb")] if p]
    return Path(found[-1]).resolve().parent if found else None


@contextmanager
def postgres_server() -> Iterator[str]:
    "SQLAlchemy's URL of a fresh server, without a database's name; it does not start as root, so it runs as its own user then."
    bin_, user = programs(), "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    shutil.chown(folder, user)
    as_user = {"user": user, "cwd": folder} if os.getuid() == 0 else {"cwd": folder}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    subprocess.run([bin_ / "initdb", "-D", folder / "data", "-A", "trust", "-U", "lab", "-E", "UTF8", "--no-sync"], check=True, capture_output=True, **as_user)
    server = subprocess.Popen([bin_ / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1",
                               "-c", "max_connections=200", "-c", "fsync=off"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user)
    try:
        subprocess.run([bin_ / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "20"], capture_output=True)
        wait_until_ready(bin_, port)
        yield f"postgresql+psycopg://lab@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_ready(bin_: Path, port: int) -> None:
    for _ in range(100):
        if subprocess.run([bin_ / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True).returncode == 0:
            return
        __import__("time").sleep(0.1)
    raise RuntimeError("PostgreSQL did not start")


def make_database(server: str, name: str) -> str:
    "The URL of a new, empty database."
    import psycopg

    with psycopg.connect(server.replace("postgresql+psycopg", "postgresql") + "/postgres", autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
    return f"{server}/{name}"
