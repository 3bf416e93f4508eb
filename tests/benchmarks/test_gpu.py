"""`benchmarks/gpu.py` works before a GPU is at hand: every section on tiny shapes, from a plain checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
HIDDEN = (
    "pydantic",
    "pydantic_settings",
    "zmq",
    "llguidance",
    "opentelemetry",
    "google.protobuf",
    "google.rpc",
    "grpc_status",
    "orjson",
    "hpack",
)
"""What a machine with a GPU was seen to lack, or may have too old."""
HIDING = f"""
import sys
from importlib.machinery import PathFinder

class Fewer(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = any(name == each or name.startswith(each + ".") for each in {HIDDEN!r})
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [Fewer if finder is PathFinder else finder for finder in sys.meta_path]
"""
SECTIONS = "model,ceilings,checks,first_token,decode,streams,cached_prefix,gaps,start"


def run(folder: Path, *arguments: str, customize: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script; `customize` is executed first in each of its processes."""
    (folder / "sitecustomize.py").write_text(customize)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(folder / "results"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_all_sections_run_without_the_packages_that_only_services_need(tmp_path: Path):
    done = run(tmp_path, "--sections", SECTIONS, customize=HIDING)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["checks_wrong"], figures["sections_failed"]) == (0, [])
    expected = (
        "copy_bandwidth_tb_s",
        "decode_bf16_1_stream_tok_s",
        "decode_bf16_kernels_per_step",
        "first_token_60_warm_ms",
        "streams_2_of_roofline_percent",
        "cached_prefix_speedup",
        "start_cold_to_ready_s",
    )
    assert all(figures[name] > 0 for name in expected)
    written = json.loads((tmp_path / "results" / "cpu.json").read_text())
    assert {name: state for name, (state, _, _) in written["sections"].items()} == dict.fromkeys(
        SECTIONS.split(","), "ok"
    )
    assert written["checks"]["passed"] >= 25
    assert any("pydantic_settings" in note for note in written["notes"])
    page = (tmp_path / "results" / "cpu.md").read_text()
    assert "| decode, 1 stream, bf16 |" in page


def test_a_section_that_fails_costs_only_itself(tmp_path: Path):
    broken = "import sys\nsys.modules['gpu_bench.streams'] = type(sys)('gpu_bench.streams')\n"
    done = run(tmp_path, "--sections", "streams,ceilings", customize=broken)
    assert done.returncode == 1
    written = json.loads((tmp_path / "results" / "cpu.json").read_text())
    state, detail, _ = written["sections"]["streams"]
    assert (state, written["sections"]["ceilings"][0]) == ("failed", "ok")
    assert "has no attribute 'run'" in detail
    assert json.loads(done.stdout.splitlines()[-1])["sections_failed"] == ["streams"]


def test_a_second_run_keeps_what_the_first_measured_and_it_does_not(tmp_path: Path):
    results = tmp_path / "results" / "cpu.json"
    assert run(tmp_path, "--sections", "ceilings").returncode == 0
    first = json.loads(results.read_text())
    assert run(tmp_path, "--keep", "--sections", "model").returncode == 0
    both = json.loads(results.read_text())
    assert both["figures"].items() > first["figures"].items()
    assert list(both["sections"]) == ["ceilings", "model"]
    assert both["sections"]["ceilings"] == first["sections"]["ceilings"]
    results.write_text(json.dumps(both | {"machine": both["machine"] | {"commit": "another"}}))
    last = run(tmp_path, "--keep", "--sections", "model")
    assert "another commit" in last.stdout
    assert list(json.loads(results.read_text())["sections"]) == ["model"]


def test_an_unknown_section_is_refused(tmp_path: Path):
    done = run(tmp_path, "--sections", "decode,nothing")
    assert done.returncode == 1
    assert "no such section: nothing; there are model, ceilings" in done.stderr
