"""Writing files and folders so that a failure leaves nothing half-written, and naming them by their content."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import BundleError

__all__ = ["inside", "new_file", "new_folder", "sha256"]


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` to write to; renames it to ``path`` if nothing was raised.

    Raises:
        BundleError: If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _grant_default_mode(temporary, 0o666)
        try:
            temporary.replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replaces: str) -> Iterator[Path]:
    """Gives an empty temporary folder beside ``path``; renames it to ``path`` if nothing was raised.

    Args:
        path: The folder to make. If it exists, it must be empty or hold a file named ``replaces``, which marks it as
            ours to replace.
        replaces: The name of that file.

    Raises:
        BundleError: If ``path`` cannot be written, or holds something that is not ours.
    """
    path = path.resolve()  # where it is a link, the folder that it leads to is replaced
    if path.exists() and not path.is_dir():
        raise BundleError(f"Cannot write the folder {path}: a file of that name is there. Choose another OUT.")
    if path.is_dir() and any(path.iterdir()) and not (path / replaces).is_file():
        raise BundleError(
            f"Will not replace {path}: it is not empty and has no {replaces}, so it was not written by rotary-press. "
            f"Choose another OUT, or empty it first."
        )
    created: list[Path] = []  # parents that did not exist before: taken away again if this fails
    try:
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir()
                created.append(parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        _remove_empty(created)
        raise _unwritable(path, error) from error
    try:
        yield temporary
        for content in (temporary, *temporary.rglob("*")):
            _grant_default_mode(content, 0o777 if content.is_dir() else 0o666)
        try:
            _put(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(created)
        raise


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, if that is truly inside ``folder``: names read from a file are not trusted.

    Raises:
        BundleError: If the name is absolute, climbs out of the folder, follows a link out of it, or is no path at all.
    """
    path = folder / name
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null character
        raise BundleError(f"{name!r} in {folder} cannot be a path: {error}.") from error
    if not resolved.is_relative_to(folder.resolve()):
        raise BundleError(f"{name!r} leads out of {folder}: a path in a manifest must stay inside its folder.")
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unwritable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"Cannot write {path}: {error.strerror or error}. Choose a folder that you may write to.")


def _put(folder: Path, path: Path) -> None:
    """Renames ``folder`` to ``path``; what was there is deleted last, or put back if the renaming fails."""
    if not path.exists():
        folder.replace(path)
        return
    retired = folder.with_name(f"{folder.name}.old")
    path.replace(retired)
    try:
        folder.replace(path)
    except OSError:
        retired.replace(path)
        raise
    shutil.rmtree(retired)


def _grant_default_mode(path: Path, mode: int) -> None:
    """Temporary files are private by default; what is kept gets the mode that the user's umask asks for."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
