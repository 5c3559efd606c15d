"""Attributions add up to the difference in risk for every kind of bundle, and nothing is changed by explaining it."""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from ehrsequencing.attribution import Attributions, explain
from ehrsequencing.attribution.gradients import POINTS, TOLERANCE, integrate
from ehrsequencing.attribution.records import Records, feature_attributions, merged, sample
from ehrsequencing.attribution.risk import RowRisk, WideLogits, risk_by
from ehrsequencing.bundle import Bundle, Encoder, Row
from ehrsequencing.cohort import build_cohort, prediction_rows
from ehrsequencing.config import IndexConfig, SimulateConfig, SplitConfig, TokensConfig, load_task
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.recalibration import Recalibration
from ehrsequencing.features import FeatureMatrix
from ehrsequencing.inference import predict_rows
from ehrsequencing.models import backends
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.pretraining import BEHRTForMaskedLM
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study.data import divisions, prepare, pretraining_records
from ehrsequencing.synthetic import simulate
from ehrsequencing.timegrid import TimeGrid
from tiny_batches import shake, tiny_config

STRATEGIES = ("frozen", "frozen-ridge", "lora", "full")
KEYS = ["subject_id", "prediction_time"]
FEW = 8


HEAD_SCALE = {"mlp": 0.3, "linear": 0.03, "residual": 0.03}


class Untrained:
    """Everything a bundle needs but a training: a tiny encoder with random weights over a dataset's own codes."""

    def __init__(self, dataset, task, attention: str = "bidirectional") -> None:
        train = divisions(dataset, None, SplitConfig())[0].train_subjects()
        tokenizer, _ = pretraining_records(dataset, train, task, TokensConfig(max_tokens=64), attention)
        known = {"vocab_size": tokenizer.vocab_size, "value_codes": tokenizer.value_codes, "attention": attention}
        torch.manual_seed(0)
        self.encoder = Encoder(BEHRTForMaskedLM(tiny_config(**known)), tokenizer, {}, np.zeros(0))
        self.prepared = prepare(dataset, build_cohort(dataset, task), self.encoder)
        self.task, self.wide = task, fit_wide(self.prepared.data, penalties=(1e-2,))

    def bundle(self, strategy: str, **settings) -> Bundle:
        """Every weight moved a little, and a recalibration that does something."""
        data, causes = self.prepared.data, len(self.task.causes)
        settings = {"n_bins": data.grid.n_bins, "n_causes": causes, **settings}
        model = BEHRTForSurvival.from_encoder(self.encoder.model, strategy=strategy, **settings).eval()
        shake(model, 0.05)
        shake(model.hazard_head, HEAD_SCALE[model.config.head])
        shape = model.hazard_head.shape if model.config.head == "mlp" else model.hazard_head.bias.shape
        model.hazard_head.set_marginal(torch.full(tuple(shape), -1.5))
        slope = 1.3 if causes == 1 else np.array([1.3, 0.8])
        calibrated = Recalibration(slope, np.linspace(-0.2, 0.3, int(np.prod(shape))).reshape(tuple(shape)), "")
        rows = {f"{strategy}+wide": Row(0.4, calibrated), strategy: Row(1.0, calibrated), "wide": Row(0.0, None)}
        parts = (self.task, data.tokenizer, self.prepared.features, data.grid, model, self.wide)
        return Bundle(*parts, rows, {"seed": 3})


@pytest.fixture(scope="module")
def bundles(dataset) -> dict[str, Bundle]:
    untrained = Untrained(dataset, load_task(dataset.root / "task.yaml"))
    return {name: untrained.bundle(name) for name in STRATEGIES}


@pytest.fixture(scope="module")
def lora(bundles, dataset) -> Attributions:
    return explain(bundles["lora"], dataset, row="lora", patients=FEW)


def predicted(bundle: Bundle, dataset, found: Attributions, horizon: float) -> np.ndarray:
    told = predict_rows(bundle, dataset, found.patients.select(KEYS), found.model)
    return told.outcome_risk_at(np.array([horizon]))[:, 0]


@pytest.mark.parametrize("causes", [1, 3])
@pytest.mark.parametrize("horizon", [1.0, 30.0, 42.0, 90.0])
def test_the_risk_in_torch_is_the_grids_own(causes, horizon):
    grid = TimeGrid(np.array([0.0, 10.0, 42.0, 60.0, 90.0]))
    shape = (7, 4) if causes == 1 else (7, 4, causes)
    logits = np.random.default_rng(0).normal(0.0, 4.0, shape)
    own = RowRisk.of(Row(0.0, None), grid, horizon)(None, torch.from_numpy(logits))
    np.testing.assert_allclose(own, grid.risk(logits, horizon), rtol=1e-12, atol=1e-15)
    exposure = torch.from_numpy(grid.exposure(*grid.locate(np.array([horizon])))[0])
    inputs = torch.from_numpy(logits[:2]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: risk_by(x, exposure), (inputs,))


def test_a_quadratic_is_attributed_exactly_and_a_kink_takes_more_points():
    x, zero = torch.tensor([[1.0, 2.0, -1.0]]), torch.zeros(1, 3)
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.5, 2.0, -1.0], [0.0, -1.0, 0.3]])
    found = integrate(lambda z: ((z @ matrix) * z).sum(dim=1), (x,), (zero,))
    torch.testing.assert_close(found.parts[0], x * (x @ matrix))  # the path integral in closed form
    kinked = integrate(lambda z: (z - 0.31).relu().sum(dim=1), (x,), (zero,), tolerance=1e-3)
    assert kinked.steps.item() > found.steps.item() == POINTS
    assert abs(kinked.gap.item()) <= 1e-3
    torch.testing.assert_close(kinked.parts[0], torch.tensor([[0.69, 1.69, 0.0]]), atol=1e-3, rtol=0)
    stepped = integrate(lambda z: (z > 0.31).double().sum(dim=1) + 0 * z.sum(dim=1), (x,), (zero,))
    assert stepped.gap.item() == pytest.approx(-2.0)  # what cannot be attributed is told, not spread


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attributions_add_up_to_the_predicted_difference(bundles, dataset, strategy):
    bundle = bundles[strategy]
    for row in bundle.rows:
        found = explain(bundle, dataset, row=row, patients=FEW)
        assert found.completeness <= TOLERANCE, row
        moved = found.patients["risk"] - found.patients["baseline_risk"]
        assert moved.abs().mean() > 10 * TOLERANCE, row  # else the above says nothing
        risk = predicted(bundle, dataset, found, bundle.grid.tau)
        np.testing.assert_allclose(found.patients["risk"], risk, atol=1e-6, err_msg=row)


def test_a_shorter_horizon_is_explained_as_predicted(bundles, dataset):
    bundle = bundles["full"]
    horizon = float(bundle.grid.curve_times()[30])
    found = explain(bundle, dataset, row="full", horizon=horizon, patients=FEW)
    np.testing.assert_allclose(found.patients["risk"], predicted(bundle, dataset, found, horizon), atol=1e-6)
    assert found.completeness <= TOLERANCE


def test_the_wide_row_against_its_closed_form(bundles, dataset):
    bundle = bundles["full"]
    found = explain(bundle, dataset, row="wide", patients=FEW, tolerance=1e-9)
    records = Records.read(bundle, dataset, found.patients.select(KEYS), bundle.rows["wide"])
    part, x = WideLogits.of(bundle.wide), records.features.values[:, WideLogits.of(bundle.wide).columns]
    start = np.where(part.columns < 4, part.mean.numpy(), 0.0)
    share = (x - start) * part.scale.numpy() * part.weight.numpy()  # of the linear predictor: the path is straight
    moved = (found.patients["risk"] - found.patients["baseline_risk"]).to_numpy()
    expected = share / share.sum(axis=1, keepdims=True) * moved[:, None]
    table = merged([feature_attributions(records, records.features.names, part.columns, expected)])
    numbered = found.patients.select(KEYS).with_row_index("row").cast({"row": pl.Int64})
    both = table.join(numbered, on="row").join(
        found.table, on=[*KEYS, "code", "days_before"], nulls_equal=True, how="full"
    )
    assert both.height == found.table.height == table.height
    np.testing.assert_allclose(both["attribution"], both["attribution_right"], atol=1e-7)


def test_the_adapter_is_read_unmerged(bundles, dataset, lora):
    plain = copy.deepcopy(bundles["lora"])
    for name, parameter in plain.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.zeros_(parameter)
    other = explain(plain, dataset, row="lora", patients=FEW)
    assert np.abs(other.table["attribution"] - lora.table["attribution"]).max() > 1e-3


def test_padded_attention_gives_the_same_attributions(bundles, dataset, lora, monkeypatch):
    monkeypatch.setattr(backends, "fitting", lambda *_: "padded")
    padded = explain(bundles["lora"], dataset, row="lora", patients=FEW)
    np.testing.assert_allclose(padded.table["attribution"], lora.table["attribution"], atol=1e-5)


def state(model) -> dict[str, object]:
    named = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return {"grads": named, "hooks": hooks, "training": [module.training for module in model.modules()]}


@pytest.mark.parametrize("strategy", ["frozen", "lora"])
@pytest.mark.parametrize("fails", [False, True])
def test_explaining_changes_nothing_even_where_it_fails(bundles, dataset, monkeypatch, strategy, fails):
    bundle, rows = bundles[strategy], build_cohort(dataset, bundles[strategy].task).table.head(5)
    model = bundle.model.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, told = state(model), predict_rows(bundle, dataset, rows, strategy)
    if fails:
        monkeypatch.setattr(BEHRTModel, "encoded", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            explain(bundle, dataset, rows, row=strategy)
        monkeypatch.undo()
    else:
        explain(bundle, dataset, rows, row=strategy)
    assert state(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert np.array_equal(predict_rows(bundle, dataset, rows, strategy).survival, told.survival)
    model.eval()


def test_other_weights_give_other_attributions(bundles, dataset, lora):
    """Adebayo et al. 2018 (arXiv:1810.03292): what a saliency map shows must depend on what was learned."""
    other = copy.deepcopy(bundles["lora"])
    with torch.no_grad():
        draw = torch.Generator().manual_seed(1)
        for parameter in other.model.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel(), generator=draw)].view_as(parameter))
    found = explain(other, dataset, row="lora", patients=FEW)
    same = found.table.join(lora.table, on=[*KEYS, "code", "days_before"], nulls_equal=True)
    assert same.height == lora.table.height
    assert abs(same.select(pl.corr("attribution", "attribution_right", method="spearman")).item()) < 0.3


def test_static_codes_have_no_day_and_nothing_is_given_to_cls(lora):
    undated = lora.table.filter(pl.col("days_before").is_null())
    assert set(undated["code"]) <= {"SEX//M", "SEX//F"}
    assert undated.height == FEW
    assert "[CLS]" not in set(lora.table["code"])
    assert lora.table["days_before"].min() >= 0


def test_what_is_unknown_or_out_of_reach_is_refused(bundles, dataset):
    bundle = bundles["full"]
    with pytest.raises(EhrError, match="no row 'ful'") as caught:
        explain(bundle, dataset, row="ful")
    assert caught.value.code == Exit.USAGE
    for horizon in (0.0, -5.0, bundle.grid.tau + 1, float("nan")):
        with pytest.raises(EhrError, match="no risk by") as caught:
            explain(bundle, dataset, horizon=horizon)
        assert caught.value.code == Exit.USAGE
    nobody = pl.DataFrame(schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})
    with pytest.raises(EhrError, match="nobody") as caught:
        explain(bundle, dataset, nobody)
    assert caught.value.code == Exit.COHORT


def test_a_sample_is_of_latest_rows_and_does_not_depend_on_order():
    day = pl.Series([dt.datetime(2010, 1, 1) + dt.timedelta(days=number) for number in range(40)])
    rows = pl.DataFrame({"subject_id": np.arange(40) // 2, "prediction_time": day})
    drawn = sample(rows, 7, seed=1)
    assert drawn.equals(sample(rows.reverse(), 7, seed=1))
    assert not drawn.equals(sample(rows, 7, seed=2))
    assert drawn["subject_id"].is_sorted()
    assert drawn["prediction_time"].to_list() == [day[2 * int(subject) + 1] for subject in drawn["subject_id"]]
    assert sample(rows, None, 0).height == sample(rows, 99, 0).height == 20


def test_columns_are_shared_by_the_events_they_speak_of():
    now = dt.datetime(2020, 1, 31)
    when = [dt.datetime(2020, 1, day) for day in (1, 11, 21, 21)]
    history = pl.DataFrame(
        {
            "subject_id": [1] * 5,
            "prediction_time": [now] * 5,
            "time": [*when, None],
            "code": ["A", "A", "A", "B", "SEX//F"],
            "numeric_value": [5.0, 7.0, None, None, None],
        }
    )
    of_a = ["count:A", "recency:A", "last:A", "mean:A"]
    names = ["age", "record_years", "log_visits", *of_a, "recency:B", "static:SEX//F"]
    rows = history.select(KEYS).unique()
    records = Records(rows, history, None, FeatureMatrix(np.zeros((1, len(names)), np.float32), names))
    given = np.array([[0.5, 0.25, 0.125, 0.3, 0.2, 0.1, 0.04, 0.05, 0.01]])
    table = merged([feature_attributions(records, names, np.arange(len(names)), given)])
    expected = {
        ("age", None): 0.5,
        ("record", None): 0.375,
        ("A", 30.0): 0.1 + 0.02,
        ("A", 20.0): 0.1 + 0.1 + 0.02,  # the last value is of this day, the last event is not
        ("A", 10.0): 0.1 + 0.2,
        ("B", 10.0): 0.05,
        ("SEX//F", None): 0.01,
    }
    found = {(line["code"], line["days_before"]): line["attribution"] for line in table.to_dicts()}
    assert found == pytest.approx(expected)


@pytest.fixture(scope="module")
def competing(tmp_path_factory):
    """A bundle of two causes over a dataset of its own."""
    config = SimulateConfig(patients=120, noise_codes=5, competing_death=True)
    dataset = simulate(tmp_path_factory.mktemp("competing") / "meds", config)
    task = load_task(dataset.root / "task.yaml")
    return dataset, Untrained(dataset, task).bundle("lora")


@pytest.mark.parametrize("row", ["lora+wide", "lora", "wide"])
def test_with_competing_causes_the_incidence_of_the_outcome_is_explained(competing, row):
    dataset, bundle = competing
    found = explain(bundle, dataset, row=row, patients=FEW)
    assert found.completeness <= TOLERANCE
    assert (found.patients["risk"] - found.patients["baseline_risk"]).abs().mean() > 10 * TOLERANCE
    np.testing.assert_allclose(found.patients["risk"], predicted(bundle, dataset, found, bundle.grid.tau), atol=1e-6)


@pytest.fixture(scope="module")
def at_visits(dataset):
    own = load_task(dataset.root / "task.yaml")
    changes = {"index": IndexConfig(after_history_days=0), "evaluate_at": own.index, "predict_at": "every_visit"}
    untrained = Untrained(dataset, own.model_copy(update=changes), "block_causal")
    return untrained.bundle("full", predict_at="every_visit")


def test_at_visits_the_last_one_is_explained_from_what_it_saw(at_visits, dataset):
    bundle = at_visits
    rows = sample(prediction_rows(dataset, bundle.task), FEW, 0)
    earlier = prediction_rows(dataset, bundle.task).join(rows, on="subject_id", suffix="_last")
    earlier = earlier.filter(pl.col("prediction_time") < pl.col("prediction_time_last"))
    middle = earlier.group_by("subject_id").agg(pl.col("prediction_time").sort().slice(pl.len() // 2, 1).first())
    for asked in (rows, middle.sort("subject_id")):
        found = explain(bundle, dataset, asked, row="full")
        assert found.completeness <= TOLERANCE
        assert found.table["days_before"].min() >= 0
        np.testing.assert_allclose(
            found.patients["risk"], predicted(bundle, dataset, found, bundle.grid.tau), atol=1e-6
        )
        assert found.table.filter(pl.col("days_before") == 0)["attribution"].abs().max() > 0
    assert explain(bundle, dataset, rows, row="wide").completeness <= TOLERANCE


def test_a_wide_part_without_weights_leaves_nothing_to_tell(bundles, dataset):
    bundle = bundles["full"]
    silent = replace(bundle.wide, weight=np.zeros_like(bundle.wide.weight))
    found = explain(replace(bundle, wide=silent), dataset, row="wide", patients=FEW)
    assert not found.table.height
    assert found.completeness == 0.0
