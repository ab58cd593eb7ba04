"""A PostgreSQL server of one's own, as the user that its package made, on a unix socket alone."""

from __future__ import annotations

import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.airflow_stack import wait_until

USER = "postgres"
"""The server refuses to run as root."""
_FAST = {"listen_addresses": "", "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""What is lost with the machine is not missed."""


def programs() -> Path:
    """The newest that the distribution's packages have installed. Raises FileNotFoundError."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise FileNotFoundError("no PostgreSQL in /usr/lib/postgresql: run `scripts/setup tests`")
    return found[-1]


@dataclass
class Postgres:
    """One empty database, ``airflow``, in ``folder``, which must be where that user can get to."""

    folder: Path
    _server: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Makes it, and returns once it answers."""
        shutil.chown(self.folder, USER)
        data = self.folder / "data"
        self._run(programs() / "initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata", data)
        options = [word for name, value in _FAST.items() for word in ("-c", f"{name}={value}")]
        server = [str(programs() / "postgres"), "-D", str(data), "-k", str(self.folder), *options]
        argv = [*self._as_user("--pdeathsig=INT"), *server]  # it does not outlive a test run that is killed
        with (self.folder / "log").open("wb") as log:
            self._server = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_until(self._answers, "PostgreSQL", 30, why=(self.folder / "log").read_text)
        self.ask("create database airflow", database="postgres")

    def stop(self) -> None:
        """Idempotent. Whoever is connected is cut off: "fast shutdown" of its manual."""
        if self._server:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(30)
            self._server = None

    def airflow_options(self) -> dict[str, str]:
        """``[database]`` of an airflow.cfg."""
        url = f"postgresql+{{}}:///airflow?user={USER}&host={self.folder}"
        return {"sql_alchemy_conn": url.format("psycopg2"), "sql_alchemy_conn_async": url.format("asyncpg")}

    def ask(self, sql: str, database: str = "airflow") -> str:
        """What it answers, as text without headings."""
        return self._run("psql", "--host", self.folder, "--dbname", database, "-AtqXc", sql).strip()

    def _as_user(self, *options: str) -> list[str]:
        return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", *options, "--"]

    def _answers(self) -> bool:
        return self._attempt(programs() / "pg_isready", "--host", self.folder).returncode == 0

    def _run(self, *argv: str | Path) -> str:
        done = self._attempt(*argv)
        assert done.returncode == 0, f"{argv[0]} exited with {done.returncode}: {done.stderr or done.stdout}"
        return done.stdout

    def _attempt(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        words = [*self._as_user(), *map(str, argv)]
        return subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
