import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving

from sparsetrain.kernels import value_code
from sparsetrain.kernels.value_code import CorruptCode

NAMES = ("bf16", "int8", "int4")
ENCODE = {name: getattr(value_code, f"encode_{name}") for name in NAMES}
DECODE = {name: getattr(value_code, f"decode_{name}") for name in NAMES}
BYTES = {"bf16": lambda count: 2 * count, "int8": value_code.int8_bytes, "int4": value_code.int4_bytes}
LARGEST = torch.finfo(torch.float32).max


def values(count: int, kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, generator=generator)
    scales = torch.exp(torch.randn(count, generator=generator) * 10).clamp(1e-30, 1e30)
    return {
        "normal": drawn,
        "spread": drawn * scales,
        "zeros": torch.where(drawn > 0, 0.0, -0.0),
        "denormal": drawn * 1e-40,
        "around the quiet limit": drawn * 1e-30,
        "halves": (drawn * 8).round() / 2,
        "largest": torch.where(drawn > 0, LARGEST, -LARGEST),
    }[kind]


KINDS = ("normal", "spread", "zeros", "denormal", "around the quiet limit", "halves", "largest")


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.integers(0, 700), st.integers(0, 50_000)), st.sampled_from(KINDS), st.integers(0, 2**31))
@pytest.mark.parametrize("name", NAMES)
def test_versions_write_the_same_bytes_and_read_the_same_values(libraries, name, count, kind, seed):
    drawn = values(count, kind, seed)
    with serving(None):
        wanted = ENCODE[name](drawn)
        read = DECODE[name](wanted, count)
    assert wanted.numel() == BYTES[name](count) and bool(torch.isfinite(read).all())
    for version, library in libraries.items():
        with serving(library):
            assert torch.equal(ENCODE[name](drawn), wanted), version
            assert torch.equal(DECODE[name](wanted, count).view(torch.int32), read.view(torch.int32)), version


def test_bf16_is_torchs_own_but_never_infinite(libraries):
    drawn = torch.cat([values(4000, kind, 7) for kind in KINDS])
    nearest = drawn.to(torch.bfloat16)
    nearest[nearest.isinf()] = torch.finfo(torch.bfloat16).max * nearest[nearest.isinf()].sign()
    for library in (None, *libraries.values()):
        with serving(library):
            assert torch.equal(value_code.encode_bf16(drawn), nearest.view(torch.uint8))


@pytest.mark.parametrize("broken", [float("inf"), float("-inf"), float("nan")])
def test_plain_values_that_are_not_finite_are_refused(libraries, broken):
    drawn = values(1000, "spread", 3)
    drawn[517] = broken
    bf16, fp32 = drawn.to(torch.bfloat16).view(torch.uint8), drawn.view(torch.uint8)
    for library in (None, *libraries.values()):
        with serving(library):
            with pytest.raises(CorruptCode):
                value_code.decode_bf16(bf16, 1000)
            with pytest.raises(CorruptCode):
                value_code.decode_fp32(fp32, 1000)
            assert torch.equal(
                value_code.decode_fp32(values(1000, "spread", 3).view(torch.uint8), 1000), values(1000, "spread", 3)
            )


def test_int8_is_the_nearest_of_255_multiples():
    drawn = values(5000, "normal", 1)
    read = value_code.decode_int8(value_code.encode_int8(drawn), 5000)
    steps = torch.nn.functional.pad(drawn.abs(), (0, 5120 - 5000)).view(-1, 256).amax(1).div(127)
    assert bool(((read - drawn).abs() <= 0.5001 * steps.repeat_interleave(256)[:5000]).all())
    assert float((read - drawn).norm() / drawn.norm()) < 0.008


def test_int8_rounds_half_to_even():
    drawn = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert value_code.decode_int8(value_code.encode_int8(drawn), 6).tolist() == [127.0, 0.0, 2.0, 2.0, 0.0, -2.0]


def test_int4_is_the_nearest_of_eight_levels_and_keeps_the_sign():
    drawn = values(6400, "normal", 2)
    read = value_code.decode_int4(value_code.encode_int4(drawn), 6400)
    rows, found = drawn.abs().view(-1, 64).double(), read.abs().view(-1, 64).double()
    scale = found.amax(1, keepdim=True)
    assert bool((scale >= rows.amax(1, keepdim=True)).all()) and bool(
        (scale <= rows.amax(1, keepdim=True) * 1.008).all()
    )
    levels = scale[:, :, None] * torch.tensor([2.0 ** (-j / 2) for j in range(8)], dtype=torch.float64)
    best = (levels - rows[:, :, None]).abs().amin(2)
    assert bool(((found - rows).abs() <= best + 1e-6 * scale).all())
    assert torch.equal(read.signbit(), drawn.signbit())


@pytest.mark.parametrize(("name", "spoil"), [("int8", 3), ("int4", 1)])
def test_scales_that_no_encoder_writes_are_refused(libraries, name, spoil):
    data = ENCODE[name](torch.ones(300))
    for byte in (0x7F, 0xFF, 0x80):
        broken = data.clone()
        broken[spoil], broken[spoil - 1] = byte, 0xC0  # infinity, not-a-number or a sign
        for library in (None, *libraries.values()):
            with serving(library), pytest.raises(CorruptCode):
                DECODE[name](broken, 300)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 700), st.integers(0, 2**32), st.integers(-3, 3))
@pytest.mark.parametrize("name", NAMES)
def test_random_bytes_are_refused_or_finite(libraries, name, count, seed, off):
    size = max(0, BYTES[name](count) + off * (seed % 3 == 0))
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))
    if seed % 2:
        data = (data.int() % 64).to(torch.uint8)  # scales that may be legal
    answers = []
    for library in (None, *libraries.values()):
        with serving(library):
            try:
                read = DECODE[name](data, count)
            except CorruptCode:
                answers.append(None)
                continue
            assert read.numel() == count and bool(torch.isfinite(read).all()) and size == BYTES[name](count)
            answers.append(read.tolist())
    assert all(answer == answers[0] for answer in answers)


def test_wrong_arguments_are_refused():
    for name in NAMES:
        with pytest.raises(ValueError, match="fp32"):
            ENCODE[name](torch.ones(3).double())
        with pytest.raises(ValueError, match="uint8"):
            DECODE[name](torch.ones(3), 3)
        with pytest.raises(CorruptCode):
            DECODE[name](torch.zeros(5, dtype=torch.uint8), -1)
