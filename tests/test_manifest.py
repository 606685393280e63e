import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image

from pipeline import datalist, files, manifest, patients, splits
from pipeline.errors import PipelineError, run_cli

SCHEMA = json.loads((Path(__file__).parents[1] / "data_manifest" / "schema.json").read_text())
SIDE = 32
A, B, C = "TCGA_CS_0001_19990101", "TCGA_CS_0002_19990102", "TCGA_HT_0003_19990103"


def seed_of(name, number):
    return zlib.crc32(f"{name} {number}".encode())


def image(seed=0, height=SIDE, width=SIDE):
    return np.random.default_rng(seed).integers(1, 255, (height, width, 3)).astype(np.uint8)


def mask(positive=255, height=SIDE, width=SIDE):
    array = np.zeros((height, width), np.uint8)
    array[3:6, 4:9] = positive
    return array


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, "TIFF", **options)


def add_patient(root, name, numbers=(1, 2, 3), positive=255):
    for number in numbers:
        stem = root / name / f"{name}_{number}"
        write(stem.with_name(stem.name + ".tif"), image(seed_of(name, number)))
        write(stem.with_name(stem.name + "_mask.tif"), mask(positive))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "kaggle_3m"
    for name in (A, B, C):
        add_patient(folder, name)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


class Outcome:
    """Status, texts and manifest of one run, its counts checked against the folder."""

    def __init__(self, status, texts, root, out):
        self.status, self.stdout, self.stderr = status, texts.out, texts.err
        path = out / "manifest.json"
        self.manifest = json.loads(path.read_bytes()) if path.is_file() else None
        lines = [line for line in self.stdout.splitlines() if line.startswith("files: ")]
        assert len(lines) == 1, self.stdout + self.stderr
        self.found, self.used, self.skipped, self.refused = (int(n) for n in lines[0].split() if n.isdigit())
        assert self.found == self.used + self.skipped + self.refused
        assert self.found == sum(len(names) for _, _, names in os.walk(root)) + sum(
            (Path(folder) / name).is_symlink() for folder, names, _ in os.walk(root) for name in names
        )
        if status == 0:
            check(self.manifest)

    def warnings(self, patient):
        return " | ".join(self.manifest["patients"][patient]["warnings"])


def check(content):
    """Schema, counts and lists of a manifest agree."""
    jsonschema.validate(content, SCHEMA)
    counts = content["counts"]
    assert counts["found"] == counts["used"] + counts["skipped"] + counts["refused"]
    assert counts["used"] == sum(len(info["sources"]) for info in content["patients"].values())
    assert (counts["skipped"], counts["refused"]) == (len(content["skipped"]), len(content["refused"]))
    listed = [item["patient"] for section in ("training", "validation", "test") for item in content[section]]
    assert sorted(listed) == sorted(content["patients"])
    assert content["numTraining"] == len(content["training"])


@pytest.fixture
def build(root, out, capsys):
    def _build(*options, split=("--split", "random", "--validation-fraction", "0.3")):
        capsys.readouterr()
        status = run_cli(manifest.main, [str(root), "--out", str(out), *split, *options])
        return Outcome(status, capsys.readouterr(), root, out)

    return _build


@pytest.fixture
def refused(build, out):
    """A build that must fail, and must leave nothing behind."""

    def _refused(*parts, options=(), **more):
        before = tree(out)
        outcome = build(*options, **more)
        assert outcome.status == 2
        assert "Traceback" not in outcome.stderr
        for part in parts:
            assert part in outcome.stderr
        assert tree(out) == before
        return outcome

    return _refused


def tree(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")
    }


# The cases of the list of bad inputs -------------------------------------------------------------------------------


def test_case_01_nested_second_copy(root, build):
    shutil.copytree(root, root / "lgg-mri-segmentation" / "kaggle_3m")
    outcome = build()
    assert (outcome.status, outcome.found, outcome.used, outcome.skipped) == (0, 36, 18, 18)
    assert "duplicate 18" in outcome.stdout
    assert all(path.count("/") == 1 for info in outcome.manifest["patients"].values() for path in info["sources"])


def test_case_02_same_slice_other_content(root, refused):
    write(root / "again" / f"{A}_2.tif", image(5))
    outcome = refused(f"again/{A}_2.tif", "differs in content", f"{A}/{A}_2.tif")
    assert outcome.refused == 7


def test_case_03_integer_order(root, build, out):
    add_patient(root, "P", range(1, 12))
    assert build().status == 0
    volume = nib.load(out / "volumes" / "P_image.nii.gz").get_fdata()
    for index, number in enumerate(range(1, 12)):
        np.testing.assert_array_equal(volume[:, :, index], image(seed_of("P", number)))


def test_case_04_slice_without_mask(root, build, refused):
    (root / A / f"{A}_2_mask.tif").unlink()
    refused(f"{A}/{A}_2.tif", "slice 2 has no mask", f"{A}_2_mask.tif", "--skip-unpaired")
    outcome = build("--skip-unpaired")
    assert (outcome.status, outcome.skipped) == (0, 1)
    assert outcome.manifest["skipped"] == [{"path": f"{A}/{A}_2.tif", "reason": "unpaired: slice 2 has no mask"}]
    assert "gap: slice(s) 2 missing" in outcome.warnings(A)


def test_case_05_mask_without_slice(root, build, refused):
    (root / A / f"{A}_3.tif").unlink()
    refused(f"{A}/{A}_3_mask.tif", "slice 3 has no image", f"{A}_3.tif", "--skip-unpaired")
    outcome = build("--skip-unpaired")
    assert (outcome.status, outcome.skipped) == (0, 1)
    assert outcome.manifest["patients"][A]["shape"] == [SIDE, SIDE, 2]


def test_case_05_no_pair_at_all_is_refused_even_so(root, refused):
    for path in (root / A).glob("*_mask.tif"):
        path.unlink()
    refused("no slice with both image and mask", options=["--skip-unpaired"])


def test_case_06_gap(root, build, refused):
    for suffix in ("", "_mask"):
        (root / A / f"{A}_2{suffix}.tif").unlink()
    refused(A, "slice(s) 2 missing between 1 and 3", "--allow-gaps")
    outcome = build("--allow-gaps")
    assert outcome.status == 0
    assert "gap: slice(s) 2 missing" in outcome.warnings(A)
    assert "gap 1" in outcome.stdout


def test_case_06_numbering_that_starts_late_is_a_warning(root, build):
    for suffix in ("", "_mask"):
        (root / A / f"{A}_1{suffix}.tif").unlink()
    assert "numbering starts at 2" in build().warnings(A)


@pytest.mark.parametrize("name", [f"{A}_01.tif", f"{A}_1.TIFF"])
def test_case_07_one_number_in_two_spellings(root, refused, name):
    shutil.copy(root / A / f"{A}_1.tif", root / A / name)
    refused("image of slice 1 stands twice", f"{A}_1.tif", name)


def test_case_08_junk_of_operating_systems(root, build):
    junk = [".DS_Store", f"{A}/._{A}_1.tif", "Thumbs.db", "__MACOSX/x/y_1.tif", ".git/deep/z_1.tif", "desktop.ini"]
    for name in [*junk, "data.csv", "README.txt"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    outcome = build()
    assert (outcome.status, outcome.used, outcome.skipped) == (0, 18, 8)
    reasons = {entry["path"]: entry["reason"] for entry in outcome.manifest["skipped"]}
    assert reasons["data.csv"] == "clinical table, not joined"
    assert reasons["README.txt"] == "not a slice"


def bomb(width=60000, height=60000):
    """A small TIFF whose header claims ``height`` x ``width`` RGB pixels, 464 bytes long."""
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 134),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 140),
        (277, 3, 1, 3),
        (278, 4, 1, 60000),
        (279, 4, 1, 324),
    ]
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data = (data + bytes(4)).ljust(134, b"\0") + struct.pack("<3H", 8, 8, 8)
    return data.ljust(464, b"\0")


def pages():
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "TIFF", save_all=True, append_images=[Image.fromarray(image(1))])
    return buffer.getvalue()


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


def float_rgb(value):
    """An uncompressed 32-bit float RGB page; Pillow neither writes nor reads such."""
    pixels = np.full((4, 4, 3), value, "<f4").tobytes()
    tags = [
        (256, 3, 1, 4),
        (257, 3, 1, 4),
        (258, 3, 3, 146),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 158),
        (277, 3, 1, 3),
        (278, 3, 1, 4),
        (279, 4, 1, len(pixels)),
        (339, 3, 3, 152),
    ]
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data = (data + bytes(4)).ljust(146, b"\0")
    return data + struct.pack("<6H", 32, 32, 32, 3, 3, 3) + pixels


def three_values():
    array = mask()
    array[0, 0] = 17
    return array


HTML = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
IMAGE_FAULTS = {
    "case_09_empty": (b"", "0 bytes"),
    "case_10_truncated": (encoded(image())[:1500], "truncated TIFF of 1500 bytes"),
    "case_11_html": (HTML, "an HTML page"),
    "case_13_pages": (pages(), "several pages"),
    "case_14_uint16": (encoded(np.zeros((SIDE, SIDE), np.uint16)), "16-bit unsigned pixels"),
    "case_14_float": (encoded(np.zeros((SIDE, SIDE), np.float32)), "32-bit float pixels (expected"),
    "case_14_float_rgb": (float_rgb(0.5), "32-bit float pixels (expected"),
    "case_15_grayscale": (encoded(mask()), "1 channel(s), grayscale"),
    "case_15_rgba": (encoded(np.dstack([image(), mask()])), "4 channel(s), RGBA"),
    "case_18_nan": (encoded(np.full((SIDE, SIDE), np.nan, np.float32)), "float pixels holding NaN"),
    "case_18_inf": (float_rgb(np.inf), "float pixels holding Inf"),
    "case_25_bomb": (bomb(), "the header claims 60000 x 60000 px"),
    "case_25_too_wide": (bomb(4097, 1), "the header claims 1 x 4097 px"),
    "case_25_too_high": (bomb(1, 4097), "the header claims 4097 x 1 px"),
    "case_25_no_width": (bomb(0, 1), "the header claims 1 x 0 px"),
}
MASK_FAULTS = {
    "case_09_empty": (b"", "0 bytes"),
    "case_11_html": (HTML, "an HTML page"),
    "case_14_uint16": (encoded(np.zeros((SIDE, SIDE), np.uint16)), "16-bit unsigned pixels"),
    "case_18_nan": (encoded(np.full((SIDE, SIDE), np.nan, np.float32)), "float pixels holding NaN"),
    "case_20_three_values": (encoded(three_values()), "mask values 0, 17, 255"),
    "case_20_other_values": (encoded(mask(2)), "mask values 0, 2 (expected 0 and 255, or 0 and 1)"),
    "case_21_rgb": (encoded(image()), "3 channel(s), RGB (expected 1 channel)"),
}


@pytest.mark.parametrize("case", IMAGE_FAULTS)
def test_faulty_images(root, refused, case):
    data, message = IMAGE_FAULTS[case]
    (root / A / f"{A}_2.tif").write_bytes(data)
    assert refused(f"{A}/{A}_2.tif: ", message).refused == 6


@pytest.mark.parametrize("case", MASK_FAULTS)
def test_faulty_masks(root, refused, case):
    data, message = MASK_FAULTS[case]
    (root / A / f"{A}_2_mask.tif").write_bytes(data)
    assert refused(f"{A}/{A}_2_mask.tif: ", message).refused == 6


def test_case_12_bit_rot_in_a_volume(root, build, out, capsys):
    build()
    path = out / "volumes" / f"{B}_label.nii.gz"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert run_cli(manifest.main, [str(root), "--out", str(out), "--verify"]) == 2
    error = capsys.readouterr().err
    assert path.name in error
    assert "SHA-256" in error
    assert "--rebuild" in error
    volumes = {volume.patient: volume for volume in datalist.select(datalist.read_manifest(out), "all")}
    datalist.verify_volume(volumes[A])
    with pytest.raises(PipelineError, match=path.name):
        datalist.verify_volume(volumes[B])


def test_case_16_image_and_mask_of_two_sizes(root, refused):
    write(root / A / f"{A}_2_mask.tif", mask(height=31))
    refused(f"{A}/{A}_2_mask.tif", "mask of 31 x 32 px on an image of 32 x 32 px")


def test_case_17_two_sizes_in_a_patient(root, refused):
    write(root / A / f"{A}_3.tif", image(width=40))
    write(root / A / f"{A}_3_mask.tif", mask(width=40))
    refused(f"{A}/{A}_3.tif", "slice of 32 x 40 px, but slice 1 is 32 x 32 px")


def test_case_19_mask_of_zero_and_one(root, build, out):
    add_patient(root, "P", positive=1)
    write(root / "P" / "P_2_mask.tif", mask() > 0)
    outcome = build()
    assert outcome.status == 0
    assert outcome.manifest["patients"]["P"]["mask_values"] == [0, 1]
    assert outcome.manifest["patients"][A]["mask_values"] == [0, 255]
    label = nib.load(out / "volumes" / "P_label.nii.gz").get_fdata()
    np.testing.assert_array_equal(label, np.dstack([mask(1)] * 3))
    write(root / "P" / "P_3_mask.tif", mask(255))
    assert "mask values" in build("--rebuild").warnings("P")


def test_case_22_black_image(root, build):
    write(root / A / f"{A}_2.tif", np.zeros((SIDE, SIDE, 3), np.uint8))
    outcome = build()
    assert (outcome.status, outcome.warnings(A)) == (0, "black slices: 2")


@pytest.mark.parametrize(
    ("channels", "missing"),
    [
        ((1, 1, 2), ["pre-contrast"]),
        ((0, 1, 1), ["post-contrast"]),
        ((1, 1, 1), ["pre-contrast", "post-contrast"]),
        ((0, 1, 0), ["pre-contrast=post-contrast"]),
    ],
)
def test_case_23_repeated_channel(root, build, channels, missing):
    for number in (1, 2, 3):
        write(root / A / f"{A}_{number}.tif", image(number)[..., list(channels)])
    outcome = build()
    assert outcome.status == 0
    assert outcome.manifest["patients"][A]["missing_sequences"] == missing
    assert f"missing sequence: {missing[0]}" in outcome.warnings(A)
    assert "missing sequences: " in outcome.stdout


def test_case_23_one_equal_slice_is_not_a_missing_sequence(root, build):
    write(root / A / f"{A}_1.tif", image(1)[..., [1, 1, 1]])
    assert build().manifest["patients"][A]["missing_sequences"] == []


def test_case_24_no_lesion(root, build):
    add_patient(root, "P", positive=0)
    outcome = build()
    assert outcome.manifest["patients"]["P"]["lesion_voxels"] == 0
    assert outcome.warnings("P") == "no lesion: the label is empty"
    assert outcome.manifest["patients"][A]["lesion_voxels"] == 3 * 15


def test_case_25_is_refused_before_memory_is_taken(root, refused, monkeypatch):
    def decode(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", decode)
    for path in root.rglob("*.tif"):
        path.write_bytes(bomb())
    assert len(bomb()) == 464
    refused("60000 x 60000")


def test_case_25_files_and_volumes_of_any_size_are_not_read(root, refused, monkeypatch):
    monkeypatch.setattr(patients, "MAX_VOXELS", 3 * SIDE * SIDE - 1)
    refused("3 slices of 32 x 32 px")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    refused("more than any slice needs")


def test_case_26_links(root, build, refused, tmp_path):
    (tmp_path / "secret.tif").write_bytes(b"x")
    links = {
        "loop": root,
        f"{A}/up": root / A,
        "self_1.tif": root / "self_1.tif",
        "gone_1.tif": root / "nothing",
        f"{A}/{A}_4.tif": tmp_path / "secret.tif",
        "elsewhere": tmp_path,
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    outcome = refused(*(f"{name}: symbolic link" for name in links), "loop", "out of the source folder", "to nothing")
    assert outcome.refused == 6 + 6
    assert build("--skip-faulty").used == 12


def test_case_26_links_to_what_is_not_counted_are_faults(root, build, refused):
    for name, target in ((f"{A}_3.tif", "blob/x.dat"), (f"{A}_3_mask.tif", f".blob/{A}_3_mask.tif")):
        (root / target).parent.mkdir()
        (root / A / name).rename(root / target)
        (root / A / name).symlink_to(root / target)
    refused(f"{A}/{A}_3.tif: symbolic link to what is not counted itself", f"{A}_3_mask.tif: symbolic link")


def test_case_26_links_within_the_folder_are_skipped(root, build, tmp_path):
    (root / f"{A}_1.tif").symlink_to(root / A / f"{A}_1.tif")
    (root / "also").symlink_to(root / B)
    (tmp_path / "entry").symlink_to(root)
    outcome = build()
    assert (outcome.status, outcome.used, outcome.skipped) == (0, 18, 2)
    other = tmp_path / "out2"
    assert manifest.main([str(tmp_path / "entry"), "--out", str(other), "--split", "none"]) == 0


def test_case_27_unreadable_file(root, refused, monkeypatch):
    read = Path.read_bytes

    def denied(path):
        if path.name == f"{A}_2.tif":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(f"{A}/{A}_2.tif: cannot be read (Permission denied)", "permissions")


def test_case_27_unreadable_folder(root, out, capsys, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if Path(path).name in {B, "__MACOSX"}:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    (root / "__MACOSX").mkdir()
    monkeypatch.setattr(os, "scandir", denied)
    assert run_cli(manifest.main, [str(root), "--out", str(out), "--split", "none"]) == 2
    texts = capsys.readouterr()
    assert f"{B}: the folder cannot be read (Permission denied)" in texts.err
    assert "files: 14 found = 12 used + 1 skipped + 1 refused" in texts.out
    assert not out.exists()


def test_case_27_pipes_are_not_opened(root, refused):
    os.mkfifo(root / A / f"{A}_4.tif")
    refused(f"{A}/{A}_4.tif: is a pipe")


def test_case_28_unicode_and_spaces_work(root, build, out):
    add_patient(root, "Žofie Müller 患者")
    outcome = build()
    assert outcome.status == 0
    items = [item for key in ("training", "validation") for item in outcome.manifest[key]]
    assert "Žofie Müller 患者" in {item["patient"] for item in items}
    assert all((out / item["image"]).is_file() for item in items)


def test_case_28_names_that_differ_in_case_only(root, build, refused):
    add_patient(root, "Pat")
    add_patient(root, "pat")
    outcome = refused("Pat: ids differ only in case: Pat, pat")
    assert outcome.refused == 12
    assert build("--skip-faulty").used == 18


def test_case_28_backslash_and_undecodable_names(root, refused):
    write(root / "a\\b_1.tif", image())
    (root / os.fsdecode(b"bad\xff_1.tif")).write_bytes(b"")
    outcome = refused("a\\b_1.tif: the patient id", "bad\\udcff_1.tif: the path holds")
    assert outcome.refused == 2


@pytest.mark.parametrize("name", ["..\\x", "<script>alert(1)<", "=cmd", "-rf", "a\x1b[31m"])
def test_case_29_hostile_ids(root, refused, name):
    (root / f"{name}_1.tif").write_bytes(encoded(image()))
    outcome = refused("Rename")
    assert "\x1b" not in outcome.stderr


def test_case_29_a_name_without_number(root, refused):
    write(root / "scan.tif", image())
    refused("scan.tif: the name holds no slice number (expected <patient>_<number>.tif")


@pytest.fixture
def split_file(tmp_path):
    def _write(content):
        path = tmp_path / "split.json"
        path.write_text(json.dumps(content))
        return ("--split", str(path))

    return _write


def test_case_30_one_patient_in_two_splits(refused, split_file, root, out, capsys):
    argv = [str(root), "--out", str(out), *split_file({"validation": [A], "test": [A]})]
    assert run_cli(manifest.main, argv) == 2
    assert f"patient {A} is listed in validation and in test" in capsys.readouterr().err
    assert not out.exists()


def test_case_30_two_exams_of_a_person_in_two_splits(root, refused, split_file):
    second = "TCGA_CS_0001_20050505"
    add_patient(root, second)
    refused("one person in two sections", second, split=split_file({"validation": [A]}))


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: (path / "x").mkdir(parents=True)])
def test_case_31_empty_root(tmp_path, out, capsys, make):
    empty = tmp_path / "empty"
    make(empty)
    assert run_cli(manifest.main, [str(empty), "--out", str(out)]) == 2
    assert "no slice among 0 file(s)" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("what", ["nothing there", "a file"])
def test_case_31_no_folder(tmp_path, out, capsys, what):
    path = tmp_path / "x"
    if what == "a file":
        path.write_text("x")
    assert run_cli(manifest.main, [str(path), "--out", str(out)]) == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "section"),
    [
        (("--split", "random", "--validation-fraction", "0.1"), "validation"),
        (("--split", "stratified", "--validation-fraction", "0.4", "--test-fraction", "0.1"), "test"),
        (("--split", "random", "--validation-fraction", "0.95"), "training"),
    ],
)
def test_case_31_empty_section(refused, split, section):
    refused(f"the {section} section is empty", split=split)


def test_case_32_file_changed_after_the_manifest(root, build, refused, out, capsys):
    assert build().status == 0
    path = root / A / f"{A}_1.tif"
    original = path.read_bytes()
    write(path, image(99))
    outcome = refused(f"{A}/{A}_1.tif: changed since the manifest was built", "--rebuild")
    assert outcome.refused == 6
    assert refused("changed", options=["--skip-faulty"]).refused == 6
    assert run_cli(manifest.main, [str(root), "--out", str(out), "--verify"]) == 2
    assert f"{A}/{A}_1.tif: changed" in capsys.readouterr().err
    path.write_bytes(b"")
    refused("0 bytes", "changed since")
    path.write_bytes(original)
    assert build().status == 0
    write(path, image(99))
    assert build("--rebuild").status == 0


def test_case_32_file_gone_after_the_manifest(root, build, refused, out, capsys):
    build()
    shutil.rmtree(root / A)
    refused(f"{A}: 6 file(s) gone since the manifest was built: {A}/{A}_1.tif", "and 1 more")
    assert run_cli(manifest.main, [str(root), "--out", str(out), "--verify"]) == 2
    assert "gone" in capsys.readouterr().err
    outcome = build("--rebuild", split=("--split", "none"))
    assert outcome.used == 12
    assert not list(out.glob(f"volumes/{A}*"))
    assert len(list(out.glob("volumes/*"))) == 4


# What a run writes -------------------------------------------------------------------------------------------------


def test_manifest_holds_hashes_of_sources_and_volumes(root, build, out):
    outcome = build()
    for name, info in outcome.manifest["patients"].items():
        for path, expected in info["sources"].items():
            assert hashlib.sha256((root / path).read_bytes()).hexdigest() == expected
        for kind in ("image", "label"):
            data = (out / "volumes" / f"{name}_{kind}.nii.gz").read_bytes()
            assert hashlib.sha256(data).hexdigest() == info[f"{kind}_sha256"]


def test_monai_reads_it(build, out):
    build("--folds", "2", split=("--split", "random", "--validation-fraction", "0.3", "--test-fraction", "0.3"))
    for section in ("training", "validation", "test"):
        (item,) = load_decathlon_datalist(out / "manifest.json", True, section)
        assert Path(item["image"]).is_file()
        assert Path(item["label"]).is_file()
        assert set(item) - {"fold"} == {"image", "label", "patient"}
        assert ("fold" in item) == (section != "test")
        assert item["patient"] in {A, B, C}


def test_two_builds_give_the_same_bytes(root, build, out, tmp_path):
    build("--folds", "3")
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    other = tmp_path / "other"
    options = ["--split", "random", "--validation-fraction", "0.3", "--folds", "3"]
    assert manifest.main([str(copy), "--out", str(other), *options]) == 0
    ours, theirs = ({p: v[1] for p, v in tree(d).items() if p != ".state.json"} for d in (out, other))
    assert ours == theirs
    text = (out / "manifest.json").read_text() + (out / ".state.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_second_run_writes_nothing(build, out):
    build()
    before = tree(out)
    outcome = build()
    assert outcome.stdout.startswith("unchanged")
    assert tree(out) == before


def test_second_run_clears_what_a_kill_left(root, build, out):
    build()
    (out / ".building" / "before").mkdir(parents=True)
    build()
    assert not (out / ".building").exists()


def test_second_run_with_left_out_patients_writes_nothing(root, build, out):
    (root / A / f"{A}_1.tif").write_bytes(b"")
    (root / "gone_1.tif").symlink_to("nothing")
    build("--skip-faulty")
    before = tree(out)
    assert build("--skip-faulty").stdout.startswith("unchanged")
    assert tree(out) == before


def test_touched_source_is_accepted_and_touched_volume_is_rebuilt(root, build, out):
    build()
    before = (out / "manifest.json").read_bytes()
    (root / A / f"{A}_1.tif").touch()
    assert not build().stdout.startswith("unchanged")
    volume = out / "volumes" / f"{A}_label.nii.gz"
    volume.write_bytes(b"rot")
    outcome = build()
    assert outcome.status == 0
    assert hashlib.sha256(volume.read_bytes()).hexdigest() == outcome.manifest["patients"][A]["label_sha256"]
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("state", [None, b"{", b"[]", b"{}"])
def test_without_a_usable_state_the_content_decides(root, build, refused, out, state):
    build()
    (out / ".state.json").unlink()
    if state is not None:
        (out / ".state.json").write_bytes(state)
    write(root / A / f"{A}_1.tif", image(99))
    refused("changed since")


def test_added_patient_and_other_options_rebuild(root, build):
    build()
    add_patient(root, "P")
    assert build().used == 24
    outcome = build("--seed", "4", "--folds", "2")
    assert outcome.manifest["split"] == {
        "method": "random",
        "seed": 4,
        "validation_fraction": 0.3,
        "test_fraction": 0.0,
        "folds": 2,
    }


def test_another_folder_does_not_replace_a_manifest(root, build, out, tmp_path, capsys):
    build()
    before = tree(out)
    other = tmp_path / "theirs"
    add_patient(other, "P")
    argv = [str(other), "--out", str(out), "--split", "none"]
    assert run_cli(manifest.main, argv) == 2
    assert "built from another folder" in capsys.readouterr().err
    assert tree(out) == before
    assert run_cli(manifest.main, [*argv, "--rebuild"]) == 0
    assert len(list((out / "volumes").iterdir())) == 2


def test_unreadable_earlier_manifest(build, out, capsys, root):
    build()
    (out / "manifest.json").write_text("{")
    assert run_cli(manifest.main, [str(root), "--out", str(out), "--split", "none"]) == 2
    assert "--rebuild" in capsys.readouterr().err
    assert build("--rebuild").status == 0


def test_skip_faulty_leaves_whole_patients_out(root, build):
    (root / A / f"{A}_2.tif").write_bytes(b"")
    outcome = build("--skip-faulty", split=("--split", "none"))
    assert (outcome.status, outcome.used, outcome.refused) == (0, 12, 6)
    reasons = {entry["path"]: entry["reason"] for entry in outcome.manifest["refused"]}
    assert "0 bytes" in reasons[f"{A}/{A}_2.tif"]
    assert "left out" in reasons[f"{A}/{A}_1_mask.tif"]
    assert f"warning: left out: {A}/{A}_2.tif" in outcome.stderr
    assert "left out 1" in outcome.stdout


def test_all_faults_are_told_at_once(root, refused):
    (root / A / f"{A}_2.tif").write_bytes(b"")
    (root / B / f"{B}_1_mask.tif").unlink()
    write(root / "scan.tif", image())
    outcome = refused(f"{A}_2.tif: 0 bytes", f"{B}_1.tif: slice 1 has no mask", "scan.tif: the name")
    assert (outcome.used, outcome.refused) == (6, 12)


def test_a_failed_run_leaves_the_old_manifest(root, build, refused):
    build()
    write(root / "P" / "P_1.tif", image())
    refused("P_1.tif")


def test_full_disk_while_staging_is_one_message(root, out, capsys, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run_cli(manifest.main, [str(root), "--out", str(out), "--split", "none"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert not out.exists()


def test_output_inside_the_source_is_refused(root, capsys):
    assert run_cli(manifest.main, [str(root), "--out", str(root / "out")]) == 2
    assert "inside the source folder" in capsys.readouterr().err


def test_two_runs_at_once_are_refused(root, out, capsys):
    fcntl = pytest.importorskip("fcntl")
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert run_cli(manifest.main, [str(root), "--out", str(out), "--split", "none"]) == 2
    finally:
        os.close(handle)
    assert "another run" in capsys.readouterr().err


def test_verify_agrees_and_tells_of_new_files(root, build, out, capsys):
    build()
    before = tree(out)
    argv = [str(root), "--out", str(out), "--verify"]
    assert run_cli(manifest.main, argv) == 0
    text = capsys.readouterr().out
    assert "18 source files and 6 volumes agree" in text
    assert "files: 18 found = 18 used" in text
    (root / "new.txt").write_text("x")
    assert run_cli(manifest.main, argv) == 0
    assert "1 file(s) in the folder are not in the manifest" in capsys.readouterr().out
    assert tree(out) == before


def test_verify_needs_a_manifest_and_names_missing_volumes(root, build, out, capsys, monkeypatch):
    argv = [str(root), "--out", str(out), "--verify"]
    assert run_cli(manifest.main, argv) == 2
    assert "no manifest" in capsys.readouterr().err
    build()
    (out / "volumes" / f"{A}_image.nii.gz").unlink()
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    assert run_cli(manifest.main, argv) == 2
    error = capsys.readouterr().err
    assert f"{A}_image.nii.gz: cannot be read" in error
    assert f"{B}_1.tif: " in error


# Splits and folds --------------------------------------------------------------------------------------------------


def test_reference_split(root, build, refused):
    refused("none of the 10", "--split random", "--split none", split=())
    name = splits.read_split(splits.REFERENCE)["validation"][0]
    add_patient(root, name)
    outcome = build(split=())
    assert [item["patient"] for item in outcome.manifest["validation"]] == [name]
    assert outcome.manifest["numTraining"] == 3
    assert outcome.manifest["warnings"][0]["message"].startswith("9 of the 10 reference patients")


def test_split_none(build, refused):
    outcome = build(split=("--split", "none"))
    assert [len(outcome.manifest[key]) for key in ("training", "validation", "test")] == [0, 0, 3]
    assert "next: python -m pipeline.evaluate" in outcome.stdout
    refused("--folds with --split none", split=("--split", "none", "--folds", "2"))


def test_a_changed_split_is_said(build):
    assert "split changed" not in build(split=("--split", "none")).stdout
    assert "split changed" not in build("--seed", "5", split=("--split", "none")).stdout
    outcome = build(split=("--split", "random", "--validation-fraction", "0.3"))
    assert "split changed: 3 patients stand in another section" in outcome.stdout


def test_split_file(root, build, refused, split_file):
    outcome = build(split=split_file({"description": "x", "test": [A], "validation": [C]}))
    assert [outcome.manifest["patients"][p]["section"] for p in (A, B, C)] == ["test", "training", "validation"]
    refused("names 1 unknown patient(s): Q", split=split_file({"test": ["Q"]}))
    refused(f"no section for 1 patient(s): {B}", split=split_file({"test": [A], "training": [C]}))
    refused("training section is empty", split=split_file({"test": [A, B, C]}))
    (root / A / f"{A}_2.tif").write_bytes(b"")
    outcome = build("--skip-faulty", "--rebuild", split=split_file({"test": [A, B]}))
    assert f"refused: {A}" in outcome.manifest["warnings"][0]["message"]
    refused("test section is empty", options=["--skip-faulty"], split=split_file({"test": [A]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "other.json"), "no such file"),
        (("--split", "random", "--validation-fraction", "1"), "together below 1"),
        (("--split", "random", "--validation-fraction", "nan"), "together below 1"),
        (("--split", "random", "--test-fraction", "-0.1"), "together below 1"),
        (("--split", "random", "--seed", "-1"), "expected 0 or more"),
    ],
)
def test_bad_options(root, out, capsys, options, message):
    assert run_cli(manifest.main, [str(root), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("folds", ["1", "0", "-2", "4"])
def test_bad_number_of_folds(refused, folds):
    refused(f"--folds {folds} (expected 2 to 3", options=["--folds", folds])


# Real patients -----------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif("LGG_ROOT" not in os.environ, reason="LGG_ROOT does not name the published folder kaggle_3m")
def test_published_patients(capsys):
    source = Path(os.environ["LGG_ROOT"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        assert run_cli(manifest.main, [str(source), "--out", folder, "--split", "none"]) == 0
        outcome = Outcome(0, capsys.readouterr(), source, out)
        assert outcome.refused == 0
        for name, info in outcome.manifest["patients"].items():
            volume = np.asarray(nib.load(out / "volumes" / f"{name}_image.nii.gz").dataobj)
            label = np.asarray(nib.load(out / "volumes" / f"{name}_label.nii.gz").dataobj)
            depth = len(info["sources"]) // 2
            assert info["shape"] == [256, 256, depth]
            assert volume.shape == (256, 256, depth, 3)
            for index in (0, depth // 2, depth - 1):
                stem = source / name / f"{name}_{index + 1}"
                np.testing.assert_array_equal(volume[:, :, index], np.asarray(Image.open(f"{stem}.tif")))
                np.testing.assert_array_equal(label[:, :, index], np.asarray(Image.open(f"{stem}_mask.tif")) // 255)
