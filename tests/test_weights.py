"""Model files: whole, checked, and never executed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.network.fcn import Fcn, FcnNetwork
from fcn_batch.pipeline.network.weights import load_model, read_card, save_model, structure
from tests.errors import refuses
from tests.models import save_tiny_model, tiny_architecture, tiny_card, tiny_dilated, tiny_network

KEY = "fcn_batch.model_card"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "good.safetensors")


def _rewrite(path: Path, tensors: Tensors | None = None, **card_changes: Any) -> Path:
    """Write the model file again with other tensors or other fields of the card."""
    card = json.loads(read_card(path).card.model_dump_json())
    for key, value in card_changes.items():
        inner, names = card, key.split("__")
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = value
    old = safetensors.torch.load(path.read_bytes())
    path.write_bytes(safetensors.torch.save(tensors or old, metadata={KEY: json.dumps(card)}))
    return path


def _refused(path: Path, code: str, **fields: Any) -> None:
    with refuses(code, path=path, **fields):
        load_model(path)


@pytest.mark.parametrize(
    "architecture",
    [{}, {"stride": 32}, {"stride": 16, "upsampling": "learned"}, {"input_upsampling": 4}],
    ids=str,
)
def test_a_saved_network_comes_back_with_the_same_scores(tmp_path: Path, architecture: dict[str, Any]) -> None:
    network = tiny_network(tiny_architecture(**architecture))
    card, path = tiny_card(network), tmp_path / "model.safetensors"
    save_model(path, network, card)
    model, loaded = load_model(path)
    assert model == read_card(path)
    assert (model.card, model.path) == (card, path)
    assert not loaded.training
    assert isinstance(loaded, Fcn)
    assert (loaded.stride, loaded.halo) == (card.stride, card.halo)
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(loaded(x), network(x))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def _of_kind(kind: str) -> FcnNetwork:
    if kind == "fcn_resnet50":
        return tiny_dilated()
    shape: dict[str, Any] = {"fc_kernel": 6, "shift": 3} if kind == "alexnet" else {"fc_channels": 0}
    return tiny_network(tiny_architecture(trunk=kind, **shape))


@pytest.mark.parametrize("kind", ["alexnet", "googlenet", "efficientnet_lite0", "fcn_resnet50"])
def test_networks_of_every_kind_come_back_from_half_precision(tmp_path: Path, kind: str) -> None:
    network, path = _of_kind(kind), tmp_path / "model.safetensors"
    card = tiny_card(network)
    save_model(path, network, card, dtype=torch.float16)
    written = safetensors.torch.load(path.read_bytes())
    file, loaded = load_model(path)
    assert file.card == card
    assert type(structure(file)) is type(loaded) is type(network)
    for name, tensor in network.state_dict().items():
        counter = name.endswith("num_batches_tracked")
        assert written[name].dtype == (torch.int64 if counter else torch.float16)
        assert loaded.state_dict()[name].dtype == (torch.int64 if counter else torch.float32)
        assert torch.equal(loaded.state_dict()[name], tensor if counter else tensor.half().float()), name
    x = torch.randn(1, 3, 64, 32)
    scores, expected = loaded(x), network(x)
    assert (scores - expected).abs().max() <= 0.05 * expected.abs().max()
    assert (scores.argmax(dim=1) == expected.argmax(dim=1)).double().mean() > 0.9


def test_weights_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    network, path = tiny_network(), tmp_path / "model.safetensors"
    with torch.no_grad():
        network.state_dict()["fc7.bias"][3] = 1e5
    with refuses("weights-too-large", path=path, name="fc7.bias", value=1e5, dtype="torch.float16"):
        save_model(path, network, tiny_card(network), dtype=torch.float16)
    assert not path.exists()
    save_model(path, network, tiny_card(network), dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_load_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    network = tiny_network(dtype=dtype)
    save_model(tmp_path / "model.safetensors", network, tiny_card(network))
    _, loaded = load_model(tmp_path / "model.safetensors")
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, network.state_dict()[name].float()), name


def test_a_network_in_channels_last_order_is_saved_as_any_other(tmp_path: Path, good: Path) -> None:
    network = tiny_network().to(memory_format=torch.channels_last)
    save_model(tmp_path / "last.safetensors", network, tiny_card(network))
    assert (tmp_path / "last.safetensors").read_bytes() == good.read_bytes()


def test_loading_draws_no_random_numbers(good: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_model(good)
    assert torch.equal(torch.rand(3), expected)


def test_a_file_that_changed_during_the_run(good: Path) -> None:
    before = read_card(good).sha256
    assert load_model(good, sha256=before)[0].sha256 == before
    save_tiny_model(good, seed=1)
    with refuses("model-changed", path=good, before=before):
        load_model(good, sha256=before)


def test_missing(tmp_path: Path) -> None:
    _refused(tmp_path / "none.safetensors", "model-missing")
    _refused(tmp_path, "model-unreadable")


def _nested(depth: int) -> bytes:
    text = b"[" * depth
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "model-unknown"),
        (b"1234567", "model-unknown"),
        (b"These are not the weights you are looking for.\n", "model-unknown"),
        ((2**63).to_bytes(8, "little") + b"{}", "model-unknown"),
        ((17 * 2**20).to_bytes(8, "little") + b" " * (17 * 2**20), "model-unknown"),
        ((100).to_bytes(8, "little") + b"{" * 99, "model-unknown"),
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "model-damaged"),
        ((2).to_bytes(8, "little") + b"[]", "model-damaged"),
        (_nested(200_000), "model-damaged"),
        ((2).to_bytes(8, "little") + b"{}", "card-missing"),
        ((21).to_bytes(8, "little") + b'{"__metadata__":null}', "model-damaged"),
        ((24).to_bytes(8, "little") + b'{"__metadata__":{"a":1}}', "model-damaged"),
    ],
    ids=["empty", "short", "text", "huge", "over", "cut", "binary", "list", "deep", "bare", "null", "number"],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    _refused(path, code)


def test_truncated_anywhere(good: Path) -> None:
    data = good.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for length in (0, 4, 8, 100, header - 1, header, header + 1, len(data) // 2, len(data) - 1):
        good.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            load_model(good)
        assert caught.value.code in ("model-unknown", "model-damaged")
    good.write_bytes(data + b"\0")
    _refused(good, "model-damaged")


def test_weights_without_a_card(tmp_path: Path) -> None:
    path = tmp_path / "vgg.safetensors"
    safetensors.torch.save_file({"features.0.weight": torch.ones(2)}, path)
    _refused(path, "card-missing")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture__stride", 12),
        ("architecture__fc_kernel", 0),
        ("architecture__trunk", "googlenet"),
        ("architecture__shift", 32),
        ("architecture__trunk", "resnet50"),
        ("architecture__family", "vit"),
        ("bf16_disagreement", 1.5),
        ("input__full_scale", 0),
        ("input__gsd_m", float("nan")),
        ("input__gsd_m", "far"),
        ("name", "../../etc/passwd"),
        ("format", 2),
        ("surprise", 1),
    ],
)
def test_a_card_with_a_wrong_field_is_told_which(good: Path, field: str, value: Any) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(_rewrite(good, None, **{field: value}))
    assert caught.value.code == "card-invalid"
    assert field.split("__", maxsplit=1)[0] in str(caught.value.fields["reason"])


def test_a_card_that_is_no_json(good: Path) -> None:
    tensors = safetensors.torch.load(good.read_bytes())
    good.write_bytes(safetensors.torch.save(tensors, metadata={KEY: "halo = 3"}))
    _refused(good, "card-invalid")


@pytest.mark.parametrize(("field", "value"), [("stride", 16), ("halo", 32), ("halo", 0), ("halo", None), ("phase", 3)])
def test_an_edited_grid_is_found(good: Path, field: str, value: int | None) -> None:
    says = tuple({"stride": 32, "halo": 160, "phase": 0, field: value}.values())
    _refused(_rewrite(good, None, **{field: value}), "grid-mismatch", says=says, found=(32, 160, 0))


def test_the_phase_of_a_shifted_network_is_checked(tmp_path: Path) -> None:
    network = tiny_network(tiny_architecture(shift=3))
    save_model(tmp_path / "model.safetensors", network, tiny_card(network))
    assert read_card(tmp_path / "model.safetensors").card.phase == 29
    _refused(_rewrite(tmp_path / "model.safetensors", phase=0), "grid-mismatch", found=(32, 160, 29))


def test_a_card_that_names_a_factory_has_its_weights_elsewhere(good: Path) -> None:
    architecture = {"family": "factory", "target": "os:getcwd", "arguments": {}}
    _refused(_rewrite(good, None, architecture=architecture), "model-factory", target="os:getcwd")


def _broken(change: Callable[[Tensors], Any]) -> Callable[[Path], Path]:
    def rewrite(path: Path) -> Path:
        tensors = safetensors.torch.load(path.read_bytes())
        change(tensors)
        return _rewrite(path, tensors)

    return rewrite


@pytest.mark.parametrize(
    ("rewrite", "code"),
    [
        (_broken(lambda t: t["fc7.weight"].view(-1)[3:4].fill_(torch.nan)), "weights-invalid"),
        (_broken(lambda t: t["score.bias"].fill_(torch.inf)), "weights-invalid"),
        (_broken(lambda t: t["score_pool3.weight"].zero_()), "weights-untrained"),
        (_broken(lambda t: [v.zero_() for v in t.values()]), "weights-untrained"),
        (_broken(lambda t: t.pop("fc6.bias")), "weights-mismatch"),
        (_broken(lambda t: t.update(extra=torch.ones(1))), "weights-mismatch"),
        (_broken(lambda t: t.update({"fc6.bias": torch.ones(17)})), "weights-mismatch"),
    ],
    ids=["nan", "infinity", "zero layer", "all zero", "missing", "extra", "shape"],
)
def test_weights_that_cannot_be(good: Path, rewrite: Callable[[Path], Path], code: str) -> None:
    _refused(rewrite(good), code)


def test_a_card_that_claims_a_huge_network_allocates_nothing(good: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = {"architecture__width": 2, "architecture__fc_channels": 8192, "architecture__fc_kernel": 15}
    _refused(_rewrite(good, None, **huge, halo=352), "weights-mismatch")  # fc6 alone: 7.5 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: less than 1 GiB


class _Burglar:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "pickle"])
def test_pickles_are_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    target, path = tmp_path / "broken-in", tmp_path / "model.safetensors"
    if zipped:
        torch.save({"state": _Burglar(target)}, path)
    else:
        path.write_bytes(pickle.dumps(_Burglar(target)))
    _refused(path, "model-unknown")
    assert not target.exists()
    with path.open("rb") as file:  # the trap does work
        torch.load(file, weights_only=False) if zipped else pickle.load(file)  # noqa: S301  (shows that this pickle would act)
    assert target.exists()


@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_a_failed_save_leaves_nothing_and_keeps_the_old(
    good: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = good.read_bytes()
    write = Path.write_bytes

    def full(self: Path, *args: Any) -> None:
        if method == "write_bytes":
            write(self, args[0][:100])
        raise OSError(28, "No space left on device")

    network = tiny_network(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, full)
        with pytest.raises(OSError, match="No space left"):
            save_model(good, network, tiny_card(network))
    assert [p.name for p in good.parent.iterdir()] == [good.name]
    assert good.read_bytes() == before
