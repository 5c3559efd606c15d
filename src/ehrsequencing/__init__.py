"""Time-to-event prediction from longitudinal health records.

The names below load what they need when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "BEHRTConfig": "models.behrt",
    "BEHRTForSurvival": "models.behrt_survival",
    "BudgetConfig": "config",
    "Bundle": "bundle",
    "Cohort": "cohort",
    "EhrError": "errors",
    "Encoder": "bundle",
    "MedsDataset": "events",
    "Predictions": "predictions",
    "PretrainConfig": "config",
    "ProgressDisplay": "cli.progress",
    "SimulateConfig": "config",
    "TaskConfig": "config",
    "apply_lora_to_behrt": "models.lora",
    "build_cohort": "cohort",
    "choose_recipe": "training.recipes",
    "convert_csv": "sources.mapped",
    "convert_omop": "sources.omop",
    "convert_synthea": "sources.synthea",
    "evaluate_held_out": "study.steps",
    "explain": "attribution",
    "finetune": "training.finetune",
    "finetune_outcomes": "training.outcomes",
    "from_dataframe": "events",
    "load_task": "config",
    "make_bundle": "study.assemble",
    "predict": "inference",
    "prepare": "study.data",
    "prepare_outcomes": "study.outcomes",
    "pretrain": "study.steps",
    "run_study": "study",
    "simulate": "synthetic",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ehrsequencing' has no attribute '{name}'")
    return getattr(import_module(f"ehrsequencing.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from ehrsequencing.attribution.explaining import explain
    from ehrsequencing.bundle import Bundle, Encoder
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.cohort import Cohort, build_cohort
    from ehrsequencing.config import BudgetConfig, PretrainConfig, SimulateConfig, TaskConfig, load_task
    from ehrsequencing.errors import EhrError
    from ehrsequencing.events import MedsDataset, from_dataframe
    from ehrsequencing.inference import predict
    from ehrsequencing.models.behrt import BEHRTConfig
    from ehrsequencing.models.behrt_survival import BEHRTForSurvival
    from ehrsequencing.models.lora import apply_lora_to_behrt
    from ehrsequencing.predictions import Predictions
    from ehrsequencing.sources.mapped import convert_csv
    from ehrsequencing.sources.omop import convert_omop
    from ehrsequencing.sources.synthea import convert_synthea
    from ehrsequencing.study import run_study
    from ehrsequencing.study.assemble import make_bundle
    from ehrsequencing.study.data import prepare
    from ehrsequencing.study.outcomes import prepare_outcomes
    from ehrsequencing.study.steps import evaluate_held_out, pretrain
    from ehrsequencing.synthetic.simulate import simulate
    from ehrsequencing.training.finetune import finetune
    from ehrsequencing.training.outcomes import finetune_outcomes
    from ehrsequencing.training.recipes import choose_recipe
