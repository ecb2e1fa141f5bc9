"""rmsnorm migrate on files: nothing is lost, whatever the file and whatever happens."""

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rmsnorm.cli import app
from rmsnorm.migrate import run, write
from rmsnorm.migrate.call import Target
from rmsnorm.migrate.rewrite import rewrite

NORM = """\
import torch


def norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight
"""
AFTER = """\
import torch
import rmsnorm


def norm(x, weight, eps):
    return rmsnorm.rms_norm(x, weight, eps, out_dtype=torch.float32)
"""


def migrate(*arguments):
    return CliRunner().invoke(app, ["migrate", *map(str, arguments)])


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


LINE_ENDS = ("\r\n", "\r", "\n")


@st.composite
def comments(draw):
    """Lines with a comment each, with anything in it, and one kind of line end."""
    end = draw(st.sampled_from(LINE_ENDS))
    anything = st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"])
    return "".join(f"# {text}{end}" for text in draw(st.lists(st.text(anything))))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "norm.py"
    path.write_text(NORM)
    return path


def names_in(folder):
    return sorted(each.name for each in folder.iterdir())


class TestExit:
    def test_nothing_is_written_unless_asked(self, path):
        assert migrate(path).exit_code == 0
        assert path.read_text() == NORM

    def test_check_is_1_before_and_0_after(self, path):
        assert migrate(path, "--check").exit_code == 1
        assert migrate(path, "--write").exit_code == 0
        assert path.read_text() == AFTER
        assert migrate(path, "--check").exit_code == 0

    @pytest.mark.parametrize("text", ["def f(:\n", "x = '\0'\n", "# coding: nonsense\n"])
    def test_a_file_that_is_no_python_is_2_and_the_others_go_on(self, path, text):
        broken = path.with_name("broken.py")
        broken.write_text(text)
        done = migrate(path.parent, "--write")
        assert done.exit_code == 2
        assert "broken.py:1:1: RN901" in done.stdout
        assert (path.read_text(), broken.read_text()) == (AFTER, text)

    def test_a_path_that_does_not_exist_is_2(self, path):
        done = migrate(path, path.with_name("nowhere"), "--check")
        assert done.exit_code == 2
        assert "no such file or folder" in done.stdout

    def test_check_and_write_exclude_each_other(self, path):
        assert migrate(path, "--check", "--write").exit_code == 2
        assert path.read_text() == NORM

    def test_dirty_goes_with_write(self, path):
        assert migrate(path, "--dirty").exit_code == 2

    def test_it_runs_without_pytorch(self, path):
        code = "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None; "
        code += "from rmsnorm.cli import app; app()"
        command = [sys.executable, "-c", code, "migrate", str(path), "--write"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert path.read_text() == AFTER

    def test_the_source_is_never_run(self, path):
        path.write_text("raise SystemExit('ran')\n" + NORM)
        assert migrate(path, "--write").exit_code == 0
        assert AFTER.split("\n\n\n")[1] in path.read_text()

    def test_a_mistake_in_reading_one_file_does_not_stop_the_others(self, path, monkeypatch):
        path.with_name("bad.py").write_text("x = 1\n")

        def broken(text, target):
            return {}[0] if text == "x = 1\n" else rewrite(text, target)

        monkeypatch.setattr(run, "rewrite", broken)
        done = migrate(path.parent, "--write")
        assert done.exit_code == 2
        assert "bad.py:1:1: RN901" in done.stdout and "KeyError" in done.stdout
        assert path.read_text() == AFTER

    @pytest.mark.parametrize("name", ["rmsnorm.py", "rmsnorm/__init__.py"])
    def test_what_hides_the_package_is_noted(self, path, name):
        assert "hides the package" not in migrate(path).stdout
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_text("")
        assert f"note: {name} beside the file hides the package rmsnorm" in migrate(path).stdout


class TestSelection:
    def test_hidden_folders_environments_and_caches_are_left_out(self, path):
        for folder in (".git", ".hidden", "__pycache__", "env", "package"):
            (path.parent / folder).mkdir()
            (path.parent / folder / "norm.py").write_text(NORM)
        (path.parent / "env" / "pyvenv.cfg").touch()
        (path.parent / "norm.txt").write_text(NORM)
        migrate(path.parent, "--write", "--dirty")
        written = [each for each in path.parent.rglob("*") if each.is_file()]
        assert sorted(
            str(each.relative_to(path.parent)) for each in written if each.read_text() == AFTER
        ) == ["norm.py", "package/norm.py"]

    def test_a_file_given_twice_is_read_once(self, path):
        assert "1 can be rewritten in 1 of 1 file" in migrate(path, path.parent, path).stdout

    def test_a_link_out_of_the_tree_is_not_followed(self, path):
        tree = path.parent / "tree"
        tree.mkdir()
        (tree / "link.py").symlink_to(path)
        done = migrate(tree, "--write")
        assert done.exit_code == 0
        assert "link.py:1:1: RN202" in done.stdout
        assert path.read_text() == NORM

    def test_a_link_in_the_tree_stays_a_link(self, path):
        link = path.with_name("link.py")
        link.symlink_to(path.name)
        assert migrate(path.parent, "--write").exit_code == 0
        assert link.is_symlink()
        assert path.read_text() == AFTER

    def test_a_link_given_by_name_is_refused(self, path):
        link = path.with_name("link.py")
        link.symlink_to(path)
        assert migrate(link, "--write").exit_code == 2
        assert path.read_text() == NORM

    def test_links_in_a_circle_and_to_nowhere_end(self, path):
        path.with_name("circle.py").symlink_to("circle.py")
        path.with_name("nowhere.py").symlink_to("nothing.py")
        path.with_name("folder").symlink_to(".")
        assert migrate(path.parent, "--write").exit_code == 0
        assert path.read_text() == AFTER

    def test_a_pipe_is_not_read(self, path):
        os.mkfifo(path.with_name("pipe.py"))
        done = migrate(path.parent)
        assert done.exit_code == 2
        assert "no regular file" in done.stdout


class TestBytes:
    @pytest.mark.parametrize("end", ["\r\n", "\r", "\n"], ids=["CRLF", "CR", "LF"])
    def test_line_ends_stay(self, path, end):
        path.write_bytes(NORM.replace("\n", end).encode())
        assert migrate(path, "--write").exit_code == 0
        assert path.read_bytes() == AFTER.replace("\n", end).encode()

    def test_mixed_line_ends_stay_outside_of_the_change(self, path):
        path.write_bytes(b"x = 1\r\ny = '''\n\r'''\n" + NORM.encode())
        assert migrate(path, "--write").exit_code == 0
        data = path.read_bytes()
        assert data.startswith(b"x = 1\r\ny = '''\n\r'''\nimport torch\nimport rmsnorm\n")

    def test_a_byte_order_mark_stays(self, path):
        path.write_bytes(b"\xef\xbb\xbf" + NORM.encode())
        assert migrate(path, "--write").exit_code == 0
        assert path.read_bytes() == b"\xef\xbb\xbf" + AFTER.encode()

    def test_latin_1_stays(self, path):
        head = b"# -*- coding: latin-1 -*-\n# caf\xe9\n"
        path.write_bytes(head + NORM.encode() + b"name = 'caf\xe9'\n")
        assert migrate(path, "--write").exit_code == 0
        assert path.read_bytes() == head + AFTER.encode() + b"name = 'caf\xe9'\n"

    def test_undeclared_latin_1_is_an_error(self, path):
        data = b"# caf\xe9\n" + NORM.encode()
        path.write_bytes(data)
        assert migrate(path, "--write").exit_code == 2
        assert path.read_bytes() == data

    def test_an_encoding_that_loses_bytes_is_an_error(self, path):
        data = b"# coding: utf-7\n" + NORM.encode("utf-7") + b"# +AGE-\n"  # utf-7 writes a itself
        path.write_bytes(data)
        done = migrate(path, "--write")
        assert done.exit_code == 2 and "doesn't give the same bytes back" in done.stdout
        assert path.read_bytes() == data

    def test_a_last_line_without_an_end_gets_none(self, path):
        path.write_text(NORM.rstrip("\n"))
        assert migrate(path, "--write").exit_code == 0
        assert path.read_text() == AFTER.rstrip("\n")

    def test_non_ascii_before_a_norm_on_its_line_counts_right(self, path):
        path.write_text(
            "import torch\ndef f(q, é):\n    return 'é𝄞' + str("
            "q.float() * torch.rsqrt(q.float().pow(2).mean(-1, keepdim=True) + 1e-6)), é\n"
        )
        assert migrate(path, "--write").exit_code == 0
        call = "rmsnorm.rms_norm(q, out_dtype=torch.float32)"
        assert f"    return 'é𝄞' + str({call}), é\n" in path.read_text()

    def test_the_mode_stays(self, path):
        path.chmod(0o751)
        migrate(path, "--write")
        assert stat.S_IMODE(path.stat().st_mode) == 0o751

    @given(comments(), comments())
    def test_what_surrounds_a_norm_stays_to_the_byte(self, head, tail):
        after = rewrite(head + NORM + tail, Target.RMSNORM).text
        assert after == head + AFTER + tail


class TestSize:
    def test_a_line_of_10_mb_is_kept(self, path):
        line = f"data = '{'a' * 10_000_000}'\n"
        path.write_text(NORM + line)
        assert migrate(path, "--write").exit_code == 0
        assert path.read_text() == AFTER + line

    def test_a_file_that_is_too_large_is_an_error(self, path):
        path.with_name("large.py").write_bytes(b"#" * (16 * 2**20 + 1))
        path.with_name("many.py").write_bytes(b"x = [" + b"1," * 2_000_000 + b"]\n")
        done = migrate(path.parent, "--write")
        assert done.exit_code == 2
        assert "files of up to 16 MiB" in done.stdout and "2000000 marks" in done.stdout
        assert path.read_text() == AFTER

    @pytest.mark.parametrize(
        "deep",
        [
            "-" * 100_000 + "1",
            "(" * 1000 + ")" * 1000,
            "a" + ".b" * 100_000,
            "+".join("a" * 100_000),
            "a" + "()" * 100_000,
            "[" * 150 + "]" * 150,
            "lambda: " * 5000 + "1",
        ],
        ids=["signs", "parentheses", "attributes", "sums", "calls", "lists", "lambdas"],
    )
    def test_deep_nesting_ends_no_run(self, path, deep):
        broken = path.with_name("deep.py")
        broken.write_text(f"{NORM}x = {deep}\n")
        before = broken.read_text()
        done = migrate(path.parent, "--write")
        assert path.read_text() == AFTER
        assert done.exit_code == (0 if broken.read_text() != before else 2)
        assert broken.read_text() in (before, before.replace(NORM, AFTER))

    def test_a_deep_check_in_a_norm_ends_no_run(self, path):
        deep = NORM.replace("    x =", f"    assert {'not ' * 150}x\n    x =")
        path.write_text(deep)
        done = migrate(path, "--write")
        assert "nested more than 100 deep" in done.stdout
        assert path.read_text() == deep


class TestGit:
    def test_a_committed_file_is_written(self, path):
        git(path.parent, "init", "-q")
        git(path.parent, "add", ".")
        git(path.parent, "commit", "-qm", "a")
        assert migrate(path, "--write").exit_code == 0
        assert path.read_text() == AFTER

    @pytest.mark.parametrize("state", ["changed", "staged", "untracked", "ignored"])
    def test_a_file_that_git_could_not_give_back_is_refused(self, path, state):
        folder = path.parent
        git(folder, "init", "-q")
        if state in ("changed", "staged"):
            path.write_text("x = 1\n")
            git(folder, "add", ".")
            git(folder, "commit", "-qm", "a")
            path.write_text(NORM)
        if state == "staged":
            git(folder, "add", ".")
        if state == "ignored":
            (folder / ".gitignore").write_text("norm.py\n")
        done = migrate(path, "--write")
        assert done.exit_code == 2
        assert "RN902" in done.stdout and "--dirty" in done.stdout
        assert path.read_text() == NORM
        assert migrate(path, "--write", "--dirty").exit_code == 0
        assert path.read_text() == AFTER

    def test_where_git_does_not_answer_the_file_is_refused(self, path):
        (path.parent / ".git").write_text("gitdir: nowhere\n")
        done = migrate(path, "--write")
        assert done.exit_code == 2
        assert "git doesn't say" in done.stdout
        assert path.read_text() == NORM


KILLED = """\
import os, signal, sys
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
real = os.{name}
setattr(os, "{name}", {wrapped})
sys.modules["torch"] = None
from rmsnorm.cli import app
app(["migrate", sys.argv[1], "--write"])
"""


class TestInterruption:
    @pytest.mark.parametrize(
        "name, wrapped, expected",
        [
            ("fchmod", "kill", NORM),
            ("fsync", "kill", NORM),
            ("replace", "kill", NORM),
            ("replace", "lambda *a: (real(*a), kill())", AFTER),
        ],
        ids=["at the mode", "at fsync", "before the rename", "after the rename"],
    )
    def test_kill_9_leaves_the_old_file_or_the_new_one(self, path, name, wrapped, expected):
        script = KILLED.format(name=name, wrapped=wrapped)
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert path.read_text() == expected
        left = names_in(path.parent)
        if expected == NORM:
            assert len(left) == 2 and left[0].startswith(".rmsnorm-migrate-")
            migrate(path, "--write")
        assert names_in(path.parent) == ["norm.py"]
        assert path.read_text() == AFTER

    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, path):
        limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\n"
        script = limit + KILLED.format(name="getpid", wrapped="real")
        done = subprocess.run(
            [sys.executable, "-B", "-c", script, path], capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr
        assert "RN902" in done.stdout and "File too large" in done.stdout
        assert path.read_text() == NORM
        assert names_in(path.parent) == ["norm.py"]

    def test_a_read_only_folder_leaves_the_old_file(self, path, monkeypatch):
        real = os.open

        def refuse(name, flags, *mode):  # root may write anywhere, so its system call is refused
            if flags & os.O_CREAT:
                raise PermissionError(13, "Permission denied", str(name))
            return real(name, flags, *mode)

        monkeypatch.setattr(write.os, "open", refuse)
        done = migrate(path, "--write")
        assert done.exit_code == 2
        assert "norm.py:1:1: RN902" in done.stdout and "Permission denied" in done.stdout
        assert path.read_text() == NORM

    def test_a_read_only_file_is_not_replaced(self, path):
        path.chmod(0o444)
        assert migrate(path, "--write").exit_code == 2
        assert path.read_text() == NORM
        assert names_in(path.parent) == ["norm.py"]

    @pytest.mark.parametrize("name", ["_remove_leftovers", "_create"])
    def test_what_another_program_wrote_meanwhile_stays(self, path, monkeypatch, name):
        real = getattr(write, name)

        def changing(*arguments):
            path.write_text("x = 1\n")
            return real(*arguments)

        monkeypatch.setattr(write, name, changing)
        done = migrate(path, "--write")
        assert done.exit_code == 2
        assert "has changed since it was read" in done.stdout
        assert path.read_text() == "x = 1\n"
        assert names_in(path.parent) == ["norm.py"]

    def test_the_new_file_of_a_running_process_is_not_removed(self, path):
        running = path.with_name(f".rmsnorm-migrate-{os.getppid()}.tmp")
        running.write_text("")
        assert migrate(path, "--write").exit_code == 0
        assert running.exists()


class TestChecked:
    @pytest.mark.parametrize(
        "broken, reason",
        [("def f(:\n", "doesn't compile"), (NORM, "would be rewritten once more")],
        ids=["no Python", "not done"],
    )
    def test_a_new_text_that_fails_its_check_is_not_written(
        self, path, monkeypatch, broken, reason
    ):
        first = NORM + "# first\n"
        path.write_text(first)

        def wrong(text, target):
            found = rewrite(text, target)
            return replace(found, text=broken) if text == first else found

        monkeypatch.setattr(run, "rewrite", wrong)
        done = migrate(path, "--write")
        assert done.exit_code == 2
        assert "RN903" in done.stdout and reason in done.stdout
        assert path.read_text() == first
