"""Credential helpers: programs that hand out registry credentials, such as a cloud's tokens that change by the hour.

Source of the protocol: https://github.com/docker/docker-credential-helpers: ``docker-credential-NAME get`` reads the
registry's address from standard input and answers with JSON; what it answers is in no message and no log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aircell.backends.base import RegistryAuth
from aircell.deadlines import within
from aircell.errors import CredentialsUnavailable, InvalidSpec
from aircell.reference import DOCKER_HUB

_SECONDS = 30.0
_HUB_ADDRESS = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"  # noqa: S105 - stands where the user's name would: the secret is an identity token
_NOT_FOUND = b"credentials not found in native keychain"


class _Answer(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    username: str = Field("", alias="Username")
    secret: str = Field("", alias="Secret")


async def ask(helper: str, registry: str, wanted: str) -> RegistryAuth | None:
    """What ``docker-credential-<helper>`` has for a registry now, or None when it has nothing.

    ``wanted`` says in errors whose credentials for which registry these are. Raises InvalidSpec when there is no such
    helper, CredentialsUnavailable when it fails, takes too long or says what nobody understands.
    """
    program = f"docker-credential-{helper}"
    address = _HUB_ADDRESS if registry == DOCKER_HUB else registry
    code, answer = await _run(program, address, wanted)
    hint = f"See what `echo {address} | {program} get` does on the node, as root and with aircelld's environment."
    if code and _NOT_FOUND in answer:
        return None
    if code:
        raise CredentialsUnavailable(f"{wanted} cannot be had: {program} failed with code {code}.", hint=hint)
    try:
        found = _Answer.model_validate_json(answer)
    except ValidationError as error:
        raise CredentialsUnavailable(
            f"{wanted} cannot be had: {program} does not answer as a credential helper does.", hint=hint
        ) from error
    if not found.secret:
        return None
    if found.username == _TOKEN_USER:
        return RegistryAuth(identity_token=found.secret)
    return RegistryAuth(username=found.username, password=found.secret)


async def _run(program: str, address: str, wanted: str) -> tuple[int, bytes]:
    """Its exit code and what it wrote. A helper that is given up on is killed with all that it started."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise InvalidSpec(
            f"{wanted} cannot be had: {program} cannot be started: {error.strerror}.",
            hint="Install that credential helper where aircelld's PATH finds it, or name another in the credentials.",
        ) from error
    try:
        answer, _ = await within(_SECONDS, process.communicate(address.encode()))
    except asyncio.TimeoutError as error:
        raise CredentialsUnavailable(
            f"{wanted} cannot be had: {program} did not answer within {_SECONDS:g} s.",
            hint="Does it wait for a network or for somebody to type? It gets no terminal.",
        ) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return process.returncode or 0, answer
