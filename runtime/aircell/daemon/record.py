"""What aircelld knows about one sandbox: a record that outlives aircelld, and the live state around it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import model_validator

from aircell.backends.base import LABEL_IMAGE, LABEL_NODE, LABEL_PREFIX, LABEL_SANDBOX, IdRange
from aircell.daemon.owner import Owner
from aircell.daemon.shape import Shape
from aircell.errors import AircellError, from_wire
from aircell.spec import LaunchRequest, Model, SandboxSpec
from aircell.status import ExitStatus, ImageInfo, State

if TYPE_CHECKING:
    from aircell.daemon.place import Place

Kind = Literal["cold", "warm", "zygote", "resident"]
"""How a sandbox came to be: made for its job, made before anybody asked, or, at either time, as the fork of a
zygote, or of a resident in whose sandbox it stays."""


class Stopped(Exception):
    """Somebody ended the launch before the job began; ``exit`` says how."""

    def __init__(self, exit: ExitStatus) -> None:
        super().__init__(exit.reason)
        self.exit = exit


class Record(Model):
    """The part that is written to the sandbox's folder, so that the next aircelld can take over."""

    id: str
    made_as: str = ""
    """What its folder and what it is on the engine are called: by its own id, or, when it or its pod was made before it
    was asked for, by the name that that had then."""
    kind: Kind = "cold"
    backend: str
    role: str
    spec: SandboxSpec
    """Without the values of its environment."""
    labels: dict[str, str]
    """As the engine has them."""
    ids: IdRange | None = None
    """Of the user namespace of a zygote, which nobody else has as long as there is this record."""
    digest: str = ""
    """Which image it is: ``repo@sha256:...``, or the engine's id of one that came from no registry."""
    owner: Owner
    created_at: float
    """Seconds since the epoch."""
    handed_over: bool = False
    """The job's descriptors were sent, or may have been: the job is the agent's from here on."""

    @model_validator(mode="before")
    @classmethod
    def _made_as_itself(cls, data: Any) -> Any:
        return {"made_as": data.get("id"), **data} if isinstance(data, dict) else data

    @classmethod
    def of(cls, request: LaunchRequest, owner: Owner, node: str) -> Record:
        """A new sandbox's record, with a new id."""
        sandbox = f"{request.role}-{secrets.token_hex(6)}"
        identity = {LABEL_PREFIX + name: value for name, value in request.labels.items()}
        ours = {
            LABEL_SANDBOX: sandbox,
            LABEL_NODE: node,
            LABEL_PREFIX + "role": request.role,
            LABEL_PREFIX + "owner": str(owner.pid),
        }
        return cls(
            id=sandbox,
            backend=request.backend,
            role=request.role,
            spec=_without_values(request.spec),
            labels={**request.spec.labels, **identity, **ours},
            owner=owner,
            created_at=time.time(),
        )

    def of_image(self, image: ImageInfo) -> Record:
        """The same once its image is known: the tag may mean another soon."""
        digest = image.digest or image.id
        return self.model_copy(update={"digest": digest, "labels": {**self.labels, LABEL_IMAGE: digest}})

    @classmethod
    def warm(cls, shape: Shape, node: str, role: Literal["warm", "zygote", "resident"] = "warm") -> Record:
        """That of a sandbox that has no job yet, nor anybody who asked for it."""
        sandbox = f"{role}-{secrets.token_hex(6)}"
        return cls(
            id=sandbox,
            kind=role,
            backend=shape.backend,
            role=role,
            spec=_without_values(shape.spec),
            labels={LABEL_SANDBOX: sandbox, LABEL_NODE: node, LABEL_PREFIX + "role": role},
            owner=Owner(),
            created_at=time.time(),
        ).of_image(shape.image)

    @property
    def was_ready(self) -> bool:
        """It was made before its job was asked for."""
        return self.kind != "cold" and self.made_as != self.id

    def served_by(self, name: str, kind: Kind) -> Record:
        """The same job's, in the sandbox of that name."""
        return self.model_copy(update={"made_as": name, "kind": kind})


def _without_values(spec: SandboxSpec) -> SandboxSpec:
    return spec.model_copy(update={"env": dict.fromkeys(spec.env, "")})


class Sandbox:
    """A record with its state, its events, and whoever waits for them. Belongs to one event loop."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.state = State.QUEUED
        self.exit: ExitStatus | None = None
        self.error: AircellError | None = None
        self.shape = ""
        """The key of its shape, once that is known."""
        self.log = ""
        """The end of the agent's own output, kept when the sandbox is gone."""
        self.events: list[dict[str, Any]] = []
        self.changing = asyncio.Lock()
        """Held while the engine stops or removes it: engines do badly with two such calls at once."""
        self.place: Place | None = None
        """Where its job lives, when that is not what the engine has under its record's name."""
        self._news = asyncio.Event()
        self._stop: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def names(self) -> tuple[str, str]:
        """Its id, and what it is called on the engine."""
        return self.record.id, self.record.made_as

    def serve_in(self, name: str, kind: Kind, place: Place | None = None) -> None:
        """From now on it is what has that name on the engine, and its job lives there, or in ``place``."""
        self.record = self.record.served_by(name, kind)
        self.place = place

    @property
    def ended(self) -> bool:
        """No more events will come."""
        return self.state in (State.EXITED, State.FAILED)

    def age(self) -> float:
        """Seconds since it was asked for."""
        return time.time() - self.record.created_at

    def publish(self, state: State, **facts: Any) -> None:
        """Moves to ``state`` and tells the followers."""
        self.state = state
        self.events.append({"event": state.value, "at": time.time(), **facts})
        news, self._news = self._news, asyncio.Event()
        news.set()

    def exited(self, exit: ExitStatus, ended: float | None = None) -> None:
        """The end of one whose job ran, or that was stopped. That was when, in seconds since the epoch; None: now."""
        self.exit = exit
        self.publish(State.EXITED, exit=exit.to_wire(), times={"ended": ended or time.time()})

    def failed(self, error: AircellError, ended: float | None = None) -> None:
        """The end of one whose job never ran, see :meth:`exited`."""
        self.error = from_wire({**error.to_wire(), "sandbox": self.id})  # others may have failed of the same error
        self.publish(State.FAILED, error=self.error.to_wire(), times={"ended": ended or time.time()})

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Every event from the first to the last, as they come."""
        seen = 0
        while True:
            news = self._news
            while seen < len(self.events):
                yield self.events[seen]
                seen += 1
            if self.ended:
                return
            await news.wait()

    async def end(self) -> None:
        """Returns once it has ended."""
        async for _ in self.follow():
            pass

    def ask_to_stop(self, exit: ExitStatus) -> None:
        """Ends a launch whose job has not begun; without effect on any other."""
        if not self._stop.done():
            self._stop.set_result(exit)

    async def stopped(self) -> NoReturn:
        """Raises Stopped once :meth:`ask_to_stop` was called."""
        raise Stopped(await asyncio.shield(self._stop))

    def summary(self) -> dict[str, Any]:
        """For ``ps``."""
        record = self.record
        return {
            "id": record.id,
            "made_as": record.made_as,
            "kind": record.kind,
            "state": self.state.value,
            "backend": record.backend,
            "role": record.role,
            "image": record.spec.image,
            "digest": record.digest,
            "created_at": record.created_at,
            "owner": record.owner.model_dump(mode="json"),
            "labels": record.labels,
            "exit": self.exit.to_wire() if self.exit else None,
            "error": self.error.to_wire() if self.error else None,
        }

    def details(self) -> dict[str, Any]:
        """For ``inspect``: no value of an environment variable, no credentials."""
        return {**self.summary(), "spec": self.record.spec.model_dump(mode="json"), "events": self.events}
