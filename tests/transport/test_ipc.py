"""Who may reach an engine core's socket."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq

from rhizome_transport.frame_server import FrameServer
from rhizome_transport.ipc import IpcLock, check_endpoint
from rhizome_transport.zmq_client import ZmqEngineClient


def path_of(endpoint: str) -> Path:
    return Path(endpoint.removeprefix("ipc://"))


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("tcp://127.0.0.1:5555", "refused"),
        ("inproc://core", "refused"),
        ("ipc://relative.sock", "absolute"),
        ("ipc://@abstract", "absolute"),
        ("ipc:///" + "x" * 120, "longer"),
    ],
)
async def test_endpoints_that_cannot_be_protected_are_refused(endpoint, why):
    with pytest.raises(ValueError, match=why):
        check_endpoint(endpoint)
    with pytest.raises(ValueError, match=why):
        FrameServer(endpoint)
    with pytest.raises(ValueError, match=why):
        ZmqEngineClient(endpoint, peer_name="test")


def test_makes_a_private_directory_and_a_private_socket(endpoint):
    server = FrameServer(endpoint)
    try:
        path = path_of(endpoint)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    finally:
        server.close()
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_enter_is_refused(endpoint, mode):
    directory = path_of(endpoint).parent
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 0700"):
        FrameServer(endpoint)


def test_an_endpoint_in_use_is_refused_and_keeps_working(endpoint):
    first = FrameServer(endpoint)
    try:
        with pytest.raises(BlockingIOError, match="another engine core"):
            FrameServer(endpoint)
        assert path_of(endpoint).exists()
    finally:
        first.close()
    FrameServer(endpoint).close()


def test_a_socket_left_behind_by_a_dead_process_is_replaced(endpoint):
    path = path_of(endpoint)
    path.parent.mkdir(mode=0o700)
    context = zmq.Context()
    dead = context.socket(zmq.ROUTER)
    dead.bind(endpoint)
    inode = path.stat().st_ino
    path.with_name("kept").hardlink_to(path)
    dead.close(linger=0)
    context.term()
    path.with_name("kept").rename(path)
    assert path.stat().st_ino == inode
    FrameServer(endpoint).close()


def test_a_file_that_is_no_socket_is_never_removed(endpoint):
    path = path_of(endpoint)
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="no socket"):
        FrameServer(endpoint)
    assert path.read_text() == "precious"


def test_a_lock_file_that_is_a_link_is_not_followed(endpoint, tmp_path):
    path = path_of(endpoint)
    path.parent.mkdir(mode=0o700)
    target = tmp_path / "target"
    path.with_name(path.name + ".lock").symlink_to(target)
    with pytest.raises(OSError, match=r"\.lock"):
        IpcLock(endpoint)
    assert not target.exists()
