"""``aircell`` as a user types it, on a real node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell.client import Client
from aircell.spec import SandboxSpec
from tests.support.images import reference
from tests.support.jobs import request
from tests.support.node import Node
from tests.support.registry import Image, serving

BASE = reference("base")
Aircell = Callable[..., subprocess.CompletedProcess[str]]


AIRCELL = str(Path(sys.executable).with_name("aircell"))


def command(node: Node, *arguments: str) -> list[str]:
    """Any command but ``run``."""
    return [AIRCELL, *arguments, "--socket", node.socket]


def run_command(node: Node, *arguments: str) -> list[str]:
    """``aircell run``, whose own options come before the command."""
    return [AIRCELL, "run", "--socket", node.socket, "--image", BASE, *arguments]


@pytest.fixture
def aircell(node: Node) -> Aircell:
    """Runs a command to its end."""

    def ran(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(node, *arguments), capture_output=True, text=True, timeout=60, check=False, **options
        )

    return ran


@pytest.fixture
def run(node: Node) -> Aircell:
    """Runs ``aircell run --image BASE`` to its end."""

    def ran(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("input", "")
        return subprocess.run(
            run_command(node, *arguments), capture_output=True, text=True, timeout=60, check=False, **options
        )

    return ran


# --- run


def test_a_command_has_our_streams_and_we_have_its_exit_code(run: Aircell) -> None:
    done = run("--", "sh", "-c", "cat; echo problem >&2; exit 7", input="some input\n")
    assert (done.stdout, done.stderr, done.returncode) == ("some input\n", "problem\n", 7)


def test_bytes_pass_unchanged_and_all_of_them(node: Node) -> None:
    data = os.urandom(3 * 2**20)
    done = subprocess.run(run_command(node, "cat"), input=data, capture_output=True, timeout=60, check=True)
    assert done.stdout == data


def test_a_reader_that_leaves_early_ends_the_writer(node: Node) -> None:
    writer = subprocess.Popen(run_command(node, "--", "sh", "-c", "yes; echo $? >&2"), stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.read(4) == b"y\ny\n"
    writer.stdout.close()
    assert writer.wait(30) == 0


def test_options_reach_the_sandbox(run: Aircell) -> None:
    script = "id -u; echo $A $B; cat /sys/class/net/*/address | wc -l"
    options = ("--user", "1234", "--env", "A=1", "--env", "B", "--network", "none", "--pids", "50", "--memory", "64Mi")
    done = run(*options, "--", "sh", "-c", script, env={**os.environ, "B": "2"})
    assert done.stdout == "1234\n1 2\n1\n"


def test_no_root_unless_the_policy_permits(run: Aircell) -> None:
    done = run("--user", "0", "--", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("aircell: ")
    assert "  fix: " in done.stderr


def test_a_wrong_option_names_itself(run: Aircell) -> None:
    done = run("--memory", "much", "--", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("aircell: resources.memory: 'much' is not a size")


def test_a_command_that_does_not_exist(run: Aircell) -> None:
    done = run("--", "no-such-command")
    assert (done.returncode, done.stderr) == (
        127,
        "aircell: cannot run 'no-such-command': No such file or directory\n",
    )


def test_an_image_without_python_is_refused_with_the_reason(run: Aircell) -> None:
    done = run("--python", "/no/python", "--", "true")
    assert done.returncode == 125
    assert "/no/python" in done.stderr
    assert "  fix: " in done.stderr


def test_an_image_with_an_old_python_is_refused_with_both_versions(node: Node) -> None:
    done = subprocess.run(
        [AIRCELL, "run", "--socket", node.socket, "--image", node.load("old-python"), "--", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 125
    message, fix = done.stderr.splitlines()[:2]
    assert message.endswith(": Python 3.7 in the image; 3.9 or newer is needed.")
    assert fix.startswith("  fix: Build the image on Python 3.9 or newer")


def test_the_oldest_python_that_is_supported_runs_a_job(node: Node) -> None:
    node.load("python-3.9")
    show = "import sys; print(sys.version_info[:2]); sys.exit(7)"
    with Client(node.socket).launch(request("python3", "-c", show, image="python-3.9")) as sandbox:
        assert sandbox.wait(60).code == 7
        assert sandbox.stdout.recv(100) == b"(3, 9)\n"


def test_out_of_memory_is_said(run: Aircell) -> None:
    eat = "x = bytearray(200 * 2**20)"
    done = run("--memory", "64Mi", "--", "python3", "-c", eat)
    assert done.returncode == 128 + signal.SIGKILL
    assert "the memory limit of 64 MiB was reached" in done.stderr


def test_states_and_times_on_request(run: Aircell) -> None:
    done = run("--verbose", "--timing", "--", "true")
    lines = done.stderr.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["queued", "creating", "starting", "running"]
    assert lines[-1].startswith("aircell: timing: queued ")
    assert " running " in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(node: Node, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 9' {number.name[3:]}; echo up; while :; do sleep 0.05; done"
    job = subprocess.Popen(run_command(node, "--", "sh", "-c", script), stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    job.send_signal(number)
    assert job.stdout.read() == "caught\n"
    assert job.wait(30) == 9


def test_the_sandbox_ends_with_us(node: Node) -> None:
    job = subprocess.Popen(run_command(node, "--", "sh", "-c", "echo up; sleep 600"), stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    job.kill()
    job.wait(30)
    node.wait_until(lambda: not node.ps(), "the sandbox is gone")


# --- what runs


@pytest.fixture
def sleeper(node: Node) -> Iterator[str]:
    """A sandbox that runs; its id."""
    with node.launch("sh", "-c", "echo up; sleep 600") as sandbox:
        assert sandbox.stdout.recv(10) == b"up\n"
        yield sandbox.id


def test_ps_lists_it(aircell: Aircell, sleeper: str) -> None:
    header, *rows = aircell("ps").stdout.splitlines()
    assert header.split() == ["SANDBOX", "STATE", "KIND", "ROLE", "AGE", "BACKEND", "IMAGE", "OF"]
    row = next(row.split() for row in rows if row.startswith(sleeper))
    assert row[:4] == [sleeper, "running", "cold", "run"]
    listed = {sandbox["id"]: sandbox for sandbox in json.loads(aircell("ps", "--json").stdout)}
    assert (listed[sleeper]["state"], listed[sleeper]["image"]) == ("running", BASE)
    digest = listed[sleeper]["digest"]
    assert digest.startswith("sha256:")
    assert listed[sleeper]["labels"]["aircell.dev/image"] == digest
    assert row[-3:] == ["cri", f"{BASE}@{digest[:19]}", "test=1"]


def test_inspect_and_logs(aircell: Aircell, sleeper: str) -> None:
    found = json.loads(aircell("inspect", sleeper).stdout)
    assert (found["id"], found["spec"]["image"]) == (sleeper, BASE)
    assert [event["event"] for event in found["events"]][-1] == "running"
    assert aircell("logs", sleeper).returncode == 0


def test_stop_returns_when_nothing_is_left(aircell: Aircell, node: Node, sleeper: str) -> None:
    assert aircell("stop", sleeper, "--grace", "1").returncode == 0
    assert sleeper not in {sandbox["id"] for sandbox in node.ps()}
    ended = json.loads(aircell("ps", "--all", "--json").stdout)
    assert [sandbox["state"] for sandbox in ended if sandbox["id"] == sleeper] == ["exited"]


def test_an_id_that_does_not_exist(aircell: Aircell) -> None:
    done = aircell("inspect", "nothing-like-this")
    assert done.returncode == 125
    assert "nothing-like-this" in done.stderr
    assert "aircell ps --all" in done.stderr


def test_prune_says_what_there_is_to_remove(aircell: Aircell) -> None:
    done = aircell("prune", "--dry-run")
    assert (done.stdout, done.stderr, done.returncode) == ("", "aircell: 0 would be removed\n", 0)


# --- images


def test_images(aircell: Aircell) -> None:
    listed = json.loads(aircell("images", "--json").stdout)
    base = next(image for image in listed if BASE in image["tags"])
    lines = [line.split() for line in aircell("images").stdout.splitlines()]
    assert lines[0] == ["IMAGE", "ID", "SIZE"]
    assert [BASE, base["id"].removeprefix("sha256:")[:12]] in [line[:2] for line in lines]


def test_a_pull_prints_what_it_got(aircell: Aircell) -> None:
    with serving(Image()) as shop:
        reference = shop.reference()
        done = aircell("pull", reference)
    assert done.returncode == 0
    assert done.stdout.startswith(reference.rpartition(":")[0] + "@sha256:")
    assert f"pulling {reference}" in done.stderr


def test_images_prune_shows_what_it_removes(aircell: Aircell) -> None:
    with serving(Image()) as shop:
        aircell("pull", shop.reference())
    for dry_run in (["--dry-run"], []):
        done = aircell("images", "prune", *dry_run)
        assert done.returncode == 0
        header, *removed = [line.split()[:2] for line in done.stdout.splitlines()]
        assert header == ["IMAGE", "ID"]
        assert shop.reference() in [name for name, _ in removed]
    assert shop.reference() not in aircell("images").stdout
    assert BASE in aircell("images").stdout


def test_a_pull_that_fails_says_why(aircell: Aircell) -> None:
    done = aircell("pull", "localhost:9/no/such:image")
    assert done.returncode == 125
    assert "localhost:9/no/such:image" in done.stderr
    assert "  fix: " in done.stderr


# --- doctor, schema, and nobody there


def test_doctor_finds_this_node_well(aircell: Aircell) -> None:
    done = aircell("doctor", "--json", "--image", BASE)
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert [check for check in found.values() if check["result"] == "failed"] == []
    assert done.returncode == 0
    assert found["aircelld"]["found"].startswith("version ")
    assert found["engine of cri"]["found"].startswith("containerd ")
    assert found["kubelet on cri"]["result"] == "ok"
    assert found[f"python in {BASE}"]["found"].startswith("3.")
    assert found[f"bytecode in {BASE}"]["result"] == "ok"


def test_doctor_without_python_in_the_image(aircell: Aircell) -> None:
    done = aircell("doctor", "--image", BASE, "--python", "python9")
    assert done.returncode == 1
    assert f"failed  python in {BASE}: " in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("        fix: ")


def test_doctor_when_nothing_answers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        argv = [AIRCELL, "doctor", "--no-autostart", "--socket", f"{folder}/a.sock"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(f"failed  aircelld: There is no aircelld socket at {folder}/a.sock.\n        fix: ")


def test_schema_is_that_of_the_spec() -> None:
    done = subprocess.run([AIRCELL, "schema"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == SandboxSpec.model_json_schema()


def test_a_client_starts_aircelld_when_none_answers(node: Node) -> None:
    node.stop()
    config = str(node.root / "aircelld.yaml")
    client = Client(node.socket, autostart=[sys.executable, "-m", "aircell.daemon.main", "--config", config])
    try:
        pid = client.ask("hello")["pid"]
        with client.launch(request("true")) as sandbox:
            assert sandbox.wait(30).code == 0
        assert client.ask("hello")["pid"] == pid
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    finally:
        node.start()
