"""The founding document's table, its boundaries and its escalation sentence, as data."""

from __future__ import annotations

import pytest

from ehrsequencing.config import BudgetConfig
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.training.recipes import RECIPES, choose_recipe, underfits


def test_the_table_is_the_founding_documents():
    small, medium, large = (RECIPES[name] for name in ("small", "medium", "large"))
    assert (small.strategy, small.lambda_rank, small.epochs_range, small.patience) == ("frozen", 0.05, (50, 100), 10)
    assert small.batch_range == (16, 32)
    assert (medium.strategy, medium.lambda_rank, medium.epochs, medium.patience) == ("lora", 0.1, 100, 15)
    assert (medium.batch_range, medium.clip_norm, medium.weight_decay) == ((32, 64), 1.0, 1e-5)
    assert STRATEGIES["lora"].lora_rank == 16
    assert set(large.compete) == {"lora-8", "lora", "full"}
    assert (large.lambda_range, large.epochs_range, large.batch_range) == ((0.1, 0.2), (100, 200), (64, 128))
    assert large.checkpoint == "c_index+calibration"


@pytest.mark.parametrize(
    ("patients", "name"), [(1, "small"), (1_999, "small"), (2_000, "medium"), (20_000, "medium"), (20_001, "large")]
)
def test_the_size_of_the_cohort_chooses(patients, name):
    assert choose_recipe(patients, patients // 2).recipe.name == name


def test_every_value_used_lies_in_the_published_range():
    for recipe in RECIPES.values():
        assert recipe.lambda_range[0] <= recipe.lambda_rank <= recipe.lambda_range[1]
        assert recipe.epochs_range[0] <= recipe.epochs <= recipe.epochs_range[1]
        assert recipe.batch_range[0] <= recipe.batch_size <= recipe.batch_range[1]


def test_few_events_warn_even_where_patients_abound():
    assert choose_recipe(50_000, 120).warnings
    assert len(choose_recipe(50_000, 80, 10).warnings) == 2
    assert not choose_recipe(50_000, 5_000).warnings


def test_the_sentence_says_what_and_why():
    text = choose_recipe(4_000, 600).text()
    for part in ("lora", "4,000", "600 events", "because", "lambda_rank 0.1", "patience 15", "weight decay 1e-05"):
        assert part in text


def test_departures_from_the_recipe_are_named():
    recipe, departures = RECIPES["large"].within(BudgetConfig(max_epochs=12, patience=4))
    assert (recipe.epochs, recipe.patience) == (12, 4)
    assert departures == ["at most 12 epochs instead of 200", "patience 4 instead of 15"]
    assert RECIPES["large"].within(BudgetConfig()) == (RECIPES["large"], [])


def test_underfitting_needs_both_a_low_score_and_a_small_gap():
    assert underfits(0.70, 0.69, 0.72)
    assert not underfits(0.70, 0.69, 0.68)
    assert not underfits(0.80, 0.69, 0.72)
