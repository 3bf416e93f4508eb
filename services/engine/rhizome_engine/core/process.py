"""The core process: load the model, serve it, leave nothing behind."""

from __future__ import annotations

import errno
import faulthandler
import gc
import logging
import math
import os
import signal
import sys
import uuid
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import FrameType

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.failed_steps import DeviceLostError, is_device_lost
from rhizome_engine.core.orphan_watch import OrphanWatch
from rhizome_engine.core.served_model import describe_model
from rhizome_engine.core.server import CoreServer
from rhizome_engine.core.start_delay import StartDelay
from rhizome_engine.core.step_spans import record_step
from rhizome_engine.core.warm_up import PROMPT_TOKENS, warm_up
from rhizome_engine.core_pulse import PulseWriter
from rhizome_engine.core_record import CoreRecord, read_core_record, remove_core_record
from rhizome_engine.kvcache.eviction import eviction_policy
from rhizome_engine.parallel.errors import RankLostError, RankRefusedError
from rhizome_engine.parallel.rank_process import RankLogging
from rhizome_engine.parallel.runner import load_runner
from rhizome_engine.runner import KVBudgetError, ModelRunner
from rhizome_engine.runner.device import choose_device
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.settings import (
    EXIT_CANNOT_SERVE,
    EXIT_DEVICE_LOST,
    EXIT_FAILED,
    EXIT_RANK_LOST,
    CoreSettings,
)
from rhizome_engine.start_times import StartTimes
from rhizome_grammar.compiler import GrammarCompiler, GrammarError
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing, tracing_enabled
from rhizome_transport.frame_server import FrameServer
from rhizome_transport.process_start import process_start, seconds_since

_log = logging.getLogger(__name__)

_PASSING = (errno.ENOSPC, errno.EDQUOT)
"""A disk that is full now may have space when the front starts the next core."""


def run_core(settings: CoreSettings) -> int:
    """Serve `settings.core_endpoint` until SIGTERM, SIGINT or the loss of the front; the exit status.

    Peers can connect only once the model is loaded: a Welcome means that requests are taken.
    """
    endpoint = settings.core_endpoint
    earlier = read_core_record(endpoint)
    if earlier is not None:
        _log.error("core %d already serves %s; stop it or choose another endpoint", earlier.pid, endpoint)
        return EXIT_CANNOT_SERVE
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    # A crash in native code, and a front that finds this process stuck, leave in the log where threads were.
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT)
    try:
        CoreRecord.of_this_process(settings).write(endpoint)
        configure_tracing("rhizome-engine")
        _serve(settings)
    except (CheckpointError, KVBudgetError, OSError, ValueError) as error:
        _log.error("cannot serve %s: %s", settings.model, error)
        return 1 if isinstance(error, OSError) and error.errno in _PASSING else EXIT_CANNOT_SERVE
    except DeviceLostError as error:
        _log.exception("%s; a new process may find it well", error)
        return EXIT_DEVICE_LOST
    except RankLostError as error:
        _log.exception("%s; new processes may do better", error)
        return EXIT_RANK_LOST
    except Exception as error:
        _log.exception("the core failed")
        return EXIT_DEVICE_LOST if is_device_lost(error) else EXIT_FAILED
    finally:
        shutdown_tracing()
        remove_core_record(endpoint)
    return 0


def _serve(settings: CoreSettings) -> None:
    times = StartTimes(seconds_since(process_start(os.getpid())))
    config = scheduler_config(settings)
    with closing(_load(settings, config, times)) as runner:
        _serve_runner(settings, config, runner, times)


def _serve_runner(
    settings: CoreSettings, config: SchedulerConfig, runner: ModelRunner, times: StartTimes
) -> None:
    warm_up(runner, config, 1 if runner.device.type == "cpu" else PROMPT_TOKENS)
    times.done("first steps")
    grammars = grammar_compiler(settings, runner)
    times.done("grammars")
    core = EngineCore(
        runner,
        config,
        runner.checkpoint.eos_token_ids,
        grammars=grammars,
        num_host_pages=runner.num_host_pages,
    )
    if settings.trace_steps and tracing_enabled():
        core.steps.listener = record_step
    instance_id = uuid.uuid4().hex
    model = describe_model(settings, runner, core.max_context_tokens, instance_id)
    # What was made so far stays for good; the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    frames = FrameServer(
        settings.core_endpoint,
        instance_id=instance_id,
        tcp_endpoint=settings.core_tcp_endpoint,
        curve=settings.core_curve(),
    )
    try:
        start_delay = StartDelay(settings.schedule_interval_ms / 1e3)
        pulse = PulseWriter(settings.core_endpoint)
        runner.model.layer_done = pulse.layer_done
        orphans = OrphanWatch(settings.orphan_grace_s)
        server = CoreServer(frames, core, model, orphans, start_delay, pulse)
        replace(CoreRecord.of_this_process(settings), serving=True).write(settings.core_endpoint)
        signal.signal(signal.SIGTERM, lambda _signal, _frame: server.stop())
        signal.signal(signal.SIGINT, lambda _signal, _frame: server.stop())
        _log.info("serving %s on %s", model.name, settings.core_endpoint)
        times.done("listening")
        times.log(_log)
        try:
            server.run()
        except (OSError, ValueError) as error:
            # Of a loader they would say that no other process could serve either; here it is a crash.
            raise RuntimeError(f"the core's loop failed: {error}") from error
    finally:
        frames.close()


def grammar_compiler(settings: CoreSettings, runner: ModelRunner) -> GrammarCompiler | None:
    """What compiles grammars; None for a checkpoint without an end-of-sequence token, which ends them."""
    if not runner.checkpoint.eos_token_ids:
        return None
    compiler = GrammarCompiler(
        (settings.model / "tokenizer.json").read_bytes(),
        runner.config.vocab_size,
        runner.checkpoint.eos_token_ids,
        workers=settings.grammar_workers,
        limit_s=settings.grammar_timeout_s,
        cache_size=settings.grammar_cache_size,
    )
    try:
        # Before anybody is served: the first grammar would hold everybody up.
        compiler.warm_up().result()
    except GrammarError as error:
        _log.warning("no grammars with this tokenizer: %s", error)
    return compiler


def scheduler_config(settings: CoreSettings) -> SchedulerConfig:
    """The scheduler's part of the settings.

    Raises:
        ValueError: a limit is out of range, or there is no such device or policy; the message names it.
    """
    eviction_policy(settings.eviction_policy)  # made again later; a wrong name need not wait for the weights
    # On a CPU a step runs on the very cores that the host needs for the next one.
    overlaps = settings.overlap == "auto" and choose_device(settings.device).type != "cpu"
    return SchedulerConfig(
        max_batch_size=settings.max_batch_size,
        max_queue_size=settings.max_queue_size,
        max_concurrent_requests=settings.max_concurrent_requests,
        max_step_tokens=settings.max_step_tokens,
        max_chunk_tokens=settings.max_chunk_tokens,
        max_partial_prefills=settings.max_partial_prefills,
        max_context_tokens=settings.max_context_tokens,
        policy=settings.policy,
        lpm_max_wait_s=settings.lpm_max_wait_s,
        fairness=settings.fairness,
        max_tenant_slowdown=settings.max_tenant_slowdown or None,
        eviction_policy=settings.eviction_policy,
        max_pinned_tokens=settings.max_pinned_tokens,
        overlap=settings.overlap == "on" or overlaps,
    )


def _load(settings: CoreSettings, config: SchedulerConfig, times: StartTimes) -> ModelRunner:
    num_pages = None
    if settings.max_cache_tokens is not None:
        num_pages = math.ceil(settings.max_cache_tokens / settings.page_size)
    return load_runner(
        settings.model,
        tensor_parallel=settings.tensor_parallel,
        timeout_s=settings.tensor_parallel_timeout_s,
        logging=RankLogging(settings.log_level, settings.log_format),
        on_lost=partial(_end_at_once, settings.core_endpoint),
        device=settings.device,
        dtype=settings.dtype,
        kv_cache_dtype=settings.kv_cache_dtype,
        quantization=settings.quantization,
        kernels=settings.kernels,
        attention=settings.attention,
        graphs=settings.graphs,
        page_size=settings.page_size,
        num_pages=num_pages,
        kv_memory=settings.kv_memory,
        kv_host_memory=settings.kv_host_memory,
        memory_share=settings.memory_share,
        max_num_tokens=config.max_step_tokens,
        max_num_rows=config.max_batch_size,
        max_context_tokens=config.max_context_tokens,
        num_slots=config.num_slots,
        num_threads=settings.num_threads or None,
        overlap=config.overlap,
        progress=True,
        times=times,
    )


def _end_at_once(endpoint: str, error: Exception) -> None:
    """End this process although its main thread waits for a rank that is lost, in native code perhaps.

    Requests end as with a core that was killed: their callers see the connection close.
    """
    status = EXIT_CANNOT_SERVE if isinstance(error, RankRefusedError) else EXIT_RANK_LOST
    _log.error("the core ends with status %d: %s", status, error)
    remove_core_record(endpoint)
    sys.stderr.flush()
    os._exit(status)


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
