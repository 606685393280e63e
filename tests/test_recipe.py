"""What the training config does, part by part: loss, slices drawn, augmentation, pictures, masks, key metric."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BUNDLES, TINY, evaluated, lively_weights, silent_weights
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import load_decathlon_datalist
from monai.transforms import Compose

from pipeline import manifest as manifest_cli
from pipeline import phantom
from pipeline.metrics import largest_component
from pipeline.scripts import augmentation, handlers, machine

SIZE = 32


@pytest.fixture(params=BUNDLES, ids=lambda bundle: bundle.name)
def recipe(request: pytest.FixtureRequest) -> ConfigParser:
    """A bundle's training config at 32 x 32 px; nothing of it is built yet."""
    parser = ConfigParser()
    parser.read_config(request.param / "configs" / "train.json")
    parser["image_size"] = SIZE
    parser["workflow"] = []
    parser["bundle_root"] = str(request.param)
    parser.get_parsed_content("scripts_path")
    return parser


def composed(recipe: ConfigParser, key: str) -> Compose:
    torch.manual_seed(0)
    return Compose(recipe.get_parsed_content(key))


def test_loss_is_dice_plus_cross_entropy_over_the_batch(recipe: ConfigParser) -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(3, 1, 8, 8)), (rng.random((3, 1, 8, 8)) < 0.3).astype(float)
    p = 1 / (1 + np.exp(-logits))
    dice = 1 - (2 * (p * truth).sum() + 1e-5) / (p.sum() + truth.sum() + 1e-5)
    cross_entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    found = recipe.get_parsed_content("loss")(torch.tensor(logits), torch.tensor(truth))
    assert float(found) == pytest.approx(dice + cross_entropy, abs=1e-6)


def test_nine_slices_of_ten_are_drawn_by_lesion_area(recipe: ConfigParser) -> None:
    """Slice 2 holds three quarters of the lesion, slice 7 a quarter, eight slices none."""
    label = torch.zeros(1, SIZE, SIZE, 10)
    label[0, 8:20, 8:20, 2] = 1
    label[0, 8:14, 8:16, 7] = 1
    image = torch.arange(10.0).expand(3, SIZE, SIZE, 10)
    volume = composed(recipe, "train#to_slices")({"image": image, "label": label})
    healthy = composed(recipe, "train#to_slices")({"image": image + 10, "label": torch.zeros_like(label)})
    recipe["train#slices#volumes"] = [volume, healthy]
    recipe["steps_per_epoch"], recipe["batch_size"] = 100, 20
    torch.manual_seed(0)
    drawn = []
    for batch in recipe.get_parsed_content("train#dataloader"):
        assert batch["image"].shape == (20, 3, SIZE, SIZE)
        assert batch["label"].shape == (20, 1, SIZE, SIZE)
        for seen, truth in zip(batch["image"], batch["label"], strict=True):
            number = round(float(seen[0, 0, 0]))
            assert torch.allclose(seen, torch.full_like(seen, number), atol=0.03)
            assert torch.equal(truth, label[..., number] if number < 10 else torch.zeros_like(truth))
            drawn.append(number)
    assert len(drawn) == 2000
    share = {z: drawn.count(z) / len(drawn) for z in range(20)}
    assert sum(share[z] for z in range(10)) == pytest.approx(0.5, abs=0.04)  # every volume alike
    assert share[2] == pytest.approx(0.5 * (0.9 * 0.75 + 0.01), abs=0.03)
    assert share[7] == pytest.approx(0.5 * (0.9 * 0.25 + 0.01), abs=0.03)
    assert 0.03 < 0.5 - share[2] - share[7] < 0.06
    assert all(share[z] == pytest.approx(0.05, abs=0.02) for z in range(10, 20))
    assert len(set(drawn)) == 20


def test_augmentation_moves_image_and_label_together(recipe: ConfigParser) -> None:
    """Image channels are copies of the label, so a gain and an offset must explain each of them exactly."""
    recipe["augmentation"] = recipe["augmentation"][1:]
    recipe["augmentation"][1]["bias_field"] = 0.0
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    blob = torch.exp(-((rows - 12.0) ** 2) / 4 - (columns - 9.0) ** 2 / 20).repeat(200, 1, 1, 1)
    batch = composed(recipe, "augmentation")({"image": blob.repeat(1, 3, 1, 1), "label": blob.clone()})
    gains, offsets, centres, widths, angles = [], [], [], [], []
    for image, label in zip(batch["image"], batch["label"], strict=True):
        assert not torch.isin(label, blob[0]).all()  # interpolated
        moved = label[0]
        explained = torch.stack([moved.flatten(), torch.ones(SIZE * SIZE)], dim=1)
        for channel in image:
            fit = torch.linalg.lstsq(explained, channel.flatten()[:, None]).solution
            assert (explained @ fit - channel.flatten()[:, None]).abs().max() < 0.02
            gains.append(float(fit[0]))
            offsets.append(float(fit[1]))
        weight = moved / moved.sum()
        centre = float((weight * rows).sum()), float((weight * columns).sum())
        centres.append(centre)
        down, right = rows - centre[0], columns - centre[1]
        tilt = (2 * weight * down * right).sum(), (weight * (right**2 - down**2)).sum()
        angles.append(float(torch.atan2(*tilt)) / 2)
        widths.append(float(moved.sum() / blob[0].sum()))
    assert 0.84 < min(gains) < 0.88
    assert 1.12 < max(gains) < 1.16
    assert -0.16 < min(offsets) < -0.12
    assert 0.12 < max(offsets) < 0.16
    assert len({round(gain, 6) for gain in gains[:3]}) == 3  # each channel by itself
    flipped = sum(column > SIZE / 2 for _, column in centres)
    assert 70 < flipped < 130
    assert all(row < SIZE / 2 + 2 for row, _ in centres)  # never upside down
    assert -0.5 < min(angles) < -0.25  # rotated
    assert 0.25 < max(angles) < 0.5
    assert 0.7 < min(widths) < 0.85  # scaled
    assert 1.15 < max(widths) < 1.4


def test_augmentation_shifts_along_both_axes(recipe: ConfigParser) -> None:
    """A disc in the middle, which neither rotation, scale nor flip moves."""
    recipe["augmentation"] = recipe["augmentation"][1:]
    rows, columns = torch.meshgrid(torch.arange(SIZE) - 15.5, torch.arange(SIZE) - 15.5, indexing="ij")
    disc = torch.exp(-(rows**2 + columns**2) / 12).repeat(200, 1, 1, 1)
    moved = composed(recipe, "augmentation")({"image": disc.repeat(1, 3, 1, 1), "label": disc.clone()})["label"][:, 0]
    for axis in (rows, columns):
        shifts = [float((image * axis).sum() / image.sum()) for image in moved]
        assert 1.4 < max(shifts) < 2.4
        assert -2.4 < min(shifts) < -1.4


def test_rotation_keeps_the_shape_of_slices_that_are_not_square(recipe: ConfigParser) -> None:
    """A disc stays a disc: angles are of pixels, not of shares of the sides."""
    recipe["augmentation"] = [{**recipe["augmentation"][1], "scale": 0.0, "translate": 0.0, "rotate": 1.5}]
    rows, columns = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(64) - 31.5, indexing="ij")
    disc = torch.exp(-((rows - 5) ** 2 + columns**2) / 12).repeat(50, 1, 1, 1)
    for moved in composed(recipe, "augmentation")({"image": disc.repeat(1, 3, 1, 1), "label": disc})["label"][:, 0]:
        weight = moved / moved.sum()
        centre = float((weight * rows).sum()), float((weight * columns).sum())
        assert math.hypot(*centre) == pytest.approx(5, abs=0.1)
        assert float((weight * (rows - centre[0]) ** 2).sum()) == pytest.approx(6, abs=0.4)
        assert float((weight * (columns - centre[1]) ** 2).sum()) == pytest.approx(6, abs=0.4)


def test_bias_field_shades_each_channel_smoothly(recipe: ConfigParser) -> None:
    """A field of e^-0.4 to e^0.4 over the slice, and what is black stays black."""
    recipe["augmentation"] = [{**recipe["augmentation"][2], "gain": 0.0, "offset": 0.0}]
    image = torch.full((200, 3, SIZE, SIZE), 4.0)
    image[:, :, ::4, ::4] = -1.0
    shaded = composed(recipe, "augmentation")({"image": image.clone()})["image"]
    assert torch.equal(shaded[:, :, ::4, ::4], image[:, :, ::4, ::4])
    field = ((shaded + 1) / 5).log()[:, :, 1::2, 1::2]
    assert 0.3 < field.max() < 0.6  # bicubic goes a little beyond its points
    assert -0.6 < field.min() < -0.3
    assert max(field.diff(dim=axis).abs().max() for axis in (2, 3)) < 0.25
    assert (field.amax((2, 3)) - field.amin((2, 3))).mean() > 0.5  # within a slice
    assert (field[:, 0] - field[:, 1]).abs().amax((1, 2)).min() > 0.2  # each channel by itself
    assert (field[0] - field[1]).abs().max() > 0.2  # each slice by itself


def test_missing_sequences_are_shown_more_often_than_they_occur(recipe: ConfigParser) -> None:
    recipe["augmentation"] = recipe["augmentation"][:1]
    drop = composed(recipe, "augmentation")
    image = torch.tensor([10.0, 20.0, 30.0])[None, :, None, None].expand(3000, 3, 4, 4)
    seen = [tuple(values.tolist()) for values in drop({"image": image.clone()})["image"][:, :, 0, 0]]
    assert all(values[1] == 20 for values in seen)
    assert {values[0] for values in seen} == {10, 20}
    assert {values[2] for values in seen} == {30, 20}
    share = {kind: seen.count(kind) / len(seen) for kind in set(seen)}
    assert share[20, 20, 20] == pytest.approx(0.15 + 0.85 * 0.10 * 0.05, abs=0.025)
    assert share[10, 20, 20] == pytest.approx(0.85 * 0.10 * 0.95, abs=0.025)
    assert share[20, 20, 30] == pytest.approx(0.85 * 0.90 * 0.05, abs=0.02)


def test_slices_of_8_bits_are_what_was_preprocessed(recipe: ConfigParser) -> None:
    """To half a level of each channel's own range; a flat channel stays what it is."""
    image = (
        torch.randn(3, SIZE, SIZE, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 9, 0])[:, None, None, None]
        + torch.tensor([0.0, -3, 7])[:, None, None, None]
    )
    label = torch.rand(1, SIZE, SIZE, 5, generator=torch.Generator().manual_seed(1))
    to_slices = composed(recipe, "train#to_slices")
    recipe["train#slices#volumes"] = [to_slices({"image": image, "label": label})]
    slices = recipe.get_parsed_content("train#slices")
    assert {part["image"].dtype for part in slices.volumes} == {torch.uint8}
    batch = slices[[4, 0, 1, 2, 3]]
    for found, wanted in ((batch["image"], image), (batch["label"], label)):
        expected = wanted.permute(3, 0, 1, 2)[[4, 0, 1, 2, 3]]
        ranges = expected.amax((0, 2, 3)) - expected.amin((0, 2, 3))
        assert ((found - expected).abs().amax((0, 2, 3)) <= ranges / 509).all()
    with pytest.raises(Exception, match="a volume: the preprocessed image holds NaN or Inf"):
        to_slices.transforms[0]({"image": image / 0, "label": label})


def test_picture_draws_the_prediction_red_and_the_truth_green() -> None:
    pred, label = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    pred[0, 2:7, 2:7] = 1
    label[0, 5:12, 5:12] = 1
    picture = handlers.ValidationPictures(None).picture(torch.full((16, 16), 51.0), pred, label)
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


def test_time_left_is_of_the_whole_training(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(iteration=100, max_epochs=10, epoch_length=100)
    progress = handlers.Progress(evaluator=None, batch_size=16, val_interval=1)
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    progress.start(SimpleNamespace(state=state))  # resumed at 100
    monkeypatch.setattr(time, "monotonic", lambda: 50.0 + 450)
    state.iteration = 200  # 4.5 s each, 800 to go
    assert progress.time_left(state) == "1:00:00"


def test_mask_is_the_largest_component_in_three_dimensions(recipe: ConfigParser) -> None:
    probability = torch.zeros(1, 12, 12, 6)
    probability[0, 1:4, 1:4, 0] = 0.9  # 9 voxels, and with the next slice's diagonal neighbour 18
    probability[0, 4:7, 4:7, 1] = 0.6
    probability[0, 8:12, 8:12, 4] = 1.0  # 16 voxels in one slice
    probability[0, 0:3, 9:12, 5] = 0.49
    mask = composed(recipe, "to_mask")({"pred": probability})["pred"][0]
    assert mask.sum() == 18
    assert np.array_equal(mask, largest_component((probability[0] >= 0.5).numpy()))


@pytest.mark.parametrize(("device", "amp"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_the_engines_amp_is_for_cuda_devices(recipe: ConfigParser, device: str, amp: bool) -> None:
    recipe["device"] = f"$torch.device('{device}')"
    recipe["network"] = recipe["network_def"]
    recipe["amp"] = True
    assert recipe.get_parsed_content("train#trainer#amp") is amp
    assert recipe.get_parsed_content("validate#evaluator#amp") is amp


@pytest.mark.parametrize(("there", "asked", "half"), [(True, None, True), (False, None, False), (True, False, False)])
def test_a_cpu_trains_in_16_bits_where_it_has_units_for_them(
    recipe: ConfigParser, monkeypatch: pytest.MonkeyPatch, there: bool, asked: bool | None, half: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there}, raising=False)
    recipe["device"] = "$torch.device('cpu')"
    if asked is not None:
        recipe["amp"] = asked
    seen = []

    class Network(torch.nn.Conv2d):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(super().forward(batch))
            return seen[-1]

    inferer = recipe.get_parsed_content("train#trainer#inferer")
    logits = inferer(torch.rand(2, 3, 8, 8), Network(3, 1, 1))
    assert logits.dtype == torch.float32
    assert seen[0].dtype == (torch.bfloat16 if half else torch.float32)


@pytest.fixture(scope="module")
def half_healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a manifest of four patients, two of them without a lesion; half train, half validate."""
    out = tmp_path_factory.mktemp("healthy")
    size = ["--patients", "4", "--size", "48", "--slices", "8", "--lesion-free", "2"]
    assert phantom.main([str(out / "phantoms"), *size]) == 0
    split = ["--split", "random", "--validation-fraction", "0.5", "--out", str(out / "manifest")]
    assert manifest_cli.main([str(out / "phantoms" / "kaggle_3m"), *split]) == 0
    return out / "manifest"


def test_key_metric_of_training_is_what_evaluation_gives(trained, half_healthy, tmp_path: Path) -> None:
    """Averaged weights, whole volumes, component rule, false positives on lesion-free patients: to 1e-6."""
    bundle, _ = trained
    weights = lively_weights(trained, half_healthy, tmp_path / "model.pt")
    datalist = str(half_healthy / "manifest.json")
    everyone = [item for part in ("training", "validation") for item in load_decathlon_datalist(datalist, True, part)]
    folders = {"dataset_dir": str(half_healthy), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        **{**TINY, **folders, "validate#dataset#data": everyone},
    )
    workflow.initialize()
    averaged = workflow.parser.get_parsed_content("ema").ema_model
    averaged.load_state_dict(torch.load(weights, weights_only=True))
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    summary = evaluated((bundle, tmp_path), half_healthy, tmp_path / "ours", "--split", "all")
    assert len(summary["false_positive_volumes"]) == 2
    assert 0 < summary["dsc_mean"] < 0.5
    assert evaluator.state.metrics["val_dsc"] == pytest.approx(summary["dsc_mean"], abs=1e-6)


def test_evaluate_json_says_where_there_is_no_dsc(trained, half_healthy, run_config, tmp_path: Path, caplog) -> None:
    bundle, _ = trained
    datalist = str(half_healthy / "manifest.json")
    patients = json.loads((half_healthy / "manifest.json").read_text())["patients"]
    everyone = [item for part in ("training", "validation") for item in load_decathlon_datalist(datalist, True, part)]
    healthy = [item for item in everyone if not patients[item["patient"]]["lesion_voxels"]]
    silent_weights(trained, tmp_path / "model.pt")
    folders = {"dataset_dir": str(half_healthy), "output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt")}
    overrides: dict[str, Any] = {**folders, "image_size": SIZE, "dataset#data": healthy}
    workflow = run_config(bundle / "configs" / "evaluate.json", **overrides)
    details = workflow.parser.get_parsed_content("evaluator").state.metric_details["val_dsc"]
    assert all(math.isnan(value) for value in details.flatten())
    assert "no volume has a DSC" in caplog.text
    with pytest.raises(RuntimeError) as failure:
        run_config(bundle / "configs" / "evaluate.json", **folders, split="test")
    assert "no patients in section test" in str(failure.value.__cause__)


def test_tensors_are_kept_where_glibc_can_be_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not machine.keep_freed_memory()
    told = []
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *given: told.append(given)))
    assert machine.keep_freed_memory()
    assert told == [(-4, 0), (-1, -1), (-8, 1)]
    for config in ("train", "multi_gpu_train"):
        content = json.loads((BUNDLES[0] / "configs" / f"{config}.json").read_text())
        assert "$@keep_memory" in content["initialize"]


def test_grid_is_that_of_affine_grid() -> None:
    grid_of = augmentation.grid_of
    theta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [5, 1, 7, 11], align_corners=False)
    assert torch.allclose(grid_of(theta, 7, 11), expected, atol=1e-6)


def test_bicubic_weights_are_those_of_interpolate() -> None:
    bicubic_of = augmentation.bicubic_of
    points = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    down, across = (bicubic_of(3, side, points.device) for side in (7, 11))
    expected = torch.nn.functional.interpolate(points, (7, 11), mode="bicubic")
    assert torch.allclose(down.T @ points @ across, expected, atol=1e-6)


@pytest.mark.parametrize(("size", "padded"), [(32, False), (40, True)])
def test_what_needs_no_pad_is_not_copied_to_the_same_logits(recipe: ConfigParser, size: int, padded: bool) -> None:
    if recipe["network_def"]["_target_"] == "AttentionUnet":
        pytest.skip("AttentionUnet pads nothing")
    recipe["image_size"] = size
    network = recipe.get_parsed_content("network").eval()
    parts = [part for part in network.modules() if hasattr(part, "is_pad")]
    assert {part.is_pad for part in parts} == {padded}
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(image)
        for part in parts:
            part.is_pad = True
        assert torch.equal(logits, network(image))
