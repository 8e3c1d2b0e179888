"""Where the outputs of an input go, and how they appear: all of them whole, the run's report last."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from fcn_batch.pipeline.durable import sync
from fcn_batch.pipeline.errors import OptionError, OutputError
from fcn_batch.pipeline.journal import Journal
from fcn_batch.pipeline.plan import Plan


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
        """Make the folder and the staging folder; OutputError when that is not allowed."""
        try:
            self.staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = "choose another folder" if chosen else "choose a folder for the outputs"
            raise OutputError(
                f"{self.folder}: cannot write outputs here ({error.strerror}); {remedy} with -o DIR"
            ) from error

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
    """Outputs of each input, in `folder` or beside it; OptionError when two would have the same names."""
    places = [Outputs((folder or path.absolute().parent).absolute(), path.stem) for path in inputs]
    for index, place in enumerate(places):
        first = places.index(place)
        if first != index:
            raise OptionError(
                f"{inputs[first]} and {inputs[index]} would both be written as {place.stem}.* in {place.folder}; "
                "run them with different -o folders"
            )
    return places
