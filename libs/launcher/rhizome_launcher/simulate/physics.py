"""How fast a simulated engine is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Physics:
    """The laws of one engine.

    Attributes:
        prefill_tokens_per_s: prompt tokens computed per second.
        itl_base_ms: a step that decodes takes so long,
        itl_per_request_ms: and so much longer for each request that decodes in it.
        kv_blocks: blocks of the KV pool.
        block_size: tokens per block.
        max_running: most requests in the batch.
        step_tokens: most tokens computed in a step; prompts are cut into chunks that fit beside the decodes.
        prefix_cache: whether blocks are kept for other prompts with the same prefix.
        noise: standard deviation of a factor on each step's duration; 0 for exact times.
        noise_seed: the same seed gives the same noise.
    """

    prefill_tokens_per_s: float = 8000.0
    itl_base_ms: float = 6.0
    itl_per_request_ms: float = 0.35
    kv_blocks: int = 32768
    block_size: int = 16
    max_running: int = 256
    step_tokens: int = 2048
    prefix_cache: bool = True
    noise: float = 0.0
    noise_seed: int = 0

    def __post_init__(self) -> None:
        if min(self.prefill_tokens_per_s, self.itl_base_ms) <= 0 or self.itl_per_request_ms < 0:
            raise ValueError("rates and times must be positive")
        if min(self.kv_blocks, self.block_size, self.max_running) < 1:
            raise ValueError("KV blocks, block size and running requests must be at least 1")
        if self.step_tokens <= self.max_running:
            raise ValueError("a step must hold more tokens than requests may run, or no prompt gets a turn")
        if not 0 <= self.noise < 1:
            raise ValueError("noise must be at least 0 and below 1")

    def step_s(self, prefill_tokens: int, decodes: int) -> float:
        """How long a step takes that computes so many prompt tokens beside so many requests' next tokens."""
        duration_s = prefill_tokens / self.prefill_tokens_per_s
        if decodes:
            duration_s += (self.itl_base_ms + self.itl_per_request_ms * decodes) / 1e3
        return duration_s

    def blocks(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_size)
