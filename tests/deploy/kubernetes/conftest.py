from __future__ import annotations

import pytest
from tests.deploy.kubernetes.manifests import Stack, all_stacks


@pytest.fixture(params=all_stacks(), ids=lambda names: "+".join(filter(None, names)))
def stack(request: pytest.FixtureRequest) -> Stack:
    """Each overlay, alone and with each component."""
    return Stack(*request.param)
