"""The CUDA kernels, run on the CPU by the emulator: the text that nvcc compiles, but not the machine it is for.

They are held to the C++ back end where both compute in float32, and to the reference in float64 where pixels at a
threshold must be left out (see test_backends_agree.py). Barriers are shown to be needed by leaving each one out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from emulated import ORDERS, Emulator, library, operators
from exercise import WORK, blended, crowded
from torch import Tensor
from views import CASES, NEAR, Case, agreeing_pixels, assert_close, doubles, masked_upstream, random_case, random_like

from panbench.ops import reference
from panbench.ops.backend import load_cpu
from panbench.ops.build import compiler
from panbench.ops.cuda import Library, Operators
from panbench.ops.project import KIND_CODE, Kind

KINDS: list[Kind] = ["ellipsoid", "disc"]
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def cuda() -> Operators:
    load_cpu()
    return operators()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    emulator = Emulator()
    emulator.configure()
    yield emulator
    emulator.configure()


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def view_arguments(case: Case, kind: Kind) -> tuple[object, ...]:
    camera = case.camera
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, KIND_CODE[kind], NEAR, 0.3)
    return (*case.parameters, camera.world_to_camera, *numbers)


# ------------------------------------------------------------------------------------------ against the C++ back end


@pytest.mark.parametrize("kind", KINDS)
def test_projection_and_tile_lists_are_those_of_the_cpu(cuda: Operators, case: Case, kind: Kind) -> None:
    cpu = torch.ops.panbench
    arguments = view_arguments(case, kind)
    expected, found = cpu.project(*arguments), cuda.project(*arguments)
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1].double(), 1e-6, "geometry", dim=0)
    assert_close(found[2], expected[2].double(), 1e-6, "normals")
    upstream = [random_like(t, seed) for seed, t in enumerate(expected[1:])]
    for mine, theirs in zip(
        cuda.project_backward(*arguments, expected[0], *upstream),
        cpu.project_backward(*arguments, expected[0], *upstream),
        strict=True,
    ):
        assert_close(mine, theirs.double(), 1e-6, "gradient")
    size = (expected[1], case.width, case.height, KIND_CODE[kind])
    for mine, theirs in zip(cuda.bin(*size), cpu.bin(*size), strict=True):
        assert torch.equal(mine, theirs)


def check_blending(cuda: Operators, case: Case, kind: Kind, channels: int, detached: int, tolerance: float) -> None:
    """Against the reference in float64, on the CUDA tile lists.

    The emulated kernels are compiled without fused multiply-add, so that the geometry gradients of badly conditioned
    discs lose a digit more than those of the CPU kernels do.
    """
    geometry = torch.ops.panbench.project(*view_arguments(case, kind))[1]
    features = torch.rand(len(geometry), channels, generator=torch.Generator().manual_seed(21))
    size = (case.width, case.height)
    lists = cuda.bin(geometry, *size, KIND_CODE[kind])
    settings = (geometry, features, *lists, *size, KIND_CODE[kind], detached, NEAR)
    found = cuda.blend(*settings)
    exact = doubles([geometry, features])
    expected = reference.blend(*exact, *lists, *size, kind=kind, detached=detached, near=NEAR)
    if tolerance > 1e-4:
        assert_close(found[0], expected[0].detach(), tolerance, "image")
        agree = torch.ones(case.height, case.width, dtype=torch.bool)
    else:
        agree = agreeing_pixels(list(found), list(expected))
    upstream = masked_upstream(list(found), agree)
    mine = cuda.blend_backward(*settings, *upstream)
    theirs = torch.autograd.grad(list(expected), exact, [u.double() for u in upstream])
    assert_close(mine[0], theirs[0], max(1e-3, tolerance), "gradient of geometry", dim=0)
    assert_close(mine[1], theirs[1], tolerance, "gradient of features")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [5, 20])
def test_blended_pictures_agree(cuda: Operators, case: Case, kind: Kind, channels: int) -> None:
    check_blending(cuda, case, kind, channels, detached=2, tolerance=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("channels", "detached"),
    [(1, 0), (1, 1), (3, 0), (8, 8), (9, 0), (17, 4), (32, 0), (33, 33), (64, 20), (65, 1), (130, 127), (260, 3)],
)
def test_any_number_of_channels_agrees(cuda: Operators, kind: Kind, channels: int, detached: int) -> None:
    check_blending(cuda, random_case(150, 41, 29, seed=14), kind, channels, detached, tolerance=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "detached"), [(9, 0), (17, 4), (64, 64), (130, 97)])
def test_tensor_cores_agree_to_tf32(cuda: Operators, kind: Kind, channels: int, detached: int) -> None:
    """Factors keep ten bits of mantissa, so products are off by up to 1e-3, and sums that cancel by more."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check_blending(cuda, random_case(150, 41, 29, seed=14), kind, channels, detached, tolerance=5e-3)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(
    ("rows", "queries", "dim"),
    [(300, 5, 3), (1, 1, 1), (0, 4, 8), (50, 16, 32), (65, 33, 33), (130, 120, 32), (20, 7, 70)],
)
def test_attention_agrees(cuda: Operators, rows: int, queries: int, dim: int, logarithm: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, dim), (rows, 3), (queries, dim), (queries, 3), (queries, 3, 3))
    inputs = [torch.randn(size, generator=generator) for size in sizes]
    cpu = torch.ops.panbench
    expected = cpu.attend(*inputs, logarithm)
    assert_close(cuda.attend(*inputs, logarithm), expected.double(), 3e-6, "attention")
    grad = random_like(expected, 1)
    for mine, theirs in zip(
        cuda.attend_backward(*inputs, logarithm, grad), cpu.attend_backward(*inputs, logarithm, grad), strict=True
    ):
        assert_close(mine, theirs.double(), 2e-5, "gradient")


def test_attention_of_saturated_and_distant_pairs_is_finite(cuda: Operators) -> None:
    inputs = [
        torch.tensor([[90.0], [-90.0], [0.0], [30.0]]),
        torch.tensor([[0.0, 0, 0], [0, 0, 0], [60.0, 0, 0], [0, 3.0, 0]]),
        torch.tensor([[1.0], [-1.0]]),
        torch.zeros(2, 3),
        torch.eye(3).repeat(2, 1, 1),
    ]
    cpu = torch.ops.panbench
    for logarithm in (False, True):
        expected = cpu.attend(*inputs, logarithm)
        assert_close(cuda.attend(*inputs, logarithm), expected.double(), 1e-6, "attention")
        grad = torch.ones(4, 2)
        for mine, theirs in zip(
            cuda.attend_backward(*inputs, logarithm, grad), cpu.attend_backward(*inputs, logarithm, grad), strict=True
        ):
            assert_close(mine, theirs.double(), 1e-6, "gradient")


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 40, 3), (40, 1, 3), (7, 5, 1), (33, 47, 2), (32, 16, 3)])
def test_ssim_agrees(cuda: Operators, size: tuple[int, int, int]) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(1))
    y = (x + 0.1 * random_like(x, 2)).clamp(0, 1)
    (value, grad), (expected, expected_grad) = cuda.ssim(x, y), torch.ops.panbench.ssim(x, y)
    assert value.item() == pytest.approx(expected.item(), abs=2e-6)
    assert_close(grad, expected_grad.double(), 1e-4, "gradient")


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("count", [0, 1, 60])
def test_spherical_harmonics_agree(cuda: Operators, degree: int, count: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    inputs = [torch.randn(80, *shape, generator=generator) for shape in [(3,), (15, 3), (3,)]]
    ids = torch.randperm(80, generator=generator)[:count].sort().values
    arguments = (*inputs, torch.tensor([3.0, -2.0, 4.0]), ids, degree)
    cpu = torch.ops.panbench
    expected = cpu.spherical_harmonics(*arguments)
    assert_close(cuda.spherical_harmonics(*arguments), expected.double(), 1e-6, "colours")
    grad = random_like(expected, 1)
    for mine, theirs in zip(
        cuda.spherical_harmonics_backward(*arguments, grad),
        cpu.spherical_harmonics_backward(*arguments, grad),
        strict=True,
    ):
        assert_close(mine, theirs.double(), 1e-6, "gradient")


def mask_arguments(
    height: int, width: int, classes: int, queries: int, pairs: int, labelled: float = 0.8
) -> tuple[object, ...]:
    g = torch.Generator().manual_seed(pairs)
    channels = torch.rand(height, width, classes + queries, generator=g)
    channels[torch.rand(channels.shape, generator=g) < 0.1] = 0.0
    semantic = torch.randint(1, classes + 1, (height, width), generator=g)
    semantic[torch.rand(height, width, generator=g) > labelled] = 0
    pair = torch.randint(-1, max(pairs, 1), (height, width), generator=g) if pairs else torch.full((height, width), -1)
    columns = classes + torch.randperm(queries, generator=g)[:pairs]
    return channels, semantic, pair, columns, torch.rand(height, width, generator=g), 1e-4


@pytest.mark.parametrize(
    "size",
    [
        (23, 31, 5, 9, 4),
        (23, 31, 5, 40, 40),
        (9, 9, 4, 3, 0),
        (9, 9, 4, 0, 0),
        (1, 1, 3, 3, 2, 2.0),
        (8, 9, 3, 3, 2, -1.0),
    ],
    ids=str,
)
def test_mask_losses_agree(cuda: Operators, size: tuple[int, int, int, int, int]) -> None:
    arguments = mask_arguments(*size)
    cpu = torch.ops.panbench
    (losses, sums), (expected, expected_sums) = cuda.mask_losses(*arguments), cpu.mask_losses(*arguments)
    torch.testing.assert_close(losses, expected, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-6)
    upstream = torch.tensor([1.0, 0.7, -1.3])
    torch.testing.assert_close(
        cuda.mask_losses_backward(*arguments, expected_sums, upstream),
        cpu.mask_losses_backward(*arguments, expected_sums, upstream),
        rtol=2e-5,
        atol=1e-7,
    )


def test_labels_without_a_channel_make_the_losses_nan(cuda: Operators) -> None:
    channels, semantic, pair, columns, weight, epsilon = mask_arguments(9, 9, 4, 5, 3)
    beyond = semantic.clone()
    beyond[0, 0] = 10
    assert cuda.mask_losses(channels, beyond, pair, columns, weight, epsilon)[0][0].isnan()
    assert cuda.mask_losses(channels, semantic, pair, columns + 99, weight, epsilon)[0][1].isnan()


# ------------------------------------------------------------------------------------------------ fibers and barriers


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs.double(), 1e-5, "output")


@pytest.mark.parametrize("name", WORK)
def test_the_order_of_threads_does_not_matter(cuda: Operators, emulator: Emulator, name: str) -> None:
    expected = WORK[name](cuda)
    for order in ORDERS.values():
        emulator.configure(order)
        assert_same(WORK[name](cuda), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_the_same_to_the_bit_in_any_order_of_threads(
    cuda: Operators, emulator: Emulator, kind: Kind
) -> None:
    pictures = []
    for order in ORDERS.values():
        emulator.configure(order)
        pictures.append(blended(cuda, crowded(), KIND_CODE[kind], 20)[:4])
    for other in pictures[1:]:
        assert all(torch.equal(a, b) for a, b in zip(pictures[0], other, strict=True))


def harm(cuda: Operators, emulator: Emulator, name: str, barrier: str, expected: tuple[Tensor, ...]) -> bool:
    """Whether some order of the threads gives another result, or hangs them, without this barrier."""
    for order in ORDERS.values():
        emulator.configure(order, removed=barrier)
        try:
            assert_same(WORK[name](cuda), expected)
        except (AssertionError, RuntimeError):
            return True
    return False


def test_every_barrier_is_needed(cuda: Operators, emulator: Emulator) -> None:
    """Each one for at least one kind of work."""
    needed: dict[str, bool] = {}
    for name, work in WORK.items():
        emulator.configure()
        expected = work(cuda)
        for barrier in emulator.met():
            needed[barrier] = needed.get(barrier, False) or harm(cuda, emulator, name, barrier, expected)
    assert len(needed) > 15
    assert [barrier for barrier, harmful in needed.items() if not harmful] == []


# ------------------------------------------------------------------------------------------------------ stray accesses


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), *(p for p in sys.path if p)]),
    }
    command = [sys.executable, str(SUPPORT / "exercise.py"), str(library(sanitize=True)), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_no_kernel_reads_or_writes_beyond_its_arrays() -> None:
    answer = run_sanitized()
    assert answer.returncode == 0, answer.stderr[-3000:]


def test_a_write_beyond_an_array_would_be_seen() -> None:
    answer = run_sanitized("--overrun")
    assert answer.returncode != 0
    assert "heap-buffer-overflow" in answer.stderr
    assert "ssim.cu" in answer.stderr


# ------------------------------------------------------------------------------------------------------- Python's part


REGISTRATION = """
import torch
from emulated import operators
from panbench.ops.backend import load_cpu
from panbench.ops.cuda import OPERATORS, register

load_cpu()
register(operators())
assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"panbench::{name}", "CUDA") for name in OPERATORS)
"""


def test_every_operator_can_be_a_kernel_for_cuda_tensors() -> None:
    """What a machine with a GPU does after compiling; in a process of its own, which has no CUDA tensors."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SUPPORT), *(p for p in sys.path if p)])}
    subprocess.run([sys.executable, "-c", REGISTRATION], env=environment, check=True)


def test_wrong_arguments_are_told(cuda: Operators) -> None:
    geometry, features = torch.rand(4, 7), torch.rand(4, 3)
    lists = torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"tensor \[4, 13\] on cpu, got torch\.float32 \[4, 7\]"):
        cuda.blend(geometry, features, *lists, 16, 16, 1, 0, NEAR)
    with pytest.raises(RuntimeError, match="not contiguous"):
        cuda.blend(geometry, torch.rand(3, 4).T, *lists, 16, 16, 0, 0, NEAR)
    with pytest.raises(RuntimeError, match=r"expected a contiguous torch\.float32"):
        cuda.blend(geometry, features.double(), *lists, 16, 16, 0, 0, NEAR)
    with pytest.raises(RuntimeError, match="4 detached channels of 3"):
        cuda.blend(geometry, features, *lists, 16, 16, 0, 4, NEAR)


def test_a_failed_launch_is_an_error_with_cudas_message(tmp_path: Path) -> None:
    source, header, path = tmp_path / "fails.cpp", tmp_path / "api.h", tmp_path / "fails.so"
    source.write_text(
        'extern "C" int pb_cuda_blend(const float*, int64_t n, float x, void*) { return n == 3 && x == 0.5f ? 35 : 0; }'
        "\n"
        'extern "C" const char* pb_cuda_error(int code) { return code == 35 ? "driver too old" : "?"; }\n'
    )
    header.write_text(
        "// One declaration (a comment).\nint pb_cuda_blend(const float* a, int64_t n,\n float x, void* stream);\n"
        "const char* pb_cuda_error(int code);\n"
    )
    subprocess.run([compiler()[0], "-include", "cstdint", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    made = Library(path, header, lambda _: nullcontext(0))
    device = torch.device("cpu")
    made.run("blend", device, torch.zeros(1), 4, 0.5)
    with pytest.raises(RuntimeError, match="panbench: CUDA operator blend failed: driver too old"):
        made.run("blend", device, torch.zeros(1), 3, 0.5)
