"""The parts of aircelld that need no engine: waiting, owners, records, log lines, descriptors."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from aircell.daemon.channels import Channels
from aircell.daemon.concurrency import never, race, settle
from aircell.daemon.folder import Folder
from aircell.daemon.logs import JsonFormatter
from aircell.daemon.operations import Call
from aircell.daemon.owner import Owner
from aircell.daemon.record import Record, Sandbox, Stopped
from aircell.daemon.registry import Registry
from aircell.daemon.shape import Shape
from aircell.errors import EngineError, InvalidSpec, NotFound
from aircell.spec import Job, LaunchRequest, Model, SandboxSpec
from aircell.status import ExitStatus, ImageInfo


def record(**changes: object) -> Record:
    spec = SandboxSpec(image="i", env={"A": "secret"}, labels={"app": "x", "aircell.dev/node": "forged"})
    request = LaunchRequest(spec=spec, job=Job(kind="exec", argv=("x",)), role="task", labels={"dag": "d"})
    return Record.of(request, Owner(pid=7, uid=8), "node-1").model_copy(update=changes)


async def test_a_race_is_won_by_the_work_unless_it_is_interrupted() -> None:
    ended: list[str] = []

    async def work(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.append(f"work of {seconds}")
        return "done"

    async def interruption() -> NoReturn:
        await asyncio.sleep(0.02)
        raise Stopped(ExitStatus(reason="enough"))

    assert await race(work(0), interruption(), never()) == "done"
    with pytest.raises(Stopped, match="enough"):
        await race(work(60), interruption())
    assert ended == ["work of 0", "work of 60"]


async def test_what_is_settled_is_finished_before_a_cancellation_goes_on() -> None:
    steps: list[str] = []

    async def step() -> None:
        await asyncio.sleep(0.05)
        steps.append("finished")

    task = asyncio.create_task(settle(step()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["finished"]


async def test_an_owner_is_gone_when_its_process_has_ended_and_not_before() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "600")
    owner = Owner.of(process.pid, os.getuid())
    gone = asyncio.create_task(owner.gone())
    await asyncio.sleep(0.05)
    assert not gone.done()
    process.kill()
    await asyncio.wait_for(gone, 5)
    await process.wait()
    await asyncio.wait_for(owner.gone(), 5)


async def test_another_process_with_the_same_pid_is_not_the_owner() -> None:
    mine = Owner.of(os.getpid(), os.getuid())
    await asyncio.wait_for(mine.model_copy(update={"started": mine.started - 1}).gone(), 5)


async def test_an_owner_that_cannot_be_seen_is_never_gone() -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(Owner().gone(), 0.05)


def test_a_record_has_our_labels_whatever_was_asked_for_and_no_secret() -> None:
    made = record(id="task-1")
    assert made.labels == {
        "app": "x",
        "aircell.dev/dag": "d",
        "aircell.dev/sandbox": made.labels["aircell.dev/sandbox"],
        "aircell.dev/node": "node-1",
        "aircell.dev/role": "task",
        "aircell.dev/owner": "7",
    }
    assert "secret" not in made.model_dump_json()


async def test_followers_see_every_event_once_in_order_however_late_they_come() -> None:
    sandbox = Sandbox(record())

    async def follow() -> list[str]:
        return [event["event"] async for event in sandbox.follow()]

    early = asyncio.create_task(follow())
    for state in (sandbox.state.QUEUED, sandbox.state.CREATING):
        sandbox.publish(state)
        await asyncio.sleep(0)
    sandbox.failed(EngineError("broken"))
    assert await early == await follow() == ["queued", "creating", "failed"]
    assert sandbox.error is not None
    assert sandbox.error.sandbox == sandbox.id


async def test_a_sandbox_is_found_by_a_prefix_that_only_it_has() -> None:
    registry = Registry()
    sandboxes = {id: Sandbox(record(id=id)) for id in ("task-a1", "task-a", "task-b")}
    for sandbox in sandboxes.values():
        registry.add(sandbox, asyncio.sleep(60))
    assert registry.get("task-a") is sandboxes["task-a"]
    assert registry.get("task-b") is sandboxes["task-b"]
    with pytest.raises(NotFound, match="3 sandboxes have ids that begin with 'task'"):
        registry.get("task")
    await registry.leave()


async def test_whoever_follows_a_sandbox_hears_of_our_own_failure() -> None:
    async def broken() -> None:
        raise RuntimeError("a mistake of ours")

    registry, sandbox = Registry(), Sandbox(record())
    registry.add(sandbox, broken())
    await asyncio.wait_for(sandbox.end(), 5)
    assert "a mistake of ours" in str(sandbox.error)
    assert (len(registry), registry.sandboxes(all=True)) == (0, [sandbox])


async def test_a_record_is_read_back_and_a_broken_one_is_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "task-1")
    assert folder.load() is None
    request = LaunchRequest(spec=SandboxSpec(image="i"), job=Job(kind="runner", runner="x = 1"))
    await folder.make(record(), Shape.of(request, ImageInfo(id="1", reference="i"), (), uid=0), shell=False)
    assert folder.load() is not None
    folder.save(record(handed_over=True))
    assert (folder.load() or record()).handed_over
    (folder.path / "sandbox.json").write_text("{")
    assert folder.load() is None
    await folder.remove()
    await folder.remove()
    assert not folder.path.exists()


async def test_before_the_hand_over_a_signal_that_would_end_the_job_ends_the_launch() -> None:
    worker, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    others = [socket.socket(socket.AF_UNIX).detach() for _ in range(4)]
    channels = Channels([*others, ours.detach()])
    with worker:
        for packet in (b"{}", b"no json", b'{"signal": 10}', b'{"signal": "x"}', b'{"type": "signal", "signal": 15}'):
            worker.send(packet)
        with pytest.raises(Stopped) as caught:
            await asyncio.wait_for(channels.interrupted(), 5)
    assert caught.value.exit == ExitStatus(signal=15, reason="stopped by its worker before the job began")
    channels.close()
    channels.close()


@pytest.mark.parametrize("number", [0, 4, 6])
def test_descriptors_are_closed_when_they_are_not_what_a_launch_needs(number: int) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(number)]
    with pytest.raises(InvalidSpec, match="a launch needs 5 descriptors"):
        Channels(fds)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_json_log_line_is_one_object_with_its_traceback() -> None:
    error = ValueError("wrong")
    entry = logging.LogRecord("x", logging.ERROR, "f", 1, "it %s", ("broke",), (ValueError, error, None))
    line = json.loads(JsonFormatter().format(entry))
    assert (line["level"], line["logger"], line["message"]) == ("error", "x", "it broke")
    assert line["exception"].endswith("ValueError: wrong")


# --- what a sandbox that lives for long costs


def test_a_call_does_not_keep_what_it_asked_for() -> None:
    class Asked(Model):
        what: str

    call = Call({"op": "launch", "what": "much"}, fds=[], pid=1, uid=0)
    assert call.take(Asked) == Asked(what="much")
    assert not call.message


def test_no_http_client_is_imported_before_a_registry_is_asked() -> None:
    code = "import sys; import aircell.daemon.main, aircell.backends.cri.backend; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
