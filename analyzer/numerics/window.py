"""The window of a picture that a map covers, in pixels: a processor may crop or pad a picture before cutting it into tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ...schema.errors import InvalidInput

Slices = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Window:
    """Edges in pixels of the picture, the last two exclusive. They may lie beyond the picture, where it was padded."""

    top: float
    left: float
    bottom: float
    right: float

    @classmethod
    def of(cls, edges: tuple[float, ...] | None, size: tuple[int, ...]) -> Window:
        """The window of a map's attributes; None is the whole picture of this (height, width)."""
        return cls(*(edges or (0, 0, *size)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in whole pixels."""
        return round(self.bottom) - round(self.top), round(self.right) - round(self.left)

    def inside(self, size: tuple[int, ...]) -> Slices:
        """Rows and columns of a picture of this size that lie in the window."""
        rows, columns = self._overlaps(size)
        return slice(*rows), slice(*columns)

    def seen(self, size: tuple[int, ...]) -> Slices:
        """Rows and columns of the window that lie on a picture of this size."""
        rows, columns = self._overlaps(size)
        top, left = round(self.top), round(self.left)
        return slice(rows[0] - top, rows[1] - top), slice(columns[0] - left, columns[1] - left)

    def require_overlap(self, size: tuple[int, ...]) -> None:
        """Refuse a window that lies beside the picture."""
        if any(stop <= start for start, stop in self._overlaps(size)):
            top, left, bottom, right = (round(edge) for edge in (self.top, self.left, self.bottom, self.right))
            raise InvalidInput(
                f"the map covers rows {top} to {bottom} and columns {left} to {right}, outside its picture of {size[0]} x {size[1]}"
            )

    def _overlaps(self, size: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        rows = max(round(self.top), 0), min(round(self.bottom), size[0])
        return rows, (max(round(self.left), 0), min(round(self.right), size[1]))
