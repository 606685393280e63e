"""Preprocessed volumes as slices: compact in memory or mapped from a cache on disk, drawn by lesion area."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ignite
import monai
import numpy as np
import torch
from monai.bundle import ConfigParser, ReferenceResolver
from monai.data import Dataset
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from tqdm import tqdm

from .faults import PipelineError
from .files import checksum_path, matches_checksum, sha256_file, write_with_checksum
from .transforms import slices_around

LEVELS = 255


class ToSlices(Transform):
    """A preprocessed volume as slices of 8 bits: a quarter of the memory of float32.

    The source has 8 bits as well, and each channel keeps its own range: what the network sees is off by at most 1/510
    of the range of its channel.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Quantise "image" (C, H, W, D) float and "label" (1, H, W, D), 0 to 1; NaN and Inf are refused.

        What it gives: "image" (D, C, H, W) uint8, "low" and "step" (C, 1, 1) float32 with image = low + step * level,
        and "label" (D, 1, H, W) uint8 with 1 as 255.
        """
        image, label = (convert_to_tensor(data[key], torch.float32, track_meta=False) for key in ("image", "label"))
        low, high = torch.aminmax(image.flatten(1), dim=1)
        if not torch.isfinite(torch.stack([low, high])).all():
            name = Path(getattr(data["image"], "meta", {}).get("filename_or_obj", "a volume")).name
            raise PipelineError(f"{name}: the preprocessed image holds NaN or Inf. Restore the volume.")
        step = (high - low) / LEVELS
        low, step = low[:, None, None], step[:, None, None]
        levels = image.sub(low[..., None]).div_(step[..., None].clamp_min(torch.finfo(step.dtype).tiny))
        return {"image": _by_slice(levels), "label": _by_slice(label * LEVELS), "low": low, "step": step}


def _by_slice(levels: torch.Tensor) -> torch.Tensor:
    """(C, H, W, D) -> (D, C, H, W) uint8, each slice in one piece of memory: it is read many times, alone."""
    return levels.round_().clamp_(0, LEVELS).to(torch.uint8).permute(3, 0, 1, 2).contiguous()


class SliceDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Slices of many volumes, which lie on the device in 8 bits; a list of numbers gives a batch.

    ``volumes`` holds what ``ToSlices`` returns, each read once, here; all volumes are equally likely to be drawn.
    ``even_share``: the share of draws in which all slices of a volume are equally likely; others go by lesion area.
    ``around``: slices on either side that come with each slice as channels; beyond the ends the last is repeated.
    """

    def __init__(
        self,
        volumes: Sequence[dict[str, torch.Tensor]],
        even_share: float = 0.1,
        around: int = 0,
        device: torch.device | str = "cpu",
        num_threads: int = 2,
    ) -> None:
        self.around = around
        with ThreadPoolExecutor(num_threads) as pool:
            read = pool.map(volumes.__getitem__, range(len(volumes)))
            parts = list(tqdm(read, total=len(volumes), desc="volumes", disable=None))
        self.volumes = [{key: value.to(device) for key, value in part.items()} for part in parts]
        self.index = [(volume, z) for volume, part in enumerate(parts) for z in range(len(part["image"]))]
        self.weights = torch.cat([slice_weights(part["label"], even_share) for part in parts] or [torch.zeros(0)])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch of B slices: "image" (B, C * (2 * around + 1), H, W) and "label" (B, 1, H, W), 0 to 1, float32."""
        chosen = [(self.volumes[volume], z) for volume, z in (self.index[number] for number in numbers)]
        image = torch.stack([self._around(volume["image"], z) for volume, z in chosen]).float()
        count = 2 * self.around + 1
        low, step = (torch.stack([volume[key].repeat(count, 1, 1) for volume, _ in chosen]) for key in ("low", "step"))
        label = torch.stack([volume["label"][z] for volume, z in chosen]).float()
        return {"image": image.mul_(step).add_(low), "label": label.div_(LEVELS)}

    def _around(self, image: torch.Tensor, z: int) -> torch.Tensor:
        """A slice and those around it, (C * (2 * around + 1), H, W)."""
        return image[slices_around(torch.tensor([z]), self.around, len(image))[0]].flatten(0, 1)


def slice_weights(label: torch.Tensor, even_share: float) -> torch.Tensor:
    """Probabilities by which the slices of one volume are drawn, (D,) float64 of sum 1; label (D, 1, H, W) uint8."""
    area = label.sum((1, 2, 3), dtype=torch.float64)
    even = torch.full_like(area, 1 / len(area))
    return even if area.sum() == 0 else even_share * even + (1 - even_share) * area / area.sum()


def slice_loader(
    slices: SliceDataset, batch_size: int, steps_per_epoch: int, world_size: int = 1, **options: Any
) -> torch.utils.data.DataLoader[dict[str, torch.Tensor]]:
    """A loader that draws whole batches of slices, with replacement, by the weights of the dataset.

    ``world_size`` processes share out a batch evenly. ``options`` are other arguments of PyTorch's ``DataLoader``.
    """
    share = batch_size // world_size
    drawn = torch.utils.data.WeightedRandomSampler(slices.weights.tolist(), steps_per_epoch * share)
    sampler = torch.utils.data.BatchSampler(drawn, batch_size=share, drop_last=True)
    # Seconds without a batch from a loader process, after which the run ends.
    timeout = 120 if options.get("num_workers") else 0
    return torch.utils.data.DataLoader(slices, sampler=sampler, batch_size=None, timeout=timeout, **options)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that have a say in what a training gives."""
    versions = {library.__name__: library.__version__ for library in (torch, monai, ignite, np)}
    return {"python": platform.python_version(), **versions}


def recipe_of(parser: ConfigParser, name: str) -> list[Any]:
    """All that decides what a config's part ``name`` does: its text, that of what it refers to, versions, this code."""
    parts: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        part = waiting.pop()
        # The code stands for itself, wherever the bundle lies.
        if part not in parts and part != "scripts_path":
            parts[part] = parser[part]
            waiting += ReferenceResolver.find_refs_in_config(parts[part], part)
    code = {path.name: path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
    return [parts, library_versions(), code]


def cached_volumes(dataset: Dataset, cache_dir: str | None, workflow: Sequence[Any]) -> Dataset:
    """A dataset as it is or, with a folder ``cache_dir``, behind a ``SliceCache``, which needs the workflow."""
    if not cache_dir:
        return dataset
    if not workflow:
        raise PipelineError("cache_dir: the transforms are not known here. Run the config by a ConfigWorkflow.")
    recipe = recipe_of(workflow[0].parser, "train#preprocessing")
    return SliceCache(dataset.data, dataset.transform, cache_dir, recipe)


class SliceCache(Dataset):
    """Preprocessed volumes on disk, mapped into memory: only what is used is read, when it is used.

    An entry's name is a hash of the content of the volume's files and of the recipe, so that neither a changed file nor
    a changed transform is served an old one. Entries are written whole or not at all; one that does not have the hash
    that stands beside it is made again, with a warning. ``recipe`` is all that decides what ``transform`` gives.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], folder: str | Path, recipe: Any) -> None:
        super().__init__(data, transform)
        self.folder = Path(folder)
        self.recipe = json.dumps(recipe, sort_keys=True, default=str).encode()

    def _transform(self, index: int) -> dict[str, torch.Tensor]:
        """The preprocessed volume of an item, made where it is not there yet."""
        item = self.data[index]
        key = hashlib.sha256(self.recipe)
        for name in ("image", "label"):
            key.update(hashlib.sha256(Path(item[name]).read_bytes()).digest())
        entry = self.folder / f"{key.hexdigest()}.pt"
        # An entry without a checksum, of which nothing is known, is made again as well.
        is_proven = entry.is_file() and checksum_path(entry).is_file()
        if not is_proven or not matches_checksum(entry, sha256_file(entry)):
            if entry.is_file():
                warnings.warn(f"{entry}: damaged, made again", stacklevel=2)
            buffer = io.BytesIO()
            torch.save(self.transform(item), buffer)
            write_with_checksum(entry, buffer.getvalue())
        volume: dict[str, torch.Tensor] = torch.load(entry, weights_only=True, mmap=True)
        return volume
