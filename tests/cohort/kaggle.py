"""A replacement for kagglehub with the real signature. No test connects to Kaggle."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any


def archive(root: Path, *, slices: bool = True) -> Path:
    """Write what Kaggle's archive unpacks to: the folder and a second copy nested in it."""
    for folder in (root / "kaggle_3m", root / "lgg-mri-segmentation" / "kaggle_3m"):
        patient = folder / "TCGA_XX_0001_19990101"
        patient.mkdir(parents=True)
        if slices:
            (patient / "TCGA_XX_0001_19990101_1.tif").write_bytes(b"stand-in")
    return root


def stand_in(cache: Path) -> Any:
    """kagglehub 1.0: ``dataset_download`` with ``output_dir``; ``calls`` records its arguments."""
    module: Any = ModuleType("kagglehub")
    module.calls = []

    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        module.calls.append((handle, output_dir))
        root = Path(output_dir) if output_dir else cache
        if not (root / "kaggle_3m").exists():
            archive(root)
        return str(root)

    module.dataset_download = dataset_download
    return module


def make_old(module: Any, root: Path) -> None:
    """An old version, which has no ``output_dir`` and always returns its cache."""

    def dataset_download(handle, path=None, *, force_download=False):
        module.calls.append((handle, None))
        return str(root)

    module.dataset_download = dataset_download
