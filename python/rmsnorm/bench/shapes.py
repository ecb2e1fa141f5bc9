"""The shapes of shapes.json, which the C++ program rmsnorm_bench reads, too."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "shapes.json"


@dataclass(frozen=True, order=True)
class Shape:
    """Rows of n elements. x's rows start row_stride elements apart; 0: they are contiguous."""

    rows: int
    n: int
    row_stride: int = 0

    def __str__(self) -> str:
        stride = f"s{self.row_stride}" if self.row_stride else ""
        return f"{self.rows}x{self.n}{stride}"

    def bytes(self, dtype: str) -> int:
        """Of x, y, dy or dx in the dtype of this name."""
        return self.rows * self.n * (4 if dtype == "float32" else 2)

    @staticmethod
    def parse(text: str) -> Shape:
        """The shape that str() shows as `text`.

        Raises:
            ValueError: there is none.
        """
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:s([1-9]\d*))?", text)
        if found is None:
            raise ValueError(f"shape: {text}; expected one such as 16384x5120 or 65536x128s384")
        return Shape(*(int(number or 0) for number in found.groups()))


def read(path: Path = DATA) -> list[Shape]:
    """All shapes, in the file's order."""
    keys = ("rows", "n", "row_stride")
    return [
        Shape(**{key: shape[key] for key in keys if key in shape})
        for shape in json.loads(path.read_text())
    ]
