from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparsetrain.engine import matmul


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_fast_products_are_kept_only_if_exact() -> None:
    lines: list[str] = []
    matmul.prefer_fast_matmul(lines.append)
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    exact = left.double() @ right.double()
    assert float(((left @ right).double() - exact).norm() / exact.norm()) < matmul.MATMUL_ERROR
    assert (torch.get_float32_matmul_precision() == "medium") == (not lines)


def test_inexact_products_are_switched_off_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "MATMUL_ERROR", 0.0)
    lines: list[str] = []
    matmul.prefer_fast_matmul(lines.append)
    assert torch.get_float32_matmul_precision() == "highest"
    assert len(lines) == 1
