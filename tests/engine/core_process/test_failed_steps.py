"""What a step that failed does to its requests, to others, and to the core."""

from __future__ import annotations

import grpc
import pytest
import torch

from rhizome_engine.core.failed_steps import DeviceLostError, is_device_lost, is_out_of_memory
from rhizome_engine.scheduler.load import Load
from rhizome_testing.hash_core import HashCore, all_events, token_request
from rhizome_testing.hash_runner import HashStep
from rhizome_transport.errors import EngineError, http_error
from rhizome_transport.zmq_client import ZmqEngineClient


def no_memory_on_this_host() -> Exception:
    """What PyTorch really raises when the host has no memory left."""
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("2**60 bytes were there")


NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
]
DEVICE_LOST = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
]
ANYTHING = [RuntimeError("shape '[2, 3]' is invalid for input of size 7"), ValueError("no"), IndexError("7")]


def test_errors_are_told_apart() -> None:
    for error in [*NO_MEMORY, no_memory_on_this_host()]:
        assert is_out_of_memory(error) and not is_device_lost(error), error
    for error in DEVICE_LOST:
        assert is_device_lost(error) and not is_out_of_memory(error), error
    for error in ANYTHING:
        assert not is_device_lost(error) and not is_out_of_memory(error), error


def fail_launches(core: HashCore, *errors: Exception) -> None:
    """Make the next steps raise these, one each."""
    launch, left = core.runner.launch, list(errors)

    def launch_or_fail(batch: object) -> HashStep:
        if left:
            raise left.pop(0)
        return launch(batch)  # type: ignore[arg-type]

    core.runner.launch = launch_or_fail  # type: ignore[method-assign]


def totals(load: Load) -> tuple[int, int]:
    return load.totals.failed, load.kv_pages_in_use


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
async def test_a_step_without_memory_costs_its_requests_alone(
    hash_core: HashCore, client: ZmqEngineClient, error: Exception
) -> None:
    fail_launches(hash_core, error)
    with pytest.raises(EngineError) as failed:
        await all_events(client, token_request([1, 2, 3]))
    assert (failed.value.code, failed.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert failed.value.retry_after_s == 1.0
    assert (http_error(failed.value).status, http_error(failed.value).code) == (503, "overloaded")
    assert (await all_events(client, token_request([1, 2, 3])))[-1].HasField("finished")
    assert totals(hash_core.core.load()) == (1, 0)


async def test_the_requests_that_wait_go_on_after_a_step_failed(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    fail_launches(hash_core, *ANYTHING[:2])
    for _ in range(2):
        with pytest.raises(EngineError) as failed:
            await all_events(client, token_request([1, 2, 3]))
        assert failed.value.code is grpc.StatusCode.INTERNAL
    assert (await all_events(client, token_request([1, 2, 3])))[-1].HasField("finished")
    assert hash_core.running
    assert totals(hash_core.core.load()) == (2, 0)


@pytest.mark.parametrize("error", DEVICE_LOST, ids=str)
async def test_a_lost_device_ends_the_core_at_once(
    hash_core: HashCore, client: ZmqEngineClient, error: Exception
) -> None:
    fail_launches(hash_core, error)
    with pytest.raises(EngineError) as lost:
        await all_events(client, token_request([1, 2, 3]))
    assert lost.value.code is grpc.StatusCode.UNAVAILABLE  # nothing had come, so it may go elsewhere
    assert isinstance(hash_core.failure, DeviceLostError)
    assert hash_core.failure.__cause__ is error
