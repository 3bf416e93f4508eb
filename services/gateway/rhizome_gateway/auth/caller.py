"""Who sent a request, and what they may do."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import Scope

from rhizome_gateway.errors import ApiError

SCOPE_KEY = "rhizome.caller"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use at most; absent means any amount.

    Attributes:
        requests_per_minute: requests that begin in a minute.
        tokens_per_minute: tokens of prompts and answers in a minute.
        max_concurrency: requests that are open at the same time.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key.

    Attributes:
        name: the key's name, for logs and metrics.
        tenant: whose share of the engine and whose cached prefixes are used; empty without a keys file.
        priority: higher runs earlier where the engine's policy knows priorities; 0 is normal.
        admin: may use the routes that operate the server.
        models: names and patterns (`*`, `?`, `[abc]`) of what may be used; absent for everything.
        limits: absent where the key has none.
    """

    name: str
    tenant: str
    priority: int = 0
    admin: bool = False
    models: tuple[str, ...] | None = None
    limits: Limits | None = None

    @property
    def tenant_name(self) -> str:
        """Whom it is for; the key's own name where it belongs to no tenant."""
        return self.tenant or self.name

    @property
    def cache_namespace(self) -> str:
        """The engine's cache namespace: prefixes are shared within a tenant and never across."""
        return self.tenant

    def salted_namespace(self, cache_salt: str | None) -> str:
        """The namespace of a request with a `cache_salt`: a part of the tenant's own that nobody else meets.

        Names of tenants have no `#`, so no two pairs of tenant and salt meet. At most 129 characters.
        """
        if cache_salt is None:
            return self.tenant
        return f"{self.tenant}#{hashlib.sha256(cache_salt.encode()).hexdigest()}"

    def allows(self, model: str) -> bool:
        """Whether the key may use a model, by the name that the client asked for."""
        return self.models is None or _pattern(self.models).fullmatch(model) is not None

    def require_model(self, model: str) -> None:
        """Refuse a model that the key may not use.

        Raises:
            ApiError: 403.
        """
        if not self.allows(model):
            raise ApiError(
                403,
                "This key may not use that model; GET /v1/models lists those it may use.",
                kind="permission_error",
                code="model_not_allowed",
                param="model",
            )

    def require_admin(self) -> None:
        """Refuse who does not operate this server.

        Raises:
            ApiError: 403.
        """
        if not self.admin:
            raise ApiError(
                403,
                "This route is for keys with 'admin = true'.",
                kind="permission_error",
                code="admin_required",
            )


ANONYMOUS = Caller(name="anonymous", tenant="", admin=True)
"""Everybody, where no keys are configured."""


def caller_of(scope: Scope) -> Caller:
    """Who sent the request that a scope belongs to.

    Raises:
        LookupError: nobody checked. A bug; on a public path there is no caller.
    """
    caller = scope.get(SCOPE_KEY)
    if not isinstance(caller, Caller):
        raise LookupError("this path is public or runs outside of AuthMiddleware; it has no caller")
    return caller


@lru_cache(maxsize=1024)
def _pattern(models: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(model) for model in models) or r"(?!)")
