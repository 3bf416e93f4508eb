"""What a policy is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_proxy.pool.backend import Backend


class Policy(Protocol):
    """Puts backends in the order in which a request should try them.

    Attributes:
        name: as in the settings and in traces.
    """

    name: str

    def order(self, backends: Sequence[Backend], request: GenerateRequest | None) -> list[Backend]:
        """Order all of `backends`, best first.

        Args:
            backends: those that are ready and were not tried; may be empty.
            request: what is to be run; `None` for a call that is no generation.
        """
        ...
