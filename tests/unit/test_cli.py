"""The command line's pure parts, and what `aircell doctor` finds in a node's files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aircell.cli import attach, checks, images, options, output, progress, run, sandboxes
from aircell.cli.checks import Check
from aircell.errors import InvalidSpec, SandboxLost
from aircell.status import ExitStatus

# --- words for humans


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3725, "1h 2m"), (90000, "1d 1h"), (10**6, "11d 13h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3 GiB")])
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


def test_an_error_is_what_happened_the_fix_and_the_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(SandboxLost("It is gone.", sandbox="run-1", hint="Try again.", detail="a\nb\n"))
    printed = capsys.readouterr()
    assert printed.err == "aircell: sandbox run-1: It is gone.\n  fix: Try again.\n  | a\n  | b\n"
    assert printed.out == ""


# --- run


def test_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.parse_mount("/a:/b") == {"source": "/a", "target": "/b", "read_only": True}
    assert run.parse_mount("/a:/b:ro") == {"source": "/a", "target": "/b", "read_only": True}
    assert run.parse_mount("data:/b:rw") == {"source": f"{tmp_path}/data", "target": "/b", "read_only": False}


@pytest.mark.parametrize("text", ["/a", "/a:", "/a:/b:rx", "/a:/b:ro:rw"])
def test_what_is_no_mount(text: str) -> None:
    with pytest.raises(InvalidSpec, match="is not SOURCE:TARGET"):
        run.parse_mount(text)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "x=y")
    assert run.parse_env("A=b=c") == ("A", "b=c")
    assert run.parse_env("A=") == ("A", "")
    assert run.parse_env("HERE") == ("HERE", "x=y")
    with pytest.raises(InvalidSpec, match="no such variable here"):
        run.parse_env("NOT_HERE")


def test_labels() -> None:
    assert run.parse_pair("a=b=c", "--label") == ("a", "b=c")
    with pytest.raises(InvalidSpec, match="--label a: this is not NAME=VALUE"):
        run.parse_pair("a", "--label")


def test_a_request_says_no_more_than_the_user_did() -> None:
    request = run.make_request(spec={"image": "x"}, job={"kind": "exec", "argv": ["ls"]}, labels={"a": "b"})
    assert request.model_dump(exclude_unset=True) == {
        "spec": {"image": "x"},
        "job": {"kind": "exec", "argv": ("ls",)},
        "labels": {"a": "b"},
    }


@pytest.mark.parametrize(
    ("exit", "code"), [(ExitStatus(code=3), 3), (ExitStatus(signal=9), 137), (ExitStatus(reason="lost"), 125)]
)
def test_exit_codes(exit: ExitStatus, code: int) -> None:
    assert run.exit_code(exit) == code


def test_events_in_words() -> None:
    pulling = {"event": "pulling", "at": 1.0, "image": "x", "done": 2**20, "total": 2**22}
    assert progress.describe(pulling) == "pulling x (1 MiB of 4 MiB)"
    assert progress.describe({"event": "queued", "at": 1.0}) == "queued"


def test_timing() -> None:
    entered = {"queued": 10.0, "creating": 10.001, "running": 10.25, "exited": 99.0}
    assert progress.timing(entered, 11.0) == "queued 1 ms, creating 249 ms, running 750 ms, total 1000 ms"
    assert progress.timing({}, 11.0) == "unknown"


# --- lists


def listed(**changed: Any) -> dict[str, Any]:
    labels = {"aircell.dev/sandbox": "run-1", "aircell.dev/owner": "7", "aircell.dev/dag": "etl", "app": "x"}
    return {
        "id": "run-1",
        "state": "running",
        "kind": "warm",
        "backend": "cri",
        "role": "task",
        "image": "im:1",
        "digest": "",
        "created_at": 100.0,
        "owner": {"pid": 7},
        "labels": labels,
        "exit": None,
        "error": None,
        **changed,
    }


def test_ps_row() -> None:
    assert sandboxes.ps_row(listed(), 161.0) == ["run-1", "running", "warm", "task", "1m 1s", "cri", "im:1", "dag=etl"]


def test_ps_tells_which_image_a_tag_was() -> None:
    digest = f"r.io/im@sha256:0123456789ab{'0' * 52}"
    for image in ("im:1", digest):
        name = image.partition("@")[0]
        assert sandboxes.ps_row(listed(image=image, digest=digest), 0)[6] == f"{name}@sha256:0123456789ab"


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({"exit": {"code": 3}}, "exited: 3"),
        ({"exit": {"signal": 9}}, "exited: signal 9"),
        ({"exit": {"signal": 9, "oom_killed": True}}, "exited: out of memory"),
        ({"exit": {}}, "exited: unknown"),
        ({"error": {"kind": "ImageNotFound"}}, "failed: ImageNotFound"),
    ],
)
def test_ps_states(changed: dict[str, Any], state: str) -> None:
    assert sandboxes.ps_row(listed(**changed), 100.0)[1] == state


def test_image_rows() -> None:
    image = {"id": "sha256:0123456789abcdef", "tags": ("a:1", "b:1"), "digest": "a@sha256:9", "size": 2048}
    assert images.image_rows(image) == [["a:1", "0123456789ab", "2 KiB"], ["b:1", "0123456789ab", "2 KiB"]]
    assert images.image_rows({**image, "tags": ()}) == [["a@sha256:9", "0123456789ab", "2 KiB"]]


# --- whether to start aircelld


@pytest.mark.parametrize(
    ("uid", "said", "starts"), [(0, None, True), (1, None, False), (0, False, False), (1, True, True)]
)
def test_autostart(uid: int, said: bool | None, starts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    client = options.client("/s", said)
    assert (client.autostart is not None) is starts
    if client.autostart:
        assert client.autostart[-4:] == ("--socket", "/s", "--idle-exit", "600")


# --- doctor


def test_zygotes() -> None:
    engine = {"name": "containerd", "version": "2.3.7"}
    hello = {
        "backends": {
            "cri": {**engine, "user_namespaces": ["", "runc"]},
            "other": {**engine, "version": "1.6.20", "user_namespaces": []},
            "away": {"error": {}},
        }
    }
    assert [(check.name, check.result) for check in checks.zygotes(hello)] == [
        ("zygotes on cri", "ok"),
        ("zygotes on other", "warning"),
    ]


def test_engines() -> None:
    well = {"name": "containerd", "version": "2.3", "api_version": "v1", "runtime_handlers": ["runc"]}
    owner = "a kubelet (it has the pod x/y here)"
    hello = {
        "backends": {
            "cri": {**well, "foreign_owner": None},
            "shared": {**well, "foreign_owner": owner},
            "gone": {"error": {"kind": "EngineUnavailable", "message": "No answer.", "hint": "Start it."}},
        }
    }
    answers = "containerd 2.3, API v1, runc"
    assert list(checks.engines(hello)) == [
        Check("engine of cri", "ok", answers),
        Check("kubelet on cri", "ok", "nobody else manages sandboxes on this engine"),
        Check("engine of shared", "ok", answers),
        Check(
            "kubelet on shared",
            "failed",
            f"{owner} uses the same engine",
            "Run `aircelld --managed-containerd`: a containerd of its own, which the kubelet does not clean up.",
        ),
        Check("engine of gone", "failed", "No answer.", "Start it."),
    ]


@pytest.mark.parametrize(
    ("mode", "group", "result"), [(0o600, 0, "ok"), (0o660, 0, "ok"), (0o660, 4, "warning"), (0o666, 4, "failed")]
)
def test_engine_sockets(tmp_path: Path, mode: int, group: int, result: str) -> None:
    path = tmp_path / "e.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    path.chmod(mode)
    os.chown(path, 0, group)
    (check,) = checks.engine_sockets([str(path), str(tmp_path / "missing")])
    assert (check.name, check.result) == (f"rights on {path}", result)
    assert bool(check.fix) is (result != "ok")


def test_cgroups_v1_and_v2(tmp_path: Path) -> None:
    for name in ("cpu", "pids"):
        (tmp_path / name).mkdir()
    lacking = checks.cgroups(tmp_path)
    assert (lacking.result, lacking.found) == ("failed", "v1 without memory: limits cannot be enforced")
    (tmp_path / "memory").mkdir()
    assert checks.cgroups(tmp_path) == Check("cgroups", "ok", "v1 with cpu, memory, pids")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert checks.cgroups(tmp_path) == Check("cgroups", "ok", "v2 with cpu, memory, pids")


def test_programs(tmp_path: Path) -> None:
    (tmp_path / "crun").touch(mode=0o755)
    containerd, runtime = checks.programs(str(tmp_path))
    assert (containerd.result, containerd.found) == ("warning", "not on PATH")
    assert "apt-get install containerd" in containerd.fix
    assert runtime == Check("runc or crun", "ok", str(tmp_path / "crun"))


@pytest.mark.parametrize(("modules", "compiled", "result"), [(0, 0, "ok"), (100, 90, "ok"), (100, 89, "warning")])
def test_packages_without_bytecode(modules: int, compiled: int, result: str) -> None:
    check = checks.bytecode("image:1", "python3.11", modules, compiled)
    assert (check.name, check.result) == ("bytecode in image:1", result)
    assert bool(check.fix) == (result != "ok")


def test_bytecode_is_counted_where_the_interpreter_looks_for_it(tmp_path: Path) -> None:
    python = [sys.executable, "-X", f"pycache_prefix={tmp_path}"]

    def compiled() -> int:
        done = subprocess.run([*python, "-c", checks.ASK_PYTHON], capture_output=True, text=True, check=True)
        _, modules, compiled = done.stdout.splitlines()
        assert int(modules) > 0
        return int(compiled)

    assert compiled() == 0
    subprocess.run([*python, "-m", "compileall", "-q", pytest.__file__], check=True)
    assert compiled() == 1


# --- the streams of `aircell run`


def test_a_stream_that_is_closed_because_the_launch_failed_is_nothing_to_tell_of(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    attach._drain(ours, 1)
    assert capfd.readouterr() == ("", "")


def test_output_that_cannot_be_written_is_told_of_and_refused(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Path("/dev/full").open("wb", buffering=0) as full:
        theirs.sendall(b"text")
        attach._drain(ours, full.fileno())
        with pytest.raises(BrokenPipeError):
            theirs.sendall(b"more")
    assert "the command's output cannot be written: No space left on device" in capfd.readouterr().err
