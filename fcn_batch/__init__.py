"""fcn-batch: exact segmentation of rasters of any size with fully convolutional networks.

The folders of the project (``pipeline/``, ``workflows/``, ``configs/``) and ``cli.py`` stand at the
top of the repository; relative links beside this file give them one importable name, ``fcn_batch``.
"""

__version__ = "0.1.0"
