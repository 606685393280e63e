"""Write each bundle's configs from bundles/template and its network.yaml; `make bundles` runs it.

Bundles share everything but the network, and each must work when its folder is copied elsewhere. So the shared part
is written once, in ``bundles/template/*.yaml``. MONAI's own ``ConfigParser`` merges it into the standard JSON files
that ``monai.bundle`` reads. The generated files are committed, and ``--check`` fails when one differs from its source.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.command_line import run_cli
from pipeline.errors import PipelineError
from pipeline.model.trust import KNOWN, code_hashes

WORKFLOWS = ("train", "evaluate", "inference")
"""Names of the configs that are merged. Each is ``common.yaml``, ``network.yaml``, the files of ``SHARED`` and
``<name>.yaml``, and later files override earlier ones."""
SHARED = {
    "train": ("label.yaml",),
    "evaluate": ("label.yaml", "prediction.yaml"),
    "inference": ("prediction.yaml",),
}
NETWORK_KEYS = ("network_def", "metadata")
"""Keys that a bundle's ``network.yaml`` must have."""
OPTIONAL_KEYS = ("around",)
"""Keys that ``network.yaml`` may also have: the network's inputs beside the slice itself."""
SCRIPTS = Path(__file__).parents[1] / "pipeline" / "scripts"
"""The code that is copied into every bundle."""
WEIGHTS_LICENCE = "WEIGHTS_LICENSE.md"
"""The licence of the weights, which is copied into every bundle's ``docs``, so that a packed zip holds it."""
MAX_WIDTH = 119
"""The largest number of characters of a line that holds a whole list or component."""
DELTA = "multi_gpu_train"
"""Name of the config that MONAI reads after ``train.json``. It holds only the differences."""


def bundle_folders(bundles: Path) -> list[Path]:
    """The folders of all bundles, which hold a ``network.yaml``, sorted by name.

    Args:
        bundles: The folder that holds the bundles and ``template/``.

    Raises:
        PipelineError: There is no template or no bundle.
    """
    if not (bundles / "template" / "common.yaml").is_file():
        raise PipelineError(f"{bundles}: found no template/common.yaml. Name the repository's bundles folder.")
    folders = sorted(path.parent for path in bundles.glob("*/network.yaml"))
    if not folders:
        raise PipelineError(f"{bundles}: found no bundle (a folder with a network.yaml).")
    return folders


def generated_files(bundle: Path) -> dict[Path, str]:
    """Path -> text of every generated file of a bundle. Nothing is written.

    Args:
        bundle: The bundle's folder with ``network.yaml``. Its parent holds ``template/``.

    Returns:
        Path -> text of ``configs/{train,evaluate,inference,multi_gpu_train,metadata}.json``, ``configs/logging.conf``,
        ``scripts/*.py`` and ``LICENSE``, and of ``docs/WEIGHTS_LICENSE.md`` where the parent has a licence.

    Raises:
        PipelineError: ``network.yaml`` lacks ``network_def`` or ``metadata``, or has other keys.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    template = bundle.parent / "template"
    network = ConfigParser.load_config_file(bundle / "network.yaml")
    missing = [key for key in NETWORK_KEYS if key not in network]
    if missing:
        raise PipelineError(f"{bundle / 'network.yaml'}: {', '.join(missing)} missing. See the file of another bundle.")
    foreign = [key for key in network if key not in NETWORK_KEYS + OPTIONAL_KEYS]
    if foreign:
        raise PipelineError(
            f"{bundle / 'network.yaml'}: found {', '.join(foreign)} (expected {' and '.join(NETWORK_KEYS)}, perhaps "
            f"{' and '.join(OPTIONAL_KEYS)}). "
            "All bundles share the rest: change bundles/template, or override it when training."
        )
    own_metadata = network.pop("metadata")
    files = {}
    for name in WORKFLOWS:
        config = ConfigParser.load_config_files([template / "common.yaml"])
        config.update(network)
        for file in (*SHARED[name], f"{name}.yaml"):
            config.update(ConfigParser.load_config_file(template / file))
        files[bundle / "configs" / f"{name}.json"] = _json(config) + "\n"
    files[bundle / "configs" / f"{DELTA}.json"] = (
        _json(ConfigParser.load_config_file(template / f"{DELTA}.yaml")) + "\n"
    )
    metadata = ConfigParser.load_config_file(template / "metadata.yaml")
    for key, value in own_metadata.items():
        merge_kv(metadata, key, value)
    image = metadata["network_data_format"]["inputs"]["image"]
    channels = network["network_def"].get("in_channels", image["num_channels"])
    if image["num_channels"] != channels:  # neighbouring slices, each with the same sequences
        names = [*image["channel_def"].values()]
        image["num_channels"] = channels
        image["channel_def"] = {str(number): names[number % len(names)] for number in range(channels)}
    files[bundle / "configs" / "metadata.json"] = _json(metadata) + "\n"
    copied = {template / "logging.conf": "configs/logging.conf", template / "LICENSE": "LICENSE"}
    if (licence := bundle.parent / WEIGHTS_LICENCE).is_file():  # a folder of other people's bundles has none
        copied[licence] = f"docs/{WEIGHTS_LICENCE}"
    copied |= {path: f"scripts/{path.name}" for path in SCRIPTS.glob("*.py")}
    for source, target in copied.items():
        files[bundle / target] = source.read_text(encoding="utf-8")
    return files


def known_bundles(bundles: Path) -> str:
    """The text of ``pipeline/model/bundles.json``, with the hashes that identify each bundle of this project."""
    return _json({folder.name: code_hashes(folder) for folder in bundle_folders(bundles)}) + "\n"


def _json(value: Any, indent: str = "", key: str = "") -> str:
    """JSON of a value, with one line for each entry. A list or component that fits is on one line."""
    start = f"{indent}{json.dumps(key, ensure_ascii=False)}: " if key else indent
    flat = json.dumps(value, ensure_ascii=False)
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    holds_components = any(isinstance(item, dict) and "_target_" in item for item in items) and len(items) > 1
    if not items or (len(start + flat) < MAX_WIDTH and not holds_components):
        return start + flat
    keys = list(value) if isinstance(value, dict) else [""] * len(items)
    inner = ",\n".join(_json(item, indent + "    ", name) for name, item in zip(keys, items, strict=True))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{start}{opening}\n{inner}\n{indent}{closing}"


def drifted_files(bundles: Path) -> list[Path]:
    """Paths of generated files that are missing or differ from their source."""
    drifted = []
    for bundle in bundle_folders(bundles):
        for path, text in generated_files(bundle).items():
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                drifted.append(path)
    return drifted


def main(argv: Sequence[str] | None = None) -> int:
    """Write the generated files of every bundle, or check them.

    Args:
        argv: The arguments; None for those of the process.

    Raises:
        PipelineError: There is no bundle, a source is wrong, or with ``--check`` a file differs from its source.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.bundles", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "bundles", nargs="?", type=Path, default=Path("bundles"), help="the folder of the bundles (default: bundles)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 2 if a file differs from its source"
    )
    args = parser.parse_args(argv)
    # Only the hashes of this repository's own bundles belong into the package, not those of another folder.
    own = args.bundles.resolve() == (Path(__file__).parents[1] / "bundles").resolve()
    if args.check:
        drifted = drifted_files(args.bundles)
        if own and (not KNOWN.is_file() or KNOWN.read_text(encoding="utf-8") != known_bundles(args.bundles)):
            drifted.append(KNOWN)
        if drifted:
            names = "\n".join(f"  {path}" for path in drifted)
            raise PipelineError(f"these files differ from bundles/template; run `make bundles`:\n{names}")
        return 0
    for bundle in bundle_folders(args.bundles):
        for path, text in generated_files(bundle).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{bundle}: configs written")
    if own:
        KNOWN.write_text(known_bundles(args.bundles), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
