"""The engine's sentences, as containerd 1.6 and 2.3 with runc and crun were heard to say them, and what they mean."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from aircell import errors
from aircell.backends.cri.errors import Refine, pulling, starting, translate


def translated(code: StatusCode, details: str, refine: Refine | None = None) -> errors.AircellError:
    return translate(code, details, doing="doing this", socket="/s.sock", seconds=5, sandbox="s1", refine=refine)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (StatusCode.UNAVAILABLE, errors.EngineUnavailable, "does not answer on /s.sock, doing this: words"),
        (StatusCode.DEADLINE_EXCEEDED, errors.EngineUnavailable, "took more than 5 s, doing this"),
        (StatusCode.NOT_FOUND, errors.NotFound, "knows no such thing, doing this: words"),
        (StatusCode.UNKNOWN, errors.EngineError, "failed, doing this: words"),
    ],
)
def test_statuses(code: StatusCode, kind: type[errors.AircellError], message: str) -> None:
    error = translated(code, "words")
    assert (type(error), error.sandbox) == (kind, "s1")
    assert message in error.message


def test_an_engine_that_still_recovers_is_unavailable() -> None:
    assert type(translated(StatusCode.UNKNOWN, "server is not initialized yet")) is errors.EngineUnavailable


PULL = 'failed to pull and unpack image "r/i:1": '
RESOLVE = PULL + 'failed to resolve reference "r/i:1": '


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        (RESOLVE + "r/i:1: not found", errors.ImageNotFound),
        (RESOLVE + "unexpected status from HEAD request to http://r/v2/i: 401 Unauthorized", errors.ImageUnauthorized),
        (
            RESOLVE + "pull access denied, repository does not exist or may require authorization: server message: "
            "insufficient_scope: authorization failed",
            errors.ImageUnauthorized,
        ),
        (RESOLVE + "failed to authorize: failed to fetch token: 403 Forbidden", errors.ImageUnauthorized),
        (PULL + "no match for platform in manifest sha256:1: not found", errors.ImagePlatformMismatch),
        (RESOLVE + "unexpected status code [manifests 1]: 503 Service Unavailable", errors.RegistryFailed),
        (RESOLVE + "unexpected status from HEAD request to http://r: 429 Too Many Requests", errors.ImagePullFailed),
        (RESOLVE + "dial tcp: lookup r on 192.0.2.1:53: no such host", errors.RegistryFailed),
        (RESOLVE + "dial tcp 127.0.0.1:9: connect: connection refused", errors.RegistryFailed),
        (PULL + "failed to extract layer: write /x: no space left on device", errors.ImagePullFailed),
        ('failed to parse image reference "A B": invalid reference format', errors.InvalidSpec),
        (PULL + "something new", errors.ImageError),
    ],
)
def test_pulls(details: str, kind: type[errors.AircellError]) -> None:
    error = translated(StatusCode.UNKNOWN, details, pulling("r/i:1"))
    assert type(error) is kind
    assert "r/i:1" in error.message
    assert error.hint


def test_a_pull_from_an_engine_that_is_not_there() -> None:
    assert type(translated(StatusCode.UNAVAILABLE, "x", pulling("r/i:1"))) is errors.EngineUnavailable


OCI = "failed to create containerd task: failed to create shim task: OCI runtime create failed: "


@pytest.mark.parametrize(
    ("details", "message"),
    [
        (
            OCI + "runc create failed: unable to start container process: "
            'exec: "python3": executable file not found in $PATH: unknown',
            "not in the image",
        ),
        (
            OCI + "runc create failed: unable to start container process: "
            'exec: "/opt/python": stat /opt/python: no such file or directory: unknown',
            "not in the image",
        ),
        (OCI + "executable file `python3` not found in $PATH: No such file or directory: unknown", "not in the image"),
        (
            OCI + 'runc create failed: unable to start container process: exec: "/etc/passwd": permission denied',
            "may not be executed",
        ),
    ],
)
def test_starts(details: str, message: str) -> None:
    error = translated(StatusCode.UNKNOWN, details, starting)
    assert type(error) is errors.StartupFailed
    assert message in error.message
    assert (error.detail, error.sandbox) == (details, "s1")


def test_another_failure_of_a_start_is_the_engines() -> None:
    assert type(translated(StatusCode.UNKNOWN, OCI + "cgroups: cannot", starting)) is errors.EngineError
