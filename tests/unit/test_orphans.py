"""Looking for what a containerd left behind, while the next one removes things, too."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from aircell.daemon import orphans


async def test_what_vanishes_while_it_is_looked_at_is_no_failure(tmp_path: Path) -> None:
    bundle = tmp_path / "state" / "io.containerd.runtime.v2.task" / "k8s.io" / "container"
    bundle.mkdir(parents=True)
    (bundle / "config.json").symlink_to("gone")
    leases = tmp_path / "leases" / "net"
    leases.mkdir(parents=True)
    (leases / "10.0.0.2").write_text("lost\neth0")
    (leases / "10.0.0.3").write_text("known\neth0")
    (leases / "10.0.0.4").write_text("")  # not written yet
    found = orphans.find_network(tmp_path / "state", tmp_path / "leases")
    gone = orphans.Network(found.namespaces, (*found.leases, leases / "10.0.0.9"))
    await orphans.remove_network(gone, {"known"}, tmp_path / "state")
    assert sorted(path.name for path in leases.iterdir()) == ["10.0.0.3", "10.0.0.4"]


async def test_only_a_daemon_outside_containers_is_ended(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    command = 'exec "$PYTHON" -c "import time; print(flush=True); time.sleep(600)" --config "$CONFIG"'
    environment = {"PYTHON": sys.executable, "CONFIG": str(config)}

    def started(*prefix: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*prefix, "sh", "-c", command], env=environment, stdout=subprocess.PIPE)

    with started() as daemon, started("unshare", "--pid", "--fork", "--kill-child") as job:
        try:
            for process in (daemon, job):
                assert process.stdout is not None
                assert process.stdout.readline() == b"\n"
            await orphans.end_daemons(config, 5)
            assert daemon.wait(5) == -signal.SIGTERM
            assert job.poll() is None
        finally:
            daemon.kill()
            job.kill()
