"""PgBouncer in front of a test's PostgreSQL, in transaction mode, where the machine has one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.ports import free_port
from tests.servers.postgres import dies_with_parent, unprivileged

_START_SECONDS = 30.0
EXECUTABLE = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


@contextmanager
def start_pgbouncer(server_url: str, *, pool_size: int = 4) -> Iterator[str]:
    """Start PgBouncer with at most `pool_size` server connections; yield the URL that leads through it."""
    assert EXECUTABLE is not None
    server = urlsplit(server_url)
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="durable-pgbouncer-"))
    try:
        (folder / "users").write_text(f'"{server.username}" "{server.password or ""}"\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host={server.hostname} port={server.port or 5432}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 1000\n"
            f"logfile = {folder}/log\n"
        )
        if os.geteuid() == 0:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, "nobody")
        process = subprocess.Popen(
            [EXECUTABLE, "-q", str(folder / "ini")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=dies_with_parent(),
            **unprivileged(),
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PgBouncer did not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.02)
            yield f"postgresql://{server.username}@127.0.0.1:{port}{server.path}"
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
