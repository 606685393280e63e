"""Which module may import which, and what a command may load before it works."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.command_line import run_cli
from pipeline.errors import ManifestError

PACKAGE = Path(pipeline.__file__).parent
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__" and path.parent.name != "scripts"
)
CLIS = [name for name in MODULES if "." not in name and "run_cli(main)" in (PACKAGE / f"{name}.py").read_text()]
LAYERS = (
    {"scripts"},
    {"errors", "files", "progress"},
    {"imaging"},
    {"cohort"},
    {"model"},
    {"scoring"},
    {"features"},
    {"pages"},
    {"command_line", *CLIS},
)
"""The layers, lowest first: a module imports only from its own layer and from lower ones."""
HEAVY = {"torch", "monai", "ignite"}
USE_TORCH = {
    "model.backends",
    "model.bundle",
    "model.predictor",
    "model.sharing",
    "model.training_config",
    "scoring.metrics",
}


def imports(name: str, *, top_only: bool = False) -> set[str]:
    """The dotted names that a module imports, or with ``top_only`` those that load with it, without type checking."""
    tree = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text())
    nodes = [node for node in tree.body if not isinstance(node, ast.If)] if top_only else [*ast.walk(tree)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(name: str) -> set[str]:
    return {part.removeprefix("pipeline.") for part in imports(name)} & set(MODULES)


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name.split(".", maxsplit=1)[0] in names)


def test_there_are_command_lines() -> None:
    assert {"manifest", "phantom", "fetch", "train", "evaluate", "predict", "report", "pack"} <= set(CLIS)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_a_command_line(name: str) -> None:
    assert not own(name) & set(CLIS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    packages = {part.split(".")[1] for part in imports(name) if part.startswith("pipeline.")}
    assert all(layer(other) <= layer(name) for other in packages if not other.startswith("_"))


def test_imports_have_no_cycle() -> None:
    waiting = {name: own(name) for name in MODULES}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"cycle among {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


@pytest.mark.parametrize("name", MODULES)
def test_few_modules_use_torch(name: str) -> None:
    heavy = {part.split(".")[0] for part in imports(name)} & HEAVY
    assert not heavy or name in USE_TORCH
    assert not {part.split(".")[0] for part in imports(name, top_only=True)} & HEAVY


@pytest.mark.parametrize("name", CLIS)
def test_help_answers_without_torch(name: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['pipeline.{name}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('pipeline.{name}', run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    loaded = {'torch', 'monai', 'numpy', 'nibabel', 'scipy', 'PIL', 'kagglehub', 'tqdm'} & set(sys.modules)\n"
        "    sys.exit(f'loaded {loaded}' if loaded or done.code else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage: python -m pipeline" in result.stdout


def test_run_cli_turns_what_a_user_causes_into_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: BaseException) -> int:
        def main(argv: object) -> int:
            raise error

        return run_cli(main, [])

    assert run_cli(lambda argv: 0, []) == 0
    assert failing(ManifestError({"a.tif": ["0 bytes", "no mask"]})) == 2
    assert capsys.readouterr().err == "error: a.tif: 0 bytes\na.tif: no mask\n"
    assert failing(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())  # an error of the program keeps its traceback


def test_a_reader_that_goes_away_causes_no_traceback() -> None:
    code = (
        "import sys\nfrom pipeline.command_line import run_cli\n"
        "sys.exit(run_cli(lambda given: [print('x' * 9999) for _ in given], range(99)))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("name", CLIS)
def test_bad_arguments_exit_2(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}", "--no-such-option"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


TESTED_ELSEWHERE = {
    "scripts.files": "test_files.py",
    "scripts.finite": "end_to_end/test_damage.py",
    "scripts.sequences": "cohort/test_sequences.py",
    "scripts.training": "end_to_end/test_training.py",
}
"""Modules that are tested in the test file of another module."""


def test_the_tests_are_the_tree_of_the_package() -> None:
    here = Path(__file__).parent
    skipped = {"__init__", "__main__", "errors"}
    modules = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stem not in skipped]
    lacking = [
        str(path)
        for path in modules
        if not (here / path.parent / f"test_{path.name}").is_file()
        and not (here / TESTED_ELSEWHERE.get(".".join(path.with_suffix("").parts), "none")).is_file()
    ]
    assert lacking == []
    folders = {path.name for path in here.iterdir() if path.is_dir() and path.name != "__pycache__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == packages | {"end_to_end", "browser", "tools"}


def test_libraries_neither_print_nor_see_a_command_line() -> None:
    for path in PACKAGE.glob("*/*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"print", "argparse"}, path


def test_no_test_imports_a_private_name() -> None:
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pipeline", "scripts", "tools")):
                assert [alias.name for alias in node.names if alias.name.startswith("_")] == [], path


def test_each_of_the_35_bad_inputs_has_its_test() -> None:
    """Each number of the list of bad inputs occurs in the name of a test or of a parameter."""
    here = Path(__file__)
    texts = [path.read_text() for path in here.parent.rglob("test_*.py") if path != here]
    found = {int(number) for text in texts for number in re.findall(r"(?:test_|\")case_(\d\d)_", text)}
    assert found == set(range(1, 36))


def test_every_pinned_version_has_hashes_and_no_dependency_is_without_a_pin() -> None:
    import tomllib
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    root = PACKAGE.parent
    blocks = re.findall(
        r"^([\w.\-]+)==\S+((?: ;[^\\\n]*)?(?: \\\n    --hash=sha256:[0-9a-f]{64})*)",
        *[(root / "constraints.txt").read_text(), re.MULTILINE],
    )
    pins = {canonicalize_name(name): hashes for name, hashes in blocks}
    assert [name for name, hashes in pins.items() if "--hash" not in hashes] == []
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = ("dev", "export", "backends", "pretrained")
    waiting = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    known = {"lgg-flair-pipeline"}
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonicalize_name(wanted.name)
        if name in known or (wanted.marker and not wanted.marker.evaluate({"extra": ""})) or name.startswith("nvidia-"):
            continue
        known.add(name)
        assert name in pins, name
        waiting += requires(name) or []
