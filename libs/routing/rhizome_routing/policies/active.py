"""What open requests cost a backend: this proxy's own at once, others' by report.

    active(b) = REQUEST · open requests at b + TOKEN · tokens that they hold at b      in tokens of prefill

Others are b's last report (requests, pages in use, prompt tokens that wait) less what this proxy had open
there as the report came. `None`, where the report is missing, old or silent, is *unknown*; it is for the
caller to make it never look idle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from rhizome_routing.candidate import Candidate, LoadReport
from rhizome_routing.policies.base import Placement


class OpenTokens(Placement):
    """One request's prompt tokens at one backend; what it says beyond comes with the backend's reports."""

    __slots__ = ("_active", "_name", "_tokens")

    def __init__(self, active: Active, name: str, tokens: int) -> None:
        self._active = active
        self._name = name
        self._tokens = tokens
        active.add(name, tokens)

    def end(self) -> None:
        """See `Placement`."""
        self._active.add(self._name, -self._tokens)
        self._tokens = 0


class Active:
    """The ledger of all backends.

    Args:
        request: what an open request costs beside its tokens.
        token: what each of its tokens costs.
        on_report: told of each report once, before it is used.
    """

    def __init__(
        self, request: float, token: float, on_report: Callable[[Candidate, LoadReport], None]
    ) -> None:
        self._request = request
        self._token = token
        self._on_report = on_report
        self._tokens: dict[str, int] = {}
        self._reports: dict[str, tuple[LoadReport, float | None]] = {}

    def add(self, name: str, tokens: int) -> None:
        """Count tokens of an open request, or take them off."""
        left = self._tokens.get(name, 0) + tokens
        if left:
            self._tokens[name] = left
        else:
            self._tokens.pop(name, None)

    def costs(self, backends: Sequence[Candidate], now: float) -> tuple[list[float], list[float | None]]:
        """What this proxy's open requests cost at each, and what others' do: `None` is unknown, never idle.

        Args:
            backends: where.
            now: seconds of the clock that reports are stamped with.
        """
        own: list[float] = []
        foreign: list[float | None] = []
        tokens, reports, request, token = self._tokens, self._reports, self._request, self._token
        for backend in backends:
            name, report = backend.name, backend.report
            own.append(request * backend.in_flight + token * tokens.get(name, 0))
            if report is None or now - report.at > backend.load_max_age_s:
                foreign.append(None)
                continue
            seen = reports.get(name)
            if seen is None or seen[0] is not report:
                self._on_report(backend, report)
                seen = reports[name] = report, self._others(name, report)
            foreign.append(seen[1])
        return own, foreign

    def retain(self, names: Collection[str]) -> None:
        """Forget the reports of all backends but these."""
        self._reports = {name: seen for name, seen in self._reports.items() if name in names}

    def _others(self, name: str, report: LoadReport) -> float | None:
        load = report.load
        if not load.HasField("running_requests") or not load.HasField("waiting_requests"):
            return None
        requests = max(0, load.running_requests + load.waiting_requests - report.own)
        held = load.kv_pages_in_use * load.page_size + load.waiting_tokens
        tokens = max(0, held - self._tokens.get(name, 0)) if requests else 0
        return self._request * requests + self._token * tokens
