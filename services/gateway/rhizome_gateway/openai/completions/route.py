"""`POST /v1/completions`."""

from __future__ import annotations

from rhizome_gateway.asked import read_asked
from rhizome_gateway.generation.job import Job, run_job
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai.annotated import annotated
from rhizome_gateway.openai.completions.plan import plan_completion
from rhizome_gateway.openai.completions.rendering import CompletionRendering
from rhizome_gateway.openai.completions.request import CompletionRequest
from rhizome_gateway.runtime import Runtime
from rhizome_telemetry import semconv
from rhizome_telemetry.random_ids import random_hex


class Completions:
    """Goes on with a text, or with several."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request: one JSON object or, with `stream: true`, server-sent events."""
        runtime = self._runtime
        asked = await read_asked(runtime, exchange, CompletionRequest)
        request, served = asked.request, asked.served
        completion_id = f"cmpl-{random_hex()}"
        plan = await plan_completion(runtime, asked.caller, served, request, completion_id)
        rendering = CompletionRendering(completion_id, request, served, plan.shown)
        step = request.num_candidates
        job = Job(
            semconv.OPERATION_TEXT_COMPLETION,
            served,
            request.model,
            completion_id,
            request,
            request.token_limit,
            plan.choices,
            step,
            annotated(rendering, request, plan.choices, step, served.tokenizer, prompt_in_choices=True),
            bool(request.stream),
            asked.arrived,
        )
        await run_job(runtime, exchange, job)
