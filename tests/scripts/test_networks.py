"""Networks are made faster to the same logits."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser


@pytest.mark.parametrize(("size", "padded"), [(32, False), (40, True)])
def test_what_needs_no_pad_is_not_copied_to_the_same_logits(recipe: ConfigParser, size: int, padded: bool) -> None:
    if recipe["network_def"]["_target_"] == "AttentionUnet":
        pytest.skip("AttentionUnet pads nothing")
    recipe["image_size"] = size
    network = recipe.get_parsed_content("network").eval()
    parts = [part for part in network.modules() if hasattr(part, "is_pad")]
    assert {part.is_pad for part in parts} == {padded}
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(image)
        for part in parts:
            part.is_pad = True
        assert torch.equal(logits, network(image))
