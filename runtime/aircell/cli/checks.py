"""What ``aircell doctor`` looks at. Each function looks at one thing and says how to mend it; none changes anything."""

from __future__ import annotations

import contextlib
import grp
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aircell.client import Client
from aircell.daemon.cni import find_plugins
from aircell.errors import AircellError, EngineUnavailable, from_wire
from aircell.spec import Job, LaunchRequest, SandboxSpec

ENGINE_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
)
CONTROLLERS = ("cpu", "memory", "pids")
ASK_PYTHON = """
import importlib.util, os, pathlib, sys, sysconfig
modules = list(map(str, pathlib.Path(sysconfig.get_path("purelib")).rglob("*.py")))
print(sys.version.split()[0], sys.executable)
print(len(modules))
print(sum(os.path.exists(importlib.util.cache_from_source(module)) for module in modules))
"""
"""Prints the version, the number of installed modules, and how many of them have bytecode."""
_COMPILED = 0.9
"""The share of modules with bytecode in a well-made image; a few never compile, such as templates of code."""


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    result: Literal["ok", "warning", "failed"]
    found: str
    fix: str = ""


def failed(name: str, error: AircellError) -> Check:
    """An error as a finding; the first line of its evidence is worth showing."""
    detail = error.detail.strip().splitlines()
    return Check(name, "failed", error.message + (f" [{detail[-1]}]" if detail else ""), error.hint)


def daemon(client: Client) -> tuple[Check, Mapping[str, Any]]:
    """Whether aircelld answers, and what it says about itself and its engines."""
    try:
        hello = client.ask("hello")
    except AircellError as error:
        return failed("aircelld", error), {}
    found = f"version {hello['version']}, pid {hello['pid']}, on {client.socket_path}"
    return Check("aircelld", "ok", found), hello


def engines(hello: Mapping[str, Any]) -> Iterator[Check]:
    """Whether each engine answers aircelld, and whether it is aircelld's alone."""
    for backend, said in hello.get("backends", {}).items():
        name = f"engine of {backend}"
        if "error" in said:
            yield failed(name, from_wire(said["error"]))
            continue
        handlers = ", ".join(said["runtime_handlers"]) or "one runtime"
        yield Check(name, "ok", f"{said['name']} {said['version']}, API {said['api_version']}, {handlers}")
        if said["foreign_owner"]:
            fix = "Run `aircelld --managed-containerd`: a containerd of its own, which the kubelet does not clean up."
            yield Check(f"kubelet on {backend}", "failed", f"{said['foreign_owner']} uses the same engine", fix)
        else:
            yield Check(f"kubelet on {backend}", "ok", "nobody else manages sandboxes on this engine")


def zygotes(hello: Mapping[str, Any]) -> Iterator[Check]:
    """Whether warm sandboxes can be forks of one prepared interpreter."""
    for backend, said in hello.get("backends", {}).items():
        if "error" in said:
            continue
        name = f"zygotes on {backend}"
        if said["user_namespaces"]:
            yield Check(name, "ok", "pods can have user namespaces of their own")
        else:
            found = (
                f"{said['name']} {said['version']} gives pods no user namespaces: each warm sandbox imports by itself"
            )
            yield Check(name, "warning", found, "Use containerd 2.0 and runc 1.2 or later, on Linux 6.3 or later.")


def engine_sockets(paths: Iterable[str] = ENGINE_SOCKETS) -> Iterator[Check]:
    """Who else may open an engine's socket. Whoever may is root on this node, so no worker should."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield _engine_socket(path, Path(path).stat())


def _engine_socket(path: str, status: Any) -> Check:
    name = f"rights on {path}"
    if status.st_mode & stat.S_IWOTH:
        return Check(name, "failed", "everybody may open it, and so be root", f"chmod o-rwx {path}")
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        group = _group(status.st_gid)
        return Check(name, "warning", f"group {group} may open it, and so be root", f"Keep workers out of {group}.")
    return Check(name, "ok", "only root may open it")


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def cgroups(root: Path = Path("/sys/fs/cgroup")) -> Check:
    """Whether the kernel can enforce the limits."""
    unified = root / "cgroup.controllers"
    version = "v2" if unified.exists() else "v1"
    present = unified.read_text().split() if unified.exists() else [path.name for path in root.glob("*")]
    missing = [name for name in CONTROLLERS if name not in present]
    if not missing:
        return Check("cgroups", "ok", f"{version} with {', '.join(CONTROLLERS)}")
    fix = "Boot with `cgroup_enable=memory`, or delegate the controllers to this container."
    return Check("cgroups", "failed", f"{version} without {', '.join(missing)}: limits cannot be enforced", fix)


def programs(path: str | None = None) -> Iterator[Check]:
    """What ``aircelld --managed-containerd`` starts."""
    for names in (("containerd",), ("runc", "crun")):
        found = [program for name in names if (program := shutil.which(name, path=path))]
        fix = f"Install it (Debian: apt-get install {names[0]}), or use an engine that runs already."
        wanted = " or ".join(names)
        yield Check(wanted, "ok", ", ".join(found)) if found else Check(wanted, "warning", "not on PATH", fix)


def cni() -> Check:
    """Whether sandboxes can have networks."""
    try:
        return Check("CNI plugins", "ok", str(find_plugins()))
    except EngineUnavailable as error:
        return failed("CNI plugins", error)


def python(client: Client, image: str, interpreter: str, backend: str) -> Iterator[Check]:
    """Whether the agent runs in an image, and without delay: starts a sandbox and asks its Python."""
    name = f"python in {image}"
    spec = SandboxSpec(image=image, python=interpreter)
    job = Job(kind="exec", argv=(interpreter, "-c", ASK_PYTHON))
    request = LaunchRequest(backend=backend, spec=spec, job=job)
    try:
        with client.launch(request.model_dump(mode="json")) as sandbox:
            exit = sandbox.wait(None)
            said = sandbox.stdout.makefile().read().strip()
    except AircellError as error:
        yield failed(name, error)
        return
    if exit.code != 0:
        yield Check(name, "failed", f"it started and then failed: {exit.reason or exit.code}", "Try `aircell run`.")
        return
    version, modules, compiled = said.splitlines()
    yield Check(name, "ok", version)
    yield bytecode(image, interpreter, int(modules), int(compiled))


def bytecode(image: str, interpreter: str, modules: int, compiled: int) -> Check:
    """Whether the packages of an image are compiled: in a read-only sandbox Python cannot do that once and for all."""
    name = f"bytecode in {image}"
    if compiled >= _COMPILED * modules:
        return Check(name, "ok", f"{compiled} of {modules} modules are compiled")
    found = f"{modules - compiled} of {modules} modules are not compiled: each start of a sandbox compiles them anew"
    return Check(
        name, "warning", found, f"Add `RUN {interpreter} -m compileall -q SITE_PACKAGES` to the image's build."
    )
