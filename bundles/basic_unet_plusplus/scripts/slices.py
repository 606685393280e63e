"""Slices of preprocessed volumes for training: 8 bits in memory or in a cache on disk, drawn by lesion area."""

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
    """Turns a preprocessed volume into slices of 8 bits, which need a quarter of the memory of float32.

    Each channel keeps its own range, so the error is at most 1/510 of that range. The published slices have 8 bits too.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The volume's slices in 8 bits.

        Args:
            data: "image" (C, H, W, D) float and "label" (1, H, W, D), 0 to 1.

        Returns:
            "image" (D, C, H, W) uint8, "low" and "step" (C, 1, 1) float32 with image = low + step * level, and "label"
            (D, 1, H, W) uint8, in which 255 means 1.

        Raises:
            PipelineError: The image holds NaN or Inf.
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
    """(C, H, W, D) -> (D, C, H, W) uint8, with each slice in one piece of memory, since slices are read one by one."""
    return levels.round_().clamp_(0, LEVELS).to(torch.uint8).permute(3, 0, 1, 2).contiguous()


class SliceDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Slices of many volumes, kept on the device in 8 bits. A list of numbers gives a batch.

    All volumes are equally likely to be drawn.

    Args:
        volumes: Results of ``ToSlices``. Each is read once, when the data set is made.
        even_share: The share of draws in which all slices of a volume are equally likely, 0 to 1. Other draws follow
            the lesion area.
        around: Slices on either side that are added to each slice as channels. Beyond the ends the last slice is
            repeated.
        device: The device on which the slices lie.
        num_threads: Threads that read volumes.
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
        """A batch of B slices: "image" (B, C * (2 * around + 1), H, W) and "label" (B, 1, H, W), 0 to 1, float32."""
        chosen = [(self.volumes[volume], z) for volume, z in (self.index[number] for number in numbers)]
        # A slice is a view of its volume, so a batch is one copy for each key. That matters on CUDA.
        around = [volume["image"][near] for volume, z in chosen for near in self._around(z, len(volume["image"]))]
        image = torch.stack(around).reshape(len(chosen), -1, *around[0].shape[-2:]).float()
        low, step = (
            torch.stack([volume[key] for volume, _ in chosen]).repeat(1, 2 * self.around + 1, 1, 1)
            for key in ("low", "step")
        )
        label = torch.stack([volume["label"][z] for volume, z in chosen]).float()
        return {"image": image.mul_(step).add_(low), "label": label.div_(LEVELS)}

    def _around(self, z: int, depth: int) -> list[int]:
        """The numbers of a slice and its neighbours."""
        return slices_around(torch.tensor([z]), self.around, depth)[0].tolist() if self.around else [z]


def slice_weights(label: torch.Tensor, even_share: float) -> torch.Tensor:
    """The probability to draw each slice of a volume, (D,) float64 with sum 1.

    Args:
        label: The volume's label, (D, 1, H, W) uint8.
        even_share: The share of draws in which all slices are equally likely, 0 to 1.
    """
    area = label.sum((1, 2, 3), dtype=torch.float64)
    even = torch.full_like(area, 1 / len(area))
    return even if area.sum() == 0 else even_share * even + (1 - even_share) * area / area.sum()


def slice_loader(
    slices: SliceDataset, batch_size: int, steps_per_epoch: int, world_size: int = 1, **options: Any
) -> torch.utils.data.DataLoader[dict[str, torch.Tensor]]:
    """A loader that draws batches of slices with replacement, with the probabilities of the data set.

    Args:
        slices: The slices.
        batch_size: Slices in a batch of all processes together.
        steps_per_epoch: Batches in an epoch.
        world_size: The number of processes, which share each batch evenly.
        options: Other arguments of PyTorch's ``DataLoader``.
    """
    share = batch_size // world_size
    drawn = torch.utils.data.WeightedRandomSampler(slices.weights.tolist(), steps_per_epoch * share)
    sampler = torch.utils.data.BatchSampler(drawn, batch_size=share, drop_last=True)
    # The run ends after this many seconds without a batch from a loader process.
    timeout = 120 if options.get("num_workers") else 0
    return torch.utils.data.DataLoader(slices, sampler=sampler, batch_size=None, timeout=timeout, **options)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that influence the result of a training."""
    versions = {library.__name__: library.__version__ for library in (torch, monai, ignite, np)}
    return {"python": platform.python_version(), **versions}


def recipe_of(parser: ConfigParser, name: str) -> list[Any]:
    """Everything that decides what a part of a config does, so that a cache of its results can be trusted.

    Args:
        parser: The config.
        name: The id of the part, such as ``deterministic``.

    Returns:
        The part's text with that of its references, the libraries' versions, and the code of this package.
    """
    parts: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        part = waiting.pop()
        # The code itself is included below, so the folder of the bundle does not matter.
        if part not in parts and part != "scripts_path":
            parts[part] = parser[part]
            waiting += ReferenceResolver.find_refs_in_config(parts[part], part)
    code = {path.name: path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
    return [parts, library_versions(), code]


def cached_volumes(dataset: Dataset, cache_dir: str | None, workflow: Sequence[Any]) -> Dataset:
    """A data set, with a cache on disk if ``cache_dir`` is given.

    Args:
        dataset: The data set of volumes.
        cache_dir: The folder of the cache; None for no cache.
        workflow: The MONAI workflow that runs the config, in a sequence.

    Raises:
        PipelineError: There is a ``cache_dir``, but no workflow.
    """
    if not cache_dir:
        return dataset
    if not workflow:
        raise PipelineError(
            "cache_dir: the transforms are not known without a workflow. Run the config by MONAI's ConfigWorkflow."
        )
    recipe = recipe_of(workflow[0].parser, "train#preprocessing")
    return SliceCache(dataset.data, dataset.transform, cache_dir, recipe)


class SliceCache(Dataset):
    """Preprocessed volumes on disk, mapped into memory, so that only the used parts are read.

    An entry's name is a hash of the volume's files and of the recipe, so a changed file or transform gets a new entry.
    Entries are written completely or not at all. A damaged entry is made again, with a warning.

    Args:
        data: Items with the paths "image" and "label".
        transform: The preprocessing of an item.
        folder: The folder of the cache.
        recipe: Everything that decides the result of ``transform``, as values that JSON can hold.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], folder: str | Path, recipe: Any) -> None:
        super().__init__(data, transform)
        self.folder = Path(folder)
        self.recipe = json.dumps(recipe, sort_keys=True, default=str).encode()

    def _transform(self, index: int) -> dict[str, torch.Tensor]:
        """The preprocessed volume of an item, from the cache or made now."""
        item = self.data[index]
        key = hashlib.sha256(self.recipe)
        for name in ("image", "label"):
            key.update(hashlib.sha256(Path(item[name]).read_bytes()).digest())
        entry = self.folder / f"{key.hexdigest()}.pt"
        # An entry without a checksum may be damaged, so it is made again too.
        is_proven = entry.is_file() and checksum_path(entry).is_file()
        if not is_proven or not matches_checksum(entry, sha256_file(entry)):
            if entry.is_file():
                warnings.warn(f"{entry}: damaged, made again", stacklevel=2)
            buffer = io.BytesIO()
            torch.save(self.transform(item), buffer)
            write_with_checksum(entry, buffer.getvalue())
        volume: dict[str, torch.Tensor] = torch.load(entry, weights_only=True, mmap=True)
        return volume
