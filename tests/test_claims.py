"""Figures in README, bundle docs and metadata are those of docs/results, and of the weights that are shipped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLES, ROOT, TINY, evaluated

from pipeline import claims
from pipeline.errors import PipelineError
from pipeline.metrics import summarise
from pipeline.scores import read_scores
from pipeline.scripts.files import sha256_file

ONE_BUNDLE = pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], ids=["basic_unet"], indirect=True)
PAGE = "# One\n\n<!-- summaries shipped/basic_unet_native -->\nold\n<!-- end -->\n"


@pytest.fixture
def repository(trained: tuple[Path, Path], manifest: Path, tmp_path: Path) -> Path:
    """A repository of one bundle with weights, its result, and pages that agree with it."""
    root = tmp_path / "repository"
    bundle = root / "bundles" / "basic_unet"
    shutil.copytree(trained[0], bundle, ignore=shutil.ignore_patterns("models", "eval"))
    (bundle / "models").mkdir()
    for name in ("model.pt", "training.json"):
        shutil.copy(trained[1] / name, bundle / "models")
    shutil.copytree(ROOT / "pipeline", root / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    summary = evaluated(trained, manifest, root / "docs/results/shipped/basic_unet_native")
    shutil.rmtree(root / "docs/results/shipped/basic_unet_native/masks")
    changed(bundle / "configs/metadata.json", weights={"sha256": sha256_file(bundle / "models/model.pt")})
    changed(bundle / "configs/metadata.json", eval_metrics={"dsc_mean_native": round(summary["dsc_mean"], 4)})
    for page in ("README.md", "bundles/basic_unet/docs/README.md"):
        (root / page).write_text(PAGE)
    assert claims.main(["--root", str(root), "--write"]) == 0
    return root


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_claims_of_this_repository_hold() -> None:
    git = ["git", "-C", str(ROOT), "status", "--porcelain", "bundles/*/models/model.pt"]
    if subprocess.run(git, capture_output=True, check=False).stdout:
        pytest.skip("bundles/*/models holds a training of your own")
    assert claims.faults(ROOT) == []
    assert {path.parent.parent for path in claims.pages(ROOT)} >= {ROOT.parent, *BUNDLES}


@ONE_BUNDLE
def test_pages_are_written_from_results(repository: Path) -> None:
    summary = json.loads((repository / "docs/results/shipped/basic_unet_native/summary.json").read_text())
    text = (repository / "README.md").read_text()
    assert f"| basic_unet, native protocol | {summary['dsc_mean']:.4f} (" in text
    assert "old" not in text
    assert claims.faults(repository) == []
    scores = claims.with_results("<!-- scores shipped/basic_unet_native -->\n<!-- end -->", repository)
    assert f"mean DSC {summary['dsc_mean']:.4f}" in scores
    base, other = repository / "docs/results/base", repository / "docs/results/other"
    for folder in (base, other):
        shutil.copytree(repository / "docs/results/shipped/basic_unet_native", folder)
    for folder, values in ((base, (0.5, 0.7)), (other, (0.6, 0.7))):
        rows = [line.split(",") for line in (folder / "scores.csv").read_text().splitlines()]
        text = "\n".join(
            ",".join([row[0], str(dsc), *row[2:]]) for row, dsc in zip(rows, ["dsc", *values], strict=True)
        )
        (folder / "scores.csv").write_text(text)
    (repository / "docs/results/lonely").mkdir()
    for name in ("summary.json", "scores.csv"):
        shutil.copy(base / name, repository / "docs/results/lonely")
    lines = (base / "scores.csv").read_text().splitlines()
    (repository / "docs/results/lonely/scores.csv").write_text("\n".join(lines[:2]))
    with pytest.raises(PipelineError, match="not of the same patients"):
        claims.with_results("<!-- compare base lonely -->\n<!-- end -->", repository)
    compared = claims.with_results("<!-- compare base other -->\n<!-- end -->", repository)
    assert "| other | 0.6500 | 0.6500 | 0.6000 | +0.0500 (+0.0000 to +0.1000) | 1, 0 |" in compared
    assert "| base | 0.6000 | 0.6000 | 0.5000 | | |" in compared
    alike = claims.with_results("<!-- summaries base other -->\n<!-- end -->", repository)
    assert "| basic_unet, native protocol (`base`) | " in alike
    assert "| basic_unet, native protocol (`other`) | " in alike
    patients = claims.with_results("<!-- patients base other -->\n<!-- end -->", repository)
    assert re.search(r"\| patient \| base \| other \|\n\|---\|---\|---\|\n\| \S+ \| 0\.5000 \| 0\.6000 \|", patients)
    training = summary["bundles"][0]["training"]
    assert training["seed"] == 0
    assert training["config"]["loss"]["_target_"] == "DiceCELoss"
    assert training["config"]["max_epochs"] == TINY["max_epochs"]
    assert summary["calibration"]["bins"]
    assert summary["command"].startswith("python -m pipeline.evaluate --manifest ")


@ONE_BUNDLE
def test_a_page_says_figures_of_what_it_shows_or_cites(repository: Path) -> None:
    other = repository / "docs/results/other"
    shutil.copytree(repository / "docs/results/shipped/basic_unet_native", other)
    changed(other / "summary.json", calibration={"expected_calibration_error": 0.4321})
    pages = [repository / "bundles/basic_unet/docs/README.md", repository / "README.md"]
    before = [page.read_text() for page in pages]
    stray = [f"{page.relative_to(repository)}: 0.4321 is no figure of a result" for page in reversed(pages)]
    for more, expected in (
        ("", stray),
        ("<!-- cites other -->\n0.432\n", [fault.replace("0.4321", "0.432") for fault in stray]),
        ("<!-- cites other -->\n", []),
        ("<!-- summaries other -->\n<!-- end -->\n", []),
        ("<!-- cites nothing -->\n", ["docs/results/nothing/summary.json: no readable summary"] * 2),
    ):
        for page, text in zip(pages, before, strict=True):
            page.write_text(f"{text}\n0.4321\n{more}")
        found = [fault for fault in claims.faults(repository) if "no " in fault]
        assert len(found) == len(expected)
        assert all(part in fault for part, fault in zip(expected, found, strict=True))
    for page, text in zip(pages, before, strict=True):
        page.write_text(text + "\n0.432\n")
    published = repository / "docs/results/published.json"
    published.write_text('{"theirs": 0.432}')
    assert claims.faults(repository) == []
    published.write_text("{")
    unreadable = claims.faults(repository)
    assert unreadable
    assert all("no readable figures" in fault for fault in unreadable)


def other_weights(root: Path) -> None:
    with (root / "bundles/basic_unet/models/model.pt").open("ab") as file:
        file.write(b"\0")


def page_says(text: str) -> Callable[[Path], Any]:
    return lambda root: (root / "README.md").write_text((root / "README.md").read_text() + text)


def study_says(text: str) -> Callable[[Path], Any]:
    return lambda root: (root / "docs/case_report.md").write_text(text)


def summary_says(**values: Any) -> Callable[[Path], None]:
    return lambda root: changed(root / "docs/results/shipped/basic_unet_native/summary.json", **values)


def metadata_says(**values: Any) -> Callable[[Path], None]:
    return lambda root: changed(root / "bundles/basic_unet/configs/metadata.json", **values)


def scores_say(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "docs/results/shipped/basic_unet_native/scores.csv"
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weights, "is of other weights than bundles/basic_unet/models/model.pt"),
        (other_weights, "metadata names weights of another SHA-256"),
        (summary_says(dsc_mean=0.98765), "dsc_mean of the summary is not that of scores.csv"),
        (summary_says(dsc_mean_95=[0.1, 0.98765]), "dsc_mean_95 of the summary is not that of scores.csv"),
        (summary_says(dsc_median=0.98765), "a table is not what docs/results gives"),
        (summary_says(bundles=[]), "is not of shipped weights on unseen patients"),
        (summary_says(seen_in_training=["someone"]), "is not of shipped weights on unseen patients"),
        (summary_says(protocol="reference"), "metadata says dsc_mean_native"),
        (scores_say("hd95_px", "hd"), "no readable scores"),
        (page_says("It reaches 0.9876."), "0.9876 is no figure of a result"),
        (page_says("Its calibration error is 0.0987."), "0.0987 is no figure of a result"),
        (study_says("It reaches 0.9876."), "docs/case_report.md: 0.9876 is no figure of a result"),
        (page_says("<!-- scores nothing -->\n<!-- end -->"), "names nothing"),
        (page_says("<!-- scores -->\n<!-- end -->"), "a table's comment stands alone"),
        (page_says("<!-- scores shipped/basic_unet_native -->\n0.9876"), "a table's comment stands alone"),
        (metadata_says(eval_metrics={"dsc_mean_native": 0.98765}), "metadata says dsc_mean_native 0.98765"),
        (metadata_says(eval_metrics={"dsc_mean_reference": 0.5}), "docs/results does not"),
        (metadata_says(weights={"sha256": "0"}), "metadata names weights of another SHA-256"),
        (lambda root: (root / "README.md").unlink(), "no readable page"),
    ],
)
@ONE_BUNDLE
def test_what_does_not_agree_is_named(repository: Path, change: Callable[[Path], None], message: str) -> None:
    change(repository)
    with pytest.raises(PipelineError) as error:
        claims.main(["--root", str(repository)])
    assert message in str(error.value)


@ONE_BUNDLE
def test_nothing_is_written_over_a_page_that_lacks_a_comment(repository: Path) -> None:
    page = repository / "bundles/basic_unet/docs/README.md"
    page.write_text(page.read_text().replace("<!-- end -->", "") + "Licences.\n\n" + PAGE)
    before, readme = page.read_text(), (repository / "README.md").read_text()
    (repository / "README.md").write_text(PAGE)
    with pytest.raises(PipelineError, match=r"docs/README\.md: a table's comment stands alone"):
        claims.main(["--root", str(repository), "--write"])
    assert page.read_text() == before
    assert (repository / "README.md").read_text() == PAGE != readme


@ONE_BUNDLE
def test_shipped_weights_are_scored_again(repository: Path, manifest: Path, capsys) -> None:
    assert claims.main(["--root", str(repository), "--verify", str(manifest / "manifest.json")]) == 0
    assert "shipped/basic_unet_native: claimed 0." in capsys.readouterr().out
    folder = repository / "docs/results/shipped/basic_unet_native"
    rows = [line.split(",") for line in (folder / "scores.csv").read_text().splitlines()]
    dsc = [float(row[1]) for row in rows[1:]]
    for row, value in zip(rows[1:], (dsc[0] + 0.0045, dsc[1]), strict=True):
        row[1] = str(value)
    (folder / "scores.csv").write_text("\n".join(map(",".join, rows)))
    again = summarise(read_scores(folder), 0)
    summary_says(**{key: again[key] for key in claims.OF_SCORES})(repository)
    with pytest.raises(PipelineError) as error:
        claims.main(["--root", str(repository), "--verify", str(manifest)])
    assert re.search(r"basic_unet_native: mean DSC \d\.\d{4} \(claimed: \d\.\d{4}\)", str(error.value))
    assert re.search(rf"basic_unet_native: {rows[1][0]} \d\.\d{{4}} \(claimed: \d\.\d{{4}}\)", str(error.value))
    assert rows[2][0] not in str(error.value)
    assert "calibration" not in str(error.value)
    summary_says(calibration={"expected_calibration_error": 0.9})(repository)
    with pytest.raises(
        PipelineError, match=r"basic_unet_native: expected calibration error 0\.\d{4} \(claimed: 0\.9000\)"
    ):
        claims.main(["--root", str(repository), "--verify", str(manifest)])
    shutil.rmtree(repository / "docs/results/shipped")
    with pytest.raises(PipelineError, match=r"holds no summary\.json"):
        claims.main(["--root", str(repository), "--verify", str(manifest)])
    with pytest.raises(PipelineError, match="Run from the repository's root"):
        claims.main(["--root", str(manifest)])
