"""Benchmarks of the proxy measure what its image runs: compiled modules (`make native`)."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rhizome_relay.compiled import COMPILED

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "build" / "native"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Let the caller choose."""
    parser.add_argument(
        "--interpreted", action="store_true", help="leave the proxy's modules uncompiled, as in a checkout"
    )


def start_compiled(*, interpreted: bool) -> None:
    """Begin this program anew on compiled modules, unless it runs on them, or should not or cannot."""
    if COMPILED or interpreted:
        return
    before = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    if str(NATIVE) in before:
        print("this Python does not read PYTHONPATH: all of this is interpreted", file=sys.stderr, flush=True)
        return
    script = ROOT / "scripts" / "compile_proxy.py"
    print("compiling the proxy's modules, a minute the first time", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, script, "--into", NATIVE], stdout=sys.stderr, check=False)
    if done.returncode:
        print("they could not be compiled: all of this is interpreted", file=sys.stderr, flush=True)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([str(NATIVE), *before])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
