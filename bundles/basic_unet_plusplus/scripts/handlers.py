"""Handlers of MONAI's trainer and evaluator, which a bundle's config attaches to its engine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler, ProgressBar
from ignite.metrics import Average
from monai import handlers
from monai.engines import IterationEvents
from monai.networks.utils import copy_model_state
from monai.transforms import LabelToContour
from monai.utils import set_determinism

from .faults import PipelineError, machine_fault_line
from .finite import first_three, not_finite, prediction_fault
from .manifest import FLAIR
from .weights import load_state, read_state


class Attach:
    """Attaches a handler that another part of the config defines.

    MONAI Label accepts no reference such as ``"@ema"`` in a list of handlers.

    Args:
        handler: The handler to attach.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        """Attach the handler."""
        self.handler.attach(engine)


class WeightAverage(EMAHandler):
    """Exponential moving average of a network's weights; its ``ema_model`` is the training's result.

    The average holds only weights after a step: the weights of the start have no share in it. For this the share of the
    newest weights is ``momentum / (1 - (1 - momentum) ** step)``, which is 1 at the first step, as in the bias
    correction of Adam (Kingma, Ba, ICLR 2015). A resumed training continues the average of its checkpoint. Batch
    statistics are averaged too.

    Args:
        network: The network that is trained.
        momentum: The share of the newest weights after many steps, 0 to 1.
    """

    def __init__(self, network: torch.nn.Module, momentum: float) -> None:
        super().__init__(network, momentum=momentum, handle_buffers="update")
        self.is_attached = self._is_resumed = False
        self._steps = 0

    def attach(self, engine: Engine) -> None:  # type: ignore[override]  # name and event are this class's own
        """Start the average with the training, and add the weights after each step."""
        engine.add_event_handler(Events.STARTED, self._start)
        super().attach(engine, warn_if_exists=False)
        self.is_attached = True

    def _start(self, engine: Engine) -> None:
        self._steps = engine.state.iteration if self._is_resumed else 0
        self._is_resumed = False

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        """Add the weights, with one call for all tensors together. ignite's own method has two for each."""
        momentum = getattr(engine.state, name)
        self._steps += 1
        tensors = (chain(model.parameters(), model.buffers()) for model in (self.ema_model, self.model))
        pairs = [pair for pair in zip(*tensors, strict=True) if pair[0].is_floating_point()]
        share = momentum / (1 - (1 - momentum) ** self._steps)
        with torch.no_grad():
            torch._foreach_lerp_([mean for mean, _ in pairs], [new for _, new in pairs], share)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights, for a checkpoint."""
        return self.ema_model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from these weights when the training starts."""
        self.ema_model.load_state_dict(state)
        self._is_resumed = True


class CheckpointLoader(handlers.CheckpointLoader):
    """MONAI's ``CheckpointLoader``, which also reads wrapped weights and refuses others with a one-line message.

    Wrapped weights lie below ``{"model": ...}``, or their names have the prefix of ``DataParallel``. The arguments are
    those of MONAI's class. A checkpoint of more than one network is left to MONAI.
    """

    def __call__(self, engine: Engine) -> None:
        """Load the weights when the engine starts."""
        (network, *others), path = self.load_dict.values(), Path(self.load_path)
        if others or not isinstance(network, torch.nn.Module) or not path.is_file():
            super().__call__(engine)
        else:
            where: Any = self.map_location
            state = read_state(path.read_bytes(), path, where)
            if not self.strict_shape:
                state, *_ = copy_model_state(network, state, inplace=False)
            load_state(network, state, path, "the config's network", strict=self.strict)
            self.logger.info("weights are loaded from %s", path)


class CheckLogits:
    """Refuse, before the first step, a network or a loss with which a training cannot learn.

    A network that ends in a sigmoid, or a loss with a second one, learns nothing and raises no error. So noise of
    deviation 1000 must give outputs outside of 0 to 1, and correct logits must give a loss of about 0.

    Args:
        network: The network in evaluation mode, such as the averaged one.
        loss: The training's loss.
        image_size: Height and width of the network's input, in pixels.
        around: Slices on either side that the network sees beside a slice.
    """

    def __init__(self, network: torch.nn.Module, loss: Any, image_size: int, around: int = 0) -> None:
        self.network, self.loss, self.image_size, self.channels = network, loss, image_size, 3 * (2 * around + 1)

    def attach(self, engine: Engine) -> None:
        """Check when the training starts."""
        engine.add_event_handler(Events.STARTED, self.check)

    def check(self, engine: Any) -> None:
        """Check network and loss on the engine's device, with its inferer.

        Raises:
            PipelineError: The network cannot take such slices, or returns no logits, or the loss takes no logits.
        """
        size, device = self.image_size, engine.state.device
        noise = 1000 * torch.randn(2, self.channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        truth = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(device).round()
        try:
            with torch.no_grad():
                logits = engine.inferer(noise, self.network)
        except (RuntimeError, ValueError) as error:
            if machine_fault_line(error, ""):
                raise
            first = str(error).strip().partition("\n")[0]
            raise PipelineError(
                f"image_size {size}: the network cannot take slices of this size ({first}). Pass another --image_size, "
                "such as a multiple of 32, or another network_def."
            ) from error
        if not isinstance(logits, torch.Tensor) or logits.shape != (2, 1, size, size):
            raise PipelineError(
                "the network must return one tensor of logits: one channel, with the height and width of its input"
            )
        if bool(logits.min() >= 0 and logits.max() <= 1 and (logits != 0).any()):
            raise PipelineError(
                "the network returns probabilities (all from 0 to 1): remove its last activation, the loss has one"
            )
        if not -1e-3 < float(self.loss(40 * truth - 20, truth)) < 0.05:
            raise PipelineError("the loss is not about 0 for correct logits: it applies no sigmoid to them, or two")


class SeedEpochs:
    """Seed each epoch by its number and the process's rank, so that a resumed training draws the same numbers.

    Args:
        seed: The training's seed.
        rank: The process's number, from 0.
        deterministic: On a GPU, use only convolutions that give the same bits each time. False lets cuDNN measure at
            the first step which ones are fastest.
    """

    def __init__(self, seed: int, rank: int = 0, *, deterministic: bool = True) -> None:
        self.seed, self.rank, self.deterministic = seed, rank, deterministic

    def attach(self, engine: Engine) -> None:
        """Seed when an epoch starts."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        # Independent of those of other seeds, which the sum of seed and epoch would not be.
        numbers = np.random.SeedSequence([self.seed, self.rank, engine.state.epoch])
        set_determinism(seed=int(numbers.generate_state(1)[0]))
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.benchmark = not self.deterministic


class ClipGradients:
    """Clip the norm of all gradients together after each backward pass.

    Args:
        max_norm: The largest norm.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Clip before the optimizer's step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Any) -> None:
        if engine.scaler:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)


class StopAtNaN:
    """End a training at the first loss that is NaN or Inf, and name the source.

    On a CPU the training ends before the optimizer's step. A GPU computes ahead while the loss of the step before is
    checked, so the training ends one step later, and before anything is saved.
    """

    def __init__(self) -> None:
        self._unchecked: tuple[int, Mapping[str, torch.Tensor]] | None = None

    def attach(self, engine: Engine) -> None:
        """Check each loss, and the weights after each epoch before they are saved."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check_last)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check_weights)

    def _check_loss(self, engine: Any) -> None:
        output: Mapping[str, torch.Tensor] = engine.state.output
        before, self._unchecked = self._unchecked, (engine.state.iteration, output)
        self._check(engine, before if output["loss"].is_cuda else self._unchecked)

    def _check_last(self, engine: Any) -> None:
        step, self._unchecked = self._unchecked, None
        self._check(engine, step)

    def _check(self, engine: Any, step: tuple[int, Mapping[str, torch.Tensor]] | None) -> None:
        if step is None or bool(torch.isfinite(step[1]["loss"])):
            return
        iteration, output = step
        inputs = not_finite((f"the batch's {key}", output[key]) for key in ("image", "label"))
        # On a GPU the optimizer has already put the NaN into the weights.
        weights = [] if output["loss"].is_cuda else _weights(engine.network)
        places = inputs or weights or not_finite([("the network's prediction", output["pred"])])
        remedy = "Check the volumes and the augmentation." if inputs else _NAN_REMEDY
        raise PipelineError(
            f"the training loss is not finite at iteration {iteration}: NaN or Inf first in "
            f"{first_three(places) or 'the loss itself'}. {remedy}"
        )

    def _check_weights(self, engine: Any) -> None:
        if places := _weights(engine.network):
            raise PipelineError(
                f"after iteration {engine.state.iteration} the network holds NaN or Inf in {first_three(places)}. "
                f"{_NAN_REMEDY}"
            )


_NAN_REMEDY = "Lower --learning_rate, or train with --amp False; checkpoints of earlier epochs are kept."


def _weights(network: torch.nn.Module) -> list[str]:
    named = [*network.named_parameters(), *network.named_buffers()]
    return [f"network {name.removeprefix('module.')}" for name in not_finite(named)]


class StopAtNaNPrediction:
    """End an evaluation at a prediction with NaN or Inf, and name the volume."""

    def attach(self, engine: Engine) -> None:
        """Check each prediction before it is postprocessed."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._check)

    def _check(self, engine: Any) -> None:
        files = engine.state.batch["image"].meta.get("filename_or_obj", ["a volume"])
        if fault := prediction_fault(engine.state.output["pred"], [Path(str(file)).name for file in files]):
            raise PipelineError(fault)


class Progress:
    """Console output: a progress bar of the epoch's slices, and a line for each epoch with losses, rate and time left.

    Args:
        evaluator: The evaluator of the validation, whose metrics the line shows.
        batch_size: Slices in a step of all processes together.
        val_interval: Epochs from one validation to the next.
        log_interval: Steps from one update of the progress bar to the next.
        quiet: Print nothing, for all processes but the first.
    """

    def __init__(
        self, evaluator: Any, batch_size: int, val_interval: int, *, log_interval: int = 1, quiet: bool = False
    ) -> None:
        self.evaluator, self.batch_size, self.val_interval, self.quiet = evaluator, batch_size, val_interval, quiet
        self.log_interval = log_interval
        self._start, self._done_before = 0.0, 0

    def attach(self, engine: Any) -> None:
        """Measure, show the progress bar, and print the line after it."""
        engine.add_event_handler(Events.STARTED, self.start)
        look = "{desc}[{n_fmt}/{total_fmt}] {percentage:3.0f}%|{bar}| {rate_fmt}{postfix}"
        bar = ProgressBar(
            bar_format=look, desc="train", unit=" slices", unit_scale=self.batch_size, disable=self.quiet or None
        )
        bar.attach(
            engine,
            output_transform=lambda out: {"loss": out["loss"].item(), "left": self.time_left(engine.state)},
            event_name=Events.ITERATION_COMPLETED(every=self.log_interval),
        )
        # The loss stays on its device, because a GPU would have to wait until it is read.
        losses = Average(output_transform=lambda output: output["loss"].detach(), device=engine.state.device)
        losses.attach(engine, "train_loss")
        if not self.quiet:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._print)

    def start(self, engine: Any) -> None:
        """Start the clock, and keep the number of steps that a resumed training has already done."""
        self._start, self._done_before = time.monotonic(), engine.state.iteration

    def time_left(self, state: Any) -> str:
        """The time until the end of the training, as H:MM:SS."""
        each = (time.monotonic() - self._start) / max(state.iteration - self._done_before, 1)
        seconds = int(each * (state.max_epochs * state.epoch_length - state.iteration))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _print(self, engine: Any) -> None:
        state = engine.state
        took = max(time.monotonic() - self._start, 1e-9)
        rate = (state.iteration - self._done_before) * self.batch_size / took
        metrics = sorted(self.evaluator.state.metrics.items()) if state.epoch % self.val_interval == 0 else []
        losses = "  ".join(f"{name} {value:.4f}" for name, value in metrics)
        logging.getLogger("train").info(
            f"epoch {state.epoch}/{state.max_epochs}  train_loss {state.metrics['train_loss']:.4f}  "
            f"{rate:.0f} slices/s  left {self.time_left(state)}  {losses}"
        )


def summary_writer(folder: str, disabled: bool = False) -> Any:
    """A writer of TensorBoard's event files, without this machine's name in their names.

    Args:
        folder: The folder of the files.
        disabled: Return None, for all processes but the first.
    """
    if disabled:
        return None
    from torch.utils.tensorboard import SummaryWriter  # not needed for a prediction

    with mock.patch("socket.gethostname", lambda: "host"):
        return SummaryWriter(folder)


class LossAndRate:
    """The training loss of a step and the learning rate of the next one, for TensorBoard."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __call__(self, output: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """``train_loss`` and ``learning_rate``."""
        return {"train_loss": output["loss"].item(), "learning_rate": self.optimizer.param_groups[0]["lr"]}


class ValidationPictures:
    """The worst and the median patient of each validation, in TensorBoard: one slice of FLAIR with two contours.

    The slice is the one with most lesion in the truth or, without a truth, in the prediction. Prediction is red, truth
    green, both yellow. A patient with neither has no DSC and is left out.
    """

    def __init__(self, writer: Any) -> None:
        self.writer, self.contour = writer, LabelToContour()
        self._seen: list[tuple[float, str, torch.Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Collect pictures while volumes are validated, and write two when all are done."""
        engine.add_event_handler(Events.STARTED, self._seen.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.see)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def see(self, engine: Any) -> None:
        """Keep the DSC and the picture of each volume."""
        for source, item in zip(engine.state.batch, engine.state.output, strict=True):
            pred, label = item["pred"].cpu(), item["label"].cpu()
            dsc = float(2 * (pred * label).sum() / (pred.sum() + label.sum()))
            if not math.isnan(dsc):
                z = int((label if label.any() else pred).sum(dim=(0, 1, 2)).argmax())
                channels = source["flair"].cpu()
                flair = channels[FLAIR if len(channels) > 1 else 0]
                picture = self.picture(flair[..., z], pred[..., z], label[..., z])
                self._seen.append((dsc, str(source.get("patient", "unknown")), picture))

    def picture(self, flair: torch.Tensor, pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The picture of one slice, (3, H, W) from 0 to 1, from FLAIR, (H, W), and two masks, (1, H, W)."""
        gray = flair / flair.max().clamp_min(1)
        red, green = (torch.maximum(gray, self.contour(mask)[0]) for mask in (pred, label))
        return torch.stack([red, green, gray])

    def write(self, engine: Any) -> None:
        """Write the two pictures with their patients' names and DSC."""
        ordered = sorted(self._seen, key=lambda seen: seen[0])
        if not ordered:
            return
        median = ordered[(len(ordered) - 1) // 2]
        for tag, (dsc, patient, picture) in (("validation/worst", ordered[0]), ("validation/median", median)):
            self.writer.add_image(tag, picture, engine.state.epoch)
            self.writer.add_text(tag, f"{patient}: DSC {dsc:.4f}", engine.state.epoch)


def file_names(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The volumes' file names without their folders, for ``MetricsSaver``."""
    return [{"filename_or_obj": Path(item["image"].meta["filename_or_obj"]).name} for item in batch]
