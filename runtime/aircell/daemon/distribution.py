"""Asks a registry whether it gives an image to whoever has certain credentials. No content is fetched.

Sources: the OCI distribution specification 1.1 and, for tokens, https://distribution.github.io/distribution/spec/auth/.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit
from urllib.request import getproxies, parse_http_list, parse_keqv_list, proxy_bypass

import aiohttp

from aircell.backends.base import RegistryAuth
from aircell.daemon.registry_hosts import Endpoint
from aircell.errors import RightsUnknown
from aircell.reference import Reference

_SECONDS = 15.0
_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_GIVEN = 200
_REFUSED = frozenset({401, 403, 404})
"""Registries that do not tell strangers what they have answer 404."""


async def gives(endpoints: Sequence[Endpoint], image: Reference, auth: RegistryAuth | None) -> bool:
    """Whether the registry would let these credentials, or nobody in particular, have the image's manifest.

    Raises RightsUnknown when it cannot be asked.
    """
    failures = []
    for endpoint in endpoints:
        try:
            status = await _status(endpoint, image, auth)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            failures.append(f"{endpoint.url}: {error or f'no answer within {_SECONDS:g} s'}")
            continue
        if status == _GIVEN:
            return True
        if status not in _REFUSED:
            failures.append(f"{endpoint.url} answers {status}")
        elif not endpoint.mirror:
            return False
    raise RightsUnknown(
        f"the image {image} is on this node, and its registry cannot be asked who may use it ({'; '.join(failures)}).",
        hint="Check that aircelld reaches the registry and knows its certificate (`image_rights.registry_hosts`); "
        "another try may succeed.",
    )


async def _status(endpoint: Endpoint, image: Reference, auth: RegistryAuth | None) -> int:
    """Of the manifest's request, after the registry has said which proof it wants."""
    url = f"{endpoint.url}/{image.repository}/manifests/{image.version}"
    connector = aiohttp.TCPConnector(ssl=endpoint.tls)
    limit = aiohttp.ClientTimeout(total=_SECONDS)
    # Without trust_env, which would have strangers asked for with what is in ~/.netrc; so proxies are ours to find.
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        status, challenges = await _head(session, url, {})
        if status != 401:
            return status
        for scheme, _, rest in (challenge.partition(" ") for challenge in challenges):
            proof = await _proof(session, scheme.lower(), _parameters(rest), image, auth)
            if proof:
                return (await _head(session, url, {"Authorization": proof}))[0]
        return status


async def _head(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> tuple[int, list[str]]:
    accepted = {"Accept": _MANIFESTS, **headers}
    async with session.head(url, headers=accepted, allow_redirects=True, proxy=_proxy(url)) as answer:
        return answer.status, answer.headers.getall("WWW-Authenticate", [])


def _parameters(challenge: str) -> dict[str, str]:
    return parse_keqv_list([each for each in parse_http_list(challenge) if "=" in each])


async def _proof(
    session: aiohttp.ClientSession,
    scheme: str,
    challenge: Mapping[str, str],
    image: Reference,
    auth: RegistryAuth | None,
) -> str:
    """The header that answers a challenge; empty when these credentials have no answer to it."""
    basic = _basic(auth) if auth and auth.password else ""
    if scheme == "basic":
        return basic
    if scheme != "bearer" or "realm" not in challenge:
        return ""
    scope = challenge.get("scope") or f"repository:{image.repository}:pull"
    query = {"service": challenge.get("service", ""), "scope": scope}
    realm = challenge["realm"]
    if auth and auth.identity_token:
        form = {**query, "grant_type": "refresh_token", "refresh_token": auth.identity_token, "client_id": "aircell"}
        request = session.post(realm, data=form, proxy=_proxy(realm))
    else:
        headers = {"Authorization": basic} if basic else {}
        request = session.get(realm, params=query, headers=headers, proxy=_proxy(realm))
    async with request as answer:
        if answer.status in _REFUSED:
            return ""
        answer.raise_for_status()
        content = await answer.json(content_type=None)
    token = content.get("token") or content.get("access_token")
    if not token:
        raise ValueError(f"{realm} gives no token")
    return f"Bearer {token}"


def _basic(auth: RegistryAuth) -> str:
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()


def _proxy(url: str) -> str | None:
    """As the environment variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY have it."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
