"""Networks that are not ours: built by a factory, described by a TOML file, found by path or by name."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn

from fcn_batch.commands.main import main
from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.imports import locate
from fcn_batch.pipeline.core.model_card import Factory
from fcn_batch.pipeline.network import factory
from fcn_batch.pipeline.network.weights import load_model, read_card
from fcn_batch.workflows.learning.models import find_model
from tests.models import UNET, save_factory_model, write_description


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other are slow on images so small, and slower beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    return save_factory_model(tmp_path / "unet.toml")


def _refused(path: Path, match: str) -> str:
    with pytest.raises(ModelError, match=match) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) in message, "the message names the file"
    return message


def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def probed(*_: Any) -> None:
        raise AssertionError("probed again")

    monkeypatch.setattr(factory, "prove", probed)


def test_a_network_of_ones_own(unet: Path) -> None:
    model, network = load_model(unet)
    assert model == read_card(unet)
    card = model.card
    assert model.path == unet
    assert card.architecture == Factory(target="nets:make_unet", arguments={"bands": 3, "classes": 4})
    assert (card.stride, card.phase, card.halo) == (4, 0, 8)
    assert [c.name for c in card.legend.classes] == ["class 0", "class 1", "class 2", "class 3"]
    assert [band.name for band in card.input.bands] == ["red", "green", "blue"]
    assert not network.training
    state = safetensors.torch.load_file(unet.with_name("unet.safetensors"))
    assert {f"network.{k}": v.tolist() for k, v in state.items()} == {
        k: v.tolist() for k, v in network.state_dict().items()
    }
    assert network(torch.zeros(2, 3, 8, 12)).shape == (2, 4, 8, 12)
    assert type(card).model_validate_json(card.model_dump_json()) == card


def test_the_grid_is_found_once(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_card(unet)
    stored = json.loads(unet.with_name("unet.grid.json").read_text())
    assert (stored.pop("sha256"), stored.pop("torch"), stored.pop("probe")) == (first.sha256, torch.__version__, 2)
    assert stored == {
        "exactness": "exact",
        "grid": {"stride": 4, "phase": 0, "halo": 8},
        "why": "",
        "probabilities": False,
    }
    _no_probe(monkeypatch)
    assert read_card(unet) == load_model(unet)[0] == first


@pytest.mark.parametrize("name", ["unet.toml", "unet.safetensors", "nets.py"])
def test_every_file_counts_for_the_hash(unet: Path, name: str) -> None:
    before = read_card(unet)
    changed = unet.with_name(name)
    if name == "unet.safetensors":
        state = safetensors.torch.load_file(changed)
        safetensors.torch.save_file({k: v + 1 for k, v in state.items()}, changed)
    else:
        changed.write_text(changed.read_text() + "\n# more\n")
    after = read_card(unet)
    assert after.sha256 != before.sha256
    assert after.card == before.card
    assert json.loads(unet.with_name("unet.grid.json").read_text())["sha256"] == after.sha256
    with pytest.raises(ModelError, match=f"changed during the run.*{before.sha256[:12]}"):
        load_model(unet, sha256=before.sha256)
    assert load_model(unet, sha256=after.sha256)[0] == after


def test_code_that_changed_since_it_was_imported_is_imported_again(unet: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    before = load_model(unet)[1](x)
    module = unet.with_name("nets.py")
    module.write_text(module.read_text().replace("return self.score(", "return 2 * self.score("))
    assert torch.equal(load_model(unet)[1](x), 2 * before)


def test_modules_of_one_name_in_two_folders(tmp_path: Path) -> None:
    paths = [save_factory_model(tmp_path / folder / "unet.toml", classes=n) for folder, n in (("a", 2), ("b", 3))]
    other = paths[1].with_name("nets.py")
    other.write_text(other.read_text().replace("nn.ReLU()", "nn.Sigmoid()"))
    x = torch.randn(1, 3, 8, 8)
    scores = [load_model(path)[1](x) for path in (*paths, *paths)]
    assert [s.shape[1] for s in scores] == [2, 3, 2, 3]
    assert torch.equal(scores[0], scores[2])
    assert torch.equal(scores[1], scores[3])
    assert str(paths[0].parent) not in sys.path


@pytest.mark.parametrize("content", ["", "[]", '{"sha256": 1}'])
def test_a_stored_grid_that_cannot_be_believed_is_found_again(unet: Path, content: str) -> None:
    good = read_card(unet)
    stored = unet.with_name("unet.grid.json")
    for text in (content, stored.read_text().replace('"stride": 4', '"stride": 3')):
        stored.write_text(text)
        assert read_card(unet) == good


def test_a_folder_that_cannot_be_written_to(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(factory, "write_whole", full)
    assert read_card(unet).card.halo == 8
    assert not unet.with_name("unet.grid.json").exists()


def test_by_the_name_of_the_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = save_factory_model(tmp_path / "pkg" / "inner" / "nets.toml", module="pkg.inner.nets")
    (tmp_path / "pkg" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    model = find_model("pkg.inner.nets:make_unet")
    assert model.path == toml
    assert model == find_model("pkg/inner/nets.toml")
    with pytest.raises(ModelError, match=r"nets:make_other: .*nets.toml is of the factory pkg.inner.nets:make_unet"):
        find_model("pkg.inner.nets:make_other")
    # a worker elsewhere opens the same file
    code = f"from fcn_batch.pipeline.network.weights import *; print(load_model(Path({str(toml)!r}))[0].sha256)"
    run = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert run.stdout.strip() == model.sha256, run.stderr
    toml.unlink()
    with pytest.raises(ModelError, match=r"no .*pkg/inner/nets\.toml describes the model; write it"):
        find_model("pkg.inner.nets:make_unet")


def test_a_package_of_another_folder_does_not_hide_one(tmp_path: Path) -> None:
    for folder, name in (("a", "first"), ("b", "second")):
        toml = save_factory_model(tmp_path / folder / "pkg" / f"{name}.toml", module=f"pkg.{name}")
        (toml.parent / "__init__.py").write_text("")
        assert load_model(toml)[0].card.name == name


def test_a_module_that_python_finds_comes_first(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    assert locate("json", tmp_path).path != tmp_path / "json.py"
    assert locate("json", tmp_path).folders == ()


def test_finding_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "trap_pkg").mkdir()
    for name in ("__init__", "nets"):
        (tmp_path / "trap_pkg" / f"{name}.py").write_text("raise SystemExit('it ran')")
    assert locate("trap_pkg.nets", tmp_path / "trap_pkg").path == tmp_path / "trap_pkg" / "nets.py"


def test_scores_in_a_mapping(tmp_path: Path) -> None:
    path = save_factory_model(
        tmp_path / "unet.toml", code=UNET.replace("return self.score(", "return wrap(self.score(")
    )
    module = path.with_name("nets.py")
    text = module.read_text().replace("dim=1))", "dim=1)))")
    module.write_text(text + "\n\ndef wrap(scores):\n    return {'out': scores, 'aux': scores[:, :1]}\n")
    assert load_model(path)[1](torch.zeros(1, 3, 8, 8)).shape == (1, 4, 8, 8)
    module.write_text(module.read_text().replace("'out'", "'logits'"))
    _refused(path, r"returns a mapping of \['aux', 'logits'\]; let it have the scores as \"out\"")


def test_a_network_that_looks_at_the_whole_image_loads(tmp_path: Path) -> None:
    path = save_factory_model(tmp_path / "unet.toml", code=UNET.replace("nn.ReLU()", "nn.InstanceNorm2d(8)"))
    model, _ = load_model(path)
    assert (model.card.stride, model.card.halo) == (32, None)
    result = CliRunner().invoke(main, ["model", "check", str(path)])
    assert result.exit_code == 0, result.output
    assert "windows: the map is the blend" in result.stdout
    assert "looks at the whole image" in CliRunner().invoke(main, ["model", "info", str(path)]).stdout


def test_model_check(unet: Path) -> None:
    result = CliRunner().invoke(main, ["model", "check", str(unet)])
    assert result.exit_code == 0, result.output
    assert "halo         8 px, as the card says\n" in result.stdout
    assert "result       exact: with 8 px around it" in result.stdout
    assert "0 classes differ" in result.stdout
    found = json.loads(CliRunner().invoke(main, ["model", "check", str(unet), "--json"]).stdout)
    assert found["found"] == found["says"] == {"stride": 4, "phase": 0, "halo": 8}
    assert found["exactness"] == "exact"
    stored = unet.with_name("unet.grid.json")
    stored.write_text(stored.read_text().replace('"halo": 8', '"halo": 4'))
    edited = CliRunner().invoke(main, ["model", "check", str(unet)])
    assert edited.exit_code == 5
    assert (
        "the card says exact, stride 4, phase 0, halo 4; the network has exact, stride 4, phase 0, halo 8"
        in edited.stderr
    )
    assert "remove unet.grid.json" in edited.stderr


def test_model_info(unet: Path) -> None:
    result = CliRunner().invoke(main, ["model", "info", str(unet)])
    assert result.exit_code == 0, result.output
    assert "network      nets:make_unet(bands=3, classes=4)\n" in result.stdout
    assert "stride       4 px, halo 8 px, by probe\n" in result.stdout
    assert "bfloat16     gives another class than float32 to 0.250% of pixels\n" in result.stdout


def test_loading_draws_no_random_numbers(unet: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_model(unet)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('name = "unet"', 'name = "U/Net"', "name: .*'U/Net'"),
        ('version = "1"', "", r"version: Field required$"),
        ('weights = "unet.safetensors"', "", r"weights: Field required$"),
        ('"unet.safetensors"', '"gone.safetensors"', "gone.safetensors: no such file .*weights that unet.toml names"),
        ("gsd_m = 0.5", "gsd_m = 0", r"input\.gsd_m: .*got 0"),
        ("id = 1\n", "id = 0\n", "classes: .*two classes have the id 0"),
        ('version = "1"', "version = ", "not a TOML file"),
        ('version = "1"', 'version = "1"\nhalo = 3', "halo: Extra inputs"),
        ("nets:make_unet", "nets.make_unet", "factory: .*'nets.make_unet'"),
        ("nets:make_unet", "nots:make_unet", "factory: nots: no such Python module, .* install it"),
        ("nets:make_unet", "nets.deep:make_unet", "factory: nets.deep: no such Python module"),
        ("nets:make_unet", "sys:exit", "factory: sys: no such Python module"),
        ("nets:make_unet", "nets:make_none", "has no function or class make_none"),
        ("nets:make_unet", "nets:make_bad", "make_bad raised ZeroDivisionError: .*correct .arguments.* `none`"),
        ("nets:make_unet", "nets:make_text", "nets:make_text returned str; it must return a torch.nn.Module"),
        ("bands = 3", "depth = 3", "make_unet raised TypeError: .*depth"),
        ("bands = 3", 'bands = 3\nbig = "x"', "make_unet raised TypeError: .*big"),
        ("bands = 3", "bands = 2", "the weights do not fit what nets:make_unet builds: .*size mismatch"),
    ],
)
def test_descriptions_that_are_wrong(unet: Path, old: str, new: str, match: str) -> None:
    text = unet.read_text()
    assert old in text
    unet.write_text(text.replace(old, new, 1))
    _refused(unet, match)


def test_bands_and_classes_that_are_not_the_network_s(unet: Path) -> None:
    write_description(unet, bands=4, classes=4, arguments={"bands": 3, "classes": 4})
    _refused(unet, r"\[input\] names 4 bands, the network's first convolution takes 3; correct")
    write_description(unet, bands=3, classes=5, arguments={"bands": 3, "classes": 4})
    _refused(unet, r"names 5 classes, the network scores 4; correct \[\[classes\]\]")


def test_a_network_of_another_size(tmp_path: Path) -> None:
    path = save_factory_model(tmp_path / "unet.toml", code=UNET.replace("padding=1", "padding=0"))
    _refused(path, "the network gives .* scores for an image of|refuses an image")


@pytest.mark.parametrize(
    ("code", "match"),
    [("import nothing_of_this_name", "ModuleNotFoundError"), ("def f(:", "SyntaxError"), ("raise SystemExit(3)", "3")],
)
def test_modules_that_do_not_run(unet: Path, code: str, match: str) -> None:
    unet.with_name("nets.py").write_text(code)
    _refused(unet, f"importing it raised .*{match}.*; correct the module")


class _Burglar:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.target,)


def test_weights_that_cannot_be(unet: Path, tmp_path: Path) -> None:
    weights = unet.with_name("unet.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(pickle.dumps(_Burglar(tmp_path / "broken-in")))
    _refused(unet, "not a whole safetensors file")
    assert not (tmp_path / "broken-in").exists()
    weights.write_bytes(good[:-1])
    _refused(unet, "not a whole safetensors file")
    state = safetensors.torch.load(good)
    for change, match in (
        ({"score.bias": torch.full((4,), torch.nan)}, r"score\.bias holds NaN"),
        ({"more": torch.zeros(1)}, "do not fit what nets:make_unet builds: .*more"),
    ):
        weights.write_bytes(safetensors.torch.save({**state, **change}))
        _refused(unet, match)


def test_missing(tmp_path: Path) -> None:
    _refused(tmp_path / "none.toml", "no such file")
    with pytest.raises(ModelError, match="nothing_like_it: no such Python module"):
        find_model("nothing_like_it:make")


def _described(folder: Path, network: nn.Module, target: str, arguments: dict[str, Any], none: list[str]) -> Path:
    path = folder / "model.toml"
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    write_description(path, bands=3, classes=4, arguments=arguments, target=target, none=none)
    return path


def test_a_unet_of_another_library(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp  # type: ignore[import-untyped]  # has no stubs

    network = smp.Unet("resnet18", encoder_weights=None, classes=4)
    arguments = {"encoder_name": "resnet18", "classes": 4}
    path = _described(tmp_path, network, "segmentation_models_pytorch:Unet", arguments, ["encoder_weights"])
    model, loaded = load_model(path)
    assert (model.card.stride, model.card.phase, model.card.halo) == (32, 0, 288)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), network.eval()(x))


@pytest.mark.long  # the probe of a ResNet-50 takes half a minute on one CPU
def test_a_network_of_torchvision(tmp_path: Path) -> None:
    from torchvision.models.segmentation import fcn_resnet50

    network = fcn_resnet50(weights=None, weights_backbone=None, num_classes=4)
    none = ["weights", "weights_backbone"]
    path = _described(tmp_path, network, "torchvision.models.segmentation:fcn_resnet50", {"num_classes": 4}, none)
    model, loaded = load_model(path)
    assert (model.card.stride, model.card.phase, model.card.halo) == (8, 0, 232)
    x = torch.randn(1, 3, 32, 40)
    assert torch.equal(loaded(x), network.eval()(x)["out"])
