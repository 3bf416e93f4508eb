"""Vectors through proxy, front and core, each a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import transformers

from rhizome.engine.v1 import engine_service_pb2 as engine
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome.proxy.v1 import proxy_service_pb2, proxy_service_pb2_grpc
from rhizome_testing.running_stack import DEMO_MODEL, RunningStack, demo_stack_settings, running_stack

INPUTS = [[(7 * place + number) % 1000 for place in range(1 + 60 * number)] for number in range(8)]


def embed(address: str, inputs: list[list[int]], timeout_s: float = 90) -> np.ndarray:
    request = engine.EmbedRequest(inputs=[TokenIds(ids=ids) for ids in inputs])
    with grpc.insecure_channel(address) as channel:
        response = EngineServiceStub(channel).Embed(request, timeout=timeout_s)
    return np.array([list(embedding.values) for embedding in response.embeddings], np.float32)


def expected(inputs: list[list[int]]) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    with torch.no_grad():
        means = [model(torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in inputs]
    return torch.nn.functional.normalize(torch.stack(means)).numpy()


def test_vectors_through_the_proxy_are_transformers_own(stack: RunningStack) -> None:
    assert np.abs(embed(stack.stack.proxy_address, INPUTS) - expected(INPUTS)).max() <= 1e-5


def test_an_error_keeps_its_input_through_the_proxy(stack: RunningStack) -> None:
    with pytest.raises(grpc.RpcError, match=r"inputs\[1\]: the prompt is empty"):
        embed(stack.stack.proxy_address, [[1], []])


@pytest.mark.timeout(300)
def test_an_engine_killed_while_it_embeds_goes_unnoticed(tmp_path: Path) -> None:
    inputs = [[(place + number) % 1000 for place in range(900)] for number in range(40)]
    with running_stack(demo_stack_settings(tmp_path)) as stack:
        address = stack.stack.proxy_address
        _backends(address, lambda backend: backend.state == proxy_service_pb2.BACKEND_STATE_READY, 2)
        with ThreadPoolExecutor(1) as caller:
            asking = caller.submit(embed, address, inputs)
            (busy,) = _backends(address, lambda backend: backend.in_flight_requests > 0, 1)
            assert not asking.done()
            stack.service(f"engine-{stack.stack.engine_addresses.index(busy)}").kill()
            vectors = asking.result(100)
        assert np.abs(vectors - embed(address, inputs)).max() <= 1e-5


def _backends(proxy: str, wanted: Callable[[proxy_service_pb2.Backend], bool], count: int) -> list[str]:
    """Addresses of engines, once so many are what is wanted."""
    deadline = time.monotonic() + 30
    with grpc.insecure_channel(proxy) as channel:
        stub = proxy_service_pb2_grpc.ProxyServiceStub(channel)
        while time.monotonic() < deadline:
            backends = stub.ListBackends(proxy_service_pb2.ListBackendsRequest(), timeout=10).backends
            found = [str(backend.address) for backend in backends if wanted(backend)]
            if len(found) >= count:
                return found
            time.sleep(0.005)
    raise AssertionError("the proxy never had such engines")
