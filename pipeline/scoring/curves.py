"""Training curves: read from TensorBoard's event files, kept as plain lists without the host's name."""

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
"""Tags that a training writes: the first by iteration, the others by epoch (``bundles/template/train.yaml``)."""
MAX_POINTS = 400
"""Points of one curve at most. A longer curve is cut into this many parts, and each becomes its mean."""

Curve = list[tuple[float, float]]


def read_events(folder: Path, steps_per_epoch: int | None = 1) -> dict[str, Curve]:
    """The curves of a training: tag -> points (iteration, value). Empty if the folder holds no event file.

    Args:
        folder: The folder of the training.
        steps_per_epoch: Iterations of an epoch, to place values by epoch on the same axis. None if it is not known,
            which leaves curves by epoch out.

    Raises:
        PipelineError: The event files cannot be read.
    """
    if not any(folder.glob(EVENTS)):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    try:
        accumulator.Reload()
        known = accumulator.Tags()[SCALARS]
        found = {tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in TAGS if tag in known}
    except Exception as error:  # damaged records raise errors of any type
        raise PipelineError(f"{folder}: no readable event files ({error}). Remove or restore them.") from error
    scales = {tag: 1 if tag == "train_loss" else steps_per_epoch for tag in found}
    return {tag: _thinned(found[tag], scale) for tag, scale in scales.items() if scale}


def _thinned(points: Mapping[int, float], scale: int) -> Curve:
    import numpy as np

    finite = [(float(step * scale), value) for step, value in sorted(points.items()) if np.isfinite(value)]
    if len(finite) <= MAX_POINTS:
        return finite
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in np.array_split(np.array(finite), MAX_POINTS)]


def write_curves(path: Path, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    """Write the curves of several trainings, name -> tag -> points, as JSON."""
    write_durably(path, (json.dumps(curves) + "\n").encode())


def read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """The curves that ``write_curves`` wrote, name -> tag -> points. Empty if there is no file."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return {
            str(name): {str(tag): [(float(x), float(y)) for x, y in curve] for tag, curve in tags.items()}
            for name, tags in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: no readable curves ({error}). Repeat the evaluation.") from error
