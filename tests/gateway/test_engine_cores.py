"""What `--engine` may name: one gRPC server, or engine cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhizome_gateway.app import connect_engine
from rhizome_gateway.engine_cores import engine_cores
from rhizome_gateway.settings import GatewaySettings
from rhizome_transport.balanced_client import BalancedClient
from rhizome_transport.curve import new_key
from rhizome_transport.zmq_client import ZmqEngineClient

A, B, FAR = "ipc:///run/rhizome/a.ipc", "ipc:///run/rhizome/b.ipc", "tcp://10.0.0.7:50052"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    secret, public = new_key(tmp_path, "gateway")
    return {"engine_curve_key": secret, "engine_curve_server": public}


def test_one_core_several_and_none(keys):
    assert engine_cores(GatewaySettings(engine="127.0.0.1:50050")) == ((), None)
    assert engine_cores(GatewaySettings(engine=A)) == ((A,), None)
    assert engine_cores(GatewaySettings(engine=f"{A}, {B}")) == ((A, B), None)
    cores, curve = engine_cores(GatewaySettings(engine=f"{A},{FAR}", **keys))
    assert cores == (A, FAR)
    assert curve is not None


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("127.0.0.1:1,127.0.0.1:2", "put a proxy in front"),
        (f"{A},127.0.0.1:2", "not both"),
        (f"{A},{A}", "twice"),
        (FAR, "refused without CURVE keys"),
        ("ipc://relative", "absolute path"),
        ("tcp://10.0.0.7", "tcp://host:port"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_listens(engine, words):
    with pytest.raises(ValueError, match=words):
        engine_cores(GatewaySettings(engine=engine))


def test_keys_that_nobody_would_use_are_refused(keys):
    with pytest.raises(ValueError, match="gRPC has --engine-tls-ca"):
        engine_cores(GatewaySettings(engine="127.0.0.1:50050", **keys))
    with pytest.raises(ValueError, match="give both"):
        engine_cores(GatewaySettings(engine=A, engine_curve_key=keys["engine_curve_key"]))


async def test_the_client_fits_what_is_named():
    for engine, kind in ((A, ZmqEngineClient), (f"{A},{B}", BalancedClient)):
        client = connect_engine(GatewaySettings(engine=engine))
        assert type(client) is kind
        await client.close()
