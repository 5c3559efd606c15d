"""Which pairs of codes tell of the outcome beyond what each code says: score tests of what a linear hazard leaves over.

Among hundreds of codes there are thousands of pairs, and a penalised model of them all would learn mostly noise. So
every pair is tested, against an error rate of the whole family (Bonferroni 1936), and only those found are kept. The
linear hazard is penalised, which leaves some of what single columns say in its remainder; the test is therefore of what
of a pair's column these columns cannot say, which such a remainder moves to second order only (an efficient score,
Neyman 1959). Rows of one subject count as one (a robust variance, Lin & Wei 1989). The error rate is approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.stats import chi2

from ehrsequencing.batches import SurvivalData, Targets
from ehrsequencing.config import MIN_TRAIN_EVENTS, MIN_TUNING_EVENTS, TRAIN, TUNING
from ehrsequencing.hazards import cause_shares, softplus, total_logit
from ehrsequencing.models.losses import exposure
from ehrsequencing.models.ridge import Standardiser
from ehrsequencing.models.wide import RidgeHazard, fit_ridge_hazard, score_screen
from ehrsequencing.pairs import PAIR_KINDS, TOGETHER_DAYS, Occurrences, Pair, pair_columns

FAMILY_ERROR = 0.05
"""Chance of finding any pair where none tells anything."""
MIN_INFORMATION = 10.0
"""Expected outcomes that a pair's column must vary over, about: with fewer, χ² is no approximation."""
MOST_PAIRS, MOST_TRIED = 20, 100
"""So many pairs are kept, of so many of the best that are looked at closely."""
BASE_COLUMNS = 200
"""Columns of the linear hazard whose remainder is searched: the best by univariate score."""
OUTCOMES_A_COLUMN = 20
"""A pair is looked at beside the hazard itself and the best of its columns, one for so many outcomes: more of them
would take a pair's own information for theirs."""
SEARCHED_ROWS = 20_000
"""Training rows that a search reads, at most; the pairs are then fitted on all of them."""


def searched_rows(data: SurvivalData) -> np.ndarray:
    """Training rows to search: all, or every so many of them; none where outcomes are too few to single a pair out."""
    rows = data.index(TRAIN)
    rows = rows[:: -(-len(rows) // SEARCHED_ROWS)]
    happened = data.rows["subject_id"].to_numpy()[rows][data.targets(rows).event.numpy() == 1]
    return rows if len(np.unique(happened)) >= MIN_TRAIN_EVENTS else rows[:0]


def find_pairs(data: SurvivalData, seen: Occurrences, rows: np.ndarray, base: LinearPart) -> tuple[Pair, ...]:
    """The pairs whose columns tell of the outcome (cause 1) beyond a penalised linear hazard of the features.

    A pair must pass a score test twice: as it is, and as what is left of it beside the hazard and the best of its
    columns, what either of its codes says alone (whether, how often, how recently first and last), and the pairs found
    before it.

    Args:
        data: with the features' own columns alone.
        seen: of the codes among which to search, of ``rows``.
        rows: of ``data``, training rows (``searched_rows``).
        base: the hazard, of ``data``.
    """
    subject = data.rows["subject_id"].to_numpy()[rows]
    rest = _Rest.of(base.fit.logits(base.x[rows]), data.targets(rows), data.grid.n_bins, subject)
    scored = _scored(seen, rest)
    if not scored:
        return ()
    threshold = float(chi2.isf(FAMILY_ERROR / len(scored), 1))
    candidates = sorted((one for one in scored if one.score > threshold), key=lambda one: -one.score)[:MOST_TRIED]
    outcomes = int((data.targets(rows).event == 1).sum())
    return _chosen(candidates, seen, rest, base.said(rows, outcomes // OUTCOMES_A_COLUMN), threshold)


def still_better(data: SurvivalData, base: LinearPart, columns: Float[np.ndarray, "n p"]) -> bool:
    """Whether the linear hazard predicts the tuning rows at least as well with ``columns`` beside its own; where they
    have too few outcomes to say so, it is taken for granted."""
    tuning = data.targets(data.index(TUNING))
    if int((tuning.event == 1).sum()) < MIN_TUNING_EVENTS:
        return True
    wider = _fit(data, np.concatenate([base.x, columns], axis=1), columns.shape[1])
    return _best(wider) <= _best(base.fit)


class _Scored(NamedTuple):
    score: float
    kind: str
    first: int
    second: int


@dataclass(frozen=True, eq=False)
class LinearPart:
    """The penalised linear hazard of the best-scoring columns of the features, best first."""

    x: np.ndarray
    fit: RidgeHazard

    def said(self, rows: np.ndarray, columns: int) -> Float64[np.ndarray, "n p"]:
        """The hazard's own predictor of the outcome, and so many of the best columns, of some rows."""
        predictor = self.fit.linear_predictor(self.x[rows]).reshape(len(rows), -1)[:, :1]
        return np.concatenate([predictor, self.x[rows][:, :columns]], axis=1).astype(np.float64)

    @classmethod
    def of(cls, data: SurvivalData) -> LinearPart:
        """Fitted on the training rows, the penalty chosen on tuning."""
        train = data.index(TRAIN)
        values = data.features.values
        z = Standardiser.fit(values[train])(values[train])
        score = score_screen(z, data.targets(train), data.grid.n_bins)
        kept = np.argsort(-score, kind="stable")[:BASE_COLUMNS]
        return cls(values[:, kept], _fit(data, values[:, kept]))


def _fit(data: SurvivalData, x: np.ndarray, found: int = 0) -> RidgeHazard:
    train, tuning = data.index(TRAIN), data.index(TUNING)
    return fit_ridge_hazard(
        x[train],
        data.targets(train),
        x[tuning],
        data.targets(tuning),
        n_bins=data.grid.n_bins,
        n_causes=data.n_causes,
        patient=data.rows["subject_id"].to_numpy()[train],
        found=found,
    )


def _best(fit: RidgeHazard) -> float:
    return min(row.tuning_nll for row in fit.path)


@dataclass(frozen=True, eq=False)
class _Rest:
    """Of each row what the linear hazard left over: whether the outcome came, less how often it was expected.

    ``order`` puts rows of a subject side by side, ``begins`` is where each subject then begins; both None where every
    subject has one row.
    """

    residual: Float64[np.ndarray, " n"]
    expected: Float64[np.ndarray, " n"]
    order: Int64[np.ndarray, " n"] | None
    begins: Int64[np.ndarray, " s"] | None

    @classmethod
    def of(
        cls, logits: Float64[np.ndarray, "n K *R"], targets: Targets, n_bins: int, subject: Int64[np.ndarray, " n"]
    ) -> _Rest:
        lived = exposure(targets.bin, targets.fraction, n_bins).numpy()  # [n,K]
        hazard = softplus(total_logit(logits)) * cause_shares(logits)[:, :, 0]  # [n,K]
        expected = (lived * hazard).sum(axis=1)  # [n]
        residual = (targets.event.numpy() == 1) - expected
        order = np.argsort(subject, kind="stable")
        begins = np.flatnonzero(np.diff(subject[order], prepend=subject[order][:1] - 1))
        return cls(residual, expected, *((order, begins) if len(begins) < len(order) else (None, None)))

    def scores(self, x: np.ndarray) -> np.ndarray:
        """χ² of each column beside an intercept; 0 where too little is known of it."""
        return self._tested(x - (self.expected @ x) / self.expected.sum())

    def score_beside(self, x: np.ndarray, others: np.ndarray) -> float:
        """χ² of one column beside others, by what these leave of it; 0 where too little is left."""
        weighted = others * self.expected[:, None]
        left = x - others @ np.linalg.lstsq(others.T @ weighted, weighted.T @ x, rcond=None)[0]
        return float(self._tested(left[:, None])[0])

    def _tested(self, left: np.ndarray) -> np.ndarray:
        known = self.expected @ np.square(left)
        if self.order is None or self.begins is None:
            variance = known
        else:
            each = (self.residual[:, None] * left)[self.order]
            variance = np.square(np.add.reduceat(each, self.begins)).sum(axis=0)
        enough = (known >= MIN_INFORMATION) & (variance > 0)
        return np.divide((self.residual @ left) ** 2, variance, out=np.zeros_like(known), where=enough)


def _scored(seen: Occurrences, rest: _Rest) -> list[_Scored]:
    """Every pair of which enough is known, with its own score."""
    found = []
    for kind in PAIR_KINDS:
        for first in range(len(seen.codes) - 1):
            others = np.arange(first + 1, len(seen.codes))
            scores = rest.scores(PAIR_KINDS[kind].columns(seen, first, others).astype(np.float64))
            found += [_Scored(float(scores[i]), kind, first, int(others[i])) for i in np.flatnonzero(scores)]
    return found


def _chosen(
    candidates: list[_Scored],
    seen: Occurrences,
    rest: _Rest,
    base: Float64[np.ndarray, "n p"],
    threshold: float,
) -> tuple[Pair, ...]:
    """Of the candidates, best first, those that still tell something beside all that is known without them: the columns
    of the hazard, their own codes, the pairs chosen before."""
    chosen: list[Pair] = []
    columns = np.zeros((len(seen), 0))
    for one in candidates:
        pair = Pair(one.kind, seen.codes[one.first], seen.codes[one.second])
        x = pair_columns(seen, (pair,)).astype(np.float64)
        beside = np.concatenate([base, _alone(seen, one), columns], axis=1)
        if rest.score_beside(x[:, 0], beside) > threshold:
            chosen.append(pair)
            columns = np.concatenate([columns, x], axis=1)
        if len(chosen) == MOST_PAIRS:
            break
    return tuple(chosen)


def _alone(seen: Occurrences, pair: _Scored) -> Float64[np.ndarray, "n 13"]:
    """An intercept, and what either code says by itself: whether, how often, how recently first and last."""
    parts = [np.ones(len(seen))]
    for code in (pair.first, pair.second):
        present = seen.has(code)
        first, last = (np.where(present, days[:, code], 0) for days in (seen.earliest, seen.latest))
        own = (np.exp(-last / TOGETHER_DAYS), np.log1p(last), np.log1p(first), first / TOGETHER_DAYS)
        parts += [present, *(np.where(present, x, 0.0) for x in own), np.log1p(seen.days[:, code])]
    return np.stack(parts, axis=1).astype(np.float64)
