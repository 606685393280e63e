"""Weights held against what is known of them, before they are parsed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .faults import PipelineError
from .files import content_of, matches_checksum, sha256_bytes
from .records import RECORD, read_record

WEIGHTS = "models/model.pt"
MAX_WEIGHTS_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Weights:
    """A weights file that is what its checksum, its record or the bundle's metadata say; ``data`` is not parsed.

    ``record`` is empty where none lies beside the file. ``is_replaced``: a training replaced the bundle's own by it.
    """

    path: Path
    data: bytes = field(repr=False)
    sha256: str
    record: dict[str, Any] = field(repr=False)
    is_replaced: bool


def shipped_sha256(bundle: Path) -> str | None:
    """SHA-256 of the weights that a bundle came with, as its metadata names it; None where it names none."""
    try:
        return str(json.loads((bundle / "configs" / "metadata.json").read_bytes())["weights"]["sha256"]).lower()
    except (OSError, ValueError, LookupError, TypeError):
        return None


def read_weights(path: Path, bundle: Path, option: str = "--ckpt_path") -> Weights:
    """Read weights and check their hash; no code in them is run. ``option`` names other weights, for messages.

    The hash must be the one in ``NAME.sha256`` beside the file, where that exists. A record beside the file must name
    it. Without a record, the file in the place of the bundle's own weights must be the one that its metadata names.
    """
    try:
        data = content_of(path, MAX_WEIGHTS_BYTES)
    except OSError as error:
        raise PipelineError(
            f"{path}: no weights ({error.strerror}). Train the bundle first, or pass {option} FILE."
        ) from error
    sha256 = sha256_bytes(data)
    if not matches_checksum(path, sha256):
        raise PipelineError(
            f"{path}: damaged, its SHA-256 {sha256} is not that in {path.name}.sha256 beside it. Restore it."
        )
    record = read_record(path, sha256)
    is_own = path.resolve() == (bundle / WEIGHTS).resolve()
    shipped = shipped_sha256(bundle) if is_own else None
    if not record and shipped not in (None, sha256):
        raise PipelineError(
            f"{path}: SHA-256 {sha256} (the bundle's metadata: {shipped}). Restore the file; your own weights come "
            f"with their {RECORD}, or are named by {option}."
        )
    return Weights(path, data, sha256, record, is_replaced=shipped not in (None, sha256))
