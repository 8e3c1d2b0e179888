"""fcn-batch: exact segmentation of rasters of any size with fully convolutional networks.

    import fcn_batch

    (maps,) = fcn_batch.segment("big_image.tif", "maps/")
    classes = fcn_batch.open_classes(maps)     # an xarray DataArray

The names below do what the commands of the same names do. In a checkout the sub-packages (``commands/``,
``workflows/``, ``pipeline/``, ``configs/``) are folders at the top of the repository; a wheel holds them here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_batch.pipeline.core.errors import FcnBatchError
    from fcn_batch.workflows.api import (
        Maps,
        evaluate,
        export,
        models,
        open_classes,
        plan,
        report,
        segment,
        status,
        validate,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "FcnBatchError",
    "Maps",
    "__version__",
    "evaluate",
    "export",
    "models",
    "open_classes",
    "plan",
    "report",
    "segment",
    "status",
    "validate",
    "verify",
]

if not Path(__file__).with_name("pipeline").is_dir():  # a checkout: the sub-packages are one folder up
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    """Import what is behind a name when it is first used: `import fcn_batch` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fcn_batch.pipeline.core import errors
    from fcn_batch.workflows import api

    return getattr(errors if name == "FcnBatchError" else api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
