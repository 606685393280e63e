"""What several tests of the bundles' scripts share: a training config in parts, and patients without a lesion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from pipeline.cohort.building import build_manifest
from pipeline.cohort.phantoms import make_phantoms
from tests.conftest import BUNDLES

SIZE = 32
"""Height and width of the slices in ``recipe``."""


@pytest.fixture(params=BUNDLES, ids=lambda bundle: bundle.name)
def recipe(request: pytest.FixtureRequest) -> ConfigParser:
    """A bundle's training config at 32 x 32 px; nothing of it is built yet."""
    parser = ConfigParser()
    parser.read_config(request.param / "configs" / "train.json")
    parser["image_size"] = SIZE
    parser["workflow"] = []
    parser["bundle_root"] = str(request.param)
    parser.get_parsed_content("scripts_path")
    return parser


def composed(recipe: ConfigParser, key: str) -> Compose:
    """One list of transforms of the config, from a seeded generator."""
    torch.manual_seed(0)
    return Compose(recipe.get_parsed_content(key))


@pytest.fixture(scope="session")
def half_healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a manifest of four patients, two of them without a lesion; half train, half validate."""
    out = tmp_path_factory.mktemp("healthy")
    slices = make_phantoms(out / "phantoms", patients=4, size=48, slices=8, lesion_free=2)
    build_manifest(slices, out / "manifest", split="random", validation_fraction=0.5)
    return out / "manifest"
