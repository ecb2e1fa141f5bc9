"""The command line: rmsnorm demo | bench | migrate | ops | doctor."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rmsnorm.migrate.call import Target

app = typer.Typer(
    help="The fused RMSNorm operator: the same bits everywhere, at the speed of memory.",
    no_args_is_help=True,
    add_completion=False,
)


class Dtype(Enum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Out = Annotated[Path, typer.Option(help="Folder for the plot and the figures.")]


@app.command()
def demo(
    short: Annotated[bool, typer.Option("--short", help="Fewer steps, as CI runs it.")] = False,
    nproc: Annotated[
        int | None,
        typer.Option(help="Only the training over processes, up to this many: 1, 2 or 4."),
    ] = None,
    out: Out = Path("out"),
) -> None:
    """Train a small LLaMA with its own norms and with ours, side by side, and check the results.

    On one process, then over two, by FSDP2 and tensor parallelism; one is killed, and restarted.
    """
    from rmsnorm import demo

    if not (demo.run(out, short) if nproc is None else demo.run_over(nproc, out, short)):
        raise typer.Exit(1)


@app.command()
def bench(
    out: Out = Path("out"),
    kernels: Annotated[
        Path | None,
        typer.Option(help="What rmsnorm_bench wrote, to be shown beside.", exists=True),
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Such as 16384x5120 or 65536x128s384; several times.")
    ] = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="Several times; float32 and bfloat16 if not given.")
    ] = None,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="On the GPU; all dtypes if none is given.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(help="About how long --cuda may take; less means fewer repeats.")
    ] = 240,
) -> None:
    """Measure the operator against its peers and a copy of the same bytes."""
    from rmsnorm import bench
    from rmsnorm.bench.shapes import Shape

    try:
        shapes = [Shape.parse(text) for text in shape or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    dtypes = [each.value for each in dtype or ()]
    if not cuda:
        bench.run(out, kernels, shapes, dtypes)
        return
    if kernels or any(each.row_stride for each in shapes):
        raise typer.BadParameter("--cuda takes neither --kernels nor shapes with a stride")
    from rmsnorm.bench import cuda as on_gpu

    try:
        device = on_gpu.gpu()
    except on_gpu.NoGpu as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    on_gpu.run(device, out, shapes, dtypes, seconds)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Check that the bits on this machine are the promised ones, and tell what it is made of."""
    from rmsnorm import doctor

    doctor.run(as_json)


@app.command()
def migrate(
    paths: Annotated[list[Path], typer.Argument(help="Files, and folders with *.py.")],
    target: Annotated[
        Target, typer.Option(help="What to call in place of small operators.")
    ] = Target.RMSNORM,
    diff: Annotated[
        bool, typer.Option("--diff", help="The changes, as `git apply` takes them.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Make the changes.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 0: nothing to do; 1: would change; 2: error.")
    ] = False,
    dirty: Annotated[
        bool,
        typer.Option(
            "--dirty",
            help="With --write: also files that git couldn't give back as they are. Outside of a "
            "git repository that isn't asked.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    sarif: Annotated[bool, typer.Option("--sarif", help="The report as SARIF 2.1.0.")] = False,
) -> None:
    """Find norms made of small operators in source, and rewrite them to the fused call.

    Says what each computes and what becomes of it; docs/codes.md explains the codes. Calls of
    torch_npu.npu_rms_norm become rmsnorm's, for any device. Nothing is written without
    --write. Source is parsed, never imported. `# rmsnorm: skip` on a line or above leaves it alone.
    """
    from rmsnorm.migrate import command

    if (write and check) or diff + as_json + sarif > 1:
        raise typer.BadParameter("one of --write and --check, one of --diff, --json and --sarif")
    if dirty and not write:
        raise typer.BadParameter("--dirty goes with --write")
    outside = [path for path in paths if diff and os.path.relpath(path).startswith(os.pardir)]
    if outside:
        raise typer.BadParameter(
            f"--diff: git apply takes no path outside of the current folder, such as {outside[0]}; "
            "run it in a folder above that"
        )
    shape = command.Shape.DIFF if diff else command.Shape.JSON if as_json else command.Shape.TEXT
    shape = command.Shape.SARIF if sarif else shape
    outcome = command.run_command(paths, target, shape, write=write, allow_uncommitted=dirty)
    if outcome.has_errors:
        raise typer.Exit(2)
    if check and outcome.would_change:
        raise typer.Exit(1)


@app.command()
def ops() -> None:
    """List every operator: inputs, attributes, outputs, formula and source."""
    from rmsnorm import library

    console = Console()
    for op in library.operators():
        table = Table(title=op["name"], title_justify="left", show_header=False, width=100)
        table.add_row("formula", op["formula"])
        for group in ("inputs", "outputs"):
            for tensor in op[group]:
                absent = ", optional" if tensor["optional"] else ""
                table.add_row(
                    f"{group[:-1]} {tensor['name']}",
                    f"{tensor['shape']}; {tensor['dtypes']}{absent}",
                )
        for attribute in op["attributes"]:
            default = f"default {attribute['default']}" if attribute["default"] else "required"
            table.add_row(f"attribute {attribute['name']}", f"{attribute['accepted']}; {default}")
        table.add_row("gradient", op["gradient"])
        table.add_row("source", op["source"])
        console.print(table, markup=False)
