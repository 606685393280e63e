"""Foreign bundles read as text: attacks are named with file and line and run nothing, plain bundles pass."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLES, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import trust, vet
from pipeline.bundle import load_bundle
from pipeline.components import target_fault
from pipeline.errors import PipelineError
from pipeline.grammar import REFERENCE, expression_fault
from pipeline.trust import faults_of, is_known

PLAIN = {
    "imports": ["$import os", "$import glob", "$import numpy as np"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "datalist": "$list(sorted(glob.glob(@bundle_root + '/imagesTs/*.nii.gz')))",
    "items": "$[{'image': i} for i in @datalist]",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8]},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
            {"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.float32"},
            {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x[:1] * 2 > 0"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96]},
    "handler": {"_target_": "StatsHandler", "output_transform": "$monai.handlers.from_engine(['loss'], first=True)"},
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.1},
    "mode": "$monai.utils.InterpolateMode.BICUBIC",
    "fast": "$setattr(torch.backends.cudnn, 'benchmark', True)",
    "initialize": ["$monai.utils.set_determinism(seed=123)"],
    "run": ["$@evaluator.run()"],
}

EXPRESSIONS = {
    "builtin": "$open('/etc/passwd').read()",
    "import of a function": "$__import__('os').system('touch pwned')",
    "os": "$os.system('touch pwned')",
    "os by getattr": "$getattr(os, 'system')('touch pwned')",
    "eval": "$eval('1')",
    "exec": "$exec('import os')",
    "dunder": "$().__class__.__base__.__subclasses__()",
    "dunder of a reference": "$@network.__class__.__init__.__globals__",
    "of an argument": "$(lambda x: x.__globals__)(@network)",
    "format": "$'{0.__class__}'.format(1)",
    "f-string": "$f'{1}'",
    "walrus": "$(x := 1)",
    "await": "$await x",
    "module as value": "$[os][0]",
    "module of a module": "$torch.hub.load('a', 'b')",
    "torch.load": "$torch.load('x.pkl', weights_only=False)",
    "numpy": "$np.load('x.npy', allow_pickle=True)",
    "pathlib": "$pathlib.Path('x').write_text('y')",
    "json": "$json.load(open('x'))",
    "sys path": "$sys.path.append('.')",
    "shadowed module": "$(lambda os: os.system('x'))(1)",
    "shadowed builtin": "$[len for len in [1]]",
    "stand-in": "$reference_1.__class__",
    "power": "$9**9**9",
    "shift": "$1 << 10000000000",
    "memory": "$'a' * 10000000000",
    "memory by a list": "$[0] * 1000000",
    "memory by a reference": "$'a' * @n",
    "import": "$import subprocess",
    "import from": "$from os import system",
    "import of two": "$import os, subprocess",
    "statement": "$x = 1",
    "nested too deep": "$" + "(" * 300 + ")" * 300,
    "too long": "$" + "1+" * 5000 + "1",
    "type of a builtin": "$str.mro()",
    "text that becomes an f-string": '$\'@f {__import__("os").system("touch pwned")}\'',
    "escaped text that does": '$\'\\@f {__import__("os").system("touch pwned")}\'',
    "wide letters": "$\uff52eference_1 + @f",
    "the whole config": "$@",
    "in a text": "$'@'",
    "reference as a name": "$[0 for @f in [1]]",
    "by place": "$[1][@#c]",
    "slice that is a comment": "$[0][::1]",
    "move of a file": "$@o.replace('a', 'b')",
    "long sum": "$" + "1+" * 1990 + "1",
    "deep lambda": "$" + "lambda:" * 560 + "1",
    "load_state": "$@network.load_state_dict(1)",
    "apply": "$@network.share_memory()",
    "extending a module": "$monai.apps.download_url('u', 'f')",
    "of another bundle": "$monai.bundle.run('x')",
}
TARGETS = {
    "function": "os.system",
    "subprocess": "subprocess.Popen",
    "builtins": "builtins.eval",
    "monai bundle": "monai.bundle.run",
    "short function": "run",
    "short download": "download_url",
    "own code": "scripts.evil.Thing",
    "class elsewhere": "http.server.HTTPServer",
    "pickles": "PersistentDataset",
    "pickles by its module": "monai.data.PersistentDataset",
    "module of torch": "torch.hub.load",
    "class method": "monai.transforms.Compose.__call__",
    "not text": 3,
    "empty": "",
    "alias of a refused one": "TorchVisionD",
    "imported from elsewhere": "torch.optim.lr_scheduler.partial",
    "pickler": "monai.data.ForkingPickler",
    "compiler flags": "monai.networks.layers.GaussianMixtureModel",
    "deletes": "CSVSaver",
    "writes any text": "SaveClassificationd",
    "sends": "CSVIterableDataset",
    "opens a connection": "torch.utils.tensorboard.SummaryWriter",
}
COMPONENTS: dict[str, dict[str, Any]] = {
    "reader by name": {"_target_": "LoadImaged", "keys": "image", "reader": "subprocess.Popen"},
    "reader of pickles": {"_target_": "LoadImaged", "keys": "image", "reader": ["NibabelReader", "NumpyReader"]},
    "writer by name": {"_target_": "SaveImaged", "keys": "pred", "writer": "os.system"},
    "debugger": {"_target_": "UNet", "_mode_": "debug"},
    "debugger by a key": {"_target_": "UNet", "_debug_": True},
    "function to call": {"_target_": "LoadImage", "_mode_": "callable"},
    "pickles": {"_target_": "LoadImage", "allow_pickle": True},
    "merger by name": {"_target_": "PatchInferer", "merger_cls": "b.models.evil.X"},
    "reader by a reference": {"_target_": "LoadImage", "reader": "@r"},
    "by place": {"_target_": "Compose", "transforms": "%#device"},
    "download": {"_target_": "FlexibleUNet", "pretrained": True},
    "macro": {"network_def": "%../../secret.json#key"},
    "required": {"_target_": "UNet", "_requires_": "$os.system('x')"},
}


def bundle_of(folder: Path, config: dict[str, Any] | None = None) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps({**PLAIN, **(config or {})}, indent=2))
    (folder / "configs" / "metadata.json").write_text(
        json.dumps({"version": "1", "spatial_shape": [32, "16*n", "2**p*n"]})
    )
    shutil.copy(BUNDLES[0] / "configs" / "logging.conf", folder / "configs" / "logging.conf")
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"")
    return folder


def test_a_plain_bundle_passes(tmp_path: Path) -> None:
    assert faults_of(bundle_of(tmp_path / "bundle")) == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_own_bundles_are_known_and_changed_ones_are_not(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    assert is_known(copy)
    (copy / "scripts" / "more.py").write_text("print()")
    assert not is_known(copy)
    (copy / "scripts" / "more.py").unlink()
    config = copy / "configs" / "inference.json"
    config.write_text(config.read_text().replace("0.5", "0.4"))
    assert not is_known(copy)
    assert not is_known(tmp_path / "nothing")


@pytest.mark.parametrize("attack", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_expressions_outside_the_grammar_are_named(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expression_fault(attack[1:])
    found = faults_of(bundle_of(tmp_path / "bundle", {"evil": {"deep": [attack]}}))
    assert [fault.file for fault in found] == ["configs/inference.json"]
    line = (tmp_path / "bundle" / "configs" / "inference.json").read_text().splitlines()[found[0].line - 1]
    assert json.dumps(attack[:40])[1:-1] in line
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("attack", TARGETS.values(), ids=TARGETS)
def test_targets_that_are_no_known_component_are_named(attack: Any, tmp_path: Path) -> None:
    found = faults_of(bundle_of(tmp_path / "bundle", {"evil": {"_target_": attack, "args": "touch pwned"}}))
    assert len(found) == 1
    assert "_target_" in found[0].reason


@pytest.mark.parametrize("attack", COMPONENTS.values(), ids=COMPONENTS)
def test_arguments_that_run_something_are_named(attack: dict[str, Any], tmp_path: Path) -> None:
    assert len(faults_of(bundle_of(tmp_path / "bundle", {"evil": attack}))) == 1


PREDICTING = {
    "writer": {"_target_": "SaveImage", "output_dir": "/"},
    "reader's argument": {"_target_": "LoadImage", "converter": "$lambda image: image"},
    "reader as a component": {"_target_": "LoadImage", "reader": {"_target_": "PILReader"}},
    "inferer of another kind": {"_target_": "SaliencyInferer", "cam_name": "CAM", "target_layers": "x"},
    "dataset": {"_target_": "Dataset", "data": []},
    "handler": {"_target_": "CheckpointSaver", "save_dir": "x", "save_dict": {}},
    "macro": "%network_def",
    "key": {"a b": 1},
    "module": "$@imports",
    "import": "$import os",
}
"""What a bundle may hold, but not in what is resolved of it here."""


@pytest.mark.parametrize("attack", PREDICTING.values(), ids=PREDICTING)
def test_what_is_resolved_is_held_to_a_shorter_list(attack: Any, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", {"device": "$torch.device('cpu')", "inferer": attack})
    assert len(faults_of(bundle)) <= (attack == {"a b": 1})
    for where in ({"inferer": attack}, {"inferer": ["@named"], "named": attack}):
        with pytest.raises(PipelineError, match=r"not one of this project's bundles.*\n  configs/inference.json:\d+: "):
            load_bundle(bundle_of(tmp_path / str(len(where)), where))


def test_what_is_not_needed_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = {"_target_": "os.system", "command": "touch pwned"}
    needed = {**dict.fromkeys(("network", "to_probability", "to_mask"), 0), "device": "$torch.device('cpu')"}
    bundle = bundle_of(tmp_path / "bundle", {**needed, "evil": evil, "initialize": [evil, "$os.system('touch pwned')"]})
    with pytest.raises(PipelineError, match=r"model\.pt"):  # is empty; judged as plain before
        load_bundle(bundle)
    assert not (tmp_path / "pwned").exists()


def test_what_is_judged_is_what_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is changed between the two."""
    monkeypatch.chdir(tmp_path)
    needed = {**dict.fromkeys(("network", "to_probability", "to_mask"), 0), "device": "$torch.device('cpu')"}
    bundle = bundle_of(tmp_path / "bundle", needed)
    config = bundle / "configs" / "inference.json"

    def changed(*_: Any) -> bool:
        config.write_text(json.dumps({**needed, "device": EXPRESSIONS["import of a function"]}))
        return False

    monkeypatch.setattr(trust, "is_known", changed)
    with pytest.raises(PipelineError, match=r"model\.pt"):
        load_bundle(bundle)
    assert not (tmp_path / "pwned").exists()


def test_a_folder_that_cannot_be_listed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in it can be opened by its name."""
    own, listing = shutil.copytree(BUNDLES[0], tmp_path / "own"), os.scandir
    foreign = bundle_of(tmp_path / "bundle", {"device": EXPRESSIONS["os"]})

    def denied(path: Any = ".") -> Any:
        if Path(path).name == "configs":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert not is_known(own)
    assert [str(fault) for fault in faults_of(foreign)] == ["configs: cannot be listed (Permission denied)"]
    with pytest.raises(PipelineError, match="configs: cannot be listed"):
        load_bundle(foreign)


def test_a_name_that_is_not_listed_is_not_taken(tmp_path: Path) -> None:
    """As on a disk that takes Inference.json for inference.json."""
    found = faults_of(bundle_of(tmp_path / "bundle"), only=["configs/Inference.json"])
    assert [fault.file for fault in found] == ["configs/Inference.json"]


def test_a_folders_name_is_no_expression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "$__import__('os').system('touch pwned')"
    needed = {**dict.fromkeys(("network", "to_probability", "to_mask"), 0), "device": ["@bundle_root"]}
    bundle_of(tmp_path / name, needed)
    with pytest.raises(PipelineError, match="'device' names no device of this machine"):
        load_bundle(Path(name))
    assert not (tmp_path / "pwned").exists()


def test_compiled_code_is_not_removed_through_a_link(tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere" / "__pycache__" / "x.pyc"
    kept.parent.mkdir(parents=True)
    kept.touch()
    bundle = bundle_of(tmp_path / "bundle")
    (bundle / "scripts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PipelineError, match="a symbolic link"):
        load_bundle(bundle)
    assert kept.is_file()


def test_a_reference_stands_where_monai_puts_it() -> None:
    """The text that is judged is the one that MONAI evaluates, but for its references."""
    from monai.bundle.reference_resolver import ReferenceResolver

    for text in ("@a + @ab", "@a#0#b.to(@device)", "[i for i in @a::b]", "{'a': @a}['a']"):
        assert expression_fault(text) == ""
        ids = ReferenceResolver.match_refs_pattern(f"${text}")
        run = ReferenceResolver.update_refs_pattern(f"${text}", dict.fromkeys(ids))[1:]
        subscripts = [node for node in ast.walk(ast.parse(run, mode="eval")) if isinstance(node, ast.Subscript)]
        read = [ast.literal_eval(node.slice) for node in subscripts if ast.unparse(node.value) == "__local_refs"]
        assert sorted(set(read)) == sorted(ids)
        assert len(read) == len(REFERENCE.findall(text))


def test_environment_does_not_switch_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_EVAL_EXPR", "0")
    assert faults_of(bundle_of(tmp_path / "bundle", {"evil": EXPRESSIONS["os"]}))


HIDDEN = {
    "key by #": {"device": {}, "device#_target_": "os.system", "device#command": "touch pwned"},
    "key by ::": {"device": {}, "device::_target_": "os.system", "device::command": "touch pwned"},
    "key by +": {"device": [], "+device": ["$__import__('os').system('touch pwned')"]},
    "key by place": {"x": {"b": 0, "b or __import__('os')": {"a": "$[1][@#c]", "c": 1}}, "device": "@x"},
    "macro by a key": {"/etc/evil.json": {"a": "%#device"}, "device": "$'@'"},
    "call of a class": {
        "L": {"_target_": "LoadImage", "_mode_": "callable"},
        "device": "$@L(reader='subprocess.Popen', args='touch pwned', shell=True)",
    },
    "pickles": {"l": {"_target_": "LoadImage", "allow_pickle": True}, "device": "$@l(@bundle_root + '/x.npy')"},
    "module": {"o": "$import os", "device": "$@o.replace('a', 'b')"},
    "comment": {"device": "$[0][0#__import__('os').system('touch pwned')\n]"},
    "perceptual": {"device": {"_target_": "PerceptualLoss", "spatial_dims": 2}},
    "default": {"device": {"_target_": "monai.networks.nets.ResNetFeatures", "model_name": "resnet10"}},
    "url": {"device": {"_target_": "HoVerNet", "pretrained_url": "http://localhost/x"}},
}
"""What MONAI reads otherwise than it is written, and what fetches by an argument that is not there."""


@pytest.mark.parametrize("evaluates", ["0", "1"])
def test_no_attack_runs_in_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluates: str) -> None:
    """Through ``load_bundle`` itself, which resolves ``device`` before anything else."""
    monkeypatch.setenv("MONAI_EVAL_EXPR", evaluates)
    monkeypatch.chdir(tmp_path)
    attacks = [*HIDDEN.values(), *({"device": attack} for attack in (*EXPRESSIONS.values(), *COMPONENTS.values()))]
    for number, content in enumerate(attacks):
        bundle = bundle_of(tmp_path / str(number), content)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(PipelineError, match="not one of this project's bundles"):
            load_bundle(bundle)
        assert sorted(tmp_path.rglob("*")) == before, content
    assert len(attacks) > 50


def test_the_loader_would_run_it_if_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    needed = dict.fromkeys(("network", "preprocessing", "inferer", "to_probability", "to_mask"), 0)
    bundle = bundle_of(tmp_path / "bundle", {**needed, **HIDDEN["comment"]})
    with contextlib.suppress(PipelineError):
        load_bundle(bundle, trust=True)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["medpy.py", "medpy/__init__.py", "scripts/torch.py", "models/a.so", "x.pyc"])
def test_a_bundle_with_more_code_is_not_known(tmp_path: Path, name: str) -> None:
    """Its folder is the first on the path."""
    bundle = shutil.copytree(BUNDLES[0], tmp_path / "b", ignore=shutil.ignore_patterns("__pycache__"))
    assert is_known(bundle)
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()
    assert not is_known(bundle)
    (bundle / name).unlink()
    (bundle / "docs" / "link").symlink_to("/etc/passwd")
    assert not is_known(bundle)


def test_compiled_scripts_are_made_anew(tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLES[-1], tmp_path / "b", ignore=shutil.ignore_patterns("__pycache__"))
    (bundle / "scripts" / "__pycache__").mkdir()
    (bundle / "scripts" / "__pycache__" / "unet_plusplus.cpython-311.pyc").write_bytes(b"evil")
    assert not is_known(bundle)
    load_bundle(bundle)
    assert all(path.read_bytes() != b"evil" for path in bundle.rglob("*.pyc"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("scripts/evil.py", "import os", "is code"),
        ("models/model.ts", "x", "is code"),
        ("models/model.pkl", "x", "is code"),
        ("large_files.yml", "large_files:\n- path: ../../x\n  url: https://example.org\n", "downloaded"),
        ("configs/logging.conf", "[handler_x]\nclass=os.system('x')\nargs=()\n", "a handler of class"),
        ("configs/logging.conf", "[handler_x]\nclass=StreamHandler\nargs=(__import__('os'),)\n", "evaluated"),
        ("configs/logging.conf", "[handler_x]\nclass=FileHandler\nargs=('../../x.log',)\n", "outside"),
        ("configs/logging.conf", "[handler_x]\nclass=FileHandler\nargs=(b'/x.log',)\n", "outside"),
        ("configs/train.yaml", "a: [&x [1], *x]\n", "anchors"),
        ("configs/metadata.json", '{"spatial_shape": ["2**2**99"]}', "no product"),
        ("configs/metadata.json", '{"spatial_shape": ["12**999999999"]}', "no product"),
        ("scripts/evil.PY", "import os", "is code"),
        ("configs/logging.conf", "[handler_x]\nx=a\nargs=('%(x)s',)\n", "put together"),
        ("configs/metadata.json", '{"evil": "$os.system(1)"}', "os.system"),
        ("scripts/__pycache__/evil.pyc", "x", "is code"),
        ("configs/logging.conf", "[formatter_x]\nclass=os.system\n", "a class in formatter_x"),
        ("configs/logging.conf", "no section", "no readable logging config"),
        ("configs/metadata.json", '{"spatial_shape": ["__import__(\'os\')"]}', "no product"),
        ("configs/metadata.json", '{"spatial_shape": ["9**9**9"]}', "no product"),
        ("configs/train.json", '{"a": 1, "a": 2}', "stands twice"),
        ("configs/train.json", "{", "no readable config"),
        ("configs/train.yaml", "a: !!python/object/apply:os.system [x]", "no readable config"),
        ("configs/train.yaml", "a: &x [1]\nb: *x\n", "anchors"),
        ("configs/train.yaml", "a: 1\na: 2\n", "stands twice"),
        ("configs/train.yaml", "a: $os.system('x')\n", "os.system"),
        ("configs/train.json", '{"a": ' + "[" * 100 + "]" * 100 + "}", "nested deeper"),
        ("configs/train.json", '"' + "a" * 2**20 + '"', "more than any config"),
    ],
)
def test_other_files_are_held_to_what_they_are_for(tmp_path: Path, name: str, content: str, reason: str) -> None:
    bundle = bundle_of(tmp_path / "bundle")
    (bundle / name).parent.mkdir(exist_ok=True, parents=True)
    (bundle / name).write_text(content)
    found = faults_of(bundle)
    assert [fault.file for fault in found] == [name]
    assert reason in found[0].reason


def test_links_are_named(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle")
    (bundle / "models" / "model.pt").unlink()
    (bundle / "models" / "model.pt").symlink_to("/etc/passwd")
    assert [str(fault) for fault in faults_of(bundle)] == [
        "models/model.pt: a symbolic link: it may lead out of the bundle"
    ]


def test_known_components_pass() -> None:
    for target in ("UNet", "monai.networks.nets.UNet", "torch.nn.Conv2d", "ignite.metrics.Accuracy", "DiceCELoss"):
        assert target_fault(target) == ""


def test_own_configs_are_code_of_their_own(tmp_path: Path) -> None:
    """They are taken by their hash, not by this list: it is not as wide as they are."""
    assert faults_of(ROOT / "bundles" / "basic_unet")


def test_a_long_list_is_cut() -> None:
    faults = [trust.Fault("a", number, "b") for number in range(25)]
    assert trust.listed(faults).splitlines()[-1] == "  and 5 more"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80) | st.sampled_from(sorted(EXPRESSIONS.values())))
def test_any_text_is_judged_and_none_raises(text: str) -> None:
    assert isinstance(expression_fault(text), str)
    assert isinstance(expression_fault(text.removeprefix("$")[: len(text) // 2] + "@a#b" + text), str)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("$os.system('x')"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.text(max_size=8) | st.sampled_from(["_target_", "_mode_", "reader", "spatial_shape"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_config_is_judged_and_none_raises(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    bundle = tmp_path_factory.mktemp("fuzz")
    (bundle / "configs").mkdir()
    for name in ("inference.json", "metadata.json"):
        (bundle / "configs" / name).write_text(json.dumps(content), encoding="utf-8")
    for fault in faults_of(bundle):
        assert fault.line >= 0
        assert str(fault).startswith("configs/")


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vet.main([str(ROOT / "bundles" / "basic_unet")]) == 0
    assert "byte for byte" in capsys.readouterr().out
    bundle = bundle_of(tmp_path / "bundle")
    assert vet.main([str(bundle)]) == 0
    assert "nothing else was found" in capsys.readouterr().out
    (bundle / "configs" / "train.json").write_text('{"a": "$os.system(1)"}')
    with pytest.raises(PipelineError, match=r"1 finding\(s\).*\n  configs/train.json:1: 'os.system'"):
        vet.main([str(bundle)])
    assert vet.main([str(bundle), "configs/inference.json"]) == 0
    with pytest.raises(PipelineError, match=r"no configs/none\.json in it"):
        vet.main([str(bundle), "configs/none.json"])
    for nothing in (tmp_path / "none", tmp_path, zipped(tmp_path / "empty.zip")):
        with pytest.raises(PipelineError, match="no folder"):
            vet.main([str(nothing)])
    two = zipped(tmp_path / "two.zip", ("b/configs/inference.json", "{}", 0o644), ("evil.py", "", 0o644))
    with pytest.raises(PipelineError, match="no folder configs/ at its top"):
        vet.main([str(two)])


def zipped(path: Path, *entries: tuple[str, str, int]) -> Path:
    """A zip of (name, content, mode)."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content, mode in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            file.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("../evil.py", 0o644, "leads out"),
        ("b/../../evil.py", 0o644, "leads out"),
        ("/etc/evil", 0o644, "leads out"),
        ("..\\evil.py", 0o644, "leads out"),
        ("C:/evil.py", 0o644, "leads out"),
        ("b/link", stat.S_IFLNK | 0o777, "a link"),
        ("b/pipe", stat.S_IFIFO | 0o644, "special"),
    ],
)
def test_a_zip_that_would_leave_its_folder_is_not_unpacked(tmp_path: Path, name: str, mode: int, reason: str) -> None:
    archive = zipped(tmp_path / "b.zip", ("b/configs/inference.json", "{}", 0o644), (name, "/etc/passwd", mode))
    with pytest.raises(PipelineError, match=rf"not unpacked:\n.*{reason}"):
        vet.main([str(archive)])
    assert [path.name for path in tmp_path.rglob("*")] == ["b.zip"]


def test_a_zip_is_read_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = json.dumps({"network_def": {"_target_": "UNet"}})
    assert vet.main([str(zipped(tmp_path / "b.zip", ("b/configs/inference.json", plain, 0o644)))]) == 0
    assert vet.main([str(zipped(tmp_path / "c.zip", ("configs/inference.json", plain, 0o644)))]) == 0
    evil = zipped(tmp_path / "d.zip", ("b/configs/inference.json", '{"a": "$os.system(1)"}', 0o644))
    with pytest.raises(PipelineError, match=r"configs/inference.json:1: 'os.system'"):
        vet.main([str(evil)])
    monkeypatch.setattr(trust, "MAX_UNPACKED_BYTES", 10)
    with pytest.raises(PipelineError, match=r"bytes unpacked"):
        vet.main([str(evil)])
    evil.write_bytes(evil.read_bytes()[:60])
    with pytest.raises(PipelineError, match=r"no readable zip"):
        vet.main([str(evil)])
