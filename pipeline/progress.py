"""Progress bars on a terminal, unless a command's ``--quiet`` hides them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], name: str, unit: str, total: int | None = None) -> tqdm[Item]:
    """The items one by one, counted by a bar on standard error where that is a terminal."""
    from tqdm import tqdm

    is_quiet = logging.getLogger("pipeline").level >= logging.WARNING
    return tqdm(items, desc=name, unit=unit, total=total, disable=is_quiet or None)
