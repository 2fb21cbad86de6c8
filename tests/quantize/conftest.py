"""A network small enough to be searched and tuned in seconds."""

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantize.patches import Patches, load_patches


@pytest.fixture
def tiny() -> ModelProto:
    """×4: 1×1 → depth-wise 3×3 (channels of very different range) → GELU → product → 1×1 → clip → 3×3 → shuffle."""
    draw = np.random.default_rng(0)
    spread = np.float32(10.0) ** np.linspace(-1.5, 1, 8, dtype=np.float32)[:, None, None, None]
    weights = {
        "w1": draw.normal(size=(8, 3, 1, 1)).astype(np.float32) * spread,
        "b1": draw.normal(size=8).astype(np.float32) * spread.ravel() / 4,
        "w2": draw.normal(size=(8, 1, 3, 3)).astype(np.float32) / spread / 3,
        "b2": draw.normal(size=8).astype(np.float32) / 4,
        "w3": draw.normal(size=(8, 8, 1, 1)).astype(np.float32) / 3,
        "b3": np.zeros(8, np.float32),
        "w4": draw.normal(size=(48, 8, 3, 3)).astype(np.float32) / 40,
        "b4": np.full(48, 0.5, np.float32),
        "low": np.float32(-8),
        "high": np.float32(8),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["t1"], "first"),
        helper.make_node("Conv", ["t1", "w2", "b2"], ["t2"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Gelu", ["t2"], ["t3"], "gelu"),
        helper.make_node("Mul", ["t3", "t2"], ["t4"], "product"),
        helper.make_node("Conv", ["t4", "w3", "b3"], ["t5"], "mix"),
        helper.make_node("Clip", ["t5", "low", "high"], ["t6"], "bound"),
        helper.make_node("Conv", ["t6", "w4", "b4"], ["t7"], "last", pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["t7"], ["output"], "shuffle", blocksize=4, mode="CRD"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, "sh", "sw"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        value_info=[helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, None) for i in range(1, 8)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured times of layers are kept for the user; those of the suite are kept for itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def few(patch_folder: Path) -> Patches:
    """The patches of the suite, split as the command splits them."""
    return load_patches(str(patch_folder), 4, 8)
