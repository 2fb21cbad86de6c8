"""The counts are the published ones, whichever way they are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, save
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.complexity import complexity, count_macs
from benchmarks.onnx_cost import onnx_cost
from benchmarks.protocol import Size, size_from_text
from runtime.errors import UserError
from tests.conftest import ROOT, Script

GMACS = {
    "gmin_x4": (300_992, 17.0095),
    "lkdn_x4": (321_992, 18.2246),
    "bsrn_x4": (352_400, 19.1772),
    "hnct_x4": (372_848, 21.6238),
    "rlfn_x4": (543_740, 29.8215),
    "efdn_x4": (276_192, 14.6688),
    "smfanet_x4": (197_328, 10.3690),
    "smfanet_plus_x4": (495_888, 26.1811),
}


@pytest.mark.parametrize(("name", "expected"), GMACS.items())
def test_registered_networks(name: str, expected: tuple[int, float]) -> None:
    counted = complexity(name)
    assert counted.parameters == expected[0]
    assert counted.macs / 1e9 == pytest.approx(expected[1], abs=1e-4)
    assert counted.flops == 2 * counted.macs
    assert (counted.input, counted.output) == ("320x180", "1280x720")


def test_hnct_without_attention_products() -> None:
    counted = complexity("hnct_x4")
    assert counted.macs_without_attention / 1e9 == pytest.approx(18.609, abs=1e-3)


def test_folded_gmin_is_counted_alike_in_pytorch_and_in_every_shipped_file() -> None:
    small = Size(64, 36)
    torch_count = complexity("gmin_x4", given=small, folded=True)
    assert torch_count.folded
    assert torch_count.parameters == 271_872
    for path in sorted((ROOT / "runtime/models").glob("gmin_x4*.onnx")):
        counted = complexity(str(path), given=small)
        assert (counted.parameters, counted.macs) == (torch_count.parameters, torch_count.macs), path.name


def test_a_network_without_anything_to_fold_is_not_called_folded() -> None:
    assert not complexity("smfanet_x4", folded=True).folded


def test_ntire_input() -> None:
    counted = complexity("gmin_x4", given=Size(256, 256))
    assert (counted.input, counted.output) == ("256x256", "1024x1024")
    assert counted.macs == complexity("gmin_x4").macs * 256 * 256 // (320 * 180)


def test_attention_of_torch_is_counted_and_told_apart() -> None:
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None]  # (1, 1, HW, 3)
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    counted = count_macs(Attention(), Size(4, 2))
    assert counted.attention == counted.all == 2 * 8 * 8 * 3


def graph(nodes: list, constants: dict[str, np.ndarray], output: list) -> ModelProto:
    shape = ["n", 3, "h", "w"]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def test_every_counted_kind_of_node(tmp_path: Path) -> None:
    floats = np.ones
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["b"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("ConvTranspose", ["b", "c"], ["d"], strides=[2, 2]),
        helper.make_node("MatMul", ["d", "d"], ["e"]),
        helper.make_node("Reshape", ["e", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "bias"], ["y"]),
    ]
    constants = {
        "a": floats((4, 3, 3, 3), np.float32),
        "c": floats((4, 2, 2, 2), np.float32),
        "flat": np.array([-1, 8], np.int64),
        "g": floats((8, 5), np.float32),
        "bias": floats(5, np.float32),
    }
    save(graph(nodes, constants, ["m", 5]), tmp_path / "m.onnx")
    counted = onnx_cost(tmp_path / "m.onnx", Size(8, 8))
    convolution = 4 * 4 * 4 * 27
    transposed = 4 * 4 * 4 * 2 * 2 * 2
    product = 2 * 8 * 8 * 8
    assert counted.macs == convolution + transposed + product + 16 * 5 * 8
    assert counted.attention_macs == product
    assert counted.parameters == 108 + 32 + 40 + 5


def test_a_node_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Einsum", ["x", "x"], ["y"], equation="nchw,nchw->nchw")]
    save(graph(nodes, {}, ["n", 3, "h", "w"]), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="Einsum"):
        onnx_cost(tmp_path / "m.onnx", Size(8, 8))


@pytest.mark.parametrize("text", ["320", "0x180", "320x-1", "axb", "1280x720x3", ""])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="width x height"):
        size_from_text(text)


def test_script(script: Script) -> None:
    done = script("benchmarks/complexity.py", "gmin_x4", "lkdn_x4", "--json", "-")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["schema"] == 1
    assert [(r["engine"], r["parameters"]) for r in content["results"]] == [("gmin_x4", 300_992), ("lkdn_x4", 321_992)]
    assert "18.225 G" in done.stderr


def test_mistakes(script: Script) -> None:
    for spec, message in {"gmin_x5": "gmin_x5", "bicubic": "no ONNX file", "nothing.onnx": "no model at"}.items():
        with pytest.raises(UserError, match=message):
            complexity(spec)
    with pytest.raises(UserError, match="no input smaller than 15 pixels, and not 8x8"):
        complexity("bsrn_x4", given=Size(8, 8))
    done = script("benchmarks/complexity.py", "gmin_x4", "--input", "256x256", "--output", "640x360")
    assert done.returncode == 2
    assert "name one" in done.stderr
    assert "Traceback" not in done.stderr
