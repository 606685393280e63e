"""Weights held against what is known of them, read without running code, and put into a network."""

from __future__ import annotations

import io
import json
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .faults import PipelineError
from .files import content_of, matches_checksum, sha256_bytes
from .records import RECORD, read_record

if TYPE_CHECKING:
    import torch

WEIGHTS = "models/model.pt"
MAX_WEIGHTS_BYTES = 4 * 2**30
WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys below which other programs keep a network's weights in a file."""
PREFIXES = ("module.", "_orig_mod.")
"""What ``DataParallel`` and ``torch.compile`` put before the name of every weight."""


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


def weights_in(place: Path) -> Path:
    """The weights file that a path means: itself or, of a folder, that of a bundle or a training."""
    if not place.is_dir():
        return place
    return next((file for file in (place / WEIGHTS, place / Path(WEIGHTS).name) if file.is_file()), place / WEIGHTS)


def read_state(data: bytes, path: Path, device: torch.device | str | None) -> dict[str, torch.Tensor]:
    """The state dict of a weights file, by the names of a plain network; no code in it is run.

    It may lie below one of ``WRAPPERS``, and all of its names may begin with one of ``PREFIXES``. ``path`` is for
    messages.
    """
    import torch

    from .finite import first_three, not_finite

    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                    raise ValueError("compressed: torch.save compresses nothing, and what it unpacks to has no bound")  # noqa: TRY301
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:
        # Its unpickler raises whatever a damaged file leads it to (IndexError, TypeError, struct.error among them).
        # torch's text may advise weights_only=False, which runs the file's code.
        raise PipelineError(
            f"{path}: no readable weights ({type(error).__name__}). Restore the file or train again."
        ) from error
    state = _unwrapped(state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PipelineError(f"{path}: no plain state dict (expected tensors by name). Use model.pt, not a checkpoint.")
    odd = not_finite(state.items())
    if odd:
        raise PipelineError(
            f"{path}: NaN or Inf in {first_three(odd)}. Take the weights of an earlier epoch, or train again."
        )
    return state


def _unwrapped(content: Any) -> Any:
    """The innermost state dict, without a prefix that all of its names have."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return content
    names = list(content)
    while names and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in names)), None)):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, content.values(), strict=True))


def load_state(
    network: torch.nn.Module, state: Mapping[str, torch.Tensor], weights: Path, owner: object, *, strict: bool = True
) -> None:
    """Put weights into a network, by ``strict`` all of it; ``owner``, whose network it is, is for messages."""
    try:
        network.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        what = textwrap.shorten(str(error), 400, placeholder=" ...")
        raise PipelineError(
            f"{weights}: weights of another architecture than {owner}. {what} Choose the bundle of their training."
        ) from error
