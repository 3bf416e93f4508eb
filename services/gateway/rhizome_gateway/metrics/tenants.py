"""What each tenant used, for a bounded number of tenants: Prometheus keeps every name for ever."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter

TENANT_PREFIX = "rhizome_gateway_tenant_"
OTHER = "other"


class TenantInstruments:
    """Counts by tenant.

    Args:
        registry: where the families are registered.
        most: tenants that are told apart, those that come first; the others together are `other`. With 0,
            nobody is counted.
    """

    def __init__(self, registry: CollectorRegistry, most: int) -> None:
        self._most = most
        self._known: dict[str, TenantMeter] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{TENANT_PREFIX}{name}", text, ("tenant", *labels), registry=registry)

        self.requests = counter(
            "requests", "Generations that ended; error_type is empty for a good end.", "error_type"
        )
        self.refused = counter("requests_refused", "Requests refused because of a limit.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens in prompts.")
        self.cache_hit_tokens = counter("cache_hit_tokens", "Prompt tokens found in the prefix cache.")
        self.generated_tokens = counter("generated_tokens", "Tokens generated.")

    def of(self, tenant: str) -> TenantMeter | None:
        """Those of one tenant; `None` where nobody is counted."""
        known = self._known.get(tenant)
        if known is not None or not self._most:
            return known
        if len(self._known) >= self._most:
            tenant = OTHER
        known = self._known.get(tenant)
        if known is None:
            known = self._known[tenant] = TenantMeter(self, tenant)
        return known


class TenantMeter:
    """Counts for one tenant.

    Args:
        instruments: those of all.
        tenant: the label.
    """

    __slots__ = (
        "_requests",
        "cache_hit_tokens",
        "generated_tokens",
        "prompt_tokens",
        "refused",
    )

    def __init__(self, instruments: TenantInstruments, tenant: str) -> None:
        self._requests = cache(lambda error: instruments.requests.labels(tenant, error))
        self.refused = instruments.refused.labels(tenant)
        self.prompt_tokens = instruments.prompt_tokens.labels(tenant)
        self.cache_hit_tokens = instruments.cache_hit_tokens.labels(tenant)
        self.generated_tokens = instruments.generated_tokens.labels(tenant)

    def ended(self, error: str, generated_tokens: int) -> None:
        """A generation ended.

        Args:
            error: as for `ModelInstruments.ended`.
            generated_tokens: of all its answers.
        """
        self._requests(error).inc()
        self.generated_tokens.inc(generated_tokens)
