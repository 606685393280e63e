"""Tables in pages, figures in metadata and shipped weights are those of docs/results; what is not so is named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cohort.splits import read_split
from pipeline.errors import PipelineError
from pipeline.scoring.results import VolumeScore, read_scores, write_scores, write_summary
from pipeline.scoring.statistics import summarise
from pipeline.scripts.files import sha256_bytes, sha256_file
from tests.conftest import ROOT, evaluated
from tools.results import CHART, main, read_results

WEIGHTS = b"weights"
SHIPPED = "shipped/basic_unet_native"
TABLE, PROVENANCE = "docs/results/scores.csv", "docs/results/provenance.json"
METADATA, MODEL = "bundles/basic_unet/configs/metadata.json", "bundles/basic_unet/models/model.pt"
TRAINING = {"seed": 3, "amp": False, "threads": 2, "manifest_sha256": "cd" * 32, "config": {"max_epochs": 5}}
BUNDLE: dict[str, Any] = {
    "name": "basic_unet",
    "weights_sha256": sha256_bytes(WEIGHTS),
    "config_sha256": "ef" * 32,
    "settings": {},
    "training": TRAINING,
}
ONE = VolumeScore("one", 0.5, 2.25, 1 / 3, 1.0, 10, 0, 20, agreement=0.875)
TWO = VolumeScore("two", 0.7, 1.0, 0.7, 0.7, 7, 3, 3)
EMPTY = VolumeScore("empty", None, None, None, None, 0, 0, 0)


def evaluation(folder: Path, *scores: VolumeScore, **changes: Any) -> Path:
    """The folder of an evaluation, as ``pipeline.evaluate`` leaves it."""
    summary = {
        "command": "python -m pipeline.evaluate --manifest data_manifest --bundle bundles/basic_unet",
        "protocol": "native",
        "split": "validation",
        "fold": None,
        "tta": False,
        "bundles": [BUNDLE],
        "manifest_sha256": "cd" * 32,
        "seen_in_training": [],
        "seed": 0,
        "versions": {"python": "3.11"},
        "device": "cpu",
        **summarise(scores, 0),
        "calibration": {"expected_calibration_error": 0.125, "bins": [1, 2, 3]},
    }
    write_scores(folder, scores)
    write_summary(folder, {**summary, **changes})
    return folder


def add(root: Path, name: str, *scores: VolumeScore, **changes: Any) -> None:
    folder = evaluation(root.parent / "evaluation", *scores, **changes)
    assert main(["--root", str(root), "--add", name, str(folder)]) == 0


def block(kind: str, *names: str) -> str:
    return f"<!-- {kind} {' '.join(names)} -->\nold\n<!-- end -->"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one bundle, five results, and pages that agree with them."""
    root = tmp_path / "repository"
    for path in (TABLE, METADATA, MODEL, "bundles/basic_unet/docs/README.md"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / TABLE, root / TABLE)
    (root / TABLE).write_text((root / TABLE).read_text().splitlines()[0])
    (root / PROVENANCE).write_text("{}")
    (root / MODEL).write_bytes(WEIGHTS)
    (root / METADATA).write_text(json.dumps({"eval_metrics": {"dsc_mean_native": 0.6}}))
    add(root, SHIPPED, ONE, TWO)
    add(root, "shipped/basic_unet_native_tta", replace(ONE, dsc=0.9), TWO, tta=True)
    add(root, "better", replace(ONE, dsc=0.6), TWO, protocol="reference")
    add(root, "folds", TWO, EMPTY, replace(ONE, dsc=0.3), bundles=[BUNDLE | {"fold": 0}, BUNDLE | {"fold": 1}])
    add(root, "lonely", ONE)
    (root / "README.md").write_text(f"# One\n\n{block('summaries', SHIPPED, 'folds')}\n\nIt reaches 0.987.\n")
    (root / "docs/more.md").write_text(
        f"{block('summaries', SHIPPED, 'lonely')}\n{block('scores', 'folds')}\n"
        f"{block('compare', SHIPPED, 'better')}\n{block('patients', 'folds', 'better')}\n"
    )
    (root / "bundles/basic_unet/docs/README.md").write_text(block("summaries", SHIPPED, f"{SHIPPED}_tta"))
    assert main(["--root", str(root), "--write"]) == 0
    return root


FOLDS = ("out_of_fold/default_fold_0", "out_of_fold/default_fold_1")
ALL_FOLDS = "out_of_fold/default_fold_*"
LARGE = VolumeScore("large", 0.9, 1.0, 0.9, 0.9, 27_000, 3_000, 3_000)


@pytest.fixture
def with_folds(root: Path) -> Path:
    """The same with the two folds of a cross-validation."""
    add(root, FOLDS[0], ONE, EMPTY, bundles=[BUNDLE | {"fold": 0}])
    add(root, FOLDS[1], TWO, LARGE, bundles=[BUNDLE | {"fold": 1}])
    return root


def test_pages_in_folders_are_written(root: Path) -> None:
    page = root / "docs/results/accuracy.md"
    page.write_text(block("summaries", SHIPPED))
    assert main(["--root", str(root), "--write"]) == 0
    assert "| basic_unet, native protocol | 0.6000 (" in page.read_text()


def test_folds_are_pooled_and_divided_by_size(with_folds: Path) -> None:
    page = with_folds / "docs/folds.md"
    page.write_text(f"{block('summaries', ALL_FOLDS)}\n{block('sizes', ALL_FOLDS)}\n")
    assert main(["--root", str(with_folds), "--write"]) == 0
    low, high = summarise([ONE, EMPTY, TWO, LARGE], 0)["dsc_mean_95"]
    assert page.read_text() == (
        f"<!-- summaries {ALL_FOLDS} -->\n"
        "| | mean DSC (95 % interval) | median | lowest | patients |\n|---|---|---|---|---|\n"
        f"| basic_unet, 2 folds, native protocol | 0.7000 ({low:.4f} to {high:.4f}) | 0.7000 | 0.5000 | 3 |\n"
        f"<!-- end -->\n<!-- sizes {ALL_FOLDS} -->\n"
        "| lesion, voxels | mean DSC (95 % interval) | median | lowest | patients |\n|---|---|---|---|---|\n"
        "| under 8,000 | 0.6000 (0.5000 to 0.7000) | 0.6000 | 0.5000 | 2 |\n"
        "| 25,000 and more | 0.9000 (0.9000 to 0.9000) | 0.9000 | 0.9000 | 1 |\n<!-- end -->\n"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"tta": True}, "the results fold_. are not scored alike"), ({}, "the results fold_. share patients")],
)
def test_what_is_no_cross_validation_is_not_joined(root: Path, changed: dict[str, Any], message: str) -> None:
    add(root, "fold_0", ONE)
    add(root, "fold_1", TWO if changed else ONE, **changed)
    (root / "README.md").write_text(block("summaries", "fold_*"))
    with pytest.raises(PipelineError, match=message):
        main(["--root", str(root), "--write"])


def test_calibration_is_that_of_single_evaluations(with_folds: Path) -> None:
    add(with_folds, "sharp", ONE, TWO, calibration={"expected_calibration_error": 0.0625})
    page = with_folds / "docs/calibration.md"
    page.write_text(block("calibration", "sharp:one~network"))
    assert main(["--root", str(with_folds), "--write"]) == 0
    assert "\n| one network | 2 | 0.0625 |\n" in page.read_text()
    page.write_text(block("calibration", ALL_FOLDS))
    with pytest.raises(PipelineError, match="has no calibration of its own"):
        main(["--root", str(with_folds), "--write"])


def test_cross_validations_are_compared_over_all_folds(with_folds: Path) -> None:
    for number, scores in enumerate(((ONE, EMPTY), (TWO, LARGE))):
        add(with_folds, f"other_{number}", *(replace(score, dsc=score.dsc and score.dsc + 0.01) for score in scores))
    page = with_folds / "docs/folds.md"
    page.write_text(block("compare", f"{ALL_FOLDS}:one", "other_*:two"))
    assert main(["--root", str(with_folds), "--write"]) == 0
    assert "| two | 0.7100 | 0.7100 | 0.5100 | +0.0100 (+0.0100 to +0.0100) | 3, 0 |" in page.read_text()


def test_a_table_calls_results_by_their_labels(root: Path) -> None:
    names = (f"{SHIPPED}:First~of_two", "better:Second")
    page = root / "docs/labels.md"
    page.write_text("\n".join(block(kind, *names) for kind in ("summaries", "compare", "patients")))
    assert main(["--root", str(root), "--write"]) == 0
    written = page.read_text()
    assert "| First of_two | 0.6000 (0.5000 to 0.7000) | 0.6000 | 0.5000 | 2 |\n| Second | 0.6500 (" in written
    assert "| Second | 0.6500 | 0.6500 | 0.6000 | +0.0500 (" in written
    assert "| patient | First of_two | Second |" in written
    assert "<!-- compare shipped/basic_unet_native:First~of_two better:Second -->" in written


def test_the_chart_shows_patients_out_of_fold(root: Path, with_folds: Path) -> None:
    assert not (root / CHART).exists()
    assert main(["--root", str(with_folds), "--write"]) == 0
    chart = (with_folds / CHART).read_text()
    assert chart.startswith("<svg")
    assert "basic_unet, out of fold" in chart
    assert "currentColor" not in chart


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_claims_of_this_repository_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(ROOT), "status", "--porcelain", "bundles/*/models/model.pt"]
    if subprocess.run(git, capture_output=True, check=False).stdout:
        pytest.skip("bundles/*/models holds a training of your own")
    monkeypatch.chdir(ROOT)
    assert main([]) == 0
    results = read_results(ROOT)
    assert {f"shipped/{path.parent.name}_native" for path in ROOT.glob("bundles/*/network.yaml")} <= set(results)
    assert all(result["bundles"] and result["command"] for result in results.values())


def test_the_published_folds_are_those_of_the_results() -> None:
    results, split = read_results(ROOT), read_split(ROOT / "docs/results/split.json")
    for name in ("basic_unet", "attention_unet", "basic_unet_plusplus", "default"):
        assert {patient for ids in split.folds for patient in ids} == set(results[f"out_of_fold/{name}"]["dsc"])
    assert set(split.sections["test"]) == set(results["shipped/basic_unet_native"]["dsc"])


def test_a_result_comes_back_as_it_was_added(root: Path) -> None:
    before = content(root)
    add(root, "new/name", ONE, EMPTY, TWO, fold=1)
    result = read_results(root)["new/name"]
    assert result["scores"] == [ONE, EMPTY, TWO]
    assert result["dsc"] == {"one": 0.5, "two": 0.7}
    assert result["dsc_mean_95"] == summarise([ONE, TWO], 0)["dsc_mean_95"]
    assert result["expected_calibration_error"] == 0.125
    assert (result["fold"], result["seed"], result["tta"]) == (1, 0, False)
    training = {"seed": 3, "amp": False, "config": {"max_epochs": 5}}
    kept = {"name": "basic_unet", "weights_sha256": BUNDLE["weights_sha256"], "training": training}
    assert result["bundles"] == [kept]
    assert b"bins" not in (root / PROVENANCE).read_bytes()
    added = b"new/name,one,0.5,2.25,0.3333333333333333,1.0,10,0,20,0.875\nnew/name,empty,,,,,0,0,0,\n"
    assert added in (root / TABLE).read_bytes()
    assert set(before[TABLE].splitlines()) < set((root / TABLE).read_bytes().splitlines())
    names = [line.split(",")[0] for line in (root / TABLE).read_text().splitlines()[1:]]
    assert names == sorted(names)
    add(root, "new/name", TWO)
    assert read_results(root)["new/name"]["scores"] == [TWO]
    assert "fold" not in read_results(root)["new/name"]
    assert read_results(root).keys() == {SHIPPED, f"{SHIPPED}_tta", "better", "folds", "lonely", "new/name"}


def test_tables_are_those_of_the_results(root: Path) -> None:
    low, high = summarise([TWO, replace(ONE, dsc=0.3)], 0)["dsc_mean_95"]
    assert (root / "README.md").read_text() == (
        f"# One\n\n<!-- summaries {SHIPPED} folds -->\n"
        "| | mean DSC (95 % interval) | median | lowest | patients |\n|---|---|---|---|---|\n"
        "| basic_unet, native protocol | 0.6000 (0.5000 to 0.7000) | 0.6000 | 0.5000 | 2 |\n"
        f"| basic_unet, 2 folds, native protocol | 0.5000 ({low:.4f} to {high:.4f}) | 0.5000 | 0.3000 | 2 |\n"
        "<!-- end -->\n\nIt reaches 0.987.\n"
    )
    more = (root / "docs/more.md").read_text()
    assert f"| basic_unet, native protocol (`{SHIPPED}`) | 0.6000 (" in more
    assert "| basic_unet, native protocol (`lonely`) | 0.5000 (0.5000 to 0.5000) | 0.5000 | 0.5000 | 1 |" in more
    assert re.search(r"scores folds -->\n```\npatient .*\n *empty +- .*\none +0\.3000 +2\.25 .*\ntwo +0\.7000 ", more)
    assert "\nDSC not defined (no lesion, none predicted): empty\n```\n<!-- end -->\n" in more
    assert (
        "| | mean DSC | median | lowest | difference (95 % interval) | better, worse |\n|---|---|---|---|---|---|\n"
        f"| {SHIPPED} | 0.6000 | 0.6000 | 0.5000 | | |\n"
        "| better | 0.6500 | 0.6500 | 0.6000 | +0.0500 (+0.0000 to +0.1000) | 1, 0 |\n<!-- end -->\n"
    ) in more
    patients = "| patient | folds | better |\n|---|---|---|\n| one | 0.3000 | 0.6000 |\n| two | 0.7000 | 0.7000 |\n"
    assert f"<!-- patients folds better -->\n{patients}<!-- end -->\n" in more
    assert "| basic_unet, native protocol, flips | 0.8000 (" in (root / "bundles/basic_unet/docs/README.md").read_text()


def test_writing_again_changes_nothing(root: Path) -> None:
    before = content(root)
    assert main(["--root", str(root), "--write"]) == 0
    assert content(root) == before


def rewrite(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return change


def add_later(name: str, *scores: VolumeScore, **changes: Any) -> Callable[[Path], None]:
    return lambda root: add(root, name, *scores, **changes)


def page_with(text: str) -> Callable[[Path], None]:
    return rewrite("README.md", "It reaches", text)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "changed table in README": (rewrite("README.md", "0.6000", "0.6001"), "README.md: a table is not what"),
    "changed table in docs": (rewrite("docs/more.md", "| 1, 0 |", "| 2, 0 |"), "docs/more.md: a table is not what"),
    "changed table of a bundle": (
        rewrite("bundles/basic_unet/docs/README.md", "0.8000", "0.8100"),
        "bundles/basic_unet/docs/README.md: a table is not what",
    ),
    "changed score": (rewrite(TABLE, f"{SHIPPED},one,0.5,", f"{SHIPPED},one,0.4,"), "README.md: a table is not what"),
    "other patient": (
        rewrite(TABLE, "better,two,", "better,three,"),
        f"more.md: {SHIPPED}, better are not of the same patients",
    ),
    "changed figure in metadata": (rewrite(METADATA, "0.6", "0.6001"), "eval_metrics {'dsc_mean_native': 0.6001}"),
    "figure of no result": (rewrite(METADATA, "native", "reference"), f"(by {TABLE}: {{'dsc_mean_native': 0.6}})"),
    "figure left out": (rewrite(METADATA, "eval_metrics", "metrics"), "metadata.json: eval_metrics {} "),
    "foreign weights": (rewrite(MODEL, "weights", "others"), f"{SHIPPED}: is of other weights than"),
    "no weights": (lambda root: (root / MODEL).unlink(), f"{SHIPPED}: is of other weights than"),
    "weights of a fold": (add_later(SHIPPED, ONE, TWO, bundles=[BUNDLE | {"fold": 0}]), "is not of shipped weights"),
    "patients seen": (add_later(SHIPPED, ONE, TWO, seen_in_training=["one"]), "is not of shipped weights on unseen"),
    "unknown result": (page_with(block("scores", "nothing")), "README.md: nothing is no result of"),
    "no result": (page_with("<!-- scores -->\n<!-- end -->"), "README.md: a table lacks one of its comments"),
    "no end": (page_with(f"<!-- scores {SHIPPED} -->\n"), "README.md: a table lacks one of its comments"),
    "end alone": (page_with("<!-- end -->\n"), "README.md: a table lacks one of its comments"),
    "other patients in a list": (
        page_with(block("patients", SHIPPED, "lonely")),
        "lonely are not of the same patients",
    ),
    "other patients": (page_with(block("compare", SHIPPED, "lonely")), "lonely are not of the same patients"),
    "patient twice": (rewrite(TABLE, "folds,two,", "folds,one,"), f"{TABLE}: has a patient of one result twice"),
    "rows alone": (rewrite(TABLE, "lonely,", "lonelier,"), "lonelier, lonely: found in only one of"),
    "entry alone": (rewrite(PROVENANCE, '"lonely"', '"alone"'), "alone, lonely: found in only one of"),
    "other columns": (rewrite(TABLE, ",hd95_px,", ",hd,"), "scores.csv: no readable scores"),
    "no names": (rewrite(TABLE, "result,", "name,"), "docs/results: no readable results ('result')"),
    "no provenance": (lambda root: (root / PROVENANCE).unlink(), "docs/results: no readable results"),
    "torn provenance": (rewrite(PROVENANCE, "{", ""), "docs/results: no readable results"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_does_not_agree_is_named(root: Path, change: Callable[[Path], None], message: str) -> None:
    assert main(["--root", str(root)]) == 0
    change(root)
    with pytest.raises(PipelineError) as error:
        main(["--root", str(root)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "scores", "changes", "message"),
    [
        ("two words", [ONE], {}, "two words: no name of a result"),
        ("../outside", [ONE], {}, "../outside: no name of a result"),
        ("x -->", [ONE], {}, "x -->: no name of a result"),
        ("new", [EMPTY], {}, "no DSC, a patient twice, or a summary of other scores"),
        ("new", [ONE, TWO, ONE], {}, "no DSC, a patient twice, or a summary of other scores"),
        ("new", [ONE, TWO], {"dsc_mean": 0.61}, "no DSC, a patient twice, or a summary of other scores"),
        ("new", [ONE, TWO], {"scored": 3}, "no DSC, a patient twice, or a summary of other scores"),
        ("new", [ONE, TWO], {"seed": "0"}, "summary.json: seed missing or changed"),
    ],
)
def test_what_is_no_result_is_not_added(
    root: Path, name: str, scores: list[VolumeScore], changes: dict[str, Any], message: str
) -> None:
    before = content(root)
    with pytest.raises(PipelineError, match=re.escape(message)):
        add(root, name, *scores, **changes)
    assert content(root) == before


def test_a_folder_without_an_evaluation_is_not_added(root: Path, tmp_path: Path) -> None:
    before = content(root)
    (evaluation(tmp_path / "torn", ONE) / "scores.csv").unlink()
    for folder, message in (("nothing", r"summary\.json: no readable summary"), ("torn", r"scores\.csv: no readable")):
        with pytest.raises(PipelineError, match=message):
            main(["--root", str(root), "--add", "new", str(tmp_path / folder)])
    assert content(root) == before


def test_nothing_is_written_where_a_page_is_refused(root: Path) -> None:
    rewrite("README.md", "0.6000", "0.1000")(root)
    rewrite("docs/more.md", "<!-- end -->", "")(root)
    before = content(root)
    with pytest.raises(PipelineError, match=r"more\.md: a table lacks one of its comments"):
        main(["--root", str(root), "--write"])
    assert content(root) == before


def test_without_results_the_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=re.escape(str(tmp_path / TABLE))):
        main(["--root", str(tmp_path)])


@pytest.fixture
def without_shipped(
    root: Path, trained: tuple[Path, Path], manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The repository with a bundle that runs and no result of it, and the folder of its evaluation."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bundle, scored = root / "bundles" / "basic_unet", root.parent / "scored"
    shutil.copytree(trained[0], bundle, ignore=shutil.ignore_patterns("models", "eval", "docs"), dirs_exist_ok=True)
    for name in ("model.pt", "training.json"):
        shutil.copy(trained[1] / name, bundle / "models")
    mean = evaluated(trained, manifest, scored)["dsc_mean"]
    (root / METADATA).write_text(json.dumps({"eval_metrics": {"dsc_mean_native": round(mean, 4)}}))
    rows = (root / TABLE).read_text().splitlines(keepends=True)
    (root / TABLE).write_text("".join(row for row in rows if not row.startswith("shipped/")))
    entries = json.loads((root / PROVENANCE).read_text())
    (root / PROVENANCE).write_text(json.dumps({name: entries[name] for name in entries if "shipped/" not in name}))
    for page in ("README.md", "docs/more.md", "bundles/basic_unet/docs/README.md"):
        (root / page).write_text("# No tables\n")
    return root, scored


@pytest.mark.slow
def test_shipped_weights_are_scored_again(
    without_shipped: tuple[Path, Path], manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, scored = without_shipped
    verify = ["--root", str(root), "--verify"]
    with pytest.raises(PipelineError, match="holds no result of shipped weights"):
        main([*verify, str(manifest)])

    assert main(["--root", str(root), "--add", SHIPPED, str(scored)]) == 0
    result = read_results(root)[SHIPPED]
    mean, error = result["dsc_mean"], result["expected_calibration_error"]
    assert result["bundles"][0]["weights_sha256"] == sha256_file(root / MODEL)
    provenance = json.loads((root / PROVENANCE).read_text())
    provenance[SHIPPED]["split"] = "test"  # the same patients in a section of another manifest
    (root / PROVENANCE).write_text(json.dumps(provenance))
    assert main([*verify, str(manifest / "manifest.json")]) == 0
    assert f"{SHIPPED}: claimed {mean:.4f}, measured {mean:.4f}\n" in capsys.readouterr().out

    first, second = read_scores(scored)
    assert first.dsc is not None
    rewrite(TABLE, f"{SHIPPED},{first.patient},{first.dsc}", f"{SHIPPED},{first.patient},{first.dsc + 0.0045}")(root)
    rewrite(PROVENANCE, f'"expected_calibration_error": {error}', f'"expected_calibration_error": {error + 0.003}')(
        root
    )
    with pytest.raises(PipelineError) as off:
        main([*verify, str(manifest)])
    for figure, was, now in (
        ("mean DSC", mean + 0.00225, mean),
        ("expected calibration error", error + 0.003, error),
        (first.patient, first.dsc + 0.0045, first.dsc),
    ):
        assert f"{SHIPPED}: {figure} {now:.4f} (claimed: {was:.4f})" in str(off.value)
    assert second.patient not in str(off.value)

    with pytest.raises(PipelineError, match=r"python -m pipeline\.manifest .*docs.*\nerror: "):
        main([*verify, str(root / "docs")])
    (root / "bundles/basic_unet/models/training.json").write_text("{")
    with pytest.raises(PipelineError, match=r"python -m pipeline\.evaluate .*\nerror: "):
        main([*verify, str(manifest)])
