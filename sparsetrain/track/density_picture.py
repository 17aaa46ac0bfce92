"""Density of each masked layer over time as one picture: a line of cells for a layer, dark where weights are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CELL = (10, 16)  # pixels
MOST = (64, 80)  # steps (the newest) and layers (the first) that are shown
LETTERS = 34  # of a name
LETTER = 7  # pixels
HEAD = 20  # pixels above the cells


class DensityPicture:
    """Collects densities; needs pillow for the picture alone."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.columns: list[dict[str, float]] = []

    def add(self, step: int, densities: Mapping[str, float]) -> bool:
        """Note the densities of a step and return whether they are others than before."""
        new = not self.columns or dict(densities) != self.columns[-1]
        self.steps = [*self.steps, step][-MOST[0] :]
        self.columns = [*self.columns, dict(densities)][-MOST[0] :]
        return new

    def draw(self) -> Any:
        """Return the picture. Raises ImportError without pillow."""
        from PIL import Image, ImageDraw

        masked = [name for name in self.columns[-1] if any(each.get(name, 1.0) < 1.0 for each in self.columns)]
        names = (masked or list(self.columns[-1]))[: MOST[1]]
        wide, high = CELL
        left = min(LETTERS, max(len(name) for name in names)) * LETTER + 10
        right = left + wide * len(self.steps)
        image = Image.new("RGB", (right + 60, HEAD + high * len(names) + 4), "white")
        pen = ImageDraw.Draw(image)
        pen.text((4, 4), f"density, steps {self.steps[0]} to {self.steps[-1]}", fill="black")
        for line, name in enumerate(names):
            top = HEAD + high * line
            pen.text((4, top + 2), name[-LETTERS:], fill="black")
            for column, densities in enumerate(self.columns):
                x = left + wide * column
                pen.rectangle((x, top, x + wide - 1, top + high - 2), fill=_colour(densities.get(name, 0.0)))
            pen.text((right + 6, top + 2), f"{self.columns[-1][name]:.3g}", fill="black")
        return image


def _colour(density: float) -> tuple[int, int, int]:
    """Return white to dark blue; the root makes small densities differ."""
    share = max(0.0, min(1.0, density)) ** 0.5
    red, green, blue = (round(white + share * (dark - white)) for white, dark in ((245, 8), (248, 48), (252, 107)))
    return red, green, blue
