"""Evaluation and inference of a bundle: inputs and weights are checked before the evaluator runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from .config import refuse_removed_keys, refuse_text_switches
from .faults import PipelineError
from .machine import keep_freed_memory
from .manifest import IMAGE_SUFFIX, refuse_changed_volumes
from .records import changed_settings, trained_settings
from .volumes import image_faults
from .weights import read_weights

_LOG = logging.getLogger("train")


class Evaluation:
    """A run of an evaluator over volumes.

    ``run`` refuses keys of earlier versions, volumes that the network cannot read or that have changed since their
    manifest was built, and weights that are not what is known of them. Programs that run the evaluator themselves have
    its handlers alone.

    Args:
        evaluator: The evaluator.
        data: The items that it reads; "image" is a path.
        ckpt_path: The weights that its handler loads.
        bundle_root: The bundle's folder.
        dataset_dir: The folder of the volumes and of ``manifest.json``, where there is one.
        output_dir: The folder of what it writes.
        workflow: The MONAI workflow that runs the config, alone in a sequence.
    """

    def __init__(
        self,
        *,
        evaluator: Any,
        data: Sequence[Mapping[str, Any]],
        ckpt_path: str,
        bundle_root: str,
        dataset_dir: str,
        output_dir: str,
        workflow: Sequence[Any],
    ) -> None:
        self.evaluator, self.data, self.workflow = evaluator, data, workflow
        self.ckpt_path, self.bundle_root = Path(ckpt_path), Path(bundle_root)
        self.dataset_dir, self.output_dir = dataset_dir, output_dir

    def run(self) -> None:
        """Check, then predict all volumes.

        Raises:
            PipelineError: A volume, the weights or the config is refused.
        """
        keep_freed_memory()
        refuse_removed_keys(self.workflow)
        refuse_text_switches(self.workflow, "crop_to_head", "normalize_head")
        if not self.data:
            raise PipelineError(f"{self.dataset_dir}: holds no *{IMAGE_SUFFIX}. Pass --dataset_dir FOLDER.")
        self._check_weights()
        refuse_changed_volumes(self.dataset_dir, self.data)
        faults = image_faults(Path(item["image"]) for item in self.data if isinstance(item["image"], (str, Path)))
        if faults:
            raise PipelineError("\n".join(f"{path}: {fault}" for path, fault in faults.items()))
        self.evaluator.run()
        _LOG.info("%d volumes: %s", len(self.data), self.output_dir)

    def _check_weights(self) -> None:
        """Refuse weights that are not what is known of them, or were trained with other settings than the config's."""
        weights = read_weights(self.ckpt_path, self.bundle_root)
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
