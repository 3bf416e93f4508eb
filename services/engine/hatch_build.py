"""Build hook: a wheel made where a compiler is ships the CPU kernels; one made elsewhere does without."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "rhizome_engine/kernels/native"


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compile the kernels for every instruction set into the wheel; never fail the build.

    An editable install compiles on first use instead, since its sources change.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries to the wheel that is being built."""
        if version == "editable" or sys.platform != "linux" or platform.machine() != "x86_64":
            return
        build = _load_build_module(Path(self.root) / NATIVE / "build.py")
        self._made = Path(tempfile.mkdtemp(prefix="rhizome-kernels-"))
        try:
            compiler = build.find_compiler()
            for variant in build.VARIANTS:
                if not build.knows(compiler, variant):
                    continue
                name = build.library_name(variant)
                build.compile_library(variant, self._made / name, compiler)
                build_data["force_include"][str(self._made / name)] = f"{NATIVE}/lib/{name}"
        except (build.BuildError, OSError) as error:
            build_data["force_include"].clear()
            self.app.display_warning(f"the wheel has no CPU kernels, they are compiled on first use: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"  # plain C functions: any Python

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled: it is in the wheel now."""
        if hasattr(self, "_made"):
            shutil.rmtree(self._made, ignore_errors=True)


def _load_build_module(path: Path) -> ModuleType:
    """Load build.py by its path: the package and what it needs are not installed while a wheel is built."""
    spec = importlib.util.spec_from_file_location("rhizome_kernel_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
