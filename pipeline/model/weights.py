"""The tensors of a weights file, read without running code, and put into a network."""

from __future__ import annotations

import io
import textwrap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import torch


def read_state(data: bytes, path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """The state dict of a weights file; no code in it is run."""
    import torch

    from pipeline.scripts.finite import first_three, not_finite

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
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PipelineError(f"{path}: no plain state dict (expected tensors by name). Use model.pt, not a checkpoint.")
    odd = not_finite(state.items())
    if odd:
        raise PipelineError(
            f"{path}: NaN or Inf in {first_three(odd)}. Take the weights of an earlier epoch, or train again."
        )
    return state


def load_state(network: torch.nn.Module, state: dict[str, torch.Tensor], weights: Path, folder: Path) -> None:
    """Put weights into a network."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        what = textwrap.shorten(str(error), 400, placeholder=" ...")
        raise PipelineError(
            f"{weights}: weights of another architecture than {folder}. {what} Choose the bundle of their training."
        ) from error
