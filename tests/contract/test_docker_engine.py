"""What is particular to Docker: restarts, and images and containers of others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from aircell.backends.base import LABEL_SANDBOX, Backend, EngineInfo
from aircell.backends.docker.backend import DockerBackend
from aircell.errors import EngineUnavailable, InvalidSpec, UnsupportedSpec
from aircell.spec import SandboxSpec
from aircell.status import ExitStatus
from tests.contract.engines import DOCKERS, RunningDocker
from tests.contract.harness import IMAGE, Harness
from tests.support.certificates import Authority

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("engine", DOCKERS, indirect=True, ids=lambda each: each.name),
]


async def test_a_sandbox_outlives_the_engine(harness: Harness, engine: RunningDocker) -> None:
    """With ``live-restore``; whoever waits hears of its end all the same."""
    sandbox = await harness.start("import time; time.sleep(4); print('done'); exit(5)")
    waiting = asyncio.create_task(harness.backend.wait(sandbox))
    await asyncio.sleep(0.2)
    engine.dockerd.kill()
    await asyncio.to_thread(engine.dockerd.start_process)
    another = engine.new_backend()
    try:
        assert await another.wait(sandbox) == ExitStatus(code=5)
        assert await waiting == ExitStatus(code=5)
        assert await another.log_tail(sandbox) == "done\n"
    finally:
        await another.close()


async def test_info(backend: Backend) -> None:
    info = await backend.info()
    assert (info.name, info.version[:6], info.api_version) == ("docker", "20.10.", "1.41")
    assert "runc" in info.runtime_handlers


async def test_labels_are_the_engines_own(harness: Harness, engine: RunningDocker) -> None:
    """As ``docker inspect`` shows them."""
    labels = {"aircell.dev/dag": "ärger", "team": "a/b"}
    sandbox = await harness.start(["sleep", "60"], labels=labels)
    [container] = engine.dockerd.containers()
    assert engine.dockerd.inspect(container)["Config"]["Labels"].items() >= {**labels, LABEL_SANDBOX: sandbox}.items()


async def test_the_beginning_of_an_id_is_not_a_name(harness: Harness, backend: Backend) -> None:
    image = harness.image.id.removeprefix("sha256:")
    assert await backend.image(image[:12]) is None
    assert await backend.image(harness.image.id) is not None
    sandbox = await harness.start(["sleep", "60"])
    [info] = await backend.sandboxes({})
    await backend.remove(info.engine_id[:12])
    assert [each.id for each in await backend.sandboxes({})] == [sandbox]


async def test_a_network_that_is_not_there(engine: RunningDocker) -> None:
    backend = type(engine.new_backend())({"host": engine.dockerd.host, "pod_network": "no-such"})
    try:
        with pytest.raises(UnsupportedSpec, match="no-such"):
            await backend.check(SandboxSpec(image=IMAGE, network="pod"))
        await backend.check(SandboxSpec(image=IMAGE))
    finally:
        await backend.close()


# --- TLS ---


async def asked(settings: Mapping[str, object]) -> EngineInfo:
    backend = DockerBackend(settings)
    try:
        return await backend.info()
    finally:
        await backend.close()


async def test_a_sandbox_on_an_engine_behind_tls(harness: Harness, engine: RunningDocker, tmp_path: Path) -> None:
    certificates = engine.authority.for_client(tmp_path / "tls")
    harness.backend = DockerBackend({"host": engine.tcp, "tls": str(certificates)})
    try:
        outcome = await harness.run("print('through TLS'); exit(3)")
        await harness.backend.remove(harness.made[-1])
    finally:
        await harness.backend.close()
    assert (outcome.exit, outcome.log) == (ExitStatus(code=3), "through TLS\n")


async def test_the_environment_of_dockers_own_clients(
    engine: RunningDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.tcp)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(engine.authority.for_client(tmp_path / "tls")))
    assert (await asked({})).name == "docker"


async def test_without_the_right_certificates_nobody_answers(engine: RunningDocker, tmp_path: Path) -> None:
    ours = engine.authority.for_client(tmp_path / "ours")
    stranger = Authority().for_client(tmp_path / "stranger")
    with pytest.raises(EngineUnavailable, match=r"wants TLS.*backends\.docker\.tls"):
        await asked({"host": engine.tcp})
    with pytest.raises(EngineUnavailable, match="certificate verify failed"):
        await asked({"host": engine.tcp, "tls": str(stranger)})
    (stranger / "ca.pem").write_text((ours / "ca.pem").read_text())
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1"):
        await asked({"host": engine.tcp, "tls": str(stranger)})
    (ours / "key.pem").unlink()
    with pytest.raises(InvalidSpec, match=r"key\.pem"):
        await asked({"host": engine.tcp, "tls": str(ours)})
