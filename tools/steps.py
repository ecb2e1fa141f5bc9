"""What each idea in the kernels gives: `make steps` measures them without it, one at a time.

Each variant of steps.toml is measured in multiples of the plain streams of its own run.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import tomllib
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mutants
from rmsnorm.bench.kernels import OURS, Kernel, limit, read

# Of one thread; without oneDNN, whose name alone begins with o.
CELLS = "(forward|backward)/[^o][^/]*/(float32|bfloat16)/(512x4096|4096x4096|65536x128)/1/"
Multiples = dict[tuple[str, str, str], float]  # of the stream, by pass, dtype, shape


def measure(tree: Path) -> Multiples:
    """Of the kernels that tree holds now.

    Raises:
        ValueError: their results are wrong.
    """
    subprocess.run(
        ["ninja", "-C", "build", "rmsnorm_bench"], cwd=tree, check=True, stdout=subprocess.DEVNULL
    )
    out = tree / "kernels.json"
    subprocess.run(
        [
            "build/rmsnorm_bench",
            f"--benchmark_filter={CELLS}",
            f"--benchmark_out={out}",
            "--benchmark_enable_random_interleaving=true",
            "--benchmark_repetitions=9",
            "--benchmark_min_time=0.02",
        ],
        cwd=tree,
        check=True,
        capture_output=True,
    )
    cells = read(out)
    ours: list[Kernel] = [cell for cell in cells if OURS in cell.seconds]
    if wrong := [f"{cell.shape}: {cell.wrong[OURS]}" for cell in ours if OURS in cell.wrong]:
        raise ValueError(wrong[0])
    return {
        (cell.part, cell.dtype, str(cell.shape)): cell.seconds[OURS] / limit(cell, cells)
        for cell in ours
    }


def main(only: Annotated[str, typer.Option(help="Steps whose name contains this.")] = "") -> None:
    steps = tomllib.loads((mutants.ROOT / "tools/steps.toml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        mutants.copy_tree(tree)
        configure = "cmake -S . -B build -G Ninja -DRMSNORM_TORCH=OFF -DRMSNORM_TESTS=ON"
        configure += " --compile-no-warning-as-error"  # a step may leave a function unused
        subprocess.run(configure.split(), cwd=tree, check=True, capture_output=True)
        whole = measure(tree)
        table = Table("without it", *("\n".join(cell) for cell in whole), box=None)
        table.add_row("(multiples of the stream)", *(f"{value:.2f}" for value in whole.values()))
        for name in track([name for name in steps if only in name], transient=True):
            with mutants.broken(tree, steps[name]):
                without = measure(tree)
            table.add_row(name, *(f"{without[cell] / whole[cell]:.2f}" for cell in whole))
        again = measure(tree)
        table.add_row("(nothing: noise)", *(f"{again[cell] / whole[cell]:.2f}" for cell in whole))
    Console(width=200).print(table)


if __name__ == "__main__":
    typer.run(main)
