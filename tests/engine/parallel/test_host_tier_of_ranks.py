"""Each rank keeps its own part of a page on the host: what comes back is the text of one rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.engine.runner.test_host_pages import talk

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.parallel.ranks import Ranks
from rhizome_engine.parallel.runner import ParallelRunner
from rhizome_engine.runner import ModelRunner
from rhizome_engine.runner.memory import KVBudgetError
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.thread_ranks import ThreadGroup, in_threads

SETTINGS = {"dtype": "float32", "num_pages": 16, "page_size": 8, "max_num_tokens": 64, "max_num_rows": 4}
MEMORY = "4MiB"


def texts_and_totals(runner: ModelRunner) -> tuple[dict[str, list[int]], int]:
    config = SchedulerConfig(max_batch_size=4, max_step_tokens=64, overlap=True)
    core = EngineCore(runner, config, num_host_pages=runner.num_host_pages)
    return talk(core, conversations=4), core.load().totals.host_loaded_tokens


def test_ranks_share_the_memory_and_keep_the_text(family: Callable[..., Path]) -> None:
    path = family("llama, grouped-query")
    one, _ = texts_and_totals(ModelRunner(path, device="cpu", num_threads=1, **SETTINGS))
    alone = ModelRunner(path, device="cpu", num_threads=1, kv_host_memory=MEMORY, **SETTINGS)

    def rank(group: ThreadGroup) -> tuple[dict[str, list[int]], int, int]:
        runner = ModelRunner(
            path, device="cpu", num_threads=1, kv_host_memory=MEMORY, group=group, **SETTINGS
        )
        return *texts_and_totals(runner), runner.num_host_pages

    for texts, loaded, num_pages in in_threads(2, rank):
        assert texts == one and loaded > 0
        assert num_pages == alone.num_host_pages, "half of the memory, for half of each page"


def test_a_rank_that_has_no_room_ends_all(family: Callable[..., Path]) -> None:
    path = family("llama, grouped-query")

    def rank(group: ThreadGroup) -> str:
        share = 1.0 if group.rank == 0 else 1e-9
        try:
            ModelRunner(
                path,
                device="cpu",
                num_threads=1,
                kv_host_memory=MEMORY,
                memory_share=share,
                group=group,
                **SETTINGS,
            )
        except KVBudgetError as error:
            return str(error)
        return "loaded"

    first, second = in_threads(2, rank)
    assert "another rank has too little memory" in first and "does not fit" in second


def test_two_processes_load_what_they_saved(family: Callable[..., Path]) -> None:
    path = family("llama, grouped-query")
    settings = {**SETTINGS, "num_threads": 2, "overlap": True}
    one, _ = texts_and_totals(ModelRunner(path, device="cpu", **settings))
    ranks = Ranks(["cpu", "cpu"])
    try:
        runner = ParallelRunner(path, ranks, owns_ranks=False, kv_host_memory=MEMORY, **settings)
        texts, loaded = texts_and_totals(runner)
        runner.close()
    finally:
        ranks.close()
    assert texts == one and loaded > 0
