"""A file replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from pathlib import Path

from rmsnorm.migrate.files import File

_PREFIX, _SUFFIX = ".rmsnorm-migrate-", ".tmp"  # around the number of the process that writes


class CannotWriteError(Exception):
    """Says why; the file is as it was."""


def write(file: File, data: bytes, *, allow_uncommitted: bool) -> None:
    """The file gets new contents; owner and mode stay.

    A new file is written beside it, brought to the disk and renamed: whatever happens, under the
    file's name are the old bytes or the new ones. A process that is killed leaves the new file
    behind, and the next that writes into the folder removes it.

    Args:
        file: as it was read; it must not have changed since.
        allow_uncommitted: also where git holds no copy of what is overwritten. Outside of a git
            repository that isn't asked.

    Raises:
        CannotWriteError: a rule above is broken, or the system refuses.
    """
    path = file.path
    if not allow_uncommitted and (why := _why_not_in_git(path)):
        raise CannotWriteError(why)
    temporary = path.parent / f"{_PREFIX}{os.getpid()}{_SUFFIX}"
    try:
        _remove_leftovers(path.parent)
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise CannotWriteError("is no regular file any more")
        if not status.st_mode & 0o222:
            raise CannotWriteError("is read-only")
        try:
            _create(temporary, data, status)
            if path.read_bytes() != file.data:
                raise CannotWriteError("has changed since it was read")
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise CannotWriteError(error.strerror or str(error)) from error


def _create(path: Path, data: bytes, status: os.stat_result) -> None:
    """A new file with the owner and the mode of another."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(PermissionError):  # only root may give a file away
            os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """New files of processes that are no more."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        number = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if number.isdigit() and not _runs(int(number)):
            path.unlink()


def _runs(process: int) -> bool:
    if process == os.getpid():
        return False  # it has this number now
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _why_not_in_git(path: Path) -> str | None:
    """Why git couldn't give the file back as it is; None if it could or there is no repository."""
    folder = path.parent.resolve()
    if not any((each / ".git").exists() for each in (folder, *folder.parents)):
        return None
    options = ["--literal-pathspecs", "--no-optional-locks", "-c", "core.fsmonitor=false"]
    status = ["status", "--porcelain", "-z", "--ignored", "--untracked-files=all"]
    try:
        done = subprocess.run(
            ["git", "-C", folder, *options, *status, "--", path.name], capture_output=True
        )
    except OSError as error:
        return (
            f"git can't be asked whether it is committed: {error}; --dirty writes it nevertheless"
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        return f"git doesn't say whether it is committed: {said}; --dirty writes it nevertheless"
    if not done.stdout:
        return None
    state = {b"??": "is not in git", b"!!": "is ignored by git"}.get(done.stdout[:2])
    return f"{state or 'has uncommitted changes'}; --dirty writes it nevertheless"
