"""The sums of docs/operations.md, against what an engine really allocates."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.runner.model_runner import ModelRunner
from rhizome_engine.runner.recorded_memory import RecordedMemory
from rhizome_engine.runner.workspace import Workspace
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

DEMO = Path(__file__).parents[2] / "models/demo"
PAGE = Path(__file__).parents[2] / "docs/operations.md"
MADE_UP = LlamaShape(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=5,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    tie_word_embeddings=False,
)
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def kv_bytes_per_token(config: dict[str, int], element: int) -> int:
    """2 · layers · key-value heads · head size · bytes of an element."""
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * element


def parameters(config: dict[str, int]) -> int:
    """Embedding (twice where it is not tied), and for each layer attention, feed-forward and two norms."""
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    layer = hidden * head * (2 * heads + 2 * kv_heads) + 3 * hidden * config["intermediate_size"] + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return embeddings + config["num_hidden_layers"] * layer + hidden


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["demo", "made up"])
def test_the_sums_are_what_is_allocated(name: str, kv_dtype: str, tmp_path: Path) -> None:
    model = DEMO
    if name == "made up":
        model = tmp_path / "model"
        write_llama_checkpoint(model, MADE_UP)
    config = json.loads((model / "config.json").read_text())
    runner = ModelRunner(
        model,
        device="cpu",
        dtype="float32",
        kv_cache_dtype=kv_dtype,
        num_pages=50,
        page_size=16,
        num_threads=1,
    )
    tokens = runner.num_pages * runner.page_size
    allocated = runner.kv.data.numel() * runner.kv.data.element_size()
    assert allocated == tokens * kv_bytes_per_token(config, BYTES[kv_dtype])
    assert runner.model.targets.num_bytes == parameters(config) * BYTES["float32"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64}, 32),  # Llama-3.2-1B
        ({"num_hidden_layers": 32, "num_key_value_heads": 8, "head_dim": 128}, 128),  # Llama-3.1-8B
        ({"num_hidden_layers": 80, "num_key_value_heads": 8, "head_dim": 128}, 320),  # Llama-3.3-70B
    ],
)
def test_the_page_names_the_sizes_of_well_known_models(config: dict[str, int], told: int) -> None:
    assert kv_bytes_per_token(config, 2) == told * 1024
    assert f"| {told} KiB |" in PAGE.read_text()


@pytest.mark.parametrize(
    ("name", "hidden", "intermediate", "heads", "head_dim", "layers"),
    [
        ("Llama-3.2-1B", 2048, 8192, 32, 64, 16),
        ("Llama-3.1-8B", 4096, 14336, 32, 128, 32),
        ("Llama-3.3-70B", 8192, 28672, 64, 128, 80),
    ],
)
def test_the_page_tells_the_workspace_of_well_known_models(
    name: str, hidden: int, intermediate: int, heads: int, head_dim: int, layers: int
) -> None:
    demo = load_checkpoint(DEMO).config
    config = replace(
        demo,
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=head_dim,
        layers=demo.layers[:1] * layers,
    )
    tokens, rows, contexts = 2048, 128, (16384, 131072)
    recorded = RecordedMemory(config, tokens, rows, num_slots=rows, page_size=16).num_bytes(contexts[1])
    in_place = Workspace(config, tokens, rows, kv_element=2, gathers=False).num_bytes(contexts[1])
    copied = [Workspace(config, tokens, rows, kv_element=2, gathers=True).num_bytes(one) for one in contexts]
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |")]
    told = [float(number) for number in re.findall(r"\d+\.\d", row.split("KiB |")[1])]
    sums = [in_place + recorded, recorded, *copied]
    assert told == pytest.approx([one / 2**30 for one in sums], rel=0.08)
