"""Keys are found by their hashes, and follow their file."""

import ast
import hashlib
import hmac
import inspect
import logging
import os
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from rhizome_gateway.auth.key_ring import KeyRing
from rhizome_gateway.auth.keys_file import KeysFileError


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s

    def a_moment_later(self) -> None:
        self.ahead_s += 2.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def name_of(ring: KeyRing, key: str) -> str | None:
    caller = ring.find(key.encode())
    return caller and caller.name


def test_only_the_very_key_is_found(write_keys, clock):
    ring = KeyRing(write_keys(alice={}, bob={"disabled": True}, carol={}), now=clock)
    assert name_of(ring, "sk-alice") == "alice"
    assert name_of(ring, "sk-carol") == "carol"
    for wrong in ("sk-bob", "sk-alic", "sk-alicee", "SK-ALICE", "", hashlib.sha256(b"sk-alice").hexdigest()):
        assert name_of(ring, wrong) is None


def test_a_key_is_good_until_it_expires(write_keys, clock):
    path = write_keys(alice={})
    path.write_text(path.read_text() + "expires = 2031-01-01T00:00:00+01:00\n")
    ring = KeyRing(path, now=clock)
    clock.ahead_s = 1924988399.0 - time.time() - 1
    assert name_of(ring, "sk-alice") == "alice"
    clock.ahead_s += 2
    assert name_of(ring, "sk-alice") is None


def test_a_file_renamed_over_the_old_one_counts_from_then_on(write_keys, clock, tmp_path):
    path = write_keys(alice={})
    ring = KeyRing(path, now=clock)
    fresh = write_keys(bob={}).rename(tmp_path / "fresh.toml")
    write_keys(alice={})
    fresh.rename(path)
    clock.a_moment_later()
    assert (name_of(ring, "sk-alice"), name_of(ring, "sk-bob")) == (None, "bob")


def test_a_file_written_in_place_counts_from_then_on(write_keys, clock):
    ring = KeyRing(write_keys(alice={}), now=clock)
    write_keys(alice={}, bob={})
    clock.a_moment_later()
    assert name_of(ring, "sk-bob") == "bob"


def test_a_link_that_points_elsewhere_counts_from_then_on(write_keys, clock, tmp_path):
    """As Kubernetes replaces the files of a secret."""
    old = write_keys(alice={}).rename(tmp_path / "old.toml")
    new = write_keys(bob={}).rename(tmp_path / "new.toml")
    link = tmp_path / "link.toml"
    link.symlink_to(old)
    ring = KeyRing(link, now=clock)
    swap = tmp_path / "swap"
    swap.symlink_to(new)
    swap.rename(link)
    clock.a_moment_later()
    assert (name_of(ring, "sk-alice"), name_of(ring, "sk-bob")) == (None, "bob")


def test_a_file_that_is_being_written_is_left_alone_for_a_moment(write_keys, clock):
    ring = KeyRing(write_keys(alice={}), now=clock)
    path = write_keys(bob={})
    clock.a_moment_later()
    just_now = clock() - 0.05
    os.utime(path, (just_now, just_now))
    assert name_of(ring, "sk-alice") == "alice"
    clock.ahead_s += 0.3
    assert name_of(ring, "sk-bob") == "bob"


@pytest.mark.parametrize("broken", ["[[keys", "", None])
def test_a_broken_file_leaves_the_old_keys_and_is_logged_once(write_keys, clock, caplog, broken):
    path: Path = write_keys(alice={})
    ring = KeyRing(path, now=clock)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.a_moment_later()
            assert name_of(ring, "sk-alice") == "alice"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(path) in caplog.text
    write_keys(bob={})
    clock.a_moment_later()
    assert (name_of(ring, "sk-alice"), name_of(ring, "sk-bob")) == (None, "bob")


def test_a_broken_file_at_the_start_is_refused(tmp_path):
    with pytest.raises(KeysFileError):
        KeyRing(tmp_path / "none.toml")


def test_the_file_is_looked_at_again_after_the_clock_was_set_back(write_keys, clock):
    clock.ahead_s = 3600.0
    ring = KeyRing(write_keys(alice={}), now=clock)
    assert name_of(ring, "sk-alice") == "alice"
    clock.ahead_s = 5.0
    write_keys(bob={})
    assert name_of(ring, "sk-bob") == "bob"


def test_every_key_is_compared_whichever_matches(write_keys, clock, monkeypatch):
    names = [f"k{i}" for i in range(20)]
    ring = KeyRing(write_keys(**{name: {} for name in names}), now=clock)
    compared: list[Any] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    for presented in ("sk-k0", "sk-k19", "sk-nobody"):
        compared.clear()
        ring.find(presented.encode())
        assert len(compared) == len(set(compared)) == len(names)


def test_digests_are_compared_by_nothing_that_ends_early():
    tree = ast.parse(textwrap.dedent(inspect.getsource(KeyRing.find)))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert len(loops) == 1
    for node in ast.walk(loops[0]):
        assert not isinstance(node, ast.Break | ast.Return | ast.Compare)
