"""The library: what arrays it takes, that threads may share it, and that importing it costs nothing."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime import Upscaler
from runtime.errors import UserError
from tests.conftest import ROOT

MODEL = f"ort:{ROOT / 'runtime/models/gmin_x4.onnx'}"


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(MODEL, threads=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(10, 12, 3), (10, 12, 4), (10, 12)])
def test_arrays_keep_their_kind(upscaler: Upscaler, shape: tuple[int, ...], dtype: type) -> None:
    picture = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    before = picture.copy()
    result = upscaler.upscale(picture)
    assert (result.shape, result.dtype) == ((40, 48, *shape[2:]), dtype)
    assert upscaler.scale == 4
    assert result.flags.c_contiguous
    assert result.flags.writeable
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((4,), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused(upscaler: Upscaler, picture: np.ndarray) -> None:
    with pytest.raises(UserError, match="picture"):
        upscaler.upscale(picture)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_threads_share_one_object(backend: str, photo: np.ndarray) -> None:
    """Unlike pictures of unlike sizes at once, each against its own result from one thread."""
    pictures = [np.ascontiguousarray(photo[i * 7 : i * 7 + 12 + i % 3, i * 11 : i * 11 + 14]) for i in range(12)]
    with Upscaler(f"{backend}:{ROOT / 'runtime/models/gmin_x4.onnx'}", threads=1) as shared:
        expected = [shared.upscale(picture) for picture in pictures]
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(shared.upscale, pictures * 2))
    for result, wanted in zip(results, expected * 2, strict=True):
        assert np.abs(result.astype(int) - wanted.astype(int)).max() <= 1


def test_closing_while_threads_work_ends_cleanly() -> None:
    shared = Upscaler(MODEL, threads=1)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(shared.upscale, np.zeros((16, 16, 3), np.uint8)) for _ in range(12)]
        shared.close()
    for future in waiting:
        error = future.exception()
        assert error is None or "closed" in str(error)
    shared.close()
    with pytest.raises(UserError, match="closed"):
        shared.upscale(np.zeros((4, 4, 3), np.uint8))


def test_it_says_what_it_chose() -> None:
    with Upscaler(MODEL) as opened:
        assert opened.info.scale == 4
        assert "only one" in opened.chosen


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, runtime; assert 'numpy' not in sys.modules; runtime.Upscaler; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
    import runtime

    with pytest.raises(AttributeError):
        runtime.nothing  # noqa: B018
