"""Finds values that are not finite (NaN or Inf), and says where they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or Inf."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return []
    # One transfer from a GPU for all tensors is faster than one for each.
    finite = torch.stack([torch.isfinite(tensor.detach()).all() for _, tensor in named]).tolist()
    return [name for (name, _), fine in zip(named, finite, strict=True) if not fine]


def first_three(places: Sequence[str]) -> str:
    """The first three names of a list as text, and how many more there are."""
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


def prediction_fault(logits: torch.Tensor, names: Sequence[str]) -> str:
    """A message where a prediction holds NaN or Inf, else empty. A sigmoid and a threshold would hide them.

    Args:
        logits: The prediction, of any shape.
        names: The volumes' file names, for the message.
    """
    if bool(torch.isfinite(logits).all()):
        return ""
    return (
        f"the prediction of {', '.join(names)} holds NaN or Inf. Check the weights and the intensities of the volume."
    )
