"""Damaged checkpoints: the engine names the file or tensor, ends with a status, and never crashes."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.conftest import FULL, Report

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.runner import ModelRunner
from rhizome_testing.ports import free_port
from rhizome_testing.running_stack import DEMO_MODEL
from rhizome_text.tokenizer import Tokenizer

_WEIGHTS = "model.safetensors"
_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_TENSOR = "model.layers.1.mlp.up_proj.weight"


def _truncate(name: str, keep: float) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def _flip(name: str, at: int) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        content = bytearray((model / name).read_bytes())
        content[at] ^= 0xFF
        (model / name).write_bytes(content)

    return damage


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change what the header says, and leave the tensors where they are."""

    def damage(model: Path) -> None:
        content = (model / _WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        told = json.dumps(header).encode()
        (model / _WEIGHTS).write_bytes(struct.pack("<Q", len(told)) + told + content[8 + length :])

    return damage


def _config(**changes: object) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | changes
        (model / "config.json").write_text(json.dumps(config))

    return damage


def _swap_shape(header: dict[str, Any]) -> None:
    header[_TENSOR]["shape"].reverse()


def _double_shape(header: dict[str, Any]) -> None:
    header[_TENSOR]["shape"][0] *= 2


def _past_the_end(header: dict[str, Any]) -> None:
    entry = header[_TENSOR]
    start, end = entry["data_offsets"]
    entry["data_offsets"] = [start + 2**40, end + 2**40]


def _index_of_a_missing_file(model: Path) -> None:
    names = {_TENSOR: "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (model / _WEIGHTS).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (_truncate(_WEIGHTS, 0.5), _WEIGHTS),
    "weights cut off in the header": (_truncate(_WEIGHTS, 0.0005), _WEIGHTS),
    "weights of no bytes": (_truncate(_WEIGHTS, 0.0), _WEIGHTS),
    "a flipped length": (_flip(_WEIGHTS, 1), _WEIGHTS),
    "a flipped length, far": (_flip(_WEIGHTS, 7), _WEIGHTS),
    "a flipped header": (_flip(_WEIGHTS, 9), _WEIGHTS),
    "another shape": (_header(_swap_shape), _TENSOR),
    "a larger shape": (_header(_double_shape), _TENSOR),
    "an offset past the end": (_header(_past_the_end), _TENSOR),
    "negative offsets": (_header(lambda header: header[_TENSOR].update(data_offsets=[-8, 8])), _WEIGHTS),
    "an unknown type": (_header(lambda header: header[_TENSOR].update(dtype="F7")), _TENSOR),
    "a tensor less": (_header(lambda header: header.pop(_TENSOR)), _TENSOR),
    "a header that is a list": (_header(lambda header: header.update({_TENSOR: []})), _WEIGHTS),
    "an index of a missing file": (_index_of_a_missing_file, "model-00002-of-00002.safetensors"),
    "no weights": (lambda model: (model / _WEIGHTS).unlink(), "safetensors"),
    "a config cut off": (_truncate("config.json", 0.5), "config.json"),
    "a config of another size": (_config(hidden_size=128), "model.embed_tokens.weight"),
    "a config with more layers": (_config(num_hidden_layers=5), "model.layers.4"),
    "a config with text for a number": (_config(num_attention_heads="four"), "num_attention_heads"),
    "a config with zero heads": (_config(num_key_value_heads=0), "num_key_value_heads"),
    "an unknown architecture": (_config(architectures=["NoSuchModel"]), "NoSuchModel"),
    "a tokenizer cut off": (_truncate("tokenizer.json", 0.5), "tokenizer.json"),
}
"""What is done to a good checkpoint, and what the error has to name."""
QUICK = ("a config cut off", "a tokenizer cut off")
"""What the front reads; no core is started for these."""
_SMALL = {"max_num_tokens": 16, "max_num_rows": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model that may be damaged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        _WEIGHTS,
    ):
        shutil.copyfile(DEMO_MODEL / name, copy / name)
    return copy


@pytest.mark.parametrize("what", DAMAGE)
def test_loading_names_what_is_damaged(what: str, model: Path) -> None:
    damage, named = DAMAGE[what]
    damage(model)
    with pytest.raises((CheckpointError, ValueError, OSError)) as raised:
        Tokenizer.from_directory(model)
        ModelRunner(model, device="cpu", num_pages=8, num_threads=1, kernels="torch", **_SMALL)
    assert named in str(raised.value), raised.value


@pytest.mark.parametrize("what", DAMAGE if FULL else QUICK)
def test_an_engine_ends_with_a_status_and_names_what_is_damaged(
    what: str, model: Path, report: Report
) -> None:
    damage, named = DAMAGE[what]
    damage(model)
    command = ["rhizome_engine", "--model", str(model), "--port", str(free_port()), "--num-threads", "1"]
    ended = subprocess.run(
        [sys.executable, "-m", *command, "--max-cache-tokens", "512"],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    report["ends with"] = ended.returncode
    assert ended.returncode in (1, 2), ended.stderr
    assert named in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
