"""Builds and tests the package with versions of PyTorch, each in build/torch-VERSION/.venv.

tools/torch_versions.py VERSION... -- TEST_FILE...
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 1800  # seconds, of one version's tests


@dataclass
class Outcome:
    """What became of one version."""

    build: float = 0.0  # seconds, without the installation of PyTorch
    tests: float = 0.0
    passed: int = 0
    skipped: int = 0
    failed: int = 0
    error: str = ""  # why there are no numbers

    @property
    def good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.error


def install(torch: str, folder: Path) -> None:
    """PyTorch and what the tests need, into folder/.venv."""
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    others = [pin for pin in pins if not pin.startswith(("torch==", "numpy=="))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "constraints.txt").write_text("\n".join(others))
    subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
    needed = ["-c", folder / "constraints.txt", "-r", ROOT / "tools/torch-requirements.txt"]
    pip(folder, f"torch=={torch}", *needed)


def build(folder: Path) -> None:
    """The package, without code for GPUs, into folder/.venv."""
    options = ["-C", f"build-dir={folder / 'cmake'}", "-C", "cmake.define.RMSNORM_CUDA=OFF"]
    pip(folder, "--no-build-isolation", "--no-deps", *options, ROOT)


def pip(folder: Path, *arguments: str | Path) -> None:
    command = [folder / ".venv/bin/pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*command, *arguments], check=True)


def test(folder: Path, files: list[str], outcome: Outcome) -> None:
    """Runs pytest, shows what it prints, and notes the numbers of its closing line."""
    command = ["timeout", str(TIME_LIMIT), folder / ".venv/bin/python", "-m", "pytest"]
    options = ["-q", "-rs", "--tb=short", "-p", "no:cacheprovider"]
    closing = ""
    with subprocess.Popen(
        [*command, *options, *files], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line
    counts = {word: int(count) for count, word in re.findall(r"(\d+) ([a-z]+)", closing)}
    outcome.passed, outcome.skipped = counts.get("passed", 0), counts.get("skipped", 0)
    outcome.failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    if process.returncode == 124:
        outcome.error = f"stopped after {TIME_LIMIT} s"
    elif process.returncode != 0 and not outcome.failed:
        outcome.error = f"pytest ended with {process.returncode}"


def try_version(torch: str, files: list[str]) -> Outcome:
    outcome = Outcome()
    folder = ROOT / "build" / f"torch-{torch}"
    try:
        print(
            f"== PyTorch {torch}: {folder.relative_to(ROOT)}/.venv (several GB, once)", flush=True
        )
        install(torch, folder)
        print(f"== PyTorch {torch}: build", flush=True)
        begin = time.monotonic()
        build(folder)
        outcome.build = time.monotonic() - begin
    except subprocess.CalledProcessError as error:
        outcome.error = f"{Path(error.cmd[0]).name} ended with {error.returncode}"
        return outcome
    print(f"== PyTorch {torch}: tests", flush=True)
    begin = time.monotonic()
    test(folder, files, outcome)
    outcome.tests = time.monotonic() - begin
    return outcome


def show(outcomes: dict[str, Outcome]) -> None:
    table = Table("PyTorch", "passed", "skipped", "failed", "build, s", "tests, s", "")
    for torch, outcome in outcomes.items():
        numbers = (outcome.passed, outcome.skipped, outcome.failed)
        seconds = (f"{outcome.build:.0f}", f"{outcome.tests:.0f}")
        table.add_row(torch, *map(str, numbers), *seconds, outcome.error)
    Console().print(table)


def main() -> None:
    cut = sys.argv.index("--")
    versions, files = sys.argv[1:cut], sys.argv[cut + 1 :]
    outcomes = {torch: try_version(torch, files) for torch in versions}
    if len(outcomes) > 1:
        show(outcomes)
    bad = [torch for torch, outcome in outcomes.items() if not outcome.good]
    if bad:
        sys.exit(f"failed with PyTorch {', '.join(bad)}")


if __name__ == "__main__":
    main()
