"""The table of simple models: each is fitted on the training split and predicts every row of the data."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from importlib.util import find_spec
from types import MappingProxyType

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.baselines.cox import Outcome, RidgeCox, fit_cox, fit_cox_along
from ehrsequencing.baselines.logistic import PersonPeriods, fit_logistic
from ehrsequencing.baselines.proportional import Breslow, restricted_mean
from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import TRAIN, TUNING
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.ridge import Standardiser
from ehrsequencing.models.wide import RidgeHazard, fit_wide
from ehrsequencing.nonparametric import KaplanMeier

MAX_COX_COLUMNS = 256
LIGHT_PENALTIES = (1.0, 1e-2, 1e-4)
"""Of age and sex: the last is used (it weighs as much as an event in 10,000 patients), the others lead up to it."""
FOREST = "random-survival-forest"
_AGE = "age"
_SEX = re.compile(r"(static|count):([A-Z]+//)?(SEX|GENDER)([^A-Z]|$)", re.IGNORECASE)
_LEFT_OUT = ("mean:", "trend:")
"""Cox and boosting read counts, recency and last values; means and slopes are the wide model's."""


@dataclass(frozen=True)
class Fitted:
    """A simple model's predictions for all N rows of the data, in their order.

    Attributes:
        risk: −RMST(τ) of the row's own curve, in days, higher = sooner; a constant 0 for Kaplan–Meier.
        survival: S at ``grid.curve_times()``.
        seconds: fitting and predicting.
        n_parameters: fitted numbers: coefficients not 0 (and intercepts), steps of a curve, leaves.
        coefficients: ``name, coefficient`` per standard deviation of the column, largest first; of linear models.
        notes: what had to be decided otherwise than planned.
        logits: hazard logits of models that live on the grid: recalibration starts from them.
        model: the fitted hazard itself, of ``wide`` only: blends and bundles need it.
    """

    risk: Float64[np.ndarray, " N"]
    survival: Float64[np.ndarray, "N points"]
    n_parameters: int
    coefficients: pl.DataFrame | None = None
    notes: tuple[str, ...] = ()
    logits: Float64[np.ndarray, "N K"] | None = None
    model: RidgeHazard | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Baseline:
    """A simple model: what it is called, why it stands in the comparison, how it is fitted."""

    name: str
    why: str
    fit: Callable[[SurvivalData, int], Fitted]
    seeded: bool = False
    """Whether another seed gives another model."""
    requires: str | None = None
    """A module that only an extra installs, for entries that no default list names."""
    extra: str = ""

    def refuse_missing(self, where: str) -> None:
        """EhrError (exit 14) with the command that installs what this entry needs, where it is not there."""
        if self.requires is not None and find_spec(self.requires) is None:
            raise EhrError(
                f"the baseline '{self.name}' needs {self.requires}, which is not installed",
                where,
                f"pip install 'ehrsequencing[{self.extra}]', or leave this baseline out",
                code=Exit.ENVIRONMENT,
            )


def kaplan_meier(data: SurvivalData, seed: int) -> Fitted:
    """One curve for everybody."""
    outcome = _outcome(data, TRAIN)
    curve = KaplanMeier.fit(*outcome)
    survival = np.tile(curve.at(data.grid.curve_times()), (len(data), 1))
    return Fitted(np.zeros(len(data)), survival, len(curve.times))


def age_sex(data: SurvivalData, seed: int) -> Fitted:
    """Cox regression on age, age squared and sex, all but unpenalised."""
    names = data.features.names
    sex = [column for column, name in enumerate(names) if _SEX.match(name)]
    age = data.features.values[:, [names.index(_AGE)]].astype(np.float64)
    centre = age[data.index(TRAIN)].mean()
    x = np.concatenate([age, (age - centre) ** 2, data.features.values[:, sex]], axis=1)
    fit = fit_cox_along(x[data.index(TRAIN)], _outcome(data, TRAIN), LIGHT_PENALTIES)
    fitted = _from_cox(data, x, [_AGE, "age squared", *(names[column] for column in sex)], fit)
    return fitted if sex else replace(fitted, notes=(*fitted.notes, "no sex code found: age only"))


def cox(data: SurvivalData, seed: int) -> Fitted:
    """Ridge Cox regression on counts, recency and last values of the most widespread codes."""
    columns = cox_columns(data)
    x = data.features.values[:, columns]
    rows = x[data.index(TRAIN)], _outcome(data, TRAIN), x[data.index(TUNING)], _outcome(data, TUNING)
    return _from_cox(data, x, [data.features.names[column] for column in columns], fit_cox(*rows))


def boosting(data: SurvivalData, seed: int) -> Fitted:
    """Gradient-boosted trees on all counts, recencies and last values."""
    from ehrsequencing.baselines.boosting import fit_boosting  # xgboost takes a second to import

    x = data.features.values[:, _plain_columns(data)]
    train, tuning = data.index(TRAIN), data.index(TUNING)
    fit = fit_boosting(x[train], _outcome(data, TRAIN), x[tuning], _outcome(data, TUNING), seed)
    return _proportional(data, fit.linear_predictor(x), fit.n_leaves, notes=fit.notes)


def wide(data: SurvivalData, seed: int) -> Fitted:
    """The wide companion by itself."""
    fit = fit_wide(data)
    fitted = from_logits(data, fit.logits(data.features.values), fit.n_parameters, fit.notes)
    return replace(fitted, coefficients=_coefficients(data.features.names, fit.weight), model=fit)


def logistic(data: SurvivalData, seed: int) -> Fitted:
    """Discrete-time logistic regression on Cox's columns."""
    columns = cox_columns(data)
    x = data.features.values[:, columns]
    fit = fit_logistic(_periods(data, x, TRAIN), _periods(data, x, TUNING))
    names = [data.features.names[column] for column in columns]
    fitted = from_logits(data, fit.logits(x), fit.n_parameters, fit.notes)
    return replace(fitted, coefficients=_coefficients(names, fit.weight[:, 0]))


def random_survival_forest(data: SurvivalData, seed: int) -> Fitted:
    """A random survival forest on Cox's columns; its own curves."""
    from ehrsequencing.baselines.forest import fit_forest  # scikit-learn takes a second to import

    BASELINES[FOREST].refuse_missing("baselines")
    x, times = data.features.values[:, cox_columns(data)], data.grid.curve_times()
    fit = fit_forest(x[data.index(TRAIN)], _outcome(data, TRAIN), times, seed)
    survival = fit.survival(x, times)
    return Fitted(-restricted_mean(survival, times), survival, fit.n_leaves)


def from_logits(
    data: SurvivalData, logits: Float64[np.ndarray, "N K"], n_parameters: int, notes: tuple[str, ...] = ()
) -> Fitted:
    """The predictions of a model that gives hazard logits on the grid."""
    survival = data.grid.survival(logits, data.grid.curve_times())
    return Fitted(data.grid.risk(logits), survival, n_parameters, notes=notes, logits=logits)


def cox_columns(data: SurvivalData) -> Int64[np.ndarray, " p"]:
    """At most `MAX_COX_COLUMNS` that vary among the training rows, by the share of them where they are not 0.

    The record's own columns (age, length, last visit, visits) come first.
    """
    columns = _plain_columns(data)
    x = data.features.values[np.ix_(data.index(TRAIN), columns)]
    own = np.array([":" not in data.features.names[column] for column in columns])
    prevalence = np.where(own, 2.0, (x != 0).mean(axis=0))
    order = np.argsort(-prevalence, kind="stable")
    varying = order[Standardiser.fit(x).std[order] > 0]
    return np.sort(columns[varying[:MAX_COX_COLUMNS]])


def _plain_columns(data: SurvivalData) -> Int64[np.ndarray, " p"]:
    return np.flatnonzero([not name.startswith(_LEFT_OUT) for name in data.features.names])


def _periods(data: SurvivalData, x: np.ndarray, split: str) -> PersonPeriods:
    rows = data.index(split)
    targets = data.targets(rows)
    bins, fraction = targets.bin.numpy(), targets.fraction.numpy()
    return PersonPeriods.of(x[rows], data.grid.exposure(bins, fraction), bins, targets.event.numpy())


def _outcome(data: SurvivalData, split: str) -> Outcome:
    targets = data.targets(data.index(split))
    return Outcome(targets.duration.numpy(), targets.event.numpy())


def _from_cox(data: SurvivalData, x: np.ndarray, names: Sequence[str], fit: RidgeCox) -> Fitted:
    eta, n_parameters = fit.linear_predictor(x), int(np.count_nonzero(fit.weight))
    return _proportional(data, eta, n_parameters, _coefficients(names, fit.weight), fit.notes)


def _proportional(
    data: SurvivalData,
    eta: np.ndarray,
    n_parameters: int,
    coefficients: pl.DataFrame | None = None,
    notes: tuple[str, ...] = (),
) -> Fitted:
    """Curves of log relative hazards, by Breslow on the training rows."""
    times = data.grid.curve_times()
    survival = Breslow.fit(*_outcome(data, TRAIN), eta[data.index(TRAIN)]).survival(eta, times)
    return Fitted(-restricted_mean(survival, times), survival, n_parameters, coefficients, notes)


def _coefficients(names: Sequence[str], weight: np.ndarray) -> pl.DataFrame:
    used = np.flatnonzero(weight)
    order = used[np.argsort(-np.abs(weight[used]), kind="stable")]
    return pl.DataFrame({"name": [names[column] for column in order], "coefficient": weight[order]})


def timed(fit: Callable[[SurvivalData, int], Fitted]) -> Callable[[SurvivalData, int], Fitted]:
    """The same fit, with the seconds it took."""

    @wraps(fit)
    def timed(data: SurvivalData, seed: int = 0) -> Fitted:
        started = time.perf_counter()
        return replace(fit(data, seed), seconds=time.perf_counter() - started)

    return timed


_ALL = (
    Baseline("kaplan-meier", "everybody gets the average curve: what any model must beat", timed(kaplan_meier)),
    Baseline("age-sex", "Cox on age (linear and squared) and sex: what is known without a record", timed(age_sex)),
    Baseline("cox", "ridge Cox on counts, recency and last values: the statistician's usual model", timed(cox)),
    Baseline("boosting", "boosted trees on the same columns: interactions without a sequence", timed(boosting), True),
    Baseline("logistic", "logistic regression on person-periods: discrete time as textbooks have it", timed(logistic)),
    Baseline(
        FOREST,
        "a random survival forest on the same columns: interactions without a tuned number of trees",
        timed(random_survival_forest),
        seeded=True,
        requires="sksurv",
        extra="forest",
    ),
    Baseline("wide", "the penalised hazard model on every feature, on the strategies' own time grid", timed(wide)),
)
BASELINES: Mapping[str, Baseline] = MappingProxyType({baseline.name: baseline for baseline in _ALL})
