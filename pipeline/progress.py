"""Progress bars on a terminal, which ``--quiet`` hides."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], name: str, unit: str, total: int | None = None) -> tqdm[Item]:
    """The items one by one, with a progress bar if standard error is a terminal.

    Args:
        items: What to go through.
        name: The label of the progress bar.
        unit: What one item is, such as ``patient``.
        total: The number of items; None if ``len(items)`` gives it.
    """
    from tqdm import tqdm

    is_quiet = logging.getLogger("pipeline").level >= logging.WARNING
    return tqdm(items, desc=name, unit=unit, total=total, disable=is_quiet or None)
