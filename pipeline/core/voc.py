"""Names and colours of classes: PASCAL VOC's, and its colour map for any number of classes."""

from collections.abc import Sequence

from fcn_batch.pipeline.core.classes import ClassInfo, Legend

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip


def voc_colour(number: int) -> str:
    """The colour of class `number` in the VOC devkit's colour map (VOClabelcolormap).

    The number's bits go to red, green and blue in turn, each channel filled from its highest bit.

    >>> [voc_colour(number) for number in (0, 1, 2, 15, 20)]
    ['#000000', '#800000', '#008000', '#c08080', '#004080']
    """
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return "#{:02x}{:02x}{:02x}".format(*channels)


def legend_of(names: Sequence[str]) -> Legend:
    """Classes 0, 1, … of those names in VOC's colours; a name that comes again gets its number."""
    seen: set[str] = set()
    classes = []
    for number, name in enumerate(names):
        unique = name if name not in seen else f"{name} ({number})"
        seen.add(unique)
        classes.append(ClassInfo(id=number, name=unique, colour=voc_colour(number)))
    return Legend(classes=tuple(classes))


def usual_names(count: int) -> tuple[str, ...]:
    """VOC's names for 21 classes, else ``class 0``, ``class 1`` and so on."""
    return VOC_NAMES if count == len(VOC_NAMES) else tuple(f"class {number}" for number in range(count))
