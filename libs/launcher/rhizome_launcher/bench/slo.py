"""Service level objectives: what a request must keep to count as good."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.records import RequestRecord

METRICS = ("ttft", "tpot", "e2e")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_TERM = re.compile(r"\s*(\w+)\s*[:=]\s*(\d+(?:\.\d+)?)\s*(us|ms|s)\s*")


@dataclass(frozen=True, slots=True)
class Slo:
    """Upper bounds in seconds by metric: `ttft`, `tpot`, `e2e`."""

    bounds_s: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read `ttft:200ms,tpot:50ms,e2e:2s`.

        Raises:
            BenchError: the text is of another form.
        """
        bounds: dict[str, float] = {}
        for term in text.split(","):
            match = _TERM.fullmatch(term)
            if match is None or match[1] not in METRICS:
                raise BenchError(
                    f"--slo does not understand {term.strip()!r}: write terms such as ttft:200ms, with "
                    f"{', '.join(METRICS)} and the units {', '.join(_SECONDS)}."
                )
            bounds[match[1]] = float(match[2]) * _SECONDS[match[3]]
        return cls(bounds)

    def met_by(self, record: RequestRecord) -> bool:
        """Whether the request succeeded within every bound; a metric that it does not have cannot be late."""
        measured = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2e": record.e2e_s}
        return record.ok and all(
            (value := measured[metric]) is None or value <= bound for metric, bound in self.bounds_s.items()
        )
