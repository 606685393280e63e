"""Segment FLAIR abnormality in brain MRI with MONAI: predict masks, train networks, score them, share them as bundles.

The names in ``__all__`` are the public interface. The import is fast: each name loads its libraries at first use.

Examples:
    >>> import pipeline
    >>> slices = pipeline.make_phantoms("demo", patients=4, size=64, slices=8)
    >>> pipeline.build_manifest(slices, "demo/manifest", split="none").content["numTest"]
    4
    >>> predictor = pipeline.Predictor("basic_unet")
    >>> prediction = predictor.predict(pipeline.read_manifest("demo/manifest").sections["test"][0].image)
    >>> prediction.mask.dtype
    dtype('uint8')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pipeline.cohort.building import build_manifest
    from pipeline.cohort.manifest import read_manifest
    from pipeline.cohort.phantoms import make_phantoms
    from pipeline.errors import ManifestError, PipelineError
    from pipeline.features.measuring import measure_shapes
    from pipeline.features.shape import shape_features
    from pipeline.model.bundle import load_bundle
    from pipeline.model.packing import pack_bundle
    from pipeline.model.predictions import predict_volumes
    from pipeline.model.predictor import Predictor, segment
    from pipeline.pages.report import write_report
    from pipeline.scoring.evaluation import evaluate_volumes
    from pipeline.scoring.metrics import score_volume
    from pipeline.scoring.results import read_scores
    from pipeline.scoring.statistics import paired, summarise

_PLACES = {
    "ManifestError": "errors",
    "PipelineError": "errors",
    "Predictor": "model.predictor",
    "build_manifest": "cohort.building",
    "evaluate_volumes": "scoring.evaluation",
    "load_bundle": "model.bundle",
    "make_phantoms": "cohort.phantoms",
    "measure_shapes": "features.measuring",
    "pack_bundle": "model.packing",
    "predict_volumes": "model.predictions",
    "paired": "scoring.statistics",
    "read_manifest": "cohort.manifest",
    "read_scores": "scoring.results",
    "score_volume": "scoring.metrics",
    "segment": "model.predictor",
    "shape_features": "features.shape",
    "summarise": "scoring.statistics",
    "write_report": "pages.report",
}

__all__ = [
    "ManifestError",
    "PipelineError",
    "Predictor",
    "build_manifest",
    "evaluate_volumes",
    "load_bundle",
    "make_phantoms",
    "measure_shapes",
    "pack_bundle",
    "paired",
    "predict_volumes",
    "read_manifest",
    "read_scores",
    "score_volume",
    "segment",
    "shape_features",
    "summarise",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """The public object with this name, loaded at its first use (PEP 562).

    Raises:
        AttributeError: The package has no public name like this.
    """
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    """The public names and ``__version__``."""
    return [*__all__, "__version__"]
