"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from rhizome_routing.candidate import AnyCandidate, Candidate
from rhizome_routing.policies.ask import Ask
from rhizome_routing.prefix.index import PrefixIndex


class Placement:
    """A request that was sent to a backend, as far as its policy cares; this one does not."""

    __slots__ = ()

    def end(self) -> None:
        """The request left the backend. Further calls do nothing."""


_NO_PLACEMENT = Placement()


class Policy(ABC):
    """Puts backends in the order in which a request should try them.

    Attributes:
        name: as in the settings and in traces.
    """

    name: str

    @property
    def index(self) -> PrefixIndex | None:
        """Prefixes in tokens, to which the KV events of backends go; `None` where it uses none."""
        return None

    @abstractmethod
    def order(self, backends: Sequence[AnyCandidate], ask: Ask | None) -> list[AnyCandidate]:
        """Order all of `backends`, best first.

        Args:
            backends: those that are ready and were not tried; may be empty.
            ask: what is to be run; `None` for a call that is no generation.
        """

    def place(self, backend: Candidate, ask: Ask | None) -> Placement:
        """Hear that a request is sent to `backend`; what is returned hears how it goes on."""
        return _NO_PLACEMENT

    def retain(self, names: Collection[str]) -> None:  # noqa: B027 - most policies need nothing
        """Forget all backends but these: the others left the pool."""
