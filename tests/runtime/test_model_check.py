"""What the check itself refuses, before any engine: the reasons, and that honest networks pass."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import UserError
from runtime.model_check import check_content
from runtime.onnx_file import read_onnx
from tests.conftest import ROOT
from tests.hostile import generate

REASONS = {
    "external_passwd.onnx": "lies in another file",
    "custom_operator.onnx": "'evil::Backdoor' is not one",
    "sub_graph.onnx": "a graph of its own",
    "functions.onnx": "defines functions",
    "doubling.onnx": "elements of every pixel",
    "resize_bomb.onnx": "Resize would make",
    "fill_bomb.onnx": "ConstantOfShape would make",
    "range_bomb.onnx": "Range would make",
    "pad_bomb.onnx": "Pad would make",
    "too_many_nodes.onnx": "more than 20,000",
    "million_fields.onnx": "more than 400,000 fields",
    "constant_lies.onnx": "claims 1,099,511,627,776 elements",
    "constant_short.onnx": "claims 3 elements and holds 4 bytes",
    "constant_text.onnx": "unusual type",
    "fixed_huge_input.onnx": "impossible size",
    "cycle.onnx": "which nothing before it computes",
    "cut.onnx": "in the middle of",
    "two_graphs.onnx": "more than one graph",
}
ENGINE_OR_FILE = {"empty.onnx", "lies_about_scale.onnx"}
"""Refused elsewhere: an empty file before it is read, and lies about the scale when the first tile comes out."""


@pytest.fixture(scope="module")
def hostile() -> dict[str, bytes]:
    return dict(generate._models())


def test_all_hostile_models_are_refused_without_an_engine(hostile: dict[str, bytes]) -> None:
    for name in sorted(set(hostile) - ENGINE_OR_FILE):
        if not name.startswith("says_"):  # statements about itself are judged when the engine is described
            with pytest.raises(UserError):
                check_content(hostile[name], name)


@pytest.mark.parametrize("name", sorted(REASONS))
def test_the_reason_is_said(hostile: dict[str, bytes], name: str) -> None:
    with pytest.raises(UserError, match=REASONS[name]):
        check_content(hostile[name], name)


@pytest.mark.parametrize("path", sorted((ROOT / "runtime/models").glob("*.onnx")), ids=lambda path: path.stem)
def test_the_reader_sees_what_onnx_sees(path: Path) -> None:
    content = path.read_bytes()
    ours, theirs = check_content(content, "shipped"), onnx.load_model_from_string(content)
    assert [(node.op, node.inputs, node.outputs) for node in ours.nodes] == [
        (node.op_type, tuple(node.input), tuple(node.output)) for node in theirs.graph.node
    ]
    assert {name: tensor.shape for name, tensor in ours.constants.items()} == {
        tensor.name: tuple(tensor.dims) for tensor in theirs.graph.initializer
    }
    assert ours.metadata == {entry.key: entry.value for entry in theirs.metadata_props}
    assert ours.inputs[0].shape == (None, 3, None, None)


def test_integers_are_read_in_every_form() -> None:
    values = (0, -1, 5, 2**40, -(2**63))
    for raw in (True, False):
        tensor = helper.make_tensor(
            "t", TensorProto.INT64, [5], np.array(values, "<i8").tobytes() if raw else values, raw
        )
        graph = helper.make_graph(
            [helper.make_node("Identity", ["t"], ["y"])],
            "g",
            [],
            [helper.make_tensor_value_info("y", 7, [5])],
            [tensor],
        )
        assert read_onnx(helper.make_model(graph).SerializeToString()).constants["t"].values() == values


def test_a_network_that_enlarges_as_networks_do_passes() -> None:
    weight = numpy_helper.from_array(np.zeros((64, 3, 3, 3), np.float32), "w")
    scales = numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "s")
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["r"]), helper.make_node("Conv", ["r", "w"], ["y"])]
    check_content(generate._model(nodes, [weight, scales]).SerializeToString(), "upsampled")
