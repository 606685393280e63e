"""Training curves: TensorBoard's event files -> plain lists, without the host name that event files carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.scripts.files import write_durably

CURVES_NAME = "curves.json"
EVENTS = "events.out.tfevents.*"
TAGS = ("train_loss", "val_loss", "val_dsc")
"""What training writes (``bundles/template/train.yaml``): by iteration, by epoch, by epoch."""
MAX_POINTS = 400
"""Of one curve; longer ones become means of equal stretches."""

Curve = list[tuple[float, float]]


def read_events(folder: Path, steps_per_epoch: int = 1) -> dict[str, Curve]:
    """Curves of a training by tag, empty where the folder holds no event file."""
    if not any(folder.glob(EVENTS)):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    try:
        accumulator.Reload()
        known = accumulator.Tags()[SCALARS]
        found = {tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in TAGS if tag in known}
    except Exception as error:  # damaged records raise anything
        raise PipelineError(f"{folder}: no readable event files ({error}). Remove or restore them.") from error
    return {tag: _thinned(points, 1 if tag == "train_loss" else steps_per_epoch) for tag, points in found.items()}


def _thinned(points: Mapping[int, float], scale: int) -> Curve:
    import numpy as np

    finite = [(float(step * scale), value) for step, value in sorted(points.items()) if np.isfinite(value)]
    if len(finite) <= MAX_POINTS:
        return finite
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in np.array_split(np.array(finite), MAX_POINTS)]


def write_curves(path: Path, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    """Write curves of several trainings."""
    write_durably(path, (json.dumps(curves) + "\n").encode())


def read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """What ``write_curves`` wrote, empty where there is no file."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return {
            str(name): {str(tag): [(float(x), float(y)) for x, y in curve] for tag, curve in tags.items()}
            for name, tags in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: no readable curves ({error}). Evaluate again.") from error
