"""Adapts an encoder to one outcome by a strategy: cached features for frozen encoders, tokens for the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ehrsequencing.batches import SurvivalData, Targets, collate, micro_batches
from ehrsequencing.config import HELD_OUT, TRAIN, TUNING, FinetuneConfig, ModelConfig, OptimizerConfig
from ehrsequencing.evaluation.metrics import harrell_c, integrated_brier
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import encode, hazard_logits
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.models.strategies import FootprintAudit, Strategy, apply_strategy, footprint
from ehrsequencing.models.wide import RidgeHazard, fit_ridge_hazard
from ehrsequencing.nonparametric import censoring_distribution
from ehrsequencing.training.checkpoints import calibrated_choice
from ehrsequencing.training.loop import Epoch, Progress, Schedule, silent, train
from ehrsequencing.training.recipes import Recipe
