"""Where the outputs of an input go, and how they appear: all of them whole, the run's report last."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.conventions import holds_zarr
from fcn_batch.pipeline.core.durable import sync
from fcn_batch.pipeline.core.errors import InputError, OptionError, OutputError
from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.core.location import Input, Mosaic
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.store.levels import group_attributes
from fcn_batch.workflows.outputs.checksums import files_of, is_signed, output_sha256

_LONGEST_STEM = 255 - len(f"..stac.json.{'0' * 32}.tmp")
"""File names have 255 bytes; the longest we make is that of the STAC item while it is written."""

_REPORT = ".run.json"


class _Name:
    """The name of an output: that of the run with an ending."""

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def __get__(self, outputs: "Outputs | None", _: type) -> str:
        return self.ending if outputs is None else f"{outputs.stem}{self.ending}"


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
    def journal(self) -> Journal:
        """Of the run that lies in the staging folder."""
        return Journal(self.staging)

    store = _Name(".classes.zarr")
    """The class map for analysis."""
    cog = _Name(".classes.tif")
    """The class map for GIS."""
    side_file = _Name(".classes.tif.aux.xml")
    """Names and colours beside the COG."""
    style = _Name(".classes.qml")
    """Names and colours for QGIS, beside store and COG."""
    confidence = _Name(".confidence.zarr")
    """How sure the network was; only when it was asked for."""
    pyramid = _Name(".pyramid.zarr")
    """The class map at several resolutions; only when it was asked for."""
    item = _Name(".stac.json")
    """The STAC item, for catalogues."""
    report = _Name(_REPORT)
    """The run's report; its presence means that all outputs are complete."""

    def names(self, *, confidence: bool = True, pyramid: bool = True) -> list[str]:
        """What a run makes beside its report, in the order it appears; by default with all that is optional."""
        optional = [self.confidence] * confidence + [self.pyramid] * pyramid
        return [self.store, self.cog, self.side_file, self.style, *optional, self.item]

    @property
    def paths(self) -> list[Path]:
        """What a user is told of a complete run, in the order they appear."""
        optional = [name for name in (self.confidence, self.pyramid) if (self.folder / name).exists()]
        return [self.folder / name for name in (self.store, self.cog, *optional, self.report)]

    def reported(self) -> dict[str, Any] | None:
        """The report of the complete run that lies here, or None when there is none that can be read."""
        try:
            return find_run(self.folder / self.report)[1]
        except InputError:
            return None

    def reported_plan(self) -> Plan | None:
        """The plan of the complete run that lies here, or None when there is none that can be read."""
        try:
            return Plan.model_validate((self.reported() or {}).get("plan"))
        except ValueError:
            return None

    def earlier_plans(self) -> list[Plan]:
        """The plans of the complete run and of the interrupted one that lie here."""
        return [plan for plan in (self.reported_plan(), self.journal.earlier_plan()) if plan is not None]

    def is_complete(self, plan: Plan) -> bool:
        """True when the outputs of this very plan are all here; a pyramid can be added at any time."""
        made = self.reported_plan()
        if made is None or made.fingerprint != plan.fingerprint:
            return False
        names = self.names(confidence=made.confidence, pyramid=False)
        return all((self.folder / name).exists() for name in names)

    def staged_report(self) -> dict[str, Any] | None:
        """Return the report of the run that is sealed in the staging folder; None when there is none that is whole."""
        try:
            report = json.loads((self.staging / self.report).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return report if isinstance(report, dict) and is_signed(report) else None

    def is_sealed(self, plan: Plan) -> bool:
        """Return whether a run of this plan has made everything, and may be published or has begun to be."""
        report = self.staged_report()
        return report is not None and report.get("fingerprint") == plan.fingerprint

    def is_left_half_published(self, plan: Plan) -> bool:
        """Return whether a run of this plan was killed while it was published, and its report is lost since."""
        lost = not (self.folder / self.report).exists() and not self.is_sealed(plan)
        return lost and not (self.staging / self.store).exists() and self.is_ours(self.folder / self.store, plan)

    def damaged(self) -> list[str]:
        """Return what a sealed run made that is not as its report says, where it is made or already in its place."""
        report = self.staged_report()
        if report is None:
            return [self.report]
        known: dict[str, str] = report["checksums"]
        found: list[str] = []
        for name in report["outputs"]:
            folder = self.staging if os.path.lexists(self.staging / name) else self.folder
            there = {str(path.relative_to(folder)): path for path in files_of(folder / name)}
            expected = {at for at in known if Path(at).parts[0] == name}
            found += sorted(expected ^ there.keys())
            found += [at for at in sorted(expected & there.keys()) if not _is_as(there[at], known[at])]
        return found

    def unseal(self, plan: Plan) -> None:
        """Take back what was published of a run that must be finished again, and delete what is made of its blocks.

        The stores come back into the staging folder; their blocks have receipts, which say what is whole of them.
        """
        half_moved = not (self.folder / self.report).exists()  # publishing begins with deleting the old one
        sealed = self.is_sealed(plan)
        (self.staging / self.report).unlink(missing_ok=True)
        sync([self.staging])
        for name in self.names():
            made, place = self.staging / name, self.folder / name
            if os.path.lexists(made):
                if name not in (self.store, self.confidence):
                    _delete(made)
            elif half_moved and name in (self.store, self.confidence):
                if os.path.lexists(place) and (sealed or self.is_ours(place, plan)):
                    place.rename(made)
            elif half_moved and os.path.lexists(place):
                _delete(place)
        sync([self.staging, self.folder])

    @staticmethod
    def is_ours(store: Path, plan: Plan) -> bool:
        """True when the store at `store` was made by this very plan."""
        return store.is_dir() and group_attributes(store).get("fcn:fingerprint") == plan.fingerprint

    def make_folder(self, *, chosen: bool) -> None:
        """Make the folder and see that it can be written to; OutputError when not."""
        if self.staging.is_symlink() or (self.staging.exists() and not self.staging.is_dir()):
            raise OutputError(
                "path-not-folder",
                "{path}: not a folder, and one is needed here; move it away or give -o DIR",
                path=self.staging,
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OutputError(
                "output-unwritable",
                "{path}: cannot write outputs here ({reason}); choose {which} with -o DIR",
                path=self.folder,
                reason=error.strerror,
                which="another folder" if chosen else "a folder for the outputs",
            ) from error

    def published(self) -> bool:
        """True when the staging folder is what a complete run was killed before it could delete."""
        made, left = self.reported_plan(), self.journal.earlier_plan()
        return made is not None and left is not None and made.fingerprint == left.fingerprint and not self._staged()

    def leftovers(self) -> bool:
        """True when a run was killed at its very end, with all outputs complete, before it had tidied up."""
        return self.published() or self.journal.trash.exists() or self.lock.exists()

    def tidy_up(self) -> None:
        """Delete what such a run left; the lock goes with whoever holds it."""
        if self.published():
            self.journal.discard()
        self.journal.empty_trash()

    def _staged(self) -> bool:
        return any((self.staging / name).exists() for name in (*self.names(), self.report))

    def refuse_to_clobber(self) -> None:
        """OutputError when any output of another run is here."""
        there = [name for name in (*self.names(), self.report) if (self.folder / name).exists()]
        if there:
            raise OutputError(
                "output-exists",
                "{path}: exists already and was not made by this very run; give --overwrite to replace it, or -o DIR "
                "for another folder",
                path=self.folder / there[0],
            )

    def publish(self) -> None:
        """Rename everything that the run made from the staging folder into place, the report last; may be repeated.

        The old report goes first: between the two, outputs may be of different runs, and no report says
        that they are complete. What an earlier run made and this one does not would be out of date: it goes too.
        """
        report = self.staged_report()
        assert report is not None, "only what is sealed is published"
        made = report["outputs"]
        (self.folder / self.report).unlink(missing_ok=True)
        for name in (f"{self.cog}.ovr", f"{self.cog}.msk"):  # others' additions to the old map: GDAL reads them
            (self.folder / name).unlink(missing_ok=True)
        for name in self.names():
            if name in made:
                self._move(name)
            else:
                self._take_away(name)
        sync([self.folder])
        self._move(self.report)
        sync([self.folder])
        self.journal.discard()

    def _move(self, name: str) -> None:
        made, place = self.staging / name, self.folder / name
        if not os.path.lexists(made):
            return  # moved before an interruption: it was compared there
        if made.is_dir() or place.is_dir():  # over which nothing can be renamed
            self._take_away(name)
        made.replace(place)

    def _take_away(self, name: str) -> None:
        """Delete what has this name in the folder; a folder as a whole, when the staging folder goes."""
        place = self.folder / name
        if place.is_dir() and not place.is_symlink():
            old = self.staging / f"{name}.old"
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        else:
            place.unlink(missing_ok=True)


def _is_as(path: Path, sha256: str) -> bool:
    try:
        return not path.is_symlink() and output_sha256(path) == sha256
    except (OSError, ValueError):
        return False


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the outputs of one input after the other go: in `folder`, or, if there is none, beside each input."""

    folder: Path | None
    _inputs: dict[Outputs, Input] = field(default_factory=dict)

    def of(self, path: Input) -> Outputs:
        """Where those of one input go; in the working folder if it lies on no file system itself.

        OptionError when the outputs of another input have the same names, when a name is too long, or when they would
        be in a zarr store.
        """
        beside = path.absolute().parent if isinstance(path, Path) else Path.cwd()
        if self.folder is None and holds_zarr(beside):
            raise OptionError(
                "output-in-store",
                "{path}: a part of a zarr store, in which no outputs belong; give a folder with -o DIR",
                path=path,
            )
        place = Outputs((self.folder or beside).resolve(), path.stem)
        if len(os.fsencode(place.stem)) > _LONGEST_STEM:
            raise OptionError(
                "name-too-long", "{path}: the name is too long for those of its outputs; rename the file", path=path
            )
        if (first := self._inputs.setdefault(place, path)) != path:
            raise OptionError(
                "output-shared",
                "{first} and {path} would both be written as {stem}.* in {folder}; run them with different -o folders",
                first=first,
                path=path,
                stem=place.stem,
                folder=place.folder,
            )
        return place


def outputs_of(inputs: list[Input], folder: Path | None) -> list[Outputs]:
    """Outputs of each input; OptionError also when one of them is an input itself."""
    known = Places(folder)
    places = [known.of(path) for path in inputs]
    files = [file for one in inputs for file in (one.parts if isinstance(one, Mosaic) else (one,))]
    real = {path.resolve(): path for path in files if isinstance(path, Path)}
    for path, place in zip(inputs, places, strict=True):
        for name in (*place.names(), place.report, place.staging.name):
            output = place.folder / name
            if output.resolve() in real:
                raise OptionError(
                    "output-is-input",
                    "{path}: an input that the outputs of {other} would replace; give another folder with -o DIR",
                    path=real[output.resolve()],
                    other=path,
                )
    return places


def find_outputs(path: Path) -> Outputs:
    """The outputs that `path` belongs to: NAME.run.json, any output of its run, or a folder with one NAME.run.json.

    InputError when it is none of these. Whether the others are there, and what is in them, is not looked at.
    """
    if path.is_dir() and path.suffix != ".zarr":
        reports = sorted(path.glob(f"*{_REPORT}"))
        if not reports:
            raise InputError("run-missing", "{path}: holds no report of a run; give NAME.run.json", path=path)
        if len(reports) > 1:
            raise InputError(
                "run-ambiguous",
                "{path}: holds {reports} reports of runs; give the NAME.run.json that is meant",
                path=path,
                reports=len(reports),
            )
        path = reports[0]
    for ending in sorted(
        (one.ending for one in vars(Outputs).values() if isinstance(one, _Name)), key=len, reverse=True
    ):
        if path.name.endswith(ending) and path.name != ending:
            if not path.exists() and not path.is_symlink():
                raise InputError(
                    "run-missing", "{path}: does not exist; give NAME.run.json, or a folder that holds one", path=path
                )
            return Outputs(path.absolute().parent.resolve(), path.name.removesuffix(ending))
    raise InputError(
        "not-an-output",
        "{path}: not an output of fcn-batch segment; give NAME.run.json, or a folder that holds one",
        path=path,
    )


def find_run(path: Path) -> tuple[Outputs, dict[str, Any]]:
    """`find_outputs`, and the report of their run; InputError also when that is missing or not readable."""
    outputs = find_outputs(path)
    named = outputs.folder / outputs.report
    try:
        report = json.loads(named.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            "report-missing",
            "{report}: not there, so nothing says what {path} is; make the map again",
            report=named,
            path=path.name,
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            "report-invalid",
            "{path}: not readable ({reason}); make the map again with --overwrite",
            path=named,
            reason=error,
        ) from error
    if not isinstance(report, dict) or report.get("complete") is not True:
        raise InputError(
            "run-incomplete",
            "{path}: not the report of a complete run; make the map again with --overwrite",
            path=named,
        )
    return outputs, report
