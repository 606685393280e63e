"""A bundle of this project runs with any weights. Any other bundle runs no code unless the user trusts it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import evaluate, predict
from pipeline.command_line import run_cli
from pipeline.errors import PipelineError
from pipeline.model.bundle import load_bundle
from pipeline.model.training import plan_training
from pipeline.model.trust import KNOWN, clear_compiled, code_hashes, refuse_foreign, refuse_links
from tests.conftest import BUNDLES

EXPRESSIONS = {
    "builtin": "$open('pwned', 'w')",
    "import of a function": "$__import__('os').system('touch pwned')",
    "os": "$os.system('touch pwned')",
    "os by getattr": "$getattr(os, 'system')('touch pwned')",
    "eval": '$eval(\'open("pwned", "w")\')',
    "exec": "$exec('import os; os.system(\"touch pwned\")')",
    "dunder": "$().__class__.__base__.__subclasses__()",
    "dunder of an argument": "$(lambda x: x.__globals__)(@network)",
    "module of a module": "$torch.hub.load('a', 'b')",
    "torch.load": "$torch.load('x.pkl', weights_only=False)",
    "numpy": "$np.load('x.npy', allow_pickle=True)",
    "pathlib": "$pathlib.Path('pwned').write_text('y')",
    "sys path": "$sys.path.append('.')",
    "power": "$9**9**9",
    "memory": "$'a' * 10000000000",
    "import": "$import subprocess",
    "text that becomes an f-string": '$\'@f {__import__("os").system("touch pwned")}\'',
    "the whole config": "$@",
    "slice that is a comment": "$[0][0#__import__('os').system('touch pwned')\n]",
    "extending a module": "$monai.apps.download_url('u', 'f')",
}
COMPONENTS: dict[str, Any] = {
    "function": {"_target_": "os.system", "command": "touch pwned"},
    "subprocess": {"_target_": "subprocess.Popen", "args": ["touch", "pwned"]},
    "builtin": {"_target_": "builtins.eval", "source": "open('pwned', 'w')"},
    "bundle's own code": {"_target_": "scripts.evil.Thing"},
    "reader by name": {"_target_": "LoadImaged", "keys": "image", "reader": "subprocess.Popen"},
    "debugger": {"_target_": "UNet", "_mode_": "debug"},
    "pickles": {"_target_": "LoadImage", "allow_pickle": True},
    "download": {"_target_": "FlexibleUNet", "pretrained": True},
    "macro": "%../../secret.json#key",
    "required": {"_target_": "UNet", "_requires_": "$os.system('touch pwned')"},
}
HIDDEN: dict[str, dict[str, Any]] = {
    "key by #": {"device": {}, "device#_target_": "os.system", "device#command": "touch pwned"},
    "key by ::": {"device": {}, "device::_target_": "os.system", "device::command": "touch pwned"},
    "key by +": {"device": [], "+device": ["$__import__('os').system('touch pwned')"]},
    "key by place": {"x": {"b": 0, "b or __import__('os')": {"a": "$[1][@#c]", "c": 1}}, "device": "@x"},
    "macro by a key": {"/etc/evil.json": {"a": "%#device"}, "device": "$'@'"},
    "call of a class": {
        "L": {"_target_": "LoadImage", "_mode_": "callable"},
        "device": "$@L(reader='subprocess.Popen', args='touch pwned', shell=True)",
    },
    "path of scripts": {"scripts_path": "$__import__('os').system('touch pwned')"},
    "initialisation": {"initialize": ["$__import__('os').system('touch pwned')"]},
}
ATTACKS = HIDDEN | {name: {"device": attack} for name, attack in (EXPRESSIONS | COMPONENTS).items()}
"""Harmful changes of a config. Some run when MONAI reads the key, others only in a program that resolves it."""


def copy_of(bundle: Path, target: Path) -> Path:
    return shutil.copytree(bundle, target, ignore=shutil.ignore_patterns("__pycache__"))


def differing(copy: Path, *files: str) -> str:
    """The message about a copy of the first bundle in which exactly these files differ."""
    return f"{copy}: differs from this project's {BUNDLES[0].name} in {', '.join(files)}. A config can run any code"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_bundle_of_this_project_is_known_wherever_it_lies(bundle: Path, tmp_path: Path) -> None:
    copy = copy_of(bundle, tmp_path / "renamed")
    assert code_hashes(copy) == json.loads(KNOWN.read_bytes())[bundle.name]
    refuse_foreign(copy)
    (copy / "docs" / "README.md").write_text("changed")
    (copy / "configs" / "metadata.json").write_text("{}")
    (copy / "models" / "events.out.tfevents.1").touch()
    refuse_foreign(copy)  # these files run no code


def test_it_runs_with_any_weights(tmp_path: Path) -> None:
    copy = copy_of(BUNDLES[0], tmp_path / "copy")
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    torch.save({key: value * 2 for key, value in state.items()}, tmp_path / "mine.pt")
    assert load_bundle(copy, tmp_path / "mine.pt").name == "copy"


def test_a_changed_number_is_reported_by_its_file_with_the_way_on(tmp_path: Path) -> None:
    copy = copy_of(BUNDLES[0], tmp_path / "copy")
    config = copy / "configs" / "inference.json"
    config.write_text(config.read_text().replace('"sw_batch_size": 8', '"sw_batch_size": 15'))
    with pytest.raises(PipelineError) as caught:
        load_bundle(copy)
    text = str(caught.value)
    assert text.startswith(differing(copy, "configs/inference.json"))
    assert "pass --trust" in text
    assert "\n" not in text
    assert load_bundle(copy, trust=True).name == "copy"


@pytest.mark.parametrize("name", ["configs/inference.json", "scripts/networks.py"])
def test_a_missing_file_is_reported(tmp_path: Path, name: str) -> None:
    copy = copy_of(BUNDLES[0], tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(PipelineError, match=re.escape(differing(copy, name))):
        refuse_foreign(copy)


@pytest.mark.parametrize(
    "name",
    [
        *("medpy.py", "medpy/__init__.py", "medpy.pyw", "scripts/torch.py", "scripts/evil.PY", "models/a.so"),
        *("x.pyc", "configs/a.yaml", "docs/scripts/__pycache__/networks.cpython-311.pyc"),
    ],
)
def test_more_code_makes_a_bundle_foreign(tmp_path: Path, name: str) -> None:
    """Such a file would be imported, because a bundle's folder is first on Python's path."""
    copy = copy_of(BUNDLES[0], tmp_path / "copy")
    (copy / name).parent.mkdir(exist_ok=True, parents=True)
    (copy / name).touch()
    with pytest.raises(PipelineError, match=re.escape(differing(copy, name))):
        load_bundle(copy)


def test_a_bundle_from_elsewhere_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "zoo" / "configs").mkdir(parents=True)
    (tmp_path / "zoo" / "configs" / "inference.json").write_text(json.dumps({"network_def": {"_target_": "UNet"}}))
    with pytest.raises(PipelineError, match="zoo: is none of this project's bundles"):
        load_bundle(tmp_path / "zoo")
    with pytest.raises(PipelineError, match=r"network, preprocessing, .* missing"):
        load_bundle(tmp_path / "zoo", trust=True)


@pytest.mark.parametrize("evaluates", ["0", "1"])
def test_no_attack_runs_unless_the_bundle_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluates: str
) -> None:
    monkeypatch.setenv("MONAI_EVAL_EXPR", evaluates)
    monkeypatch.chdir(tmp_path)
    page = (BUNDLES[0].parents[1] / "docs" / "results" / "reliability.md").read_text(encoding="utf-8")
    assert f"changes configs in {len(ATTACKS)} ways" in page
    bundle = copy_of(BUNDLES[0], tmp_path / "bundle")
    config = bundle / "configs" / "inference.json"
    own = json.loads(config.read_text())
    for attack in ATTACKS.values():
        config.write_text(json.dumps({**own, **attack}))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(PipelineError, match="differs from this project's"):
            load_bundle(bundle)
        assert sorted(tmp_path.rglob("*")) == before, attack


def test_a_trusted_bundle_does_run_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks above work with ``trust``, so the tests of their refusal are valid."""
    monkeypatch.chdir(tmp_path)
    bundle = copy_of(BUNDLES[0], tmp_path / "bundle")
    config = bundle / "configs" / "inference.json"
    own = json.loads(config.read_text())
    config.write_text(json.dumps({**own, "device": EXPRESSIONS["import of a function"]}))
    with contextlib.suppress(PipelineError):
        load_bundle(bundle, trust=True)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("command", [evaluate, predict], ids=["evaluate", "predict"])
def test_every_command_that_predicts_asks_for_trust(
    command: Any, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = copy_of(BUNDLES[0], tmp_path / "bundle")
    (bundle / "scripts" / "more.py").touch()
    source = ["--manifest", str(manifest)] if command is evaluate else [str(manifest), "--no-figures"]
    given = [*source, "--bundle", "bundle", "--out", "out"]
    assert run_cli(command.main, given) == 2
    assert capsys.readouterr().err.startswith("error: bundle: differs from this project's")
    assert not list(tmp_path.glob("out/**/*mask*"))


def test_a_folders_name_is_no_expression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy_of(BUNDLES[0], tmp_path / "$__import__('os').system('touch pwned')")
    load_bundle("$__import__('os').system('touch pwned')")
    assert not (tmp_path / "pwned").exists()


def test_what_is_hashed_is_what_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config is read only once, so a change between check and use has no effect."""
    monkeypatch.chdir(tmp_path)
    bundle = copy_of(BUNDLES[0], tmp_path / "bundle")
    config = bundle / "configs" / "inference.json"
    read, evil = Path.read_bytes, json.dumps({"device": EXPRESSIONS["import of a function"]})

    def then_changed(path: Path) -> bytes:
        data = read(path)
        if path == config:
            config.write_text(evil)
        return data

    monkeypatch.setattr(Path, "read_bytes", then_changed)
    load_bundle(bundle)
    assert config.read_text() == evil
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", ["models/model.pt", "configs/inference.json", "docs/link", "scripts"])
def test_links_out_of_a_bundle_are_always_refused(tmp_path: Path, name: str, trust: bool) -> None:
    bundle = copy_of(BUNDLES[0], tmp_path / "bundle")
    outside = tmp_path / "outside"
    if (bundle / name).exists():
        shutil.move(bundle / name, outside)
    else:
        outside.touch()
    (bundle / name).symlink_to(outside)
    with pytest.raises(PipelineError, match=f"{name}: a symbolic link"):
        load_bundle(bundle, trust=trust)


def test_a_link_within_a_bundle_is_followed(tmp_path: Path) -> None:
    bundle = copy_of(BUNDLES[0], tmp_path / "bundle")
    shutil.move(bundle / "models" / "model.pt", bundle / "models" / "blob")
    (bundle / "models" / "model.pt").symlink_to("blob")
    refuse_links(bundle)
    assert load_bundle(bundle).name == "bundle"


EVIL_SOURCE = "open('pwned', 'w')\n"


def evil_compiled(path: Path, source: Path) -> None:
    """Compiled code that Python takes for a script's, because its time and size fit."""
    import importlib.util
    import marshal

    status = source.stat()
    head = importlib.util.MAGIC_NUMBER + bytes(4) + int(status.st_mtime).to_bytes(4, "little")
    path.parent.mkdir(parents=True, exist_ok=True)
    code = compile(EVIL_SOURCE, "evil", "exec")
    path.write_bytes(head + (status.st_size & 0xFFFFFFFF).to_bytes(4, "little") + marshal.dumps(code))


def test_a_prediction_imports_nothing_from_a_bundles_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction uses the package's own scripts, so it ignores compiled code in the bundle's folder."""
    monkeypatch.chdir(tmp_path)
    bundle = copy_of(BUNDLES[-1], tmp_path / "b")
    tag = f"networks.{sys.implementation.cache_tag}.pyc"
    evil_compiled(bundle / "scripts" / "__pycache__" / tag, bundle / "scripts" / "networks.py")
    load_bundle(bundle)
    assert not (tmp_path / "pwned").exists()
    assert str(bundle) not in sys.path
    with contextlib.suppress(AttributeError, PipelineError):  # shows that the attack works
        load_bundle(bundle, trust=True)
    assert (tmp_path / "pwned").exists()


def test_compiled_scripts_are_cleared_before_a_training(tmp_path: Path, manifest: Path) -> None:
    bundle = copy_of(BUNDLES[0], tmp_path / "b")
    (bundle / "scripts" / "__pycache__").mkdir()
    (bundle / "scripts" / "__pycache__" / "networks.cpython-311.pyc").write_bytes(b"evil")
    plan_training(bundle, manifest, out=tmp_path / "run")
    assert not (bundle / "scripts" / "__pycache__").exists()


def test_compiled_scripts_that_stay_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(PipelineError, match="cannot be removed"):
        clear_compiled(tmp_path)
    monkeypatch.setattr("pipeline.model.trust.OWN", tmp_path.parent)  # as in an installed, read-only package
    clear_compiled(tmp_path)


def test_a_training_asks_for_trust_too(tmp_path: Path, manifest: Path) -> None:
    bundle = copy_of(BUNDLES[0], tmp_path / "b")
    (bundle / "scripts" / "more.py").touch()
    with pytest.raises(PipelineError, match=r"b: differs from this project's attention_unet in scripts/more\.py"):
        plan_training(bundle, manifest, out=tmp_path / "run")
    assert plan_training(bundle, manifest, out=tmp_path / "run", trust=True).bundle == bundle


@pytest.mark.parametrize("name", ["medpy", "scripts/__pycache__", "scripts/networks"])
def test_links_to_folders_are_refused(tmp_path: Path, name: str) -> None:
    """Python would import files behind these links, which were not hashed."""
    bundle = copy_of(BUNDLES[0], tmp_path / "b")
    (bundle / "docs" / "scripts" / "__pycache__").mkdir(parents=True)
    (bundle / name).symlink_to(bundle / "docs" / "scripts" / "__pycache__")
    for trust in (False, True):
        with pytest.raises(PipelineError, match="a symbolic link to a folder"):
            load_bundle(bundle, trust=trust)


def denied(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    def scandir(path: Any = ".") -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    return scandir


def test_a_folder_that_cannot_be_listed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in a folder that cannot be listed can still be opened by name."""
    bundle = copy_of(BUNDLES[0], tmp_path / "own")
    monkeypatch.setattr(os, "scandir", denied(os.scandir, "configs"))
    with pytest.raises(PipelineError, match="configs: cannot be listed"):
        load_bundle(bundle)


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    bundle = copy_of(BUNDLES[0], tmp_path / "b")
    os.mkfifo(bundle / "configs" / "pipe.json")
    assert "configs/pipe.json" not in code_hashes(bundle)
    assert stat.S_ISFIFO((bundle / "configs" / "pipe.json").stat().st_mode)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "make", [lambda path: torch.save(Evil(), path), lambda path: path.write_bytes(pickle.dumps(Evil()))]
)
def test_pickles_are_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "evil.pt")
    for trust in (False, True):
        with pytest.raises(PipelineError, match=r"evil\.pt: no readable weights"):
            load_bundle(BUNDLES[0], tmp_path / "evil.pt", trust=trust)
    assert not (tmp_path / "pwned").exists()


def test_weights_in_a_bundle_must_have_their_hash(tmp_path: Path) -> None:
    bundle = copy_of(BUNDLES[0], tmp_path / "b")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    (bundle / "models" / "training.json").unlink(missing_ok=True)
    torch.save({key: value + 1 for key, value in state.items()}, bundle / "models" / "model.pt")
    for trust in (False, True):
        with pytest.raises(PipelineError, match=r"model\.pt: SHA-256 .* \(the bundle's metadata"):
            load_bundle(bundle, trust=trust)
