"""The synthetic dataset: layout, determinism, refusals, and that no FLAIR threshold solves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.anatomy import SITE_GAINS, end_margin
from pipeline.errors import PipelineError, run_cli
from pipeline.phantom import main, make_patient, patient_id
from pipeline.records import CHANNELS

SMALL = ["--patients", "3", "--size", "32", "--slices", "4"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_layout_is_the_published_one(tmp_path, capsys):
    assert run_cli(main, [str(tmp_path), *SMALL]) == 0
    folder = tmp_path / "kaggle_3m"
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(patient_id(i, 0) for i in range(3))
    for index in range(3):
        image, mask, _ = make_patient(index, size=32, slices=4, seed=0)
        name = patient_id(index, 0)
        assert {path.name for path in (folder / name).iterdir()} == {
            f"{name}_{number}{suffix}.tif" for number in range(1, len(image) + 1) for suffix in ("", "_mask")
        }
        for number in range(1, len(image) + 1):
            read = np.asarray(Image.open(folder / name / f"{name}_{number}.tif"))
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, image[number - 1])
            label = np.asarray(Image.open(folder / name / f"{name}_{number}_mask.tif"))
            assert label.dtype == np.uint8
            np.testing.assert_array_equal(label, mask[number - 1])
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"python -m pipeline.manifest {folder} --split random" in last


def test_same_seed_same_bytes_and_patients_do_not_depend_on_their_number(tmp_path):
    for name, arguments in {"a": SMALL, "b": SMALL, "fewer": ["--patients", "2", *SMALL[2:]]}.items():
        assert main([str(tmp_path / name), *arguments]) == 0
    first = contents(tmp_path / "a" / "kaggle_3m")
    assert contents(tmp_path / "b" / "kaggle_3m") == first
    assert contents(tmp_path / "fewer" / "kaggle_3m").items() <= first.items()
    other, _, _ = make_patient(0, size=32, slices=4, seed=1)
    own, _, _ = make_patient(0, size=32, slices=4, seed=0)
    assert other.shape != own.shape or not np.array_equal(other, own)


@pytest.mark.parametrize("slices", [4, 5, 12])
def test_every_patient_has_a_lesion_away_from_both_ends(slices):
    depths = set()
    for index in range(30):
        image, mask, _ = make_patient(index, size=32, slices=slices, seed=3)
        depths.add(len(image))
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert 0.75 * slices - 1 <= len(image) <= 1.25 * slices + 1
        assert set(np.unique(mask)) == {0, 255}
        free = end_margin(len(image))
        assert free >= max(1, len(image) // 8)
        assert not mask[:free].any()
        assert not mask[-free:].any()
        assert image.max(axis=(0, 1, 2)).min() > 40, "a channel is all but black"
    assert len(depths) > 1


def test_one_patient_in_eight_repeats_flair():
    patients = [make_patient(index, size=32, slices=4, seed=0) for index in range(40)]
    for start in range(0, 40, 8):
        assert sum(bool(missing) for _, _, missing in patients[start : start + 8]) == 1
    kinds = set()
    for image, _, missing in patients:
        kinds.add(missing)
        for channel in (0, 2):
            assert np.array_equal(image[..., channel], image[..., 1]) == (CHANNELS[channel] in missing)
    assert kinds == {(), ("post-contrast",), ("pre-contrast", "post-contrast")}


def test_lesion_free_patient_is_the_same_head(tmp_path):
    image, mask, _ = make_patient(1, size=64, slices=8, seed=0)
    plain, empty, _ = make_patient(1, size=64, slices=8, seed=0, lesion=False)
    assert mask.any()
    assert not empty.any()
    healthy = ~mask.any(axis=(1, 2))
    np.testing.assert_array_equal(image[[0, -1]], plain[[0, -1]])
    assert healthy.sum() >= 2
    assert not np.array_equal(image, plain)
    assert main([str(tmp_path), *SMALL, "--lesion-free", "2"]) == 0
    lesions = [
        any(
            np.asarray(Image.open(path)).any()
            for path in (tmp_path / "kaggle_3m" / patient_id(i, 0)).glob("*_mask.tif")
        )
        for i in range(3)
    ]
    assert lesions == [False, False, True]


def best_threshold_dsc(volumes: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean per-volume DSC of the one threshold that is best for all volumes together."""
    thresholds = np.unique(
        np.quantile(np.concatenate([flair.ravel() for flair, _ in volumes]), np.linspace(0.5, 1, 200))
    )
    means = []
    for threshold in thresholds:
        scores = []
        for flair, truth in volumes:
            found = flair > threshold
            scores.append(2 * np.sum(found & truth) / (found.sum() + truth.sum()))
        means.append(float(np.mean(scores)))
    return max(means)


def test_no_single_flair_threshold_finds_the_lesions():
    plain, percentile, rank, brain = [], [], [], []
    for index in range(12):
        image, mask, _ = make_patient(index, size=64, slices=12, seed=0)
        flair, truth = image[..., 1].astype(float), mask > 0
        plain.append((flair, truth))
        low, high = np.percentile(flair, (1, 99))
        percentile.append(((flair - low) / (high - low), truth))
        rank.append((flair.ravel().argsort().argsort().reshape(flair.shape) / flair.size, truth))
        inner = flair[flair > 20]
        brain.append(((flair - inner.mean()) / inner.std(), truth))
    assert best_threshold_dsc([(truth.astype(float), truth) for _, truth in plain]) == 1.0, "the search itself fails"
    assert best_threshold_dsc(plain) < 0.6
    # Nor after each volume is normalised, by percentiles, by rank, or over the brain alone.
    assert best_threshold_dsc(percentile) < 0.6
    assert best_threshold_dsc(rank) < 0.6
    assert best_threshold_dsc(brain) < 0.6


def test_lesions_differ_from_their_surroundings_in_every_sequence():
    for index in range(8):
        image, mask, missing = make_patient(index, size=64, slices=8, seed=0)
        plain, _, _ = make_patient(index, size=64, slices=8, seed=0, lesion=False)
        change = image[mask > 0].astype(float).mean(axis=0) - plain[mask > 0].astype(float).mean(axis=0)
        assert change[1] > 3
        assert missing or change[0] < -2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patients", "0"], "patients is 0, expected 1 to 10000"),
        (["--patients", "10001"], "patients is 10001"),
        (["--size", "31"], "size is 31, expected 32 to 1024"),
        (["--size", "2048"], "size is 2048"),
        (["--slices", "3"], "slices is 3, expected 4 to 200"),
        (["--seed", "-1"], "seed is -1"),
        (["--patients", "2", "--lesion-free", "3"], "lesion-free is 3, expected 0 to the number of patients, 2"),
        (["--lesion-free", "-1"], "lesion-free is -1"),
    ],
)
def test_bad_arguments_exit_2_and_write_nothing(tmp_path, capsys, arguments, message):
    assert run_cli(main, [str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_make_patient_refuses_what_the_command_line_refuses():
    with pytest.raises(PipelineError, match="size is 8"):
        make_patient(0, size=8, slices=4, seed=0)


def test_more_than_the_disk_holds_is_refused(tmp_path, capsys):
    arguments = ["--patients", "10000", "--size", "1024", "--slices", "200"]
    assert run_cli(main, [str(tmp_path / "out"), *arguments]) == 2
    assert "may need 10485.8 GB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_call_is_refused_unless_forced(tmp_path, capsys):
    assert main([str(tmp_path), *SMALL]) == 0
    before = contents(tmp_path)
    assert run_cli(main, [str(tmp_path), *SMALL, "--seed", "5"]) == 2
    error = capsys.readouterr().err
    assert "choose another folder" in error.lower()
    assert "--force" in error
    assert contents(tmp_path) == before
    assert run_cli(main, [str(tmp_path), *SMALL, "--seed", "5", "--force"]) == 0
    assert {entry.name for entry in (tmp_path / "kaggle_3m").iterdir()} == {patient_id(i, 5) for i in range(3)}


def test_force_never_deletes_what_is_no_phantom(tmp_path, capsys):
    real = tmp_path / "kaggle_3m" / "TCGA_XX_0001_19990101"
    real.mkdir(parents=True)
    assert run_cli(main, [str(tmp_path), *SMALL, "--force"]) == 2
    assert "TCGA_XX_0001_19990101" in capsys.readouterr().err
    assert real.is_dir()


def test_interrupted_call_leaves_whole_patients_and_goes_on(tmp_path, monkeypatch):
    assert main([str(tmp_path / "whole"), *SMALL]) == 0
    save, written = Image.Image.save, []

    def interrupted(self, target, *args, **kwargs):
        written.append(target)
        if len(written) == 12:  # amid the second patient
            raise KeyboardInterrupt
        save(self, target, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert run_cli(main, [str(tmp_path / "cut"), *SMALL]) == 130
    whole = contents(tmp_path / "whole" / "kaggle_3m")
    left = contents(tmp_path / "cut" / "kaggle_3m")
    assert left
    assert left.items() < whole.items()
    for entry in (tmp_path / "cut" / "kaggle_3m").iterdir():
        assert len(list(entry.iterdir())) == len(list((tmp_path / "whole" / "kaggle_3m" / entry.name).iterdir()))
    monkeypatch.setattr(Image.Image, "save", save)
    assert run_cli(main, [str(tmp_path / "cut"), *SMALL]) == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_unwritable_target_is_a_message(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run_cli(main, [str(tmp_path / "file" / "out"), *SMALL]) == 2
    assert "cannot write the phantoms" in capsys.readouterr().err


def test_patient_id_names_an_institution():
    names = [patient_id(index, 0) for index in range(30)]
    assert names[0].endswith("_0001")
    assert {name.split("_")[1] for name in names} == set(SITE_GAINS)
