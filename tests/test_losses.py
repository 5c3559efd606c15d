"""Survival losses against brute force in float64, against the truth, and at logits nobody should meet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ehrsequencing.models.losses import (
    at_risk,
    cumulative_hazard,
    exposure,
    hybrid_loss,
    log_cumulative_hazard,
    log_softplus,
    ranking_loss,
    survival_nll,
)


def sp(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def brute_cumulative_hazard(phi: np.ndarray, k: int, f: float) -> float:
    return math.fsum([sp(x) for x in phi[:k]] + [f * sp(phi[k])])


def brute_nll(phi: np.ndarray, k: int, f: float, event: int) -> float:
    return brute_cumulative_hazard(phi, k, f) - event * math.log(sp(phi[k]))


def brute_rank(phi, k, f, event, duration) -> tuple[float, int]:
    terms = []
    for i in range(len(k)):
        for j in range(len(k)):
            later = duration[j] > duration[i] or (duration[j] == duration[i] and event[j] == 0)
            if event[i] == 1 and j != i and later:
                own = math.log(brute_cumulative_hazard(phi[i], k[i], f[i]))
                other = math.log(brute_cumulative_hazard(phi[j], k[i], f[i]))
                terms.append(sp(other - own))
    return (math.fsum(terms) / len(terms) if terms else 0.0), len(terms)


@pytest.fixture
def outcomes():
    """Twelve patients on a grid of width-10 bins: ties among events, between events and censorings, bin ends."""
    duration = np.array([3.0, 3.0, 3.0, 10.0, 10.0, 17.5, 20.0, 20.0, 24.0, 39.0, 40.0, 0.5])
    event = np.array([1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0])
    k = np.ceil(duration / 10).astype(int) - 1
    f = duration / 10 - k
    phi = np.random.default_rng(0).normal(-1, 3, size=(12, 4))
    return phi, k, f, event, duration


def tensors(phi, k, f, event, duration):
    return (
        torch.tensor(phi, dtype=torch.float64),
        torch.tensor(k),
        torch.tensor(f),
        torch.tensor(event),
        torch.tensor(duration),
    )


def test_nll_equals_brute_force(outcomes):
    phi, k, f, event, _ = outcomes
    expected = [brute_nll(*row) for row in zip(phi, k, f, event, strict=True)]
    found = survival_nll(*tensors(*outcomes)[:4])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13)


def test_cumulative_hazard_equals_brute_force_in_both_scales(outcomes):
    phi, k, f, _, _ = outcomes
    expected = [brute_cumulative_hazard(*row) for row in zip(phi, k, f, strict=True)]
    logits, bins, fraction, _, _ = tensors(*outcomes)
    np.testing.assert_allclose(cumulative_hazard(logits, bins, fraction).numpy(), expected, rtol=1e-13)
    log = log_cumulative_hazard(log_softplus(logits), bins, fraction)
    np.testing.assert_allclose(log.exp().numpy(), expected, rtol=1e-12)


def test_ranking_equals_brute_force(outcomes):
    expected, n_pairs = brute_rank(*outcomes)
    found, found_pairs = ranking_loss(*tensors(*outcomes))
    assert found_pairs == n_pairs > 20
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_hybrid_is_mean_nll_plus_the_weighted_term(outcomes):
    phi, k, f, event, _ = outcomes
    nll = np.mean([brute_nll(*row) for row in zip(phi, k, f, event, strict=True)])
    rank, n_pairs = brute_rank(*outcomes)
    found = hybrid_loss(*tensors(*outcomes), lambda_rank=0.1)
    assert found.loss.item() == pytest.approx(nll + 0.1 * rank, rel=1e-12)
    assert (found.nll.item(), found.rank.item()) == pytest.approx((nll, rank), rel=1e-12)
    assert found.n_pairs == n_pairs


def test_a_step_without_pairs_leaves_the_term_out():
    logits = torch.zeros(3, 2, requires_grad=True)
    bins, fraction = torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.5, 0.5])
    found = hybrid_loss(
        logits, bins, fraction, torch.zeros(3, dtype=torch.long), torch.tensor([1.0, 3.0, 3.0]), lambda_rank=0.1
    )
    assert found.n_pairs == 0
    assert found.loss.item() == found.nll.item()
    found.loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_ties_an_event_precedes_a_censoring_at_its_time_and_makes_no_pair_with_an_event():
    cases, comparable = at_risk(torch.tensor([5.0, 5.0, 5.0, 4.0, 6.0]), torch.tensor([1, 1, 0, 1, 0]))
    assert cases.tolist() == [0, 1, 3]
    assert comparable.int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 1, 0, 1], [1, 1, 1, 0, 1]]


def test_exposure_is_one_before_the_bin_and_nothing_after():
    assert exposure(torch.tensor([0, 2]), torch.tensor([1.0, 0.25]), 4).tolist() == [[1, 0, 0, 0], [1, 1, 0.25, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extreme", [-1e4, -800.0, -100.0, -30.0, 30.0, 100.0, 1e4])
def test_values_and_gradients_are_finite_for_any_logits(dtype, extreme):
    generator = torch.Generator().manual_seed(0)
    for sign in (1.0, -1.0, None):
        logits = torch.full((6, 4), extreme, dtype=dtype)
        if sign is None:  # opposite extremes side by side
            logits = logits * torch.randn(6, 4, generator=generator).sign().to(dtype)
        elif sign < 0:
            logits[::2] = 0.0
        logits.requires_grad_(True)
        bins, event = torch.tensor([0, 1, 2, 3, 0, 3]), torch.tensor([1, 1, 0, 1, 0, 1])
        fraction = torch.tensor([1e-9, 0.5, 1.0, 1.0, 1e-12, 0.3], dtype=torch.float64)
        found = hybrid_loss(logits, bins, fraction, event, bins + fraction, lambda_rank=0.2)
        assert found.n_pairs > 0
        assert torch.isfinite(found.loss)
        found.loss.backward()
        assert torch.isfinite(logits.grad).all()


def test_log_softplus_meets_its_series_without_a_seam():
    x = torch.linspace(-12, -8, 4001, dtype=torch.float64, requires_grad=True)
    y = log_softplus(x)
    expected = [math.log(math.log1p(math.exp(v))) for v in x.tolist()]
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=3e-13, rtol=0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    u = x.detach().exp()
    np.testing.assert_allclose(slope.numpy(), (u / (1 + u) / torch.log1p(u)).numpy(), rtol=1e-12)


def test_log_softplus_tends_to_the_logit_and_to_its_log():
    x = torch.tensor([-1e4, -50.0, 50.0, 1e4], dtype=torch.float64)
    np.testing.assert_allclose(log_softplus(x).numpy(), [-1e4, -50.0, math.log(50.0), math.log(1e4)], rtol=1e-13)


def test_gradients_agree_with_finite_differences(outcomes):
    logits, bins, fraction, event, duration = tensors(*outcomes)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: survival_nll(x, bins, fraction, event), (logits,))
    assert torch.autograd.gradcheck(lambda x: ranking_loss(x, bins, fraction, event, duration)[0], (logits,))


def test_float32_agrees_with_float64(outcomes):
    logits, bins, fraction, event, duration = tensors(*outcomes)
    exact = hybrid_loss(logits, bins, fraction, event, duration, 0.1).loss.item()
    single = hybrid_loss(logits.float(), bins, fraction.float(), event, duration, 0.1).loss
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact, rel=1e-5)


def expected_nll(phi: torch.Tensor, truth: torch.Tensor, censoring_rate: float) -> torch.Tensor:
    """E[NLL] under hazards sp(truth) a unit bin, independent exponential censoring, everybody censored at the end.

    By Gauss–Legendre quadrature in every bin, exact to rounding for these exponentials.
    """
    K = len(truth)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    fraction = torch.tensor((nodes + 1) / 2).repeat(K)  # [K*Q]
    weight = torch.tensor(weights / 2).repeat(K)
    bins = torch.arange(K).repeat_interleave(24)
    time = bins + fraction
    hazard = torch.nn.functional.softplus(truth)
    S = torch.exp(-cumulative_hazard(truth.expand(len(bins), K), bins, fraction)) * torch.exp(-censoring_rate * time)
    logits = phi.expand(len(bins), K)
    as_event = survival_nll(logits, bins, fraction, torch.ones_like(bins))
    as_censored = survival_nll(logits, bins, fraction, torch.zeros_like(bins))
    inside = (weight * S * (hazard[bins] * as_event + censoring_rate * as_censored)).sum()
    at_end = survival_nll(phi[None], torch.tensor([K - 1]), torch.ones(1, dtype=phi.dtype), torch.tensor([0]))[0]
    survive = torch.exp(-hazard.sum()) * math.exp(-censoring_rate * K)
    return inside + survive * at_end


@pytest.mark.parametrize("censoring_rate", [0.0, 0.2, 1.0])
def test_the_true_survival_curve_scores_best(censoring_rate):
    truth = torch.tensor([-2.0, 0.5, -1.0, 2.0, -3.0], dtype=torch.float64)  # one bin loses 88% of those who enter it
    phi = truth.clone().requires_grad_(True)
    best = expected_nll(phi, truth, censoring_rate)
    (slope,) = torch.autograd.grad(best, phi)
    assert slope.abs().max() < 1e-12
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = truth + 0.3 * torch.randn(5, generator=generator, dtype=torch.float64)
        assert expected_nll(other, truth, censoring_rate) > best
    hessian = torch.autograd.functional.hessian(lambda x: expected_nll(x, truth, censoring_rate), truth)
    assert torch.linalg.eigvalsh(hessian).min() > 0


def test_fitting_by_gradient_recovers_the_hazards_of_a_censored_sample():
    rng = np.random.default_rng(0)
    hazard, n = np.array([0.2, 1.5, 0.6, 0.1]), 20_000
    need = rng.exponential(size=n)
    ends = np.cumsum(hazard)
    k = np.searchsorted(ends, need)
    inside = np.minimum(k, 3)
    time = np.where(k < 4, inside + 1 - (ends[inside] - need) / hazard[inside], 4.0)
    censoring = np.minimum(rng.exponential(3.0, size=n), 4.0)
    event = torch.tensor((time < censoring).astype(int))
    duration = np.minimum(time, censoring)
    bins = torch.tensor(np.ceil(duration).astype(int) - 1)
    fraction = torch.tensor(duration) - bins
    phi = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [phi], max_iter=100, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = survival_nll(phi.expand(n, 4), bins, fraction, event).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = torch.nn.functional.softplus(phi.detach()).numpy()
    events = np.bincount(bins.numpy(), event.numpy(), minlength=4)
    lived = exposure(bins, fraction, 4).sum(dim=0).numpy()
    np.testing.assert_allclose(found, events / lived, rtol=1e-6)  # the closed-form maximum: events over exposure
    assert (np.abs(found - hazard) < 3 * np.sqrt(events) / lived).all()


def test_the_ranking_term_falls_as_the_order_improves():
    duration = torch.tensor([1.0, 2.0, 3.0, 4.0])
    event, bins = torch.tensor([1, 1, 1, 0]), torch.tensor([0, 1, 2, 3])
    fraction = torch.ones(4)
    right = torch.tensor([2.0, 1.0, 0.0, -1.0])[:, None].expand(4, 4)
    equal = torch.zeros(4, 4)
    terms = [ranking_loss(x, bins, fraction, event, duration)[0].item() for x in (right, equal, right.flip(0))]
    assert terms[0] < terms[1] < terms[2]
    assert terms[1] == pytest.approx(math.log(2.0), abs=1e-6)
