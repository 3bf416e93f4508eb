"""Server reflection, v1alpha and v1.

grpcio-reflection knows v1alpha only. The messages of both versions have one wire form, so the same servicer
answers under the newer name, which newer tools ask first.
"""

from __future__ import annotations

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME, aio

SERVICE_NAME_V1 = "grpc.reflection.v1.ServerReflection"


def add_reflection(server: grpc.aio.Server, service_names: tuple[str, ...]) -> None:
    """Let tools such as grpcurl ask `server` for its contracts.

    Args:
        server: not started yet.
        service_names: services to list; their modules must be imported. The v1 name is not listed, because
            no descriptor for it exists here.
    """
    servicer = aio.ReflectionServicer((*service_names, SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(SERVICE_NAME_V1, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))
