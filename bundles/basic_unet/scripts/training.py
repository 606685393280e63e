"""The training of a bundle: checks before the start, resuming, the run itself, and its record."""

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
from monai.utils import set_determinism
from torch.optim.swa_utils import update_bn

from . import metrics
from .checkpoints import DurableSaver, checkpoints_in, newest
from .config import REMOVED_FROM_TRAINING, config_without_overrides, refuse_removed_keys
from .faults import PipelineError, explain_faults, shown
from .files import held, locked, sha256_file, write_durably, write_with_checksum
from .handlers import WeightAverage
from .machine import check_shared_memory, uses_bfloat16
from .manifest import (
    MANIFEST_NAME,
    is_pseudonymised,
    lists_images,
    person,
    read_manifest_json,
    refuse_changed_volumes,
)
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
from .volumes import refuse_faults
from .weights import WEIGHTS, Weights, load_state, read_state, read_weights, shipped_sha256, weights_in

BEGAN, RESTORED = "checkpoint.json", "restored_settings"
"""File name of the record of a training's start, beside its checkpoints."""
RUN = "run.json"
"""File name of a training's status: ``running`` or, written last, ``completed``."""

_LOG = logging.getLogger("train")


def _who(item: Mapping[str, Any]) -> str:
    """The person of a patient; the image's path where the patient is not known."""
    return person(str(item["patient"])) if "patient" in item else str(item["image"])


class PrepareBatch:
    """Moves a batch to the device and augments it there.

    Args:
        transforms: Random transforms of a whole batch.
    """

    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **options: Any) -> Any:
        """Image and label, as MONAI's trainer expects them; ``options`` are the trainer's ``to_kwargs``."""
        moved = {key: value.to(device, non_blocking=non_blocking, **options) for key, value in batch.items()}
        return default_prepare_batch(self.transforms(moved), device)


@dataclass(kw_only=True)
class Setup:
    """Data, folder and settings of a training, for a check before slices are read and a network is built."""

    training_data: Sequence[Mapping[str, Any]]
    """The training patients of this process."""
    validation_data: Sequence[Mapping[str, Any]]
    """The validation patients of this process."""
    dataset_dir: str
    """The folder of ``manifest.json``."""
    ckpt_dir: str
    """The folder of checkpoints and weights."""
    workflow: Sequence[Any]
    """The MONAI workflow that runs the config, in a sequence; empty where no workflow runs it."""
    batch_size: int
    """Slices in a step of all processes together."""
    world_size: int = 1
    """The number of processes that train together."""
    amp: bool = False
    """Whether forward passes use 16 bits."""
    init: str | None = None
    """Folder or file of the weights that the training starts from; None for random weights."""
    resume: bool | str = False
    """Whether to continue from the newest checkpoint."""
    allow_different: bool | str = False
    """Whether to resume although config, manifest, machine or versions have changed."""

    def __post_init__(self) -> None:
        self.folder, self.is_first = Path(self.ckpt_dir), idist.get_rank() == 0
        # MONAI's command line reads True as a bool and true as text.
        self.resume = str(self.resume).lower() == "true"
        self.allow_different = str(self.allow_different).lower() == "true"
        self.config: dict[str, Any] = dict(self.workflow[0].parser.config) if self.workflow else {}
        self.facts: dict[str, Any] = {}
        self.initial: Weights | None = None

    def check(self) -> None:
        """Check that the training can run or resume. It writes nothing, and a second call does nothing.

        Raises:
            PipelineError: Settings, data, checkpoints or weights do not allow it.
        """
        if self.facts:
            return
        explain_faults(self._how_to_go_on)  # replaces the config's, which does not know the folder
        refuse_removed_keys(self.workflow, REMOVED_FROM_TRAINING)
        if self.batch_size % self.world_size:
            raise PipelineError(
                f"a batch of {self.batch_size} slices cannot be shared evenly by {self.world_size} processes: pass "
                "another --batch_size."
            )
        if self.is_first and self.folder.is_dir():
            with held(self.folder):  # another running training is reported before its checkpoints
                pass
        patients = self._patients()
        self._refuse_common_patients()
        found = checkpoints_in(self.folder)
        if found and not self.resume:
            raise PipelineError(
                f"{self.folder}: holds checkpoints of an interrupted training. Pass --resume True to continue it, pass "
                "another --ckpt_dir, or delete the checkpoints."
            )
        if self.resume and not found:
            raise PipelineError(
                f"{self.folder}: nothing to resume, found no checkpoint_*.pt (a finished training leaves none and "
                "cannot be extended). Start without --resume."
            )
        facts = self._facts(patients)
        facts |= self._start(facts)
        if self.resume:
            facts = self._of_its_start(json.loads(as_text(facts)))
        # A manifest holds the hashes of volumes that were checked when it was built.
        unknown = refuse_changed_volumes(self.dataset_dir, [*self.training_data, *self.validation_data])
        refuse_faults((item for item in unknown if isinstance(item["image"], (str, Path))), voxels=True)
        self._warn_of_shipped_weights()
        self.facts = facts

    def _how_to_go_on(self) -> str:
        if checkpoints_in(self.folder):
            return "Pass --resume True to continue from the newest checkpoint."
        return "No epoch has ended, so there is no checkpoint to resume from: start again."

    def _start(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The entry of the record about the weights that the training starts from; empty for random weights.

        ``training_patients`` are None where no record names them. The inner ``init`` is the entry of the training of
        these weights, if any.
        """
        if self.init is None:
            return {}
        file = weights_in(Path(self.init))
        if self.resume and file.resolve().parent == self.folder.resolve():
            # This training may already have written its own weights over them.
            return {"init": load_record(self.folder / BEGAN).get("init")}
        self.initial = read_weights(file, file.absolute().parent.parent, "--init")
        record = self.initial.record
        if self.config:
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
        """Refuse weights of another kind of network, and warn where they were trained with other settings."""
        try:
            trained = changed_settings(trained_settings(record, Path(str(self.init))), self.config)
        except PipelineError:  # the settings are not known, but the weights can be used
            return
        before, now = (part.get("network_def") or {} for part in (trained, self.config))
        if before.get("_target_", now.get("_target_")) != now.get("_target_"):
            raise PipelineError(
                f"{self.init}: weights of {before['_target_']} (expected {now['_target_']}). Pass --init with weights "
                "of the same bundle, or train the bundle of these weights."
            )
        others = ", ".join(
            f"{key} {value} (now {self.config.get(key)})" for key, value in trained.items() if key != "network_def"
        )
        if others and self.is_first:
            _LOG.warning("the weights of --init were trained with other settings: %s", others)

    def _warn_of_seen_patients(self, record: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Warn of validation patients whose person the initial weights were trained on."""
        seen = {person(patient) for patient in seen_patients(record)}
        own = [item["patient"] for item in self.validation_data if "patient" in item]
        shares: Any = idist.all_gather(json.dumps(own))
        validation = sorted({str(patient) for share in shares for patient in json.loads(share)})
        known = [patient for patient in validation if person(patient) in seen]
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
                "the weights of --init were trained on %d of %d validation patients, whose scores are not of unseen "
                "patients: %s",
                len(known),
                len(validation),
                ", ".join(known),
            )

    def _patients(self) -> list[int]:
        """The number of training patients of each process."""
        counts: list[Any] = [idist.all_gather(len(data)) for data in (self.training_data, self.validation_data)]
        training, validation = counts
        if min(training) == 0:
            raise PipelineError(
                f"{Path(self.dataset_dir, MANIFEST_NAME)}: has no training patients, or fewer than processes. Build it "
                "with another split, or start fewer processes."
            )
        if min(validation) == 0 < max(validation):
            raise PipelineError(
                "fewer validation patients than processes: start fewer processes, or build the manifest with another "
                "split."
            )
        if not max(validation):
            _LOG.warning("no validation patients: no validation, no best checkpoint")
        return list(training)

    def _refuse_common_patients(self) -> None:
        """Refuse training patients that are also validated: their scores would be better than those of new patients."""
        sets = []
        for data in (self.training_data, self.validation_data):
            shares: Any = idist.all_gather(json.dumps([_who(item) for item in data]))
            sets.append({who for share in shares for who in json.loads(share)})
        if common := sorted(sets[0] & sets[1]):
            raise PipelineError(
                f"{Path(self.dataset_dir, MANIFEST_NAME)}: one person trains and validates: {shown(common[0])} "
                f"({len(common)} in all; expected none). Put all exams of a person into one section or fold."
            )

    def _facts(self, patients_per_process: list[int]) -> dict[str, Any]:
        """The record's entries about config, data, machine and versions."""
        own = config_without_overrides(self.workflow[0].config_root_path / "train.json") if self.workflow else {}
        patients = [item["patient"] for item in self.training_data if "patient" in item]
        shares: Any = idist.all_gather(json.dumps(patients))  # a list of texts
        manifest = Path(self.dataset_dir, MANIFEST_NAME)
        content, sha256 = read_manifest_json(manifest) if manifest.is_file() else ({}, None)
        is_of_manifest = lists_images(content, self.training_data)
        return {
            "record_version": RECORD_VERSION,
            "prediction": for_prediction(self.config, own),
            "config": self.config,
            "training_patients": sorted(patient for share in shares for patient in json.loads(share)),
            "processes": self.world_size,
            "patients_per_process": patients_per_process,
            "slices_per_process_and_step": self.batch_size // self.world_size,
            "manifest_sha256": sha256 if is_of_manifest else None,
            "pseudonymised": is_pseudonymised(content) if is_of_manifest else None,
            "threads": torch.get_num_threads(),
            "amp": self.amp,
            "versions": library_versions(),
        }

    def _of_its_start(self, now: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of a resumed training. Its initial weights are those of its start.

        Raises:
            PipelineError: Config, manifest, machine or versions have changed and ``allow_different`` is not set, or the
                training patients have changed.
        """
        path = self.folder / BEGAN
        before = load_record(path, "Restore it, or delete checkpoint* in its folder and start again.")
        if before.get("record_version") != RECORD_VERSION:
            raise PipelineError(
                f"{path}: this training started with another version of the bundle, and this version cannot read its "
                "checkpoints. Finish it with that version, or delete checkpoint* in its folder and start again."
            )
        # amp and init are compared below, by the value on this device and by the weights' hash.
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
                f"cannot resume, changed since the training started: {', '.join(changed)}. Set it back, or pass "
                "--allow_different True to continue anyway."
            )
        if before["training_patients"] != now["training_patients"]:
            raise PipelineError(
                "cannot resume with other training patients than at the start, even with --allow_different: the record "
                "of a training names one set. Set manifest and fold back, or start a new training with --init."
            )
        if changed:
            _LOG.warning("changed since the training started, which continues anyway: %s", ", ".join(changed))
        return {**now, "init": before["init"]} if "init" in before else {k: now[k] for k in now if k != "init"}

    def _warn_of_shipped_weights(self) -> None:
        shipped = shipped_sha256(self.workflow[0].config_root_path.parent) if self.workflow else None
        weights = self.folder / Path(WEIGHTS).name
        if self.is_first and weights.is_file() and shipped == sha256_file(weights):
            _LOG.warning(
                f"the bundle's original weights are in {self.folder}, and this training replaces them at its end: pass "
                "another --ckpt_dir to keep them"
            )


@dataclass(kw_only=True)
class Training:
    """One training in one folder.

    ``run`` checks everything before it writes to the folder. A resumed training continues from the newest intact
    checkpoint and gives the same bits as an undisturbed one. The two newest checkpoints and the best weights are kept
    during the training. At the end there are ``model.pt``, ``model_best.pt``, ``training.json`` and ``run.json``.

    Programs that call ``trainer.run`` themselves, such as MONAI's federated learning, get only the trainer's handlers:
    no checkpoints, no record, and no initial weights.
    """

    setup: Setup
    """Data, folder and settings of the training."""
    trainer: Any
    """MONAI's ``SupervisedTrainer``."""
    evaluator: Any
    """MONAI's ``SupervisedEvaluator`` of the validation."""
    ema: WeightAverage
    """The average of the weights, which is the training's result."""
    lr_scheduler: Any
    """The schedule of the learning rate."""
    seed: int
    """The training's seed, for the record."""
    image_size: int
    """Height and width of the network's input, in pixels."""
    early_stop_patience: int = 0
    """Validations without a better DSC before the training stops; 0: it never stops early."""

    def __post_init__(self) -> None:
        self.folder, self.is_first, self.saver = self.setup.folder, self.setup.is_first, DurableSaver(self.setup.folder)
        self.early_stop = EarlyStopping(self.early_stop_patience or 10**9, metrics.validation_dsc, self.trainer)
        self.step_of_statistics: int | None = None
        # A resumed training continues from these objects.
        self.checkpoint_objects = {
            "trainer": self.trainer,
            "network": self.ema.model,
            "ema": self.ema,
            "optimizer": self.trainer.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "early_stop": self.early_stop,
            **({"scaler": _Scaler(self.trainer)} if self.trainer.amp else {}),
        }

    def run(self) -> None:
        """Train, with at most one training in a folder at a time.

        Raises:
            PipelineError: Settings, data, checkpoints or weights do not allow it, or the training fails.
        """
        self.setup.check()
        with locked(self.folder) if self.is_first else contextlib.nullcontext():
            self._check()
            self.restored = self._restored_settings()
            if self.setup.resume:
                self._load()
            elif self.setup.initial:
                self._start_from(self.setup.initial)
            idist.barrier()  # no process removes what another still reads
            self._attach()
            # A resumed training may already be at its end, or may have stopped early.
            stopped_early = self.early_stop.counter >= self.early_stop.patience
            if self.trainer.state.epoch < self.trainer.state.max_epochs and not stopped_early:
                self.trainer.run()
            self._finish()

    def _check(self) -> None:
        """Refuse a trainer without a result, and loader processes that would wait forever."""
        if not self.ema.is_attached:
            raise PipelineError(
                "train#handlers: scripts.handlers.Attach with @ema is missing, so the training would save no weights. "
                "Keep the bundle's handlers and add yours to them."
            )
        if getattr(self.trainer, "accumulation_steps", 1) > 1:  # since MONAI 1.6
            raise PipelineError(
                "train#trainer#accumulation_steps: gradients are clipped and weights averaged at every batch (expected "
                "1). Lower --batch_size."
            )
        loader, device = self.trainer.data_loader, self.trainer.state.device
        workers = getattr(loader, "num_workers", 0)
        if workers and device.type != "cpu":
            raise PipelineError(
                f"--train#dataloader#num_workers {workers}: the slices lie on {device}, where other processes cannot "
                "read them (expected 0)."
            )
        share = self.setup.batch_size // self.setup.world_size
        channels = 3 * (2 * getattr(loader.dataset, "around", 0) + 1) + 1  # image and label, in 32 bits
        check_shared_memory(workers, 4 * channels * share * self.image_size**2)

    def _start_from(self, given: Weights) -> None:
        """Load the initial weights. The average does not hold them: it starts with the weights after the first step."""
        state = read_state(given.data, given.path, self.trainer.state.device)
        load_state(self.ema.model, state, given.path, "the one to be trained")
        if self.is_first:
            _LOG.info("starts from %s (SHA-256 %s)", given.path, given.sha256)

    def _load(self) -> None:
        """Load the newest checkpoint, and refuse settings that differ from it, because they would have no effect."""
        # A schedule's state holds settings and progress. Before the first step the progress is always the same.
        differing = _differing(load_record(self.folder / BEGAN).get(RESTORED, self.restored), self.restored)
        if differing:
            raise PipelineError(
                f"cannot resume with other settings than those of the checkpoint: {', '.join(differing.values())}. "
                "They would have no effect, even with --allow_different. Set them back, or start a new training."
            )
        state = newest(self.folder, self.trainer.state.device)
        Checkpoint.load_objects(self.checkpoint_objects, state)
        network = state["network"]  # loaded again at the start, after any CheckpointLoader
        self.trainer.add_event_handler(Events.STARTED, lambda: self.ema.model.load_state_dict(network))

    def _restored_settings(self) -> dict[str, Any]:
        """Settings that a checkpoint restores, whatever the config says, as they are before the first step."""
        groups, state = self.trainer.optimizer.state_dict()["param_groups"], self.trainer.state
        settings = {key: value for group in groups for key, value in group.items() if key != "params"}
        settings |= {key: value for key, value in self.lr_scheduler.state_dict().items() if not key.startswith("_")}
        epoch_length = state.epoch_length or len(self.trainer.data_loader)
        settings |= {"max_epochs": state.max_epochs, "steps_per_epoch": epoch_length}
        return dict(json.loads(as_text(settings)))

    def _attach(self) -> None:
        """Attach the record of the start, checkpoints, best weights and early stop."""
        epoch = global_step_from_engine(self.trainer)
        checkpoint = Checkpoint(self.checkpoint_objects, self.saver, n_saved=2, global_step_transform=epoch)
        # This comes after the config's handlers, because one of them may refuse the training.
        self.trainer.add_event_handler(Events.STARTED, self._begin)
        self.evaluator.add_event_handler(Events.STARTED, self._renew_batch_statistics)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._save_best)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.early_stop)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)

    def _begin(self) -> None:
        if self.is_first:
            self._say("running")
            content = {**self._with_weights(), RESTORED: self.restored}
            write_durably(self.folder / BEGAN, as_text(content).encode())

    def _save_best(self, engine: Engine) -> None:
        best = self.early_stop.best_score
        if best is None or metrics.validation_dsc(engine) > best:
            self.saver(self.ema.state_dict(), "model_best.pt")

    def _with_weights(self, *names: str) -> dict[str, Any]:
        weights = {name: sha256_file(self.folder / name) for name in names}
        facts = {**self.setup.facts, "seed": self.seed, "device": str(self.trainer.state.device)}
        return {**facts, "best_validation_dsc": self.early_stop.best_score, "weights": weights}

    def _renew_batch_statistics(self, _: Engine | None = None) -> None:
        """Compute the batch statistics of the averaged weights over an epoch of batches (Izmailov et al., UAI 2018).

        An average of statistics fits the weights that were averaged, not their average. All processes get those of the
        first. After the last validation they need not be computed again.
        """
        if self.step_of_statistics == self.trainer.state.iteration:
            return
        self.step_of_statistics = self.trainer.state.iteration
        set_determinism(seed=self.seed)
        trainer, device = self.trainer, self.trainer.state.device
        batches = (trainer.prepare_batch(batch, device, False)[0] for batch in trainer.data_loader)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(self.setup.amp, device)):
            update_bn(batches, self.ema.ema_model)
        for buffer in self.ema.ema_model.buffers():
            idist.broadcast(buffer, src=0)

    def _finish(self) -> None:
        """Write weights and record, remove the checkpoints, and mark the training as completed."""
        self._renew_batch_statistics()
        self.saver(self.ema.state_dict(), "model.pt")
        if not self.is_first:
            return
        best = self.early_stop.best_score
        names = ["model.pt"] if best is None else ["model.pt", "model_best.pt"]
        write_with_checksum(self.folder / RECORD, as_text(self._with_weights(*names)).encode())
        # Resuming needs the record of the start, so it is removed last.
        for path in [*self.folder.glob("checkpoint_*.pt"), *self.folder.glob("checkpoint_*.sha256")]:
            path.unlink(missing_ok=True)
        (self.folder / BEGAN).unlink(missing_ok=True)
        self._say("completed")
        said = "" if best is None else f"best validation DSC {best:.4f} (model_best.pt), "
        _LOG.info("%sweights: %s", said, self.folder / "model.pt")

    def _say(self, status: str) -> None:
        content = {"status": status, "resumed": self.setup.resume}
        write_durably(self.folder / RUN, json.dumps(content, indent=2).encode())


class _Scaler:
    """The scaler of a trainer's gradients in float16. MONAI makes it when the training starts."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return dict(self.trainer.scaler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trainer.add_event_handler(Events.STARTED, lambda: self.trainer.scaler.load_state_dict(state))


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text with both values, for each name whose value has changed."""
    return {key: f"{key} {before.get(key)} (now {value})" for key, value in now.items() if before.get(key) != value}
