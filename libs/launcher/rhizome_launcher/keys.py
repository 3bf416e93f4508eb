"""`rhizome keys`: make and list the keys of a gateway, and make those of ZeroMQ over TCP."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rhizome_gateway.auth.keys_file import Key

keys_app = typer.Typer(help="Make and list the API keys of a gateway; make CURVE keys.", no_args_is_help=True)

_KEY_BITS = 256

FileOption = Annotated[Path, typer.Option("--file", "-f", help="The keys file.")]


@keys_app.command("new")
def new(
    name: Annotated[str, typer.Option(help="Whose key it is, for logs and metrics.")],
    file: FileOption = Path("keys.toml"),
    rpm: Annotated[int | None, typer.Option(help="Requests per minute; any by default.", min=1)] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute; any by default.", min=1)] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(help="Requests open at a time; any by default.", min=1)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model, or a pattern such as llama-*; repeatable. Default: all."),
    ] = None,
    priority: Annotated[str, typer.Option(help="low, normal, high, or a number.")] = "normal",
    tenant: Annotated[
        str, typer.Option(help="Who shares cached prefixes and a fair share; default: the name.")
    ] = "",
    admin: Annotated[bool, typer.Option("--admin", help="May operate the server.")] = False,
    expires: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Not valid from this day on, UTC.")
    ] = None,
) -> None:
    """Make a key, add its entry to the file, and print it: this once, since only its SHA-256 is kept.

    A running gateway takes it within a second or two.
    """
    key = new_key()
    fields: dict[str, Any] = {
        "name": name,
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "models": model or None,
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "max_concurrency": max_concurrency,
        "priority": _number_or_name(priority),
        "tenant": tenant or None,
        "admin": admin or None,
        "expires": expires.date() if expires else None,
    }
    try:
        append_entry(file, entry_text(fields))
    except (OSError, ValueError) as error:
        raise _failed(str(error)) from None
    sys.stderr.write(f"added {name} to {file}; this is the key, which is shown only now:\n")
    typer.echo(key)


@keys_app.command("curve")
def curve(
    name: Annotated[str, typer.Argument(help="Whose key it is: a core, a gateway, a proxy.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where to write it.")] = Path(),
) -> None:
    """Make a CURVE key for ZeroMQ over TCP: NAME.secret to keep, and NAME.public for those who believe it."""
    from rhizome_transport.curve import new_key

    try:
        secret, public = new_key(folder, name)
    except (OSError, ValueError) as error:
        raise _failed(str(error)) from None
    sys.stderr.write(f"{secret} is secret, for {name} alone; {public} may be given to anybody\n")


@keys_app.command("list")
def list_keys(file: FileOption = Path("keys.toml")) -> None:
    """Show who has a key, and what each may do."""
    from rhizome_gateway.auth.keys_file import KeysFileError, read_keys

    try:
        keys = read_keys(file)
    except KeysFileError as error:
        raise _failed(str(error)) from None
    table = Table("name", "tenant", "models", "rpm", "tpm", "open", "priority", "admin", "state")
    for key in keys:
        caller, limits = key.caller, key.caller.limits
        amounts = (
            (limits.requests_per_minute, limits.tokens_per_minute, limits.max_concurrency)
            if limits
            else (None, None, None)
        )
        models = "all" if caller.models is None else ", ".join(caller.models) or "none"
        cells = (caller.name, caller.tenant, models, *("any" if n is None else str(n) for n in amounts))
        table.add_row(
            *map(escape, cells),
            str(caller.priority),
            "yes" if caller.admin else "no",
            _state(key, time.time()),
        )
    Console().print(table)


def new_key() -> str:
    """A key that nobody guesses: `sk-` and 256 random bits."""
    return f"sk-{secrets.token_urlsafe(_KEY_BITS // 8)}"


def entry_text(fields: dict[str, Any]) -> str:
    """A `[[keys]]` table of the fields that are not None."""
    lines = [f"{name} = {_toml(value)}" for name, value in fields.items() if value is not None]
    return "\n".join(("[[keys]]", *lines, ""))


def append_entry(path: Path, entry: str) -> None:
    """Add an entry to a keys file, or make the file, for this user only.

    Written at once and at the end, so that neither a gateway nor another `keys new` meets half of it.

    Raises:
        ValueError: the file, or what it would become, is not valid; it stays as it was.
        OSError: it cannot be written.
    """
    from rhizome_gateway.auth.keys_file import KeysFileError, parse_keys

    before = path.read_text("utf-8") if path.exists() else ""
    addition = entry if not before else f"{'' if before.endswith(chr(10)) else chr(10)}\n{entry}"
    try:
        parse_keys(before + addition, path)
    except KeysFileError as error:
        new_lines = error.line > before.count("\n") + 1 or not before
        raise ValueError(f"{error.problem if new_lines else error}. Nothing was written.") from None
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "ab", buffering=0) as out:
        out.write(addition.encode())


def _toml(value: object) -> str:
    if isinstance(value, datetime.date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False)  # booleans, numbers, texts and lists look the same in TOML


def _number_or_name(priority: str) -> int | str | None:
    if priority == "normal":
        return None
    try:
        return int(priority)
    except ValueError:
        return priority


def _state(key: Key, now: float) -> str:
    if key.disabled:
        return "disabled"
    return "active" if key.usable(now) else "expired"


def _failed(problem: str) -> typer.Exit:
    text = f"[red]error:[/red] {escape(problem)}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)
    return typer.Exit(1)
