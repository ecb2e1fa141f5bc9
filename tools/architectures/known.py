"""The model types that can't be compared, and why."""

import tomllib

from architectures.config import FOLDER

_KNOWN = tomllib.loads((FOLDER / "known.toml").read_text())
NOT_BUILT: dict[str, str] = _KNOWN["not_built"]  # the reason, by model type
WITHOUT: list[str] = _KNOWN["without"]["model_types"]
