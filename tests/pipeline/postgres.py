"""A PostgreSQL server of the distribution's package, on loopback, in a folder of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pipeline.lab import free_ports

OWNER = "postgres"  # the package's user: the server refuses to run as root


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the address of a server without the database's name: postgresql://postgres:PASSWORD@127.0.0.1:PORT."""
    programs = find_programs()
    (port,) = free_ports(1)
    password = secrets.token_hex(12)
    folder = Path(tempfile.mkdtemp(prefix="gtl-postgres-"))
    try:
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, OWNER)
        data = folder / "data"
        login = ["--auth=scram-sha-256", f"--username={OWNER}", f"--pwfile={folder / 'password'}"]
        run(folder, programs / "initdb", f"--pgdata={data}", "--encoding=UTF8", "--no-sync", *login)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run(folder, programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://{OWNER}:{password}@127.0.0.1:{port}"
        finally:
            run(folder, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_programs() -> Path:
    """Folder of initdb and pg_ctl; skips the test where the package is missing or cannot be used."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL's server is not installed (`apt-get install postgresql`)")
    return found[-1].parent


def create_database(server: str, name: str) -> str:
    """Make an empty database; return its address."""
    import psycopg

    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return f"{server}/{name}"


def run(folder: Path, *command: str | Path) -> None:
    """Run a program of the package as its user."""
    words = [str(word) for word in command]
    if os.geteuid() == 0:
        words = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--init-groups", *words]
    done = subprocess.run(
        words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
