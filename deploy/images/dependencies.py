"""What an image must install: our own distributions in one list, everybody else's in another.

    python3 dependencies.py services/gateway --into DIR [--extra NAME]

writes DIR/ours.txt (folders) and DIR/third-party.txt (requirements). Builds install the second list first, in
a layer that stays in the cache while our own code changes. Standard library only: it runs before anything is
installed.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def distributions(root: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Our distributions below `root`: name → folder and `[project]` table."""
    found = {}
    for path in sorted([*root.glob("libs/*/pyproject.toml"), *root.glob("services/*/pyproject.toml")]):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        found[normalised(project["name"])] = (path.parent, project)
    return found


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(root: Path, service: Path, extra: str | None = None) -> tuple[list[Path], list[str]]:
    """Follow the dependencies of one service, and of one of its extras.

    Returns:
        Folders of ours, the service last, and requirements of others, sorted.

    Raises:
        SystemExit: the service or its extra is not there, or one of ours needs one that is not.
    """
    known = distributions(root)
    wanted = [name for name, (folder, _) in known.items() if folder == root / service]
    if not wanted:
        raise SystemExit(f"{root / service} has no pyproject.toml")
    ours: list[str] = []
    others: set[str] = set()
    if extra is not None:
        extras = known[wanted[0]][1].get("optional-dependencies", {})
        if extra not in extras:
            raise SystemExit(f"{root / service} has no extra {extra!r}, only {', '.join(extras) or 'none'}")
        others.update(extras[extra])
    while wanted:
        name = wanted.pop()
        if name in ours:
            continue
        if name not in known:
            raise SystemExit(f"{ours[-1]} needs {name}, which is not below {root}")
        ours.append(name)
        for requirement in known[name][1].get("dependencies", []):
            match = _NAME.match(requirement)
            assert match is not None
            if normalised(match[0]).startswith("rhizome-"):
                wanted.append(normalised(match[0]))
            else:
                others.add(requirement)
    return [known[name][0] for name in reversed(ours)], sorted(others, key=str.lower)


def main() -> None:
    """Write both lists."""
    parser = argparse.ArgumentParser(description="List what the image of a service installs.")
    parser.add_argument("service", type=Path, help="its folder, such as services/gateway")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository; default: here")
    parser.add_argument("--extra", metavar="NAME", help="one of its optional dependencies, such as gpu")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="where the lists go")
    options = parser.parse_args()
    ours, others = closure(options.root, options.service, options.extra)
    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "ours.txt").write_text("".join(f"./{folder}\n" for folder in ours), encoding="utf-8")
    (options.into / "third-party.txt").write_text("".join(f"{one}\n" for one in others), encoding="utf-8")


if __name__ == "__main__":
    main()
