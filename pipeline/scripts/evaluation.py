"""Evaluation and inference of a bundle, with a check of inputs and weights before the evaluator runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from .config import refuse_removed_keys
from .faults import PipelineError, shown
from .manifest import IMAGE_SUFFIX, refuse_changed_volumes
from .memory import keep_freed_memory
from .records import changed_settings, trained_settings
from .volumes import refuse_faults
from .weights import read_weights

_LOG = logging.getLogger("train")


@dataclass(kw_only=True, eq=False)
class Evaluation:
    """A run of an evaluator over volumes.

    Programs that call ``evaluator.run`` themselves get only the evaluator's handlers, without these checks.
    """

    evaluator: Any
    data: Sequence[Mapping[str, Any]]
    """The items that the evaluator reads; "image" is a path."""
    ckpt_path: str
    """The weights file."""
    bundle_root: str
    """The bundle's folder."""
    dataset_dir: str
    """The folder of the volumes and, where there is one, of ``manifest.json``."""
    output_dir: str
    """The folder of the results."""
    workflow: Sequence[Any]
    """The MONAI workflow that runs the config, in a sequence; empty where no workflow runs it."""

    def run(self) -> None:
        """Predict all volumes.

        Raises:
            PipelineError: The config has keys of earlier versions. A volume cannot be read or has changed since its
                manifest was built. The weights do not match their checksum, record or metadata, or the config.
        """
        keep_freed_memory()
        refuse_removed_keys(self.workflow)
        if not self.data:
            raise PipelineError(f"{self.dataset_dir}: found no *{IMAGE_SUFFIX}{self._other_names()}")
        self._check_weights()
        # A manifest holds the hashes of volumes that were checked when it was built.
        unknown = refuse_changed_volumes(self.dataset_dir, self.data)
        refuse_faults((item for item in unknown if isinstance(item["image"], (str, Path))), voxels=True)
        self.evaluator.run()
        _LOG.info("%d volumes: %s", len(self.data), self.output_dir)

    def _other_names(self) -> str:
        """What the folder of the volumes holds in their place, and what to do."""
        names = sorted(path.name for path in Path(self.dataset_dir).rglob("[!.]*.nii*"))
        if not names:
            return ". Pass --dataset_dir FOLDER."
        return (
            f" among {len(names)} NIfTI files, such as {shown(names[0])}. Rename them to NAME{IMAGE_SUFFIX}, or use "
            "lgg-flair predict."
        )

    def _check_weights(self) -> None:
        """Refuse damaged or exchanged weights, and weights that were trained with other settings than the config's."""
        weights = read_weights(Path(self.ckpt_path), Path(self.bundle_root))
        if not self.workflow:
            return
        config = self.workflow[0].parser.get()
        trained = changed_settings(trained_settings(weights.record, weights.path), config)
        if trained:
            settings = ", ".join(f"{key} {value} (the config: {config.get(key)})" for key, value in trained.items())
            raise PipelineError(
                f"{weights.path}: trained with {settings}. Pass the same values, such as --{next(iter(trained))}, or "
                "add the experiment's file after this config."
            )


class ReportDice:
    """Print the mean DSC of an evaluation, and warn where no volume has a DSC: MONAI's mean is then 0."""

    def attach(self, engine: Engine) -> None:
        """Print when the evaluation ends."""
        engine.add_event_handler(Events.COMPLETED, self._print)

    def _print(self, engine: Any) -> None:
        _LOG.info("val_dsc %.6f", engine.state.metrics["val_dsc"])
        if all(bool(torch.isnan(dsc).all()) for dsc in engine.state.metric_details["val_dsc"]):
            _LOG.warning("no volume has a DSC (no lesion, none predicted): the mean of 0 has no meaning")
