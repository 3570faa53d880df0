"""What a command writes goes where it was told and nowhere else, and costs no file that was there."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vtkernels.cli._errors import UsageError
from vtkernels.cli._files import PICTURES, check_out, replacing

COMMANDS = {
    "demo --keep 4 --repeats 1 --method scope,par": "demo.png",
    "demo --keep 4 --repeats 1 --method uniform --out ../told/kept.webp": "../told/kept.webp",
    "flops --plot cost.svg": "cost.svg",
    "flops": None,
    "info": None,
    "info --json": None,
    "bench ops --quick --op topk_select --seconds 0.01": None,
    "bench ops --quick --op row_topk --seconds 0.01 --out ../told/row.csv": "../told/row.csv",
}
# Runs commands one after the other. For each: its exit code, what the interpreter opened to write, moved or made, and what it
# asked a network.
WATCHED = """
import json, os, sys
written, asked = set(), set()
def watch(event, given):
    if event == "open" and isinstance(given[0], (str, bytes)):
        mode, flags = given[1] or "", given[2] or 0
        if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.add(os.path.abspath(os.fsdecode(given[0])))
    elif event in ("os.rename", "os.link", "os.symlink"):
        written.add(os.path.abspath(os.fsdecode(given[1])))
    elif event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        asked.add(event)
sys.addaudithook(watch)
from vtkernels.cli import main
from vtkernels.cli._model import Geometry
tiny = Geometry(56, 14, vision_width=32, vision_heads=4, vision_layers=2, text_width=32, text_heads=4, text_layers=1)
found = {}
for command in json.loads(sys.argv[1]):
    code = main(command.split(), geometry=tiny)
    found[command] = [code, sorted(written), sorted(asked)]
    written.clear(), asked.clear()
print()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """All commands in an empty folder of an empty home: what each wrote, and every file that is there in the end."""
    for package in ("transformers", "matplotlib", "PIL", "rich"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("watched")
    for name in ("here", "told", "home", "temporary"):
        (root / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "MPL"))} | {
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "temporary"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(list(COMMANDS))],
        cwd=root / "here", env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("command", "told"), COMMANDS.items())
def test_a_command_writes_where_it_was_told_and_nowhere_else(watched, command, told):
    root, found = watched
    code, written, asked = found[command]
    assert (code, asked) == (0, [])
    # Matplotlib keeps its list of fonts; a file of Linux's resets the counters of the process's own memory.
    caches = (str(root / "home" / ".cache" / "matplotlib"), "/proc/self/", os.devnull)
    mine = {Path(path) for path in written if not path.startswith(caches)}
    if told is None:
        assert mine == set()
    else:
        path = (root / "here" / told).resolve()
        beside = [part for part in mine if part.parent == path.parent and re.fullmatch(rf"\.\d+-{path.name}", part.name)]
        assert path.stat().st_size and mine - set(beside) <= {path}


def test_no_other_file_is_left(watched):
    """Also what native code wrote, which the interpreter does not see."""
    root, _ = watched
    told = {(root / "here" / name).resolve() for name in COMMANDS.values() if name}
    left = {path for path in root.rglob("*") if path.is_file() and root / "home" / ".cache" / "matplotlib" not in path.parents}
    assert left == told


class TestReplacing:
    def test_a_failure_keeps_the_old_file_and_leaves_no_other(self, tmp_path):
        out = tmp_path / "result.csv"
        out.write_text("mine")
        for failure in (OSError("disk full"), KeyboardInterrupt()):
            with pytest.raises(type(failure)), replacing(out) as part:
                part.write_text("half of i")
                raise failure
        assert (out.read_text(), list(tmp_path.iterdir())) == ("mine", [out])

    def test_the_new_file_has_the_suffix_and_the_old_ones_mode(self, tmp_path):
        out = tmp_path / "result.png"
        out.write_text("old")
        out.chmod(0o640)
        with replacing(out) as part:
            assert part.suffix == ".png" and part.parent == tmp_path
            part.write_text("new")
        assert (out.read_text(), stat.S_IMODE(out.stat().st_mode)) == ("new", 0o640)

    def test_a_link_stays_a_link(self, tmp_path):
        target, link = tmp_path / "target.csv", tmp_path / "link.csv"
        target.write_text("old")
        link.symlink_to(target)
        with replacing(link) as part:
            part.write_text("new")
        assert link.is_symlink() and target.read_text() == "new"

    def test_a_device_is_written_as_it_is(self):
        with replacing(Path(os.devnull)) as part:
            part.write_text("gone")
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


class TestCheckOut:
    def test_nothing_is_left_and_nothing_lost(self, tmp_path):
        old = tmp_path / "old.csv"
        old.write_text("mine")
        assert check_out(old) == old and check_out(str(tmp_path / "new.csv")) == tmp_path / "new.csv"
        assert (old.read_text(), list(tmp_path.iterdir())) == ("mine", [old])

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("folder", "is a folder; give the name of a file in it"),
            ("no/file.csv", "that does not exist; create it first"),
            ("x" * 300 + ".csv", "cannot be written (File name too long); choose another place"),
            ("a\0b.csv", "cannot be written"),
        ],
    )
    def test_what_cannot_be_written(self, tmp_path, name, words):
        (tmp_path / "folder").mkdir()
        with pytest.raises(UsageError) as refused:
            check_out(tmp_path / name, "--output")
        assert words in str(refused.value) and str(refused.value).startswith("argument --output: '")

    def test_suffix(self, tmp_path):
        with pytest.raises(UsageError, match=r"has no suffix of a picture; end it in one of \.png"):
            check_out(tmp_path / "a.txt", suffixes=PICTURES)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_without_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(UsageError, match="Permission denied"):
            check_out(tmp_path / "a.csv")
