"""The GPU: first whether every kernel computes what it should, then how fast everything is.

Runs from a plain checkout with python3, torch and Triton. Packages that only the services need may be
missing; what needs them is skipped and says so. Random models of real shapes are made on the spot. Sections
run in processes of their own where one could disturb the next. Each has a time limit; an error or a kill
costs that section only, and results are written after every one:

    benchmarks/results/<gpu>.json, <gpu>.md       versions, date, command, goals, checks, tables, all figures

    make bench-gpu                                all sections, at most 8 minutes
    python3 benchmarks/gpu.py --sections checks,decode
    python3 benchmarks/gpu.py --keep --sections start     and what an earlier run of this commit measured
    python3 benchmarks/gpu.py --tune              best launch configurations per shape, to put into the tables
    python3 benchmarks/gpu.py --smoke             tiny shapes on the CPU: whether the script itself works

The last line printed is one JSON object with all figures; the unit is the end of each name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gpu_bench import plain_checkout

plain_checkout.use_checkout()
plain_checkout.replace_missing()

from gpu_bench.bench import Bench  # noqa: E402
from gpu_bench.earlier import keep_earlier  # noqa: E402
from gpu_bench.figures import Recorder, Results  # noqa: E402
from gpu_bench.goals import goal_rows  # noqa: E402
from gpu_bench.sections import BY_NAME, SECTIONS, run_sections  # noqa: E402
from gpu_bench.write_up import as_json, describe_machine, write_results  # noqa: E402

RESULTS = Path(__file__).parent / "results"
_POLL_S = 0.1


def main() -> int:
    """Run the sections and write the files; 1 where something was wrong or failed."""
    arguments = _arguments()
    if arguments.start_once:
        from gpu_bench.start import start_here

        start_here(json.loads(arguments.start_once))
        return 0
    device = _device(arguments)
    if arguments.child:
        import torch

        bench = Bench(
            torch.device(device), arguments.smoke, arguments.folder, arguments.folder / "records.jsonl"
        )
        bench.part = arguments.part
        run_sections(bench, arguments.child.split(","))
        sys.stdout.flush()
        os._exit(0)  # whatever a peer's threads still do
    names = _chosen(arguments)
    # Checkpoints are large: the folder is removed at the end, however that comes.
    folder = Path(tempfile.mkdtemp(prefix="rhizome-gpu-"))
    try:
        return _run(arguments, names, device, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(arguments: argparse.Namespace, names: list[str], device: str, folder: Path) -> int:
    records = folder / "records.jsonl"
    machine = describe_machine(device)
    print(f"{machine['device']}; {machine['packages']}", flush=True)
    if arguments.keep:
        print(keep_earlier(arguments.out, machine, records, names), flush=True)
    replaced = plain_checkout.missing(plain_checkout.OF_THE_GATEWAY)
    if replaced:
        Recorder(records).note(f"not installed here: {', '.join(replaced)}; what needs them is skipped")
    deadline = time.monotonic() + 60 * arguments.minutes
    left = list(names)
    while left:
        group = _next_group(left, together=arguments.smoke)
        _run_child(arguments, group, folder, records, deadline)
        results = Results.read(records)
        done = [name for name in group if name in results.sections]
        if not done:  # the child ended before its first section
            Recorder(records).section(group[0], "failed", "the process ended before it began")
            done = group[:1]
        left = [name for name in left if name not in done]
        write_results(arguments.out, machine, Results.read(records))
    results = Results.read(records)
    width = [max(len(row[i]) for row in goal_rows(results)) for i in range(5)]
    for row in goal_rows(results):
        print("  ".join(cell.ljust(width[i]) for i, cell in enumerate(row)).rstrip())
    passed = len(results.checks) - len(results.wrong)
    print(f"checks: {passed} of {len(results.checks)} agree with their reference")
    for name, detail in results.wrong:
        print(f"  WRONG {name}: {detail}")
    failed = [name for name, (state, _, _) in results.sections.items() if state in ("failed", "timeout")]
    for name in failed:
        print(f"  FAILED {name}: {results.sections[name][1].strip().splitlines()[-1:]}")
    summary = as_json(machine, results)
    print(json.dumps({**summary["figures"], "checks_wrong": len(results.wrong), "sections_failed": failed}))
    return 1 if failed or results.wrong else 0


def _next_group(left: list[str], *, together: bool) -> list[str]:
    """The sections that share the next process."""
    if together:  # starting a process takes longer than a tiny section
        return left
    if BY_NAME[left[0]].alone:
        return left[:1]
    group = []
    for name in left:
        if BY_NAME[name].alone:
            break
        group.append(name)
    return group


def _run_child(
    arguments: argparse.Namespace, group: list[str], folder: Path, records: Path, deadline: float
) -> None:
    """Run sections in a process; kill it when the section that it is in takes too long."""
    if time.monotonic() >= deadline:
        for name in group:
            Recorder(records).section(name, "skipped", f"the {arguments.minutes:g} minutes were over")
        return
    command = [sys.executable, __file__, "--child", ",".join(group), "--folder", str(folder)]
    command += ["--device", arguments.device, *(["--smoke"] if arguments.smoke else [])]
    child = subprocess.Popen(command, start_new_session=True)
    try:
        while child.poll() is None:
            time.sleep(_POLL_S)
            name, since = _under_way(records, group)
            over = time.monotonic() >= deadline
            if name and (
                over or time.time() - since > BY_NAME[name].limit_s * (1 if not arguments.smoke else 2)
            ):
                limit = (
                    "the run's time was over"
                    if over
                    else f"it took longer than {BY_NAME[name].limit_s:.0f} s"
                )
                Recorder(records).section(name, "timeout", limit)
                break
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    name, _ = _under_way(records, group)
    if name:
        Recorder(records).section(name, "failed", f"its process ended with status {child.returncode}")


def _under_way(records: Path, group: list[str]) -> tuple[str, float]:
    """The section that started and has not ended, and when it started; "" for none."""
    under_way = "", 0.0
    for line in records.read_text(encoding="utf-8").splitlines() if records.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["kind"] == "section" and record["name"] in group:
            under_way = (record["name"], record["at"]) if record["state"] == "started" else ("", 0.0)
    return under_way


def _chosen(arguments: argparse.Namespace) -> list[str]:
    if arguments.tune:
        return ["tune"]
    if arguments.sections is None:
        return [each.name for each in SECTIONS if each.usual and (each.smoke or not arguments.smoke)]
    names = arguments.sections.split(",")
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        sys.exit(f"no such section: {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    return names


def _device(arguments: argparse.Namespace) -> str:
    if arguments.smoke:
        os.environ.setdefault("TRITON_INTERPRET", "1")
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --smoke tries the script out without one")
    return str(arguments.device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", help=f"of {', '.join(BY_NAME)}; all but tune by default")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="after which nothing new begins (default 8)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the two files")
    parser.add_argument(
        "--keep", action="store_true", help="take over what an earlier run of the same commit measured"
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tune", action="store_true", help="try launch configurations instead of measuring")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny shapes on the CPU under Triton's interpreter"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--start-once", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
