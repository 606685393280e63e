"""The download command against a stand-in for kagglehub with the real signature (Kaggle itself is never asked)."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.errors import PipelineError, run_cli
from pipeline.fetch import HANDLE, find_slices, main


def archive(root: Path, *, slices: bool = True) -> Path:
    """Lay out what Kaggle's archive unpacks to: the folder and its nested second copy."""
    for folder in (root / "kaggle_3m", root / "lgg-mri-segmentation" / "kaggle_3m"):
        patient = folder / "TCGA_XX_0001_19990101"
        patient.mkdir(parents=True)
        if slices:
            (patient / "TCGA_XX_0001_19990101_1.tif").write_bytes(b"stand-in")
    return root


@pytest.fixture
def kagglehub(monkeypatch, tmp_path):
    """kagglehub 1.0: ``dataset_download`` with ``output_dir``; ``calls`` records what was asked."""
    module = ModuleType("kagglehub")
    module.calls = []

    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        module.calls.append((handle, output_dir))
        root = Path(output_dir) if output_dir else tmp_path / "cache" / "versions" / "2"
        if not (root / "kaggle_3m").exists():
            archive(root)
        return str(root)

    module.dataset_download = dataset_download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def use_old_kagglehub(module, root):
    def dataset_download(handle, path=None, *, force_download=False):
        module.calls.append((handle, None))
        return str(root)

    module.dataset_download = dataset_download


def test_prints_licence_and_next_command_for_the_outer_folder(kagglehub, tmp_path, capsys):
    assert run_cli(main, []) == 0
    printed = capsys.readouterr().out
    outer = tmp_path / "cache" / "versions" / "2" / "kaggle_3m"
    assert f"python -m pipeline.manifest {outer}\n" in printed
    assert "1 patients" in printed
    for word in ("CC BY-NC-SA 4.0", "Buda et al.", "Mazurowski et al."):
        assert word in printed
    assert kagglehub.calls == [(HANDLE, None)]


def test_dest_is_downloaded_to_directly_and_quoted(kagglehub, tmp_path, capsys):
    dest = tmp_path / "with space"
    assert run_cli(main, ["--dest", str(dest)]) == 0
    assert kagglehub.calls == [(HANDLE, str(dest))]
    assert f"'{dest / 'kaggle_3m'}'" in capsys.readouterr().out


def test_dest_is_copied_to_where_kagglehub_knows_no_output_dir(kagglehub, tmp_path, capsys):
    use_old_kagglehub(kagglehub, archive(tmp_path / "cache"))
    dest = tmp_path / "new" / "dest"
    for _ in range(2):  # a second call finds the copy
        assert run_cli(main, ["--dest", str(dest)]) == 0
    assert [path.name for path in dest.rglob("*.tif")] == ["TCGA_XX_0001_19990101_1.tif"]
    assert str(dest / "kaggle_3m") in capsys.readouterr().out


def test_interrupted_copy_is_started_again(kagglehub, tmp_path):
    use_old_kagglehub(kagglehub, archive(tmp_path / "cache"))
    (tmp_path / "dest" / ".kaggle_3m.partial" / "half").mkdir(parents=True)
    assert run_cli(main, ["--dest", str(tmp_path / "dest")]) == 0
    assert [entry.name for entry in (tmp_path / "dest").iterdir()] == ["kaggle_3m"]


def test_copy_that_cannot_be_written_is_a_message(kagglehub, tmp_path, capsys):
    use_old_kagglehub(kagglehub, archive(tmp_path / "cache"))
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run_cli(main, ["--dest", str(tmp_path / "file" / "dest")]) == 2
    assert "cannot copy the slices" in capsys.readouterr().err


def test_dest_that_is_a_file_is_refused_before_any_download(kagglehub, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run_cli(main, ["--dest", str(tmp_path / "file")]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
    assert kagglehub.calls == []


def test_missing_kagglehub_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert run_cli(main, []) == 2
    error = capsys.readouterr().err
    assert "pip install kagglehub" in error
    assert "with a browser" in error


def test_failed_download_tells_cause_and_the_manual_way(kagglehub, capsys):
    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        raise ConnectionError("no route\nto host")

    kagglehub.dataset_download = dataset_download
    assert run_cli(main, []) == 2
    error = capsys.readouterr().err
    assert "ConnectionError: no route to host" in error
    assert f"https://www.kaggle.com/datasets/{HANDLE}" in error
    assert "point pipeline.manifest to its folder kaggle_3m" in error
    assert "Traceback" not in error


def test_download_without_slices_is_refused(kagglehub, tmp_path, capsys):
    use_old_kagglehub(kagglehub, archive(tmp_path / "cache", slices=False))
    assert run_cli(main, []) == 2
    assert "found no folder kaggle_3m with slices" in capsys.readouterr().err


def test_find_slices_takes_the_folder_itself_and_the_nested_one_when_alone(tmp_path):
    root = archive(tmp_path / "archive")
    assert find_slices(root) == root / "kaggle_3m"
    assert find_slices(root / "kaggle_3m") == root / "kaggle_3m"
    nested = root / "lgg-mri-segmentation"
    assert find_slices(nested) == nested / "kaggle_3m"
    with pytest.raises(PipelineError, match="expected kaggle_3m/PATIENT"):
        find_slices(tmp_path / "absent")


@pytest.mark.skipif(importlib.util.find_spec("kagglehub") is None, reason="kagglehub (extra fetch) is not installed")
def test_real_kagglehub_accepts_the_arguments_used():
    import kagglehub as real

    parameters = inspect.signature(real.dataset_download)
    parameters.bind(HANDLE)
    if "output_dir" in parameters.parameters:
        parameters.bind(HANDLE, output_dir="somewhere")
