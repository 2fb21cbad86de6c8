"""The Triton kernels against PyTorch's convolutions, on an NVIDIA GPU."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
nn = torch.nn
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]


def depthwise(channels: int, kernel: int, dilation: int):
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels).cuda()


def through(module, x, gradient):
    """Result, and gradients of input, weight and bias, in float64."""
    x = x.detach().requires_grad_()
    result = module(x)
    result.backward(gradient)
    assert x.grad is not None
    return [result.detach().double(), x.grad.double(), *(p.grad.double() for p in module.parameters())]


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(("channels", "kernel", "dilation"), [(128, 3, 1), (64, 5, 1), (24, 5, 2), (32, 7, 3)])
def test_same_result_and_gradients(channels, kernel, dilation, precision, tolerance) -> None:
    from training.depthwise_gpu import GpuDepthwise

    conv = depthwise(channels, kernel, dilation)
    wide = torch.randn(2, channels + 8, 37, 51, device="cuda").contiguous(memory_format=torch.channels_last)
    for x in (wide[:, :channels].contiguous(memory_format=torch.channels_last), wide[:, 8:]):
        gradient = torch.randn(x.shape, device="cuda")
        conv.zero_grad()
        with torch.backends.cudnn.flags(enabled=False):
            expected = through(copy.deepcopy(conv).double(), x.double(), gradient.double())
        found = through(GpuDepthwise(conv), x.to(precision), gradient.to(precision))
        for one, other in zip(expected, found, strict=True):
            assert float((one - other).norm() / one.norm()) < tolerance


def test_a_step_gives_the_same_bits_every_time() -> None:
    from training.depthwise_gpu import GpuDepthwise

    conv = depthwise(64, 7, 1)
    x = torch.randn(8, 64, 48, 48, device="cuda").contiguous(memory_format=torch.channels_last)
    first, second = (through(copy.deepcopy(GpuDepthwise(conv)), x, torch.ones_like(x)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_recorded_step_learns_what_one_kernel_after_the_other_does(tmp_path) -> None:
    from training.loop import Run
    from training.options import TrainingOptions
    from training.processes import Process
    from training.train import build

    weights = []
    for recorded in (False, True):
        options = TrainingOptions(tmp_path, gpu_kernels="triton", gpu_graph=recorded, optimizer="muon", batch=2)
        run = Run(build(options, "cuda")[0], options, Process(device="cuda"))
        torch.manual_seed(1)
        for _ in range(8):
            run.learn(torch.rand(2, 3, 24, 24), torch.rand(2, 3, 96, 96), None)
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    assert torch.allclose(*weights, rtol=1e-4, atol=1e-6)
