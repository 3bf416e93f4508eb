"""`python -m rhizome_transport.probe HOST:PORT [--service NAME]`: a health probe for containers.

Exit codes: 0 serving, 1 not serving, 2 unreachable or no such service. Images need no curl then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rhizome_transport.tls import ClientTls
from rhizome_transport.tokens import Tokens

SERVING, NOT_SERVING, UNREACHABLE = 0, 1, 2


def probe(
    target: str,
    service: str = "",
    timeout_s: float = 3.0,
    tls: ClientTls | None = None,
    tokens: Tokens | None = None,
) -> tuple[int, str]:
    """Ask once.

    Returns:
        The exit code and a line for people.
    """
    with _open(target, tls) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service),
                timeout=timeout_s,
                metadata=() if tokens is None else (("authorization", tokens.authorization),),
            )
        except grpc.RpcError as error:
            return UNREACHABLE, f"{target}: {error.code().name}: {error.details()}"
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    code = SERVING if answer.status == health_pb2.HealthCheckResponse.SERVING else NOT_SERVING
    return code, f"{target} {service or 'process'}: {name}"


def _open(target: str, tls: ClientTls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(target)
    return grpc.secure_channel(target, tls.credentials(), options=tls.options())


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, probe, print one line."""
    parser = argparse.ArgumentParser(prog="rhizome_transport.probe", description="gRPC health probe")
    parser.add_argument("target", help="host:port, or unix:/path")
    parser.add_argument("--service", default="", help="service name; empty asks whether the process lives")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds")
    parser.add_argument(
        "--tls-ca", type=Path, help="authority that servers are believed from; else plaintext"
    )
    parser.add_argument("--tls-cert", type=Path, help="certificate of our own, for mutual TLS")
    parser.add_argument("--tls-key", type=Path, help="its private key")
    parser.add_argument("--tls-name", default="", help="name in the server's certificate; else the target's")
    parser.add_argument(
        "--token-file", type=Path, help="shown to the server; ours ask for none, others before them may"
    )
    options = parser.parse_args(arguments)
    try:
        tokens = Tokens.from_file(options.token_file)
        tls = ClientTls.from_files(options.tls_ca, options.tls_cert, options.tls_key, options.tls_name)
    except ValueError as error:
        parser.error(str(error))
    code, line = probe(options.target, options.service, options.timeout, tls, tokens)
    stream = sys.stdout if code == SERVING else sys.stderr
    stream.write(f"{line}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
