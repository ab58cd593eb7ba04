"""How an engine is asked, by a gRPC server that takes its time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio

from aircell.backends.cri.calls import Calls
from aircell.backends.cri.client import CriClient
from aircell.backends.cri.config import CriConfig
from aircell_cri.v1 import api_pb2 as cri


class Slow:
    """Says how a container is when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answer, self.answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def status(self, request: cri.ContainerStatusRequest, context: object) -> cri.ContainerStatusResponse:
        self.asked.set()
        await self.answer.wait()
        self.answered.set()
        return cri.ContainerStatusResponse()


@contextlib.asynccontextmanager
async def served(slow: Slow, socket: Path) -> AsyncIterator[Calls]:
    method = grpc.unary_unary_rpc_method_handler(
        slow.status,
        request_deserializer=cri.ContainerStatusRequest.FromString,
        response_serializer=cri.ContainerStatusResponse.SerializeToString,
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", {"ContainerStatus": method})
    server.add_generic_rpc_handlers([service])
    server.add_insecure_port(f"unix://{socket}")
    await server.start()
    client = CriClient(str(socket))
    try:
        yield Calls(client, CriConfig(socket=str(socket)))
    finally:
        await client.close()
        await server.stop(0)


def test_a_question_that_nobody_waits_for_any_more_is_not_taken_back(tmp_path: Path) -> None:
    """grpcio would leak it."""

    async def scenario() -> None:
        slow = Slow()
        async with served(slow, tmp_path / "s") as calls:
            question = asyncio.ensure_future(calls.status("container", "sandbox"))
            await slow.asked.wait()
            question.cancel()
            await asyncio.gather(question, return_exceptions=True)
            assert question.cancelled()
            await asyncio.sleep(0.05)  # in which a cancellation would have come to the server
            slow.answer.set()
            await asyncio.wait_for(slow.answered.wait(), 5)

    asyncio.run(scenario())
