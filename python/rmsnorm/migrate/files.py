"""Which files are read, and how: as Python would, and so that they can be written back exactly."""

from __future__ import annotations

import codecs
import io
import os
import stat
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmsnorm.migrate.codes import Code

LARGEST = 16 * 2**20  # bytes of a file
_MOST_MARKS = 2_000_000  # punctuation; Python's tree takes about 500 bytes of memory for each
_MARKS = b",()[]{}=+-*/.:"


@dataclass(frozen=True)
class Refused:
    """A path that isn't read, or not written, and why."""

    path: Path
    code: Code
    reason: str


@dataclass(frozen=True)
class File:
    """A file as it was read."""

    path: Path
    data: bytes
    text: str
    encoding: str

    def encode(self, text: str) -> bytes:
        """The bytes of a text that replaces the file's."""
        return self.data[: self._bom_length()] + text.encode(self.encoding)

    def _bom_length(self) -> int:
        return len(codecs.BOM_UTF8) if self.data.startswith(codecs.BOM_UTF8) else 0


def find_files(paths: Sequence[Path]) -> Iterator[Path | Refused]:
    """The files given, and all *.py in the folders given, each once.

    Left out are hidden folders, __pycache__, virtual environments and symbolic links: one to a
    folder or into the tree without a word, one to a file outside of it as Refused.
    """
    seen: set[Path] = set()
    for path in paths:
        for found in _in_folder(path) if path.is_dir() else [_given(path)]:
            if isinstance(found, Refused):
                yield found
            elif (real := found.resolve()) not in seen:
                seen.add(real)
                yield found


def _given(path: Path) -> Path | Refused:
    if path.is_symlink():
        return Refused(path, Code.RN901, f"is a symbolic link to {path.readlink()}; give that")
    if not path.exists():
        return Refused(path, Code.RN901, "no such file or folder")
    return path


def _in_folder(root: Path) -> Iterator[Path | Refused]:
    errors: list[OSError] = []
    tree = root.resolve()
    for folder, folders, names in os.walk(root, onerror=errors.append):
        here = Path(folder)
        folders[:] = sorted(each for each in folders if not _is_left_out(here / each))
        for path in (here / name for name in sorted(names) if name.endswith(".py")):
            if not path.is_symlink():
                yield path
            elif not _resolved(path).is_relative_to(tree):
                yield Refused(path, Code.RN202, f"leads to {path.readlink()}")
    for error in errors:
        yield Refused(Path(error.filename or root), Code.RN901, error.strerror or str(error))


def _resolved(link: Path) -> Path:
    """Where it leads; where that is a circle, the top of the file system."""
    try:
        return link.resolve()
    except (OSError, RuntimeError):
        return Path(link.anchor or "/")


def _is_left_out(folder: Path) -> bool:
    name = folder.name
    return name.startswith(".") or name == "__pycache__" or (folder / "pyvenv.cfg").exists()


def read(path: Path) -> File | Refused:
    """The file, decoded as its byte order mark or PEP 263 comment says."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Refused(path, Code.RN901, "is no regular file")
        if status.st_size > LARGEST:
            return Refused(path, Code.RN901, _too_large(status.st_size))
        data = path.read_bytes()
    except OSError as error:
        return Refused(path, Code.RN901, error.strerror or str(error))
    if sum(data.count(mark) for mark in _MARKS) > _MOST_MARKS:
        return Refused(path, Code.RN901, f"more than {_MOST_MARKS} marks such as commas")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        encoding = encoding.removesuffix("-sig")
        file = File(path, data, "", encoding)
        text = data.removeprefix(codecs.BOM_UTF8).decode(encoding)
        if file.encode(text) != data:
            return Refused(path, Code.RN901, f"{encoding} doesn't give the same bytes back")
    except (SyntaxError, LookupError, ValueError) as error:
        return Refused(path, Code.RN901, f"can't be decoded: {error}")
    return File(path, data, text, encoding)


def _too_large(size: int) -> str:
    return f"{size / 2**20:.0f} MiB; files of up to {LARGEST // 2**20} MiB are read"
