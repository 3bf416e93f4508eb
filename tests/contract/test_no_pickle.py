"""Nothing that we run turns bytes from elsewhere into code.

A socket that unpickles is remote code execution. So the modules that do are not imported anywhere, whatever
for, and the short cuts to them of pyzmq and torch.distributed are not called.
"""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("libs", "services", "benchmarks", "scripts", "models")
    for path in (ROOT / folder).rglob("*.py")
    if not {".venv", "node_modules", "build"} & set(path.parts)
)
MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
METHODS = {"recv_pyobj", "send_pyobj", "recv_serialized"}
COLLECTIVES = {  # of torch.distributed
    *("all_gather_object", "gather_object", "scatter_object_list", "broadcast_object_list"),
    *("send_object_list", "recv_object_list"),
}


def parse(source: str) -> ast.AST:
    """Without collections: on Python 3.11 one that runs a finaliser meanwhile breaks the parser."""
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()


def problems(source: str) -> set[str]:
    """What a module uses that it must not."""
    found: set[str] = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.add(str(node.module))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed"):
            found |= {alias.name for alias in node.names} & COLLECTIVES
        elif isinstance(node, ast.Attribute) and node.attr in METHODS | COLLECTIVES:
            found.add(node.attr)
        elif isinstance(node, ast.Call):
            found |= _unsafe_call(node)
    return found


def _unsafe_call(call: ast.Call) -> set[str]:
    """Loaders that unpickle unless they are told not to, and imports by name."""
    text = ast.unparse(call.func)
    named = {word.arg: ast.unparse(word.value) for word in call.keywords}
    first = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    if text.endswith("torch.load") and named.get("weights_only") != "True":
        return {"torch.load without weights_only=True"}
    if text in ("np.load", "numpy.load") and named.get("allow_pickle", "False") != "False":
        return {"numpy.load with allow_pickle"}
    if text.endswith(("import_module", "__import__")) and str(first).split(".")[0] in MODULES:
        return {f"import of {first}"}
    return set()


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 300
    assert any(path.name == "frame_server.py" for path in SOURCES)
    assert any(path.match("rhizome_engine/parallel/channel.py") for path in SOURCES)


def test_nothing_unpickles():
    found = {str(path.relative_to(ROOT)): bad for path in SOURCES if (bad := problems(path.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, pickle as p",
        "from pickle import loads",
        "def f():\n    import cloudpickle.fast",
        "import importlib\nimportlib.import_module('marshal')",
        "socket.recv_pyobj()",
        "dist.broadcast_object_list([x], src=0)",
        "from torch.distributed import all_gather_object",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
    ],
)
def test_each_of_them_would_be_found(source):
    assert problems(source)


@pytest.mark.parametrize("source", ["import json", "torch.load('x', weights_only=True)", "np.load('x')"])
def test_what_is_safe_is_not(source):
    assert not problems(source)
