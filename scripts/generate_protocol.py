"""Generate the `rhizome.*.v1` modules from `proto/` into `libs/protocol`.

The oldest grpcio-tools that works (1.81.1) is used on purpose: generated code refuses to load on a runtime
older than its generator, so an old generator serves the widest range of runtimes.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"


def generate(out: Path) -> None:
    """Write `_pb2.py`, `_pb2_grpc.py` and their `.pyi` for every file under `proto/` below `out`.

    Raises:
        SystemExit: protoc found an error; it has printed where.
    """
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    out.mkdir(parents=True, exist_ok=True)
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTO}",
            f"-I{well_known}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet,readable_stubs:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *files,
        ]
    )
    if code != 0:
        raise SystemExit(code)
    for stub in out.rglob("*_pb2_grpc.py*"):
        messages_only = f"{stub.name.split('_pb2_grpc')[0]}.proto"
        source = next(PROTO.rglob(messages_only))
        if "\nservice " not in source.read_text():
            stub.unlink()


def main() -> None:
    """Generate into the repository, or into the folder given by `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "libs" / "protocol")
    generate(parser.parse_args().out)


if __name__ == "__main__":
    sys.exit(main())
