"""The keys file: TOML with one `[[keys]]` table for each key.

TOML because it is read by the standard library, may have comments, and because a key is added by appending
lines: what an operator wrote above them stays as it was.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StrictBool,
    ValidationError,
    model_validator,
)

from rhizome_gateway.auth.caller import Caller, Limits

PRIORITIES = {"low": -10, "normal": 0, "high": 10}
"""Names for priorities; a number may stand for any other."""

MAX_KEYS = 4096
NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
_KEY_HEADER = re.compile(r"\s*\[\[\s*keys\s*\]\]\s*(#.*)?")


class KeysFileError(Exception):
    """A keys file that cannot be used; the text names the file, the line, and what to do.

    Attributes:
        line: where, counted from 1; 0 for the file as a whole.
        problem: the text without file and line.
    """

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}" if line else f"{path}: {problem}")
        self.line = line
        self.problem = problem


def _priority(value: Any) -> Any:
    if isinstance(value, str):
        if value not in PRIORITIES:
            raise ValueError(f"expected {', '.join(PRIORITIES)} or a whole number")
        return PRIORITIES[value]
    return value


def _expiry(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs its offset, as in 2030-01-31T18:00:00Z")
        return value
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time(), datetime.UTC)
    raise ValueError("expected a date without quotes, such as 2030-01-31 or 2030-01-31T18:00:00Z")


class _Entry(BaseModel):
    """One `[[keys]]` table."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=f"^{NAME}$")
    sha256: str = Field(pattern="^[0-9A-Fa-f]{64}$")
    models: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    max_concurrency: Annotated[int, Field(ge=1, le=65535)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31), BeforeValidator(_priority)] = 0
    tenant: str = Field("", pattern=f"^({NAME})?$")
    admin: StrictBool = False
    disabled: StrictBool = False
    expires: Annotated[datetime.datetime | None, BeforeValidator(_expiry)] = None

    @model_validator(mode="after")
    def _not_the_hash_of_nothing(self) -> Self:
        if self.sha256.lower() == _SHA256_OF_NOTHING:
            raise ValueError("sha256 is that of an empty text; the command that made it got no key")
        return self


_SHA256_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the file describes it.

    Attributes:
        digest: SHA-256 of the key, 32 bytes.
        caller: who uses it.
        disabled: never accepted.
        expires_at: from then on it is not accepted; seconds since the epoch.
    """

    digest: bytes
    caller: Caller
    disabled: bool
    expires_at: float | None

    def usable(self, now: float) -> bool:
        """Whether the key is accepted at a time in seconds since the epoch."""
        return not self.disabled and (self.expires_at is None or now < self.expires_at)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a keys file.

    Raises:
        KeysFileError: it is missing, unreadable or wrong.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        hint = f"'rhizome keys new --name NAME --file {path}' makes a file with a first key"
        raise KeysFileError(path, 0, f"{error.strerror}; {hint}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise KeysFileError(path, line, "this is not UTF-8 text") from None
    return parse_keys(text, path)


def parse_keys(text: str, path: Path) -> tuple[Key, ...]:
    """Read the text of a keys file; `path` is for messages only.

    Raises:
        KeysFileError: it is wrong.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KeysFileError(path, *_located(str(error), text)) from None
    lines = text.split("\n")
    for name in document:
        if name != "keys":
            raise KeysFileError(
                path, _top_line_of(name, lines), f"unknown {name!r}; expected [[keys]] tables"
            )
    tables = document.get("keys", [])
    headers = [number for number, line in enumerate(lines) if _KEY_HEADER.fullmatch(line)]
    if not isinstance(tables, list) or len(tables) != len(headers):
        problem = "write each key as a table of its own, under a line [[keys]]"
        raise KeysFileError(path, _top_line_of("keys", lines), problem)
    if not tables:
        hint = "'rhizome keys new' adds one. To lock everybody out, write 'disabled = true' into each"
        raise KeysFileError(path, 1, f"there is no [[keys]] table; {hint}")
    if len(tables) > MAX_KEYS:
        raise KeysFileError(path, headers[MAX_KEYS] + 1, f"at most {MAX_KEYS} keys are taken")
    keys: list[Key] = []
    seen: dict[str | bytes, int] = {}
    for table, header in zip(tables, headers, strict=True):
        try:
            key = _key(_Entry.model_validate(table))
        except ValidationError as error:
            field, problem = _first_problem(error)
            raise KeysFileError(path, _line_of(field, lines, header), problem) from None
        for field, value in (("name", key.caller.name), ("sha256", key.digest)):
            if value in seen:
                problem = f"the same {field} as in the table at line {seen[value]}"
                raise KeysFileError(path, _line_of(field, lines, header), problem)
            seen[value] = header + 1
        keys.append(key)
    return tuple(keys)


def _key(entry: _Entry) -> Key:
    limits = Limits(entry.requests_per_minute, entry.tokens_per_minute, entry.max_concurrency)
    caller = Caller(
        name=entry.name,
        tenant=entry.tenant or entry.name,
        priority=entry.priority,
        admin=entry.admin,
        models=None if entry.models is None else tuple(entry.models),
        limits=None if limits == Limits() else limits,
    )
    expires_at = None if entry.expires is None else entry.expires.timestamp()
    return Key(bytes.fromhex(entry.sha256), caller, entry.disabled, expires_at)


_EXPECTED = {
    "name": "expected 1 to 64 letters, digits, '.', '_', '@' or '-'",
    "tenant": "expected 1 to 64 letters, digits, '.', '_', '@' or '-'",
    "sha256": "expected the 64 hexadecimal digits of the key's SHA-256",
}


def _first_problem(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "sha256"
    if first["type"] == "missing":
        return field, f"this key has no {field!r}; {_EXPECTED[field]}"
    if first["type"] == "extra_forbidden":
        return field, f"{field!r} is unknown; known are {', '.join(_Entry.model_fields)}"
    text = _EXPECTED.get(field, "") if first["loc"] else ""
    return field, f"{field}: {text or first['msg'].removeprefix('Value error, ')}"


def _line_of(field: str, lines: list[str], header: int) -> int:
    """The line, counted from 1, of a field of the table whose header is at an index; else the header's."""
    named = re.compile(rf"""\s*(\[+\s*keys\s*\.\s*)?["']?{re.escape(field)}["']?\s*[.=\]].*""")
    for number in range(header + 1, len(lines)):
        if _KEY_HEADER.fullmatch(lines[number]):
            break
        if named.fullmatch(lines[number]):
            return number + 1
    return header + 1


def _top_line_of(name: str, lines: list[str]) -> int:
    named = re.compile(rf"""\s*\[*\s*["']?{re.escape(name)}["']?\s*[.=\]].*""")
    return next((number for number, line in enumerate(lines, 1) if named.fullmatch(line)), 1)


def _located(problem: str, text: str) -> tuple[int, str]:
    """Line and problem from `Invalid value (at line 3, column 5)`."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", problem, re.DOTALL)
    if found is None:
        return 0, problem
    what, line = found.groups()
    return int(line) if line else text.rstrip().count("\n") + 1, f"this is not TOML: {what}"
