"""Prefect's server on PostgreSQL, by the very variables that compose.yaml gives it."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.files import compose
from tests.e2e.conftest import Command, api, free_port, serving
from tests.e2e.nightly import Watcher, impatient, worker
from tests.servers import S3Server

PATIENCE_S = 600


def binary(name: str) -> str | None:
    """One of PostgreSQL's programs: on the PATH, or where Debian keeps them."""
    places = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=":".join(places))


POSTGRES = binary("postgres")
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(2400),
    pytest.mark.skipif(POSTGRES is None, reason="no PostgreSQL (Debian: apt-get install postgresql): tried on SQLite alone"),
]


def ask(program: str, port: int, password: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """One of PostgreSQL's clients, as the user prefect."""
    return subprocess.run([str(binary(program)), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", *arguments], check=False,
                          env={**os.environ, "PGPASSWORD": password}, capture_output=True, text=True)


@contextlib.contextmanager
def postgres(password: str) -> Iterator[int]:
    """A server of its own in a temporary folder, on a free loopback port, never as root; ended by process id."""
    name = ("postgres" if "postgres" in [u.pw_name for u in pwd.getpwall()] else "nobody") if os.getuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="gmp-")), free_port()
    (folder / "password").write_text(password)
    if name is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, name)
    subprocess.run([str(binary("initdb")), "--username=prefect", f"--pwfile={folder}/password", "--auth=scram-sha-256",
                    "-D", f"{folder}/data"], user=name, cwd=folder, check=True, capture_output=True)
    server = subprocess.Popen(
        [str(POSTGRES), "-D", f"{folder}/data", "-p", str(port), "-c", "listen_addresses=127.0.0.1",
         "-c", f"unix_socket_directories={folder}"],
        user=name, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while ask("createdb", port, password, "prefect").returncode:
            assert time.monotonic() < deadline and server.poll() is None, "PostgreSQL did not start"
            time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_firing_publishes_and_the_next_finds_nothing_to_do(command: Command, s3_server: S3Server) -> None:
    impatient(command)
    told = compose()["services"]["prefect-server"]["environment"]
    with postgres("canary") as port:
        database = {name: value for name, value in told.items() if name.startswith("PREFECT_SERVER_DATABASE_")} | {
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1", "PREFECT_SERVER_DATABASE_PORT": str(port),
            "PREFECT_SERVER_DATABASE_PASSWORD": "canary"}
        with serving(command, **database) as url:
            command.env |= {"PREFECT_API_URL": url, **s3_server.environment}
            config = command.config(publish={"url": f"s3://{s3_server.new_bucket()}/sets"}, prepare={"resolution": 8},
                                    train={"model": "mlp", "budget": {"kimg": 0.5}})
            deployed = command.run("deploy", str(config), "--schedule", "0 2 * * *", "--timezone", "Europe/Berlin", "--json")
            assert deployed.status == 0, deployed.err
            watch = Watcher(url)
            with worker(command, "worker.log"):
                for event in ("published", "up-to-date"):
                    fired = api(url, f"/deployments/{deployed.result['deployment_id']}/create_flow_run")["id"]
                    watch.wait(event, lambda event=event: watch.events(event), PATIENCE_S)
                    watch.wait("its end", lambda fired=fired: [
                        r for r in watch.runs() if r["id"] == fired and r["state_type"] == "COMPLETED"], PATIENCE_S)
            kept = ask("psql", port, "canary", "-Atc", "select count(*) from flow_run", "prefect").stdout
            assert int(kept) >= 2, "it was this database"
