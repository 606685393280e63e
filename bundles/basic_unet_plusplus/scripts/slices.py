"""Preprocessed volumes as slices: compact in memory or mapped from a cache on disk, drawn by lesion area."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser, ReferenceResolver
from monai.data import NibabelReader
from monai.transforms import Transform
from monai.utils import MetaKeys, convert_to_tensor
from tqdm import tqdm

from scripts.checkpoints import write_durably
from scripts.faults import TrainingError

LEVELS = 255


class ChannelFirstReader(NibabelReader):
    """A volume of NIfTI (H, W, D, C) as (C, H, W, D).

    NIfTI lies in memory with the first dimension innermost, MONAI wants the last one there; PyTorch turns a volume
    round four times sooner than the NumPy call by which MONAI does it.
    """

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Data and meta data of what ``read`` gave, of one file."""
        array, meta = super().get_data(img)
        meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = 0
        # PyTorch takes no array of the other byte order.
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(array).movedim(-1, 0).contiguous().numpy(), meta


class ToSlices(Transform):
    """A preprocessed volume as slices of 8 bits: a quarter of the memory of float32.

    The source has 8 bits as well, and each channel keeps its own range: what the network sees is off by at most 1/510
    of the range of its channel.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Quantise one volume.

        Args:
            data: "image" (C, H, W, D) float, "label" (1, H, W, D) 0 to 1.

        Returns:
            "image" (D, C, H, W) uint8, "low" and "step" (C, 1, 1) float32 with image = low + step * level, "label"
            (D, 1, H, W) uint8 with 1 as 255.

        Raises:
            TrainingError: image or label holds NaN or Inf; names the volume.
        """
        image, label = (
            convert_to_tensor(data[key], dtype=torch.float32, track_meta=False) for key in ("image", "label")
        )
        low, high = torch.aminmax(image.flatten(1), dim=1)
        if not torch.isfinite(torch.stack([low, high])).all():
            source = getattr(data["image"], "meta", {}).get("filename_or_obj", "a volume")
            raise TrainingError(
                f"{Path(str(source)).name}: the preprocessed image holds NaN or Inf. Restore the volume."
            )
        step = (high - low) / LEVELS
        low, step = low[:, None, None], step[:, None, None]
        levels = image.sub(low[..., None]).div_(step[..., None].clamp_min(torch.finfo(step.dtype).tiny))
        return {"image": _by_slice(levels), "label": _by_slice(label * LEVELS), "low": low, "step": step}


def _by_slice(levels: torch.Tensor) -> torch.Tensor:
    """(C, H, W, D) -> (D, C, H, W) uint8, each slice in one piece of memory: it is read many times, alone."""
    return levels.round_().clamp_(0, LEVELS).to(torch.uint8).permute(3, 0, 1, 2).contiguous()


class SliceDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Slices of many volumes; a list of numbers gives a batch.

    Args:
        volumes: of what ``ToSlices`` returns, such as ``monai.data.Dataset``; each is read once, here.
        even_share: share of draws by which every slice of a volume is drawn alike; the others go by lesion area. Every
            volume is drawn alike.
        device: where the slices lie, in 8 bits.
        num_threads: that preprocess volumes.
    """

    def __init__(
        self,
        volumes: Sequence[dict[str, torch.Tensor]],
        even_share: float = 0.1,
        device: torch.device | str = "cpu",
        num_threads: int = 2,
    ) -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            read = pool.map(volumes.__getitem__, range(len(volumes)))
            parts = list(tqdm(read, total=len(volumes), desc="volumes", disable=None))
        self.volumes = [{key: value.to(device) for key, value in part.items()} for part in parts]
        self.index = [(volume, z) for volume, part in enumerate(parts) for z in range(len(part["image"]))]
        self.weights = torch.cat([slice_weights(part["label"], even_share) for part in parts] or [torch.zeros(0)])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch.

        Args:
            numbers: of B slices, 0 to ``len(self) - 1``.

        Returns:
            "image" (B, C, H, W) float32 as the volumes were preprocessed, "label" (B, 1, H, W) float32, 0 to 1.
        """
        chosen = [(self.volumes[volume], z) for volume, z in (self.index[number] for number in numbers)]
        image = torch.stack([volume["image"][z] for volume, z in chosen]).float()
        low, step = (torch.stack([volume[key] for volume, _ in chosen]) for key in ("low", "step"))
        label = torch.stack([volume["label"][z] for volume, z in chosen]).float()
        return {"image": image.mul_(step).add_(low), "label": label.div_(LEVELS)}


def slice_weights(label: torch.Tensor, even_share: float) -> torch.Tensor:
    """Probabilities by which the slices of one volume are drawn.

    Args:
        label: (D, 1, H, W) uint8.
        even_share: share of draws that lesion area has no say in; all of them where there is no lesion.

    Returns:
        (D,) float64 of sum 1.
    """
    area = label.sum((1, 2, 3), dtype=torch.float64)
    even = torch.full_like(area, 1 / len(area))
    return even if area.sum() == 0 else even_share * even + (1 - even_share) * area / area.sum()


def recipe_of(parser: ConfigParser | None, name: str, versions: Any) -> list[Any] | None:
    """All that decides what a part of a config does: its text, the text of whatever it refers to, versions, this code.

    Args:
        parser: of the config that runs; None where no workflow runs it.
        name: of the part.
        versions: of the libraries.

    Returns:
        JSON, None without a parser.
    """
    if parser is None:
        return None
    parts: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        part = waiting.pop()
        # The code stands for itself, wherever the bundle lies.
        if part not in parts and part != "own_scripts":
            parts[part] = parser[part]
            waiting += ReferenceResolver.find_refs_in_config(parts[part], part)
    code = {path.name: path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
    return [parts, versions, code]


class SliceCache(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Preprocessed volumes on disk, mapped into memory: read when used, and only what is used.

    An entry's name is a hash of the content of the volume's files and of the recipe, so that neither a changed file nor
    a changed transform is served an old one. Entries are written whole or not at all; one that does not have the hash
    that stands beside it is made again, with a warning.

    Args:
        data: items of a datalist, "image" and "label" being paths.
        transform: from an item to what ``ToSlices`` returns.
        folder: of the cache; made where it is missing.
        recipe: all that decides what the transform does, JSON, as ``recipe_of`` gives it.

    Raises:
        ValueError: no recipe.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], dict[str, torch.Tensor]],
        folder: str | os.PathLike[str],
        recipe: Any,
    ) -> None:
        if recipe is None:
            raise ValueError("cache_dir: the transforms are not known, run the config by a ConfigWorkflow")
        self.data, self.transform, self.folder = data, transform, Path(folder)
        self.recipe = json.dumps(recipe, sort_keys=True, default=str).encode()
        self.folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """The preprocessed volume of an item, made where it is not there yet."""
        item = self.data[number]
        key = hashlib.sha256(self.recipe)
        for name in ("image", "label"):
            key.update(hashlib.sha256(Path(item[name]).read_bytes()).digest())
        entry = self.folder / f"{key.hexdigest()}.pt"
        proof = entry.with_suffix(".sha256")
        if entry.is_file():
            if proof.is_file() and proof.read_text() == hashlib.sha256(entry.read_bytes()).hexdigest():
                return torch.load(entry, weights_only=True, mmap=True)
            warnings.warn(f"{entry}: damaged, made again", stacklevel=2)
        self._write(entry, proof, self.transform(item))
        return torch.load(entry, weights_only=True, mmap=True)

    def _write(self, entry: Path, proof: Path, volume: dict[str, torch.Tensor]) -> None:
        buffer = io.BytesIO()
        torch.save(volume, buffer)
        content = buffer.getvalue()
        for path, data in ((proof, hashlib.sha256(content).hexdigest().encode()), (entry, content)):
            write_durably(path, data)
