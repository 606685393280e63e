"""Old and new kagglehub download all of the dataset or nothing. A failure explains the manual way."""

from __future__ import annotations

import importlib.util
import inspect
import sys

import pytest

from pipeline.cohort.download import HANDLE, download, find_slices
from pipeline.errors import PipelineError
from tests.cohort.kaggle import archive, make_old, stand_in


@pytest.fixture
def kagglehub(monkeypatch, tmp_path):
    module = stand_in(tmp_path / "cache" / "versions" / "2")
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def test_without_a_folder_the_cache_is_used(kagglehub, tmp_path):
    assert download(None) == tmp_path / "cache" / "versions" / "2" / "kaggle_3m"
    assert kagglehub.calls == [(HANDLE, None)]


def test_dest_is_downloaded_to_directly(kagglehub, tmp_path):
    dest = tmp_path / "with space"
    assert download(dest) == dest / "kaggle_3m"
    assert kagglehub.calls == [(HANDLE, str(dest))]


def test_dest_is_copied_to_where_kagglehub_knows_no_output_dir(kagglehub, tmp_path):
    make_old(kagglehub, archive(tmp_path / "cache"))
    dest = tmp_path / "new" / "dest"
    for _ in range(2):  # a second call finds the copy
        assert download(dest) == dest / "kaggle_3m"
    assert [path.name for path in dest.rglob("*.tif")] == ["TCGA_XX_0001_19990101_1.tif"]


def test_interrupted_copy_is_started_again(kagglehub, tmp_path):
    make_old(kagglehub, archive(tmp_path / "cache"))
    (tmp_path / "dest" / ".kaggle_3m.partial" / "half").mkdir(parents=True)
    download(tmp_path / "dest")
    assert [entry.name for entry in (tmp_path / "dest").iterdir()] == ["kaggle_3m"]


def test_copy_that_cannot_be_written_is_a_message(kagglehub, tmp_path):
    make_old(kagglehub, archive(tmp_path / "cache"))
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(PipelineError, match="kaggle_3m: there is a file where a folder is needed"):
        download(tmp_path / "file" / "dest")


def test_missing_kagglehub_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(PipelineError, match=r"pip install kagglehub.*with a browser"):
        download(None)


def test_failed_download_tells_cause_and_the_manual_way(kagglehub):
    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        raise ConnectionError("no route\nto host")

    kagglehub.dataset_download = dataset_download
    with pytest.raises(PipelineError) as info:
        download(None)
    error = str(info.value)
    assert "ConnectionError: no route to host" in error
    assert f"https://www.kaggle.com/datasets/{HANDLE}" in error
    assert "pass its folder kaggle_3m to lgg-flair manifest" in error


def test_download_without_slices_is_refused(kagglehub, tmp_path):
    make_old(kagglehub, archive(tmp_path / "cache", slices=False))
    with pytest.raises(PipelineError, match=": no folder kaggle_3m with slices"):
        download(None)
    with pytest.raises(PipelineError, match=": no folder kaggle_3m with slices"):
        download(tmp_path / "dest")


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
