"""Strategies of one's own: what a setting changes, what is refused, and that a study and the command line take them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from ehrsequencing.bundle import Bundle
from ehrsequencing.cli import main
from ehrsequencing.config import StrategyConfig, StudyConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.footprint import count_parameters
from ehrsequencing.models.lora import FEED_FORWARD, TARGETS, adapter_of, is_norm
from ehrsequencing.models.own_strategies import read_strategy
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.study import run_study
from ehrsequencing.study.run import read_study
from ehrsequencing.study.steps import changed_strategy
from ehrsequencing.training.finetune import finetune


def own(**settings):
    return read_strategy(StrategyConfig(**{"name": "mine", "like": "lora", **settings}))


def test_nothing_changed_is_the_strategy_itself_under_another_name(data, encoder, recipe):
    assert np.array_equal(
        finetune(data, own(), recipe, encoder.model).logits, finetune(data, "lora", recipe, encoder.model).logits
    )


def test_settings_reach_the_adapter_and_what_is_trained(data, encoder, recipe):
    chosen = own(lora_rank=4, lora_targets="attention+feed_forward", lora_dora=True, train_beside=("norms",))
    fitted = finetune(data, chosen, recipe, encoder.model)
    found = adapter_of(fitted.model.behrt)
    assert (found.rank, found.alpha, found.dora) == (4, 8, True)
    assert set(found.targets) == {*TARGETS, *FEED_FORWARD}
    beside = {name for name, p in fitted.model.behrt.named_parameters() if p.requires_grad and "lora_" not in name}
    assert beside == {name for name, _ in fitted.model.behrt.named_parameters() if is_norm(name)}
    assert fitted.model.behrt.config.lora_train_norms
    assert fitted.counts["lora"] > count_parameters(finetune(data, "lora-8", recipe, encoder.model).model)["lora"] / 4


def test_a_strategy_says_what_it_changes():
    assert own(lora_rank=4, hazards="per_bin").why == "lora with lora_rank 4, hazards per_bin"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"like": "full", "lora_rank": 4}, "has no adapters"),
        ({"like": "frozen", "train_beside": ("norms",)}, "has no adapters"),
        ({"head": "linear"}, "moves the encoder"),
        ({"like": "full", "head": "best"}, "moves the encoder"),
        ({"like": "frozen-ridge", "learning_rate": 1e-3}, "fitted to convergence"),
        ({"encoder_rate": 0.1}, "none of the encoder's own weights"),
        ({"like": "frozen", "unfreeze_every": 2}, "frozen"),
        ({"name": "lora"}, "built-in"),
        ({"like": "lorra"}, "unknown strategy 'lorra'"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, said):
    with pytest.raises(EhrError, match=said) as caught:
        own(**settings)
    assert caught.value.code == Exit.CONFIG


def test_with_embeddings_beside_adapters_the_encoder_rate_has_something_to_slow():
    assert own(train_beside=("embeddings",), encoder_rate=0.1).trains == {"head", "lora", "embeddings"}


@pytest.mark.parametrize("name", ["wide", "cox", "oracle", "lora+wide", "mine-ensemble"])
def test_another_rows_name_is_refused(tmp_path, name):
    path = tmp_path / "study.yaml"
    entry = {"name": name, "like": "lora"}
    path.write_text(yaml.safe_dump({"name": "s", "data": "x", "task": "t", "strategies": [entry]}))
    with pytest.raises(EhrError) as caught:
        read_study(path)
    assert caught.value.code == Exit.CONFIG


def test_a_strategy_of_ones_own_has_the_control_of_what_it_trains():
    assert own(like="full", learning_rate=3e-4).control == "from-scratch"
    assert own(like="frozen", learning_rate=3e-4).control == "frozen-random"
    assert own(like="lora", lora_rank=4).control is None
    assert own(like="from-scratch", learning_rate=3e-4).control is None


def test_two_of_one_name_are_refused(tmp_path):
    twice = [{"name": "a", "like": "lora"}, {"name": "a", "like": "full"}]
    with pytest.raises(ValueError, match="strategies names the same twice"):
        StudyConfig(name="s", data="x", task="t", strategies=twice)


def test_settings_from_the_command_line_are_read_as_yaml():
    found = changed_strategy("full", ["learning_rates=[1e-3, 3e-4]", "encoder_rate=0.1", "hazards=per_bin"])
    assert (found.learning_rates, found.encoder_rate, found.hazards) == ((1e-3, 3e-4), 0.1, "per_bin")
    assert len(found.candidates) == 2


@pytest.mark.parametrize(
    ("name", "setting", "code"),
    [
        ("auto", "lora_rank=4", Exit.USAGE),
        ("lora", "lora_rank", Exit.USAGE),
        ("lora", "like=full", Exit.USAGE),
        ("lora", "lora_rnk=4", Exit.CONFIG),
        ("lora", "lora_rank=0", Exit.CONFIG),
        ("lora", "lora_rank=[", Exit.USAGE),
        ("lora", "learning_rate=-1", Exit.CONFIG),
        ("lora", "lora_rank=", Exit.USAGE),
        ("lora", "lora_targets=[q_proj, kproj]", Exit.CONFIG),
        ("lora", "lora_targets=[]", Exit.CONFIG),
        ("lora", "lora_targets=code_embedding", Exit.CONFIG),
        ("lora", "learning_rates=[0.001, 0.001]", Exit.CONFIG),
    ],
)
def test_a_slip_on_the_command_line_says_so(name, setting, code):
    with pytest.raises(EhrError) as caught:
        changed_strategy(name, [setting])
    assert caught.value.code == code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of a strategy of one's own, two seeds and their mean."""
    folder = tmp_path_factory.mktemp("own")
    mine = {"name": "lora-ff", "like": "lora", "lora_rank": 2, "lora_targets": ["feed_in"], "hazards": "per_bin"}
    study = {
        "name": "own",
        "data": {"simulate": {"patients": 240, "noise_codes": 20}},
        "task": "task.yaml",
        "labelled": 160,
        "pretrain": {"epochs": 1},
        "strategies": ["frozen-ridge", mine],
        "baselines": ["kaplan-meier"],
        "seeds": [0, 1],
        "ensemble": True,
        "budget": {"max_epochs": 1, "patience": 1},
        "bootstrap": 20,
        "explain": 0,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    run_study(folder / "study.yaml", folder / "out")
    return folder / "out"


def rows_of(out):
    return {row["model"]: row for row in json.loads((out / "comparison.json").read_text())["rows"]}


def test_a_study_fits_it_and_its_bundle_carries_its_adapter(finished):
    bundle = Bundle.load(finished / "models" / "lora-ff-1")
    found = adapter_of(bundle.model.behrt)
    assert (found.rank, found.targets) == (2, ("feed_in",))
    assert bundle.model.config.head_hazards == "per_bin"
    assert set(bundle.rows) == {"lora-ff+wide", "lora-ff", "wide"}


def ehrseq(*arguments) -> int:
    """The exit code of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ehrseq", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_the_mean_of_the_seeds_is_a_row_that_costs_all_of_them(finished):
    rows = rows_of(finished)
    assert "frozen-ridge-ensemble" not in rows  # one seed: the same for all
    mean, one = rows["lora-ff-ensemble"], rows["lora-ff"]
    assert mean["trainable"] == 2 * one["trainable"]
    assert mean["seconds"] == pytest.approx(2 * one["seconds"])
    assert {"lora-ff+wide-ensemble"} <= set(rows)


def test_predict_with_several_bundles_gives_the_studys_mean(finished, tmp_path):
    from ehrsequencing.predictions import Predictions

    models = finished / "models"
    ehrseq("predict", models / "lora-ff-0", finished / "meds", tmp_path / "p.parquet", "--also", models / "lora-ff-1")
    found = Predictions.read(tmp_path / "p.parquet")
    expected = Predictions.read(finished / "predictions" / "lora-ff+wide-ensemble-0.parquet")
    at = np.searchsorted(found.subject_id, expected.subject_id)
    assert np.allclose(found.survival[at], expected.survival, atol=1e-5)
    assert np.allclose(found.risk[at], expected.risk, rtol=1e-5)


def test_merge_leaves_a_plain_bundle_that_predicts_the_same(finished, tmp_path):
    from ehrsequencing.events import MedsDataset
    from ehrsequencing.inference import predict

    folder = finished / "models" / "lora-ff-0"
    assert ehrseq("merge", folder, tmp_path / "merged") == 0
    merged, dataset = Bundle.load(tmp_path / "merged"), MedsDataset.open(finished / "meds")
    assert adapter_of(merged.model.behrt) is None
    assert merged.facts["parameters"]["total"] == sum(p.numel() for p in merged.model.parameters())
    assert (tmp_path / "merged" / "model").is_dir()
    for row in merged.rows:
        before, after = predict(Bundle.load(folder), dataset, row=row), predict(merged, dataset, row=row)
        assert np.allclose(before.survival, after.survival, atol=1e-5)
    assert ehrseq("merge", tmp_path / "merged", tmp_path / "twice") == Exit.BUNDLE


def test_bundles_of_another_split_or_given_twice_are_refused(finished, tmp_path):
    models = finished / "models"
    words = ("predict", models / "lora-ff-0", finished / "meds", tmp_path / "p.parquet", "--also")
    assert ehrseq(*words, models / "lora-ff-0") == Exit.USAGE
    other = Bundle.load(models / "lora-ff-1")
    other.facts["fold"] = "-fold1"
    other.save(tmp_path / "other")
    assert ehrseq(*words, tmp_path / "other") == Exit.BUNDLE
    assert ehrseq(*words, models / "lora-ff-1", "--row", "lora-ff") == 0


def test_merge_never_writes_over_its_input(finished):
    folder = finished / "models" / "lora-ff-0"
    assert ehrseq("merge", folder, folder) == Exit.ENVIRONMENT
    assert ehrseq("merge", folder, folder / "sub") == Exit.ENVIRONMENT
    assert adapter_of(Bundle.load(folder).model.behrt) is not None


def test_a_mean_of_seeds_is_a_kind_of_its_own(finished):
    """It is never set against a control of single seeds."""
    assert rows_of(finished)["lora-ff-ensemble"]["kind"] == "ensemble"


def test_merge_refuses_a_bundle_without_adapters(finished, tmp_path):
    assert ehrseq("merge", finished / "models" / "frozen-ridge-0", tmp_path / "m") == Exit.BUNDLE
    assert not (tmp_path / "m").exists()


def test_every_named_strategy_is_its_own_only_candidate_but_the_better_of_two_heads():
    assert [name for name, s in STRATEGIES.items() if len(s.candidates) > 1] == ["frozen-random"]
