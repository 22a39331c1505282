import math

import pytest
import torch
from torch import Tensor

from lorachord.families.covariance import DAMPING, Covariance, Exact, Sketch
from tests.reference import thanora


def rows(num_rows: int, spectrum: Tensor, seed: int = 0) -> Tensor:
    """Gaussian rows, float64, of a covariance with this spectrum in random directions."""
    generator = torch.Generator().manual_seed(seed)
    d_in = len(spectrum)
    basis = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)).Q
    return torch.randn(num_rows, d_in, generator=generator, dtype=torch.float64) * spectrum.sqrt() @ basis


def filled(covariance: Covariance, x: Tensor, *sizes: int) -> Covariance:
    for part in x.split(sizes or len(x)):
        covariance.add(part)
    return covariance


DECAYING = 2.0 ** -torch.arange(40, dtype=torch.float64)


@pytest.mark.parametrize("make", [lambda: Exact(40), lambda: Sketch(40, 12)])
def test_how_rows_are_split_does_not_matter(make: type[Covariance]) -> None:
    x = rows(100, DECAYING)
    weight = torch.randn(5, 40, dtype=torch.float64)
    whole, split = filled(make(), x), filled(make(), x, 1, 40, 59)
    assert whole.num_rows == split.num_rows == 100
    assert whole.entropy == pytest.approx(split.entropy, rel=1e-10)
    torch.testing.assert_close(whole.damped(weight), split.damped(weight), rtol=1e-10, atol=1e-10)


def test_exact_is_the_one_big_product() -> None:
    x, weight = rows(100, DECAYING), torch.randn(5, 40, dtype=torch.float64)
    exact = filled(Exact(40), x, 30, 70)
    matrix = x.T @ x / 100
    assert isinstance(exact, Exact)
    torch.testing.assert_close(exact.matrix(), matrix)
    assert exact.entropy == pytest.approx(float(thanora.spectral_entropy(x)), abs=1e-10)
    damping = DAMPING * matrix.trace() / 40 * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(exact.damped(weight), weight @ (matrix + damping))


@pytest.mark.parametrize("make", [lambda: Exact(24), lambda: Sketch(24, 6)])
def test_one_direction_has_entropy_0_and_all_alike_1(make: type[Covariance]) -> None:
    one = torch.outer(torch.randn(50, dtype=torch.float64), torch.randn(24, dtype=torch.float64))
    assert filled(make(), one).entropy == pytest.approx(0, abs=1e-4)
    alike = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    assert filled(make(), alike).entropy == pytest.approx(1, abs=1e-6)
    # Of fewer rows than features, as many directions as rows are all there can be.
    assert filled(make(), alike[:3]).entropy == pytest.approx(1, abs=1e-6)
    assert filled(make(), alike[:1]).entropy == pytest.approx(0, abs=1e-6)


def test_two_directions_have_the_entropy_of_their_shares() -> None:
    x = torch.zeros(4, 8, dtype=torch.float64)
    x[:3, 0], x[3, 1] = 1, 1
    expected = (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(4)
    assert filled(Exact(8), x).entropy == pytest.approx(expected)


def test_a_sketch_of_enough_directions_makes_no_error() -> None:
    spectrum = torch.cat([DECAYING[:6], torch.zeros(34, dtype=torch.float64)])
    x, weight = rows(100, spectrum), torch.randn(5, 40, dtype=torch.float64)
    exact, sketch = filled(Exact(40), x), filled(Sketch(40, 8), x)
    assert sketch.entropy == pytest.approx(exact.entropy, abs=1e-6)
    torch.testing.assert_close(sketch.damped(weight), exact.damped(weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.95, 1.0])
def test_a_sketch_overestimates_entropy_alone_and_keeps_the_trace(decay: float) -> None:
    x = rows(200, decay ** torch.arange(40, dtype=torch.float64))
    exact, sketch = filled(Exact(40), x), filled(Sketch(40, 12), x)
    assert -1e-9 < sketch.entropy - exact.entropy < 0.12
    torch.testing.assert_close(sketch.eigenvalues().sum(), exact.eigenvalues().sum())
    leading = sketch.eigenvalues().sort(descending=True).values[:12]
    assert bool((leading <= exact.eigenvalues().flip(0)[:12] * (1 + 1e-9)).all())


def test_a_sketch_of_a_decaying_spectrum_is_near() -> None:
    x, weight = rows(200, DECAYING), torch.randn(5, 40, dtype=torch.float64)
    exact, sketch = filled(Exact(40), x), filled(Sketch(40, 12), x)
    assert sketch.entropy == pytest.approx(exact.entropy, abs=5e-3)
    error = (sketch.damped(weight) - exact.damped(weight)).norm() / exact.damped(weight).norm()
    assert error < 5e-3
