"""Breaks a copy of the source on purpose, one way of mutants.toml at a time: does a test notice?

Exit status 1: a mutant survives, or can't be made.
"""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import tomllib
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

ROOT = Path(__file__).parent.parent
TIMEOUT = 900  # seconds that the tests may take; without a mutant it is about one minute

GPU_TESTS = "tests/executor/rmsnorm_cuda_tests"
PROGRAMS = ("rmsnorm_tests", GPU_TESTS)  # a change in src/cuda is tested by the second alone

Edit = dict[str, str]  # file, replace, by


def copy_tree(to: Path) -> None:
    """Copies the files that git tracks, as they are in the working tree."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listing.stdout.decode().rstrip("\0").split("\0"):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)


@contextmanager
def broken(tree: Path, edits: list[Edit]) -> Iterator[None]:
    """Applies edits to tree, and takes them back.

    Raises:
        ValueError: a text to replace isn't there exactly once.
    """
    before = {edit["file"]: (tree / edit["file"]).read_text() for edit in edits}
    after = dict(before)
    for edit in edits:
        found = after[edit["file"]].count(edit["replace"])
        if found != 1:
            raise ValueError(f"{edit['file']} holds {found} times: {edit['replace']}")
        after[edit["file"]] = after[edit["file"]].replace(edit["replace"], edit["by"])
    try:
        for name, text in after.items():
            (tree / name).write_text(text)
        yield
    finally:
        for name, text in before.items():
            (tree / name).write_text(text)


def build(tree: Path) -> None:
    """Builds the programs of tests in tree/build.

    Raises:
        ValueError: it doesn't compile.
    """
    command = ["ninja", "-C", "build", *(Path(program).name for program in PROGRAMS)]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if result.returncode != 0:
        errors = re.findall(r"^.*error:.*$", result.stdout, re.MULTILINE)
        raise ValueError(f"does not build: {errors[0] if errors else result.stdout[-500:]}")


def first_failure(tree: Path, program: str) -> str | None:
    """The first test of a program that fails, crashes or hangs; None: all pass."""
    command = [f"build/{program}", "--gtest_fail_fast", "--gtest_filter=-*Giant*"]
    try:
        result = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"none within {TIMEOUT} s"
    if result.returncode == 0:
        return None
    failed = re.search(r"^\[  FAILED  \] ([^\s,]+)", result.stdout, re.MULTILINE)
    started = re.findall(r"^\[ RUN      \] (\S+)", result.stdout, re.MULTILINE)
    return failed[1] if failed else f"{started[-1] if started else 'the start'} (crash)"


def _is_of_gpus(edit: Edit) -> bool:
    return edit["file"].startswith("src/cuda/")


def verdict(tree: Path, edits: list[Edit]) -> tuple[bool, str]:
    """Whether a mutant is caught, and by what."""
    test = None
    try:
        with broken(tree, edits):
            build(tree)
            for program in PROGRAMS:
                if program == GPU_TESTS or not all(map(_is_of_gpus, edits)):
                    test = first_failure(tree, program)
                if test is not None:
                    break
    except ValueError as error:
        return False, str(error)
    return test is not None, test or "no test"


def table(results: dict[str, tuple[bool, str, float]]) -> Table:
    table = Table("mutant", "caught by", "seconds")
    for name, (caught, by, seconds) in sorted(results.items()):
        table.add_row(name, by, f"{seconds:.0f}", style="" if caught else "red")
    return table


def main(only: Annotated[str, typer.Option(help="Mutants whose name contains this.")] = "") -> None:
    mutants: dict[str, list[Edit]] = tomllib.loads((ROOT / "tools/mutants.toml").read_text())
    chosen = [name for name in mutants if only in name]
    results: dict[str, tuple[bool, str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        configure = "cmake -S . -B build -G Ninja -DRMSNORM_CUDA=OFF -DRMSNORM_TORCH=OFF"
        configure += " -DRMSNORM_TESTS=ON"
        configure += " --compile-no-warning-as-error"  # a mutant may leave a variable unused
        subprocess.run(configure.split(), cwd=tree, check=True, capture_output=True)
        build(tree)
        for program in PROGRAMS:
            if (test := first_failure(tree, program)) is not None:
                raise SystemExit(f"{test} fails without any mutant")
        with Live(table({}), console=Console(width=150), refresh_per_second=1) as live:
            # Neighbours break the same file, which is compiled once for both.
            for name in sorted(chosen, key=lambda name: mutants[name][0]["file"]):
                start = time.monotonic()
                results[name] = *verdict(tree, mutants[name]), time.monotonic() - start
                live.update(table(results))
    if survivors := sum(not caught for caught, _, _ in results.values()):
        raise SystemExit(f"{survivors} of {len(results)} mutants survive")


if __name__ == "__main__":
    typer.run(main)
