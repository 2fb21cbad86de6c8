"""Exact tiles: the network is cut at its global means, and tiles then give the pixels of the whole picture."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.engines.contract import CuttableEngine
from runtime.engines.opening import open_engine
from runtime.errors import UserError
from runtime.global_means import take_apart
from runtime.images import Picture
from runtime.onnx_file import read_onnx
from runtime.tiles import cores, plan_tiles
from runtime.upscale import upscale
from tests.conftest import ROOT

MODELS = ROOT / "runtime/models"


@pytest.mark.parametrize("name", ["gmin_x4", "gmin_x4_int8", "gmin_x4_int8_cpu", "gmin_x4_int8_openvino"])
def test_every_shipped_file_is_cut_into_valid_graphs(name: str) -> None:
    graphs = take_apart(read_onnx((MODELS / f"{name}.onnx").read_bytes()))
    assert graphs.radii == (1, 16, 31, 46, 61, 76, 91)
    assert graphs.radius == 118, "the exporter's own figure, found again from the convolutions"
    assert len(graphs.stages[0]) < len(graphs.stages[-1]) < len(graphs.network)
    for content in (*graphs.stages, graphs.network):
        onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)


@pytest.mark.parametrize(
    ("engine", "levels"),
    [
        (f"ort:{MODELS / 'gmin_x4.onnx'}", 1),
        (f"openvino:{MODELS / 'gmin_x4.onnx'}", 1),
        (f"ort:{MODELS / 'gmin_x4_int8_cpu.onnx'}", 1),
    ],
)
def test_exact_tiles_give_the_whole_picture(engine: str, levels: int, photo: np.ndarray) -> None:
    """Two halves of unlike brightness: local means would be far from the global ones."""
    strip = photo[100:110, 20:304].copy()
    strip[:, 142:] //= 4
    opened = open_engine(engine, threads=2)
    assert isinstance(opened, CuttableEngine)
    done: list[tuple[int, int]] = []
    whole = upscale(opened, Picture(strip), tile=0)
    exact = upscale(opened, Picture(strip), tile=32, tiling="exact", progress=lambda *now: done.append(now))
    fast = upscale(opened, Picture(strip), tile=32)
    assert exact.exact
    assert exact.tiles > 1
    assert done[-1][0] == done[-1][1] > exact.tiles, "the passes for the means are counted too"
    differences = [
        np.abs(result.picture.colour.astype(int) - whole.picture.colour.astype(int)) for result in (exact, fast)
    ]
    assert differences[0].max() <= levels
    assert differences[1].mean() > differences[0].mean(), "or this picture does not show what exactness is about"
    assert not fast.exact


def test_a_picture_that_fits_into_one_exact_tile_is_not_cut(photo: np.ndarray) -> None:
    result = upscale(open_engine("ort:gmin_x4"), Picture(photo[:20, :30]), tile=16, tiling="exact")
    assert (result.tiles, result.exact, result.seconds.means) == (1, True, 0)


def test_cores_partition() -> None:
    tiling = plan_tiles(100, 333, tile=(40, 64), overlap=20)
    for starts, size, length in ((tiling.rows, tiling.height, 100), (tiling.columns, tiling.width, 333)):
        parts = cores(starts, size)
        assert [x for part in parts for x in range(*part)] == list(range(length))
        for start, (first, end) in zip(starts, parts, strict=True):
            assert first == 0 or first - start >= 10
            assert end == length or start + size - end >= 10


def network(path: Path, *nodes: onnx.NodeProto) -> Path:
    """x (N, 3, H, W) through ``nodes`` to y; a weight ``w`` of 3×3×3×3."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "H", "W"]) for name in "xy"]
    weights = [numpy_helper.from_array(np.full((3, 3, 3, 3), 0.01, np.float32), "w")]
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([helper.make_node("ReduceMax", ["x"], ["m"], axes=[2, 3]), helper.make_node("Add", ["x", "m"], ["y"])],
         "has a ReduceMax as well"),
        ([helper.make_node("ReduceMean", ["x"], ["m"], axes=[3]), helper.make_node("Add", ["x", "m"], ["y"])],
         "has a ReduceMean as well"),
        ([helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])], "has a Conv as well"),
        ([helper.make_node("Conv", ["x", "w"], ["y"])], "keep height and width"),
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused(tmp_path: Path, nodes: list[onnx.NodeProto], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        take_apart(read_onnx(network(tmp_path / "x.onnx", *nodes).read_bytes()))


def test_means_of_old_opsets_are_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1, 2]),
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Add", ["x", "m"], ["s"]),
        helper.make_node("Sub", ["s", "p"], ["y"]),
    ]
    path = network(tmp_path / "means.onnx", *nodes)
    assert take_apart(read_onnx(path.read_bytes())).means == ("m", "p")
    picture = Picture(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    engine = open_engine(f"ort:{path}")
    engine.info = engine.info.__class__(**{**engine.info.__dict__, "receptive_radius": 0})
    whole, exact = upscale(engine, picture, tile=0), upscale(engine, picture, tile=32, tiling="exact")
    assert exact.tiles == 9
    assert np.abs(exact.picture.colour.astype(int) - whole.picture.colour.astype(int)).max() <= 1
