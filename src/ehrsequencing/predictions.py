"""Predictions on disk and in hand: anybody's file is read, checked and interpolated here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64, Integer

from ehrsequencing.cohort.labels import within_horizon
from ehrsequencing.config import OUTCOME
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged_file
from ehrsequencing.prediction_checks import (
    CIF,
    COLUMNS,
    check_columns,
    check_curve,
    check_horizons,
    check_incidences,
    check_rows,
    lists_of,
    row_blocks,
)
from ehrsequencing.timegrid import TimeGrid

_FINGERPRINT, _MODEL = "ehrsequencing.cohort_fingerprint", "ehrsequencing.model"


@dataclass(frozen=True, eq=False)
class Predictions:
    """One model's answer for n rows: a subject at a prediction_time.

    Attributes:
        subject_id: may repeat.
        prediction_time: datetime64[us]; distinct within a subject.
        risk: higher = sooner; only its order has a meaning.
        horizon_days: days after prediction_time, strictly increasing, above 0; may be empty.
        survival: probability of no event of any cause up to each horizon, never increasing.
        cif: with competing risks the cumulative incidence of each cause by its name, ``outcome`` among them: at the
            same horizons, never decreasing; with ``survival`` they add to 1. Empty where there is one cause.
        cohort_fingerprint: of the cohort these are for; empty where unknown.
        model: its name.

    Raises:
        EhrError: exit 13, naming the column that is not so.
    """

    subject_id: Int64[np.ndarray, " n"]
    prediction_time: np.ndarray
    risk: Float64[np.ndarray, " n"]
    horizon_days: Float64[np.ndarray, " m"]
    survival: Float64[np.ndarray, "n m"]
    cohort_fingerprint: str = ""
    model: str = ""
    cif: Mapping[str, Float64[np.ndarray, "n m"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = self.model or "predictions"
        check_rows(self.subject_id, self.prediction_time, self.risk, where)
        check_horizons(self.horizon_days, where)
        check_curve("survival", self.survival, -1, where)
        if self.cif:
            check_incidences(self.cif, self.survival, where)

    def __len__(self) -> int:
        return len(self.subject_id)

    def survival_at(self, times: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, "n t"]:
        """S(t | x), linear in S between (0, 1) and the horizons; exact at them.

        Raises:
            EhrError: exit 13 for a time below 0 or beyond the last horizon: curves are not extended.

        >>> day = np.array(["2020-01-01"], dtype="datetime64[us]")
        >>> one = Predictions(np.array([7]), day, np.array([0.5]), np.array([10.0, 20.0]), np.array([[0.8, 0.4]]))
        >>> one.survival_at(np.array([0.0, 5.0, 10.0, 15.0])).round(2).tolist()
        [[1.0, 0.9, 0.8, 0.6]]
        """
        return self._curve_at(self.survival, 1.0, times)

    def cif_at(self, cause: str, times: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, "n t"]:
        """The cumulative incidence of a cause, linear between (0, 0) and the horizons; exact at them.

        Raises:
            EhrError: exit 13 for a cause these predictions do not have, or as ``survival_at``.
        """
        if cause not in self.cif:
            found = ", ".join(self.cif) or "none"
            raise EhrError(
                f"no cumulative incidence of '{cause}' (found: {found})",
                self.model or "predictions",
                f"write the column {CIF}{cause}",
                code=Exit.BUNDLE,
            )
        return self._curve_at(self.cif[cause], 0.0, times)

    def outcome_risk_at(self, times: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, "n t"]:
        """The probability of the outcome by each time: its cumulative incidence, or 1 − S(t) where it has no rival."""
        return self.cif_at(OUTCOME, times) if self.cif else 1.0 - self.survival_at(times)

    def _curve_at(self, values: np.ndarray, at_zero: float, times: np.ndarray) -> np.ndarray:
        knots = np.append(0.0, self.horizon_days)  # [m + 1]
        last = knots[-1]
        inside = np.minimum(times, last) if (times <= last * (1 + 1e-9)).all() else times
        if not ((inside >= 0) & (inside <= last)).all():
            raise EhrError(
                f"expected times in [0, {last:g}] days, found {np.min(times):g} to {np.max(times):g}",
                self.model or "predictions",
                "shorten the horizon, or write curves up to it",
                code=Exit.BUNDLE,
            )
        curve = np.concatenate([np.full((len(self), 1), at_zero), values], axis=1)  # [n, m + 1]
        right = np.maximum(np.searchsorted(knots, inside), 1)  # [t]
        right = np.minimum(right, len(knots) - 1)
        left = np.maximum(right - 1, 0)
        width = knots[right] - knots[left]
        share = np.divide(inside - knots[left], width, out=np.zeros(len(inside)), where=width > 0)  # [t]
        return curve[:, left] * (1 - share) + curve[:, right] * share

    @classmethod
    def from_logits(
        cls,
        logits: Float64[np.ndarray, "n K *R"],
        grid: TimeGrid,
        subject_id: Int64[np.ndarray, " n"],
        prediction_time: np.ndarray,
        causes: Sequence[str] = (OUTCOME,),
        **about: str,
    ) -> Predictions:
        """Hazard logits as predictions: the grid's risk, and curves at its 100 equal points on (0, τ].

        Args:
            causes: the R names, the outcome first.
            about: ``cohort_fingerprint`` and ``model``.
        """
        times = grid.curve_times()
        cif = _by_rows(lambda own: grid.cif(own, times), logits) if len(causes) > 1 else None  # [n, m, R]
        return cls(
            subject_id=subject_id,
            prediction_time=prediction_time,
            risk=_by_rows(grid.risk, logits),
            horizon_days=times,
            survival=_by_rows(lambda own: grid.survival(own, times), logits),
            cif={} if cif is None else {name: cif[:, :, r] for r, name in enumerate(causes)},
            **about,
        )

    def take(self, rows: Integer[np.ndarray, " k"]) -> Predictions:
        """The given rows, in the given order."""
        return replace(
            self,
            subject_id=self.subject_id[rows],
            prediction_time=self.prediction_time[rows],
            risk=self.risk[rows],
            survival=self.survival[rows],
            cif={cause: values[rows] for cause, values in self.cif.items()},
        )

    @classmethod
    def concat(cls, parts: Sequence[Predictions]) -> Predictions:
        """All rows of several files of one model: folds pooled. Horizons, causes, cohort and model must be the same."""
        first = parts[0]
        for part in parts[1:]:
            same = np.array_equal(part.horizon_days, first.horizon_days) and set(part.cif) == set(first.cif)
            if not same or (part.cohort_fingerprint, part.model) != (first.cohort_fingerprint, first.model):
                raise EhrError(
                    "expected the same horizon_days, causes, cohort and model in every part",
                    f"{first.model} and {part.model}",
                    "pool folds of one model on one cohort",
                    code=Exit.BUNDLE,
                )
        columns = ("subject_id", "prediction_time", "risk", "survival")
        joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
        joined["cif"] = {cause: np.concatenate([part.cif[cause] for part in parts]) for cause in first.cif}
        return replace(first, **joined)

    def to_frame(self) -> pl.DataFrame:
        """The table that is written, one row a subject and prediction_time."""
        horizons = pl.Series("horizon_days", [self.horizon_days.tolist()], dtype=pl.List(pl.Float64))
        return pl.DataFrame(
            {
                "subject_id": self.subject_id,
                "prediction_time": self.prediction_time.astype("datetime64[us]"),
                "risk": self.risk,
                "horizon_days": horizons.new_from_index(0, len(self)),
                "survival": _as_lists(self.survival),
                **{CIF + cause: _as_lists(values) for cause, values in self.cif.items()},
            }
        )

    def write(self, path: Path | str) -> None:
        """Write parquet with the cohort's fingerprint and the model's name in its metadata; whole, or not at all."""
        write_predictions(path, (self.take(np.arange(len(self))[rows]) for rows in row_blocks(len(self))))

    @classmethod
    def read(cls, path: Path | str) -> Predictions:
        """Read and check a predictions file, whoever wrote it.

        Raises:
            EhrError: exit 13, naming the file and the column that is not as expected.
        """
        path = Path(path)
        frame, metadata = _load(path)
        causes = [name.removeprefix(CIF) for name in frame.columns if name.startswith(CIF)]
        frame = check_columns(frame, [*COLUMNS, *(CIF + cause for cause in causes)], str(path))
        horizons, curves = lists_of(frame, str(path))
        try:
            return cls(
                subject_id=frame["subject_id"].cast(pl.Int64).to_numpy(),
                prediction_time=frame["prediction_time"].cast(pl.Datetime("us")).to_numpy(),
                risk=frame["risk"].cast(pl.Float64).to_numpy(),
                horizon_days=horizons,
                survival=curves["survival"],
                cif={cause: curves[CIF + cause] for cause in causes},
                cohort_fingerprint=metadata.get(_FINGERPRINT, ""),
                model=_safe_name(metadata.get(_MODEL, "")) or _safe_name(path.stem) or "predictions",
            )
        except EhrError as error:
            raise EhrError(error.what, str(path), error.fix, code=Exit.BUNDLE) from None


def write_predictions(path: Path | str, groups: Iterable[Predictions]) -> None:
    """The file of one model's predictions that come a group of rows at a time; whole, or not at all.

    Lists of all rows at once take several times the curves' memory, and curves many times that of the hazards.
    """
    groups = iter(groups)
    first = next(groups)
    about = {_FINGERPRINT: first.cohort_fingerprint, _MODEL: first.model}
    schema = first.to_frame().to_arrow().schema.with_metadata(about)
    with staged_file(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as file:
        for group in itertools.chain([first], groups):
            file.write_table(group.to_frame().to_arrow())


def _by_rows(function: Callable[[np.ndarray], np.ndarray], values: Float64[np.ndarray, n * k]) -> np.ndarray:
    """``function`` of all rows, with what it needs on the way for some of them at once only."""
    found = np.empty(0)
    for rows in row_blocks(len(values)):
        part = function(values[rows])
        found = np.empty((len(values), *part.shape[1:])) if rows.start == 0 else found
        found[rows] = part
    return found


def _as_lists(values: Float64[np.ndarray, "n m"]) -> pl.Series:
    if values.shape[1] == 0:
        return pl.Series([[] for _ in range(len(values))], dtype=pl.List(pl.Float64))
    return pl.Series(np.ascontiguousarray(values)).arr.to_list()


def _safe_name(given: str) -> str:
    """A model's name as a file gives it, fit to name a file by: no path, no control characters, at most 80 letters.

    >>> _safe_name("../../etc/x"), _safe_name("lora+wide, recalibrated"), _safe_name(" ")
    ('etc_x', 'lora+wide, recalibrated', '')
    """
    return "".join(c if c.isalnum() or c in " ._+,()-" else "_" for c in given)[:80].strip(" ._")


def _load(path: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    try:
        if path.is_dir():
            raise EhrError("this is a folder", str(path), "give the parquet file itself", code=Exit.BUNDLE)
        return pl.read_parquet(path, glob=False), pl.read_parquet_metadata(path)
    except FileNotFoundError:
        raise EhrError("the file does not exist", str(path), "check the path", code=Exit.BUNDLE) from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise EhrError(f"not a parquet file: {error}", str(path), "write it as parquet", code=Exit.BUNDLE) from None


def write_horizon_labels(
    predictions: Predictions, outcomes: pl.DataFrame, horizons: Sequence[float], folder: Path | str
) -> pl.DataFrame:
    """One file a horizon in the MEDS evaluation schema: the outcome within it beside its predicted probability.

    Args:
        outcomes: ``subject_id, prediction_time, duration, event`` of at least the predicted subjects.
        horizons: days; files are named ``horizon-<days>.parquet``.

    Returns:
        ``horizon_days, file, rows, left_out``: subjects censored before the horizon are left out and counted.

    Raises:
        EhrError: exit 13 where a subject has no outcome row, or a horizon lies beyond the curves.
    """
    written = []
    for horizon in map(float, horizons):
        labels = _within(predictions, outcomes, horizon)
        file = Path(folder) / f"horizon-{horizon:g}.parquet"
        with staged_file(file) as draft:
            labels.write_parquet(draft)
        written.append((horizon, file.name, labels.height, len(predictions) - labels.height))
    schema = {"horizon_days": pl.Float64, "file": pl.String, "rows": pl.Int64, "left_out": pl.Int64}
    return pl.DataFrame(written, schema=schema, orient="row")


def _within(predictions: Predictions, outcomes: pl.DataFrame, horizon: float) -> pl.DataFrame:
    """The MEDS evaluation table of one horizon, sorted by subject."""
    keys = ["subject_id", "prediction_time"]
    risk = predictions.outcome_risk_at(np.array([horizon]))[:, 0]  # [n]
    own = predictions.to_frame().select(keys).with_columns(predicted_boolean_probability=risk)
    known = own.join(outcomes.with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))), on=keys, how="inner")
    if known.height != len(predictions):
        missing = len(predictions) - known.height
        raise EhrError(
            f"{missing} predicted subjects have no outcome at their prediction_time",
            predictions.model or "predictions",
            "use the cohort these predictions were made for",
            code=Exit.BUNDLE,
        )
    labels = within_horizon(known, horizon).join(own, on=keys, how="left").sort(keys)
    no_choice = pl.lit(None, dtype=pl.Boolean).alias("predicted_boolean_value")
    return labels.select(*keys, "boolean_value", no_choice, "predicted_boolean_probability")
