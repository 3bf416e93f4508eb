"""`rhizome keys`: what it writes is what the gateway reads."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rhizome_gateway.auth.caller import Limits
from rhizome_gateway.auth.key_ring import KeyRing
from rhizome_gateway.auth.keys_file import read_keys
from rhizome_launcher.cli import app
from rhizome_launcher.keys import new_key
from rhizome_transport.curve import ClientCurve, ServerCurve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["keys", *map(str, arguments)], env={"COLUMNS": "200"})


def test_a_new_key_is_printed_once_and_found_by_the_gateway(file):
    made = run("new", "--name", "alice", "--file", file)
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", key)
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    caller = KeyRing(file).find(key.encode())
    assert caller is not None
    assert (caller.name, caller.tenant, caller.limits, caller.models) == ("alice", "alice", None, None)


def test_curve_keys_let_a_client_and_a_core_believe_each_other(tmp_path):
    for name in ("core-1", "gateway-1"):
        made = run("curve", name, "--folder", tmp_path)
        assert made.exit_code == 0
        assert f"{name}.secret" in made.stderr
    client = ClientCurve.from_files(tmp_path / "gateway-1.secret", tmp_path / "core-1.public")
    server = ServerCurve.from_files(tmp_path / "core-1.secret", tmp_path / "gateway-1.public")
    assert client is not None
    assert server is not None
    assert server.name_of(client.public) == "gateway-1"
    assert (tmp_path / "core-1.secret").stat().st_mode & 0o777 == 0o600
    again = run("curve", "core-1", "--folder", tmp_path)
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_every_option_reaches_the_gateway(file):
    options = (
        "--rpm 60 --tpm 1000 --max-concurrency 4 --model llama-* --model demo "
        "--priority high --tenant acme --admin --expires 2020-01-31"
    )
    assert run("new", "--name", "alice", "--file", file, *options.split()).exit_code == 0
    [key] = read_keys(file)
    caller = key.caller
    assert (caller.models, caller.limits) == (("llama-*", "demo"), Limits(60, 1000, 4))
    assert (caller.priority, caller.tenant, caller.admin) == (10, "acme", True)
    assert not key.usable(1580428800.0)


def test_what_stood_in_the_file_stays_and_its_mode_too(file):
    run("new", "--name", "alice", "--file", file)
    before = "# ours\n" + file.read_text().rstrip("\n")
    file.write_text(before)
    file.chmod(0o640)
    assert run("new", "--name", "bob", "--file", file, "--priority", "-3").exit_code == 0
    assert file.read_text().startswith(before + "\n\n[[keys]]\n")
    assert file.stat().st_mode & 0o777 == 0o640
    assert [(key.caller.name, key.caller.priority) for key in read_keys(file)] == [("alice", 0), ("bob", -3)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "alice"], "the same name"),
        (["--name", "a b"], "expected 1 to 64"),
        (["--name", "bob", "--priority", "urgent"], "low, normal, high"),
        (["--name", "bob", "--tenant", "x#y"], "tenant"),
        (["--name", "bob", "--model", ""], "models"),
        (["--name", "bob", "--max-concurrency", "70000"], "max_concurrency"),
        (["--name", "bob\nadmin = true"], "expected 1 to 64"),
    ],
)
def test_what_the_gateway_would_refuse_is_not_written(file, options, words):
    run("new", "--name", "alice", "--file", file)
    before = file.read_text()
    made = run("new", "--file", file, *options)
    assert (made.exit_code, made.stdout) == (1, "")
    assert words in made.stderr
    assert "line" not in made.stderr.replace(str(file), "").replace("table at line", "")
    assert file.read_text() == before


def test_a_broken_file_is_named_with_its_line_and_left_alone(file):
    file.write_text("\n[[keys]\n")
    made = run("new", "--name", "alice", "--file", file)
    assert (made.exit_code, made.stdout) == (1, "")
    assert f"{file}, line 2: " in made.stderr.replace("\n", " ")
    assert file.read_text() == "\n[[keys]\n"


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    made = run("new", "--name", "alice", "--file", tmp_path / "none" / "keys.toml")
    assert (made.exit_code, made.stdout) == (1, "")
    assert "No such file" in made.stderr


def test_the_list_shows_everything_but_hashes(file):
    run("new", "--name", "alice", "--file", file, "--rpm", "61", "--model", "[demo]*")
    run("new", "--name", "bob", "--file", file, "--expires", "2020-01-31")
    file.write_text(file.read_text() + f'[[keys]]\nname = "carol"\nsha256 = "{"0" * 64}"\ndisabled = true\n')
    shown = run("list", "--file", file)
    assert shown.exit_code == 0
    rows = [line for line in shown.stdout.splitlines() if "│" in line]
    expected = ["alice", "61", "[demo]*", "active"], ["bob", "expired"], ["carol", "disabled"]
    for row, words in zip(rows, expected, strict=True):
        assert all(word in row for word in words)
    assert "0" * 64 not in shown.stdout
    assert run("list", "--file", file.with_name("none.toml")).exit_code == 1


def test_no_two_keys_are_alike():
    assert len({new_key() for _ in range(100)}) == 100
