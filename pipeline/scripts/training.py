"""The training of a bundle: refused where it cannot run, resumed, run, and recorded."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EarlyStopping
from monai.engines import default_prepare_batch

from . import metrics
from .checkpoints import DurableSaver, checkpoints_in, newest
from .config import REMOVED, config_without_overrides, refuse_removed_keys, refuse_text_switches
from .faults import PipelineError, explain_faults
from .files import locked, sha256_file, write_durably, write_with_checksum
from .handlers import WeightAverage
from .machine import check_shared_memory
from .manifest import MANIFEST_NAME, read_manifest_json, refuse_changed_volumes
from .records import RECORD, RECORD_VERSION, as_text, for_prediction
from .slices import library_versions
from .weights import WEIGHTS, shipped_sha256

BEGAN = "checkpoint.json"
"""The record of how a training began, beside its checkpoints."""
RUN = "run.json"
"""How far a training came: ``running`` or, written last, ``completed``."""
MAY_CHANGE = (
    *("resume", "allow_different", "dataset_dir", "ckpt_dir", "output_dir", "device", "cache_dir", "cache_rate", "amp"),
)
"""Config keys that may differ on resume. ``amp`` is compared by its value on this device, not by its text."""
REMOVED_FROM_TRAINING = {**REMOVED, "ckpt_path": "a CheckpointLoader among train#handlers, to start from weights"}

_LOG = logging.getLogger("train")


class PrepareBatch:
    """A batch brought to the device, and augmented there.

    Args:
        transforms: The random transforms of a whole batch.
    """

    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(
        self,
        batch: Mapping[str, torch.Tensor],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> Any:
        """Image and label, as MONAI's trainer takes them."""
        moved = {key: value.to(device, non_blocking=non_blocking) for key, value in batch.items()}
        return default_prepare_batch(self.transforms(moved), device)


class Training:
    """One training in one folder.

    ``run`` checks everything before it writes to the folder. Where ``resume`` is set, it goes on from the newest whole
    checkpoint, to the bit as if nothing had happened. It keeps the two newest checkpoints and the best weights, and
    leaves ``model.pt``, ``model_best.pt``, ``training.json`` and ``run.json``. Programs that call ``trainer.run``
    themselves, such as MONAI's federated learning, get the trainer's handlers only: no checkpoints and no record.

    Args:
        trainer: The trainer.
        evaluator: The evaluator of the validation patients.
        ema: The average of the weights, whose ``ema_model`` is the result.
        lr_scheduler: The schedule of the learning rate.
        training_data: The items that this process trains on.
        validation_data: The items that it validates.
        dataset_dir: The folder that holds ``manifest.json``.
        ckpt_dir: The training's folder.
        bundle_root: The bundle's folder.
        workflow: The MONAI workflow that runs the config, alone in a sequence.
        seed: The training's seed.
        batch_size: Slices of a batch, of all processes together.
        image_size: Height and width of the network's input in pixels.
        world_size: The number of processes that train together.
        amp: The training runs in 16 bits.
        crop_to_head: The networks see the box of the head.
        early_stop_patience: Validations without a better DSC before training stops; 0: never.
        resume: Go on from the newest checkpoint in ``ckpt_dir``.
        allow_different: Go on although config, manifest or versions have changed. What the checkpoint holds itself (the
            optimizer's settings, the schedule, the number of epochs) cannot be changed.
    """

    def __init__(
        self,
        *,
        trainer: Any,
        evaluator: Any,
        ema: WeightAverage,
        lr_scheduler: Any,
        training_data: Sequence[Mapping[str, Any]],
        validation_data: Sequence[Mapping[str, Any]],
        dataset_dir: str,
        ckpt_dir: str,
        bundle_root: str,
        workflow: Sequence[Any],
        seed: int,
        batch_size: int,
        image_size: int,
        world_size: int = 1,
        amp: bool = False,
        crop_to_head: bool = True,
        early_stop_patience: int = 0,
        resume: bool | str = False,
        allow_different: bool | str = False,
    ) -> None:
        self.trainer, self.evaluator, self.ema, self.lr_scheduler = trainer, evaluator, ema, lr_scheduler
        self.training_data, self.validation_data = training_data, validation_data
        self.dataset_dir, self.folder, self.bundle_root = dataset_dir, Path(ckpt_dir), Path(bundle_root)
        self.workflow, self.seed, self.batch_size, self.image_size = workflow, seed, batch_size, image_size
        self.world_size, self.amp, self.crop_to_head = world_size, amp, crop_to_head
        self.early_stop_patience = early_stop_patience
        # MONAI's command line reads True as a switch and true as text.
        self.resume, self.allow_different = (str(switch).lower() == "true" for switch in (resume, allow_different))
        self.is_first = idist.get_rank() == 0
        self.saver = DurableSaver(self.folder)
        self.early_stop = EarlyStopping(
            patience=early_stop_patience or 10**9,
            score_function=metrics.validation_dsc,
            trainer=trainer,
        )
        # What a resumed training goes on from.
        self.checkpoint_objects = {
            "trainer": trainer,
            "network": ema.network,
            "ema": ema,
            "optimizer": trainer.optimizer,
            "lr_scheduler": lr_scheduler,
            "early_stop": self.early_stop,
            **({"scaler": trainer.scaler} if trainer.scaler else {}),
        }

    def run(self) -> None:
        """Train.

        Raises:
            PipelineError: The training is refused, or a fault ended it that the user can mend.
        """
        explain_faults(self._how_to_go_on)  # in place of the config's, which knows no folder
        with self._alone():
            self._check()
            self._attach()
            # A training that had come to its end, or had stopped early, does not go on.
            stopped_early = self.early_stop_patience and self.early_stop.counter >= self.early_stop_patience
            if self.trainer.state.epoch < self.trainer.state.max_epochs and not stopped_early:
                self.trainer.run()
            self._finish()

    def _how_to_go_on(self) -> str:
        if checkpoints_in(self.folder):
            return "--resume True goes on from the newest checkpoint."
        return "No epoch has ended, there is no checkpoint to resume from: start again."

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One training at a time in a folder; the first of several processes holds it for all."""
        if self.is_first:
            with locked(self.folder):
                yield
        else:
            yield

    def _check(self) -> None:
        """Refuse what cannot be trained, and load the checkpoint of a training that goes on."""
        self._check_settings()
        self.patients_per_process, validated = (_gathered(len(d)) for d in (self.training_data, self.validation_data))
        manifest = Path(self.dataset_dir, MANIFEST_NAME)
        if min(self.patients_per_process) == 0:
            raise PipelineError(
                f"{manifest}: has no training patients, or fewer than processes. Build it with another split."
            )
        if min(validated) == 0 < max(validated):
            raise PipelineError(
                "fewer validation patients than processes: start fewer, or build the manifest with another split."
            )
        if not max(validated):
            _LOG.warning("no validation patients: no validation, no best checkpoint")
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
        refuse_changed_volumes(self.dataset_dir, [*self.training_data, *self.validation_data])
        loader = self.trainer.data_loader
        share = self.batch_size // self.world_size
        check_shared_memory(getattr(loader, "num_workers", 0), 16 * share * self.image_size**2)
        self.config = dict(self.workflow[0].parser.config) if self.workflow else {}
        self.record = self._record()
        if self.resume:
            self._refuse_changes()
            self._load()
        if self.is_first and shipped_sha256(self.bundle_root) == _sha256_or_none(self.folder / Path(WEIGHTS).name):
            _LOG.warning(
                "the weights that the bundle came with are in %s, and the end of this training replaces them: pass "
                "another --ckpt_dir to keep them",
                self.folder,
            )

    def _check_settings(self) -> None:
        refuse_removed_keys(self.workflow, REMOVED_FROM_TRAINING)
        refuse_text_switches(amp=self.amp, crop_to_head=self.crop_to_head)
        if self.batch_size % self.world_size:
            raise PipelineError(
                f"a batch of {self.batch_size} cannot be shared out evenly to {self.world_size} processes: pass "
                "another --batch_size."
            )

    def _record(self) -> dict[str, Any]:
        """What this training is: config, data, machine and versions."""
        own = config_without_overrides(self.workflow[0].config_root_path / "train.json") if self.workflow else {}
        shares = _gathered(json.dumps([item["patient"] for item in self.training_data if "patient" in item]))
        manifest = Path(self.dataset_dir, MANIFEST_NAME)
        # Of data that are not of a manifest neither patients nor manifest are known.
        is_of_manifest = manifest.is_file() and all("patient" in item for item in self.training_data)
        return {
            "record_version": RECORD_VERSION,
            "prediction": for_prediction(self.config, own),
            "config": self.config,
            "seed": self.seed,
            "training_patients": sorted(patient for share in shares for patient in json.loads(share)),
            "processes": self.world_size,
            "patients_per_process": self.patients_per_process,
            "slices_per_process_and_step": self.batch_size // self.world_size,
            "manifest_sha256": read_manifest_json(manifest)[1] if is_of_manifest else None,
            "device": str(self.trainer.state.device),
            "threads": torch.get_num_threads(),
            "amp": self.amp,
            "versions": library_versions(),
        }

    def _refuse_changes(self) -> None:
        """Refuse to resume a training of another config, manifest, machine or version, unless it may be."""
        before, now = read_beginning(self.folder), json.loads(as_text(self.record))
        changed = [
            key for key, value in now["config"].items() if key not in MAY_CHANGE and before["config"].get(key) != value
        ]
        if before["manifest_sha256"] != now["manifest_sha256"]:
            changed.append("the manifest")
        if before["processes"] != now["processes"]:
            changed.append("the number of processes")
        if before["amp"] != now["amp"]:
            changed.append(f"amp on this device (pass --amp {before['amp']})")
        for name, version in now["versions"].items():
            if before["versions"].get(name) != version:
                changed.append(f"{name} ({before['versions'].get(name)}, now {version})")
        if changed and not self.allow_different:
            raise PipelineError(
                f"cannot resume, changed since the training began: {', '.join(changed)}. Set it back, or pass "
                "--allow_different True to go on all the same."
            )
        if changed:
            _LOG.warning("changed since the training began, goes on all the same: %s", ", ".join(changed))

    def _load(self) -> None:
        """Load the newest checkpoint.

        Raises:
            PipelineError: The config names other settings than the checkpoint holds; they would not take effect.
        """
        wanted = self._restored_settings()
        Checkpoint.load_objects(self.checkpoint_objects, newest(self.folder, self.trainer.state.device))
        found = self._restored_settings()
        differing = [
            f"{name} {found.get(name)} (now {value})" for name, value in wanted.items() if found.get(name) != value
        ]
        if differing:
            raise PipelineError(
                f"cannot resume with other settings than the checkpoint holds: {', '.join(differing)}. They would not "
                "take effect, also with --allow_different. Set them back, or begin a new training."
            )

    def _restored_settings(self) -> dict[str, Any]:
        """Settings that come back with a checkpoint, whatever the config says."""
        groups, state = self.trainer.optimizer.state_dict()["param_groups"], self.trainer.state
        varying = ("params", "lr", "momentum", "betas")  # with the schedule
        settings = {k: v for group in groups for k, v in group.items() if k not in varying}
        schedule = self.lr_scheduler.state_dict()
        settings |= {k: v for k, v in schedule.items() if k != "last_epoch" and not k.startswith("_")}
        epoch_length = state.epoch_length or len(self.trainer.data_loader)
        return {**settings, "max_epochs": state.max_epochs, "steps_per_epoch": epoch_length}

    def _attach(self) -> None:
        """Attach the record of the beginning, checkpoints, best weights and early stop."""
        checkpoint = Checkpoint(
            self.checkpoint_objects,
            self.saver,
            global_step_transform=lambda engine, _: engine.state.epoch,
            n_saved=2,
        )
        # After the handlers of the config, of which one may refuse the training.
        self.trainer.add_event_handler(Events.STARTED, self._begin)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._save_best)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.early_stop)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)

    def _begin(self) -> None:
        idist.barrier()
        self._say("running")
        if self.is_first:
            write_durably(self.folder / BEGAN, as_text(self._with_weights()).encode())

    def _save_best(self, engine: Engine) -> None:
        best = self.early_stop.best_score
        if best is None or metrics.validation_dsc(engine) > best:
            self.saver(self.ema.state_dict(), "model_best.pt")

    def _with_weights(self, *names: str) -> dict[str, Any]:
        weights = {name: sha256_file(self.folder / name) for name in names}
        return {**self.record, "best_validation_dsc": self.early_stop.best_score, "weights": weights}

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
        if self.is_first:
            write_durably(self.folder / RUN, json.dumps({"status": status, "resumed": self.resume}, indent=2).encode())


def _gathered(value: Any) -> list[Any]:
    """A number or text of each process."""
    found = idist.all_gather(value)
    return found if isinstance(found, list) else [found]


def _sha256_or_none(path: Path) -> str:
    return sha256_file(path) if path.is_file() else "no file"


def read_beginning(folder: Path) -> dict[str, Any]:
    """What was recorded when the training of a folder began.

    Args:
        folder: The training's folder.

    Raises:
        PipelineError: There is no readable record, or it is another version's.
    """
    path = folder / BEGAN
    try:
        record = json.loads(path.read_bytes())
        dict(record["config"]), dict(record["versions"]), record["manifest_sha256"], record["processes"], record["amp"]
        version = record.get("record_version", 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{path}: no readable record of how this training began ({type(error).__name__}). Restore it; without it, "
            "delete checkpoint* there and begin again."
        ) from error
    if version != RECORD_VERSION:
        raise PipelineError(
            f"{path}: this training began with another version of the bundle, whose checkpoints this one does not "
            "read. End it with that version, or delete checkpoint* there and begin again."
        )
    return dict(record)
