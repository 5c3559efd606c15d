"""Fits everything a study names on one division of the subjects, and scores the held-out rows of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.attribution.explaining import explain_rows
from ehrsequencing.attribution.writing import JSON_FILE as ATTRIBUTIONS
from ehrsequencing.baselines import BASELINES, Fitted
from ehrsequencing.batches import SurvivalData, VisitData
from ehrsequencing.bundle import ENCODER_MARKER, Bundle, Encoder
from ehrsequencing.cohort import Cohort
from ehrsequencing.config import HELD_OUT, StudyConfig, TaskConfig
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import staged_file, write_json
from ehrsequencing.inference import to_predictions
from ehrsequencing.models.own_strategies import read_strategy
from ehrsequencing.models.strategies import Strategy
from ehrsequencing.models.wide import RidgeHazard
from ehrsequencing.predictions import Predictions
from ehrsequencing.report.inputs import TRAJECTORIES
from ehrsequencing.study.assemble import WIDE, blend_name, calibrated_row, make_bundle
from ehrsequencing.study.data import Division, Prepared, kept_from_outcomes, prepare, pretraining_records
from ehrsequencing.study.ensembles import ensembles
from ehrsequencing.study.kept import Kept, Scored
from ehrsequencing.study.oracle import ORACLE, WHY, oracle_predictions
from ehrsequencing.study.simple import simple_models
from ehrsequencing.study.trajectories import best_bundle, example_trajectories
from ehrsequencing.training.finetune import FeatureCache, finetune
from ehrsequencing.training.loop import Progress, Tick
from ehrsequencing.training.pretrain import pretrain
from ehrsequencing.training.recipes import Recipe
from ehrsequencing.training.resume import Resume
from ehrsequencing.training.told import learned


@dataclass(frozen=True)
class Workplace:
    """What fitting one division needs to know of its study."""

    study: StudyConfig
    task: TaskConfig
    dataset: MedsDataset
    recipe: Recipe
    kept: Kept
    progress: Progress
    say: Callable[[str], None]


def fit_division(work: Workplace, division: Division, cohort: Cohort, tau: float) -> tuple[list[Scored], Prepared]:
    """Pretrain, fit every strategy and simple model the study names, keep their bundles, score the held-out rows."""
    encoder = _encoder(work, division)
    prepared = prepare(work.dataset, cohort, encoder, work.study.features, tau)
    wide_fit = BASELINES[WIDE].fit(prepared.data, 0)
    scored = [*_simple_models(work, division, prepared, wide_fit), *_oracle(work.dataset, prepared)]
    cache = FeatureCache()
    for strategy in map(read_strategy, work.study.strategies):
        of_seeds: list[Scored] = []
        for seed in work.study.seeds[:1] if strategy.deterministic else work.study.seeds:
            fit = partial(_one_strategy, work, division, prepared, encoder, _hazard(wide_fit), strategy, seed, cache)
            of_seeds += work.kept.scored(f"strategy-{strategy.name}-{seed}{division.tag}", fit)
        scored += of_seeds
        if work.study.ensemble and strategy.kind == "strategy":
            scored += ensembles(of_seeds)
    if prepared.data.visits is not None:
        _write_trajectories(work, division, prepared.data.visits)
    _write_attributions(work, division, prepared.data)
    return scored, prepared


def _encoder(work: Workplace, division: Division) -> Encoder:
    """The division's encoder, as an interrupted run left it where one did."""
    folder = work.kept.result / f"encoder{division.tag}"
    if not (folder / ENCODER_MARKER).is_file():
        return pretrain_encoder(work, division)
    work.say(f"encoder{division.tag}: taken over from the interrupted run")
    return Encoder.load(folder)


def _best_bundle(work: Workplace, division: Division) -> Bundle | None:
    """The best strategy's, of the first seed."""
    every = map(read_strategy, work.study.strategies)
    names = [strategy.name for strategy in every if strategy.kind == "strategy"]
    seed = work.study.seeds[0]
    return best_bundle([work.kept.result / "models" / f"{name}-{seed}{division.tag}" for name in names])


def _write_trajectories(work: Workplace, division: Division, visits: VisitData) -> None:
    """Example patients of the best strategy; of the first division, where there are several."""
    place = work.kept.result / TRAJECTORIES
    best = None if place.exists() else _best_bundle(work, division)
    examples = None if best is None else example_trajectories(best, visits)
    if examples is not None:
        with staged_file(place) as draft:
            examples.write_parquet(draft)


def _write_attributions(work: Workplace, division: Division, data: SurvivalData) -> None:
    """What the best strategy's predictions of held-out patients rest on; of the first division."""
    place = work.kept.result / ATTRIBUTIONS
    best = _best_bundle(work, division) if work.study.explain and not place.exists() else None
    if best is not None:
        rows = data.rows[data.index(HELD_OUT)]
        write_json(
            place, explain_rows(best, work.dataset, rows, max_patients=work.study.explain, progress=work.progress)
        )


def pretrain_encoder(work: Workplace, division: Division) -> Encoder:
    """An encoder pretrained on the division's training subjects, kept under ``encoder<tag>/``."""
    loop = work.kept.loops(f"encoder{division.tag}")
    tokens = loop.folder.with_name(f"{loop.folder.name}-tokens")
    tokenizer, store = pretraining_records(
        work.dataset,
        division.train_subjects(),
        work.task,
        work.study.tokens,
        work.study.model.attention,
        calendar=work.study.split.calendar,
        folder=tokens,
    )
    result = pretrain(
        store,
        tokenizer,
        kept_from_outcomes(work.study.pretrain, work.dataset, work.task),
        work.study.model,
        seed=work.study.seeds[0],
        progress=work.progress,
        resume=loop,
    )
    encoder = Encoder(result.model, tokenizer, result.record, np.sort(Encoder.hashes(store.subject_id)), result.heads)
    encoder.save(work.kept.result / f"encoder{division.tag}")
    for folder in (loop.folder, tokens):
        shutil.rmtree(folder, ignore_errors=True)
    record = encoder.record
    work.say(f"encoder{division.tag}: {record['subjects']:,} records, {record['tokens']:,} tokens; {learned(record)}")
    return encoder


def _one_strategy(
    work: Workplace,
    division: Division,
    prepared: Prepared,
    encoder: Encoder,
    wide: RidgeHazard,
    strategy: Strategy,
    seed: int,
    cache: FeatureCache,
    resume: Resume,
) -> Iterator[Scored]:
    fitted = finetune(
        prepared.data,
        strategy,
        work.recipe,
        encoder.model,
        seed=seed,
        dropout=work.study.model.dropout,
        code_dropout=work.study.model.code_dropout,
        attention=work.study.model.attention,
        cache=cache,
        progress=work.progress,
        resume=resume,
    )
    facts = {"study": work.study.name, "seed": seed, "recipe": work.recipe.name, "fold": division.tag}
    facts |= {} if division.tag else {"split": work.study.split.model_dump(mode="json")}
    bundle = make_bundle(prepared, work.task, fitted, wide, facts)
    bundle.save(work.kept.result / "models" / f"{strategy.name}-{seed}{division.tag}")
    yield from _bundle_rows(bundle, prepared, strategy, seed, fitted.logits, fitted.seconds)


def _bundle_rows(
    bundle: Bundle,
    prepared: Prepared,
    strategy: Strategy,
    seed: int,
    logits: Float64[np.ndarray, "N K *R"],
    seconds: float,
) -> Iterator[Scored]:
    data, at = prepared.data, prepared.data.index(HELD_OUT)
    rows, counts = data.rows[at], bundle.facts["parameters"]
    wide = bundle.wide.logits(data.features.values[at])
    for name, row in bundle.rows.items():
        if name == WIDE:
            continue
        blended = name == blend_name(strategy.name)
        about = rows, data.grid, name, data.cohort_fingerprint, data.causes
        yield Scored(
            model=name,
            kind=strategy.kind,
            why=f"{strategy.name} and wide, hazard logits blended on tuning" if blended else strategy.why,
            seed=seed,
            predictions=to_predictions(row.logits(logits[at], wide), *about),
            raw=None if row.unchanged else to_predictions(row.unadjusted.logits(logits[at], wide), *about),
            seconds=seconds,
            trainable=counts["trainable"] + (bundle.wide.n_parameters if blended else 0),
            total=counts["total"] + (bundle.wide.n_parameters if blended else 0),
            alpha=row.alpha if blended else None,
            notes=(*bundle.facts["notes"], *row.notes),
        )


def _simple_models(work: Workplace, division: Division, prepared: Prepared, wide_fit: Fitted) -> Iterator[Scored]:
    for name in work.study.baselines:
        seeded = simple_models(work.recipe)[name].seeded
        for seed in work.study.seeds if seeded else work.study.seeds[:1]:
            fit = partial(_one_simple, work, prepared, wide_fit, name, seed)
            yield from work.kept.scored(f"baseline-{name}-{seed}{division.tag}", fit)


def _one_simple(
    work: Workplace, prepared: Prepared, wide_fit: Fitted, name: str, seed: int, resume: Resume
) -> Iterator[Scored]:
    data, at = prepared.data, prepared.data.index(HELD_OUT)
    baseline = simple_models(work.recipe, work.study.model, work.progress, resume)[name]
    work.progress(Tick(name, 0, 1))
    fitted = wide_fit if name == WIDE else baseline.fit(data, seed)
    work.progress(Tick(name, 1, 1, f"fitted in {fitted.seconds:.1f} s"))
    raw = _as_fitted(data, at, name, fitted)
    predictions, note = _calibrated(data, at, raw, fitted)
    yield Scored(
        model=name,
        kind="baseline",
        why=baseline.why,
        seed=seed,
        predictions=predictions,
        raw=None if predictions is raw else raw,
        seconds=fitted.seconds,
        trainable=fitted.n_parameters,
        total=fitted.n_parameters,
        notes=(*fitted.notes, *note),
    )


def _as_fitted(data: SurvivalData, at: Int64[np.ndarray, " m"], name: str, fitted: Fitted) -> Predictions:
    """A simple model's held-out predictions before any recalibration."""
    return Predictions(
        subject_id=data.rows["subject_id"].to_numpy()[at],
        prediction_time=data.rows["prediction_time"].to_numpy()[at],
        risk=fitted.risk[at],
        horizon_days=data.grid.curve_times(),
        survival=fitted.survival[at],
        cohort_fingerprint=data.cohort_fingerprint,
        model=name,
        cif={} if fitted.cif is None else {cause: fitted.cif[at, :, r] for r, cause in enumerate(data.causes)},
    )


def _calibrated(
    data: SurvivalData, at: Int64[np.ndarray, " m"], raw: Predictions, fitted: Fitted
) -> tuple[Predictions, tuple[str, ...]]:
    """``raw`` recalibrated on tuning as strategies are; one curve for all stays as it is."""
    if np.ptp(fitted.risk) == 0:
        return raw, ()
    curves = fitted.survival if fitted.cif is None else fitted.cif
    logits = data.grid.logits_of(curves) if fitted.logits is None else fitted.logits
    row = calibrated_row(data, 0.0, logits, logits)
    if row.unchanged:
        return raw, ()
    about = raw.model, data.cohort_fingerprint, data.causes
    return to_predictions(row.logits(None, logits[at]), data.rows[at], data.grid, *about), row.notes


def _hazard(wide_fit: Fitted) -> RidgeHazard:
    if wide_fit.model is None:
        raise ValueError(f"the baseline '{WIDE}' keeps no fitted hazard")
    return wide_fit.model


def _oracle(dataset: MedsDataset, prepared: Prepared) -> Iterator[Scored]:
    """The simulator's own hazards, where the dataset was simulated."""
    found = oracle_predictions(dataset, prepared.data, prepared.data.index(HELD_OUT))
    if found is not None:
        yield Scored(ORACLE, ORACLE, WHY, 0, found[0], notes=found[1])
