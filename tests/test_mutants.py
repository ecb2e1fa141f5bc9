"""Every mutant and every step of tools/ can still be made: its texts are where it expects them."""

from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parent.parent
EDITS = {
    name: edits
    for file in ("mutants.toml", "steps.toml")
    for name, edits in tomllib.loads((ROOT / "tools" / file).read_text()).items()
}


@pytest.mark.parametrize("name", EDITS)
def test_each_text_that_a_mutant_or_step_replaces_is_there_once(name):
    for edit in EDITS[name]:
        assert (ROOT / edit["file"]).read_text().count(edit["replace"]) == 1, edit
