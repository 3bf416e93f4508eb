"""Whatever numbers a router sends, it gets an answer or a refusal, and the engine goes on."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome_testing.engine_process import EngineProcess

vllm = pytest.importorskip("smg_grpc_proto", reason="pip install smg-grpc-proto").vllm_engine_pb2
from smg_grpc_proto import vllm_engine_pb2_grpc  # noqa: E402

EXPECTED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)
any_float = st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, -1.0])
any_uint32 = st.integers(0, 2**32 - 1) | st.integers(0, 5)
any_int32 = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 5)
any_id = st.integers(0, 1151) | any_uint32


fields: dict[str, st.SearchStrategy[Any]] = {
    "temperature": any_float,
    "top_p": any_float,
    "top_k": any_uint32,
    "min_p": any_float,
    "frequency_penalty": any_float,
    "presence_penalty": any_float,
    "repetition_penalty": any_float,
    "min_tokens": any_uint32,
    "stop": st.lists(st.text(max_size=8), max_size=3),
    "stop_token_ids": st.lists(any_id, max_size=4),
    "ignore_eos": st.booleans(),
    "n": st.integers(0, 3) | st.just(2**32 - 1),
    "logprobs": any_int32,
    "prompt_logprobs": any_int32,
    "seed": any_int32,
    "logit_bias": st.dictionaries(any_int32, any_float, max_size=3),
    "truncate_prompt_tokens": any_int32,
    "json_schema": st.sampled_from(["{}", "{", '{"type": "integer"}', "[]", ""]),
    "regex": st.sampled_from(["a", "(", "[0-9]+", ""]),
}


@st.composite
def requests(draw: st.DrawFn) -> Any:
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    params = {name: draw(fields[name]) for name in names}
    if {"json_schema", "regex"} <= {*params}:
        del params["regex"]
    request = vllm.GenerateRequest(request_id=draw(st.text(max_size=4)), stream=draw(st.booleans()))
    request.sampling_params.CopyFrom(vllm.SamplingParams(max_tokens=draw(st.integers(0, 4)), **params))
    if draw(st.booleans()):
        request.tokenized.input_ids.extend(draw(st.lists(any_id, max_size=12)))
    else:
        request.text = draw(st.text(max_size=12))
    return request


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(request=requests())
def test_every_request_is_answered_or_refused(engine: EngineProcess, request: Any) -> None:
    with grpc.insecure_channel(engine.target) as channel:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        try:
            responses = list(stub.Generate(request, timeout=60))
        except grpc.RpcError as error:
            assert error.code() in EXPECTED, error
            assert error.details()
        else:
            done = [one.complete for one in responses if one.HasField("complete")]
            assert {one.index for one in done} == {*range(max(1, request.sampling_params.n))}
            assert all(one.finish_reason in ("stop", "length") for one in done)


def test_the_engine_is_whole_afterwards(engine: EngineProcess) -> None:
    with grpc.insecure_channel(engine.target) as channel:
        native: Any = EngineServiceStub(channel)
        load = native.GetLoad(GetLoadRequest(), timeout=30).load
    assert (load.running_requests, load.waiting_requests, load.kv_pages_in_use) == (0, 0, 0)
    assert load.totals.failed == 0
