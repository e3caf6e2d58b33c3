"""Files and folders appear whole or not at all, and nothing outside them is touched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.errors import BundleError
from exporter.files import inside, new_file, new_folder, sha256

MARK = "manifest.json"


def tree(folder: Path) -> dict[str, str | None]:
    """Every path below ``folder``, hidden ones too, with the text of files."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") if path.is_file() else None
        for path in folder.rglob("*")
    }


def write(path: Path, text: str = "", *, fail: type[BaseException] | None = None) -> None:
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if fail:
            raise fail("half-way")


def make(path: Path, files: dict[str, str], *, fail: type[BaseException] | None = None) -> None:
    with new_folder(path, replaces=MARK) as temporary:
        for name, text in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")
        if fail:
            raise fail("half-way")


any_failure = pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt])


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


# new_file


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "file", "content")
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/file": "content"}


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    with new_file(path) as temporary:
        assert temporary.parent == path.parent  # a rename is atomic within one file system
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert tree(tmp_path) == {"file": "new"}


@any_failure
def test_a_failure_leaves_the_old_file(failure: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old", encoding="utf-8")
    with pytest.raises(failure, match="half-way"):
        write(tmp_path / "file", "new", fail=failure)
    assert tree(tmp_path) == {"file": "old"}


@any_failure
def test_a_failure_leaves_no_file_where_there_was_none(failure: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(failure, match="half-way"):
        write(tmp_path / "file", fail=failure)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["taken/file", "taken/below/file", "folder"])
def test_a_file_that_cannot_be_written_is_an_error_of_the_user(name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=r"Cannot write .*: (Not a directory|File exists|Is a directory)\. Choose"):
        write(tmp_path / name, "new")
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("umask")
def test_a_file_gets_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    write(tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


# new_folder


@pytest.mark.parametrize("name", ["out", "a/b/out"])
def test_a_folder_is_made_with_its_parents(name: str, tmp_path: Path) -> None:
    make(tmp_path / name, {MARK: "1", "deep/file": "2"})
    assert tree(tmp_path / name) == {MARK: "1", "deep": None, "deep/file": "2"}
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0]]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", replaces=MARK) as temporary:
        assert temporary.parent == tmp_path
        assert list(temporary.iterdir()) == []
        assert not (tmp_path / "out").exists()
    assert tree(tmp_path) == {"out": None}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", {"file": "new"})
    assert tree(tmp_path) == {"out": None, "out/file": "new"}


def test_a_folder_of_ours_is_replaced_as_a_whole(tmp_path: Path) -> None:
    make(tmp_path / "out", {MARK: "1", "engine": "old"})
    make(tmp_path / "out", {MARK: "2"})
    assert tree(tmp_path) == {"out": None, f"out/{MARK}": "2"}


@pytest.mark.parametrize("name", ["notes.txt", f"below/{MARK}", f"{MARK}/x", ".hidden"])
def test_a_folder_that_is_not_ours_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / name).write_text("mine", encoding="utf-8")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=rf"Will not replace .*out: it is not empty and has no {MARK}"):
        make(tmp_path / "out", {MARK: "new"})
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["taken", "taken/out", "taken/below/out"])
def test_a_file_in_the_way_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match="Cannot write"):
        make(tmp_path / name, {MARK: "new"})
    assert tree(tmp_path) == {"taken": "mine"}


@any_failure
@pytest.mark.parametrize("name", ["out", "a/b/out"])
def test_a_failure_leaves_nothing_behind(failure: type[BaseException], name: str, tmp_path: Path) -> None:
    with pytest.raises(failure, match="half-way"):
        make(tmp_path / name, {MARK: "new", "deep/file": "new"}, fail=failure)
    assert tree(tmp_path) == {}


@any_failure
def test_a_failure_leaves_the_old_folder(failure: type[BaseException], tmp_path: Path) -> None:
    make(tmp_path / "out", {MARK: "old"})
    with pytest.raises(failure, match="half-way"):
        make(tmp_path / "out", {MARK: "new"}, fail=failure)
    assert tree(tmp_path) == {"out": None, f"out/{MARK}": "old"}


def test_a_failure_keeps_parents_that_were_there_or_are_used(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="half-way"):
        make(tmp_path / "old" / "new" / "below" / "out", {"../../mine": "written meanwhile"}, fail=ValueError)
    assert tree(tmp_path) == {"old": None, "old/new": None, "old/new/mine": "written meanwhile"}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point, say, cannot be renamed."""
    make(tmp_path / "out", {MARK: "old"})
    calls, replace = [], Path.replace

    def replace_or_fail(source: Path, target: Path) -> Path:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(16, "Device or resource busy")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    with pytest.raises(BundleError, match=r"Cannot write .*out: Device or resource busy"):
        make(tmp_path / "out", {MARK: "new"})
    assert tree(tmp_path) == {"out": None, f"out/{MARK}": "old"}


def test_a_link_keeps_pointing_at_the_folder_that_is_replaced(tmp_path: Path) -> None:
    make(tmp_path / "store" / "real", {MARK: "old"})
    (tmp_path / "out").symlink_to(tmp_path / "store" / "real")
    make(tmp_path / "out", {MARK: "new"})
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "store") == {"real": None, f"real/{MARK}": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


def test_a_relative_folder_is_below_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a/out"), {MARK: "new"})
    assert tree(tmp_path) == {"a": None, "a/out": None, f"a/out/{MARK}": "new"}


@pytest.mark.usefixtures("umask")
def test_a_folder_gets_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", replaces=MARK) as temporary:
        (temporary / "private").touch(mode=0o600)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "private").stat().st_mode & 0o777 == 0o640


# inside


@pytest.mark.parametrize("name", ["file", "a/b", "a/../file", "./file", "..file", "absent/deep"])
def test_names_within_the_folder_are_followed(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name", ["../file", "a/../../file", "/etc/passwd", "..", "link", "link/file", "a/loop/../../x"]
)
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "folder-too"  # a name that starts alike is not inside
    folder.mkdir()
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "a").mkdir()
    (folder / "a" / "loop").symlink_to(folder)
    with pytest.raises(BundleError, match="leads out of"):
        inside(folder, name)


def test_a_null_character_is_no_part_of_a_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be a path"):
        inside(tmp_path, "a\0b")


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path, "link/file") == tmp_path / "link" / "file"


def test_a_relative_folder_is_compared_by_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    assert inside(Path("out"), "file") == Path("out/file")
    with pytest.raises(BundleError, match="leads out of"):
        inside(Path("out"), "../file")


# sha256


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_covers_the_whole_file(size: int, tmp_path: Path) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_known_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
