"""Fixtures for several tests of imaging."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture
def voxels() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(0, 900, (24, 20, 8), dtype=np.int16)
