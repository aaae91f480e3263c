"""Deep zoom: where the tiles of a slide lie. Level 0 is the scan, level k the scan reduced 2ᵏ times."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The tiles of one slide; integer arithmetic."""

    size_l0: tuple[int, int]
    tile_px: int

    @property
    def levels(self) -> int:
        """Number of levels; the last one is a single tile."""
        return 1 + (max(-(-max(self.size_l0) // self.tile_px) - 1, 0)).bit_length()

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels, rounded up."""
        width, height = self.size_l0
        return -(-width // 2**level), -(-height // 2**level)

    def tile_count(self, level: int) -> tuple[int, int]:
        """(columns, rows) of tiles on a level."""
        width, height = self.level_size(level)
        return -(-width // self.tile_px), -(-height // self.tile_px)

    def has_tile(self, level: int, col: int, row: int) -> bool:
        """Whether there is such a tile."""
        if not 0 <= level < self.levels:
            return False
        cols, rows = self.tile_count(level)
        return 0 <= col < cols and 0 <= row < rows

    def tile_box(self, level: int, col: int, row: int) -> tuple[int, int, int, int]:
        """(x, y, width, height) of a tile in its level's pixels; tiles at the right and bottom edge are smaller."""
        width, height = self.level_size(level)
        x, y = col * self.tile_px, row * self.tile_px
        return x, y, min(self.tile_px, width - x), min(self.tile_px, height - y)

    def coarsest_level(self, downsamples: list[float], region_px: int) -> int:
        """The coarsest level whose whole tiles can be made of at most `region_px` pixels, given the file's own downsamples."""
        return max(
            level
            for level in range(self.levels)
            if level == 0 or self._read_px(level, downsamples) <= region_px
        )

    def _read_px(self, level: int, downsamples: list[float]) -> float:
        finer = max((own for own in downsamples if own <= 2**level), default=1.0)
        return float((self.tile_px * 2**level / finer) ** 2)
