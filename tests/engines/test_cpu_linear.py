"""Linear layers over packed weights, against torch, at every level of this CPU that has them."""

from collections.abc import Iterator

import pytest
import torch

from engines.torch.cpu import library
from engines.torch.cpu.linear import PackedLinear, PackedWeight, can_pack

LEVELS = [level.name for level in library.LEVELS if level.needs <= library.cpu_flags()]
SHAPES = [(1, 32), (33, 64), (48, 96), (100, 160), (256, 1056)]
NO_KERNELS = "no compiler, or a CPU without kernels for linear layers"


@pytest.fixture(params=[name for name in LEVELS if name in ("amx", "avx512")])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PENSTOCK_CPU_LEVEL", request.param)
    library.library.cache_clear()
    if not can_pack(32, int8=False):
        pytest.skip(NO_KERNELS)
    yield request.param
    library.library.cache_clear()


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = weight.float().abs().amax(1) / 127
    return (weight.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def w8a8(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    x = x.float()
    greatest = x.abs().amax(1, keepdim=True)
    inverse = torch.where(greatest == 0, 0, torch.full_like(greatest, 127) / greatest)
    rounded = (x * inverse).round().double()
    return (rounded @ values.double().T).float() * (greatest / 127) * scales


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_bfloat16_products_are_close_to_exact_ones(level: str, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, inputs).bfloat16(), torch.randn(37, inputs).bfloat16()
    bias = torch.randn(outputs)
    exact = x.double() @ weight.double().T + bias
    got = PackedWeight(weight, bias=bias).linear(x).double()
    assert (got - exact).abs().max() <= 2**-8 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [*SHAPES, (40, 50)])
def test_int8_products_are_exact(level: str, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    values, scales = quantized(torch.randn(outputs, inputs))
    x = torch.randn(37, inputs).to(dtype)
    x[3] = 0
    assert torch.equal(PackedWeight(values, scales).linear(x), w8a8(x, values, scales).to(dtype))


@pytest.mark.parametrize("int8", [False, True])
def test_a_row_has_the_same_bits_alone_and_in_any_crowd(level: str, int8: bool) -> None:
    torch.manual_seed(2)
    weight = torch.randn(100, 192).bfloat16()
    packed = PackedWeight(*quantized(weight)) if int8 else PackedWeight(weight)
    crowd = torch.randn(70, 192).bfloat16()
    together = packed.linear(crowd)
    for count in (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65):
        assert torch.equal(packed.linear(crowd[5 : 5 + count]), together[5 : 5 + count])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_breaks_no_other(level: str, int8: bool, bad: float) -> None:
    torch.manual_seed(3)
    weight = torch.randn(64, 128).bfloat16()
    packed = PackedWeight(*quantized(weight)) if int8 else PackedWeight(weight)
    x = torch.randn(20, 128).bfloat16()
    sound = packed.linear(x)
    x[7, 3] = bad
    broken = packed.linear(x)
    assert not torch.isfinite(broken[7]).any()
    others = [row for row in range(20) if row != 7]
    assert torch.equal(broken[others], sound[others])


def test_rows_are_read_as_an_embedding_reads_them(level: str) -> None:
    torch.manual_seed(4)
    weight, ids = torch.randn(70, 96).bfloat16(), torch.randint(0, 70, (3, 5))
    values, scales = quantized(weight)
    assert torch.equal(PackedWeight(weight).rows(ids, torch.bfloat16), weight[ids])
    assert torch.equal(
        PackedWeight(values, scales).rows(ids, torch.float32), values[ids].float() * scales[ids][..., None]
    )
    with pytest.raises(IndexError, match="outside"):
        PackedWeight(weight).rows(torch.tensor([70]), torch.bfloat16)


def test_levels_agree_to_the_bit_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    values, scales = quantized(torch.randn(64, 256))
    x, results = torch.randn(9, 256), []
    for name in ("amx", "avx512"):
        if name in LEVELS:
            monkeypatch.setenv("PENSTOCK_CPU_LEVEL", name)
            library.library.cache_clear()
            if can_pack(256, int8=True):
                results.append(PackedLinear(PackedWeight(values, scales))(x))
    library.library.cache_clear()
    if len(results) < 2:
        pytest.skip(NO_KERNELS)
    assert torch.equal(*results)


def test_leading_dimensions_are_kept(level: str) -> None:
    layer = PackedLinear(PackedWeight(torch.randn(10, 32).bfloat16()))
    assert layer(torch.randn(2, 3, 32).bfloat16()).shape == (2, 3, 10)
