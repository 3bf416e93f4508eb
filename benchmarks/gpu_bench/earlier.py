"""What an earlier run found on the same machine, taken over by one that measures the rest.

A machine may be lent for less time than all sections take. With `--keep` the file of the run before is the
beginning of this one's records, but for the sections that are measured again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_bench.write_up import file_name

SAME = ("device", "commit", "packages")
"""What two runs must have in common for their figures to stand in one table."""


def keep_earlier(folder: Path, machine: dict[str, Any], records: Path, names: list[str]) -> str:
    """Write the records of an earlier run down as if this one had made them.

    Args:
        folder: with its results.
        machine: this run's.
        records: where to.
        names: sections that this run measures: what the earlier one said of them is left out.

    Returns:
        what was kept, or why nothing was.
    """
    path = folder / f"{file_name(machine)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differs = [name for name in SAME if found["machine"].get(name) != machine.get(name)]
        if differs:
            return f"nothing is kept of {path}: another {' and '.join(differs)}"
        lines = _records(found, names)
    except FileNotFoundError:
        return f"nothing to keep: there is no {path}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"nothing is kept of {path}: {type(error).__name__}: {error}"
    with records.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return f"kept of the run of {found['machine']['date']}: {len(found['figures'])} figures"


def _records(found: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"kind": "figure", "name": name, "value": value} for name, value in found["figures"].items()
    ]
    if "checks" not in names:
        lines += [
            {"kind": "check", "name": name, "passed": passed, "detail": detail}
            for name, passed, detail in found["all_checks"]
        ]
    lines += [
        {"kind": "table", "title": title, "header": header, "rows": rows}
        for title, header, rows in found["tables"]
    ]
    lines += [{"kind": "note", "text": text} for text in found["notes"]]
    for name, (state, detail, seconds) in found["sections"].items():
        if name.split()[0].removesuffix("_group") not in names:
            for at, became, about in ((0.0, "started", ""), (seconds, state, detail)):
                lines.append({"kind": "section", "name": name, "state": became, "detail": about, "at": at})
    return lines
