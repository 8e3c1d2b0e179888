"""Arrays in, arrays out: any size, the first of equal scores, the same bytes on any number of threads."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fcn_batch.pipeline.errors import OptionError
from fcn_batch.pipeline.predictor import Predictor, TorchPredictor, choose_device, describe_device, set_threads
from tests.models import tiny_architecture, tiny_network

WHOLE = (slice(None), slice(None))


def _image(rows: int, cols: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(3, rows, cols)).astype(np.float32)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(1, 1), (31, 32), (32, 33), (65, 20)], ids=str)
def test_any_size_is_padded_with_zeros_and_cropped(size: tuple[int, int]) -> None:
    predictor: Predictor = TorchPredictor(tiny_network())
    image = _image(*size)
    padded = np.zeros((3, -(-size[0] // 32) * 32, -(-size[1] // 32) * 32), np.float32)
    padded[:, : size[0], : size[1]] = image
    scores = predictor.scores(image)
    assert scores.shape == (6, *size)
    assert scores.dtype == np.float32
    assert np.array_equal(scores, predictor.scores(padded)[:, : size[0], : size[1]])


def test_a_multiple_of_a_smaller_stride_needs_no_padding() -> None:
    network = tiny_network(tiny_architecture(input_upsampling=4))
    image = _image(40, 24)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None])[0].numpy()
    scores = TorchPredictor(network).scores(image)
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())  # another memory layout


@pytest.mark.parametrize("core", [WHOLE, (slice(32, 64), slice(0, 32)), (slice(3, 4), slice(50, 77))], ids=str)
def test_channels_are_the_best_scores_over_the_core(core: tuple[slice, slice]) -> None:
    predictor, image = TorchPredictor(tiny_network()), _image(70, 77)
    channels = predictor.channels(image, core)
    assert channels.dtype == np.uint8
    assert np.array_equal(channels, predictor.scores(image)[(slice(None), *core)].argmax(axis=0))
    assert len(np.unique(predictor.channels(image, WHOLE))) > 1


def test_of_equal_scores_the_first_wins() -> None:
    network = tiny_network(tiny_architecture(stride=32), classes=4)
    with torch.no_grad():
        network.score.weight.zero_()
        for bias, winner in (([0, 0, 0, 0], 0), ([-1, 2, 2, 2], 1), ([0, 1, 5, 5], 2)):
            assert network.score.bias is not None
            network.score.bias.copy_(torch.tensor(bias))
            assert (TorchPredictor(network).channels(_image(40, 40), WHOLE) == winner).all()


def test_the_network_is_put_into_evaluation_mode() -> None:
    network = tiny_network(tiny_architecture(dropout=0.9)).train()
    predictor, image = TorchPredictor(network), _image(32, 32)
    assert np.array_equal(predictor.scores(image), predictor.scores(image))


def test_double_precision_stays_so() -> None:
    predictor = TorchPredictor(tiny_network(dtype=torch.float64))
    assert predictor.scores(_image(32, 32).astype(np.float64)).dtype == np.float64


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [(64, 96), (203, 310)], ids=str)
def test_the_number_of_threads_changes_no_class_but_at_ties(size: tuple[int, int]) -> None:
    predictor, image = TorchPredictor(tiny_network()), _image(*size)
    scores = {}
    for count in (1, 2):
        set_threads(count)
        assert torch.get_num_threads() == count
        scores[count] = predictor.scores(image)
        assert scores[count].tobytes() == predictor.scores(image).tobytes(), (
            "the same number of threads gives the same bytes"
        )
    # oneDNN splits the sums of 1x1 convolutions among threads, so other counts round otherwise
    assert np.allclose(scores[1], scores[2], rtol=0, atol=1e-5 * np.abs(scores[1]).max())
    low, high = np.partition(scores[1], -2, axis=0)[-2:]
    clear = high - low >= 1e-4
    assert clear.mean() > 0.99
    assert (scores[1].argmax(axis=0) == scores[2].argmax(axis=0))[clear].all()


def test_devices_that_are_there() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda:0", "mps")
    assert describe_device("cpu") == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize("wanted", ["banana", "", "cuda:-1", "cuda:x", "cuda:99999999999999999999"])
def test_devices_nobody_knows(wanted: str) -> None:
    with pytest.raises(OptionError, match=f"--device {wanted}: not a device; give auto, cpu, cuda") as caught:
        choose_device(wanted)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("wanted", ["meta", "xpu"])
def test_devices_that_are_not_supported(wanted: str) -> None:
    with pytest.raises(OptionError, match=f"--device {wanted}: not supported"):
        choose_device(wanted)


@pytest.mark.parametrize("wanted", ["cuda:99", "cuda:128", "cuda:256"])  # torch takes the last two for -128 and 0
def test_gpus_that_are_not_there(wanted: str) -> None:
    shown = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(OptionError, match=f"--device {wanted}: this machine shows {shown} CUDA devices"):
        choose_device(wanted)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_no_apple_gpu() -> None:
    with pytest.raises(OptionError, match="--device mps: no Apple GPU here"):
        choose_device("mps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
def test_cuda_equals_the_cpu_but_at_ties(upsampling: str) -> None:
    architecture = tiny_architecture(upsampling=upsampling)
    image = _image(403, 500)
    scores = TorchPredictor(tiny_network(architecture)).scores(image)
    on_gpu = TorchPredictor(tiny_network(architecture), choose_device("cuda"))
    low, high = np.partition(scores, -2, axis=0)[-2:]
    clear = high - low >= 1e-2  # cuDNN may use TF32, with 10 bits of mantissa
    assert clear.mean() > 0.95
    assert np.array_equal(on_gpu.channels(image, WHOLE)[clear], scores.argmax(axis=0)[clear])
    assert describe_device("cuda:0") == torch.cuda.get_device_name(0)
