"""What rmsnorm migrate says: text, JSON, SARIF, a patch for git, and the pages of its codes."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rmsnorm.cli import app
from rmsnorm.migrate.codes import OF_CAUSE, OF_KIND, Code
from rmsnorm.reading.finding import Cause, Kind
from test_migrate_files import AFTER, NORM

PAGE = Path(__file__).parent.parent / "docs" / "codes.md"
LEFT = NORM.replace(".mean(", ".sum(").replace("def norm", "def f") + "\n\n"
CLASS = """\
import torch
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
"""


def migrate(*arguments):
    return CliRunner().invoke(app, ["migrate", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "norm.py").write_text(NORM)
    (tmp_path / "layer.py").write_text(CLASS)
    (tmp_path / "broken.py").write_text("def f(:\n")
    return tmp_path


class TestText:
    def test_each_norm_has_its_place_what_it_computes_and_what_it_becomes(self, folder):
        lines = migrate(".").stdout.splitlines()
        assert lines[0] == (
            "broken.py:1:1: RN901 a file can't be read: "
            "is no Python of this version: invalid syntax, line 1"
        )
        assert lines[1].startswith("layer.py:10:5: RN101 LayerNorm: close to RMSNorm, with ")
        assert lines[-4:] == [
            "norm.py:4:1: RN002 norm: x / rms(x) * weight, epsilon eps, rounded once, in float32",
            "    becomes rmsnorm.rms_norm(x, weight, eps, out_dtype=torch.float32)",
            "    note: weight must have one axis: the call spans as many as it has",
            "1 can be rewritten in 1 of 2 files; 1 left; 1 error. "
            "Nothing was written: --diff shows the changes, --write makes them.",
        ]

    def test_what_was_written_is_said(self, folder):
        assert migrate("norm.py", "--write").stdout.endswith(
            "1 rewritten in 1 of 1 file; 0 left.\n"
        )

    def test_what_could_not_be_written_is_said(self, folder):
        (folder / "done.py").write_text(NORM)
        (folder / "norm.py").chmod(0o444)
        done = migrate("norm.py", "--write")
        assert "RN902" in done.stdout
        assert done.stdout.endswith("1 can be rewritten in 1 of 1 file; 0 left; 1 error.\n")
        assert migrate("norm.py", "done.py", "--write").stdout.endswith(
            "1 rewritten in 1 of 2 files; 1 can be rewritten in 1 of 2 files; 0 left; 1 error.\n"
        )
        report = json.loads(migrate("norm.py", "--json", "--write").stdout)
        assert [each["action"] for each in report["findings"]] == ["rewrite", "error"]
        assert report["would_change"] == ["norm.py"]

    def test_a_path_of_odd_bytes_stays_on_its_line(self, folder):
        odd = Path("a\nb[red]\udce9.py")
        odd.write_text(NORM)
        line = next(line for line in migrate(".").stdout.splitlines() if "b[red]" in line)
        assert line.startswith(r"a\nb[red]\xe9.py:4:1: RN002")


class TestJson:
    def test_it_holds_all_that_is_documented(self, folder):
        done = migrate(".", "--json")
        assert done.exit_code == 2
        report = json.loads(done.stdout)
        assert (report["version"], report["target"], report["files_read"]) == (1, "rmsnorm", 2)
        assert (report["would_change"], report["written"]) == (["norm.py"], [])
        (norm,) = (each for each in report["findings"] if each["path"] == "norm.py")
        assert norm == {
            "code": "RN002",
            "title": "a function computes RMSNorm by small operators",
            "path": "norm.py",
            "line": 4,
            "column": 1,
            "end_line": 6,
            "end_column": 74,
            "name": "norm",
            "action": "rewrite",
            "text": "x / rms(x) * weight, epsilon eps, rounded once, in float32",
            "replacement": "rmsnorm.rms_norm(x, weight, eps, out_dtype=torch.float32)",
            "notes": norm["notes"],
        }
        actions = {each["path"]: each["action"] for each in report["findings"]}
        assert actions == {"broken.py": "error", "layer.py": "leave", "norm.py": "rewrite"}
        documented = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
        assert documented == set(report) | set(norm)

    def test_what_was_written_is_said(self, folder):
        report = json.loads(migrate("norm.py", "--json", "--write").stdout)
        assert (report["would_change"], report["written"]) == ([], ["norm.py"])


class TestSarif:
    def test_each_result_has_a_rule_and_a_place(self, folder):
        log = json.loads(migrate(".", "--sarif").stdout)
        assert log["version"] == "2.1.0"
        (run,) = log["runs"]
        rules = run["tool"]["driver"]["rules"]
        for result in run["results"]:
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            (location,) = result["locations"]
            place = location["physicalLocation"]
            assert (folder / place["artifactLocation"]["uri"]).exists()
            assert place["region"]["startLine"] >= 1
        assert [each["level"] for each in run["results"]] == ["error", "note", "warning"]

    def test_its_fix_makes_the_change(self, folder):
        (run,) = json.loads(migrate("norm.py", "--sarif").stdout)["runs"]
        (fix,) = run["results"][0]["fixes"]
        text = NORM
        replacements = fix["artifactChanges"][0]["replacements"]
        for each in sorted(replacements, key=lambda each: -each["deletedRegion"]["charOffset"]):
            region = each["deletedRegion"]
            start, end = region["charOffset"], region["charOffset"] + region["charLength"]
            text = text[:start] + each["insertedContent"]["text"] + text[end:]
        assert text == AFTER


class TestDiff:
    @pytest.mark.parametrize(
        "data",
        [
            NORM.encode(),
            NORM.rstrip("\n").encode(),
            NORM.replace("\n", "\r\n").encode(),
            NORM.replace("\n", "\r").encode(),
            b"# coding: latin-1\n# \xe9\n" + NORM.encode() + b"# \xe9",
            b"\xef\xbb\xbf" + NORM.encode(),
            b"x = 1\n" * 500 + NORM.encode() + b"x = 1\n" * 500,
            NORM.encode() * 3,
            NORM.encode() + b"\n\n" + NORM.encode() + b"x = '''\n@@ -1 +1 @@\n--- a\n'''\n",
        ],
        ids=["plain", "no end", "CRLF", "CR", "latin-1", "BOM", "long", "thrice", "like a diff"],
    )
    @pytest.mark.parametrize("name", ["norm.py", 'a "b"\té\\.py', "in a folder/norm.py"])
    def test_git_apply_makes_the_same_file_as_write(self, tmp_path, monkeypatch, data, name):
        monkeypatch.chdir(tmp_path)
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        subprocess.run(["git", "init", "-q"], check=True)
        done = migrate(".", "--diff")
        assert done.exit_code == 0
        assert path.read_bytes() == data
        command = ["git", "apply", "--check", "-"]
        subprocess.run(command, input=done.stdout_bytes, check=True)
        subprocess.run([*command[:2], "-"], input=done.stdout_bytes, check=True)
        patched = path.read_bytes()
        path.write_bytes(data)
        assert migrate(".", "--write", "--dirty").exit_code == 0
        assert patched == path.read_bytes() != data

    def test_a_path_outside_of_the_current_folder_is_refused(self, folder, monkeypatch):
        (folder / "inner").mkdir()
        monkeypatch.chdir(folder / "inner")
        done = migrate("../norm.py", "--diff")
        assert done.exit_code == 2
        assert done.stdout == ""
        assert "outside of the current folder" in " ".join(re.findall(r"[\w./-]+", done.stderr))

    def test_errors_go_beside_the_patch(self, folder):
        done = migrate(".", "--diff")
        assert done.exit_code == 2
        assert done.stdout.startswith("--- a/norm.py\n")
        assert done.stderr.startswith("broken.py:1: RN901 ")


class TestCodes:
    def test_every_code_has_a_section_and_every_section_a_code(self):
        heads = re.findall(r"^## (RN\d+)\n\n\*\*(.*)\*\*$", PAGE.read_text(), re.MULTILINE)
        assert heads == [(code.name, code.value) for code in Code]

    def test_every_section_says_what_to_do(self):
        for section in re.split(r"^## RN", PAGE.read_text(), flags=re.MULTILINE)[1:]:
            assert "What to do: " in section, section[:20]

    def test_every_kind_and_every_cause_has_a_code(self):
        assert set(OF_KIND) == set(Kind)
        assert set(OF_CAUSE) == set(Cause)
        assert len({*OF_KIND.values(), *OF_CAUSE.values()}) == len(Kind) + len(Cause)
