"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from rhizome_proxy.policies.ask import Ask
from rhizome_proxy.pool.backend import Backend


class Placement:
    """A request that was sent to a backend, as far as its policy cares; this one does not."""

    __slots__ = ()

    def emitted(self, tokens: int) -> None:
        """The request has so many tokens more."""

    def end(self) -> None:
        """The request left the backend. Further calls do nothing."""


_NO_PLACEMENT = Placement()


class Policy(ABC):
    """Puts backends in the order in which a request should try them.

    Attributes:
        name: as in the settings and in traces.
    """

    name: str

    @abstractmethod
    def order(self, backends: Sequence[Backend], ask: Ask | None) -> list[Backend]:
        """Order all of `backends`, best first.

        Args:
            backends: those that are ready and were not tried; may be empty.
            ask: what is to be run; `None` for a call that is no generation.
        """

    def place(self, backend: Backend, ask: Ask | None) -> Placement:
        """Hear that a request is sent to `backend`; what is returned hears how it goes on."""
        return _NO_PLACEMENT

    async def follow(self, backend: Backend) -> None:  # noqa: B027 - most policies need nothing
        """Learn from `backend` whatever it tells by itself, until cancelled; runs while it is in the pool."""

    def retain(self, names: Collection[str]) -> None:  # noqa: B027 - the same
        """Forget all backends but these: the others left the pool."""
