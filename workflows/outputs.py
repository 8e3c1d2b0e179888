"""Where the outputs of an input go, and how they appear: all of them whole, the run's report last."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fcn_batch.pipeline.durable import sync
from fcn_batch.pipeline.errors import OptionError, OutputError
from fcn_batch.pipeline.journal import Journal
from fcn_batch.pipeline.plan import Plan

_LONGEST_STEM = 255 - len(f"..run.json.{'0' * 32}.tmp")
"""File names have 255 bytes; the longest we make is that of the report while it is written."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Names of what a run makes in `folder` for an input called `stem`."""

    folder: Path
    stem: str

    @property
    def staging(self) -> Path:
        """Where everything is made before it is renamed into place."""
        return self.folder / f"{self.stem}.partial"

    @property
    def lock(self) -> Path:
        """Held by the run that writes here."""
        return self.folder / f".{self.stem}.lock"

    @property
    def store(self) -> str:
        """The class map for analysis."""
        return f"{self.stem}.classes.zarr"

    @property
    def cog(self) -> str:
        """The class map for GIS."""
        return f"{self.stem}.classes.tif"

    @property
    def side_file(self) -> str:
        """Names and colours beside the COG."""
        return f"{self.cog}.aux.xml"

    @property
    def report(self) -> str:
        """The run's report; its presence means that all outputs are complete."""
        return f"{self.stem}.run.json"

    @property
    def paths(self) -> list[Path]:
        """What a user is told of, in the order they appear."""
        return [self.folder / name for name in (self.store, self.cog, self.report)]

    def reported_plan(self) -> Plan | None:
        """The plan of the complete run that lies here, or None when there is none that can be read."""
        try:
            return Plan.model_validate(json.loads((self.folder / self.report).read_bytes())["plan"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def make_folder(self, *, chosen: bool) -> None:
        """Make the folder and see that it can be written to; OutputError when not."""
        if self.staging.is_symlink() or (self.staging.exists() and not self.staging.is_dir()):
            raise OutputError(f"{self.staging}: not a folder, and one is needed here; move it away or give -o DIR")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            remedy = "choose another folder" if chosen else "choose a folder for the outputs"
            raise OutputError(
                f"{self.folder}: cannot write outputs here ({error.strerror}); {remedy} with -o DIR"
            ) from error

    def published(self) -> bool:
        """True when the staging folder is what a complete run was killed before it could delete."""
        made, left = self.reported_plan(), Journal(self.staging).earlier_plan()
        return made is not None and left is not None and made.fingerprint == left.fingerprint and not self._staged()

    def _staged(self) -> bool:
        return any((self.staging / name).exists() for name in (self.store, self.cog, self.report))

    def refuse_to_clobber(self) -> None:
        """OutputError when any output of another run is here."""
        there = [path for path in (*self.paths, self.folder / self.side_file) if path.exists()]
        if there:
            raise OutputError(
                f"{there[0]}: exists already and was not made by this very run; give --overwrite to replace "
                "it, or -o DIR for another folder"
            )

    def publish(self) -> None:
        """Rename everything from the staging folder into place, the report last; may be repeated.

        The old report goes first: between the two, outputs may be of different runs, and no report says
        that they are complete.
        """
        report = self.folder / self.report
        report.unlink(missing_ok=True)
        for name in (self.store, self.cog, self.side_file):
            self._move(name)
        sync([self.folder])
        self._move(self.report)
        sync([self.folder])
        Journal(self.staging).discard()

    def _move(self, name: str) -> None:
        made, place = self.staging / name, self.folder / name
        if not made.exists():
            return  # moved before an interruption
        if made.is_dir() and (place.is_symlink() or place.is_file()):
            place.unlink()  # a folder cannot be renamed over them
        elif place.is_dir() and not place.is_symlink():
            old = self.staging / f"{name}.old"
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        made.replace(place)


def outputs_of(inputs: list[Path], folder: Path | None) -> list[Outputs]:
    """Outputs of each input, in `folder` or beside it.

    OptionError when two would have the same names, when one is an input itself, or when a name is too long.
    """
    places = [Outputs((folder or path.absolute().parent).resolve(), path.stem) for path in inputs]
    real = {path.resolve(): path for path in inputs}
    for index, place in enumerate(places):
        first = places.index(place)
        if first != index:
            raise OptionError(
                f"{inputs[first]} and {inputs[index]} would both be written as {place.stem}.* in {place.folder}; "
                "run them with different -o folders"
            )
        for output in (*place.paths, place.folder / place.side_file, place.staging):
            if output.resolve() in real:
                raise OptionError(
                    f"{real[output.resolve()]}: an input that the outputs of {inputs[index]} would replace; "
                    "give another folder with -o DIR"
                )
        if len(os.fsencode(place.stem)) > _LONGEST_STEM:
            raise OptionError(f"{inputs[index]}: the name is too long for those of its outputs; rename the file")
    return places
