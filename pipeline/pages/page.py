"""HTML pages from templates: names escaped, long ones breaking at their separators, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.imaging.nifti import shown_in_grey
from pipeline.pages import MAX_SLICES_BYTES
from pipeline.progress import progress

MAX_LISTED = 5
"""Names in a sentence; of more there are the first three."""


def render(template: str, **values: Any) -> str:
    """The page of a template.

    Args:
        template: Its file in ``pipeline/pages/templates``.
        values: What it shows; ``data``, of the form of ``viewer_data``, is for the viewer.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # patients stay in their order
    environment.filters |= {"breakable": breakable, "decimals": decimals, "signed": signed}
    return environment.get_template(template).render(version=__version__, **values)


def breakable(name: str) -> Markup:
    """A name that a browser may break after ``_``, ``-``, ``.`` and ``/``, and elsewhere only if it must."""
    return Markup("<wbr>").join(re.split(r"(?<=[_\-./])(?=.)", name))


def decimals(value: float | None, digits: int = 4) -> str:
    """A number with so many decimals, empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign, without one where it rounds to 0."""
    return "0.0000" if abs(value) < 0.00005 else f"{value:+.4f}"


def listed(names: Iterable[str]) -> str:
    """Names in a sentence: all of a few, else the first three and how many more."""
    found = [*names]
    if len(found) <= MAX_LISTED:
        return ", ".join(found)
    return f"{', '.join(found[:3])} and {len(found) - 3} more"


def grey_channels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image, (H, W, D, 3), as 8-bit grey; channels that share one memory share it again."""
    if image.strides[-1] == 0:
        return np.broadcast_to(shown_in_grey(image[..., 0])[..., None], image.shape)
    return np.stack([shown_in_grey(image[..., channel]) for channel in range(image.shape[-1])], axis=-1)


def collect_views(
    patients: Sequence[str], view_of: Callable[[str], dict[str, Any] | None], name: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Views of patients, as long as the page stays small enough.

    Args:
        patients: Ids, the most important first.
        view_of: Gives a patient's view; None where there is nothing to show.
        name: What the progress is called.

    Returns:
        Patient -> view, and the patients that found no room.
    """
    views: dict[str, dict[str, Any]] = {}
    room = MAX_SLICES_BYTES
    for number, patient in enumerate(progress(patients, name, "patient")):
        view = view_of(patient)
        if view is None:
            continue
        room -= len(json.dumps(view))
        if room < 0 and views:
            return views, [*patients[number:]]
        views[patient] = view
    return views, []


def viewer_data(
    runs: Iterable[str], channels: Iterable[str], order: Iterable[str], views: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``viewer.js`` reads; ``order`` is a list of its own, since JavaScript sorts keys that look like numbers."""
    shown = [patient for patient in order if patient in views]
    return {"runs": [*runs], "channels": [*channels], "order": shown, "patients": {one: views[one] for one in shown}}
