"""Volumes of a manifest are predicted and scored. Results of different or unfinished runs are not mixed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest, select
from pipeline.errors import PipelineError
from pipeline.model.bundle import load_bundle
from pipeline.model.predictor import Predictor
from pipeline.pages.report import write_report
from pipeline.scoring.curves import read_curves
from pipeline.scoring.evaluation import EvaluationResult, evaluate_volumes
from pipeline.scoring.protocols import largest_component
from pipeline.scripts.files import sha256_file, write_durably
from tests.conftest import BUNDLES, ROOT, lively_weights


def evaluated(trained: tuple[Path, Path], manifest: Path, out: Path, **options: Any) -> EvaluationResult:
    """The library's evaluation of the weights in a folder."""
    bundle, weights = trained
    return evaluate_volumes(manifest, [bundle], out, weights=(weights / "model.pt",), **options)


def test_the_reference_protocol_drops_end_slices_before_the_component_rule(trained, manifest, tmp_path: Path) -> None:
    bundle, _ = trained
    lively_weights(trained, manifest, tmp_path / "model.pt")
    native = evaluated((bundle, tmp_path), manifest, tmp_path / "native", split="all").summary
    reference = evaluated((bundle, tmp_path), manifest, tmp_path / "reference", split="all", protocol="reference")
    assert (native["volumes"], native["protocol"], reference.summary["protocol"]) == (8, "native", "reference")
    volumes = {volume.patient: volume for volume in select(read_manifest(manifest), "all")}
    predictor = Predictor([load_bundle(bundle, tmp_path / "model.pt")])
    for score in reference.scores:
        inner = predictor.predict(volumes[score.patient].image).probability[..., 1:-1]
        assert score.predicted_voxels == largest_component(inner >= 0.5).sum()


def test_networks_and_flips_are_averaged(trained, manifest, tmp_path: Path, monkeypatch) -> None:
    bundle, out = trained
    lively_weights(trained, manifest, tmp_path / "model.pt")
    asked: list[tuple[int, bool]] = []
    passes = Predictor.passes

    def watch(predictor: Predictor, image: Path) -> Any:
        asked.append((len(predictor.bundles), predictor.flips))
        return passes(predictor, image)

    monkeypatch.setattr(Predictor, "passes", watch)
    evaluated((bundle, tmp_path), manifest, tmp_path / "alone")
    weights = (tmp_path / "model.pt", out / "model.pt")
    both = evaluate_volumes(manifest, [bundle, bundle], tmp_path / "both", weights=weights).summary
    assert [item["weights_sha256"] for item in both["bundles"]] == [sha256_file(path) for path in weights]
    flipped = evaluated((bundle, tmp_path), manifest, tmp_path / "flipped", flips=True).summary
    assert flipped["tta"] is True
    assert asked == [(1, False)] * 2 + [(2, False)] * 2 + [(1, True)] * 2


def test_curves_and_uncertainty_are_kept_for_a_report(trained, manifest, tmp_path: Path) -> None:
    lively_weights(trained, manifest, tmp_path / "model.pt")
    for path in trained[1].glob("log/events*"):
        shutil.copy(path, tmp_path)
    folder, out = (trained[0], tmp_path), tmp_path / "out"
    result = evaluated(folder, manifest, out, flips=True, uncertainty=True)
    patients = [volume.patient for volume in read_manifest(manifest).sections["validation"]]
    for patient in patients:
        assert (out / "masks" / f"{patient}_mask.nii.gz").is_file()
        assert (out / "volumes" / f"{patient}_label.nii.gz").is_file()
        assert (out / "uncertainty" / f"{patient}_uncertainty.nii.gz").is_file()
    assert [score.patient for score in result.scores] == patients
    assert all(0 < score.agreement <= 1 for score in result.scores)
    tags = read_curves(out / "curves.json")[trained[0].name]
    assert [step for step, _ in tags["val_dsc"]] == [4, 8]  # iterations, as for the training loss
    assert [step for step, _ in tags["train_loss"]] == list(range(1, 9))
    evaluated(folder, manifest, out)
    assert not list((out / "uncertainty").iterdir())
    with pytest.raises(PipelineError, match="--uncertainty with one network"):
        evaluated(folder, manifest, out, uncertainty=True)


@pytest.mark.parametrize("steps", ["$10 * 2", None], ids=["expression", "no record"])
def test_curves_by_epoch_are_left_out_where_the_length_of_an_epoch_is_not_known(
    trained, manifest, tmp_path: Path, steps: str | None
) -> None:
    for path in (trained[1] / "model.pt", *trained[1].glob("log/events*")):
        shutil.copy(path, tmp_path)
    if steps:
        record = json.loads((trained[1] / "training.json").read_text())
        record["config"]["steps_per_epoch"] = steps
        (tmp_path / "training.json").write_text(json.dumps(record))
    evaluated((trained[0], tmp_path), manifest, tmp_path / "out")
    assert list(read_curves(tmp_path / "out" / "curves.json")[trained[0].name]) == ["train_loss"]


def test_scores_are_kept_where_curves_cannot_be_read(trained, manifest, tmp_path: Path, monkeypatch) -> None:
    def damaged(*args: object) -> None:
        raise PipelineError("no readable event files")

    monkeypatch.setattr("pipeline.scoring.evaluation.read_events", damaged)
    with pytest.raises(PipelineError, match="no readable event files"):
        evaluated(trained, manifest, tmp_path / "out")
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 3


def test_an_evaluation_that_did_not_end_says_so(trained, manifest, tmp_path: Path, monkeypatch) -> None:
    """An unfinished evaluation may hold masks of two runs."""
    evaluated(trained, manifest, tmp_path / "out")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.scoring.evaluation.write_curves", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluated(trained, manifest, tmp_path / "out", flips=True)
    with pytest.raises(PipelineError, match="did not finish"):
        write_report([tmp_path / "out"])
    evaluated(trained, manifest, tmp_path / "out", flips=True)
    assert write_report([tmp_path / "out"])[0].is_file()


def test_results_of_another_split_are_not_mixed(trained, manifest, tmp_path: Path) -> None:
    evaluated(trained, manifest, tmp_path / "out", split="validation")
    evaluated(trained, manifest, tmp_path / "out", split="validation", flips=True)
    with pytest.raises(PipelineError, match="another split"):
        evaluated(trained, manifest, tmp_path / "out", split="test")


def test_evaluating_twice_writes_the_same_bytes(trained, manifest, tmp_path: Path) -> None:
    for name in ("first", "second"):
        evaluated(trained, manifest, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*") if path.is_file())
    # Table, summary and curves; for each of two patients, mask, image, label and a record.
    assert len(files) == 11
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_results_name_no_path_of_the_machine(trained, manifest, tmp_path: Path) -> None:
    evaluated(trained, manifest, tmp_path / "out")
    for name in ("scores.csv", "summary.json", "curves.json"):
        assert str(tmp_path.parent) not in (tmp_path / "out" / name).read_text()


def test_patients_the_weights_were_trained_on_are_named(trained, manifest, phantoms, tmp_path: Path, caplog) -> None:
    unseen = evaluated(trained, manifest, tmp_path / "unseen")
    assert unseen.summary["seen_in_training"] == []
    assert {score.seen for score in unseen.scores} == {False}
    other = tmp_path / "other"
    build_manifest(phantoms, other, split="random", validation_fraction=0.5, seed=7)
    scored = evaluated(trained, other, tmp_path / "seen")
    seen = scored.summary["seen_in_training"]
    assert [score.patient for score in scored.scores if score.seen] == seen
    trained_on = {volume.patient for volume in read_manifest(manifest).sections["training"]}
    validated = {volume.patient for volume in read_manifest(other).sections["validation"]}
    assert set(seen) == trained_on & validated != set()
    assert f"the weights were trained on {len(seen)} of {len(validated)} patients" in caplog.text
    assert all(patient in caplog.text for patient in seen)


def test_weights_without_their_record_are_said_to_be(trained, manifest, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "pipeline")
    shutil.copy(trained[1] / "model.pt", tmp_path)
    result = evaluated((trained[0], tmp_path), manifest, tmp_path / "out")
    assert not result.summary["bundles"][0]["recorded"]
    assert {score.seen for score in result.scores} == {None}
    assert "no training.json beside the weights" in caplog.text


@pytest.mark.parametrize("hidden", ["trained", "evaluated", "both"])
def test_pseudonyms_hide_who_was_trained_on(  # noqa: PLR0917
    trained, manifest, phantoms, tmp_path: Path, caplog, hidden: str
) -> None:
    """Pseudonyms are in the training's manifest, in this one, or in both with different keys."""
    record = json.loads((trained[1] / "training.json").read_text())
    assert record["pseudonymised"] is False
    if hidden != "evaluated":
        record |= {"training_patients": ["P0901", "P0902"], "manifest_sha256": "f" * 64, "pseudonymised": True}
    shutil.copy(trained[1] / "model.pt", tmp_path)
    (tmp_path / "training.json").write_text(json.dumps(record))
    here = manifest
    if hidden != "trained":
        here = tmp_path / "here"
        build_manifest(
            phantoms, here, split="random", validation_fraction=0.25, pseudonymise=tmp_path / "key" / "k.csv"
        )
    result = evaluated((trained[0], tmp_path), here, tmp_path / "out")
    assert {score.seen for score in result.scores} == {None}
    assert caplog.text.count("this manifest and that of the training use different pseudonyms or names") == 1


def test_an_unknown_protocol_is_an_error_that_names_the_known_ones(trained, manifest, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"'other'.*native or reference"):
        evaluated(trained, manifest, tmp_path / "out", protocol="other")


def test_pictures_of_other_masks_go_and_new_ones_are_drawn_under_the_lock(trained, manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    drawn = []

    def draw(result: EvaluationResult) -> None:
        (out / "figures").mkdir()
        drawn.append(result.summary["dsc_mean"])
        with pytest.raises(PipelineError, match="another run writes there"):
            evaluated(trained, manifest, out)

    result = evaluated(trained, manifest, out, draw=draw)
    assert drawn == [result.summary["dsc_mean"]]
    assert (out / "figures").is_dir()
    evaluated(trained, manifest, out)
    assert not (out / "figures").exists()


def test_the_folder_of_the_results_must_not_be_a_file(trained, manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match="there is a file where a folder is needed"):
        evaluated(trained, manifest, tmp_path / "file")
    with pytest.raises(PipelineError, match="there is a file where a folder is needed"):
        write_durably(tmp_path / "file" / "scores.csv", b"")


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run in one process, with the shipped weights."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate_volumes(manifest, BUNDLES[0], out, split="all")
    return out


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(whole: Path, manifest: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    given = ["--manifest", str(manifest), "--bundle", str(BUNDLES[0]), "--split", "all", "--out", str(tmp_path / "out")]
    command = [*torchrun, "-m", "pipeline.evaluate", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (whole, tmp_path / "out"))
    assert {**one, "command": ""} == {**two, "command": ""}


@pytest.mark.slow
def test_two_processes_end_with_the_fault_of_one(manifest: Path, tmp_path: Path) -> None:
    """Each of two processes checks its own volumes, and both find a bad one."""
    here = tmp_path / "here"
    shutil.copytree(manifest, here)
    volumes = read_manifest(here).volumes
    for volume in volumes[1:3]:
        volume.label.write_bytes(b"changed")
    with pytest.raises(PipelineError, match=re.escape(f"{volumes[1].label}: changed since")) as failure:
        evaluate_volumes(here, BUNDLES[0], tmp_path / "out", split="all")
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    given = ["--manifest", str(here), "--bundle", str(BUNDLES[0]), "--split", "all", "--out", str(tmp_path / "out")]
    command = [*torchrun, "-m", "pipeline.evaluate", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    errors = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert errors == {f"error: {failure.value}"}
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_was_stopped_goes_on(
    whole: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "scores.csv").unlink()
    masks = sorted((out / "masks").iterdir())
    masks[0].unlink()
    predicted = []
    original = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda self, image: predicted.append(image) or original(self, image))
    evaluate_volumes(manifest, BUNDLES[0], out, split="all", skip_existing=True)
    assert len(predicted) == 1
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    assert (out / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


def test_a_corrected_label_is_scored_again(manifest: Path, tmp_path: Path) -> None:
    """A datalist that was written by hand holds no hashes."""
    volume = read_manifest(manifest).sections["validation"][0]
    for kind, path in (("image", volume.image), ("label", volume.label)):
        shutil.copy(path, tmp_path / f"{kind}.nii.gz")
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"validation": [{"image": "image.nii.gz", "label": "label.nii.gz"}]}))
    before = evaluate_volumes(datalist, BUNDLES[0], tmp_path / "out").scores[0]
    label = nib.load(tmp_path / "label.nii.gz")
    nib.save(nib.Nifti1Image(1 - np.asarray(label.dataobj), label.affine), tmp_path / "label.nii.gz")
    after = evaluate_volumes(datalist, BUNDLES[0], tmp_path / "out", skip_existing=True).scores[0]
    assert before.lesion_voxels != after.lesion_voxels


def test_chosen_patients_alone(whole: Path, manifest: Path, tmp_path: Path) -> None:
    chosen = [volume.patient for volume in read_manifest(manifest).sections["validation"]][:1]
    result = evaluate_volumes(manifest, BUNDLES[0], tmp_path / "out", patients=chosen)
    assert [score.patient for score in result.scores] == chosen
    with pytest.raises(PipelineError, match="--patients nobody: not in this section"):
        evaluate_volumes(manifest, BUNDLES[0], tmp_path / "other", patients=["nobody"])
    with pytest.raises(PipelineError, match="another split, fold, manifest or choice of patients"):
        evaluate_volumes(manifest, BUNDLES[0], tmp_path / "out")
