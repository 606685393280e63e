"""Build folders like those of an evaluation, but without a network, and their pages."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from pipeline.imaging.nifti import nifti_bytes, save_map, save_mask
from pipeline.pages.report import write_report
from pipeline.scoring.curves import CURVES_NAME, write_curves
from pipeline.scoring.metrics import score_volume
from pipeline.scoring.results import VolumeScore, read_scores, read_summary, write_scores, write_summary
from pipeline.scoring.statistics import summarise
from pipeline.scripts.files import write_durably

PATIENTS = ("3", "12", "7", "9")
"""Ids from the best to the worst patient; the last has neither lesion nor prediction. They look like numbers."""
WORST_FIRST = ("7", "12", "3", "9")
DEPTH = 7
HOSTILE = '</script><img src=x onerror="window.hacked=1"> & {{ 7 * 7 }}'


def make_run(out: Path, shift: int, *, name: str = "basic_unet", protocol: str = "native", maps: bool = False) -> Path:
    """The folder of an evaluation. Patients have a square lesion, and predictions lie ``shift`` pixels beside it."""
    rng = np.random.default_rng(0)
    scores: list[VolumeScore] = []
    for number, patient in enumerate(PATIENTS):
        image = rng.integers(60, 160, (40, 36, DEPTH, 3), dtype=np.uint8)
        image[:6] = image[-6:] = 0
        truth = np.zeros(image.shape[:3], dtype=np.uint8)
        truth[12 : 20 + 2 * number, 12:20, 1:4] = patient != "9"
        mask = np.roll(truth, shift * (number + 1), axis=0)
        mask[:, :, 0] = 0
        for kind, volume in (("image", image), ("label", truth)):
            write_durably(out / "volumes" / f"{patient}_{kind}.nii.gz", nifti_bytes(volume))
        like = out / "volumes" / f"{patient}_image.nii.gz"
        save_mask(mask, out / "masks" / f"{patient}_mask.nii.gz", like)
        if maps:
            save_map((mask * 0.4).astype(np.float32), out / "uncertainty" / f"{patient}_uncertainty.nii.gz", like)
        scores.append(score_volume(patient, mask, truth))
    training = {
        "seed": 3,
        "config": {
            "image_size": 96,
            "batch_size": 8,
            "max_epochs": 10,
            "steps_per_epoch": 100,
            "loss": {"_target_": "DiceCELoss"},
        },
    }
    provenance = {
        "command": "python -m pipeline.evaluate --manifest data_manifest",
        "protocol": protocol,
        "split": "validation",
        "fold": None,
        "tta": False,
        "bundles": [{"name": name, "weights_sha256": "ab" * 32, "settings": {}, "training": training}],
        "manifest_sha256": "cd" * 32,
        "seen_in_training": [],
        "seed": 0,
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
    }
    write_scores(out, scores)
    write_summary(out, {**provenance, **summarise(scores, provenance["seed"])})
    return out


def changed(run: Path, **values: Any) -> Path:
    """Change values of a run's summary."""
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return run


def make_runs(root: Path) -> list[Path]:
    """Two runs: the first has training curves; the second predicts perfectly and has uncertainty maps."""
    made = [make_run(root / "first", 1), make_run(root / "second", 0, name="attention_unet", maps=True)]
    curve = {"train_loss": [(float(step), 1 / step) for step in range(1, 30)], "val_dsc": [(10.0, 0.5), (20.0, 0.7)]}
    write_curves(made[0] / CURVES_NAME, {"basic_unet": curve})
    return made


def data_of(page: Path) -> dict[str, Any]:
    """The data of the page's viewer."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def slices_of(view: dict[str, Any], address: str) -> np.ndarray:
    """The volume, (H, W, D), decoded from one of the viewer's images."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("L"))
    across, height, width = view["columns"], view["height"], view["width"]
    tiles = pixels.reshape(-1, height, across, width).swapaxes(1, 2).reshape(-1, height, width)
    return np.moveaxis(tiles[: view["depth"]], 0, 2)


def trained_on(run: Path, *patients: str) -> Path:
    """Mark these patients of a run as trained on, and all others as not trained on."""
    write_scores(run, [replace(score, seen=score.patient in patients) for score in read_scores(run)])
    return changed(run, seen_in_training=list(patients))


def many_patients(source: Path, out: Path, count: int) -> Path:
    """An evaluation of so many patients, all copies of one patient of another evaluation."""
    summary, (score, *_) = read_summary(source), read_scores(source)
    scores = [replace(score, patient=f"TEST_CS_{number:04d}_1996", dsc=number / count) for number in range(count)]
    for file in source.glob(f"*/{score.patient}_*"):
        for one in scores:
            copy = out / file.parent.name / file.name.replace(score.patient, one.patient, 1)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(file)
    write_scores(out, scores)
    write_summary(out, {**summary, **summarise(scores)})
    return out


def make_predictions(out: Path) -> tuple[Path, dict[str, Path]]:
    """A folder of predictions, and name -> image: only FLAIR, stored as RAS, with rows twice as thick as columns."""
    rng = np.random.default_rng(0)
    images = {}
    facts = {
        "a": {"lesion_voxels": 0, "lesion_ml": 0.0, "agreement": None},
        "b": {"lesion_voxels": 1234, "lesion_ml": 1.23, "agreement": 0.812},
        HOSTILE.replace("/", "-"): {"lesion_voxels": 5, "lesion_ml": None, "agreement": None},
    }
    for name, found in facts.items():
        mask = np.zeros((36, 40, DEPTH), np.uint8)
        mask[20:28, 24:30, 2:5] = bool(found["lesion_voxels"])
        image = nib.Nifti1Image(
            (rng.normal(900, 50, mask.shape) + mask * 900.0).astype(np.int16), np.diag([0.9, 1.8, 5, 1])
        )
        image.header.set_xyzt_units("mm")
        images[name] = out / "given" / f"{name}.nii.gz"
        images[name].parent.mkdir(exist_ok=True)
        nib.save(image, images[name])
        save_mask(mask, out / f"{name}_mask.nii.gz", images[name])
        if name == "b":
            save_map((mask * 0.3).astype(np.float32), out / f"{name}_uncertainty.nii.gz", images[name])
    rest = {"lesion_slices": 12, "slices": 30, "box": [], "centroid_mm": [-3.5, 4.0, 5.5], "image_sha256": "cd" * 32}
    summary = {
        "bundles": [{"name": "basic_unet", "weights_sha256": "ab" * 32}],
        "tta": True,
        "backend": "torch",
        "device": "cpu",
        "versions": {"torch": "2.13.0"},
        "volumes": [{"volume": name, "image": f"{name}.nii.gz", **rest, **found} for name, found in facts.items()],
        "failed": {"broken.nii.gz": "no NIfTI"},
    }
    (out / "predictions.json").write_text(json.dumps(summary))
    return out, images


def hostile_page(source: Path, run: Path) -> Path:
    """A page with HTML in the names of patient and run. Only a manifest refuses such ids."""
    shutil.copytree(source, run)
    name = HOSTILE.replace("/", "\u2215")  # no file name holds a slash
    for path in (*run.glob("*/3_*"),):
        path.rename(path.with_name(name + path.name[1:]))
    rows = (run / "scores.csv").read_text().replace("\n3,", '\n"' + name.replace('"', '""') + '",')
    (run / "scores.csv").write_text(rows)
    return write_report([run], names=[HOSTILE])[0]
