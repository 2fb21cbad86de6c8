"""Checkpoints: what is read, what is refused, and that nothing inside them runs."""

import pickle
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint, read_state, recorded_name, save_checkpoint
from model.registry import create, describe
from runtime.errors import UserError


@pytest.fixture
def model() -> torch.nn.Module:
    return create("gmin_x2")


def test_round_trip(model: torch.nn.Module, tmp_path: Path) -> None:
    save_checkpoint(model.state_dict(), tmp_path / "a.safetensors", metadata={"model": "gmin_x2"})
    other = load_checkpoint(create("gmin_x2"), tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert recorded_name(tmp_path / "a.safetensors") == "gmin_x2"


@pytest.mark.parametrize("container", ["params_ema", "params", "state_dict", None])
def test_containers_of_trainers(model: torch.nn.Module, tmp_path: Path, container: str | None) -> None:
    state = model.state_dict()
    torch.save({container: state, "iter": 3} if container else state, tmp_path / "a.pth")
    if container:  # the entry that is not wanted must not be taken
        torch.save({"params": {"wrong": torch.zeros(1)}, "params_ema": state}, tmp_path / "b.pth")
        assert read_state(tmp_path / "b.pth").keys() == state.keys()
    assert read_state(tmp_path / "a.pth").keys() == state.keys()


def test_faults_are_named(model: torch.nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(3)
    del state["tail.bias"]
    save_checkpoint(state, tmp_path / "a.safetensors", metadata={})
    with pytest.raises(
        UserError, match=r"missing: tail\.bias.*unexpected: extra\.weight.*head\.bias is \(3,\), not \(64,\)"
    ):
        load_checkpoint(model, tmp_path / "a.safetensors")


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_code_inside_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    torch.save({"params": _Evil(trap)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Evil(trap)))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match="code, which is never run"):
            read_state(tmp_path / name)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "is empty"),
        ("a.safetensors", b"\xff" * 64, "not a readable safetensors"),
        ("a.safetensors", (10**12).to_bytes(8, "little") + b"{}", "not a readable safetensors"),
        ("a.pth", b"not a checkpoint", "damaged or contains code"),
        ("a.txt", b"text", "is no checkpoint"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state(tmp_path / name)


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not hold a state dict"):
        read_state(tmp_path / "a.pth")


def test_an_unknown_network_gets_a_hint() -> None:
    with pytest.raises(UserError, match="Did you mean gmin_x4"):
        describe("gmin_4x")
