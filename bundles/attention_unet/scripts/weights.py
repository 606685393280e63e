"""Reads weights without running code, checks them, and loads them into a network."""

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
"""Keys under which other programs store a network's weights in a file."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that ``DataParallel`` and ``torch.compile`` add to the name of every weight."""


@dataclass(frozen=True)
class Weights:
    """A weights file that fits its checksum, its record or the bundle's metadata."""

    path: Path
    """The file."""
    data: bytes = field(repr=False)
    """The file's content, not parsed."""
    sha256: str
    """SHA-256 of the content."""
    record: dict[str, Any] = field(repr=False)
    """The record beside the file; empty where there is none."""
    is_replaced: bool
    """Whether a training has written the file over the bundle's original weights."""


def shipped_sha256(bundle: Path) -> str | None:
    """SHA-256 of a bundle's original weights, from its metadata; None where the metadata has none."""
    try:
        return str(json.loads((bundle / "configs" / "metadata.json").read_bytes())["weights"]["sha256"]).lower()
    except (OSError, ValueError, LookupError, TypeError):
        return None


def read_weights(path: Path, bundle: Path, option: str = "--ckpt_path") -> Weights:
    """Read weights and check their hash, without running code in them.

    The hash must be the one in ``NAME.sha256`` beside the file, where that exists. A record beside the file must hold
    the hash. Without a record, the hash of ``models/model.pt`` must be the one in the bundle's metadata.

    Args:
        path: The weights file.
        bundle: The bundle's folder.
        option: The option that names other weights, for messages.

    Raises:
        PipelineError: The file is missing, too large or damaged, or belongs to another record or bundle.
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
            f"{path}: SHA-256 {sha256} (the bundle's metadata: {shipped}). Restore the file. For your own weights, "
            f"keep their {RECORD} beside them, or pass {option} FILE."
        )
    return Weights(path, data, sha256, record, is_replaced=shipped not in (None, sha256))


def weights_in(place: Path) -> Path:
    """The weights file for a path: the file itself, or the one in the folder of a bundle or a training."""
    if not place.is_dir():
        return place
    return next((file for file in (place / WEIGHTS, place / Path(WEIGHTS).name) if file.is_file()), place / WEIGHTS)


def read_state(data: bytes, path: Path, device: torch.device | str | None) -> dict[str, torch.Tensor]:
    """The state dict of a weights file, without running code in it.

    The state dict may lie below one of ``WRAPPERS``. If all names begin with one of ``PREFIXES``, it is removed.

    Args:
        data: The file's content.
        path: The file, for messages.
        device: The device to which the tensors are loaded.

    Raises:
        PipelineError: The content is damaged, is not a state dict of tensors, or holds NaN or Inf.
    """
    import torch

    from .finite import first_three, not_finite

    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                    raise ValueError("compressed: torch.save does not compress, and the unpacked size has no limit")  # noqa: TRY301
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:
        # On a damaged file the unpickler raises many types, such as IndexError, TypeError and struct.error.
        # torch's text is not shown, because it may advise weights_only=False, which runs the file's code.
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
    """The innermost state dict, without a prefix that all of its names share."""
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
    """Load weights into a network.

    Args:
        network: The network.
        state: The weights by name.
        weights: The weights file, for messages.
        owner: The bundle or config of the network, for messages.
        strict: Refuse missing and unknown names.

    Raises:
        PipelineError: The weights do not fit the network.
    """
    try:
        network.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        what = textwrap.shorten(str(error), 400, placeholder=" ...")
        raise PipelineError(
            f"{weights}: weights of another architecture than {owner}. {what} Choose the bundle that was trained."
        ) from error
