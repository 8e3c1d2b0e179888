"""What labels mean: no label, and which ids polygons stand for."""

import dataclasses

NO_LABEL = -1
"""The id of a pixel that has no label."""

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".geojsonl", ".shp", ".fgb", ".parquet")
"""Endings of the names of files that hold polygons."""


@dataclasses.dataclass(frozen=True, slots=True)
class Burn:
    """Which ids polygons stand for."""

    field: str | None = None
    """Attribute that says what a polygon is; None: all are the same."""
    values: dict[str, int] = dataclasses.field(default_factory=dict)
    """Id for each value of the attribute, as text; NO_LABEL for polygons that say nothing about what they cover."""
    burn: int = 1
    """Id inside the polygons when there is no `field`."""
    background: int = 0
    """Id outside all polygons; NO_LABEL when only what is drawn is known."""
    layer: str | None = None
    """Layer of the file; needed when it has several."""

    def __post_init__(self) -> None:
        if (self.field is None) != (not self.values):
            raise ValueError(f"burn needs both a field and its values, or neither: {self.field}, {self.values}")
