"""The public names: documented with an example that runs, light to import, taking paths as text or as ``Path``."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.__main__ import COMMANDS, main
from tests.conftest import BUNDLES, ROOT

ON_THE_PAGE = re.findall(
    r"^::: pipeline\.([\w.]+)$", (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8"), re.MULTILINE
)
"""The public names and the result types that docs/reference/python.md shows."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: phantoms, their manifest, one FLAIR and two evaluations."""
    import nibabel as nib

    folder = tmp_path_factory.mktemp("examples")
    pipeline.make_phantoms(folder, patients=4, size=48, slices=6)
    pipeline.build_manifest(folder / "kaggle_3m", folder / "data_manifest", split="random", validation_fraction=0.5)
    volume = nib.load(pipeline.read_manifest(folder / "data_manifest").sections["validation"][0].image)
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[..., 1], np.diag([1, 1, 5, 1])), folder / "flair.nii.gz")
    for name in ("basic_unet", "attention_unet"):
        pipeline.evaluate_volumes(folder / "data_manifest", name, folder / "runs" / name)
    return folder


def test_importing_the_package_is_light() -> None:
    code = (
        "import pipeline, sys\n"
        "assert set(pipeline.__all__) < set(dir(pipeline))\n"
        "sys.exit(', '.join({'torch', 'monai', 'numpy', 'nibabel', 'pandas'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    found = getattr(pipeline, name)
    text = inspect.getdoc(found) or ""
    assert len(text) > 40
    if not issubclass(type(found), type) or name == "Predictor":
        assert "Args:" in text
        assert "Examples:" in text
        assert ">>>" in text


@pytest.mark.parametrize(
    "name", ["", *dict.fromkeys((*pipeline.__all__, *ON_THE_PAGE))], ids=lambda name: name or "pipeline"
)
def test_its_examples_run_as_they_are(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of an object and of its methods, each as in a new interpreter."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    found = pkgutil.resolve_name(f"pipeline:{name}") if name else pipeline
    said: list[str] = []
    for examples in doctest.DocTestFinder().find(found, name or "pipeline", globs={}):
        assert not any(example.options for example in examples.examples), "an example has a directive"
        runner.run(examples, out=said.append)
    assert not said, "".join(said)
    assert runner.tries or ">>>" not in (inspect.getdoc(found) or "")


def modules_with_examples() -> list[str]:
    paths = sorted(path for path in (ROOT / "pipeline").rglob("*.py") if path.name != "__init__.py")
    with_examples = [path for path in paths if ">>>" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in with_examples]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of names that are not public, with the names of their module."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    public = [getattr(pipeline, one) for one in pipeline.__all__]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for examples in doctest.DocTestFinder().find(module):
        if pkgutil.resolve_name(examples.name.replace(f"{name}.", f"{name}:", 1)) not in public:
            runner.run(examples, out=said.append)
    assert not said, "".join(said)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing


def test_they_work_together_with_paths_as_text(tmp_path: Path) -> None:
    slices = pipeline.make_phantoms(str(tmp_path / "phantoms"), patients=2, size=48, slices=6)
    built = pipeline.build_manifest(str(slices), str(tmp_path / "manifest"), split="none")
    assert (built.is_new, built.content["numTest"]) == (True, 2)
    assert not pipeline.build_manifest(str(slices), str(tmp_path / "manifest"), split="none").is_new
    volume = pipeline.read_manifest(str(tmp_path / "manifest")).sections["test"][0]
    predictor = pipeline.Predictor([str(BUNDLES[0])])
    prediction = predictor.predict(str(volume.image))
    np.testing.assert_array_equal(next(predictor.passes(str(volume.image))), prediction.probability)
    assert prediction.mask.shape == prediction.probability.shape
    found = pipeline.predict_volumes(str(slices), str(BUNDLES[0]), str(tmp_path / "masks"))
    first = found.predictions[0]
    assert (first.volume, first.slices) == (volume.patient, prediction.mask.shape[2])
    assert (tmp_path / "masks" / "predictions.csv").is_file()
    result = pipeline.evaluate_volumes(
        str(tmp_path / "manifest"), [str(BUNDLES[0])], str(tmp_path / "scores"), split="test"
    )
    assert [score.patient for score in pipeline.read_scores(str(tmp_path / "scores"))] == [
        score.patient for score in result.scores
    ]
    assert pipeline.summarise(list(result.scores))["volumes"] == 2
    page, notes = pipeline.write_report([str(tmp_path / "scores")])
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert notes == []


def test_arrays_are_scored() -> None:
    truth = np.zeros((4, 4, 2), np.uint8)
    truth[1:3, 1:3] = 1
    assert pipeline.score_volume("one", truth, truth).dsc == 1
    assert pipeline.paired({"one": 0.5}, {"one": 0.75})["mean"] == 0.25


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    here = {path.stem for path in (ROOT / "pipeline").glob("*.py") if "run_cli(main)" in path.read_text()}
    assert here - {"__main__"} == set(COMMANDS)
    assert all(f"  {name} " in text for name in COMMANDS)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lgg-flair-pipeline {pipeline.__version__}\n"
    with pytest.raises(SystemExit) as refused:
        main(["evalute"])
    assert refused.value.code == 2


def test_a_command_runs_by_the_overview_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", str(tmp_path), "--patients", "1", "--size", "32", "--slices", "4"]) == 0
    assert "1 phantoms in" in capsys.readouterr().out
