"""A bundle predicts what its run predicted, holds an adapter over its base, and refuses to be anything but whole."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from ehrsequencing.bundle import Bundle, Encoder, Row
from ehrsequencing.config import TUNING, load_task
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.recalibration import Recalibration
from ehrsequencing.inference import predict, to_predictions
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.training.finetune import finetune


@pytest.fixture(scope="module")
def made(dataset, prepared, encoder, recipe, tmp_path_factory):
    """A saved LoRA bundle with the run it came from."""
    task = load_task(dataset.root / "task.yaml")
    fitted = finetune(prepared.data, "lora", recipe, encoder.model)
    bundle = make_bundle(prepared, task, fitted, fit_wide(prepared.data), {"seed": 0})
    folder = tmp_path_factory.mktemp("bundles") / "lora"
    bundle.save(folder)
    return folder, bundle, fitted


@pytest.mark.parametrize("row", ["lora+wide", "lora", "wide"])
def test_a_loaded_bundle_predicts_what_the_run_predicted(made, dataset, prepared, row):
    folder, bundle, fitted = made
    data = prepared.data
    logits = bundle.rows[row].logits(fitted.logits, bundle.wide.logits(data.features.values))
    expected = to_predictions(logits, data.rows, data.grid, row, data.cohort_fingerprint)
    found = predict(Bundle.load(folder), dataset, row=row)
    at = np.searchsorted(found.subject_id, expected.subject_id)
    assert np.array_equal(found.subject_id[at], expected.subject_id)
    assert np.allclose(found.risk[at], expected.risk, rtol=1e-5)
    assert np.allclose(found.survival[at], expected.survival, atol=1e-5)


def test_the_blend_is_the_default_row(made, dataset):
    assert Bundle.load(made[0]).default_row == "lora+wide"
    assert predict(Bundle.load(made[0]), dataset).model == "lora+wide"


def test_lora_is_stored_as_an_adapter_over_its_base(made, encoder):
    folder, _, _ = made
    assert (folder / "adapter.safetensors").stat().st_size < 500_000
    base = Bundle.load(folder).model.behrt.state_dict()
    for name, tensor in encoder.model.state_dict().items():
        kept = base.get(name, base.get(name.replace("_proj.", "_proj.base_layer.")))
        assert torch.equal(kept, tensor), name


@pytest.mark.parametrize("strategy", ["frozen", "frozen-ridge", "full"])
def test_every_kind_of_model_survives_the_disk(dataset, prepared, encoder, recipe, strategy, tmp_path):
    fitted = finetune(prepared.data, strategy, recipe, encoder.model)
    task = load_task(dataset.root / "task.yaml")
    bundle = make_bundle(prepared, task, fitted, fit_wide(prepared.data), {})
    bundle.save(tmp_path / "bundle")
    again = predict(Bundle.load(tmp_path / "bundle"), dataset, row=strategy)
    direct = predict(bundle, dataset, row=strategy)
    assert np.allclose(again.risk, direct.risk, rtol=1e-6)


def test_neither_patients_nor_places_are_named_in_it(made):
    folder, _, _ = made
    for path in [*folder.rglob("*.json"), folder / "MODEL_CARD.md"]:
        text = path.read_text()
        assert "subject_id" not in text, path.name
        assert str(folder.parent) not in text, path.name


@pytest.mark.parametrize("damage", ["missing", "altered", "cut short", "newer", "no manifest", "garbage"])
def test_a_bundle_that_is_not_whole_is_refused(made, tmp_path, damage):
    folder = tmp_path / "bundle"
    shutil.copytree(made[0], folder)
    manifest = folder / "bundle.json"
    content = json.loads(manifest.read_text())
    if damage == "missing":
        (folder / "grid.json").unlink()
    elif damage == "altered":
        (folder / "grid.json").write_text((folder / "grid.json").read_text() + " ")
    elif damage == "cut short":
        weights = folder / "wide.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "newer":
        manifest.write_text(json.dumps({**content, "format": 99}))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    with pytest.raises(EhrError) as caught:
        Bundle.load(folder)
    assert caught.value.code == Exit.BUNDLE


def test_an_unknown_row_names_the_known_ones(made):
    with pytest.raises(EhrError, match="no row 'lore'") as caught:
        Bundle.load(made[0]).row("lore")
    assert "lora" in caught.value.fix


def test_a_row_blends_then_recalibrates_once():
    deep, wide = np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])
    assert np.allclose(Row(0.25, None).logits(deep, wide), [[0.5, 0.75]])
    assert np.allclose(Row(0.25, Recalibration(2.0, np.array([1.0, 0.0]), "")).logits(deep, wide), [[2.0, 1.5]])
    with pytest.raises(ValueError, match="needs a part"):
        Row(0.25, None).logits(deep, None)


def test_recalibration_is_fitted_on_the_blend_of_the_tuning_split(made, prepared):
    _, bundle, fitted = made
    data = prepared.data
    row = bundle.rows["lora+wide"]
    at = data.index(TUNING)
    raw = Row(row.alpha, None).logits(fitted.logits[at], bundle.wide.logits(data.features.values[at]))
    targets = data.targets(at)
    expected = Recalibration.fit(raw, targets.duration.numpy(), targets.event.numpy(), data.grid)
    assert row.recalibration.to_json() == expected.to_json()


def test_an_encoder_survives_the_disk_and_a_foreign_folder_is_refused(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    again = Encoder.load(tmp_path / "encoder")
    assert again.record == json.loads(json.dumps(encoder.record))
    assert again.tokenizer.fingerprint == encoder.tokenizer.fingerprint
    for name, tensor in encoder.masked_lm.state_dict().items():
        assert torch.equal(again.masked_lm.state_dict()[name], tensor)
    with pytest.raises(EhrError) as caught:
        Encoder.load(tmp_path)
    assert caught.value.code == Exit.BUNDLE
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(EhrError) as caught:
        encoder.save(tmp_path / "full")
    assert caught.value.code == Exit.ENVIRONMENT
    assert (tmp_path / "full" / "thesis.txt").exists()
