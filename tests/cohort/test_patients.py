"""The slices of one patient become two volumes, in the order of their numbers. Each error names its file."""

from __future__ import annotations

import io
import shutil
import struct
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.cohort import listing, patients
from pipeline.cohort.names import parse_name
from pipeline.cohort.patients import PatientVolumes, read_patient
from tests.cohort.conftest import SIDE, A, add_patient, encoded, image, mask, seed_of, write


def read(root: Path, name: str = A, **options: Any) -> PatientVolumes:
    """Read one patient of a folder."""
    pattern = "*.tif" if options.get("masks", True) else "*[0-9].tif"
    files = [parse_name(PurePosixPath(path.relative_to(root))) for path in sorted((root / name).glob(pattern))]
    return read_patient(root, name, [file for file in files if file], **options)


def test_volumes_hold_the_slices(root):
    found = read(root)
    assert found.image.shape == (SIDE, SIDE, 3, 3)
    for index in range(3):
        np.testing.assert_array_equal(found.image[:, :, index], image(seed_of(A, index + 1)))
    np.testing.assert_array_equal(found.label, np.dstack([mask(1)] * 3))
    assert found.image.dtype == found.label.dtype == np.uint8
    record = found.record
    assert (record.mask_values, record.missing_sequences, record.warnings) == ((0, 255), (), ())
    assert list(record.sources) == sorted(found.hashes)
    assert len(record.sources) == 6
    assert not found.skipped
    assert not found.faults


def test_masks_may_be_passed_over(root):
    (root / A / f"{A}_1_mask.tif").write_bytes(b"")
    (root / A / f"{A}_2_mask.tif").unlink()
    found = read(root, masks=False)
    np.testing.assert_array_equal(found.image, np.stack([image(seed_of(A, n)) for n in (1, 2, 3)], axis=2))
    assert found.label is None
    assert (found.faults, found.record.mask_values) == ({}, ())
    assert set(found.record.sources) == {f"{A}/{A}_{number}.tif" for number in (1, 2, 3)}
    write(root / A / f"{A}_3.tif", np.zeros((SIDE, SIDE, 3), np.uint8))
    assert read(root, masks=False).record.warnings == ()  # black slices matter only if there are masks


def test_a_fault_leaves_no_volume_and_no_source(root):
    (root / A / f"{A}_2.tif").write_bytes(b"")
    found = read(root)
    assert (found.image, found.label, found.record) == (None, None, None)
    assert list(found.faults) == [f"{A}/{A}_2.tif"]
    assert len(found.hashes) == 6


# Copies, pairs and numbers -----------------------------------------------------------------------------------------


def test_case_01_nested_second_copy(root, build):
    shutil.copytree(root, root / "lgg-mri-segmentation" / "kaggle_3m")
    built = build()
    assert (built.found, built.used, built.skipped) == (36, 18, 18)
    assert all(entry["reason"].startswith("duplicate: same content as ") for entry in built.manifest["skipped"])
    assert all(path.count("/") == 1 for info in built.manifest["patients"].values() for path in info["sources"])


def test_case_02_same_slice_other_content(root, refused):
    write(root / "again" / f"{A}_2.tif", image(5))
    assert refused(f"again/{A}_2.tif", "differs in content", f"{A}/{A}_2.tif").refused == 7


def test_case_03_integer_order(root, build, out):
    add_patient(root, "P", range(1, 12))
    build()
    volume = nib.load(out / "volumes" / "P_image.nii.gz").get_fdata()
    for index, number in enumerate(range(1, 12)):
        np.testing.assert_array_equal(volume[:, :, index], image(seed_of("P", number)))


def test_case_04_slice_without_mask(root, build, refused):
    (root / A / f"{A}_2_mask.tif").unlink()
    refused(f"{A}/{A}_2.tif", "slice 2 has no mask", f"{A}_2_mask.tif", "--skip-unpaired")
    built = build(skip_unpaired=True)
    assert built.skipped == 1
    assert built.manifest["skipped"] == [{"path": f"{A}/{A}_2.tif", "reason": "unpaired: slice 2 has no mask"}]
    assert "gap: slice(s) 2 missing" in built.warnings(A)
    assert "unpaired: image or mask of slice(s) 2 skipped" in built.warnings(A)


def test_case_05_mask_without_slice(root, build, refused):
    (root / A / f"{A}_3.tif").unlink()
    refused(f"{A}/{A}_3_mask.tif", "slice 3 has no image", f"{A}_3.tif", "--skip-unpaired")
    built = build(skip_unpaired=True)
    assert built.skipped == 1
    assert built.manifest["patients"][A]["shape"] == [SIDE, SIDE, 2]


def test_case_05_no_pair_at_all_is_refused_even_so(root, refused):
    for path in (root / A).glob("*_mask.tif"):
        path.unlink()
    refused("no slice with both image and mask", skip_unpaired=True)


def test_case_06_gap(root, build, refused):
    for suffix in ("", "_mask"):
        (root / A / f"{A}_2{suffix}.tif").unlink()
    refused(A, "slice(s) 2 missing between 1 and 3", "--allow-gaps")
    built = build(allow_gaps=True)
    assert "gap: slice(s) 2 missing" in built.warnings(A)
    assert {"gap"} == {warning["kind"] for warning in built.manifest["warnings"]}


def test_case_06_numbering_that_starts_late_is_a_warning(root, build):
    for suffix in ("", "_mask"):
        (root / A / f"{A}_1{suffix}.tif").unlink()
    assert "numbering starts at 2" in build().warnings(A)


@pytest.mark.parametrize("name", [f"{A}_01.tif", f"{A}_1.TIFF"])
def test_case_07_one_number_in_two_spellings(root, refused, name):
    shutil.copy(root / A / f"{A}_1.tif", root / A / name)
    refused("image of slice 1 exists twice", f"{A}_1.tif", name)


# Files that are no slices ------------------------------------------------------------------------------------------


def tiff(tags: list[tuple[int, int, int, int]], tail: bytes) -> bytes:
    """An uncompressed little-endian TIFF with these tags, followed by ``tail``."""
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return data + bytes(4) + tail


def bomb(width: int = 60000, height: int = 60000) -> bytes:
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
    data = tiff(tags, b"").ljust(134, b"\0") + struct.pack("<3H", 8, 8, 8)
    return data.ljust(464, b"\0")


def pages() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "TIFF", save_all=True, append_images=[Image.fromarray(image(1))])
    return buffer.getvalue()


def float_rgb(value: float) -> bytes:
    """An uncompressed 32-bit float RGB page, which Pillow can neither write nor read."""
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
    return tiff(tags, b"").ljust(146, b"\0") + struct.pack("<6H", 32, 32, 32, 3, 3, 3) + pixels


def three_values() -> np.ndarray:
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
    "case_15_gray_and_alpha": (encoded(np.dstack([mask(), mask()])), "2 channel(s), grayscale + alpha"),
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


def test_case_25_is_refused_before_memory_is_taken(root, refused, monkeypatch):
    def decode(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", decode)
    for path in root.rglob("*.tif"):
        path.write_bytes(bomb())
    assert len(bomb()) == 464
    refused("60000 x 60000")


def test_case_25_files_and_volumes_of_any_size_are_not_read(root, refused, monkeypatch):
    monkeypatch.setattr(patients, "MAX_VALUES", 3 * 3 * SIDE * SIDE - 1)
    refused("3 slices of 32 x 32 px")
    monkeypatch.setattr(listing, "MAX_FILE_BYTES", 100)
    refused("at most 100 are read")


# Slices that do not fit, or are odd --------------------------------------------------------------------------------


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
    built = build()
    assert built.manifest["patients"]["P"]["mask_values"] == [0, 1]
    assert built.manifest["patients"][A]["mask_values"] == [0, 255]
    label = nib.load(out / "volumes" / "P_label.nii.gz").get_fdata()
    np.testing.assert_array_equal(label, np.dstack([mask(1)] * 3))
    write(root / "P" / "P_3_mask.tif", mask(255))
    assert "mask values" in build(rebuild=True).warnings("P")


def test_case_22_black_image(root, build):
    write(root / A / f"{A}_2.tif", np.zeros((SIDE, SIDE, 3), np.uint8))
    assert build().warnings(A) == "black slices: 2"


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
    built = build()
    assert built.manifest["patients"][A]["missing_sequences"] == missing
    assert built.warnings(A) == " | ".join(f"missing sequence: {name}, FLAIR is used instead" for name in missing)
    assert read(root, masks=False).record.missing_sequences == tuple(missing)


def test_case_23_one_equal_slice_is_not_a_missing_sequence(root, build):
    write(root / A / f"{A}_1.tif", image(1)[..., [1, 1, 1]])
    assert build().manifest["patients"][A]["missing_sequences"] == []


def test_case_24_no_lesion(root, build):
    add_patient(root, "P", positive=0)
    built = build()
    assert built.manifest["patients"]["P"]["lesion_voxels"] == 0
    assert built.warnings("P") == "no lesion: the label is empty"
    assert built.manifest["patients"][A]["lesion_voxels"] == 3 * 15
