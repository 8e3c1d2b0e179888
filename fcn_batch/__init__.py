"""fcn-batch: exact segmentation of rasters of any size with fully convolutional networks.

    import fcn_batch

    (maps,) = fcn_batch.segment("big_image.tif", "maps/")
    classes = fcn_batch.open_classes(maps)     # an xarray DataArray

The names below do what the commands of the same names do. The folders of the project (``pipeline/``, ``workflows/``,
``configs/``) and ``cli.py`` stand at the top of the repository; relative links beside this file give them one
importable name, ``fcn_batch``.
"""

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


def __getattr__(name: str) -> Any:
    """Import what is behind a name when it is first used: `import fcn_batch` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fcn_batch.pipeline.core import errors
    from fcn_batch.workflows import api

    return getattr(errors if name == "FcnBatchError" else api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
