"""Evaluation and inference of a bundle: inputs and weights are checked before the evaluator runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from .config import refuse_removed_keys
from .faults import PipelineError
from .manifest import IMAGE_SUFFIX, refuse_changed_volumes
from .memory import keep_freed_memory
from .records import changed_settings, trained_settings
from .volumes import refuse_faults
from .weights import read_weights

_LOG = logging.getLogger("train")


@dataclass(kw_only=True, eq=False)
class Evaluation:
    """A run of an evaluator over volumes. Programs that run the evaluator themselves have its handlers alone."""

    evaluator: Any
    data: Sequence[Mapping[str, Any]]
    """The items that it reads; "image" is a path."""
    ckpt_path: str
    bundle_root: str
    dataset_dir: str
    """The folder of the volumes and of ``manifest.json``, where there is one."""
    output_dir: str
    workflow: Sequence[Any]
    """The MONAI workflow that runs the config, alone in a sequence."""

    def run(self) -> None:
        """Predict all volumes.

        Raises:
            PipelineError: The config has keys of earlier versions, a volume cannot be read or has changed since its
                manifest was built, or the weights are not what is known of them.
        """
        keep_freed_memory()
        refuse_removed_keys(self.workflow)
        if not self.data:
            raise PipelineError(f"{self.dataset_dir}: holds no *{IMAGE_SUFFIX}. Pass --dataset_dir FOLDER.")
        self._check_weights()
        refuse_changed_volumes(self.dataset_dir, self.data)
        files = [item for item in self.data if isinstance(item["image"], (str, Path))]
        refuse_faults(files)
        try:
            self.evaluator.run()
        except Exception:
            # What a volume without a head leads to is any error of any transform.
            refuse_faults(files, voxels=True)
            raise
        _LOG.info("%d volumes: %s", len(self.data), self.output_dir)

    def _check_weights(self) -> None:
        """Refuse weights that are not what is known of them, or were trained with other settings than the config's."""
        weights = read_weights(Path(self.ckpt_path), Path(self.bundle_root))
        if not self.workflow:
            return
        config = self.workflow[0].parser.get()
        trained = changed_settings(trained_settings(weights.record, weights.path), config)
        if trained:
            told = ", ".join(f"{key} {value} (the config: {config.get(key)})" for key, value in trained.items())
            raise PipelineError(
                f"{weights.path}: trained with {told}. Pass the same by --{next(iter(trained))} and so on, or the "
                "experiment's file after this config."
            )


class ReportDice:
    """Print the mean DSC of an evaluation; say where no volume has one, since DiceMetric's mean of nothing is 0."""

    def attach(self, engine: Engine) -> None:
        """Print when the evaluation ends."""
        engine.add_event_handler(Events.COMPLETED, self._print)

    def _print(self, engine: Any) -> None:
        _LOG.info("val_dsc %.6f", engine.state.metrics["val_dsc"])
        if all(bool(torch.isnan(dsc).all()) for dsc in engine.state.metric_details["val_dsc"]):
            _LOG.warning("no volume has a DSC (no lesion, none predicted): the 0 stands for nothing")
