"""Why a request is not admitted."""

from __future__ import annotations

from typing import Final

_LEAST_RETRY_AFTER_S: Final = 1.0
_MOST_RETRY_AFTER_S: Final = 120.0


class NotAdmitted(Exception):  # noqa: N818 - it is what happened, and mostly no error
    """A request that goes to no backend now.

    Attributes:
        status: HTTP status.
        code: the error's name, for programs.
        retry_after_s: when to try again.
    """

    status: int = 503
    code: str = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = min(max(retry_after_s, _LEAST_RETRY_AFTER_S), _MOST_RETRY_AFTER_S)


class TenantOverloaded(NotAdmitted):
    """One tenant has too much waiting; others are not concerned."""

    status = 429
    code = "rate_limit_exceeded"


class SystemOverloaded(NotAdmitted):
    """All tenants together have too much waiting."""


class QueueTimeout(NotAdmitted):
    """The request waited as long as it may."""

    code = "queue_timeout"
