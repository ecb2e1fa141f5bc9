"""Files through the rewrite: what is found in each, its new contents, checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rmsnorm.migrate import files, write
from rmsnorm.migrate.call import Target
from rmsnorm.migrate.codes import Code
from rmsnorm.migrate.files import File, Refused
from rmsnorm.migrate.rewrite import Item, Rewriting, rewrite, whole_file
from rmsnorm.migrate.source import Edit


@dataclass(frozen=True)
class Result:
    """What was found in a file.

    Attributes:
        file: as it was read; None where nothing changes.
        new: the contents to write; None where nothing changes.
        imports: the edits of its text that serve all items.
        is_written: new stands on the disk.
    """

    path: Path
    items: tuple[Item, ...]
    file: File | None = None
    new: bytes | None = None
    imports: tuple[Edit, ...] = ()
    is_written: bool = False

    @property
    def is_read(self) -> bool:
        return not any(item.code in (Code.RN202, Code.RN901) for item in self.items)

    @property
    def is_refused(self) -> bool:
        """Whether new was to be written and couldn't be."""
        return any(item.code is Code.RN902 for item in self.items)

    def with_error(self, code: Code, text: str) -> Result:
        """The same, and nothing to write."""
        left = (replace(item, replacement=None, edits=()) for item in self.items)
        items = (*left, whole_file(code, text))
        return replace(self, items=items, file=None, new=None, imports=())


def run(paths: Sequence[Path], target: Target) -> Iterator[Result]:
    """One result for each file, and one for each path that can't be read. Writes nothing."""
    for found in files.find_files(paths):
        file = found if isinstance(found, Refused) else files.read(found)
        if isinstance(file, Refused):
            yield Result(file.path, (whole_file(file.code, file.reason),))
        else:
            yield examine(file, target)


def examine(file: File, target: Target) -> Result:
    """What is in a file, and what it becomes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file's own escapes and comparisons
        try:
            rewriting = rewrite(file.text, target)
        except SyntaxError as error:
            reason = f"is no Python of this version: {error.msg}, line {error.lineno}"
        except (ValueError, RecursionError, MemoryError) as error:
            reason = f"can't be parsed: {type(error).__name__}: {error}".rstrip(": ")
        except Exception as error:  # a mistake of ours: one file must not stop the others
            reason = f"reading it failed, please report it: {type(error).__name__}: {error}"
        else:
            return _checked(file, rewriting, target)
    return Result(file.path, (whole_file(Code.RN901, reason),))


def _checked(file: File, rewriting: Rewriting, target: Target) -> Result:
    result = Result(file.path, rewriting.items)
    if rewriting.text == file.text:
        return result
    try:
        new = file.encode(rewriting.text)
        compile(rewriting.text, str(file.path), "exec", dont_inherit=True)
        again = rewrite(rewriting.text, target)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = f"the new text doesn't compile: {type(error).__name__}: {error}"
        return result.with_error(Code.RN903, reason)
    if again.text != rewriting.text:
        return result.with_error(Code.RN903, "the new text would be rewritten once more")
    items = tuple(_with_notes(file.path, target, item) for item in rewriting.items)
    return Result(file.path, items, file, new, rewriting.imports)


def _with_notes(path: Path, target: Target, item: Item) -> Item:
    """The item, and a warning where what is beside the file has the name of the module."""
    module = target.value
    beside = (path.parent / f"{module}.py", path.parent / module / "__init__.py")
    hides = next((each.relative_to(path.parent) for each in beside if each.exists()), None)
    if item.replacement is None or hides is None:
        return item
    note = f"{hides} beside the file hides the package {module} if its folder is on sys.path"
    return replace(item, notes=(*item.notes, note))


def save(result: Result, *, allow_uncommitted: bool) -> Result:
    """Writes the new contents, if there are any."""
    if result.new is None or result.file is None:
        return result
    try:
        write.write(result.file, result.new, allow_uncommitted=allow_uncommitted)
    except write.CannotWriteError as error:
        return replace(result, items=(*result.items, whole_file(Code.RN902, str(error))))
    return replace(result, is_written=True)
