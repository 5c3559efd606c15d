"""Several outcomes at once: what is shared is computed once, what is learned jointly is learned from all of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from typer.testing import CliRunner

from ehrsequencing.bundle import Bundle
from ehrsequencing.cli.verbs import app
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import TRAIN, BudgetConfig, load_task
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.events import MedsDataset
from ehrsequencing.inference import row_logits
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import encode, hazard_logits
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.models.strategies import find_strategy
from ehrsequencing.nonparametric import for_outcome
from ehrsequencing.study import readable
from ehrsequencing.study.data import prepare
from ehrsequencing.study.outcomes import load_tasks, prepare_outcomes, write_outcomes
from ehrsequencing.study.steps import write_bundle
from ehrsequencing.tokens import TokenStore
from ehrsequencing.training.finetune import finetune, new_model
from ehrsequencing.training.joint import JointSurvival, OutcomesObjective
from ehrsequencing.training.outcomes import finetune_outcomes
from ehrsequencing.training.recipes import RECIPES
from ehrsequencing.training.resume import Resume, StateStore
from ehrsequencing.training.union import SharedFeatures, UnionRows
from interrupted import KillAfter, KilledError
from test_resume import assert_same
from test_resume_study import assert_same_files

OUTCOMES = {
    "heart_failure": {"outcome": "ICD10CM//I50.9"},
    "kidney": {"outcome": "ICD10CM//N18.3", "competing": {"infarction": "ICD10CM//I21.9"}},
    "hypertension": {"outcome": "ICD10CM//I10"},
}
"""The second and third leave other patients out (washout), and have other grids; the second has two causes."""
SHORT = BudgetConfig(max_epochs=2, patience=2)
STILL = {"dropout": 0.0, "code_dropout": 0.0}


@pytest.fixture(scope="module")
def tasks(dataset, tmp_path_factory):
    """A TASK.yaml an outcome."""
    folder = tmp_path_factory.mktemp("tasks")
    return {name: write_task(dataset, folder, name, **keys) for name, keys in OUTCOMES.items()}


def write_task(dataset: MedsDataset, folder, name, *, file=None, **keys):
    given = yaml.safe_load((dataset.root / "task.yaml").read_text())
    path = folder / f"{file or name}.yaml"
    path.write_text(yaml.safe_dump({**given, "name": name, **keys}))
    return path


@pytest.fixture(scope="module")
def cohorts(dataset, tasks):
    return [build_cohort(dataset, load_task(path)) for path in tasks.values()]


@pytest.fixture(scope="module")
def datas(dataset, encoder, cohorts):
    return {name: each.data for name, each in prepare_outcomes(dataset, cohorts, encoder).items()}


@pytest.fixture(scope="module")
def jointly(datas, recipe, encoder):
    return finetune_outcomes(datas, "lora", recipe, encoder.model)


@pytest.fixture
def passes(monkeypatch):
    """How many rows each run of an encoder for its pooled features has read."""
    rows: list[int] = []

    def counted(model, store, at):
        rows.append(len(at))
        return encode(model, store, at)

    for place in ("training.union", "training.finetune"):
        monkeypatch.setattr(f"ehrsequencing.{place}.encode", counted)
    return rows


def start(datas, encoder) -> tuple[JointSurvival, OutcomesObjective]:
    """A joint model as it starts, and its objective; without dropout."""
    shared = SharedFeatures(UnionRows.of(datas))
    shares = {"dropout": 0.0, "head_dropout": 0.0, "code_dropout": 0.0}
    lora = find_strategy("lora")
    model, _ = JointSurvival.start(datas, shared, lambda each: new_model(each, lora, encoder.model, 0, shares, None))
    return model.train(), OutcomesObjective(model, datas, shared.rows, 0.1)


class TestRows:
    def test_records_are_cut_and_tokenised_once_and_give_what_each_cohort_alone_gives(
        self, dataset, encoder, cohorts, monkeypatch
    ):
        counts: list[int] = []
        tokenize = readable.tokenize
        monkeypatch.setattr(readable, "tokenize", lambda h, rows, t: counts.append(len(rows)) or tokenize(h, rows, t))
        found = prepare_outcomes(dataset, cohorts, encoder)
        assert counts == [240]
        assert sum(len(each.data) for each in found.values()) > 400
        for cohort in cohorts:
            own, alone = found[cohort.task.name], prepare(dataset, cohort, encoder)
            assert own.data.rows.equals(alone.data.rows)
            assert own.data.tokens.fingerprint == alone.data.tokens.fingerprint
            assert np.array_equal(own.data.features.values, alone.data.features.values)
            assert own.data.grid == alone.data.grid
            assert own.casemix == alone.casemix

    def test_every_prediction_is_in_the_union_once_and_each_outcome_finds_its_own(self, datas):
        rows = UnionRows.of(datas)
        assert len(rows) == 240 == len(np.unique(rows.tokens.subject_id))
        for name, data in datas.items():
            assert np.array_equal(rows.tokens.subject_id[rows.places[name]], data.tokens.subject_id)

    def test_two_times_of_one_patient_are_two_rows(self, datas):
        data = datas["kidney"]
        later = replace(data.tokens, prediction_time=data.tokens.prediction_time + np.timedelta64(1, "D"))
        other = replace(data, tokens=later)
        assert len(UnionRows.of({"a": data, "b": other})) == 2 * len(data)

    def test_joined_stores_are_their_rows_in_turn(self, datas):
        tokens = datas["kidney"].tokens
        halves = [tokens.take(np.arange(50)), tokens.take(np.arange(50, len(tokens)))]
        joined = TokenStore.joined(halves)
        assert joined.fingerprint == tokens.fingerprint
        assert np.array_equal(joined.offsets, tokens.offsets)
        with pytest.raises(EhrError) as refused:
            TokenStore.joined([halves[0], replace(halves[1], tokenizer_fingerprint="other")])
        assert refused.value.code == Exit.CONFIG


class TestFrozen:
    @pytest.mark.parametrize("strategy", ["frozen-ridge", "frozen"])
    def test_each_outcome_is_fitted_as_alone_after_one_pass_of_the_encoder(
        self, datas, recipe, encoder, passes, strategy
    ):
        found = finetune_outcomes(datas, strategy, recipe, encoder.model, seed=3)
        assert passes == [240]
        for name, data in datas.items():
            alone = finetune(data, strategy, recipe, encoder.model, seed=3)
            assert found[name].logits.shape == alone.logits.shape
            assert np.abs(found[name].logits - alone.logits).max() < 1e-5
            assert found[name].notes == alone.notes
        assert passes == [240, *(len(data) for data in datas.values())]

    def test_a_control_with_two_heads_is_as_alone_too(self, datas, recipe, encoder):
        found = finetune_outcomes(datas, "frozen-random", recipe, encoder.model)
        alone = finetune(datas["kidney"], "frozen-random", recipe, encoder.model)
        assert np.abs(found["kidney"].logits - alone.logits).max() < 1e-5


class TestJoint:
    def test_of_one_outcome_it_is_the_ordinary_fine_tuning(self, datas, recipe, encoder):
        data = datas["kidney"]
        found = finetune_outcomes({"kidney": data}, "lora", recipe, encoder.model, **STILL)["kidney"]
        alone = finetune(data, "lora", recipe, encoder.model, **STILL)
        assert np.abs(found.logits - alone.logits).max() < 1e-4
        assert [epoch.best for epoch in found.history] == [epoch.best for epoch in alone.history]
        for one, two in zip(found.history, alone.history, strict=True):
            assert one.metrics == pytest.approx(two.metrics, abs=1e-4)
        assert found.notes == alone.notes

    def test_a_steps_loss_is_the_mean_of_the_outcomes_own(self, datas, encoder):
        """Against each outcome's whole model on its own patients of the step."""
        model, objective = start(datas, encoder)
        rows = np.arange(20, 60)
        subjects = objective.rows.tokens.subject_id[objective.train[rows]]
        expected = []
        for name, data in datas.items():
            at = data.index(TRAIN)
            at = at[np.isin(data.tokens.subject_id[at], subjects)]
            t, view = data.targets(at), model.views[name]
            logits = torch.from_numpy(hazard_logits(view, data.tokens, at))
            expected.append(hybrid_loss(logits, t.bin, t.fraction, t.event, t.duration, 0.1).loss)
        assert float(objective.loss(rows).detach()) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)

    def test_the_encoder_learns_from_every_outcome_a_head_from_its_own(self, datas, encoder):
        """The joint gradient is the mean of the outcomes' gradients, and each of them reaches one head only."""
        model, objective = start(datas, encoder)
        rows = np.arange(40)
        joint = gradients(model, lambda: objective.loss(rows))
        singly = []
        for number, each in enumerate(objective.outcomes.values()):
            own = each.among(objective.train[rows])
            objective._encoded.hold(objective.train[rows], model.pooled(objective.rows, objective.train[rows]))
            found = gradients(model, lambda each=each, own=own: each.objective.loss(own))
            assert {name.split(".")[1] for name in found if name.startswith("heads.")} == {str(number)}
            assert any("lora_B" in name for name in found)
            singly.append(found)
        for name, gradient in joint.items():
            expected = sum(each[name] for each in singly if name in each) / len(singly)
            assert torch.allclose(gradient, expected, atol=1e-6), name

    def test_a_step_without_an_outcomes_patients_leaves_its_head_alone(self, datas, encoder):
        model, objective = start(datas, encoder)
        at = objective.train
        others = [each.position[at] for name, each in objective.outcomes.items() if name != "heart_failure"]
        rows = np.flatnonzero(np.all(np.array(others) < 0, axis=0))
        assert 5 < len(rows) < len(at)
        found = gradients(model, lambda: objective.loss(rows))
        assert {name.split(".")[1] for name in found if name.startswith("heads.")} == {"0"}
        own = objective.outcomes["heart_failure"]
        assert float(objective.loss(rows).detach()) == pytest.approx(
            float(own.objective.loss(own.among(at[rows])).detach()), abs=1e-6
        )

    def test_all_outcomes_share_one_trained_encoder_each_has_its_own_head(self, jointly, encoder):
        first, *others = (fitted.model for fitted in jointly.values())
        base = encoder.model.state_dict()
        for name, tensor in first.behrt.state_dict().items():
            for other in others:
                assert torch.equal(tensor, other.behrt.state_dict()[name]), name
            plain = name.replace(".base_layer", "")
            assert ("lora_" in name) != (plain in base)
            assert "lora_" in name or torch.equal(tensor, base[plain])
        moved = [t.abs().sum() > 0 for name, t in first.behrt.state_dict().items() if "lora_B" in name]
        assert len(moved) > 0
        assert all(moved)
        assert first.behrt is not others[0].behrt
        assert [fitted.logits.shape[1:] for fitted in jointly.values()] == [(5,), (4, 2), (4,)]

    def test_epochs_are_selected_by_the_mean_c_and_recorded_by_outcome(self, jointly, datas):
        best = [next(epoch for epoch in fitted.history if epoch.best) for fitted in jointly.values()]
        assert len({epoch.epoch for epoch in best}) == 1
        c = []
        for name, data in datas.items():
            at = data.index("tuning")
            t = data.targets(at)
            outcome = for_outcome(t.duration.numpy(), t.event.numpy(), data.grid.tau)
            c.append(harrell_c(*outcome, data.grid.risk(jointly[name].logits[at])))
        assert [epoch.metrics["tuning_c"] for epoch in best] == pytest.approx(c, abs=1e-6)
        assert [epoch.metrics["score"] for epoch in best] == pytest.approx([np.mean(c)] * 3, abs=1e-6)
        assert set(best[0].metrics) == {"train_c", "tuning_c", "tuning_brier", "tuning_nll", "score"}
        assert any("trained jointly with 2 other outcomes" in note for note in jointly["kidney"].notes)

    def test_an_outcome_without_a_comparable_pair_on_tuning_leaves_the_choice_to_the_others(self, datas, encoder):
        """Its likelihood is on another scale than a C, and is not averaged with one."""
        one_epoch = RECIPES["medium"].within(BudgetConfig(max_epochs=1))[0]
        data = datas["hypertension"]
        silent = pl.when(pl.col("split") == "tuning").then(0).otherwise(pl.col("event")).cast(pl.Int8)
        both = {"kidney": datas["kidney"], "hypertension": replace(data, rows=data.rows.with_columns(event=silent))}
        found = finetune_outcomes(both, "lora", one_epoch, encoder.model)
        epochs = {name: fitted.history[0].metrics for name, fitted in found.items()}
        assert "tuning_c" not in epochs["hypertension"]
        assert epochs["hypertension"]["score"] == epochs["kidney"]["tuning_c"]
        assert any("the other outcomes selected the epochs" in note for note in found["hypertension"].notes)
        assert not any("the other outcomes selected" in note for note in found["kidney"].notes)

    def test_where_no_epoch_does_better_the_heads_and_the_encoder_are_as_they_started(
        self, datas, recipe, encoder, monkeypatch
    ):
        monkeypatch.setattr(OutcomesObjective, "start_score", lambda self, shared: 2.0)
        found = finetune_outcomes(datas, "lora", recipe, encoder.model)
        for name, data in datas.items():
            ridge = finetune(data, "frozen-ridge", recipe, encoder.model)
            difference = np.abs(found[name].logits - ridge.logits).max()
            assert difference < 0.1  # the residual head's small network starts near zero
            assert all("lora_B" not in n or not t.any() for n, t in found[name].model.behrt.state_dict().items())
            assert not any(epoch.best for epoch in found[name].history)

    def test_of_several_learning_rates_the_one_is_kept_that_is_better_on_average(self, datas, encoder, tmp_path):
        one_epoch = RECIPES["medium"].within(BudgetConfig(max_epochs=1))[0]
        two = {name: datas[name] for name in ("heart_failure", "kidney")}
        lora = find_strategy("lora")
        rates = (1e-3, 1e-4)
        alone = {
            rate: finetune_outcomes(two, replace(lora, learning_rate=rate), one_epoch, encoder.model) for rate in rates
        }
        loss = {r: np.mean([f.tuning(two[n])["tuning_nll"] for n, f in fits.items()]) for r, fits in alone.items()}
        best = min(rates, key=lambda rate: loss[rate])
        tried = replace(lora, learning_rates=rates)
        resume = Resume(tmp_path / "work")
        found = finetune_outcomes(two, tried, one_epoch, encoder.model, resume=resume)
        for name, fitted in found.items():
            assert np.array_equal(fitted.logits, alone[best][name].logits)
            assert fitted.strategy is tried
            assert any(f"at learning rate {best:g} kept" in note for note in fitted.notes)
        assert len(list((tmp_path / "work").iterdir())) == 2

    def test_the_whole_encoder_moves_where_the_strategy_says_so(self, datas, encoder):
        recipe = RECIPES["medium"].within(BudgetConfig(max_epochs=1))[0]
        two = {name: datas[name] for name in ("heart_failure", "kidney")}
        found = finetune_outcomes(two, "from-scratch", recipe, encoder.model)
        untrained = BEHRTForSurvival.from_encoder(encoder.model, strategy="from-scratch")
        assert found["kidney"].counts["encoder"] == sum(p.numel() for p in untrained.behrt.parameters())
        assert np.isfinite(found["kidney"].logits).all()

    def test_a_killed_run_goes_on_to_the_same_bytes(self, datas, recipe, encoder, jointly, tmp_path, monkeypatch):
        monkeypatch.setattr("ehrsequencing.training.resume.SHARE", 0)
        resume = Resume(tmp_path / "work", every=0)
        with pytest.raises(KilledError):
            finetune_outcomes(datas, "lora", recipe, encoder.model, resume=resume, progress=KillAfter(4))
        notes = KillAfter(10_000)
        found = finetune_outcomes(datas, "lora", recipe, encoder.model, resume=resume, progress=notes)
        assert any("resumed in epoch 2" in note for note in notes.notes)
        for name, fitted in found.items():
            assert_same(fitted, jointly[name])
            assert np.array_equal(fitted.logits, jointly[name].logits)
            assert fitted.notes == jointly[name].notes


def gradients(model, loss) -> dict[str, torch.Tensor]:
    """Of every parameter that the loss has a gradient for, other than zero throughout."""
    model.zero_grad(set_to_none=True)
    loss().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.any()}


def refusal(call) -> EhrError:
    with pytest.raises(EhrError) as refused:
        call()
    return refused.value


class TestRefused:
    def test_two_tasks_of_one_name(self, dataset, tmp_path):
        paths = [write_task(dataset, tmp_path, name, file=f"t{k}") for k, name in enumerate(("HF", "hf"))]
        error = refusal(lambda: load_tasks(paths))
        assert error.code == Exit.CONFIG
        assert "t0.yaml and" in error.where
        assert "'hf'" in error.what

    def test_a_name_that_leads_out_of_the_folder(self, dataset, tmp_path):
        error = refusal(lambda: load_tasks([write_task(dataset, tmp_path, "..", file="t")]))
        assert error.code == Exit.CONFIG

    @pytest.mark.parametrize(
        ("keys", "named"),
        [
            ({"input": {"lookback_days": 365}}, "input.lookback_days"),
            ({"input": {"exclude": ["ATC//C09AA05"]}}, "input.exclude"),
            ({"delay": [{"code": "ATC//C09AA05", "days": 7}]}, "delay"),
            ({"predict_at": "every_visit"}, "predict_at"),
        ],
    )
    def test_tasks_that_cut_records_otherwise(self, dataset, tmp_path, keys, named):
        paths = [write_task(dataset, tmp_path, "plain"), write_task(dataset, tmp_path, "other", **keys)]
        error = refusal(lambda: load_tasks(paths))
        assert error.code == Exit.CONFIG
        assert f"'plain' and 'other' differ in {named}" in error.what
        assert named in error.fix

    def test_predictions_at_every_visit(self, dataset, tmp_path):
        paths = [write_task(dataset, tmp_path, name, predict_at="every_visit") for name in ("one", "two")]
        assert refusal(lambda: load_tasks(paths)).code == Exit.CONFIG

    def test_other_records_of_the_same_prediction(self, datas, recipe, encoder):
        data = datas["kidney"]
        cut = replace(data, tokens=replace(data.tokens, gap=data.tokens.gap + np.float32(1)))
        error = refusal(lambda: finetune_outcomes({"a": data, "b": cut}, "lora", recipe, encoder.model))
        assert error.code == Exit.CONFIG
        assert "'b' are cut otherwise" in error.what

    @pytest.mark.parametrize("strategy", ["lora", "frozen-ridge"])
    def test_a_patient_that_one_outcome_trains_on_and_another_holds_out(self, datas, recipe, encoder, strategy):
        data = datas["kidney"]
        moved = data.rows["split"].to_list()
        moved[moved.index("train")] = "held_out"
        crossed = replace(data, rows=data.rows.with_columns(split=pl.Series(moved)))
        both = {"heart_failure": datas["heart_failure"], "kidney": crossed}
        error = refusal(lambda: finetune_outcomes(both, strategy, recipe, encoder.model))
        assert error.code == Exit.LEAKAGE
        assert "1 subjects" in error.what
        assert "train in 'heart_failure', held_out in 'kidney'" in error.what

    @pytest.mark.parametrize("names", [(), ("a/b",)])
    def test_no_outcome_or_an_unfit_name(self, datas, recipe, encoder, names):
        error = refusal(lambda: finetune_outcomes(dict.fromkeys(names, datas["kidney"]), "lora", recipe, encoder.model))
        assert error.code == Exit.CONFIG


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    encoder.save(folder)
    return folder


def ehrseq(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def written(dataset, tasks, saved, tmp_path_factory):
    """What the verb said, and the folder it left; one epoch of LoRA."""
    first, *others = tasks.values()
    out = tmp_path_factory.mktemp("written") / "out"
    more = [word for path in others for word in ("--also", path)]
    known = ("--encoder", saved, "--strategy", "lora", "--set", "lora_rank=4", "--max-epochs", 1, *more)
    return ehrseq("finetune", dataset.root, first, out, *known), out


class TestVerb:
    def test_a_bundle_an_outcome_that_every_verb_takes(self, dataset, tasks, written, tmp_path):
        said, out = written
        assert said.exit_code == 0, said.output
        assert "The recipe of the smallest cohort, that of hypertension, is taken for all 3 outcomes." in said.stdout
        assert f"next: ehrseq predict {out / 'heart_failure'}" in said.stderr
        listed = json.loads((out / "outcomes.json").read_text())
        assert list(listed["outcomes"]) == list(OUTCOMES)
        assert {path.name for path in out.iterdir()} == {*OUTCOMES, "outcomes.json"}
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        for name in OUTCOMES:
            bundle = Bundle.load(out / name)
            assert bundle.task.name == name
            assert listed["outcomes"][name]["tuning"] == bundle.facts["tuning"]
            assert list(bundle.rows) == ["lora-changed+wide", "lora-changed", "wide"]
            assert bundle.model.config.lora_rank == 4
        predicted = ehrseq("predict", out / "kidney", dataset.root, tmp_path / "p.parquet")
        assert predicted.exit_code == 0, predicted.output
        assert "cif_infarction" in pl.read_parquet(tmp_path / "p.parquet").columns
        ehrseq("cohort", dataset.root, tasks["kidney"], tmp_path / "cohort")
        judged = ehrseq("evaluate", tmp_path / "p.parquet", tmp_path / "cohort", "--bootstrap", 0)
        assert judged.exit_code == 0, judged.output
        assert "Harrell C" in judged.stdout

    def test_a_reloaded_bundle_predicts_what_fine_tuning_gave(self, dataset, encoder, datas, written):
        recipe = RECIPES["small"].within(BudgetConfig(max_epochs=1))[0]
        narrow = replace(find_strategy("lora"), lora_rank=4, lora_alpha=8)
        expected = finetune_outcomes(datas, narrow, recipe, encoder.model)
        for name, data in datas.items():
            bundle = Bundle.load(written[1] / name)
            assert bundle.row("lora-changed")[1].unchanged  # too few tuning events to recalibrate by
            _, logits = row_logits(bundle, dataset, data.rows, "lora-changed")
            assert np.abs(logits - expected[name].logits).max() < 1e-5

    def test_the_folder_around_several_bundles_is_told_from_a_bundle(self, dataset, tasks, saved, written):
        out = written[1]
        error = refusal(lambda: Bundle.load(out))
        assert error.code == Exit.BUNDLE
        assert "heart_failure, hypertension, kidney" in error.fix
        error = refusal(lambda: write_bundle(dataset.root, tasks["kidney"], out, encoder=saved))
        assert error.code == Exit.ENVIRONMENT

    def test_frozen_features_give_the_bundles_of_the_single_outcomes(self, dataset, tasks, saved, tmp_path):
        options = {"encoder": saved, "strategy": "frozen-ridge", "budget": SHORT}
        two = {name: tasks[name] for name in ("heart_failure", "kidney")}
        write_outcomes(dataset.root, list(two.values()), tmp_path / "out", **options)
        for name, path in two.items():
            write_bundle(dataset.root, path, tmp_path / name, **options)
            found, alone = (Bundle.load(folder / name) for folder in (tmp_path / "out", tmp_path))
            assert {k: row.to_json() for k, row in found.rows.items()} == {
                k: row.to_json() for k, row in alone.rows.items()
            }
            assert found.facts["tuning"] == pytest.approx(alone.facts["tuning"], abs=1e-6)
            for key, tensor in found.model.state_dict().items():
                assert torch.allclose(tensor, alone.model.state_dict()[key], atol=1e-5), key

    def test_killed_it_goes_on_and_leaves_the_same_files(self, dataset, tasks, saved, tmp_path, monkeypatch):
        """The strategy is that of the recipe, for the smallest cohort."""
        monkeypatch.setattr(StateStore, "due", lambda self: True)
        said: list[str] = []

        def run(folder, progress):
            paths = [tasks["heart_failure"], tasks["hypertension"]]
            write_outcomes(dataset.root, paths, tmp_path / folder, encoder=saved, budget=SHORT, progress=progress,
                           say=said.append)  # fmt: skip

        run("whole", KillAfter(10_000))
        assert "frozen is its strategy" in "\n".join(said)
        with pytest.raises(KilledError):
            run("out", KillAfter(2, "hypertension: frozen"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "whole"]
        notes = KillAfter(10_000)
        run("out", notes)
        assert "finished earlier" in notes.notes
        assert any("resumed in epoch 1, after" in note for note in notes.notes)
        assert_same_files(tmp_path / "out", tmp_path / "whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]

    def test_a_mistake_leaves_nothing(self, dataset, tasks, saved, tmp_path):
        kidney = tasks["kidney"]
        twin = ehrseq("finetune", dataset.root, kidney, tmp_path / "out", "--encoder", saved, "--also", kidney)
        assert isinstance(twin.exception, EhrError)
        assert twin.exception.code == Exit.CONFIG
        assert list(tmp_path.iterdir()) == []
