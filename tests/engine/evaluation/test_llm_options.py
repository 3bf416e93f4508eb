"""Settings of the engine written as name=value."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhizome_engine.evaluation.llm_options import make_llm, parse_options
from rhizome_testing.checkpoints import write_llama_checkpoint


def test_values_are_json_where_they_can_be() -> None:
    texts = [
        "num-pages=64",
        "dtype=float32",
        "overlap=true",
        "kv_memory=60%",
        "max_tenant_slowdown=1.5",
    ]
    assert parse_options([*texts, "num_pages=32"]) == {
        "num_pages": 32,
        "dtype": "float32",
        "overlap": True,
        "kv_memory": "60%",
        "max_tenant_slowdown": 1.5,
    }


@pytest.mark.parametrize("text", ["colour=red", "num_pages", "=3", "model=other", "scheduler=x"])
def test_what_the_engine_does_not_know_is_refused_with_what_it_knows(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no engine option: write name=value .*max_step_tokens"):
        parse_options([text])


def test_options_reach_the_engine_and_its_scheduler(tmp_path: Path) -> None:
    model = write_llama_checkpoint(tmp_path / "model")
    llm = make_llm(str(model), parse_options(["num_pages=9", "max_context_tokens=50"]), min_rows=3)
    assert llm.core.load().kv_pages_total == 9
    assert llm.core.max_context_tokens == 50


def test_a_value_out_of_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_step_tokens must be at least 1"):
        make_llm(str(tmp_path), parse_options(["max_step_tokens=0"]))
