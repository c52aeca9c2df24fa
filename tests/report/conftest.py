"""One site for all tests that look at one."""

from __future__ import annotations

import pytest
from made_site import Made, make_site


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Results of every kind and their site."""
    return make_site(tmp_path_factory.mktemp("report"))
