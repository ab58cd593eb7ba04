"""The engine's socket: one channel, a deadline on every call, gRPC statuses turned into our errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc.aio

from aircell.backends.cri.errors import Refine, translate
from aircell_cri.containerd import content_pb2_grpc
from aircell_cri.v1 import api_pb2_grpc

if TYPE_CHECKING:
    from aircell_cri.containerd.content_pb2_grpc import ContentAsyncStub
    from aircell_cri.v1.api_pb2_grpc import ImageServiceAsyncStub, RuntimeServiceAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")

_CHANNEL_OPTIONS = [
    # containerd's own limit, against gRPC's 4 MiB: a list of all containers of a big node is larger.
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 16 * 2**20),
    # A restarted engine is found again within a second, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]


class CriClient:
    """Connects at the first call. Belongs to the asyncio loop in which that happens."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[type, Any] = {}
        """By service; making one costs more than a call."""

    @property
    def runtime(self) -> RuntimeServiceAsyncStub:
        return cast("RuntimeServiceAsyncStub", self._stub(api_pb2_grpc.RuntimeServiceStub))

    @property
    def images(self) -> ImageServiceAsyncStub:
        return cast("ImageServiceAsyncStub", self._stub(api_pb2_grpc.ImageServiceStub))

    @property
    def content(self) -> ContentAsyncStub:
        """containerd's own; other engines answer UNIMPLEMENTED."""
        return cast("ContentAsyncStub", self._stub(content_pb2_grpc.ContentStub))

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        seconds: float,
        doing: str,
        sandbox: str = "",
        refine: Refine | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Response:
        """One call with a deadline. ``doing`` is for the error: "starting the container".

        Raises EngineUnavailable, NotFound, EngineError, or what ``refine`` makes of the engine's sentence.
        """
        try:
            return await method(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise translate(
                error.code(),
                error.details() or "",
                doing=doing,
                socket=self._socket,
                seconds=seconds,
                sandbox=sandbox,
                refine=refine,
            ) from error

    async def close(self) -> None:
        """Idempotent; the next call would connect again."""
        channel, self._channel = self._channel, None
        self._stubs.clear()
        if channel is not None:
            await channel.close()

    def _stub(self, service: type) -> Any:
        if service not in self._stubs:
            self._stubs[service] = service(self._connect())
        return self._stubs[service]

    def _connect(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix://{self._socket}", options=_CHANNEL_OPTIONS)
        return self._channel
