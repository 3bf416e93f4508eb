"""What was seen of one request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """One request, timed by the client. All times are seconds on one monotonic clock.

    Attributes:
        started_s: when it was due: in an open loop its arrival, even if the client was late to send it.
        ended_s: when the answer or the error was complete.
        text_s: when each piece of the answer came that held text, reasoning or a tool call.
        prompt_tokens: as the server counted them, 0 where it did not say.
        cached_tokens: prompt tokens that the server had in its cache.
        output_tokens: as the server counted them; else the number of pieces.
        counted_by_server: whether the server reported its usage.
        error: the kind of failure, such as `http_503`; empty for success.
        detail: what the server said about the failure.
    """

    started_s: float
    ended_s: float = 0.0
    text_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    counted_by_server: bool = False
    error: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the answer came whole."""
        return not self.error

    @property
    def ttft_s(self) -> float | None:
        """Time to the first piece of the answer; None where none came."""
        return self.text_s[0] - self.started_s if self.text_s else None

    @property
    def e2e_s(self) -> float:
        """Time to the end of the answer."""
        return self.ended_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for answers of fewer than two tokens."""
        if not self.text_s or self.output_tokens < 2:
            return None
        return (self.ended_s - self.text_s[0]) / (self.output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Times between consecutive pieces of the answer."""
        return [later - earlier for earlier, later in zip(self.text_s, self.text_s[1:], strict=False)]
