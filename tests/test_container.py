"""The recipe of the Apptainer image, without Apptainer: its sections, its scripts' syntax, the extras it names."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import fcn_batch

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "containers" / "fcn-batch.def"
SECTIONS = {"arguments", "files", "post", "environment", "runscript", "test", "labels", "help"}
SCRIPTS = ("post", "environment", "runscript", "test")


def _header_and_sections() -> tuple[dict[str, str], dict[str, str]]:
    """What stands above the first section, and the text of each; as Apptainer cuts them, at lines that begin with %."""
    head, *parts = re.split(r"^%(?=\w)", RECIPE.read_text("utf-8"), flags=re.MULTILINE)
    header = dict(re.findall(r"^(\w+): *(.+)$", head, re.MULTILINE))
    texts = [part.partition("\n") for part in parts]
    assert len({name for name, _, _ in texts}) == len(texts), "a section comes twice"
    return header, {name.strip(): text for name, _, text in texts}


def _arguments() -> dict[str, str]:
    _, sections = _header_and_sections()
    return dict(re.findall(r"^ *(\w+)=(\S+)$", sections["arguments"], re.MULTILINE))


def test_the_recipe_has_its_parts() -> None:
    header, sections = _header_and_sections()
    assert set(header) == {"Bootstrap", "From"}
    assert set(sections) == SECTIONS
    assert all(text.strip() for text in sections.values())
    assert "fcn-batch --version" in sections["test"]


def test_every_argument_is_used_and_every_use_has_a_default() -> None:
    assert set(re.findall(r"\{\{ (\w+) \}\}", RECIPE.read_text("utf-8"))) == set(_arguments())


@pytest.mark.parametrize("section", SCRIPTS)
def test_scripts_parse(section: str) -> None:
    _, sections = _header_and_sections()
    script = re.sub(r"\{\{ (\w+) \}\}", lambda found: _arguments()[found[1]], sections[section])
    shellcheck = ["shellcheck", "--shell=sh", "-"] if shutil.which("shellcheck") else None
    for command in filter(None, (["bash", "-n"], shellcheck)):
        run = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr


def test_the_arguments_fit_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    arguments = _arguments()
    assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    assert f"Programming Language :: Python :: {arguments['PYTHON']}" in project["classifiers"]
    assert arguments["WHEEL"] == f"dist/fcn_batch-{fcn_batch.__version__}-py3-none-any.whl"
