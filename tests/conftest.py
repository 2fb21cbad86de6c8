"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gmin_data() -> Path:
    """The folder of third-party images, weights and golden vectors; a test that needs it skips where there is none."""
    folder = os.environ.get("GMIN_DATA")
    if not folder:
        pytest.skip("GMIN_DATA is not set: the third-party weights and golden vectors are not here")
    return Path(folder)
