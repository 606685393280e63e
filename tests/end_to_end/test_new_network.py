"""A new network takes one file: it becomes a bundle that trains, predicts, is evaluated and is packed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from monai.bundle import ConfigWorkflow, verify_net_in_out

from pipeline.cohort.manifest import read_manifest
from pipeline.model.packing import pack_bundle
from tests.conftest import ROOT, TINY
from tools import bundles as generator


def test_a_fourth_network_is_one_file(manifest: Path, run_config: Any, tmp_path: Path) -> None:
    """MONAI's SegResNet becomes a bundle that trains, infers and is packed; its docs page is the only other source."""
    bundles = tmp_path / "bundles"
    shutil.copytree(ROOT / "bundles" / "template", bundles / "template")
    network = {"_target_": "SegResNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 1, "init_filters": 8}
    (bundles / "segresnet" / "docs").mkdir(parents=True)
    metadata = {"name": "LGG SegResNet", "description": "2-D SegResNet"}
    (bundles / "segresnet" / "network.yaml").write_text(yaml.safe_dump({"network_def": network, "metadata": metadata}))
    (bundles / "segresnet" / "docs" / "README.md").write_text("# Model Overview\n")
    assert generator.main([str(bundles)]) == 0
    configs = bundles / "segresnet" / "configs"
    run_config(configs / "train.json", dataset_dir=str(manifest), **TINY)
    volume = read_manifest(manifest).sections["validation"][0]
    (tmp_path / "images").mkdir()
    shutil.copy(volume.image, tmp_path / "images")
    folders = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "masks")}
    run_config(configs / "inference.json", image_size=TINY["image_size"], **folders)
    scored = run_config(configs / "evaluate.json", dataset_dir=str(manifest), image_size=TINY["image_size"])
    assert 0 <= scored.parser.get_parsed_content("evaluator").state.metrics["val_dsc"] <= 1
    workflow = ConfigWorkflow(str(configs / "inference.json"), workflow_type="inference", logging_file=False)
    workflow.initialize()
    assert workflow.check_properties() == []
    mask = nib.load(tmp_path / "masks" / f"{volume.patient}_image_mask.nii.gz")
    assert mask.shape == nib.load(volume.image).shape[:3]
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}
    meta_file, config_file = str(configs / "metadata.json"), str(configs / "inference.json")
    verify_net_in_out(net_id="network_def", meta_file=meta_file, config_file=config_file, bundle_root=str(bundles))
    (bundles / "segresnet" / "models" / "training.json").unlink()  # it tells of another image size than the config
    pack_bundle(bundles / "segresnet", tmp_path, trust=True)
    assert (tmp_path / "segresnet_v0.2.0.zip").is_file()
