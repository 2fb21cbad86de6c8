"""The networks that GMIN is compared with: equal to the official ones, foldable, exportable at any size."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from model import bsrn, hnct, lkdn, smfanet
from model.blocks import PooledAttention
from model.checkpoint import load_checkpoint
from model.efdn import Efdn
from model.folding import can_fold, fold
from model.registry import create, describe, names
from model.rescaling import rescale_lkdn
from model.rlfn import Rlfn
from runtime.errors import UserError

FAMILIES = ("lkdn", "bsrn", "hnct", "rlfn", "efdn", "smfanet", "smfanet_plus")
COMPARATORS = [name for name in names() if name.rpartition("_x")[0] in FAMILIES]
PARAMETERS = {
    "lkdn_x2": 303_812,
    "lkdn_x3": 311_387,
    "lkdn_x4": 321_992,
    "bsrn_x2": 331_628,
    "bsrn_x3": 340_283,
    "bsrn_x4": 352_400,
    "hnct_x2": 356_612,
    "hnct_x3": 363_377,
    "hnct_x4": 372_848,
    "rlfn_x4": 543_740,
    "efdn_x4": 276_192,
    "smfanet_x4": 197_328,
    "smfanet_plus_x4": 495_888,
}


class Golden(NamedTuple):
    """Where the official network's answer is, and how far from it rounding may lead."""

    network: str
    file: str
    suffix: str
    output: str
    tolerance: float


GOLDEN = [
    Golden("lkdn_x4", "lkdn_x4.npz", "", "output", 2e-5),
    Golden("bsrn_x4", "bsrn_x4.npz", "", "output", 2e-5),
    *(Golden("hnct_x4", "hnct_x4_randominit.npz", s, "output", 2e-6) for s in ("", "2")),
    *(Golden("rlfn_x4", "rlfn_x4.npz", s, "output", 2e-5) for s in ("", "2")),
    *(Golden("efdn_x4", "efdn_x4.npz", s, "output_unclamped", 2e-4) for s in ("", "2")),
    *(Golden("smfanet_x4", "smfanet_x4.npz", s, "output", 1e-5) for s in ("", "2")),
    *(Golden("smfanet_plus_x4", "smfanet_plus_x4.npz", s, "output", 1e-5) for s in ("", "2")),
]

# Every kind of operation that the whole network has, in a few seconds of export.
SHALLOW = {
    "lkdn": lambda: lkdn.Lkdn(blocks=2),
    "bsrn": lambda: bsrn.Bsrn(blocks=2),
    "hnct": lambda: hnct.Hnct(blocks=1),
    "rlfn": lambda: Rlfn(blocks=2),
    "efdn": Efdn,
    "smfanet": lambda: smfanet.Smfanet(blocks=2),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: threads that wait for each other on a busy machine take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shallow(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = SHALLOW[family]().eval()
    for module in model.modules():
        if isinstance(module, smfanet.FeatureAggregation):
            nn.init.normal_(module.belt)  # starts at 0, which would hide the variance
    return model


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def photograph(data: Path, index: int) -> torch.Tensor:
    import cv2

    path = sorted((data / "calibration" / "DIV2K_LR_bicubic_X4").glob("*.png"))[index]
    rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255


# ---- equal to the official networks


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.network + golden.suffix)
def test_output_is_the_official_one(golden: Golden, gmin_data: Path) -> None:
    model = create(golden.network)
    if golden.network == "hnct_x4":
        weights = np.load(gmin_data / "golden" / "hnct_x4_randominit_weights.npz")
        state = {**dict(model.named_buffers()), **{key: torch.from_numpy(weights[key]) for key in weights.files}}
        model.load_state_dict(state, strict=True)
    else:
        load_checkpoint(model, gmin_data / "weights" / str(describe(golden.network).weights))
    vectors = np.load(gmin_data / "golden" / golden.file)
    with torch.inference_mode():
        output = model(torch.from_numpy(vectors["input" + golden.suffix])).numpy()
    np.testing.assert_allclose(output, vectors[golden.output + golden.suffix], rtol=0, atol=golden.tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_is_the_official_one(family: str, gmin_data: Path) -> None:
    lines = (gmin_data / "golden" / f"{family}_x4_keys.txt").read_text().splitlines()
    official = [tuple(line.split("\t")[:2]) for line in lines if line and not line.startswith("#")]
    ours = [(key, str(tuple(value.shape))) for key, value in create(f"{family}_x4").state_dict().items()]
    assert ours == official


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert sum(parameter.numel() for parameter in create(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [n for n in COMPARATORS if describe(n).weights and not n.startswith("hnct")])
def test_released_file_loads_strictly(name: str, gmin_data: Path) -> None:
    model = create(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_checkpoint(model, gmin_data / "weights" / str(describe(name).weights))
    assert not any(torch.equal(before[key], value) for key, value in model.state_dict().items() if value.dim() == 4)


def test_file_of_another_scale_is_refused(gmin_data: Path) -> None:
    with pytest.raises(UserError, match=r"upsampler\.0\.weight is \(27, 56, 3, 3\), not \(48, 56, 3, 3\)"):
        load_checkpoint(create("lkdn_x4"), gmin_data / "weights" / "lkdn_x3.pth")


def test_hnct_takes_a_bare_state_dict_and_nothing_less(tmp_path: Path) -> None:
    state = create("hnct_x4").state_dict()
    torch.save(state, tmp_path / "hnct_x4.pt")
    loaded = load_checkpoint(create("hnct_x4"), tmp_path / "hnct_x4.pt")
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())

    del state["B2.swinT.transformer_body.0.blocks.1.attn_mask"]
    torch.save(state, tmp_path / "incomplete.pt")
    with pytest.raises(UserError, match=r"missing: B2\.swinT\.transformer_body\.0\.blocks\.1\.attn_mask"):
        load_checkpoint(create("hnct_x4"), tmp_path / "incomplete.pt")


# ---- what the descriptors say


@pytest.mark.parametrize("name", COMPARATORS)
def test_smallest_size_is_the_described_one(name: str) -> None:
    network = describe(name)
    least, scale = network.minimum_size, network.scale
    model = create(name)
    with torch.inference_mode():
        assert model(pixels(1, 3, least, least)).shape == (1, 3, scale * least, scale * least)
        if least == 1:
            return
        for height, width in ((least - 1, least + 9), (least + 9, least - 1)):
            with pytest.raises((RuntimeError, IndexError)):
                model(pixels(1, 3, height, width))


@pytest.mark.parametrize("family", FAMILIES)
def test_receptive_radius_is_the_described_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the radius leaves out by its definition: the branches that see the whole image.
    monkeypatch.setattr(PooledAttention, "forward", lambda self, x: x)
    monkeypatch.setattr(bsrn.ContrastAttention, "forward", lambda self, x: x)
    monkeypatch.setattr(smfanet, "nearest_to", lambda x, length, dim: x.new_ones(()))
    torch.manual_seed(0)
    network = describe(f"{family}_x4")
    model = create(network.name).double()  # the gradient of the outermost pixel underflows in float32
    height = 2 * network.receptive_radius + 40
    image = pixels(1, 3, height, network.minimum_size).double().requires_grad_()
    output = model(image)
    found = 0
    for row in range(height // 2, height // 2 + (8 if family == "hnct" else 1)):  # within a window of HNCT
        rows = output[:, :, 4 * row : 4 * row + 4].sum()
        (gradient,) = torch.autograd.grad(rows, image, retain_graph=True)
        reached = gradient.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
        found = max(found, row - int(reached[0]), int(reached[-1]) - row)
    assert found == network.receptive_radius


# ---- the forms that export, against PyTorch's own


def test_pixel_norm_is_layer_norm_over_channels() -> None:
    norm = lkdn.PixelNorm(56)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 * pixels(2, 56, 5, 7) - 1
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (56,), norm.weight, norm.bias, 1e-5).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=5e-6)


def test_channel_statistics_are_mean_and_population_deviation() -> None:
    attention = bsrn.ContrastAttention(64).eval()
    x = pixels(2, 64, 9, 11)
    statistics = x.mean((2, 3), keepdim=True) + x.std((2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(attention(x), x * attention.conv_du(statistics), rtol=0, atol=1e-6)


def test_channel_attention_trains_on_a_constant_channel() -> None:
    attention = bsrn.ContrastAttention(64).train()
    x = torch.full((1, 64, 9, 11), 0.5, requires_grad=True)
    attention(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("length", [15, 16, 17, 23, 24, 37, 61])
def test_window_padding_reflects(length: int) -> None:
    x = pixels(1, 2, 16, length)
    expected = F.pad(x, (0, -length % 8, 0, 0), mode="reflect")
    assert torch.equal(hnct.pad_to_windows(x, 3), expected)


def test_windows_and_roll_are_undone() -> None:
    x = pixels(2, 16, 24, 5)
    assert torch.equal(hnct.from_windows(hnct.to_windows(x, 2, 3), 2, 3), x)
    assert torch.equal(hnct.to_windows(x, 2, 3)[1, 4].view(8, 8, 5), x[1, 8:16, 8:16])
    for shift in (4, -4):
        assert torch.equal(hnct.roll(x, shift), x.roll((-shift, -shift), dims=(1, 2)))


def test_shift_mask_hides_what_only_the_roll_brought_together() -> None:
    height, width = 16, 24
    place = torch.arange(height * width).view(1, height, width, 1)
    windows = hnct.to_windows(hnct.roll(place, 4), 2, 3)[0, :, :, 0]  # original place of each token
    row, column = windows // width, windows % width
    together = ((row[:, :, None] - row[:, None]).abs() < 8) & ((column[:, :, None] - column[:, None]).abs() < 8)
    expected = torch.where(together, 0.0, -100.0)
    assert torch.equal(hnct.shift_mask(height, width), expected)


@pytest.mark.parametrize("length", [*range(8, 70), 171, 180, 270, 285, 480])
def test_pool_and_nearest_are_torchs_at_uneven_sizes(length: int) -> None:
    x = pixels(1, 2, length, 3)
    pooled = smfanet.pool_to_eighth(x, 2)
    assert torch.equal(pooled, F.adaptive_max_pool2d(x, (length // 8, 3)))
    assert torch.equal(smfanet.nearest_to(pooled, length, 2), F.interpolate(pooled, size=(length, 3), mode="nearest"))


def test_frame_variance_is_unbiased() -> None:
    x = pixels(2, 3, 8, 9)
    torch.testing.assert_close(smfanet.frame_variance(x), x.var((2, 3), keepdim=True), rtol=1e-5, atol=0)


# ---- folding and rescaling


@pytest.mark.parametrize(("family", "saved"), [("lkdn", 504), ("bsrn", 576), ("rlfn", 0)])
def test_folded_network_gives_the_same(family: str, saved: int) -> None:
    model = shallow(family)
    state = copy.deepcopy(model.state_dict())
    folded = fold(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in folded.parameters()) == saved
    assert (folded.pixel_range if isinstance(folded, Rlfn) else folded.copies) == 1
    x = pixels(2, 3, 19, 22)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), model(x), rtol=0, atol=2e-6)
        torch.testing.assert_close(fold(folded)(x), model(x), rtol=0, atol=2e-6)


def test_networks_without_folding_say_so() -> None:
    model = Efdn()
    assert not can_fold(model)
    with pytest.raises(ValueError, match="Efdn"):
        fold(model)


def overflowing_lkdn() -> lkdn.Lkdn:
    """Like the released weights: an attention product far beyond float16, hidden by pixel norm."""
    torch.manual_seed(0)
    model = lkdn.Lkdn(blocks=2).eval()
    for module in model.modules():
        if isinstance(module, lkdn.Block):
            nn.init.normal_(module.atten.pointwise.weight, std=300)
            nn.init.normal_(module.c6.weight, std=1e4)
    return model


def test_rescaling_changes_no_bit_and_fits_float16() -> None:
    model = overflowing_lkdn()
    images = [pixels(1, 3, 20, 24), pixels(1, 3, 31, 17)]
    rescaled = rescale_lkdn(model, iter(images))
    other = pixels(2, 3, 33, 29)
    with torch.inference_mode():
        assert torch.equal(rescaled(other), model(other))
        assert not bool(model.half()(other.half()).isfinite().all())
        in_half = rescaled.half()(other.half()).float()
        torch.testing.assert_close(in_half, overflowing_lkdn()(other), rtol=0, atol=1e-2)


def test_rescaling_needs_usable_images() -> None:
    model = overflowing_lkdn()
    with pytest.raises(ValueError, match="at least one calibration image"):
        rescale_lkdn(model, [])
    with pytest.raises(ValueError, match="not finite"):
        rescale_lkdn(model, [torch.full((1, 3, 8, 8), float("nan"))])


@pytest.mark.parametrize("name", ["lkdn_x2", "lkdn_x4"])
def test_released_lkdn_survives_float16_once_rescaled(name: str, gmin_data: Path) -> None:
    model = create(name)
    load_checkpoint(model, gmin_data / "weights" / str(describe(name).weights))
    assert isinstance(model, lkdn.Lkdn)
    rescaled = rescale_lkdn(model, [photograph(gmin_data, 0), photograph(gmin_data, 1)])
    image = photograph(gmin_data, 2)[:, :, :32, :32]  # float16 is slow on a CPU
    with torch.inference_mode():
        expected = model(image)
        assert torch.equal(rescaled(image), expected)
        in_half = rescaled.half()(image.half()).float()
        assert float((in_half - expected).abs().max()) < 2e-2
        assert float((in_half - expected).square().mean().sqrt()) < 1e-3
        assert not bool(model.half()(image.half()).isfinite().all())


# ---- export


def assert_exports_at_any_size(model: nn.Module, path: Path) -> None:
    dynamic = {axis: torch.export.Dim(name) for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    torch.onnx.export(
        model,
        (pixels(1, 3, 48, 64),),  # multiples of 8: where a traced branch or a frozen size would hide
        path,
        dynamo=True,
        opset_version=20,
        dynamic_shapes=(dynamic,),
        input_names=["input"],
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    graph = onnx.load(path).graph
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 3, "4*height", "4*width"]]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for n, height, width in ((1, 48, 64), (2, 37, 51), (1, 45, 61), (1, 23, 100), (1, 16, 16)):
        image = pixels(n, 3, height, width)
        with torch.inference_mode():
            expected = model(image).numpy()
        (output,) = session.run(None, {"input": image.numpy()})
        np.testing.assert_allclose(output, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", SHALLOW)
def test_exported_graph_takes_any_size(family: str, tmp_path: Path) -> None:
    assert_exports_at_any_size(shallow(family), tmp_path / f"{family}.onnx")


@pytest.mark.parametrize("family", ["lkdn", "rlfn"])
def test_folded_graph_takes_any_size(family: str, tmp_path: Path) -> None:
    assert_exports_at_any_size(fold(shallow(family)), tmp_path / f"{family}.onnx")
