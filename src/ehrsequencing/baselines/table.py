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
from jaxtyping import Int64

from ehrsequencing.baselines.cox import Outcome, RidgeCox, fit_cox, fit_cox_along
from ehrsequencing.baselines.fitted import (
    Fitted,
    Relative,
    by_cause,
    from_logits,
    from_relative,
    from_survival,
    outcome_of,
)
from ehrsequencing.baselines.logistic import PersonPeriods, fit_logistic
from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import TRAIN, TUNING
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.ridge import Standardiser
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier
from ehrsequencing.pairs import PAIR_KINDS, told

MAX_COX_COLUMNS = 256
LIGHT_PENALTIES = (1.0, 1e-2, 1e-4)
"""Of age and sex: the last is used (it weighs as much as an event in 10,000 patients), the others lead up to it."""
NO_EVENT = "no event of {} among the training rows: it gets no hazard"
FOREST = "random-survival-forest"
_AGE = "age"
_SEX = re.compile(r"(static|count):([A-Z]+//)?(SEX|GENDER)([^A-Z]|$)", re.IGNORECASE)
_LEFT_OUT = ("mean:", "trend:", *(f"{kind}:" for kind in PAIR_KINDS))
"""Cox and boosting read counts, recency and last values; means, slopes and pairs are the wide model's."""


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
    """One curve for everybody; refused (exit 10) where events compete: 1 − Kaplan–Meier overstates each of them."""
    if data.n_causes > 1:
        raise EhrError(
            "kaplan-meier overstates the outcome's probability where other events compete with it",
            "baselines",
            "name aalen-johansen instead",
            code=Exit.CONFIG,
        )
    curve = KaplanMeier.fit(*outcome_of(data, TRAIN))
    survival = np.tile(curve.at(data.grid.curve_times()), (len(data), 1))
    return Fitted(np.zeros(len(data)), survival, len(curve.times))


def aalen_johansen(data: SurvivalData, seed: int) -> Fitted:
    """The average cumulative incidences for everybody; of a single cause, Kaplan–Meier."""
    targets = data.targets(data.index(TRAIN))
    curve = AalenJohansen.fit(targets.duration.numpy(), targets.event.numpy(), data.n_causes)
    one = curve.at(data.grid.curve_times())  # [points, R]
    cif = np.tile(one, (len(data), 1, 1)) if data.n_causes > 1 else None
    survival = np.tile(np.maximum(1.0 - one.sum(axis=1), 0.0), (len(data), 1))
    return Fitted(np.zeros(len(data)), survival, len(curve.times), cif=cif)


def age_sex(data: SurvivalData, seed: int) -> Fitted:
    """Cox regression on age, age squared and sex, all but unpenalised; a hazard of its own for each cause."""
    names = data.features.names
    sex = [column for column, name in enumerate(names) if _SEX.match(name)]
    age = data.features.values[:, [names.index(_AGE)]].astype(np.float64)
    centre = age[data.index(TRAIN)].mean()
    x = np.concatenate([age, (age - centre) ** 2, data.features.values[:, sex]], axis=1)
    known = [_AGE, "age squared", *(names[column] for column in sex)]

    def fit(train: Outcome, tuning: Outcome) -> Relative:
        return _relative(x, known, fit_cox_along(x[data.index(TRAIN)], train, LIGHT_PENALTIES))

    fitted = _each_cause(data, fit)
    return fitted if sex else replace(fitted, notes=(*fitted.notes, "no sex code found: age only"))


def cox(data: SurvivalData, seed: int) -> Fitted:
    """Ridge Cox regression on counts, recency and last values of the most widespread codes; for each cause its own."""
    columns = cox_columns(data)
    x, names = data.features.values[:, columns], [data.features.names[column] for column in columns]
    train_x, tuning_x = x[data.index(TRAIN)], x[data.index(TUNING)]
    return _each_cause(data, lambda train, tuning: _relative(x, names, fit_cox(train_x, train, tuning_x, tuning)))


def boosting(data: SurvivalData, seed: int) -> Fitted:
    """Gradient-boosted trees on all counts, recencies and last values; for each cause its own."""
    from ehrsequencing.baselines.boosting import fit_boosting  # xgboost takes a second to import

    x = data.features.values[:, _plain_columns(data)]
    train_x, tuning_x = x[data.index(TRAIN)], x[data.index(TUNING)]

    def fit(train: Outcome, tuning: Outcome) -> Relative:
        boosted = fit_boosting(train_x, train, tuning_x, tuning, seed)
        return Relative(boosted.linear_predictor(x), boosted.n_leaves, notes=boosted.notes)

    return _each_cause(data, fit)


def wide(data: SurvivalData, seed: int) -> Fitted:
    """The wide companion by itself."""
    fit = fit_wide(data)
    notes = (*fit.notes, *told(data.pairs))
    fitted = from_logits(data, fit.logits(data.features.values), fit.n_parameters, notes)
    return replace(fitted, coefficients=_tables(data, data.features.names, fit.weight), model=fit)


def logistic(data: SurvivalData, seed: int) -> Fitted:
    """Discrete-time logistic regression on Cox's columns; with competing risks multinomial."""
    columns = cox_columns(data)
    x, names = data.features.values[:, columns], [data.features.names[column] for column in columns]
    fit = fit_logistic(_periods(data, x, TRAIN), _periods(data, x, TUNING), data.n_causes)
    fitted = from_logits(data, fit.logits(x), fit.n_parameters, fit.notes)
    return replace(fitted, coefficients=_tables(data, names, fit.weight))


def random_survival_forest(data: SurvivalData, seed: int) -> Fitted:
    """A random survival forest on Cox's columns; for each cause its own."""
    from ehrsequencing.baselines.forest import fit_forest  # scikit-learn takes a second to import

    BASELINES[FOREST].refuse_missing("baselines")
    x, times = data.features.values[:, cox_columns(data)], data.grid.curve_times()
    curves, leaves, notes = [], 0, []
    for cause, name in enumerate(data.causes, start=1):
        train = outcome_of(data, TRAIN, cause)
        if not train.event.any():
            curves.append(np.ones((len(data), len(times))))
            notes.append(NO_EVENT.format(name))
            continue
        fit = fit_forest(x[data.index(TRAIN)], train, times, seed)
        curves.append(fit.survival(x, times))
        leaves += fit.n_leaves
    return from_survival(data, curves, leaves, tuple(notes))


def _each_cause(data: SurvivalData, fit: Callable[[Outcome, Outcome], Relative]) -> Fitted:
    """A cause-specific hazard of each cause by ``fit`` (training and tuning outcome), put together."""
    parts = []
    for cause in range(1, data.n_causes + 1):
        train = outcome_of(data, TRAIN, cause)
        never = Relative(np.zeros(len(data)), 0, notes=(NO_EVENT.format("it"),))
        parts.append(fit(train, outcome_of(data, TUNING, cause)) if train.event.any() else never)
    return from_relative(data, parts)


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


def _relative(x: np.ndarray, names: Sequence[str], fit: RidgeCox) -> Relative:
    coefficients = _coefficients(names, fit.weight)
    return Relative(fit.linear_predictor(x), coefficients.height, coefficients, fit.notes)


def _tables(data: SurvivalData, names: Sequence[str], weight: Float64[np.ndarray, " p *R"]) -> pl.DataFrame | None:
    """Coefficients of one cause, or of each."""
    columns = weight.reshape(len(weight), -1).T
    return by_cause(data, [_coefficients(names, column) for column in columns])


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
    Baseline("aalen-johansen", "everybody gets the average incidence of each competing cause", timed(aalen_johansen)),
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
