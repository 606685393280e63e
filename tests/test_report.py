"""The report: what it says, what it refuses, and how it behaves in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import report
from pipeline.curves import CURVES, write_curves
from pipeline.errors import PipelineError
from pipeline.metrics import score_volume
from pipeline.records import VolumeScore
from pipeline.scores import write_results
from pipeline.scripts.files import write_durably
from pipeline.volumes import nifti_bytes, save_map, save_mask

PATIENTS = ("3", "12", "7", "9")
"""From the best to the worst; the last has no lesion and none predicted. JavaScript would sort them as numbers."""
WORST_FIRST = ("7", "12", "3", "9")
DEPTH = 7
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
HOSTILE = '</script><img src=x onerror="window.hacked=1"> & {{ 7 * 7 }}'


def make_run(out: Path, shift: int, *, name: str = "basic_unet", protocol: str = "native", maps: bool = False) -> Path:
    """An evaluation's folder: patients with a square lesion, predicted ``shift`` pixels beside it."""
    rng = np.random.default_rng(0)
    scores: list[VolumeScore] = []
    for number, patient in enumerate(PATIENTS):
        image = rng.integers(60, 160, (40, 36, DEPTH, 3), dtype=np.uint8)
        image[:6] = image[-6:] = 0
        truth = np.zeros(image.shape[:3], dtype=np.uint8)
        truth[12 : 20 + 2 * number, 12:20, 1:4] = patient != "9"
        mask = np.roll(truth, shift * (number + 1), axis=0)
        mask[:, :, 0] = 0
        for kind, volume in (("image", image), ("label", truth)):
            write_durably(out / "volumes" / f"{patient}_{kind}.nii.gz", nifti_bytes(volume))
        like = out / "volumes" / f"{patient}_image.nii.gz"
        save_mask(mask, out / "masks" / f"{patient}_mask.nii.gz", like)
        if maps:
            save_map((mask * 0.4).astype(np.float32), out / "uncertainty" / f"{patient}_uncertainty.nii.gz", like)
        scores.append(score_volume(patient, mask, truth))
    training = {
        "seed": 3,
        "config": {
            "image_size": 96,
            "batch_size": 8,
            "max_epochs": 10,
            "steps_per_epoch": 100,
            "loss": {"_target_": "DiceCELoss"},
        },
    }
    provenance = {
        "command": "python -m pipeline.evaluate --manifest data_manifest",
        "protocol": protocol,
        "split": "validation",
        "fold": None,
        "tta": False,
        "bundles": [{"name": name, "weights_sha256": "ab" * 32, "settings": {}, "training": training}],
        "manifest_sha256": "cd" * 32,
        "seen_in_training": [],
        "seed": 0,
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
    }
    write_results(out, scores, provenance)
    return out


def changed(run: Path, **values: Any) -> Path:
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, the second without a fault, with uncertainty; curves of the first."""
    root = tmp_path_factory.mktemp("runs")
    made = [make_run(root / "first", 1), make_run(root / "second", 0, name="attention_unet", maps=True)]
    curve = {"train_loss": [(float(step), 1 / step) for step in range(1, 30)], "val_dsc": [(10.0, 0.5), (20.0, 0.7)]}
    write_curves(made[0] / CURVES, {"basic_unet": curve})
    return made


@pytest.fixture(scope="module")
def written(runs: list[Path]) -> Path:
    assert report.main([*map(str, runs)]) == 0
    return runs[0] / "report.html"


def test_page_says_what_was_compared(written: Path, runs: list[Path]) -> None:
    text = written.read_text()
    first, second = (json.loads((run / "summary.json").read_text()) for run in runs)
    assert second["dsc_mean"] == 1.0
    for figure in (f"{first['dsc_mean']:.4f}", f"{first['dsc_mean_95'][0]:.4f}", f"+{1 - first['dsc_mean']:.4f}"):
        assert figure in text
    assert "3, 0" in text  # better, worse
    assert "0.250" in text  # Wilcoxon, three patients, all better
    for word in ("DiceCELoss", "1,000 steps of 8 slices, 96 px", "native", "ab" * 32, "cd" * 32, "torch 2.13.0"):
        assert word in text
    assert text.count("Research only") >= 2
    assert "pipeline.evaluate --manifest data_manifest" in text
    assert text.count("<svg") == 3


def test_page_needs_nothing_but_itself(written: Path) -> None:
    text = written.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.findall(r"url\((?!#)", text)
    assert "Content-Security-Policy" in text


def test_page_is_the_same_from_copied_folders(runs: list[Path], tmp_path: Path) -> None:
    again = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    assert report.main([*map(str, again), "--out", str(tmp_path / "again.html")]) == 0
    assert report.main([*map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_patients_stand_worst_first(runs: list[Path], written: Path) -> None:
    read = report.read_runs(runs)
    assert report.worst_first(read) == list(WORST_FIRST)
    assert read[0].dsc["7"] < read[0].dsc["3"]
    assert data_of(written)["order"] == list(WORST_FIRST)


def test_only_the_worst_have_slices_where_asked(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    assert report.main([str(runs[0]), "--viewers", "1", "--out", str(tmp_path / "one.html")]) == 0
    assert data_of(tmp_path / "one.html")["order"] == ["7", "12", "3"]  # the worst, and the other examples
    assert "slices of 3 of 4" in capsys.readouterr().out
    assert report.main([str(runs[0]), "--viewers", "0", "--out", str(tmp_path / "none.html")]) == 0
    assert data_of(tmp_path / "none.html")["patients"] == {}


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_slices_and_masks_are_in_the_page(written: Path, runs: list[Path]) -> None:
    """Decoded again, the images hold the volumes."""
    import base64
    import io

    from PIL import Image

    from pipeline.volumes import load_label

    view = data_of(written)["patients"]["12"]
    rows, columns = slice(2, 38), slice(0, 36)  # the head and four pixels of air
    assert (view["height"], view["width"], view["depth"]) == (36, 36, DEPTH)

    def volume(address: str) -> np.ndarray:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
        across, height, width = view["columns"], view["height"], view["width"]
        tiles = pixels.reshape(-1, height, across, width).swapaxes(1, 2).reshape(-1, height, width)
        return np.moveaxis(tiles[:DEPTH], 0, 2)

    for run, folder in zip(("first", "second"), runs, strict=True):
        mask = load_label(folder / "masks" / "12_mask.nii.gz")[rows, columns]
        assert np.array_equal(volume(view["masks"][run]), mask.astype(bool))
    assert np.array_equal(volume(view["truth"]), load_label(runs[0] / "volumes" / "12_label.nii.gz")[rows, columns] > 0)
    assert list(view["maps"]) == ["second"]
    assert 1 <= view["start"] < 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), "no summary.json in it"),
        (lambda run: (run / "summary.json").write_text("{"), "no readable summary"),
        (lambda run: (run / "summary.json").write_text("{}"), "missing"),
        (lambda run: (run / "scores.csv").unlink(), "no readable scores"),
        (
            lambda run: (run / "scores.csv").write_text((run / "scores.csv").read_text().rsplit("\n", 2)[0] + "\n"),
            "not of one evaluation",
        ),
        (lambda run: (run / CURVES).write_text("[1]"), "no readable curves"),
        (lambda run: changed(run, protocol="reference"), "different protocols"),
        (lambda run: (run / "masks" / "3_mask.nii.gz").write_bytes(b"x"), "no readable NIfTI"),
        (
            lambda run: shutil.copy(run / "volumes" / "3_label.nii.gz", run / "volumes" / "12_label.nii.gz"),
            "different truths",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    runs: list[Path], tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    second = shutil.copytree(runs[1], tmp_path / "second")
    spoil(second)
    with pytest.raises(PipelineError, match=message):
        report.main([str(runs[0]), str(second), "--out", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "one"], "1 --name for 2 RUN"),
        (["--name", "same", "--name", "same"], "the same name twice"),
        (["--viewers", "-1"], "expected 0 or more"),
        (["--out", "."], "is a folder"),
    ],
)
def test_bad_options_are_refused(runs: list[Path], options: list[str], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        report.main([*map(str, runs), *options])


def test_one_run_twice_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="the same RUN twice"):
        report.main([str(runs[0]), str(runs[0])])
    with pytest.raises(PipelineError, match="nothing there"):
        report.main([str(tmp_path / "none")])


def test_case_34_missing_volumes_and_patients_are_told(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    for run in (first, second):
        (run / "volumes" / "3_image.nii.gz").unlink()
    rows = (second / "scores.csv").read_text().splitlines()
    (second / "scores.csv").write_text("\n".join(rows[:-1]) + "\n")
    changed(second, seen_in_training=["12"], manifest_sha256="ef" * 32, volumes=3)
    assert report.main([str(first), str(second)]) == 0
    said = capsys.readouterr().out
    for part in ("no slices of 3:", "different manifests", "not of the same patients", "trained on: 12", "no DSC"):
        assert part in said
    text = (first / "report.html").read_text()
    assert "trained on: 12" in text
    assert "3" not in data_of(first / "report.html")["patients"]


def test_runs_of_one_name_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    same = [shutil.copytree(run, tmp_path / folder / "scores") for run, folder in zip(runs, "ab", strict=True)]
    assert [run.name for run in report.read_runs(same)] == ["a/scores", "b/scores"]


@pytest.fixture(scope="module")
def hostile(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a patient and a run whose names are markup; ids like this are refused by the manifest, not here."""
    run = shutil.copytree(runs[0], tmp_path_factory.mktemp("hostile") / "run")
    name = HOSTILE.replace("/", "\u2215")  # no file name holds a slash
    for path in (*run.glob("*/3_*"),):
        path.rename(path.with_name(name + path.name[1:]))
    rows = (run / "scores.csv").read_text().replace("\n3,", '\n"' + name.replace('"', '""') + '",')
    (run / "scores.csv").write_text(rows)
    assert report.main([str(run), "--name", HOSTILE]) == 0
    return run / "report.html"


def test_hostile_names_are_escaped(hostile: Path) -> None:
    text = hostile.read_text()
    assert "<img src=x" not in text
    assert HOSTILE not in text
    assert "&lt;img src=x" in text


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    """Opens a page in headless Chromium at a window's width and a colour scheme."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    opened = []

    def open_page(page: Path, width: int = 1300, scheme: str = "light") -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
            *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
            f"window-size={width},900",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        opened.append(driver)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.as_uri())
        return driver

    yield open_page
    for driver in opened:
        driver.quit()


def drawn(driver: Any, before: str | None = None) -> str:
    """What the viewer has drawn last: patient, slice, channel, number of the drawing; waits for another than before."""
    from selenium.webdriver.support.ui import WebDriverWait

    def last(driver: Any) -> str | None:
        found = driver.find_element("id", "viewer").get_attribute("data-drawn")
        return found if found != before else None

    return str(WebDriverWait(driver, 30).until(last))


def pixels(driver: Any, index: int = 0) -> str:
    return str(driver.execute_script(f"return document.getElementById('canvas-{index}').toDataURL()"))


def test_browser_loads_without_error_or_request(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)
    assert drawn(driver).startswith("7 ")
    options = driver.find_elements("css selector", "#patient option")
    assert tuple(option.get_attribute("value") for option in options) == WORST_FIRST
    assert driver.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [a for a in addresses if not a.startswith("data:")] == [written.as_uri()]


def test_browser_turns_slices_on_keys_drag_and_wheel(browser: Callable[..., Any], written: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = browser(written)
    state = drawn(driver)
    viewer = driver.find_element("id", "viewer")
    shown = pixels(driver)
    for key, expected in (
        (Keys.HOME, 0),
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_UP, 2),
        (Keys.ARROW_LEFT, 1),
        (Keys.END, DEPTH - 1),
        (Keys.ARROW_DOWN, DEPTH - 2),
        (Keys.PAGE_DOWN, 0),
    ):
        viewer.send_keys(key)
        state = drawn(driver, state)
        assert state.split()[1] == str(expected), key
        assert driver.find_element("id", "where").text == f"slice {expected + 1} of {DEPTH}"
    assert pixels(driver) != shown
    ActionChains(driver).click_and_hold(viewer).move_by_offset(24, 0).release().perform()
    assert drawn(driver).split()[1] == "3"
    before = drawn(driver)
    driver.execute_script(
        "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -100, cancelable: true}))", viewer
    )
    assert drawn(driver, before).split()[1] == "4"


def test_browser_toggles_layers_channels_and_patients(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)
    state = drawn(driver)
    viewer = driver.find_element("id", "viewer")
    for key, box in (("p", "prediction"), ("t", "truth"), ("e", "errors")):
        before = pixels(driver)
        assert driver.find_element("id", box).is_selected()
        viewer.send_keys(key)
        state = drawn(driver, state)
        assert not driver.find_element("id", box).is_selected()
        assert pixels(driver) != before, box
    before = [pixels(driver, index) for index in range(2)]
    driver.find_element("id", "map").click()
    state = drawn(driver, state)
    assert pixels(driver, 0) == before[0]  # the first run has no uncertainty
    assert pixels(driver, 1) != before[1]
    shown = pixels(driver)
    viewer.send_keys("c")
    state = drawn(driver, state)
    assert state.split()[2] == "2"
    assert pixels(driver) != shown
    for press, expected in (("n", "12"), ("n", "3"), ("b", "12")):
        viewer.send_keys(press)
        state = drawn(driver, state)
        assert state.split()[0] == expected
    driver.find_element("id", "before").click()
    state = drawn(driver, state)
    assert state.split()[0] == "7"
    assert not driver.find_element("id", "before").is_enabled()
    driver.find_element("css selector", "button[data-patient='9']").click()
    state = drawn(driver, state)
    assert state.split()[0] == driver.find_element("id", "patient").get_attribute("value") == "9"
    assert driver.find_element("id", "dsc-0").text == "not defined"
    assert not driver.find_element("id", "after").is_enabled()
    assert driver.get_log("browser") == []


def test_browser_says_where_a_mask_is_missing(browser: Callable[..., Any], runs: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    (second / "masks" / "7_mask.nii.gz").unlink()
    assert report.main([str(first), str(second)]) == 0
    assert "second: no mask of 7" in (first / "report.html").read_text()
    driver = browser(first / "report.html")
    drawn(driver)
    assert driver.find_element("id", "dsc-1").text == "1.0000, no mask in its folder"
    assert driver.find_element("id", "canvas-1").is_displayed()


def test_browser_slider_and_keys_away_from_the_picture(browser: Callable[..., Any], written: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = browser(written)
    state = drawn(driver)
    slider = driver.find_element("id", "slice")
    slider.send_keys(Keys.HOME)
    state = drawn(driver, state)
    assert state.split()[1] == "0"
    slider.send_keys(Keys.ARROW_RIGHT)  # by one, not by the slider and the page both
    state = drawn(driver, state)
    assert state.split()[1] == "1"
    driver.find_element("id", "truth").send_keys("p")
    state = drawn(driver, state)
    assert not driver.find_element("id", "prediction").is_selected()
    driver.execute_script("document.activeElement.blur()")
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert drawn(driver, state).split()[1] == "2"


def test_browser_sorts_tables(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)

    def column(place: int) -> list[str]:
        cells = driver.find_elements("css selector", f"#patients tbody td:nth-child({place})")
        return [cell.get_attribute("data-value") for cell in cells]

    head = driver.find_elements("css selector", "#patients th[aria-sort]")[1]
    for order in ("ascending", "descending"):
        head.find_element("tag name", "button").click()
        assert head.get_attribute("aria-sort") == order
        voxels = [int(value) for value in column(2)]
        assert voxels == sorted(voxels, reverse=order == "descending")
    names = driver.find_elements("css selector", "#patients th[aria-sort]")[0]
    names.find_element("tag name", "button").click()
    assert column(1) == ["3", "7", "9", "12"]
    assert head.get_attribute("aria-sort") == "none"
    for _ in range(2):  # without a DSC: last, up and down
        driver.find_elements("css selector", "#patients th[aria-sort]")[2].find_element("tag name", "button").click()
        assert column(1)[-1] == "9"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_browser_page_fits_the_window(browser: Callable[..., Any], written: Path, width: int, scheme: str) -> None:
    driver = browser(written, width, scheme)
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    colours = driver.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map(c => c.match(/\\d+/g)[0])"
    )
    ink, paper = map(int, colours)
    dark, bright = (ink, paper) if scheme == "light" else (paper, ink)
    assert dark < 64
    assert bright > 190
    # Charts take the page's colour.
    fill = driver.execute_script("return getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert int(re.findall(r"\d+", fill)[0]) == ink


def test_browser_shows_hostile_names_as_text(browser: Callable[..., Any], hostile: Path) -> None:
    driver = browser(hostile)
    drawn(driver)
    assert driver.execute_script("return window.hacked") is None
    assert driver.get_log("browser") == []
    assert HOSTILE in driver.find_element("id", "runs").text
    patient = HOSTILE.replace("/", "\u2215")
    assert patient in driver.find_element("id", "patients").text
    assert patient in driver.find_element("id", "patient").text


def test_browser_long_names_do_not_overflow(browser: Callable[..., Any], runs: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    name = "P" * 100
    for path in run.glob("*/7_*"):
        path.rename(path.with_name(name + path.name[1:]))
    (run / "scores.csv").write_text((run / "scores.csv").read_text().replace("\n7,", f"\n{name},"))
    assert report.main([str(run), "--name", "R" * 100]) == 0
    driver = browser(run / "report.html", 360)
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360


def test_browser_prints_tables_and_examples(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not driver.find_element("id", "look").is_displayed()
    assert driver.find_element("id", "runs").is_displayed()
    assert len(driver.find_elements("css selector", ".examples figure")) == 3
    printed = driver.execute_cdp_cmd("Page.printToPDF", {})
    assert printed["data"].startswith("JVBERi")  # %PDF
