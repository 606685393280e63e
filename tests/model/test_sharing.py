"""Processes share volumes, and a stopped run can continue."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.cohort.manifest import read_manifest
from pipeline.errors import ManifestError, PipelineError
from pipeline.model.predictions import predict_volumes
from pipeline.model.sharing import Finished, Share, own_device, shared
from tests.conftest import BUNDLES, ROOT


def test_every_item_is_in_one_share() -> None:
    items = list(range(7))
    parts = [Share(rank, 3).of(items) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) == 1


def test_each_process_checks_its_own_and_raises_the_first_fault_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    received: list[object] = []

    def check(item: str) -> None:
        checked.append(item)
        if item in "cd":
            raise PipelineError(f"{item} is faulty")

    def gather(share: Share, items: Sequence[object]) -> list[object]:
        received.extend(items)
        return received

    Share().check(check, "ab")
    with pytest.raises(PipelineError, match="c is faulty"):
        Share().check(check, "abcdef")
    assert checked == [*"ab", *"abc"]
    checked.clear()
    monkeypatch.setattr(Share, "gather", gather)
    for rank in (0, 1):
        with pytest.raises(PipelineError, match="c is faulty"):
            Share(rank, 2).check(check, "abcdef")
    assert checked == [*"ac", *"bd"]


def test_processes_get_gpus_in_turn_for_pytorch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(None) == "cuda:1"
    assert own_device("cpu") == "cpu"
    assert own_device(None, "onnx") is None


def test_one_process_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with shared() as share:
        assert (share.rank, share.size, share.is_first) == (0, 1, True)
        assert share.gather([1, 2]) == [1, 2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PipelineError, match=r"2 processes \(WORLD_SIZE\) cannot be joined"), shared():
        pass


def test_results_of_other_settings_do_not_count(tmp_path: Path) -> None:
    finished = Finished(tmp_path, {"tta": False})
    image = tmp_path / "image"
    image.write_text("one")
    finished.write("a", {"voxels": 3}, [image])
    assert finished.read("a", [image]) == {"voxels": 3}
    assert finished.read("b", [image]) is None
    assert Finished(tmp_path, {"tta": True}).read("a", [image]) is None
    image.write_text("two")
    assert finished.read("a", [image]) is None
    image.unlink()
    assert finished.read("a", [image]) is None
    (finished.folder / "a.json").write_text("{")
    assert finished.read("a", []) is None
    finished.write("b", {}, [])
    finished.clear(["a", "none"])
    assert [path.name for path in finished.folder.iterdir()] == ["b.json"]


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    predict_volumes(manifest, BUNDLES[0], out)
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(whole: Path, manifest: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = ["-m", "pipeline.predict", str(manifest), "--bundle", str(BUNDLES[0]), "--out", str(tmp_path / "out")]
    done = subprocess.run([*torchrun, *command, "--no-figures"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Research only") == 1
    assert content(tmp_path / "out") == content(whole)


def test_a_run_that_was_stopped_goes_on(
    whole: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run continues: it keeps masks, predicts missing ones again, and does not replace masks of other settings."""
    from pipeline.model import predictions

    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("predictions.csv", "predictions.json"):
        (out / name).unlink()
    masks = sorted(out.glob("*_mask.nii.gz"))
    masks[0].unlink()
    seen = []
    original = predictions.save_prediction

    def counted(*arguments: object) -> None:
        seen.append(arguments[2])
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predictions, "save_prediction", counted)
    with pytest.raises(PipelineError, match="already exists"):
        predict_volumes(manifest, BUNDLES[0], out)
    predict_volumes(manifest, BUNDLES[0], out, skip_existing=True)
    assert seen == masks[:1]
    assert content(out) == content(whole)
    with pytest.raises(PipelineError, match=r"_mask\.nii\.gz.* of other bundles, options or versions"):
        predict_volumes(manifest, BUNDLES[0], out, skip_existing=True, flips=True)
    assert content(out) == content(whole)
    predict_volumes(manifest, BUNDLES[0], out, skip_existing=True, flips=True, overwrite=True)
    assert len(seen) == 1 + len(masks)
    predict_volumes(manifest, BUNDLES[0], out, overwrite=True)
    assert len(seen) == 1 + 2 * len(masks)


def test_a_run_that_was_killed_while_a_mask_was_written_goes_on(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.model import predictions

    def killed(path: Path) -> str:
        raise KeyboardInterrupt

    image = read_manifest(manifest).volumes[0].image
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predictions, "sha256_file", killed)  # killed after the mask was written, before its record
        predict_volumes(image, BUNDLES[0], tmp_path)
    assert len(list(tmp_path.glob("*_mask.nii.gz"))) == 1
    assert predict_volumes(image, BUNDLES[0], tmp_path, skip_existing=True).faults == {}


def test_a_mask_corrected_by_hand_is_not_replaced(whole: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = min(out.glob("*_mask.nii.gz"))
    mask = nib.load(path)
    corrected = nib.Nifti1Image(1 - np.asarray(mask.dataobj), mask.affine)
    nib.save(corrected, path)
    result = predict_volumes(manifest, BUNDLES[0], out, skip_existing=True)
    (fault,) = result.faults.values()
    assert fault.startswith(f"{path.name} belongs to another image, or was changed or added later")
    assert np.array_equal(nib.load(path).dataobj, corrected.dataobj)
    assert len(result.predictions) == len(list(out.glob("*_mask.nii.gz"))) - 1
    shutil.rmtree(out / ".finished")  # as if only the masks were copied
    with pytest.raises(ManifestError, match="was changed or added later"):
        predict_volumes(manifest, BUNDLES[0], out, skip_existing=True)
    assert np.array_equal(nib.load(path).dataobj, corrected.dataobj)
    assert not predict_volumes(manifest, BUNDLES[0], out, skip_existing=True, overwrite=True).faults
    assert content(out)[path.name] == content(whole)[path.name]


def test_another_file_of_the_same_name_is_not_mistaken(manifest: Path, tmp_path: Path) -> None:
    """This also holds if the networks read a volume that was built from the file."""
    from tests.imaging.series import save_itk

    found = []
    for volume in read_manifest(manifest).volumes[:2]:
        image = nib.load(volume.image)
        save_itk(tmp_path / "flair.mha", np.asarray(image.dataobj)[..., 1].astype(np.int16), image.affine)
        if found:
            with pytest.raises(ManifestError, match=r"flair_mask\.nii\.gz belongs to another image"):
                predict_volumes(tmp_path / "flair.mha", BUNDLES[0], tmp_path / "out", skip_existing=True)
        result = predict_volumes(
            tmp_path / "flair.mha", BUNDLES[0], tmp_path / "out", skip_existing=True, overwrite=bool(found)
        )
        found.append(result.predictions[0].image_sha256)
    assert found[0] != found[1]
