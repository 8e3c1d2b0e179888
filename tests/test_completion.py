"""What shells complete: commands, options, models and files, from the script that `completion` prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fcn_batch.commands.completion import SHELLS
from fcn_batch.commands.main import main
from tests.patience import PATIENCE_S
from tests.runs import fcn_batch

PROGRAM = "import sys; from fcn_batch.commands.main import main; main(prog_name='fcn-batch')"
MODELS = ["auto", "aerial", "buildings", "landcover-world", "nuclei"]


def offered(*words: str) -> list[str]:
    """What bash is offered for the last of `words`, each as kind,value."""
    environ = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_FCN_BATCH_COMPLETE": "bash_complete"}
    result = CliRunner().invoke(main, env=environ, prog_name="fcn-batch")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("seg", ["plain,segment"]),
        ("model con", ["plain,convert", "plain,convolutionalise"]),
        ("completion z", ["plain,zsh"]),
        ("segment --confi", ["plain,--confidence"]),
        *((f"{command} a", ["file,a"]) for command in ("segment", "plan", "validate", "submit slurm")),
        ("segment a.tif -o m", ["dir,m"]),
        *(
            (f"{words} b", ["file,b", "plain,buildings"])
            for words in ("segment a.tif --model", "plan -m", "model info")
        ),
        ("segment --model '", ["file,", *(f"plain,{name}" for name in MODELS)]),
        ("model check '", ["file,", *(f"plain,{name}" for name in MODELS[1:])]),
    ],
)
def test_commands_options_files_and_models_are_completed(words: str, expected: list[str]) -> None:
    assert offered("fcn-batch", *words.split()) == expected


def test_completing_loads_nothing_heavy() -> None:
    code = f"import sys, atexit; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules))); {PROGRAM}"
    environ = {"COMP_WORDS": "fcn-batch plan -m a", "COMP_CWORD": "3", "_FCN_BATCH_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout.splitlines()[1:3], done.stderr) == (["plain,auto", "plain,aerial"], "False")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell(shell: str, tmp_path: Path) -> None:
    result = fcn_batch("completion", shell)
    assert result.exit_code == 0
    assert f"_FCN_BATCH_COMPLETE={shell}_complete" in result.stdout
    assert "fcn-batch" in result.stdout
    if (program := shutil.which(shell)) is not None:
        (tmp_path / "script").write_text(result.stdout)
        read = subprocess.run([program, "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("segment --overw", "--overwrite"),
        ("model info ae", "aerial"),
    ],
)
def test_bash_completes_with_the_script(words: str, completed: str, tmp_path: Path) -> None:
    """As when TAB is pressed: the script's function is called, and the program is the one on the PATH."""
    program = tmp_path / "fcn-batch"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(fcn_batch("completion", "bash").stdout)
    press = (  # compopt works only while a key is pressed
        f"source {tmp_path}/script; COMP_WORDS=(fcn-batch {words}); COMP_CWORD={len(words.split())}; "
        'compopt() { :; }; _fcn_batch_completion fcn-batch; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", press],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout == f"{completed}\n"


def test_another_shell_is_refused() -> None:
    result = fcn_batch("completion", "csh")
    assert result.exit_code == 2
