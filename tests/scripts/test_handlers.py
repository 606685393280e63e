"""Handlers of a training: values that are not finite stop it by name, progress and pictures show how it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from pipeline.errors import PipelineError
from pipeline.scripts import handlers
from pipeline.scripts.faults import fault_line
from tests.conftest import BASIC, TINY, running_module

NAN = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * float('nan')"}


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        ({"augmentation": [NAN]}, "the batch's image. Check the volumes"),
        ("weights", "network"),
        ({"loss": "$lambda pred, label: pred.sum() * float('inf')"}, "the loss itself"),
    ],
    ids=["input", "weights", "loss"],
)
def test_nan_in_training_is_named_with_its_place(  # noqa: PLR0917
    manifest: Path, run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, place: str
) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    running = running_module("handlers")
    monkeypatch.setattr(running.CheckLogits, "check", lambda self, engine: None)
    if spoil == "weights":
        monkeypatch.setattr(running.CheckLogits, "check", spoil_weights)
        spoil = {}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, **spoil)
    message = fault_line(failure.value)
    assert message
    assert message.startswith("the training loss is not finite at iteration 1: NaN or Inf first in ")
    assert place in message
    assert not [*tmp_path.glob("model*"), *tmp_path.glob("checkpoint_*.pt")]


def spoil_weights(handler: Any, engine: Any) -> None:
    """In place of the check before the first step."""
    [*engine.network.parameters()][-1].data.fill_(float("nan"))


def test_weights_that_a_last_step_spoils_are_not_kept(
    manifest: Path, run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step is finite, the weights after it are not: the epoch before stays."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    steps: list[float] = []

    def spoil(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> None:
        steps.append(max_norm)
        if len(steps) == 8:
            for weights in parameters:
                weights.grad.fill_(float("nan"))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **{**TINY, "val_interval": 5})
    assert "after iteration 8 the network holds NaN or Inf in network conv_0" in str(fault_line(failure.value))
    assert [path.name for path in tmp_path.glob("checkpoint_*.pt")] == ["checkpoint_1.pt"]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_a_loader_takes_what_its_arguments_allow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As MONAI's does; here of weights that another program has wrapped."""
    caplog.set_level("INFO")
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    other = {"module.0.weight": torch.full((2, 2), 7.0), "module.0.bias": torch.full((2,), 7.0)}
    other["module.1.weight"] = torch.full((3, 2), 7.0)
    path = tmp_path / "other.pt"

    def load(state: dict[str, torch.Tensor], **arguments: Any) -> dict[str, torch.Tensor]:
        network.load_state_dict(fresh)
        torch.save({"state_dict": state}, path)
        handlers.CheckpointLoader(str(path), {"model": network}, **arguments)(Engine(lambda *_: None))
        return network.state_dict()

    less = {name: value for name, value in other.items() if "0." in name}
    with pytest.raises(PipelineError, match=r"other\.pt: weights of another architecture.*Missing key"):
        load(less)
    with pytest.raises(PipelineError, match=r"size mismatch for 1\.weight"):
        load(other, strict=False)
    for state, arguments in ((less, {"strict": False}), (other, {"strict": False, "strict_shape": False})):
        caplog.clear()
        loaded = load(state, name="mine", **arguments)
        assert set(loaded["0.weight"].flatten().tolist() + loaded["0.bias"].tolist()) == {7.0}
        assert all(torch.equal(loaded[name], fresh[name]) for name in ("1.weight", "1.bias"))
        assert ("mine", f"weights are loaded from {path}") in [(one.name, one.message) for one in caplog.records]


def test_picture_draws_the_prediction_red_and_the_truth_green() -> None:
    pred, label = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    pred[0, 2:7, 2:7] = 1
    label[0, 5:12, 5:12] = 1
    flair = torch.full((16, 16), 51.0)
    flair[0, 0] = 255
    picture = handlers.ValidationPictures(None).picture(flair, pred, label)
    assert picture.shape == (3, 16, 16)
    assert torch.allclose(picture[:, 2, 2], torch.tensor([1.0, 0.2, 0.2]))
    assert torch.allclose(picture[:, 11, 11], torch.tensor([0.2, 1.0, 0.2]))
    assert torch.allclose(picture[:, 6, 5], torch.tensor([1.0, 1.0, 0.2]))
    assert torch.allclose(picture[:, 8, 8], torch.tensor([0.2, 0.2, 0.2]))


def test_worst_and_median_patient_are_shown() -> None:
    """Overlaps of 1, 0.5 and 0; one patient without lesion and prediction has no DSC."""
    shown: list[tuple[str, str]] = []
    writer = SimpleNamespace(
        add_image=lambda tag, picture, step: shown.append((tag, str(picture.shape))),
        add_text=lambda tag, text, step: shown.append((tag, text)),
    )
    label, half, none = (torch.zeros(1, 8, 8, 2) for _ in range(3))
    label[0, :4, :4] = half[0, :4, :2] = 1
    half[0, 4:, :2] = 1
    pairs = {"all": (label, label), "half": (half, label), "none": (none, label), "healthy": (none, none)}
    output = [{"pred": pred, "label": truth} for pred, truth in pairs.values()]
    batch = [{"patient": name, "flair": torch.zeros(3, 8, 8, 2)} for name in pairs]
    engine = SimpleNamespace(state=SimpleNamespace(output=output, batch=batch, epoch=3))
    pictures = handlers.ValidationPictures(writer)
    pictures.see(engine)
    pictures.write(engine)
    picture = "torch.Size([3, 8, 8])"
    assert shown == [
        ("validation/worst", picture),
        ("validation/worst", "none: DSC 0.0000"),
        ("validation/median", picture),
        ("validation/median", "half: DSC 0.5000"),
    ]
    handlers.ValidationPictures(writer).write(engine)  # no patient: nothing to show
    assert len(shown) == 4


def test_the_average_of_weights_has_no_share_of_the_start() -> None:
    network = torch.nn.Linear(1, 1)
    average, engine = handlers.WeightAverage(network, momentum=0.1), Engine(lambda engine, batch: None)
    average.attach(engine)

    @engine.on(Events.ITERATION_STARTED)
    def learn(engine: Engine) -> None:
        network.weight.data.fill_(engine.state.iteration)

    engine.run(range(3), max_epochs=1)
    shares = [0.9**2, 0.9, 1]
    expected = sum(share * step for step, share in enumerate(shares, 1)) / sum(shares)
    assert average.ema_model.weight.item() == pytest.approx(expected)
    continued, engine = handlers.WeightAverage(network, momentum=0.1), Engine(lambda engine, batch: None)
    continued.load_state_dict(average.state_dict())
    continued.attach(engine)
    engine.state.epoch_length, engine.state.max_epochs, engine.state.iteration, engine.state.epoch = 3, 2, 3, 1
    network.weight.data.fill_(4)
    engine.run(range(3), max_epochs=2)
    shares = [0.9**5, 0.9**4, 0.9**3, 0.9**2, 0.9, 1]
    expected = sum(share * value for share, value in zip(shares, (1, 2, 3, 4, 4, 4), strict=True)) / sum(shares)
    assert continued.ema_model.weight.item() == pytest.approx(expected)


def test_epochs_of_neighbouring_seeds_have_nothing_in_common() -> None:
    engine, drawn = Engine(lambda *_: None), []
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        handler = handlers.SeedEpochs(seed, rank)
        for epoch in range(1, 21):
            engine.state.epoch = epoch
            handler._seed(engine)
            drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == len(drawn)


def test_time_left_is_of_the_whole_training(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(iteration=100, max_epochs=10, epoch_length=100)
    progress = handlers.Progress(evaluator=None, batch_size=16, val_interval=1)
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    progress.start(SimpleNamespace(state=state))  # resumed at 100
    monkeypatch.setattr(time, "monotonic", lambda: 50.0 + 450)
    state.iteration = 200  # 4.5 s each, 800 to go
    assert progress.time_left(state) == "1:00:00"
