"""Pages format names, numbers and lists in the same way, and limit their size."""

from __future__ import annotations

import numpy as np

from pipeline.pages.page import breakable, collect_views, decimals, gray_channels, listed, signed


def test_names_break_after_separators_and_are_escaped() -> None:
    assert breakable("TCGA_CS-1/a.b_") == "TCGA_<wbr>CS-<wbr>1/<wbr>a.<wbr>b_"
    assert breakable("<b>_x") == "&lt;b&gt;_<wbr>x"


def test_numbers_are_written_with_their_decimals() -> None:
    assert (decimals(None), decimals(0.12345), decimals(3, 1)) == ("", "0.1235", "3.0")
    assert (signed(0.00004), signed(-0.00004), signed(-0.5), signed(0.25)) == ("0.0000", "0.0000", "-0.5000", "+0.2500")


def test_long_lists_are_counted() -> None:
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdef") == "a, b, c and 3 more"


def test_views_without_anything_to_show_take_no_room() -> None:
    views, left_out = collect_views(["a", "b"], lambda name: None if name == "a" else {"name": name}, "test")
    assert (views, left_out) == ({"b": {"name": "b"}}, [])


def test_channels_that_share_memory_share_it_as_gray() -> None:
    one = np.linspace(0, 1000, 24).reshape(4, 3, 2, 1)
    gray = gray_channels(np.broadcast_to(one, (4, 3, 2, 3)))
    assert gray.dtype == np.uint8
    assert gray.shape == (4, 3, 2, 3)
    assert gray.strides[-1] == 0
    own = gray_channels(np.concatenate([one, 2 * one, one], axis=-1))
    assert np.array_equal(own[..., 0], gray[..., 0])
