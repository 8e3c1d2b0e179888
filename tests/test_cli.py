"""The command line: help that is true, data on stdout, all else on stderr, one line for each error."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import pytest
from rasterio.transform import Affine

import fcn_batch as package
from fcn_batch.commands.main import main
from fcn_batch.pipeline.core.errors import FcnBatchError
from fcn_batch.pipeline.core.model_card import ModelCard
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.workflows.plan import Options, prepare
from tests.models import save_tiny_model
from tests.runs import fcn_batch, run_program, scene, segmented, small_blocks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene(tmp_path_factory.mktemp("raster") / "a.tif", 40, 50)


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that runs something, with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())
EXAMPLES = [
    (path, line.strip())
    for path, command in COMMANDS.items()
    for line in (command.epilog or "").splitlines()
    if line.strip().startswith("fcn-batch")
]


def test_the_commands_are_these() -> None:
    of_models = {("model", name) for name in ("list", "info", "check", "convert", "convolutionalise")}
    names = ("segment", "status", "plan", "doctor", "validate", "verify", "export", "train", "evaluate", "completion")
    of_jobs = {("submit", name) for name in ("slurm", "pbs", "cron")}
    assert set(COMMANDS) == {(name,) for name in names} | of_models | of_jobs


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_what_it_does_with_an_example(path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        result = fcn_batch(*path, flag)
        assert result.exit_code == 0
        assert result.stderr == ""
        assert result.stdout.startswith(f"Usage: main {' '.join(path)} ")
        assert "Example" in result.stdout
        assert f"  fcn-batch {' '.join(path)}" in result.stdout
        assert "--debug" in result.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    options = [p for p in COMMANDS[path].params if isinstance(p, click.Option)]
    assert [o.name for o in options if not o.help] == []
    metavars = [o.make_metavar(click.Context(COMMANDS[path])) for o in options if not o.is_flag]
    assert [m for m in metavars if "LAMBDA" in m.upper() or m.startswith("_")] == []


@pytest.mark.parametrize(("path", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_the_examples_are_understood(path: tuple[str, ...], line: str) -> None:
    words = shlex.split(line)[1:]
    assert tuple(words[: len(path)]) == path
    with COMMANDS[path].make_context("fcn-batch", words[len(path) :]) as context:  # raises for what is not there
        assert set(context.params) == {p.name for p in COMMANDS[path].params if p.expose_value}


def test_the_main_help_names_the_commands_and_lists_every_exit_code() -> None:
    table = (Path(__file__).parents[1] / "docs" / "exit-codes.md").read_text("utf-8")
    codes = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    commands, told = fcn_batch("--help").stdout.split("Commands:")[1].split("Exit codes")
    assert re.findall(r"^  (\w+)  ", commands, re.MULTILINE) == sorted({path[0] for path in COMMANDS})
    assert "docs/exit-codes.md" in told
    assert re.findall(r"^ +(\d+)  ", told, re.MULTILINE) == codes


def test_version() -> None:
    assert fcn_batch("--version").stdout == f"fcn-batch, version {package.__version__}\n"


@pytest.mark.parametrize("words", [["segmnet"], ["segment", "a.tif", "--tiel", "5"], ["model", "lst"], ["plan"]])
def test_usage_errors_have_code_2(words: list[str]) -> None:
    result = fcn_batch(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr
    assert "Error: " in result.stderr


# --- errors --------------------------------------------------------------------------------------------------


def test_an_error_is_one_line_and_with_debug_a_traceback_too() -> None:
    plain = run_program([sys.executable, "-m", "fcn_batch", "plan", "/nowhere/a.tif"])
    debug = fcn_batch("plan", "/nowhere/a.tif", "--debug")
    assert plain.returncode == debug.exit_code == 4
    assert plain.stdout == debug.stdout == ""
    assert re.fullmatch(r"fcn-batch: /nowhere/a\.tif .+\n", plain.stderr)
    assert debug.stderr.startswith("Traceback (most recent call last)")
    assert debug.stderr.endswith(plain.stderr)


def fail(_path: Path, _options: Options, **_: Any) -> Any:
    raise ZeroDivisionError("by nothing")


def test_an_unforeseen_error_has_code_1_and_a_hint(raster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.plan.prepare", fail)
    result = fcn_batch("plan", raster)
    assert result.exit_code == FcnBatchError.exit_code == 1
    assert "ZeroDivisionError: by nothing; --debug" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "in fail" in fcn_batch("plan", raster, "--debug").stderr


@pytest.mark.parametrize(
    ("where", "code", "told"), [(">/dev/full", 6, "No space left on device"), (">&-", 0, ""), ("2>&-", 0, "")]
)
def test_where_nothing_can_be_written_to(where: str, code: int, told: str, raster: Path, model: Path) -> None:
    command = f'"{sys.executable}" -m fcn_batch segment "{raster}" -m "{model}" -o "{raster.parent}/out" {where}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code
    assert told in done.stderr
    assert "unforeseen" not in done.stderr


def test_an_interrupt_says_how_to_go_on(raster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_path: Path, _options: Options, **_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("fcn_batch.workflows.plan.prepare", interrupt)
    result = fcn_batch("plan", raster)
    assert result.exit_code == 130
    assert result.stderr.startswith("fcn-batch: ")
    assert result.stderr.count("\n") == 1


# --- what is printed -----------------------------------------------------------------------------------------


def test_quiet_is_quiet(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 40, 50, crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6))
    for _ in range(2):  # a new run, and a complete one
        result = segmented(path, "-m", model, "--quiet")
        assert result.stderr == ""
        assert len(result.stdout.splitlines()) == 3


def test_progress_is_plain_lines_without_a_terminal(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    monkeypatch.setattr("fcn_batch.workflows.console.progress._LINE_EVERY_S", 0)
    result = segmented(scene(tmp_path / "a.tif", 300, 330), "-m", model)
    lines = [line for line in result.stderr.splitlines() if line.startswith("a: ")]
    assert lines.pop() == "a: writing the GeoTIFF"
    assert len(lines) == 9
    assert all(re.fullmatch(r"a: \d+ % of 0\.1 MPx, \d+\.\d\d MPx/s, \d+ s left", line) for line in lines)
    assert lines[-1].startswith("a: 100 %")
    assert lines[-1].endswith(" 0 s left")
    assert "\x1b" not in result.stderr
    assert "\r" not in result.stderr
    summary = result.stderr.splitlines()[10:]
    *classes, speed = summary
    assert [line.split()[:2] for line in classes] == [*(["class", str(k)] for k in range(6)), ["no", "data"]]
    assert re.fullmatch(r"  \d+\.\d\d MPx/s", speed), "of all pixels, each of which has a class"


def test_a_plan_as_json_is_a_plan(raster: Path, model: Path) -> None:
    result = fcn_batch("plan", raster, "-m", model, "--json", "--tile", "64")
    found = json.loads(result.stdout)
    facts = found.pop("facts")
    plan = Plan.model_validate_json(json.dumps(found))
    assert plan == prepare(raster, Options(model=str(model), tile=64)).plan
    assert plan.cut.tile == 64
    assert (facts["fingerprint"], facts["blocks"], facts["exactness"]) == (plan.fingerprint, 1, "exact")


def test_a_plan_for_people(raster: Path, model: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in fcn_batch("plan", raster, "-m", model).stdout.splitlines())
    assert lines["result"] == "exact"
    assert lines["way"] == "streamed in strips of 64 rows, with a halo of 128 px where a lane or segment ends"
    assert lines["lanes"] == "1 of 50 px, in 1 segment each"
    assert lines["blocks"].startswith("1 of 2048 rows")
    assert ", fp32, " in lines["device"]
    assert lines["cost"] == f"{64 * 64 / (40 * 50):.2f} forward passes per pixel"
    result = fcn_batch("plan", raster, "-m", model, "--overlap", "32", "--tile", "100")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith("note"))
    assert lines["input"] == f"{raster}: 40 x 50 px, 3 bands of uint8"
    assert lines["bands"] == "red = band 1, green = band 2, blue = band 3"
    assert lines["result"] == "windows, blended (hann)"
    assert lines["way"] == "tiles of 128 px, overlapping by 32 px"
    assert "--tile 100" in result.stdout


@pytest.mark.parametrize(
    ("option", "word", "value"),
    [
        *(
            ("memory", "1B", 1),
            ("memory", "1000000", 10**6),
            ("memory", "4e9", 4 * 10**9),
            ("memory", "4 gb", 4 * 10**9),
        ),
        *(("memory", "500MiB", 500 * 2**20), ("memory", "0.5k", 500), ("memory", "2T", 2 * 10**12)),
        *(("memory", " 7B ", 7), ("memory", "3ki", 3072), ("memory", "1.5KiB", 1536), ("memory", "4g", 4 * 10**9)),
        *(("precision", "auto", None), ("precision", "bf16", "bf16"), ("precision", "fp16", "fp16")),
        *(("tile", "auto", None), ("tile", "64", 64), ("overlap", "32", 32), ("bands", "3,B8", (3, "B8"))),
    ],
)
def test_words_for_values(raster: Path, option: str, word: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Options] = []

    def note(_path: Path, options: Options, **_: Any) -> Any:
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("fcn_batch.workflows.plan.prepare", note)
    fcn_batch("plan", raster, f"--{option}", word)
    assert getattr(asked[0], option) == value


@pytest.mark.parametrize(
    ("option", "word"),
    [
        *(
            ("memory", word)
            for word in ("", "0", "4", "8192", "0GB", "-1", "4XB", "much", "nan", "inf", "1e999", "0.2")
        ),
        *(("memory", word) for word in ("4GBB", "4 5", "1e-3", "٤٤x")),
        *(("tile", "wide"), ("overlap", "1.5"), ("blend", "cosine"), ("precision", "fp8"), ("bands", "1,,2")),
        *(("bbox", "1,2,3"), ("bbox", "1,2,3,nan")),
    ],
)
def test_words_that_mean_nothing(raster: Path, option: str, word: str) -> None:
    result = fcn_batch("plan", raster, f"--{option}", word)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert f"--{option}" in result.stderr


# --- models --------------------------------------------------------------------------------------------------


def test_a_card_as_json_is_a_card(model: Path) -> None:
    found = json.loads(fcn_batch("model", "info", model, "--json").stdout)
    assert (found.pop("file"), found.pop("sha256")) == (str(model), sha256(model.read_bytes()).hexdigest())
    card = ModelCard.model_validate_json(json.dumps(found))
    assert (card.name, card.stride, card.halo) == ("tiny", 32, 128)
    text = fcn_batch("model", "info", model).stdout
    assert [one.name for one in card.legend.classes if one.name not in text] == []
    missing = fcn_batch("model", "info", "none.safetensors")
    assert (missing.exit_code, "none.safetensors" in missing.stderr) == (5, True)


def test_the_embedded_models_ship() -> None:
    listed = [line.split()[0] for line in fcn_batch("model", "list").stdout.splitlines()]
    assert listed == ["aerial", "buildings", "landcover-world", "nuclei"]
    card = json.loads(fcn_batch("model", "info", "landcover-world", "--json").stdout)
    assert card["name"] == "landcover-world"
    assert card["scores"]["mean_iu"] > 0
