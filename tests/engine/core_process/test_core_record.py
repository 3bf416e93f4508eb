"""What a core leaves beside its socket."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rhizome_engine.core_record import (
    PRIVATE_FOLDER_PREFIX,
    CoreRecord,
    read_core_record,
    record_path,
    remove_core_record,
)
from rhizome_engine.settings import CoreSettings


@pytest.fixture
def settings(tmp_path: Path) -> CoreSettings:
    (tmp_path / "config.json").write_text("{}")
    return CoreSettings(model=tmp_path)


def test_the_record_of_a_running_process_is_found(tmp_path: Path, settings: CoreSettings) -> None:
    endpoint = f"ipc://{tmp_path}/core.ipc"
    record = CoreRecord.of_this_process(settings)
    record.write(endpoint)
    assert read_core_record(endpoint) == record
    assert record.pid == os.getpid()


def test_other_settings_give_another_record(settings: CoreSettings) -> None:
    other = settings.model_copy(update={"page_size": 32})
    assert CoreRecord.of_this_process(settings) != CoreRecord.of_this_process(other)


def test_the_record_of_a_process_that_ended_counts_as_none(tmp_path: Path, settings: CoreSettings) -> None:
    endpoint = f"ipc://{tmp_path}/core.ipc"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    CoreRecord(ended.pid, 0.0, "x").write(endpoint)
    assert read_core_record(endpoint) is None


def test_a_process_that_took_over_the_pid_is_another_one(tmp_path: Path, settings: CoreSettings) -> None:
    endpoint = f"ipc://{tmp_path}/core.ipc"
    CoreRecord(os.getpid(), 12345.0, "x").write(endpoint)
    assert read_core_record(endpoint) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"pid": "x"}), "\x00"])
def test_a_broken_record_counts_as_none(tmp_path: Path, content: str) -> None:
    endpoint = f"ipc://{tmp_path}/core.ipc"
    record_path(endpoint).write_text(content)
    assert read_core_record(endpoint) is None


def test_removing_the_record_removes_a_private_folder_too(tmp_path: Path, settings: CoreSettings) -> None:
    private, shared = tmp_path / f"{PRIVATE_FOLDER_PREFIX}x", tmp_path / "run"
    for folder in (private, shared):
        folder.mkdir()
        CoreRecord.of_this_process(settings).write(f"ipc://{folder}/core.ipc")
        assert stat.S_ISREG(record_path(f"ipc://{folder}/core.ipc").stat().st_mode)
        remove_core_record(f"ipc://{folder}/core.ipc")
    assert not private.exists()
    assert shared.exists() and not any(shared.iterdir())
