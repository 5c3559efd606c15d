"""Competing risks on the simulator, from records to incidences by cause, against the hazards that drew the events."""

from __future__ import annotations

import numpy as np
import pytest

from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import HELD_OUT, TRAIN, ModelConfig, PretrainConfig, SimulateConfig, load_task
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.inference import predict
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.nonparametric import AalenJohansen, for_outcome
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.data import prepare
from ehrsequencing.study.steps import pretrain
from ehrsequencing.synthetic import read_truth, simulate, true_cif
from ehrsequencing.training.finetune import finetune

KEYS = ["subject_id", "prediction_time"]


@pytest.mark.slow
def test_incidences_come_nearer_to_the_truth_than_the_average_curve(tmp_path, recipe):
    dataset = simulate(tmp_path / "meds", SimulateConfig(patients=900, noise_codes=20, competing_death=True))
    task = load_task(dataset.root / "task.yaml")
    cohort = build_cohort(dataset, task)
    assert set(cohort.table["event"]) == {0, 1, 2}
    encoder = pretrain(dataset, PretrainConfig(epochs=1, batch_size=64), model=ModelConfig(dropout=0.0))
    prepared = prepare(dataset, cohort, encoder)
    data = prepared.data
    fitted = finetune(data, "frozen-ridge", recipe, encoder.model)
    make_bundle(prepared, task, fitted, fit_wide(data), {}).save(tmp_path / "bundle")

    found = predict(Bundle.load(tmp_path / "bundle"), dataset)
    held_out = data.index(HELD_OUT)
    rows = data.rows[held_out]
    at = np.searchsorted(found.subject_id, rows["subject_id"].to_numpy())
    found = found.take(at)
    truth = rows.select(KEYS).join(read_truth(dataset.root), on=KEYS, how="left", maintain_order="left")
    times = np.array([365.25, 1000.0, data.grid.tau])
    train = data.targets(data.index(TRAIN))
    average = AalenJohansen.fit(train.duration.numpy(), train.event.numpy()).at(times)  # (m, R)
    for r, (cause, exact) in enumerate(true_cif(truth, times).items()):
        error = np.abs(found.cif_at(cause, times) - exact).mean(axis=0)
        assert (error < 0.9 * np.abs(average[:, r] - exact).mean(axis=0)).all(), cause
        assert np.abs(found.cif_at(cause, times).mean(axis=0) - exact.mean(axis=0)).max() < 0.06
    t = data.targets(held_out)
    outcome = for_outcome(t.duration.numpy(), t.event.numpy(), data.grid.tau)
    assert harrell_c(*outcome, found.risk) > 0.62
