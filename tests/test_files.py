"""Many finished files are put under their names, all or none; a second name costs no bytes where the disk can."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.files import OWN, link_or_copy, named_path, replace_all


def below(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def staged(tmp_path: Path) -> dict[Path, Path]:
    """Three finished files; the second name is taken, the third lies in a folder that is not there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "b").write_text("old b")
    (tmp_path / "staging").mkdir()
    result = {}
    for name in ("a", "b", "deep/c"):
        source = tmp_path / "staging" / Path(name).name
        source.write_text(f"new {source.name}")
        result[source] = out / name
    return result


def test_all_files_are_put_in_place(staged: dict[Path, Path], tmp_path: Path) -> None:
    replace_all(staged, tmp_path / "staging" / "before")
    assert below(tmp_path) == {"out/a": "new a", "out/b": "new b", "out/deep/c": "new c"}
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_a_failure_in_between_puts_everything_back(
    staged: dict[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    replace = Path.replace

    def fail(path: Path, target: Path) -> Any:
        if path.parent.name == "staging" and path.name == failing:
            raise error
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PipelineError if isinstance(error, OSError) else KeyboardInterrupt):
        replace_all(staged, tmp_path / "staging" / "before")
    assert below(tmp_path / "out") == {"b": "old b"}
    assert not (tmp_path / "staging" / "before").exists()


def test_a_folder_in_the_way_is_a_message_and_stays(staged: dict[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "deep" / "c").mkdir(parents=True)
    with pytest.raises(PipelineError, match="Is a directory"):
        replace_all(staged, tmp_path / "staging" / "before")
    assert below(tmp_path / "out") == {"b": "old b"}
    assert (tmp_path / "out" / "deep" / "c").is_dir()


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_text("content")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, target)
    assert target.read_text() == "content"
    assert target.samefile(source) == links
    target.unlink()
    target.write_text("other")
    link_or_copy(source, target)
    link_or_copy(source, target)
    assert target.read_text() == "content"
    assert target.samefile(source) == links
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_second_name_of_a_link_is_one_of_its_file(tmp_path: Path) -> None:
    """A relative link leads nowhere from another folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("content")
    (tmp_path / "a" / "link").symlink_to("file")
    link_or_copy(tmp_path / "a" / "link", tmp_path / "b" / "target")
    assert (tmp_path / "b" / "target").read_text() == "content"
    assert not (tmp_path / "b" / "target").is_symlink()


def test_a_second_name_for_nothing_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="target"):
        link_or_copy(tmp_path / "nothing", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_names_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = OWN / "bundles" / "basic_unet"
    assert named_path("basic_unet", "bundles") == own
    assert named_path("cpu", "recipes", ".yaml") == OWN / "recipes" / "cpu.yaml"
    (tmp_path / "basic_unet").mkdir()  # a folder of results, say
    assert named_path("basic_unet", "bundles") == own
    (tmp_path / "bundles" / "basic_unet" / "configs").mkdir(parents=True)
    assert named_path("basic_unet", "bundles") == Path("bundles/basic_unet")
    (tmp_path / "basic_unet" / "configs").mkdir()
    assert named_path("basic_unet", "bundles") == Path("basic_unet")
    assert named_path(tmp_path, "bundles") == tmp_path
    with pytest.raises(PipelineError, match=r"no_such: neither a path nor one of the recipes \(known: cpu, cpu_"):
        named_path("no_such", "recipes", ".yaml")
