"""Writes docs/architectures.md: patch on every architecture of transformers, built tiny.

Exit status 1: something that the page claims doesn't hold, or an architecture can't be built that
could before.
"""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
import typer
from rich.progress import track

from architectures.compare import Compared, compare
from architectures.known import NOT_BUILT, WITHOUT
from architectures.models import NotBuilt, mentions_norm, with_model
from architectures.table import page, share_replaced

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
SHARE = 0.95  # of the plain norms that are to be replaced


def _quiet() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # the models are tiny, and there is a process for each core


def _outcome(model_type: str) -> Compared | str | None:
    try:
        return compare(model_type)
    except NotBuilt as reason:
        return str(reason)


def _outcomes(model_types: list[str]) -> Iterator[tuple[str, Compared | str | None]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_quiet) as pool:
        results = pool.map(_outcome, model_types)
        yield from zip(model_types, track(results, total=len(model_types)), strict=True)


def main(
    only: Annotated[str, typer.Option(help="Model types that contain this; writes no page.")] = "",
) -> None:
    _quiet()
    model_types = [name for name in sorted(with_model()) if only in name and mentions_norm(name)]
    found: list[Compared] = []
    wrong: list[str] = []
    for model_type, outcome in _outcomes(model_types):
        if isinstance(outcome, Compared):
            found.append(outcome)
            wrong += [f"{model_type}: {text}" for text in outcome.broken]
            if model_type in (*NOT_BUILT, *WITHOUT):
                wrong.append(f"{model_type}: known.toml says that it can't be compared, and it can")
        elif isinstance(outcome, str) and model_type not in NOT_BUILT:
            wrong.append(f"{model_type}: {outcome}")
        elif outcome is None and model_type not in WITHOUT:
            wrong.append(f"{model_type}: has no RMSNorm, which known.toml doesn't say")
    if found and share_replaced(found) < SHARE:
        wrong.append(f"only {100 * share_replaced(found):.1f} % of the plain norms are replaced")
    if not only:
        PAGE.write_text(page(found, NOT_BUILT, WITHOUT))
    print("\n".join(wrong) or f"{len(found)} architectures agree", file=sys.stderr)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
