"""Each overlay, rendered once."""

import pytest

from tests.deploy.kubernetes.manifests import OVERLAYS, Overlay, render


@pytest.fixture(scope="session", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Overlay:
    return render(request.param)
