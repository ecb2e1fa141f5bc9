"""Every mutant of tools/mutants.toml can still be made: its texts are where it expects them."""

from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parent.parent
MUTANTS = tomllib.loads((ROOT / "tools/mutants.toml").read_text())


@pytest.mark.parametrize("name", MUTANTS)
def test_each_text_that_a_mutant_replaces_is_there_once(name):
    for edit in MUTANTS[name]:
        assert (ROOT / edit["file"]).read_text().count(edit["replace"]) == 1, edit
