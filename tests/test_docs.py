"""The code blocks of README, getting started and the how-to pages run on phantoms, a page in a folder of its own.

Blocks of ``bash`` and ``python`` run in the order of the page, those of ``console`` do not. Every ``bash`` block begins
in the page's folder; the ``python`` blocks of a page share their names. Trainings and phantoms are made tiny.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cohort.volumes import FLAIR, POST, PRE, bids, brats, phantom, save
from tests.conftest import ROOT, TINY
from tests.imaging.series import PLACES, write_series
from tests.preloaded import CLIENT
from tools.prose import parse

PAGES = ["README.md", "README.zh-CN.md", "docs/index.md", "docs/getting-started.md"]
PAGES = [*PAGES, *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/how-to/*.md"))]
README_LINES = 130
BUDGET = " ".join(f"--{key} {value}" for key, value in TINY.items())
LGG_FLAIR = f"""\
#!/bin/sh
case "$1" in
  train) set -- "$@" {BUDGET} ;;
  phantom) set -- "$@" --size 48 --slices 6 ;;
esac
exec START_PIPELINE "$@"
"""
PYTHON = f"""\
#!/bin/sh
case "$*" in
  *"monai.bundle run"*train.json*) set -- "$@" {BUDGET} ;;
esac
case "$1 $2" in
  "-m monai.bundle") shift 2; exec START_BUNDLE "$@" ;;
esac
exec {shlex.quote(sys.executable)} "$@"
"""


class Block(NamedTuple):
    """A code block that runs.

    Args:
        line: Line of the page above its first one.
        language: ``bash`` or ``python``.
        code: Its lines.
    """

    line: int
    language: str
    code: str


def blocks(text: str) -> list[Block]:
    """The blocks of a page that run."""
    found = []
    for token in parse(text):
        language = token.info.split(maxsplit=1)[0] if token.type == "fence" and token.info.strip() else ""
        if language in ("bash", "python"):
            assert token.map
            found.append(Block(token.map[0] + 1, language, token.content))
    return found


def run_blocks(page: str, text: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run the blocks of a page.

    Args:
        page: The page's name, in messages.
        text: What it holds.
        folder: The folder in which its blocks run.
        environment: The variables of ``bash`` blocks; ``python`` blocks run in this process.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(text):
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, page, "exec"), names)
            continue
        command = ["bash", "-euo", "pipefail", "-c", block.code]
        done = subprocess.run(
            command,
            cwd=folder,
            env={**environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        printed = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == 0, f"{page}:{block.line}: exit status {done.returncode}\n{block.code}\n{printed}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that every page may use."""
    from pipeline.cohort.phantoms import make_phantoms

    root = tmp_path_factory.mktemp("inputs")
    make_phantoms(root / "data", patients=8, size=64, slices=8, seed=0)
    image, _ = phantom(0, size=64, slices=8)
    for name, channel in (("pre", PRE), ("flair", FLAIR), ("post", POST)):
        save(root / f"{name}.nii.gz", image[..., channel])
    for number in range(8):
        one, mask = phantom(number, size=48, slices=6)
        save(root / "cohort" / f"P{number + 1}_flair.nii.gz", one[..., FLAIR])
        save(root / "cohort" / f"P{number + 1}_seg.nii.gz", mask)
    brats(root / "folder")
    bids(root / "bids")
    write_series(root / "study", image[..., FLAIR], PLACES)
    return root


@pytest.fixture
def folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a page; what its Python blocks import of a bundle is forgotten afterwards."""
    shutil.copytree(inputs, tmp_path / "page")
    monkeypatch.chdir(tmp_path / "page")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path / "page"
    for name in {*sys.modules} - before:
        if name.partition(".")[0] == "scripts":
            del sys.modules[name]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a process in whose copies commands run, on CPU."""
    place = tmp_path_factory.mktemp("server") / "socket"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, "-m", "tests.preloaded", str(place)], env=variables)
    while not place.exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield place
    process.kill()
    process.wait()


@pytest.fixture
def environment(tmp_path: Path, server: Path) -> dict[str, str]:
    """Variables of the blocks."""
    variables = commands(tmp_path / "programs", server)
    return {**os.environ, **variables, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def commands(folder: Path, server: Path | None = None) -> dict[str, str]:
    """Write the commands of this checkout into a folder, and give the variables by which they are found first.

    Args:
        folder: The folder, which is made.
        server: The socket of ``tests.preloaded``; None to start each command by itself.
    """
    folder.mkdir()
    python = shlex.quote(sys.executable)
    starts = {"START_PIPELINE": f"{python} -m pipeline", "START_BUNDLE": f"{python} -m monai.bundle"}
    if server:
        for start, module, program in (
            ("START_PIPELINE", "pipeline", "lgg-flair"),
            ("START_BUNDLE", "monai.bundle", "bundle"),
        ):
            client = folder / f"{program}.client"
            argv = f"[{program!r}, *sys.argv[1:]]"
            client.write_text(CLIENT.format(socket=str(server), module=repr(module), argv=argv))
            starts[start] = f"{python} -S -E {shlex.quote(str(client))}"
    for name, script in (("lgg-flair", LGG_FLAIR), ("python", PYTHON), ("python3", PYTHON)):
        filled = script
        for start, command in starts.items():
            filled = filled.replace(start, command)
        (folder / name).write_text(filled)
        (folder / name).chmod(0o755)
    own = {
        "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    return own | ({"PRELOADED_PYTHON": str(folder / "python")} if server else {})


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, folder: Path, environment: dict[str, str]) -> None:
    if not (ROOT / page).is_file():
        pytest.skip(f"{page} is not written")
    run_blocks(page, (ROOT / page).read_text(encoding="utf-8"), folder, environment)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_blocks_run_in_order_and_share_folder_and_names(folder: Path, environment: dict[str, str]) -> None:
    page = """\
```bash
mkdir made && cd made
echo one > ../made.txt
```

1. Step

    ```python
    from pathlib import Path
    text = Path("made.txt").read_text()
    ```

- A list

    ```bash title="In a list"
    test -d made
    echo two >> made.txt
    ```

```python
assert text == "one\\n"
Path("end.txt").write_text(text + Path("made.txt").read_text())
```

```console
$ false
```

```
false
```
"""
    assert [(block.line, block.language) for block in blocks(page)] == [
        (1, "bash"),
        (8, "python"),
        (15, "bash"),
        (20, "python"),
    ]
    run_blocks("page.md", page, folder, environment)
    assert (folder / "end.txt").read_text() == "one\none\ntwo\n"


@pytest.mark.parametrize(
    "code",
    ["false\ntrue", "false | true", "echo $NO_SUCH_NAME", "lgg-flair nothing", "lgg-flair predict none.nii.gz -o x"],
)
def test_a_block_that_fails_is_named(code: str, folder: Path, environment: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match=r"^page\.md:3: exit status [12]\n"):
        run_blocks("page.md", f"# Page\n\n```bash\n{code}\n```", folder, environment)


def test_a_python_block_that_fails_has_the_line_of_the_page(folder: Path, environment: dict[str, str]) -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run_blocks("page.md", "# Page\n\n```python\none = 1\none / 0\n```", folder, environment)
    assert (str(error.traceback[-1].path), error.traceback[-1].lineno + 1) == ("page.md", 5)


@pytest.mark.slow
def test_the_files_of_every_page_are_accepted_and_trainings_are_tiny(folder: Path, environment: dict[str, str]) -> None:
    page = """\
```bash
lgg-flair predict flair.nii.gz folder bids study -o all --bundle basic_unet --no-figures
lgg-flair predict --flair flair.nii.gz --pre pre.nii.gz --post post.nii.gz -o three --bundle basic_unet --no-figures
lgg-flair manifest cohort --split random --validation-fraction 0.25 --out volumes
lgg-flair manifest data/kaggle_3m --split random --validation-fraction 0.25 --out slices
lgg-flair phantom more --patients 2 --size 512 --slices 100
lgg-flair train --manifest volumes --out trained --max_epochs 100
lgg-flair pack basic_unet && unzip -q dist/basic_unet_*.zip
python -m monai.bundle run --config_file basic_unet/configs/train.json --dataset_dir slices --ckpt_dir stock \\
  --max_epochs 100
```
```python
import json
from pathlib import Path

for name in ("trained", "stock"):
    config = json.loads(Path(name, "training.json").read_text())["config"]
    assert (config["max_epochs"], config["image_size"]) == (2, 32)
assert len(list(Path("all").glob("*_mask.nii.gz"))) == 6
```
"""
    run_blocks("page.md", page, folder, environment)
