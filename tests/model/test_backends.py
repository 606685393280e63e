"""Other backends give the same logits and the same scores, and a clear message if a package is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.model.backends import BACKENDS, PACKAGES, compiled
from pipeline.model.bundle import load_bundle
from tests.conftest import TINY, evaluated, every_network, lively_weights, save_weights

OTHERS = [name for name in BACKENDS if name != "torch"]
SIZE = TINY["image_size"]


@every_network
@pytest.mark.parametrize("backend", OTHERS)
def test_backend_gives_the_networks_logits(trained, tmp_path: Path, backend: str) -> None:
    """This holds for any number of slices, and the next call does not overwrite a result."""
    for package in PACKAGES[backend]:
        pytest.importorskip(package, reason=f"{package} (extra backends) is not installed")
    state = torch.load(trained[1] / "model.pt", weights_only=True)
    weights = save_weights(state, trained, tmp_path / "model.pt")
    plain, other = load_bundle(trained[0], weights), load_bundle(trained[0], weights, backend)
    image = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tolerance = 0.05 if backend == "openvino-bf16" else 1e-4
    with torch.inference_mode():
        expected = plain.network(image)
        found = other.network(image)
        first = other.network(image[:1])
        other.network(-image[:1])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert (first - expected[:1]).abs().max() <= tolerance * expected.abs().max()
    assert (plain.backend, other.backend) == ("torch", backend)


@pytest.mark.parametrize("backend", OTHERS)
def test_a_backend_takes_neighbouring_slices(backend: str) -> None:
    for package in PACKAGES[backend]:
        pytest.importorskip(package, reason=f"{package} (extra backends) is not installed")
    network = torch.nn.Conv2d(9, 1, 3, padding=1).eval()
    image = torch.randn(5, 9, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = compiled(network, backend, 9, SIZE)(image), network(image)
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


@every_network
@pytest.mark.parametrize("backend", OTHERS)
def test_scores_by_a_backend_agree(trained, manifest: Path, tmp_path: Path, backend: str) -> None:
    for package in PACKAGES[backend]:
        pytest.importorskip(package, reason=f"{package} (extra backends) is not installed")
    lively_weights(trained, manifest, tmp_path / "model.pt")
    plain = evaluated((trained[0], tmp_path), manifest, tmp_path / "plain")
    other = evaluated((trained[0], tmp_path), manifest, tmp_path / "other", "--backend", backend)
    assert plain["dsc_mean"] > 0
    assert other["dsc_mean"] == pytest.approx(plain["dsc_mean"], abs=1e-2 if backend == "openvino-bf16" else 1e-3)
    assert (plain["backend"], other["backend"]) == ("torch", backend)


@pytest.mark.parametrize("backend", OTHERS)
def test_a_backend_that_is_not_installed_is_named(trained, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[backend][1], None)
    with pytest.raises(PipelineError, match=rf"--backend {backend}: a package is missing. Run: pip install "):
        load_bundle(trained[0], trained[1] / "model.pt", backend)
