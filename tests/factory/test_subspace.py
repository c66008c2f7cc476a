"""The linear map that MoReS adds, and the orthonormal rows it rests on."""

from __future__ import annotations

import pytest
import torch

from factory.steer.subspace import orthonormal, steered_by


@pytest.mark.parametrize("r, D", [(1, 40), (4, 40), (8, 2560), (5, 5)])
def test_rows_are_those_of_gram_and_schmidt(r, D):
    A = torch.randn(r, D, generator=torch.Generator().manual_seed(r)) * 7
    expected = []
    for row in A.double():
        for other in expected:
            row = row - (row @ other) * other
        expected.append(row / row.norm())
    R = orthonormal(A)
    assert torch.allclose(R.double(), torch.stack(expected), atol=1e-5)
    assert (R @ R.T - torch.eye(r)).abs().max() < 1e-5


def test_rows_do_not_depend_on_the_length_of_what_they_come_from():
    A = torch.randn(3, 30)
    assert torch.allclose(orthonormal(A), orthonormal(A * torch.tensor([[1e-6], [5.0], [1e4]])), atol=1e-5)


def test_steered_is_the_papers_equation():
    h, R, W, b = torch.randn(5, 12), orthonormal(torch.randn(2, 12)), torch.randn(2, 12), torch.randn(2)
    W_up, W_down = R.T, R
    for i in range(5):
        phi = W @ h[i] + b - W_down @ h[i]
        assert torch.allclose(steered_by(h, R, W, b)[i], W_up @ phi, atol=1e-5)
    assert torch.equal(steered_by(h, R, R, torch.zeros(2)), torch.zeros(5, 12))
