"""A stack described in a TOML file: `rhizome up --file stack.toml`.

```toml
port = 8000

[gateway.options]              # any option of rhizome-gateway, without the dashes
workers = 2

[[engines]]
model = "models/Qwen3-4B"      # relative to this file
count = 2
[engines.options]              # any option of rhizome-engine
quantization = "int8"
[engines.environment]
OMP_NUM_THREADS = "4"
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rhizome_launcher.plan import EngineGroup, StackError, StackSettings

_SECTION: Final = {"options": dict}
_TOP: Final[Mapping[str, type | tuple[type, ...]]] = {
    "host": str,
    "port": int,
    "direct": bool,
    "proxy_port": int,
    "drain_timeout_s": int,
    "ready_timeout_s": (int, float),
    "environment": dict,
    "gateway": dict,
    "proxy": dict,
    "engines": list,
}
_PROXY: Final = {"always": bool, "options": dict}
_ENGINE: Final = {"model": str, "count": int, "options": dict, "environment": dict}


def read_stack_file(path: Path, base: StackSettings) -> StackSettings:
    """Read a description of a stack; what it leaves out is as in `base`.

    Raises:
        StackError: the file cannot be read, or says something that nobody knows.
    """
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise StackError(f"{path} is no TOML: {error}.") from None
    reader = _Reader(path)
    top = reader.table(data, _TOP, "")
    proxy = reader.table(top.get("proxy", {}), _PROXY, "[proxy]")
    gateway = reader.table(top.get("gateway", {}), _SECTION, "[gateway]")
    engines = top.get("engines", [])
    if not engines:
        raise StackError(f"{path} has no engines; add [[engines]] with a model.")
    return StackSettings(
        groups=tuple(reader.engines(entry, number) for number, entry in enumerate(engines, 1)),
        host=top.get("host", base.host),
        port=top.get("port", base.port),
        proxy=proxy.get("always", base.proxy),
        direct=top.get("direct", base.direct),
        proxy_port=top.get("proxy_port", base.proxy_port),
        proxy_arguments=reader.arguments(proxy.get("options", {}), "[proxy.options]"),
        gateway_arguments=reader.arguments(gateway.get("options", {}), "[gateway.options]", implicit=True),
        environment=reader.environment(top.get("environment", {}), "[environment]"),
        log_dir=base.log_dir,
        ready_timeout_s=float(top.get("ready_timeout_s", base.ready_timeout_s)),
        drain_timeout_s=top.get("drain_timeout_s", base.drain_timeout_s),
        keep_cores=base.keep_cores,
    )


class _Reader:
    """Checks parts of the file; knows its name for messages."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def table(self, data: Any, known: Mapping[str, type | tuple[type, ...]], where: str) -> Mapping[str, Any]:
        if not isinstance(data, dict):
            raise StackError(f"{self._path}: {where} must be a table.")
        place = f"{where} " if where else ""
        for name, value in data.items():
            if name not in known:
                raise StackError(
                    f"{self._path}: {place}has no setting {name!r}; there are {', '.join(known)}."
                )
            wrong = isinstance(value, bool) and known[name] is not bool
            if wrong or not isinstance(value, known[name]):
                raise StackError(f"{self._path}: {place}{name} = {value!r} is of the wrong type.")
        return data

    def engines(self, entry: Any, number: int) -> EngineGroup:
        where = f"[[engines]] number {number}"
        table = self.table(entry, _ENGINE, where)
        if "model" not in table:
            raise StackError(f"{self._path}: {where} has no model.")
        return EngineGroup(
            model=(self._path.parent / table["model"]).absolute(),
            count=table.get("count", 1),
            arguments=self.arguments(table.get("options", {}), f"{where} options"),
            environment=self.environment(table.get("environment", {}), f"{where} environment"),
        )

    def arguments(self, options: Mapping[str, Any], where: str, *, implicit: bool = False) -> tuple[str, ...]:
        """Options as a command line; with `implicit`, switches have no value but a `--no-` form."""
        arguments: list[str] = []
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool) and implicit:
                arguments.append(flag if value else flag.replace("--", "--no-", 1))
            elif isinstance(value, bool):
                arguments += [flag, str(value).lower()]
            elif isinstance(value, str | int | float):
                arguments += [flag, str(value)]
            elif isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
                arguments += [flag, ",".join(map(str, value))]
            else:
                raise StackError(f"{self._path}: {where} {name} = {value!r} is of the wrong type.")
        return tuple(arguments)

    def environment(self, variables: Mapping[str, Any], where: str) -> Mapping[str, str]:
        for name, value in variables.items():
            if not isinstance(value, str):
                raise StackError(f'{self._path}: {where} {name} must be a text, such as "{value}".')
        return variables
