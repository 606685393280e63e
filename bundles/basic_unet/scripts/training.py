"""The training of a bundle: refused where it cannot run, resumed, run, and recorded."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EarlyStopping, global_step_from_engine
from monai.engines import default_prepare_batch

from . import metrics
from .checkpoints import DurableSaver, checkpoints_in, newest
from .config import REMOVED_FROM_TRAINING, config_without_overrides, refuse_removed_keys
from .faults import PipelineError, explain_faults
from .files import held, locked, sha256_file, write_durably, write_with_checksum
from .handlers import WeightAverage
from .machine import check_shared_memory
from .manifest import MANIFEST_NAME, is_pseudonymised, read_manifest_json, refuse_changed_volumes
from .records import (
    PATIENTS,
    PLACE_KEYS,
    RECORD,
    RECORD_VERSION,
    as_text,
    changed_settings,
    for_prediction,
    has_other_names,
    knows_all_patients,
    load_record,
    seen_patients,
    trained_settings,
)
from .slices import library_versions
from .weights import WEIGHTS, Weights, load_state, read_state, read_weights, shipped_sha256, weights_in

BEGAN = "checkpoint.json"
"""The record of how a training began, beside its checkpoints."""
RUN = "run.json"
"""How far a training came: ``running`` or, written last, ``completed``."""

_LOG = logging.getLogger("train")


class PrepareBatch:
    """A batch brought to the device, and augmented there by random transforms of a whole batch."""

    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **options: Any) -> Any:
        """Image and label, as MONAI's trainer takes them; ``options`` are its ``to_kwargs``."""
        moved = {key: value.to(device, non_blocking=non_blocking, **options) for key, value in batch.items()}
        return default_prepare_batch(self.transforms(moved), device)


@dataclass(kw_only=True)
class Setup:
    """What a training is given: data, folder, budget. It is checked before slices are read and a network is built.

    The data are those of this process; ``batch_size`` is of all ``world_size`` processes together. ``workflow`` holds
    the MONAI workflow that runs the config, or nothing.
    """

    training_data: Sequence[Mapping[str, Any]]
    validation_data: Sequence[Mapping[str, Any]]
    dataset_dir: str
    ckpt_dir: str
    workflow: Sequence[Any]
    batch_size: int
    world_size: int = 1
    amp: bool = False
    init: str | None = None
    """Folder or file of the weights that the training starts from; None: from scratch."""
    resume: bool | str = False
    allow_different: bool | str = False

    def __post_init__(self) -> None:
        self.folder, self.is_first = Path(self.ckpt_dir), idist.get_rank() == 0
        # MONAI's command line reads True as a switch and true as text.
        self.resume = str(self.resume).lower() == "true"
        self.allow_different = str(self.allow_different).lower() == "true"
        self.config: dict[str, Any] = dict(self.workflow[0].parser.config) if self.workflow else {}
        self.facts: dict[str, Any] = {}
        self.initial: Weights | None = None

    def check(self) -> None:
        """Refuse what cannot be trained or resumed; nothing is written. A second call does nothing."""
        if self.facts:
            return
        explain_faults(self._how_to_go_on)  # in place of the config's, which knows no folder
        refuse_removed_keys(self.workflow, REMOVED_FROM_TRAINING)
        if self.batch_size % self.world_size:
            raise PipelineError(
                f"a batch of {self.batch_size} cannot be shared out evenly to {self.world_size} processes: pass "
                "another --batch_size."
            )
        if self.is_first and self.folder.is_dir():
            with held(self.folder):  # refused where another training runs, before a word on its checkpoints
                pass
        patients = self._patients()
        found = checkpoints_in(self.folder)
        if found and not self.resume:
            raise PipelineError(
                f"{self.folder}: holds checkpoints of an interrupted training. Pass --resume True to go on with it, or "
                "another --ckpt_dir, or delete them."
            )
        if self.resume and not found:
            raise PipelineError(
                f"{self.folder}: nothing to resume, no checkpoint_*.pt in it (a finished training leaves none and "
                "cannot be extended). Start without --resume."
            )
        facts = self._facts(patients)
        facts |= self._start(facts)
        if self.resume:
            self._refuse_changes(json.loads(as_text(facts)))
        refuse_changed_volumes(self.dataset_dir, [*self.training_data, *self.validation_data])
        self._warn_of_shipped_weights()
        self.facts = facts

    def _how_to_go_on(self) -> str:
        if checkpoints_in(self.folder):
            return "--resume True goes on from the newest checkpoint."
        return "No epoch has ended, there is no checkpoint to resume from: start again."

    def _start(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded of the weights that the training starts from; nothing from scratch.

        ``training_patients`` are None where no record tells them. ``init`` in it is of the training before, if any.
        """
        if self.init is None:
            return {}
        file = weights_in(Path(self.init))
        if self.resume and file.resolve().parent == self.folder.resolve():
            # This training may have replaced them by its own.
            return {"init": load_record(self.folder / BEGAN).get("init")}
        self.initial = read_weights(file, file.absolute().parent.parent, "--init")
        record = self.initial.record
        self._check_start(record)
        self._warn_of_seen_patients(record, facts)
        is_of_bundle = file.parent.name == Path(WEIGHTS).parent.name
        return {
            "init": {
                "name": file.absolute().parent.parent.name if is_of_bundle else file.name,
                "sha256": self.initial.sha256,
                **{key: record.get(key) for key in PATIENTS},
                "init": record.get("init"),
            }
        }

    def _check_start(self, record: Mapping[str, Any]) -> None:
        """Refuse weights of another kind of network; say where they saw slices at other settings."""
        try:
            trained = changed_settings(trained_settings(record, Path(str(self.init))), self.config)
        except PipelineError:  # settings that cannot be told; the weights can be used all the same
            return
        before, now = (part.get("network_def") or {} for part in (trained, self.config))
        if before.get("_target_", now.get("_target_")) != now.get("_target_"):
            raise PipelineError(
                f"{self.init}: weights of {before['_target_']} (expected {now['_target_']}). Pass --init of the same "
                "bundle, or train the bundle of these weights."
            )
        told = ", ".join(
            f"{key} {value} (now {self.config.get(key)})" for key, value in trained.items() if key != "network_def"
        )
        if told and self.is_first:
            _LOG.warning("the weights of --init were trained with other settings: %s", told)

    def _warn_of_seen_patients(self, record: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Say which validation patients the weights that the training starts from were trained on."""
        seen = set(seen_patients(record))
        own = [item["patient"] for item in self.validation_data if "patient" in item]
        shares: Any = idist.all_gather(json.dumps(own))
        validation = sorted({str(patient) for share in shares for patient in json.loads(share)})
        known = [patient for patient in validation if patient in seen]
        if not self.is_first or not validation:
            return
        reason = ""
        if not knows_all_patients(record):
            reason = f"their {RECORD} does not name all" if record else f"there is no {RECORD}"
        elif has_other_names(record, facts["manifest_sha256"], pseudonymised=bool(facts["pseudonymised"])):
            reason = "their manifest or this one has pseudonyms"
        if reason:
            _LOG.warning("which patients the weights of --init were trained on is not known: %s", reason)
        if known:
            _LOG.warning(
                "%d of %d validation patients were trained on by the weights of --init, their scores are not of unseen "
                "patients: %s",
                len(known),
                len(validation),
                ", ".join(known),
            )

    def _patients(self) -> list[int]:
        """The training patients of each process."""
        counts: list[Any] = [idist.all_gather(len(data)) for data in (self.training_data, self.validation_data)]
        training, validation = counts
        if min(training) == 0:
            raise PipelineError(
                f"{Path(self.dataset_dir, MANIFEST_NAME)}: has no training patients, or fewer than processes. Build it "
                "with another split."
            )
        if min(validation) == 0 < max(validation):
            raise PipelineError(
                "fewer validation patients than processes: start fewer, or build the manifest with another split."
            )
        if not max(validation):
            _LOG.warning("no validation patients: no validation, no best checkpoint")
        return list(training)

    def _facts(self, patients_per_process: list[int]) -> dict[str, Any]:
        """Config, data, machine and versions, for the record."""
        own = config_without_overrides(self.workflow[0].config_root_path / "train.json") if self.workflow else {}
        patients = [item["patient"] for item in self.training_data if "patient" in item]
        shares: Any = idist.all_gather(json.dumps(patients))  # a list of texts
        manifest = Path(self.dataset_dir, MANIFEST_NAME)
        # Of data that are not of a manifest neither patients nor manifest are known.
        is_of_manifest = manifest.is_file() and all("patient" in item for item in self.training_data)
        content, sha256 = read_manifest_json(manifest) if is_of_manifest else ({}, None)
        return {
            "record_version": RECORD_VERSION,
            "prediction": for_prediction(self.config, own),
            "config": self.config,
            "training_patients": sorted(patient for share in shares for patient in json.loads(share)),
            "processes": self.world_size,
            "patients_per_process": patients_per_process,
            "slices_per_process_and_step": self.batch_size // self.world_size,
            "manifest_sha256": sha256,
            "pseudonymised": is_pseudonymised(content) if is_of_manifest else None,
            "threads": torch.get_num_threads(),
            "amp": self.amp,
            "versions": library_versions(),
        }

    def _refuse_changes(self, now: Mapping[str, Any]) -> None:
        """Refuse to resume a training of another config, manifest, machine or version, unless it may be."""
        path = self.folder / BEGAN
        before = load_record(path, "Restore it; without it, delete checkpoint* there and begin again.")
        if before.get("record_version") != RECORD_VERSION:
            raise PipelineError(
                f"{path}: this training began with another version of the bundle, whose checkpoints this one does not "
                "read. End it with that version, or delete checkpoint* there and begin again."
            )
        # amp is compared by its value on this device and init by the weights' hash, not by their text.
        may_change = {*PLACE_KEYS, "amp", "init"}
        changed = [key for key in _differing(before["config"], now["config"]) if key not in may_change]
        named = {
            "manifest_sha256": "the manifest",
            "processes": "the number of processes",
            "amp": f"amp on this device (pass --amp {before.get('amp')})",
        }
        changed += [name for key, name in named.items() if before.get(key) != now[key]]
        starts = [(facts.get("init") or {}).get("sha256") for facts in (before, now)]
        changed += ["the weights of --init"] if starts[0] != starts[1] else []
        changed += _differing(before.get("versions", {}), now["versions"]).values()
        if changed and not self.allow_different:
            raise PipelineError(
                f"cannot resume, changed since the training began: {', '.join(changed)}. Set it back, or pass "
                "--allow_different True to go on all the same."
            )
        if changed:
            _LOG.warning("changed since the training began, goes on all the same: %s", ", ".join(changed))

    def _warn_of_shipped_weights(self) -> None:
        shipped = shipped_sha256(self.workflow[0].config_root_path.parent) if self.workflow else None
        weights = self.folder / Path(WEIGHTS).name
        if self.is_first and weights.is_file() and shipped == sha256_file(weights):
            _LOG.warning(
                f"the weights that the bundle came with are in {self.folder}, and the end of this training replaces "
                "them: pass another --ckpt_dir to keep them"
            )


@dataclass(kw_only=True)
class Training:
    """One training in one folder.

    ``run`` checks everything before it writes to the folder. Where the setup says so, it goes on from the newest whole
    checkpoint, to the bit as if nothing had happened. It keeps the two newest checkpoints and the best weights, and
    leaves ``model.pt``, ``model_best.pt``, ``training.json`` and ``run.json``. Programs that call ``trainer.run``
    themselves, such as MONAI's federated learning, get the trainer's handlers only: no checkpoints, no record, and no
    weights to start from.
    ``early_stop_patience`` is the number of validations without a better DSC before training stops; 0: never.
    """

    setup: Setup
    trainer: Any
    evaluator: Any
    ema: WeightAverage
    lr_scheduler: Any
    seed: int
    image_size: int
    early_stop_patience: int = 0

    def __post_init__(self) -> None:
        self.folder, self.is_first, self.saver = self.setup.folder, self.setup.is_first, DurableSaver(self.setup.folder)
        self.early_stop = EarlyStopping(self.early_stop_patience or 10**9, metrics.validation_dsc, self.trainer)
        # What a resumed training goes on from.
        self.checkpoint_objects = {
            "trainer": self.trainer,
            "network": self.ema.model,
            "ema": self.ema,
            "optimizer": self.trainer.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "early_stop": self.early_stop,
            **({"scaler": self.trainer.scaler} if self.trainer.scaler else {}),
        }

    def run(self) -> None:
        """Train; one training at a time in a folder, which the first of several processes holds for all."""
        self.setup.check()
        with locked(self.folder) if self.is_first else contextlib.nullcontext():
            self._check()
            if self.setup.resume:
                self._load()
            elif self.setup.initial:
                self._start_from(self.setup.initial)
            idist.barrier()  # no process removes what another still reads
            self._attach()
            # A training that had come to its end, or had stopped early, does not go on.
            stopped_early = self.early_stop.counter >= self.early_stop.patience
            if self.trainer.state.epoch < self.trainer.state.max_epochs and not stopped_early:
                self.trainer.run()
            self._finish()

    def _check(self) -> None:
        """Refuse a trainer that would leave no result, and loader processes that would wait for ever."""
        if not self.ema.is_attached:
            raise PipelineError(
                "train#handlers: does not attach the average of the weights, which is the result. Keep the bundle's "
                "handlers and add yours to them."
            )
        share = self.setup.batch_size // self.setup.world_size
        check_shared_memory(getattr(self.trainer.data_loader, "num_workers", 0), 16 * share * self.image_size**2)

    def _start_from(self, given: Weights) -> None:
        """Start from weights; their average starts from them too."""
        state = read_state(given.data, given.path, self.trainer.state.device)
        load_state(self.ema.model, state, given.path, "the one to be trained")
        if self.is_first:
            _LOG.info("starts from %s (SHA-256 %s)", given.path, given.sha256)

    def _load(self) -> None:
        """Load the newest checkpoint; refuse other settings than it holds, which would not take effect."""
        wanted = self._restored_settings()
        state = newest(self.folder, self.trainer.state.device)
        Checkpoint.load_objects(self.checkpoint_objects, state)
        differing = _differing(self._restored_settings(), wanted)
        if differing:
            raise PipelineError(
                f"cannot resume with other settings than the checkpoint holds: {', '.join(differing.values())}. They "
                "would not take effect, also with --allow_different. Set them back, or begin a new training."
            )
        network = state["network"]  # once more at the start, where a CheckpointLoader may have loaded others
        self.trainer.add_event_handler(Events.STARTED, lambda: self.ema.model.load_state_dict(network))

    def _restored_settings(self) -> dict[str, Any]:
        """Settings that come back with a checkpoint, whatever the config says."""
        groups, state = self.trainer.optimizer.state_dict()["param_groups"], self.trainer.state
        varying = ("params", "lr", "momentum", "betas")  # with the schedule
        settings = {key: value for group in groups for key, value in group.items() if key not in varying}
        schedule = self.lr_scheduler.state_dict()
        settings |= {key: value for key, value in schedule.items() if key != "last_epoch" and not key.startswith("_")}
        epoch_length = state.epoch_length or len(self.trainer.data_loader)
        return {**settings, "max_epochs": state.max_epochs, "steps_per_epoch": epoch_length}

    def _attach(self) -> None:
        """Attach the record of the beginning, checkpoints, best weights and early stop."""
        epoch = global_step_from_engine(self.trainer)
        checkpoint = Checkpoint(self.checkpoint_objects, self.saver, n_saved=2, global_step_transform=epoch)
        # After the handlers of the config, of which one may refuse the training.
        self.trainer.add_event_handler(Events.STARTED, self._begin)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._save_best)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.early_stop)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)

    def _begin(self) -> None:
        if self.is_first:
            self._say("running")
            write_durably(self.folder / BEGAN, as_text(self._with_weights()).encode())

    def _save_best(self, engine: Engine) -> None:
        best = self.early_stop.best_score
        if best is None or metrics.validation_dsc(engine) > best:
            self.saver(self.ema.state_dict(), "model_best.pt")

    def _with_weights(self, *names: str) -> dict[str, Any]:
        weights = {name: sha256_file(self.folder / name) for name in names}
        facts = {**self.setup.facts, "seed": self.seed, "device": str(self.trainer.state.device)}
        return {**facts, "best_validation_dsc": self.early_stop.best_score, "weights": weights}

    def _finish(self) -> None:
        """Write weights and record, remove the checkpoints, say that it is completed."""
        self.saver(self.ema.state_dict(), "model.pt")
        if not self.is_first:
            return
        best = self.early_stop.best_score
        names = ["model.pt"] if best is None else ["model.pt", "model_best.pt"]
        write_with_checksum(self.folder / RECORD, as_text(self._with_weights(*names)).encode())
        # The record of the beginning goes last: resuming needs it.
        for path in [*self.folder.glob("checkpoint_*.pt"), *self.folder.glob("checkpoint_*.sha256")]:
            path.unlink(missing_ok=True)
        (self.folder / BEGAN).unlink(missing_ok=True)
        self._say("completed")
        said = "" if best is None else f"best validation DSC {best:.4f} (model_best.pt), "
        _LOG.info("%sweights: %s", said, self.folder / "model.pt")

    def _say(self, status: str) -> None:
        content = {"status": status, "resumed": self.setup.resume}
        write_durably(self.folder / RUN, json.dumps(content, indent=2).encode())


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Each name whose value is another now, and how both are told."""
    return {key: f"{key} {before.get(key)} (now {value})" for key, value in now.items() if before.get(key) != value}
