"""What cannot be trained is refused in one line before anything is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.model.training import plan_training
from pipeline.scripts.faults import fault_line
from pipeline.scripts.files import sha256_file
from tests.conftest import TINY


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_a_second_training_in_one_folder_is_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys, time\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    overrides = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log"), **TINY}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **overrides)
        assert "another run writes there" in str(failure.value.__cause__)
        assert not list(tmp_path.glob("*.pt"))
        # Its checkpoints are not called those of an interrupted one, to be deleted.
        (tmp_path / "checkpoint_1.pt").touch()
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **overrides)
        assert "another run writes there" in str(failure.value.__cause__)
        with pytest.raises(PipelineError, match="another run writes there"):
            plan_training(trained[0], manifest, out=tmp_path)
        (tmp_path / "checkpoint_1.pt").unlink()
        other.communicate("")
    run_config(trained[0] / "configs" / "train.json", **overrides)  # the other is gone, its lock with it
    assert (tmp_path / "model.pt").is_file()


def test_a_switch_that_is_text_is_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    for switch in ("crop_to_head", "amp"):
        with pytest.raises(RuntimeError) as failure:
            overrides = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), **TINY}
            run_config(trained[0] / "configs" / "train.json", **overrides, **{switch: "false"})
        assert "expected True or False, capitalised" in str(failure.value.__cause__)
    assert not list(tmp_path.glob("*.pt"))


def test_handlers_that_leave_the_average_out_are_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    """The weights that are kept would be those of the first step."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **folders, **TINY, **{"train#handlers": []})
    assert "scripts.handlers.Attach with @ema is missing" in str(failure.value.__cause__)
    with pytest.raises(RuntimeError) as failure:
        several = {"train#trainer#accumulation_steps": 2, "warmup_fraction": 0}
        run_config(trained[0] / "configs" / "train.json", **folders, **TINY, **several)
    assert "clipped and weights averaged at every batch (expected 1)" in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


def test_a_damaged_volume_is_named_before_any_is_read(trained, manifest, run_config, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "data")
    volume = sorted((tmp_path / "data" / "volumes").glob("*_image.nii.gz"))[0]
    volume.write_bytes(volume.read_bytes()[:-50])
    folders = {"ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", dataset_dir=str(tmp_path / "data"), **folders, **TINY)
    message = fault_line(failure.value)
    assert message
    assert message.startswith(f"{volume}: changed since the manifest was built") or "manifest" in message
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "log").exists()


def test_volumes_without_a_manifest_are_checked_before_a_training(
    trained, manifest, run_config, tmp_path: Path
) -> None:
    """In a datalist of another program. MONAI would crop a label that lies elsewhere, and train with it."""
    data, folders = tmp_path / "data", {"ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    shutil.copytree(manifest / "volumes", data / "volumes")
    images = sorted(f"volumes/{path.name}" for path in (data / "volumes").glob("*_image.nii.gz"))
    items = [
        {"image": image, "label": image.replace("_image", "_label"), "patient": f"P{number}"}
        for number, image in enumerate(images)
    ]
    exams = [{**item, "patient": f"sub-1_ses-{number}"} for number, item in enumerate(items)]
    (data / "manifest.json").write_text(json.dumps({"training": exams[2:], "validation": exams[:2]}))

    def refusal() -> str:
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", dataset_dir=str(data), **folders, **TINY)
        assert not (tmp_path / "run").exists()
        return fault_line(failure.value) or ""

    assert "one person trains and validates: sub-1 (1 in all" in refusal()
    numbered = [{**item, "patient": 7} for item in items]
    (data / "manifest.json").write_text(json.dumps({"training": numbered[2:], "validation": numbered[:2]}))
    assert "one person trains and validates: 7 (1 in all" in refusal()
    items = [{key: item[key] for key in ("image", "label")} for item in items]
    (data / "manifest.json").write_text(json.dumps({"training": items[2:], "validation": items[1:2] + items[2:3]}))
    assert "one person trains and validates: " in refusal()
    (data / "manifest.json").write_text(json.dumps({"training": items[2:], "validation": items[:2]}))
    label = data / items[3]["label"]
    whole, loaded = label.read_bytes(), nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(loaded.dataobj), np.diag([-1, 1, 1, 1]) @ loaded.affine), label)
    assert "mm away from" in refusal()
    label.write_bytes(whole[:-50])
    assert f"{label}: damaged NIfTI file" in refusal()
    label.write_bytes(whole)
    run_config(trained[0] / "configs" / "train.json", dataset_dir=str(data), **folders, **{**TINY, "max_epochs": 1})
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["training_patients"], record["manifest_sha256"]) == ([], sha256_file(data / "manifest.json"))


def test_keys_of_earlier_versions_name_their_successors(trained, manifest, run_config, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    for config, key, successor in (
        ("train", "missing_sequences", "augmentation"),
        ("train", "train#sampler", "batch_size and steps_per_epoch"),
        ("train", "ckpt_path", "init, to start from weights"),
        ("evaluate", "datalist", "dataset_dir"),
    ):
        places = {**folders, "ckpt_dir": str(trained[1])} if config == "evaluate" else {**folders, **TINY}
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / f"{config}.json", **places, **{key: "x"})
        assert f"{key}: is no key of this version. Use {successor}" in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_training(trained, manifest, run_config, tmp_path: Path) -> None:
    bundle, _ = trained
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    overrides = {
        **TINY,
        "augmentation": [{"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * float('nan')"}],
    }
    with pytest.raises(Exception, match="Failed to evaluate") as failure:
        run_config(bundle / "configs" / "train.json", **folders, **overrides)
    assert "not finite at iteration 1" in str(failure.value.__cause__)
    assert not (tmp_path / "model.pt").exists()
