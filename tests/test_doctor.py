"""The digests, and what rmsnorm doctor says of a healthy and of a broken installation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rmsnorm
from rmsnorm import digests, flush, library


@pytest.mark.parametrize("target", rmsnorm.cpu_targets())
def test_the_digests_of_every_target_are_the_recorded_ones(target):
    rmsnorm.use_cpu_target(target)
    assert digests.differences(digests.compute(digests.run_core)) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_the_digests_through_pytorch_are_the_recorded_ones(threads):
    torch.set_num_threads(threads)
    assert digests.differences(digests.compute(digests.run_torch)) == []


def test_one_bit_in_one_result_changes_its_digest_alone():
    last = [call for call in digests.calls(next(digests.every_types()))][-1]

    def run(call):
        results = list(digests.run_core(call))
        if call == last:
            results[2] = results[2][:-1] + bytes([results[2][-1] ^ 1])
        return tuple(results)

    assert digests.differences(digests.compute(run)) == [f"dx of {last.types}"]


def test_digests_cover_every_type_rounding_and_offset_and_the_lengths_of_the_order():
    types = list(digests.every_types())
    assert {t.x for t in types} == set(library.DTYPES)
    assert {t.gamma for t in types} == {None, *library.DTYPES}
    assert {t.rounding for t in types} == set(library.ROUNDINGS)
    assert {t.gamma_offset for t in types if t.gamma} == {0, 1}
    assert {str(t) for t in types} == set(digests.recorded())
    assert {1, 63, 64, 65, 511, 512, 513} <= {n for _, n in digests.SHAPES}
    assert {1, 15, 16, 17, 33} <= {rows for rows, _ in digests.SHAPES}


def test_rows_of_the_digests_hold_what_their_names_say():
    rows = torch.frombuffer(
        bytearray(list(digests.calls(digests.Types("float32", "float32", None, 0, "once")))[-1].x),
        dtype=torch.float32,
    ).view(-1, digests.HARD_N)
    named = dict(zip(digests.HARD_ROWS, rows, strict=True))
    assert named["huge"].isfinite().all() and named["huge"].square().isinf().all()
    assert 0 < (named["tiny"].abs() < torch.finfo(torch.float32).tiny).sum() < digests.HARD_N
    assert not named["zeros"].any() and named["zeros"].signbit().any()
    assert named["infinity"].isinf().sum() == 1
    assert named["nan"].isnan().sum() == 1
    assert (named["one huge"] == torch.finfo(torch.float32).max).sum() == 1


def run_doctor(package_folder: Path, *options: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(package_folder)}
    command = [sys.executable, "-m", "rmsnorm", "doctor", *options]
    return subprocess.run(
        command, env=environment, cwd=package_folder, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package that a test may break, in a folder of its own."""
    shutil.copytree(Path(rmsnorm.__file__).parent, tmp_path / "rmsnorm")
    return tmp_path


def test_doctor_finds_no_problem_here(package):
    done = run_doctor(package, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["problems"] == []
    assert report["library"]["targets"] == rmsnorm.cpu_targets()
    assert set(report["library"]["digests"].values()) == {"350 of 350 agree"}
    assert "-ffp-contract=off" in report["library"]["flags"]
    assert report["pytorch"]["version"] == torch.__version__
    assert report["flush_to_zero"]["set by"] == []


def test_doctor_says_in_words_what_json_says(package):
    done = run_doctor(package)
    assert done.returncode == 0
    assert "350 of 350 agree" in done.stdout and "No problem found." in done.stdout


def test_doctor_names_results_with_other_bits(package):
    file = package / "rmsnorm/digests.json"
    recorded = json.loads(file.read_text())
    recorded["float32 to float32, no gamma, once"]["dx"] = "0" * 64
    file.write_text(json.dumps(recorded))
    done = run_doctor(package)
    assert done.returncode == 1
    assert "reference: other bits in dx of float32 to float32, no gamma, once" in done.stdout


def test_doctor_runs_and_says_why_where_the_operators_cannot_be_loaded(package):
    (package / "rmsnorm/lib/librmsnorm_torch.so").write_bytes(b"no library")
    done = run_doctor(package, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert "the operators could not be loaded" in report["problems"][0]
    assert "librmsnorm_torch.so" in report["problems"][0]
    assert set(report["library"]["digests"].values()) == {"350 of 350 agree"}
    use = subprocess.run(
        [sys.executable, "-c", "from rmsnorm import rms_norm"],
        cwd=package,
        capture_output=True,
        text=True,
    )
    assert "ImportError: rmsnorm.rms_norm: the PyTorch operators could not be loaded" in use.stderr


@pytest.mark.parametrize("code", ["import rmsnorm", "from rmsnorm import rms_norm"])
def test_importing_with_another_pytorch_than_built_for_says_what_to_run(package, code):
    (package / "rmsnorm/lib/torch_version.txt").write_text("1.13.1")
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True)
    line = (
        f"built for PyTorch 1.13.1, and PyTorch {torch.__version__} is here; run in rmsnorm's "
        "source folder: pip install --no-build-isolation --no-deps ."
    )
    assert any(line in one for one in done.stderr.splitlines())
    assert done.returncode == ("rms_norm" in code)
    assert line in json.loads(run_doctor(package, "--json").stdout)["problems"][0]


def test_a_library_of_the_same_version_that_lacks_a_symbol_says_what_to_run(package):
    file = package / "rmsnorm/lib/librmsnorm_torch.so"
    symbol = b"_ZN3c1010Dispatcher13realSingletonEv"  # of PyTorch
    assert symbol in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(symbol, symbol[:-1] + b"w"))
    done = subprocess.run(
        [sys.executable, "-c", "import rmsnorm"], cwd=package, capture_output=True, text=True
    )
    assert "run in rmsnorm's source folder: pip install" in done.stderr


def test_doctor_runs_and_says_why_where_pytorch_is_broken(package):
    (package / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open')\n")
    done = run_doctor(package, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["problems"] == [
        "pytorch: the operators could not be loaded: libtorch_cpu.so: cannot open"
    ]
    assert set(report["library"]["digests"].values()) == {"350 of 350 agree"}


def test_doctor_runs_and_says_why_where_the_core_cannot_be_loaded(package):
    (package / "rmsnorm/lib/librmsnorm.so").unlink()
    done = run_doctor(package, "--json")
    assert done.returncode == 1
    assert any("librmsnorm.so" in problem for problem in json.loads(done.stdout)["problems"])


def test_code_whose_arithmetic_is_broken_is_not_loaded(monkeypatch):
    class Broken:
        def rmsnorm_check_arithmetic(self):
            return 2

        def rmsnorm_last_error(self):
            return b"arithmetic: the compiled code breaks the rule"

    monkeypatch.setattr(library, "core", Broken)
    with pytest.raises(ArithmeticError, match="breaks the rule"):
        library.check_arithmetic()


def test_a_thread_that_flushes_subnormals_is_noticed():
    assert not flush.flushes_subnormals()
    assert torch.set_flush_denormal(True)
    try:
        assert flush.flushes_subnormals()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_a_loaded_library_that_sets_flush_to_zero_is_named(tmp_path):
    names = {"fast": ["-ffast-math"], "plain": []}
    for name, flags in names.items():
        (tmp_path / f"{name}.cc").write_text("extern int one() { return 1; }\n")
        command = ["g++", "-shared", "-fPIC", *flags, f"{name}.cc", "-o", f"lib{name}.so"]
        subprocess.run(command, cwd=tmp_path, check=True)
    script = (
        "import ctypes; from rmsnorm import flush\n"
        f"for name in {list(names)}: ctypes.CDLL(f'{tmp_path}/lib{{name}}.so')\n"
        "print(flush.flushes_subnormals(), flush.libraries_that_flush())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"True ['{tmp_path}/libfast.so']\n", done.stderr
