"""Write one HTML page of predictions without truth, with a table and a viewer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.imaging.nifti import load_image, load_label, load_map, spacing_mm
from pipeline.model.predictions import PAGE_NAME, PREDICTIONS_NAME
from pipeline.model.predictor import LOW_AGREEMENT
from pipeline.pages import MAX_VIEWERS
from pipeline.pages.page import collect_views, gray_channels, listed, render, viewer_data
from pipeline.pages.viewer import patient_view
from pipeline.scripts.files import write_durably
from pipeline.scripts.manifest import CHANNELS, MASK_SUFFIX, UNCERTAINTY_SUFFIX

RUN = "prediction"


def write_predictions_page(out: str | Path, images: Mapping[str, Path], viewers: int = MAX_VIEWERS) -> Path:
    """Write ``predictions.html`` into a folder of predictions. The page needs no other file and no network.

    Args:
        out: The folder of the results, as ``predict_volumes`` writes it.
        images: Name of each volume -> its NIfTI file, as in ``PredictionResult.images``.
        viewers: Number of volumes whose slices the page shows: those of lowest agreement if known, else the first.

    Returns:
        The path of the page.

    Raises:
        PipelineError: A volume cannot be read, or the page cannot be written.

    Examples:
        >>> import pipeline
        >>> result = pipeline.predict_volumes("kaggle_3m", "basic_unet", "masks")
        >>> write_predictions_page("masks", result.images).name
        'predictions.html'
    """
    folder = Path(out)
    summary = json.loads((folder / PREDICTIONS_NAME).read_bytes())
    rows = {row["volume"]: row for row in summary["volumes"]}
    by_doubt = any(row["agreement"] is not None for row in rows.values())
    order = sorted(rows, key=lambda name: _doubt(rows[name]))

    def view_of(name: str) -> dict[str, Any]:
        uncertainty = folder / f"{name}{UNCERTAINTY_SUFFIX}"
        masks = {RUN: load_label(folder / f"{name}{MASK_SUFFIX}")}
        maps = {RUN: load_map(uncertainty)} if uncertainty.is_file() else {}
        image = images[name]
        view = patient_view(gray_channels(load_image(image)), None, masks, maps, spacing_mm(image))
        return {**view, "captions": {RUN: _caption(rows[name])}}

    views, left_out = collect_views(order[:viewers], view_of, "page")
    failed = [f"{path}: {fault}" for path, fault in summary["failed"].items()]
    notes = [f"not predicted: {'; '.join(failed[:3])}"] if failed else []
    if len(failed) > 3:
        notes.append(f"not predicted: {len(failed) - 3} more, listed in {PREDICTIONS_NAME}")
    if len(order) > viewers:
        which = "those whose networks agree least" if by_doubt else "the first"
        notes.append(f"the page shows slices of {len(views)} of {len(order)} volumes: {which}")
    if left_out:
        notes.append(f"no slices of {listed(left_out)}, because the page would become too large for a browser")
    text = render(
        "predictions.html.j2",
        rows=[rows[name] for name in order],
        summary=summary,
        by_doubt=by_doubt,
        low_agreement=LOW_AGREEMENT,
        has_maps=any(view["maps"] for view in views.values()),
        notes=notes,
        data=viewer_data([RUN], CHANNELS, order, views),
    )
    write_durably(folder / PAGE_NAME, text.encode())
    return folder / PAGE_NAME


def _doubt(row: Mapping[str, Any]) -> float:
    """A key to sort volumes: the lowest agreement first, then volumes without an agreement in their order."""
    return 2.0 if row["agreement"] is None else row["agreement"]


def _caption(row: Mapping[str, Any]) -> str:
    if not row["lesion_voxels"]:
        return "no lesion found"
    size = f"{row['lesion_voxels']:,} voxels" if row["lesion_ml"] is None else f"{row['lesion_ml']:.2f} ml"
    return f"{size} in {row['lesion_slices']} of {row['slices']} slices"
