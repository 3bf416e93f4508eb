"""The first steps of a fresh runner, before anybody is served: they compile what is compiled at first use.

They go through a core of their own, whose cache and counters are thrown away: nothing is left of them.
"""

from __future__ import annotations

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent
from rhizome_engine.core.runner_protocol import Runner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request

PROMPT_TOKENS = 60
"""On a GPU, where the first steps compile kernels for prompts; a CPU has nothing to compile."""
OUTPUT_TOKENS = 3
"""The first ends a prompt; two more, so that a step was launched while another one was under way."""


def warm_up(runner: Runner, config: SchedulerConfig, prompt_tokens: int) -> None:
    """Answer a prompt greedily and another one at random.

    Args:
        runner: that no core uses yet.
        config: of the core that will.
        prompt_tokens: of each prompt, where contexts may be as long.

    Raises:
        EngineError: a step failed.
    """
    core = EngineCore(runner, config)
    vocab_size, room = runner.config.vocab_size, core.max_context_tokens - OUTPUT_TOKENS
    count = max(min(prompt_tokens, room), 1)
    for number, params in enumerate((SamplingParams(temperature=0.0), SamplingParams(top_p=0.9, seed=0))):
        # Other tokens each time: the second prompt must not be found in the cache.
        prompt = [(number + 2 * place) % vocab_size for place in range(count)]
        core.add(
            Request(
                f"warm-up-{number}",
                prompt,
                params,
                max_tokens=min(OUTPUT_TOKENS, max(room, 1)),
                ignore_eos=True,
            )
        )
        while core.has_work:
            for event in core.step():
                if isinstance(event, FailedEvent):
                    raise event.error
