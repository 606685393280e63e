"""Write one HTML page of shape features: their agreement, their associations, and the features of each patient."""

from __future__ import annotations

from pathlib import Path

from pipeline.features.association import Association
from pipeline.features.measuring import FEATURES, PAGE_NAME, PREDICTED, SHAPE_CSV, TRUE, ShapeResult, values
from pipeline.pages.charts import agreement_svg, groups_svg
from pipeline.pages.page import listed, render, viewer_data
from pipeline.scripts.files import write_durably

MAX_CHARTS = 6
"""Pairs of feature and column that get a chart: those of the smallest p values of Fisher's test, of either kind."""


def write_shape_page(result: ShapeResult, out: str | Path) -> Path:
    """Write ``shape.html`` into a folder. The page needs no other file and no network.

    Args:
        result: The features, as ``measure_shapes`` returns them.
        out: The folder of the results.

    Returns:
        The path of the page.

    Examples:
        >>> import pipeline
        >>> write_shape_page(pipeline.measure_shapes("data_manifest", "shapes"), "shapes").name
        'shape.html'
    """
    kinds = [*result.shapes]
    pairs: dict[tuple[str, str], dict[str, Association]] = {}
    for kind, tested in result.associations.items():
        for one in tested:
            pairs.setdefault((one.feature, one.column), {})[kind] = one
    pairs = dict(sorted(pairs.items(), key=lambda pair: min(one.fisher_p for one in pair[1].values())))
    boxes = []
    for feature, column in [*pairs][:MAX_CHARTS]:
        groups = result.clinical.columns[column] if result.clinical else {}
        for kind in kinds:
            of_kind = values(result.shapes[kind], feature)
            names = sorted({groups[patient] for patient in of_kind if patient in groups})
            parts = {name: [of_kind[one] for one in of_kind if groups.get(one) == name] for name in names}
            title = f"{feature.replace('_', ' ')} by {column}, {kind} masks"
            boxes.append((title, groups_svg(parts, feature, column, kind)))
    blands = [
        (
            one.feature.replace("_", " "),
            agreement_svg(values(result.shapes[PREDICTED], one.feature), values(result.shapes[TRUE], one.feature), one),
        )
        for one in result.agreements
    ]
    notes = []
    if result.unknown_spacing:
        notes.append(
            f"the voxel size is not known for {listed(result.unknown_spacing)}: features in mm are empty, and "
            "diameters are in pixels"
        )
    if result.seen_in_training:
        notes.append(
            f"the networks were trained on {listed(result.seen_in_training)}: their predicted masks do not show how "
            "masks of new patients behave"
        )
    text = render(
        "shape.html.j2",
        kinds=kinds,
        shapes=result.shapes,
        patients=sorted({patient for shapes in result.shapes.values() for patient in shapes}),
        features=[name for name in FEATURES if any(values(shapes, name) for shapes in result.shapes.values())],
        agreements=result.agreements,
        clinical=result.clinical,
        pairs=pairs,
        boxes=boxes,
        blands=blands,
        notes=notes,
        table=SHAPE_CSV,
        data=viewer_data([], [], [], {}),
    )
    path = Path(out) / PAGE_NAME
    write_durably(path, text.encode())
    return path
