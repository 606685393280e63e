"""A checkpoint that cannot be written leaves the one before whole and known by its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.scripts import checkpoints, files


def test_a_save_that_fails_twice_leaves_the_old_file_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, write = checkpoints.DurableSaver(tmp_path), files.write_durably

    def refuse(path: Path, data: bytes) -> None:
        if path.suffix == ".pt":
            raise PipelineError("full")
        write(path, data)

    saver({"a": 1}, "model_best.pt")
    (tmp_path / "other.pt").write_bytes(b"came with the bundle, without a hash beside it")
    monkeypatch.setattr(files, "write_durably", refuse)
    for name in ("model_best.pt", "other.pt"):
        whole = (tmp_path / name).read_bytes()
        for number in (2, 3):
            with pytest.raises(PipelineError, match="full"):
                saver({"a": number}, name)
        assert (tmp_path / name).read_bytes() == whole
        assert hashlib.sha256(whole).hexdigest() in (tmp_path / f"{name}.sha256").read_text().split()
