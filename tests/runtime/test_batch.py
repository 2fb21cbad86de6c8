"""Three steps that overlap, in order, with bounded waiting; and engines that do not remember."""

import threading
import time

import numpy as np
import pytest

from runtime.batch import WRITERS, expected_shape, overlapped
from runtime.engines.opening import open_engine
from runtime.folder import Job, Plan
from runtime.steps import Options


def test_steps_overlap_and_results_keep_their_order() -> None:
    started = time.perf_counter()
    step = 0.03

    def work(value: object) -> object:
        time.sleep(step)
        return value

    results = list(overlapped(range(10), work, work, lambda job, value: work(value)))
    assert results == [(i, i) for i in range(10)]
    assert time.perf_counter() - started < 10 * step * 2.2, "three steps one after the other would take 10 · 3 steps"


def test_an_error_of_a_step_is_the_result_of_its_picture_alone() -> None:
    def fail_at(bad: int, value: int) -> int:
        if value == bad:
            raise ValueError(str(bad))
        return value

    results = dict(overlapped(range(6), lambda j: fail_at(1, j), lambda v: fail_at(3, v), lambda j, v: fail_at(4, v)))
    assert {job for job, result in results.items() if isinstance(result, ValueError)} == {1, 3, 4}
    assert [results[job] for job in (0, 2, 5)] == [0, 2, 5]


def test_few_pictures_are_ever_held() -> None:
    held, most, lock = 0, 0, threading.Lock()

    def read(job: int) -> int:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return job

    def write(job: int, value: int) -> int:
        nonlocal held
        time.sleep(0.002)
        with lock:
            held -= 1
        return value

    assert len(list(overlapped(range(60), read, lambda v: v, write))) == 60
    assert most <= 3 + WRITERS + 3


def test_a_run_that_is_left_ends_its_threads() -> None:
    before = threading.active_count()
    run = overlapped(range(1000), lambda j: j, lambda v: v, lambda j, v: v)
    assert next(run) == (0, 0)
    run.close()
    assert threading.active_count() == before


def test_the_expected_shape_is_a_fact_of_the_folder(tmp_path: object) -> None:
    from pathlib import Path

    from PIL import Image

    folder = Path(str(tmp_path))
    jobs = []
    for i, size in enumerate([(40, 30), (700, 600), (40, 30), (9, 9)]):
        path = folder / f"{i}.png"
        Image.new("RGB", size).save(path)
        jobs.append(Job(path, path, path.name, path.name))
    assert expected_shape(Plan(folder, tuple(jobs)), Options(), 16) == (1, 3, 256, 256)
    assert expected_shape(Plan(folder, tuple(jobs)), Options(tile=0), 16) == (1, 3, 30, 40)
    assert expected_shape(Plan(folder, tuple(jobs[:2])), Options(tile=0), 16) is None


@pytest.mark.parametrize("spec", ["openvino-bf16:gmin_x4", "ort:gmin_x4"])
def test_a_picture_gives_the_same_bits_whatever_came_before(spec: str) -> None:
    """OpenVINO's network of one size differs from that of any size in the last bits: it must not depend on history."""
    from runtime.engines.contract import ShapedEngine

    a, b = (np.random.default_rng(0).random((1, 3, 24, width), dtype=np.float32) for width in (32, 40))

    def answers(order: list[np.ndarray], expected: tuple[int, ...]) -> dict[int, np.ndarray]:
        engine = open_engine(spec)
        if isinstance(engine, ShapedEngine):
            engine.expect(expected)
        return {batch.shape[3]: engine.infer(batch) for batch in order}

    for expected in (a.shape, (1, 3, 64, 64)):
        first, second = answers([a, a, b, b, a], expected), answers([b, a], expected)
        assert all(np.array_equal(first[width], second[width]) for width in (32, 40))
