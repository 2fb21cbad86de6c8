"""The exported file: its shape, its metadata, its pixels."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.rewrite import split_by_weights
from export.to_onnx import export_onnx
from model.registry import create, describe
from tests.conftest import ROOT, Script

CKPT = ROOT / "model/weights/gmin_x4.safetensors"


def test_graph_and_metadata(fp32_onnx: Path) -> None:
    model = onnx.load(fp32_onnx)
    kinds = [node.op_type for node in model.graph.node]
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {20}
    assert "Gelu" in kinds
    assert "Split" in kinds, "the three-way split of GMIB stays"
    assert kinds.count("Split") == 7, "the two-way splits of EGSFN are computed apart"
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", 3, "height", "width"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert all(key.startswith("gmin.") for key in metadata)
    assert metadata["gmin.name"] == "gmin_x4"
    assert metadata["gmin.scale"] == "4"
    assert metadata["gmin.input"] == "NCHW float32 RGB in [0, 1]"
    assert str(ROOT) not in fp32_onnx.read_bytes().decode("latin1"), "no path of the exporting machine"


def test_command_prints_the_check_and_repeats_its_bytes(script: Script, tmp_path: Path) -> None:
    runs = [script("export/to_onnx.py", "--ckpt", CKPT, "-o", tmp_path / f"{i}.onnx") for i in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert "largest difference from PyTorch FP32" in runs[0].stdout
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


def test_folding_and_its_absence_agree(fp32_onnx: Path, tmp_path: Path) -> None:
    model = create("gmin_x4")
    from model.checkpoint import load_checkpoint

    result = export_onnx(load_checkpoint(model, CKPT), tmp_path / "whole.onnx", describe("gmin_x4"), fold=False)
    assert not result.folded
    assert len(onnx.load(fp32_onnx).graph.node) < result.nodes
    image = np.random.default_rng(0).random((1, 3, 21, 34), dtype=np.float32)
    a, b = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": image})[0]
        for path in (fp32_onnx, tmp_path / "whole.onnx")
    )
    assert np.abs(a - b).max() <= 1e-5


def test_fp16_keeps_float32_borders(fp16_onnx: Path) -> None:
    from export.to_onnx import difference_from_torch
    from model.checkpoint import load_checkpoint

    graph = onnx.load(fp16_onnx).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    weights = [t for t in graph.initializer if t.name.endswith("weight")]
    assert weights
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}
    differences = difference_from_torch(fp16_onnx.read_bytes(), load_checkpoint(create("gmin_x4"), CKPT))
    assert max(differences.values()) < 5e-3


def test_a_wrong_file_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numerical check is not for show: other weights in the file than in the network, and nothing is written."""
    import export.to_onnx as module

    real, (a, b) = module.onnx_from_model, (create("gmin_x2"), create("gmin_x2"))
    monkeypatch.setattr(module, "onnx_from_model", lambda model, network, *, precision: real(b, network))
    with pytest.raises(RuntimeError, match="differs from PyTorch"):
        export_onnx(a, tmp_path / "a.onnx", describe("gmin_x2"), fold=False)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_refused_in_one_sentence(script: Script, tmp_path: Path) -> None:
    from model.checkpoint import save_checkpoint

    state = create("gmin_x2").state_dict()
    state["head.weight"] = torch.full_like(state["head.weight"], torch.nan)
    save_checkpoint(state, tmp_path / "nan.safetensors", metadata={"model": "gmin_x2"})
    done = script("export/to_onnx.py", "--ckpt", tmp_path / "nan.safetensors", "-o", tmp_path / "a.onnx")
    assert done.returncode == 2
    assert "differs from PyTorch by nan" in done.stderr
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("name", ["gmin_l_x3", "gmin_mlka_x2", "gmin_glu_ffn_x4"])
def test_variants_export(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = export_onnx(create(name), tmp_path / "a.onnx", describe(name))
    assert max(result.max_abs_difference.values()) <= 1e-4


def test_splitting_by_weights_leaves_other_splits_alone() -> None:
    graph = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        g (float[N, 4, H, W] x) => (float[N, 2, H, W] a, float[N, 2, H, W] b) {
            y = Relu(x)
            a, b = Split <axis = 1, num_outputs = 2> (y)
        }""")
    assert split_by_weights(graph) == 0
    assert [node.op_type for node in graph.graph.node] == ["Relu", "Split"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "nowhere.safetensors", "-o", "a.onnx"], "There is no checkpoint at nowhere.safetensors"),
        (["--ckpt", CKPT, "-o", "a.txt"], "must end in .onnx"),
        (["--ckpt", CKPT, "-o", "/nowhere/a.onnx"], "the folder /nowhere does not exist"),
        (["--ckpt", CKPT, "-o", "a.onnx", "--model", "gmin_x3"], "does not fit this network"),
        (["--ckpt", CKPT, "-o", "a.onnx", "--model", "esrgan"], "No network is called 'esrgan'"),
    ],
)
def test_mistakes_end_with_one_sentence(script: Script, arguments: list[object], message: str) -> None:
    run = script("export/to_onnx.py", *arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert not (ROOT / "a.onnx").exists()
