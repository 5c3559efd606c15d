"""What several tests share: one small simulated dataset, its cohort, an encoder, and what models read of them."""

from __future__ import annotations

import pytest
import torch

from ehrsequencing.batches import SurvivalData
from ehrsequencing.bundle import Encoder
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import BudgetConfig, ModelConfig, PretrainConfig, SimulateConfig, load_task
from ehrsequencing.events import MedsDataset
from ehrsequencing.study.data import Prepared, prepare
from ehrsequencing.study.steps import pretrain
from ehrsequencing.synthetic import simulate
from ehrsequencing.training.recipes import RECIPES, Recipe

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    return simulate(tmp_path_factory.mktemp("simulated") / "meds", SimulateConfig(patients=240, noise_codes=20))


@pytest.fixture(scope="session")
def encoder(dataset: MedsDataset) -> Encoder:
    return pretrain(dataset, PretrainConfig(epochs=1, batch_size=32), model=ModelConfig(dropout=0.0))


@pytest.fixture(scope="session")
def prepared(dataset: MedsDataset, encoder: Encoder) -> Prepared:
    return prepare(dataset, build_cohort(dataset, load_task(dataset.root / "task.yaml")), encoder)


@pytest.fixture(scope="session")
def data(prepared: Prepared) -> SurvivalData:
    return prepared.data


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The medium recipe cut to two epochs."""
    return RECIPES["medium"].within(BudgetConfig(max_epochs=2, patience=2))[0]
