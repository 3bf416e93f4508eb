"""A Docker daemon with the images in it, for all stacks of one run."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.compose_stack import build_images, tell
from tests.deploy.docker_daemon import docker_daemon


@pytest.fixture(scope="session")
def docker_environment() -> Iterator[dict[str, str]]:
    """Environment for `docker` and `docker-compose`, with the images to use."""
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose (Debian: docker-compose)")
    folder = Path(tempfile.mkdtemp(prefix="rhizome-docker-"))
    try:
        with docker_daemon(folder) as found:
            if not found.get("BASE_IMAGE") and (os.geteuid() != 0 or shutil.which("debootstrap") is None):
                pytest.skip("needs BASE_IMAGE and BUILD_IMAGE, or root and debootstrap to make them")
            began = time.monotonic()
            used = build_images(found, folder / "base")
            tell(f"images: {time.monotonic() - began:.0f} s")
            yield used
    finally:
        shutil.rmtree(folder, ignore_errors=True)
