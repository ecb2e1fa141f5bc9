"""What a table of the benchmarks shows, as text."""

from rich.console import Console


def shown(table):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
