"""The configured backends, found by entry point and made once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from aircell.backends.base import Backend
from aircell.deadlines import within
from aircell.errors import AircellError, EngineError, EngineUnavailable, InvalidSpec

GROUP = "aircell.backends"
_INFO_TIMEOUT = 3.0


class Engines:
    """Backends by name. One that another manager of sandboxes would interfere with is refused before its first use."""

    def __init__(self, config: Mapping[str, Mapping[str, object]], *, beside_kubelet: bool) -> None:
        """Raises InvalidSpec for a backend that is not installed or is configured wrongly."""
        self._backends = {name: _load(name)(settings) for name, settings in config.items()}
        self._cleared = set(self._backends) if beside_kubelet else set[str]()

    def __iter__(self) -> Iterator[tuple[str, Backend]]:
        return iter(self._backends.items())

    def get(self, name: str) -> Backend:
        """Raises InvalidSpec for a name that this node does not have."""
        backend = self._backends.get(name)
        if backend is None:
            raise InvalidSpec(
                f"this node has no backend {name!r}; it has: {', '.join(self._backends) or 'none'}.",
                hint="Choose one of these, or add it under `backends` in aircelld's configuration.",
            )
        return backend

    async def clear(self, name: str) -> None:
        """Raises EngineError when somebody else manages the sandboxes of this engine and would remove ours."""
        if name in self._cleared:
            return
        owner = await self.get(name).foreign_owner()
        if owner is not None:
            raise EngineError(
                f"{owner} manages the sandboxes of the engine behind backend {name!r} and would remove ours.",
                hint="Run `aircelld --managed-containerd`, which starts a containerd of its own, or set "
                "`beside_kubelet: true` if you know better.",
            )
        self._cleared.add(name)

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Who answers behind each backend, for ``hello``."""
        described = await asyncio.gather(*(_describe(backend) for backend in self._backends.values()))
        return dict(zip(self._backends, described, strict=True))

    async def close(self) -> None:
        for backend in self._backends.values():
            await backend.close()


async def _describe(backend: Backend) -> dict[str, Any]:
    try:
        info = await within(_INFO_TIMEOUT, backend.info())
        owner = await within(_INFO_TIMEOUT, backend.foreign_owner())
    except asyncio.TimeoutError:
        return {"error": EngineUnavailable(f"the engine did not answer within {_INFO_TIMEOUT:g} s.").to_wire()}
    except AircellError as error:
        return {"error": error.to_wire()}
    return {
        "name": info.name,
        "version": info.version,
        "api_version": info.api_version,
        "runtime_handlers": info.runtime_handlers,
        "user_namespaces": sorted(info.user_namespaces),
        "foreign_owner": owner,
    }


def _load(name: str) -> type[Backend]:
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in installed:
        raise InvalidSpec(
            f"no backend {name!r} is installed; installed: {', '.join(sorted(installed)) or 'none'}.",
            hint=f"Install the package that registers it under the entry point group `{GROUP}`.",
        )
    try:
        loaded = installed[name].load()
    except ImportError as error:
        raise InvalidSpec(
            f"backend {name!r} cannot be loaded: {error}.", hint=f"Install it with `pip install 'aircell[{name}]'`."
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise InvalidSpec(f"the entry point of backend {name!r} is not a Backend class.")
    return loaded
