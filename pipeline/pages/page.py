"""Build HTML pages from templates. Names are escaped, and a page loads nothing from elsewhere."""

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
from pipeline.imaging.nifti import shown_in_gray
from pipeline.model.predictor import is_low
from pipeline.pages import MAX_SLICES_BYTES
from pipeline.progress import progress

MAX_LISTED = 5
"""Names in a sentence at most. Of more names, the first three are written."""


def render(template: str, **values: Any) -> str:
    """The text of an HTML page.

    Args:
        template: The name of a file in ``pipeline/pages/templates``.
        values: The values that the template uses. ``data`` is for the viewer, as ``viewer_data`` returns it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # keeps the order of patients
    environment.filters |= {"agreed": agreed, "breakable": breakable, "decimals": decimals, "signed": signed}
    return environment.get_template(template).render(version=__version__, **values)


def breakable(name: str) -> Markup:
    """A name that a browser prefers to break after ``_``, ``-``, ``.`` and ``/``."""
    return Markup("<wbr>").join(re.split(r"(?<=[_\-./])(?=.)", name))


def agreed(value: float | None) -> str:
    """An agreement with three decimals, and the word ``low`` if its mask should be looked at first."""
    return decimals(value, 3) + ", low" * is_low(value)


def decimals(value: float | None, digits: int = 4) -> str:
    """A number with so many decimals; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign and four decimals; without a sign if it rounds to 0."""
    return "0.0000" if abs(value) < 0.00005 else f"{value:+.4f}"


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: all of them if they are few, else the first three and the number of others."""
    found = [*names]
    if len(found) <= MAX_LISTED:
        return ", ".join(found)
    return f"{', '.join(found[:3])} and {len(found) - 3} more"


def gray_channels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image, (H, W, D, 3), in 8-bit gray. Channels that share memory still share it in the result."""
    if image.strides[-1] == 0:
        return np.broadcast_to(shown_in_gray(image[..., 0])[..., None], image.shape)
    return np.stack([shown_in_gray(image[..., channel]) for channel in range(image.shape[-1])], axis=-1)


def collect_views(
    patients: Sequence[str], view_of: Callable[[str], dict[str, Any] | None], name: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The views of as many patients as fit into a page of ``MAX_SLICES_BYTES``.

    Args:
        patients: Ids of the patients, the most important first.
        view_of: A function that returns a patient's view; None if there is nothing to show.
        name: The label of the progress bar.

    Returns:
        Patient -> view, and the ids of patients that did not fit.
    """
    views: dict[str, dict[str, Any]] = {}
    left = MAX_SLICES_BYTES
    for number, patient in enumerate(progress(patients, name, "patient")):
        view = view_of(patient)
        if view is None:
            continue
        left -= len(json.dumps(view))
        if left < 0 and views:
            return views, [*patients[number:]]
        views[patient] = view
    return views, []


def viewer_data(
    runs: Iterable[str], channels: Iterable[str], order: Iterable[str], views: Mapping[str, Any]
) -> dict[str, Any]:
    """The data that ``viewer.js`` reads.

    Args:
        runs: Names of the runs.
        channels: Names of the image's channels.
        order: Ids of patients in the order of the page; JavaScript would sort keys that look like numbers.
        views: Patient -> view, as ``patient_view`` returns it.
    """
    shown = [patient for patient in order if patient in views]
    return {"runs": [*runs], "channels": [*channels], "order": shown, "patients": {one: views[one] for one in shown}}
