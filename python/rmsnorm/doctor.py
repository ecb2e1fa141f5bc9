"""What this machine, this build and this PyTorch are, and whether the bits are the promised ones.

What cannot be loaded is reported with the reason. `python -m rmsnorm.doctor` prints JSON and needs
the standard library only.
"""

import functools
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rmsnorm import digests, flush, library


def examine() -> dict[str, Any]:
    """The report, fit for JSON. Its "problems" say in words what is wrong: none, an empty list."""
    problems: list[str] = []
    return {
        "system": _system(),
        "library": _library(problems),
        "pytorch": _pytorch(problems),
        "flush_to_zero": _flush(),
        "problems": problems,
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title="rmsnorm doctor", title_justify="left")
    for section in ("system", "library", "pytorch", "flush_to_zero"):
        table.add_section()
        for name, value in report[section].items():
            table.add_row(f"{section} {name}".replace("_", " "), _text(value))
    console = Console()
    console.print(table, markup=False)
    for problem in report["problems"]:
        console.print(f"PROBLEM {problem}", markup=False, soft_wrap=True)
    if not report["problems"]:
        console.print("No problem found.")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _system() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'} ({platform.machine()})"


def _library(problems: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"path": str(library.FOLDER)}
    try:
        facts |= library.build()
    except (AttributeError, OSError, ValueError) as error:
        problems.append(f"library: {error}")
        return facts | {"error": str(error)}
    facts["targets"] = library.cpu_targets()
    facts["arithmetic"], facts["digests"] = {}, {}
    for target in facts["targets"]:
        library.use_cpu_target(target)
        try:
            library.check_arithmetic()
            facts["arithmetic"][target] = "as the contract says"
        except ArithmeticError as error:
            problems.append(f"{target}: {error}")
            facts["arithmetic"][target] = str(error)
        facts["digests"][target] = _digests(target, digests.run_core, problems)
    library.use_cpu_target(None)
    facts["cuda"] = library.why_no_cuda() or "ready"
    return facts


def _digests(name: str, run: digests.Run, problems: list[str]) -> str:
    found = digests.compute(run)
    different = digests.differences(found)
    problems.extend(f"{name}: other bits in {what}" for what in different)
    count = len(digests.RESULTS) * len(found)
    return f"{count - len(different)} of {count} agree"


def _pytorch(problems: list[str]) -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"version": "not installed"}
    facts: dict[str, Any] = {}
    try:
        import torch

        facts["version"] = torch.__version__
        facts["threads"] = torch.get_num_threads()
        facts["cuda"] = torch.version.cuda or "not built with CUDA"
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        import rmsnorm.functional  # noqa: F401
    except Exception as error:  # a broken installation raises whatever it likes
        problems.append(f"pytorch: the operators could not be loaded: {error}")
        return facts | {"operators": f"not loaded: {error}"}
    facts["operators"] = "loaded"
    facts["devices"] = devices(problems)
    facts["digests"] = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        run = functools.partial(digests.run_torch, device=device)
        try:
            facts["digests"][device] = _digests(f"pytorch {device}", run, problems)
        except RuntimeError as error:  # from a GPU
            problems.append(f"pytorch {device}: {error}")
            facts["digests"][device] = str(error)
    return facts


def devices(problems: list[str]) -> dict[str, str]:
    """What computes on each kind of device that PyTorch has here."""
    import torch

    from rmsnorm import npu

    try:
        if importlib.util.find_spec("torch_npu") is not None:
            importlib.import_module("torch_npu")  # older versions of PyTorch don't do that
    except Exception as error:  # as above
        problems.append(f"torch_npu: could not be loaded: {error}")
    lack = library.why_no_cuda()
    ours = {"cpu": "our kernels", "cuda": f"nothing: {lack}" if lack else "our kernels"}
    if npu.operator("npu_rms_norm") is not None:
        ours["npu"] = "torch_npu's npu_rms_norm, whose bits are not promised"
    composite = "a composite of PyTorch's operators, whose bits are not promised"
    backends: dict[str, Any] = {"cpu": torch.cpu, "cuda": torch.cuda, "mps": torch.backends.mps}
    for kind in ("xpu", torch._C._get_privateuse1_backend_name()):
        backends[kind] = getattr(torch, kind, None)
    found = [
        kind
        for kind, backend in backends.items()
        if backend and getattr(backend, "is_available", lambda: True)()
    ]
    return {kind: ours.get(kind, composite) for kind in found}


def _flush() -> dict[str, Any]:
    """No problem for our bits: our calls set the modes that they need. Other code may mind."""
    facts: dict[str, Any] = {"on": flush.flushes_subnormals()}
    try:
        facts["set by"] = flush.libraries_that_flush()
    except (AttributeError, OSError, subprocess.SubprocessError) as error:
        facts["set by"] = f"unknown: {error}"
    return facts


def run(as_json: bool) -> None:
    """Prints the report and ends the program: status 0 where there is no problem."""
    report = examine()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    sys.exit(1 if report["problems"] else 0)


if __name__ == "__main__":
    run(as_json=True)
