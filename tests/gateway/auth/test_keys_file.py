"""The keys file: what may stand in it, and what is said about what may not."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_gateway.auth.caller import Limits
from rhizome_gateway.auth.keys_file import MAX_KEYS, KeysFileError, parse_keys, read_keys

PATH = Path("keys.toml")
SHA = "ab" * 32
GOOD = f'[[keys]]\nname = "alice"\nsha256 = "{SHA}"\n'


def with_line(line: str) -> str:
    return f'# a comment\n{GOOD}\n[[keys]] # the second\nname = "bob"\nsha256 = "{"cd" * 32}"\n{line}\n'


def test_a_full_entry_says_all_about_its_caller():
    text = f"""
[[keys]]
name = "alice"
sha256 = "{SHA.upper()}"
models = ["llama-*", "demo"]
requests_per_minute = 60
tokens_per_minute = 10_000
max_concurrency = 4
priority = "high"
tenant = "acme"
admin = true
expires = 2030-01-31
"""
    [key] = parse_keys(text, PATH)
    caller = key.caller
    assert key.digest == bytes.fromhex(SHA)
    assert (caller.name, caller.tenant, caller.priority, caller.admin) == ("alice", "acme", 10, True)
    assert caller.limits == Limits(60, 10_000, 4)
    assert [caller.allows(m) for m in ("demo", "llama-3", "llama-", "qwen", "demo2")] == [1, 1, 1, 0, 0]
    assert key.usable(1896047999.0)
    assert not key.usable(1896048000.0)  # 2030-01-31T00:00:00Z


def test_an_entry_with_name_and_hash_may_do_everything_as_its_own_tenant():
    [key] = parse_keys(GOOD, PATH)
    caller = key.caller
    assert (caller.tenant, caller.priority, caller.admin, caller.limits) == ("alice", 0, False, None)
    assert caller.allows("any/model:at-all")
    assert key.usable(4e9)


def test_an_empty_list_of_models_allows_none():
    [key] = parse_keys(GOOD + "models = []\n", PATH)
    assert not key.caller.allows("")
    assert not key.caller.allows("demo")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[[keys]]\nname = alice\n", 2, "not TOML"),
        ('[[keys]]\nname = "alice', 2, "not TOML"),
        ("", 1, "no [[keys]]"),
        ("# nobody\n\n", 1, "no [[keys]]"),
        ("# first\nkey = 3\n", 2, "unknown 'key'"),
        (f"{GOOD}\n[[key]]\n", 5, "unknown 'key'"),
        ('\nkeys = [{name = "x"}]\n', 2, "[[keys]]"),
        ("keys = 3\n", 1, "[[keys]]"),
        (f'[[keys]]\nsha256 = "{SHA}"\n', 1, "no 'name'"),
        ('[[keys]]\nname = "alice"\n', 1, "no 'sha256'"),
        (with_line("tokens = 3"), 9, "'tokens' is unknown"),
        (with_line("[keys.limits]\nrpm = 3"), 9, "'limits' is unknown"),
        (with_line('"tokens_per_minute" = 0'), 9, "tokens_per_minute: Input should be greater than 0"),
        (with_line("requests_per_minute = 1.5"), 9, "requests_per_minute"),
        (with_line('requests_per_minute = "60"'), 9, "requests_per_minute"),
        (with_line("max_concurrency = true"), 9, "max_concurrency"),
        (with_line('priority = "urgent"'), 9, "low, normal, high"),
        (with_line("priority = 3000000000"), 9, "priority"),
        (with_line('tenant = "a#b"'), 9, "tenant: expected 1 to 64"),
        (with_line('expires = "2030-01-31"'), 9, "without quotes"),
        (with_line("expires = 2030-01-31T10:00:00"), 9, "offset"),
        (with_line('admin = "yes"'), 9, "admin"),
        (with_line('models = "demo"'), 9, "models"),
        (with_line('models = [\n  "",\n]'), 9, "models"),
        (GOOD.replace("alice", "a b"), 2, "name: expected 1 to 64"),
        (GOOD.replace(SHA, "sk-oops"), 3, "64 hexadecimal digits"),
        (GOOD + GOOD.replace(SHA, "cd" * 32), 5, "the same name as in the table at line 1"),
        (GOOD + GOOD.replace("alice", "bob"), 6, "the same sha256 as in the table at line 1"),
        (GOOD.replace("\n", "\r\n") + "admin = 3\r\n", 4, "admin"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, line, words):
    with pytest.raises(KeysFileError) as caught:
        parse_keys(text, PATH)
    assert f"keys.toml, line {line}: " in str(caught.value)
    assert words in str(caught.value)


def test_a_hash_of_no_key_at_all_is_refused():
    with pytest.raises(KeysFileError, match=r"line 3: .*empty"):
        parse_keys(GOOD.replace(SHA, hashlib.sha256(b"").hexdigest()), PATH)


def test_the_number_of_keys_is_limited():
    tables = [f'[[keys]]\nname = "k{i}"\nsha256 = "{i:064x}"\n' for i in range(MAX_KEYS + 1)]
    with pytest.raises(KeysFileError, match=f"line {3 * MAX_KEYS + 1}: at most"):
        parse_keys("".join(tables), PATH)


def test_a_file_that_is_missing_or_not_text_is_explained(tmp_path):
    with pytest.raises(KeysFileError, match="rhizome keys new"):
        read_keys(tmp_path / "none.toml")
    with pytest.raises(KeysFileError, match="directory"):
        read_keys(tmp_path)
    (tmp_path / "latin.toml").write_bytes(GOOD.encode() + b"# \xff\n")
    with pytest.raises(KeysFileError, match=r"line 4: .*UTF-8"):
        read_keys(tmp_path / "latin.toml")


@given(st.text(max_size=200), st.integers(0, 200))
def test_no_text_gives_anything_but_keys_or_a_keys_file_error(text, cut):
    for candidate in (text, GOOD[:cut] + text, with_line(text)):
        try:
            parse_keys(candidate, PATH)
        except KeysFileError as error:
            assert error.line <= candidate.count("\n") + 1
