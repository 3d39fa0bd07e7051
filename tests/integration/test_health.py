"""grpc.health.v1 and reflection, as load balancers and command line tools use them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from segstream.api.service import Service
from segstream.engine import InProcessEngine
from segstream.models import LMANet
from segstream.settings import Settings
from segstream.v1 import segmentation_pb2 as pb
from tests.support.service import RunningService

SERVICE = "segstream.v1.SegmentationService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(service: RunningService) -> Any:
    return HealthStub(service.channel)


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_a_running_service_is_serving(service: RunningService, name: str) -> None:
    request = health_pb2.HealthCheckRequest(service=name)
    assert (await health(service).Check(request, timeout=10)).status == SERVING


async def test_an_unknown_name_is_not_found(service: RunningService) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(service).Check(health_pb2.HealthCheckRequest(service="x"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_who_watches_is_told_of_the_shutdown(service: RunningService, name: str) -> None:
    watch = health(service).Watch(health_pb2.HealthCheckRequest(service=name), timeout=30)
    assert (await watch.read()).status == SERVING
    stopping = service.stop()
    assert (await watch.read()).status == NOT_SERVING
    async with asyncio.timeout(20):
        await stopping


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_who_watches_is_told_of_the_loss_of_the_engine(
    service: RunningService, name: str
) -> None:
    request = health_pb2.HealthCheckRequest(service=name)
    watch = health(service).Watch(request, timeout=30)
    assert (await watch.read()).status == SERVING
    await service.engine.stop()
    assert (await watch.read()).status == NOT_SERVING
    assert (await health(service).Check(request, timeout=10)).status == NOT_SERVING


async def test_a_service_without_an_engine_never_was_serving(
    models: Mapping[str, LMANet],
) -> None:
    service = Service(Settings(port=0, http_port=0), InProcessEngine(models))
    async with service, grpc.aio.insecure_channel(service.addresses["grpc"]) as channel:
        stub: Any = HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == NOT_SERVING


async def test_reflection_lists_the_services(service: RunningService) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = await reflect(service, request)
    names = {each.name for each in answer.list_services_response.service}
    assert names == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_reflection_hands_out_the_contract(service: RunningService) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    answer = await reflect(service, request)
    [described] = answer.file_descriptor_response.file_descriptor_proto
    assert described == pb.DESCRIPTOR.serialized_pb


async def reflect(
    service: RunningService, request: reflection_pb2.ServerReflectionRequest
) -> reflection_pb2.ServerReflectionResponse:
    async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield request

    channel: Any = service.channel  # the stubs' types know only the blocking one
    stub: Any = ServerReflectionStub(channel)
    answers = [each async for each in stub.ServerReflectionInfo(requests(), timeout=10)]
    assert len(answers) == 1
    answer = answers[0]
    assert isinstance(answer, reflection_pb2.ServerReflectionResponse)
    return answer
