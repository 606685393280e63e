"""Write one HTML page that compares evaluations, with tables, charts and a viewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.files import MAP_FOLDER, MASK_FOLDER, SUMMARY_NAME, path_list
from pipeline.imaging.nifti import load_image, load_label, load_map, spacing_mm
from pipeline.model.predictor import LOW_AGREEMENT
from pipeline.pages import MAX_VIEWERS, REPORT_NAME, charts
from pipeline.pages.overlays import ORANGE, SKY_BLUE, contour_frame
from pipeline.pages.page import collect_views, gray_channels, listed, render, viewer_data
from pipeline.pages.viewer import data_address, head_box, patient_view
from pipeline.scoring.curves import CURVES_NAME, Curve, read_curves
from pipeline.scoring.results import (
    GROUPS,
    Subtotal,
    Summary,
    VolumeScore,
    read_scores,
    read_summary,
    subtotals,
)
from pipeline.scoring.statistics import paired
from pipeline.scripts.faults import shown
from pipeline.scripts.files import sha256_file, write_durably
from pipeline.scripts.manifest import CHANNELS, FLAIR, VOLUMES


@dataclass(frozen=True)
class Run:
    """One evaluation, read from its folder.

    Args:
        name: The name of the evaluation in the page.
        folder: The evaluation's folder.
        summary: The content of ``summary.json``.
        scores: One score for each volume.
        curves: Name of a training -> tag -> curve; empty if no curves were kept.
    """

    name: str
    folder: Path
    summary: Summary
    scores: tuple[VolumeScore, ...]
    curves: dict[str, dict[str, Curve]]

    @cached_property
    def by_patient(self) -> dict[str, VolumeScore]:
        """Patient id -> score."""
        return {score.patient: score for score in self.scores}

    @cached_property
    def dsc(self) -> dict[str, float | None]:
        """Patient id -> DSC; None if the DSC is not defined."""
        return {score.patient: score.dsc for score in self.scores}

    @cached_property
    def defined(self) -> dict[str, float]:
        """Patient id -> DSC, without patients whose DSC is not defined."""
        return {score.patient: score.dsc for score in self.scores if score.dsc is not None}

    @cached_property
    def trained_on(self) -> set[str]:
        """Ids of the patients that the weights were trained on."""
        return {score.patient for score in self.scores if score.seen}

    @cached_property
    def subtotals(self) -> dict[str, Subtotal]:
        """Group of patients -> subtotal."""
        return {one.group: one for one in subtotals(self.scores)}

    def file(self, folder: str, patient: str, kind: str) -> Path | None:
        """The path of a patient's volume, such as ``FOLDER/PATIENT_KIND.nii.gz``; None if it does not exist."""
        path = self.folder / folder / f"{patient}_{kind}.nii.gz"
        return path if path.is_file() else None


def write_report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    names: Sequence[str] = (),
    viewers: int = MAX_VIEWERS,
    patients: Sequence[str] = (),
) -> tuple[Path, list[str]]:
    """Write one HTML page of one or several evaluations. The page needs no other file and no network.

    Args:
        folders: The folders of the evaluations. Differences are to the first evaluation.
        out: The path of the page; None for ``report.html`` in the first folder.
        names: One name for each evaluation, used in the page; empty for the folders' names.
        viewers: Number of patients whose slices the page shows, those with the lowest DSC first.
        patients: Ids of more patients whose slices the page shows.

    Returns:
        The path of the page, and notes on the evaluations and on what the page leaves out.

    Raises:
        PipelineError: An evaluation cannot be read or does not fit the others, or the page cannot be written.

    Examples:
        >>> import pipeline
        >>> page, notes = pipeline.write_report(["runs/basic_unet", "runs/attention_unet"])
        >>> page.as_posix()
        'runs/basic_unet/report.html'
    """
    given = path_list(folders)
    if names and len(names) != len(given):
        raise PipelineError(f"{len(names)} --name for {len(given)} RUN (expected one each, or none).")
    if viewers < 0:
        raise PipelineError(f"--viewers {viewers} (expected 0 or more).")
    runs = read_runs(given, names)
    if unknown := set(patients).difference(*(run.by_patient for run in runs)):
        raise PipelineError(f"--patients {listed(sorted(unknown))}: in no RUN. Use ids from scores.csv.")
    target = Path(out) if out else given[0] / REPORT_NAME
    if target.is_dir():
        raise PipelineError(f"{target}: is a folder (expected a name for the page, such as {target / REPORT_NAME}).")
    text, notes = _page(runs, viewers, patients)
    write_durably(target, text.encode())
    return target, notes


def read_runs(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Run]:
    """The evaluations of several folders, checked to fit into one page.

    Args:
        folders: The folders of the evaluations.
        names: One name for each evaluation; empty for the folders' names.

    Raises:
        PipelineError: An evaluation cannot be read, is given twice, or has another protocol or truth than the others.
    """
    resolved = [folder.resolve() for folder in folders]
    names = names or _short_names(resolved)
    for what, items in (("RUN", map(str, resolved)), ("name", names)):
        item, count = Counter(items).most_common(1)[0]
        if count > 1:
            raise PipelineError(f"the same {what} twice ({item}). Give each once.")
    runs = [_read_run(name, folder) for name, folder in zip(names, folders, strict=True)]
    if len({run.summary["protocol"] for run in runs}) > 1:
        each = ", ".join(f"{run.name}: {run.summary['protocol']}" for run in runs)
        raise PipelineError(f"runs of different protocols ({each}). Evaluate them with one --protocol.")
    _refuse_other_truths(runs)
    return runs


def _read_run(name: str, folder: Path) -> Run:
    if not (folder / SUMMARY_NAME).is_file():
        what = f"no {SUMMARY_NAME} in it" if folder.exists() else "nothing there"
        raise PipelineError(f"{folder}: {what} (expected a folder written by lgg-flair evaluate). Check the path.")
    summary = read_summary(folder)
    # Tables of version 0.1.0 have no column "seen". Their summary names the patients that were trained on.
    scores = (
        replace(score, seen=True) if score.patient in summary["seen_in_training"] else score
        for score in read_scores(folder)
    )
    run = Run(name, folder, summary, tuple(scores), read_curves(folder / CURVES_NAME))
    if not len(run.by_patient) == len(run.scores) == run.summary.get("volumes"):
        raise PipelineError(
            f"{folder}: scores.csv and {SUMMARY_NAME} are not of one evaluation. Run the evaluation again."
        )
    return run


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' paths that are all different."""
    parts = 1
    while len({folder.parts[-parts:] for folder in folders}) < len(set(folders)):
        parts += 1
    return [shown("/".join(folder.parts[-parts:])) for folder in folders]


def _refuse_other_truths(runs: Sequence[Run]) -> None:
    """Refuse runs that used different truths for the same patient id, since their scores cannot be compared."""
    first: dict[str, tuple[str, int, str | None]] = {}
    for run in runs:
        for patient, score in run.by_patient.items():
            label = run.file(VOLUMES, patient, "label")
            digest = sha256_file(label) if label else None
            name, voxels, known = first.setdefault(patient, (run.name, score.lesion_voxels, digest))
            if voxels != score.lesion_voxels or (None not in (known, digest) and known != digest):
                raise PipelineError(
                    f"patient {patient}: {name} and {run.name} were scored against different truths. Evaluate them on "
                    "one manifest, with one protocol."
                )


def _page(runs: Sequence[Run], viewers: int, asked: Sequence[str]) -> tuple[str, list[str]]:
    """The text of the page, and its notes."""
    patients = worst_first(runs)
    seen = {run.name: run.trained_on for run in runs}
    trained_on = set().union(*seen.values())
    trained = [patient for patient in patients if patient in trained_on]
    unseen = [patient for patient in patients if patient not in trained_on]
    examples = _example_patients(runs[0], unseen or trained) if viewers else {}
    wanted = [*dict.fromkeys([*asked, *examples, *[*unseen, *trained][:viewers]])]
    views, pictures, left_out = _pictures(runs, wanted, examples)
    notes = _notes(runs, wanted, views, left_out)
    if len(patients) > len(wanted):
        first = ", first those that were not trained on" if unseen and trained else ""
        notes.append(
            f"the page shows slices of {len(views)} of {len(patients)} patients: the worst{first}. For others, pass "
            "--viewers or --patients"
        )
    dsc = {run.name: run.dsc for run in runs}
    lesion_voxels = {patient: score.lesion_voxels for run in runs for patient, score in run.by_patient.items()}
    curves = {
        run.name if len(run.curves) == 1 else f"{run.name}: {name}": tags
        for run in runs
        for name, tags in run.curves.items()
    }
    everything = [score for run in runs for score in run.scores]
    text = render(
        "report.html.j2",
        runs=runs,
        rows=[_run_row(run, runs[0]) for run in runs],
        groups=[group for group in GROUPS.values() if trained_on and any(group in run.subtotals for run in runs)],
        tables=[(unseen, False), (trained, True)] if unseen and trained else [(patients, False)],
        # If runs were trained on different patients, the table marks them.
        mixed=any(
            len({run.by_patient[patient].seen for run in runs if patient in run.by_patient}) > 1
            for patient in trained_on
        ),
        patients=patients,
        trained_on=trained_on,
        lesion_voxels=lesion_voxels,
        in_mm=any(score.hd95_mm is not None for score in everything)
        and all(score.hd95_mm is not None for score in everything if score.hd95_px is not None),
        agreement=[run for run in runs if any(score.agreement is not None for score in run.scores)],
        low_agreement=LOW_AGREEMENT,
        notes=notes,
        dsc=charts.dsc_svg(dsc, patients, seen),
        sizes=charts.sizes_svg(dsc, lesion_voxels, seen),
        curves=charts.curves_svg(curves) if curves else "",
        undefined=any(score.dsc is None for score in everything),
        lesionless=sum(not voxels for voxels in lesion_voxels.values()),
        examples=pictures,
        data=viewer_data([run.name for run in runs], CHANNELS, [*unseen, *trained], views),
    )
    return text, notes


def _pictures(
    runs: Sequence[Run], wanted: Sequence[str], chosen: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Patient -> view, the example pictures, and the patients that the page leaves out because of its size."""
    examples = {}

    def view_of(patient: str) -> dict[str, Any] | None:
        volumes = _volumes(runs, patient)
        if volumes is None:
            return None
        dsc = {run.name: run.dsc[patient] for run in runs if patient in run.dsc}
        captions = {
            name: ("DSC not defined" if value is None else f"DSC {value:.4f}")
            + ("" if name in volumes.masks else ", no mask in its folder")
            for name, value in dsc.items()
        }
        view = patient_view(volumes.image, volumes.truth, volumes.masks, volumes.maps, volumes.spacing)
        if patient in chosen:
            pictures = _example(volumes, view["start"])
            examples[patient] = {"which": chosen[patient], "patient": patient, "pictures": pictures}
        return {**view, "captions": captions}

    views, left_out = collect_views(wanted, view_of, "report")
    return views, [examples[patient] for patient in chosen if patient in examples and patient in views], left_out


def worst_first(runs: Sequence[Run]) -> list[str]:
    """The patients of all runs, sorted by their DSC in the first run, the lowest first.

    Patients without a DSC come last, sorted by id.
    """
    known = runs[0].defined
    everybody = {patient for run in runs for patient in run.by_patient}
    return sorted(everybody, key=lambda patient: (patient not in known, known.get(patient, 0.0), patient))


def _example_patients(first: Run, patients: Sequence[str]) -> dict[str, str]:
    """Patient -> kind of example: worst, median and best of those with a DSC, as far as they differ."""
    scored = [patient for patient in patients if patient in first.defined]
    last = len(scored) - 1
    places = {last: "best", last // 2: "median", 0: "worst"}  # if places coincide, the last entry counts
    return {scored[place]: which for place, which in sorted(places.items()) if scored}


def _notes(runs: Sequence[Run], wanted: Sequence[str], views: Mapping[str, Any], left_out: Sequence[str]) -> list[str]:
    """Notes for the reader: how the runs differ, and what the page leaves out."""
    notes = []
    if len({run.summary["manifest_sha256"] for run in runs}) > 1:
        notes.append("the runs were evaluated on different manifests; patients of several runs have the same truth")
    if len({frozenset(run.by_patient) for run in runs}) > 1:
        notes.append("the runs are not of the same patients; differences are over the patients of both")
    facts: dict[str, list[str]] = {}
    for run in runs:
        seen, undefined = run.summary["seen_in_training"], run.summary.get("undefined")
        maskless = [patient for patient in views if patient in run.dsc and not run.file(MASK_FOLDER, patient, "mask")]
        of_run = {
            f"{len(seen)} of {len(run.scores)} patients were trained on": seen,
            "no DSC, because truth and prediction are empty": undefined,
            f"no mask in {MASK_FOLDER}/": maskless,
        }
        for fact, ids in of_run.items():
            if ids:
                facts.setdefault(f"{fact}: {listed(ids)}", []).append(run.name)
    notes += [f"{', '.join(names)}: {text}" for text, names in facts.items()]
    without = [patient for patient in wanted if patient not in {*views, *left_out}]
    if without:
        notes.append(
            f"no slices of {listed(without)}: they are missing from {VOLUMES}/ of the evaluation. Run the evaluation "
            "again to write them"
        )
    if left_out:
        notes.append(f"no slices of {listed(left_out)}, because the page would become too large for a browser")
    return notes


def _run_row(run: Run, first: Run) -> dict[str, Any]:
    """Text on how a run's networks were trained, and how its DSC differs from the first run."""
    facts = [_training_facts(bundle) for bundle in run.summary["bundles"]]
    network, loss, budget, seed = (" + ".join(dict.fromkeys(texts)) for texts in zip(*facts, strict=True))
    return {
        "network": network + (", flips" if run.summary["tta"] else ""),
        "loss": loss,
        "budget": budget,
        "seed": seed,
        "apart": None if run is first else _apart(run, first),
    }


def _apart(run: Run, first: Run) -> dict[str, Any]:
    """How a run's DSC differs from the first run, over the patients that neither was trained on.

    If there is no such patient, ``of_seen`` is true, and the figures are over all patients.
    """
    seen = run.trained_on | first.trained_on
    unseen = {patient: dsc for patient, dsc in run.defined.items() if patient not in seen}
    of_seen = not unseen.keys() & first.defined
    compared = run.defined if of_seen else unseen
    return {**paired(first.defined, compared, run.summary["seed"]), "of_seen": of_seen}


def _training_facts(bundle: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Network, loss, budget and seed of a bundle; "unknown" if the training's record does not hold it."""
    training = bundle.get("training") or {}
    config = training.get("config") or {}
    own_network = _target((bundle.get("settings") or {}).get("network_def"))
    try:
        steps = int(config["max_epochs"]) * int(config["steps_per_epoch"])
        budget = f"{steps:,} steps of {config['batch_size']} slices, {config['image_size']} px"
    except (KeyError, TypeError, ValueError):
        budget = "unknown"
    network = f"{bundle['name']} ({own_network})" if own_network else bundle["name"]
    return network, _target(config.get("loss")) or "unknown", budget, str(training.get("seed", "unknown"))


def _target(definition: Any) -> str:
    """The class that a part of a config names; empty if it names none."""
    return str(definition.get("_target_", "")).rpartition(".")[2] if isinstance(definition, dict) else ""


@dataclass(frozen=True)
class Volumes:
    """The volumes of one patient.

    Args:
        image: The image, (H, W, D, 3) uint8.
        truth: The true mask, (H, W, D), 0 and 1.
        masks: Name of the run -> predicted mask, (H, W, D), 0 and 1.
        maps: Name of the run -> uncertainty map, (H, W, D), 0 to 0.5.
        spacing: Distance between rows, columns and slices in mm; None if it is not known.
    """

    image: NDArray[Any]
    truth: NDArray[Any]
    masks: dict[str, NDArray[Any]]
    maps: dict[str, NDArray[Any]]
    spacing: tuple[float, float, float] | None


def _volumes(runs: Sequence[Run], patient: str) -> Volumes | None:
    """A patient's volumes; None if no run has both image and truth of the patient."""
    paths = [(run.file(VOLUMES, patient, "image"), run.file(VOLUMES, patient, "label")) for run in runs]
    image_path, label_path = next((both for both in paths if all(both)), (None, None))
    if not image_path or not label_path:
        return None
    image, truth = gray_channels(load_image(image_path)), load_label(label_path)
    mask_files = {run.name: run.file(MASK_FOLDER, patient, "mask") for run in runs}
    map_files = {run.name: run.file(MAP_FOLDER, patient, "uncertainty") for run in runs}
    masks = {name: load_label(path) for name, path in mask_files.items() if path}
    maps = {name: load_map(path) for name, path in map_files.items() if path}
    volumes: list[tuple[str, NDArray[Any]]] = [("truth", truth), *masks.items(), *maps.items()]
    for what, volume in volumes:
        if volume.shape != image.shape[:3]:
            raise PipelineError(
                f"patient {patient}: {what} of shape {volume.shape}, image of {image.shape[:3]} (expected the same). "
                "Run the evaluation again."
            )
    return Volumes(image, truth, masks, maps, spacing_mm(image_path))


def _example(volumes: Volumes, z: int) -> dict[str, str]:
    """Name of the run -> picture of one slice, with prediction in orange and truth in blue."""
    rows, columns = head_box(volumes.image, volumes.truth, *volumes.masks.values())
    part = (rows, columns, z)
    spacing = volumes.spacing[:2] if volumes.spacing else None
    frames = {
        run: contour_frame(
            volumes.image[..., FLAIR][part], mask[part], volumes.truth[part], (ORANGE, SKY_BLUE), spacing=spacing
        )
        for run, mask in volumes.masks.items()
    }
    return {run: data_address(frame, "webp", quality=90) for run, frame in frames.items()}
