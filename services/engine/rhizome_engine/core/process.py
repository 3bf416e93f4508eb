"""The core process: load the model, serve it, leave nothing behind."""

from __future__ import annotations

import gc
import logging
import math
import signal
import uuid
from dataclasses import replace
from types import FrameType

from rhizome_engine.checkpoint import CheckpointError
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.orphan_watch import OrphanWatch
from rhizome_engine.core.served_model import describe_model
from rhizome_engine.core.server import CoreServer
from rhizome_engine.core_record import CoreRecord, read_core_record, remove_core_record
from rhizome_engine.runner import KVBudgetError, ModelRunner
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.settings import EXIT_CANNOT_SERVE, CoreSettings
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing
from rhizome_transport.frame_server import FrameServer

_log = logging.getLogger(__name__)


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
    try:
        CoreRecord.of_this_process(settings).write(endpoint)
        configure_tracing("rhizome-engine")
        _serve(settings)
    except (CheckpointError, KVBudgetError, OSError, ValueError) as error:
        _log.error("cannot serve %s: %s", settings.model, error)
        return EXIT_CANNOT_SERVE
    except Exception:
        _log.exception("the core failed")
        return 1
    finally:
        shutdown_tracing()
        remove_core_record(endpoint)
    return 0


def _serve(settings: CoreSettings) -> None:
    runner = _load(settings)
    core = EngineCore(
        runner,
        SchedulerConfig(
            max_batch_size=settings.max_batch_size,
            max_queue_size=settings.max_queue_size,
            max_step_tokens=settings.max_step_tokens,
            max_context_tokens=settings.max_context_tokens,
        ),
        runner.checkpoint.eos_token_ids,
    )
    instance_id = uuid.uuid4().hex
    model = describe_model(settings, runner, core.max_context_tokens, instance_id)
    # What was made so far stays for good; the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    frames = FrameServer(settings.core_endpoint, instance_id=instance_id)
    try:
        server = CoreServer(frames, core, model, OrphanWatch(settings.orphan_grace_s))
        replace(CoreRecord.of_this_process(settings), serving=True).write(settings.core_endpoint)
        signal.signal(signal.SIGTERM, lambda _signal, _frame: server.stop())
        signal.signal(signal.SIGINT, lambda _signal, _frame: server.stop())
        _log.info("serving %s on %s", model.name, settings.core_endpoint)
        server.run()
    finally:
        frames.close()


def _load(settings: CoreSettings) -> ModelRunner:
    num_pages = None
    if settings.max_cache_tokens is not None:
        num_pages = math.ceil(settings.max_cache_tokens / settings.page_size)
    return ModelRunner(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        attention=settings.attention,
        page_size=settings.page_size,
        num_pages=num_pages,
        kv_cache_bytes=None if settings.kv_cache_bytes is None else int(settings.kv_cache_bytes),
        max_num_tokens=settings.max_step_tokens,
        max_num_rows=settings.max_batch_size,
        num_threads=settings.num_threads or None,
    )


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
