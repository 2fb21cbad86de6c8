"""What the check itself refuses, before any engine: the reasons, and that honest networks pass."""

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import UserError
from runtime.ir_check import check_ir, check_ir_content
from runtime.model_check import check_content
from runtime.onnx_file import read_onnx
from tests.conftest import ROOT, Script
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
    "fixed_large_input.onnx": "impossible size",
    "conv_pad_bomb.onnx": "Conv would make",
    "cycle.onnx": "which nothing before it computes",
    "cut.onnx": "in the middle of",
    "reads_nothing.onnx": "GlobalAveragePool reads nothing",
    "two_graphs.onnx": "more than one graph",
}
ENGINE_OR_FILE = {"empty.onnx", "lies_about_scale.onnx"}
"""Refused elsewhere: an empty file before it is read, and lies about the scale when the first tile comes out."""
IR_REASONS = {
    "billion_laughs.xml": "a document type",
    "external_entity.xml": "a document type",
    "instruction.xml": "a processing instruction",
    "utf16.xml": "no text in UTF-8",
    "nested.xml": "nested deeper",
    "million_elements.xml": "more than 400,000 elements",
    "old_version.xml": "with a newer ovc",
    "extension.xml": "'extension::Relu' is not one",
    "state.xml": "'opset6::ReadValue' is not one",
    "sub_graph.xml": "holds <body>",
    "own_notes.xml": "'__weights_path', which is for",
    "cache_note.xml": "'WeightlessCacheAttribute' about",
    "circle.xml": "in a circle",
    "reads_nothing.xml": "ReLU reads nothing",
    "typeless_input.xml": "unusual type",
    "nowhere.xml": "nothing leads to port 1",
    "no_weights.xml": "ends at byte 12 of a .bin of 0",
    "outside_weights.xml": "ends at byte 1,011 of a .bin of 99",
    "size_lies.xml": "claims 999,999,999 elements",
    "weight_elsewhere.xml": "not described by type, shape, offset and size",
    "text_weight.xml": "unusual type",
    "large_input.xml": "impossible size",
    "doubling.xml": "elements of every pixel",
    "conv_pads.xml": "MaxPool would make",
    "tile.xml": "Tile would make",
    "broadcast.xml": "Broadcast would make",
    "pad.xml": "Pad would make",
    "interpolate_sizes.xml": "Interpolate would make",
    "interpolate_scales.xml": "Interpolate would make",
    "range.xml": "Range would make",
}


@pytest.fixture(scope="module")
def hostile() -> dict[str, bytes]:
    return dict(generate._models())


@pytest.fixture(scope="module")
def hostile_ir() -> dict[str, bytes]:
    return dict(generate._ir_models())


@pytest.fixture(scope="module")
def shipped_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped networks as OpenVINO's own converter writes them: weights in 16 bits, and quantized."""
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO's converter")
    folder = tmp_path_factory.mktemp("ir")
    for name in ("gmin_x4", "gmin_x4_int8_openvino"):
        model = openvino.convert_model(ROOT / "runtime/models" / f"{name}.onnx")
        openvino.save_model(model, folder / f"{name}.xml")
    return folder


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


def test_a_size_is_seen_however_its_constant_is_written() -> None:
    node, scales, sizes = helper.make_node, [1.0, 1.0, 100.0, 100.0], [1, 3, 6000, 6000]
    resize = node("Resize", ["x", "", "s"], ["y"])
    made = [node("ConstantOfShape", ["s"], ["big"]), node("Add", ["x", "big"], ["y"])]
    twice = helper.make_tensor("s", TensorProto.INT64, [4], [1, 1, 1, 1])
    twice.raw_data = np.array(sizes, np.int64).tobytes()
    doubled = node("DepthToSpace", ["x"], ["y"], blocksize=1)
    doubled.attribute.append(helper.make_attribute("blocksize", 200))
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse = node("Constant", [], ["s"], sparse_value=helper.make_sparse_tensor(values, places, [100_000_000]))
    cases = [
        ([resize], [helper.make_tensor("s", TensorProto.FLOAT, [4], scales)], "Resize would make"),
        ([node("Constant", [], ["s"], value_floats=scales), resize], [], "Resize would make"),
        ([node("Upsample", ["x"], ["y"], scales=scales)], [], "Upsample would make"),
        ([node("Constant", [], ["s"], value_ints=sizes), *made], [], "ConstantOfShape would make"),
        (made, [twice], "holds its values twice"),
        ([doubled], [], "two attributes called 'blocksize'"),
        ([sparse, node("Add", ["x", "s"], ["y"])], [], "sparse constants"),
    ]
    for nodes, constants, message in cases:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "H", "W"]) for name in "xy"]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
        with pytest.raises(UserError, match=message):
            check_content(helper.make_model(graph).SerializeToString(), "a.onnx")


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


def test_all_hostile_ir_is_refused_without_an_engine(hostile_ir: dict[str, bytes]) -> None:
    for name in (name for name in hostile_ir if name.endswith(".xml")):
        with pytest.raises(UserError):
            check_ir_content(hostile_ir[name], hostile_ir.get(name.replace(".xml", ".bin"), b""), name)


@pytest.mark.parametrize("name", sorted(IR_REASONS))
def test_the_reason_for_ir_is_said(hostile_ir: dict[str, bytes], name: str) -> None:
    with pytest.raises(UserError, match=IR_REASONS[name]):
        check_ir_content(hostile_ir[name], hostile_ir.get(name.replace(".xml", ".bin"), b""), name)


@pytest.mark.parametrize("name", ["gmin_x4", "gmin_x4_int8_openvino"])
def test_what_the_converter_writes_passes_and_gives_the_same_pixels(shipped_ir: Path, name: str) -> None:
    import openvino

    from runtime.engines.openvino import OpenVinoEngine
    from runtime.engines.openvino_check import computes_rightly

    path = shipped_ir / f"{name}.xml"
    checked = check_ir(path)
    theirs = ElementTree.parse(path).getroot()
    ours = ElementTree.fromstring(checked.xml)
    assert [layer.attrib for layer in ours.iter("layer")] == [layer.attrib for layer in theirs.iter("layer")]
    assert [data.attrib for data in ours.iter("data")] == [data.attrib for data in theirs.iter("data")]
    assert [edge.attrib for edge in ours.iter("edge")] == [edge.attrib for edge in theirs.iter("edge")]
    if "int8" in name and not computes_rightly(signed=False):
        pytest.skip("OpenVINO's 8-bit sums overflow on this processor, so that the engine refuses the file")
    batch = np.random.default_rng(0).random((1, 3, 24, 20), dtype=np.float32)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    direct = openvino.Core().compile_model(path, "CPU", settings)(batch)[0]
    engine = OpenVinoEngine(path, threads=1)
    assert (engine.info.scale, engine.info.name) == (4, "gmin_x4"), "the notes about the network are kept"
    np.testing.assert_array_equal(engine.infer(batch), direct)


def test_scaled_integer_weights_keep_their_shape(tmp_path: Path) -> None:
    """As NNCF stores them. Taken for unknown, every convolution would keep the doubled channels of its input."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as op

    channels = 12
    source = op.parameter([1, channels, -1, -1], np.float32)
    value = source
    for _ in range(14):
        stored = op.convert(op.constant(np.ones((channels, 2 * channels, 1, 1), np.int8)), "f32")
        weights = op.multiply(stored, op.constant(np.full((channels, 1, 1, 1), 0.01, np.float32)))
        value = op.convolution(op.concat([value, value], 1), weights, [1, 1], [0, 0], [0, 0], [1, 1])
    openvino.save_model(openvino.Model([value], [source], "scaled"), tmp_path / "scaled.xml", compress_to_fp16=False)
    assert "Multiply" in (tmp_path / "scaled.xml").read_text()
    check_ir(tmp_path / "scaled.xml")


def test_names_with_signs_of_xml_survive(hostile_ir: dict[str, bytes]) -> None:
    named = generate._ir(("ReLU", {}, [0])).replace(b'name="n"', 'name="a&lt;b &amp; &quot;c&quot; &#10; ü"'.encode())
    checked = check_ir_content(named, b"", "named.xml")
    assert ElementTree.fromstring(checked.xml).get("name") == 'a<b & "c" \n ü'


def test_weights_beside_an_ir_are_a_file_of_bounded_size(shipped_ir: Path, tmp_path: Path) -> None:
    text = (shipped_ir / "gmin_x4.xml").read_bytes()
    path, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"of a \.bin of 0"):
        check_ir(path)
    weights.write_bytes((shipped_ir / "gmin_x4.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match="ends at byte"):
        check_ir(path)
    os.truncate(weights, (256 << 20) + 1)
    with pytest.raises(UserError, match="256 MB, more than 256"):
        check_ir(path)
    weights.unlink()
    os.mkfifo(weights)  # reading it would never end
    with pytest.raises(UserError, match=r"net\.bin are no file"):
        check_ir(path)
    os.truncate(path, (32 << 20) + 1)
    with pytest.raises(UserError, match="32 MB, more than 32"):
        check_ir(path)


def test_other_weights_are_another_model_to_a_folder_run(shipped_ir: Path, tmp_path: Path) -> None:
    from runtime.steps import Options, options_hash
    from tests.runtime.test_steps import Shift

    path, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    path.write_bytes((shipped_ir / "gmin_x4.xml").read_bytes())
    sums = set()
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        sums.add(options_hash(Options(), Shift(), path))
    assert len(sums) == 2


@pytest.mark.parametrize(
    "spec", ["ort:{0}.xml", "ort:{0}.ort", "openvino:{0}.tflite", "openvino:{0}.pdmodel", "openvino:{0}.pb"]
)
def test_files_that_cannot_be_checked_reach_no_engine(script: Script, tmp_path: Path, spec: str) -> None:
    """Libraries tell formats by their content or their name; a model under another name would go round the check."""
    named = spec.format(tmp_path / "model")
    Path(named.partition(":")[2]).write_bytes((ROOT / "runtime/models/gmin_x4.onnx").read_bytes())
    done = script("runtime/infer.py", ROOT / "data/chelsea.png", "--engine", named, "-o", tmp_path / "out.png")
    assert done.returncode == 2
    assert "is not loaded: expected .onnx" in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_the_command_takes_an_ir(script: Script, shipped_ir: Path, tmp_path: Path) -> None:
    photo = ROOT / "data/chelsea.png"
    path = shipped_ir / "gmin_x4.xml"
    whole = ("--engine", f"openvino:{path}", "--fit", "500x500", "--tile", "0")
    done = script("runtime/infer.py", photo, *whole, "-o", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    exact = script("runtime/infer.py", photo, "--engine", f"openvino:{path}", "--tiling", "exact", "--tile", "128",
                   "-o", tmp_path / "b.png")  # fmt: skip
    assert exact.returncode == 2
    assert "Traceback" not in exact.stderr
