"""50 epochs of a frozen strategy on 2,000 patients: encoded once, in every epoch, or as a textbook would: frozen.py.

All train the same head (`frozen`) from the same start on the same batches. The product encodes once, in eval mode;
the second loop is the product's, too, but encodes in every epoch; the textbook loop pads to 512 and encodes in every
epoch in training mode. The last two are measured over fewer epochs, which all cost the same. CPU seconds of one thread.
With dropout off the losses of all three must be the same; the script fails where they are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import readme
import torch
from machine import environment, sentence
from torch import nn
from workload import LONGEST, N_BINS, SEED, cpu, lengths, records, valued_codes

from ehrsequencing.batches import SurvivalData, collate, epoch_batches
from ehrsequencing.config import TRAIN, TUNING, TokensConfig
from ehrsequencing.features import FeatureMatrix
from ehrsequencing.models import backends
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel, make_encoder
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import encode
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.models.strategies import find_strategy
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import N_SPECIAL, Tokenizer
from ehrsequencing.tokens.standardiser import Standardiser
from ehrsequencing.tokens.vocabulary import SPECIAL
from ehrsequencing.training.finetune import FeatureCache, dropouts, new_model, schedule_of, start_head
from ehrsequencing.training.loop import train, warmup_cosine
from ehrsequencing.training.objectives import SurvivalObjective
from ehrsequencing.training.pacing import make_optimizer
from ehrsequencing.training.recipes import RECIPES

PATIENTS, TUNED, N_CODES, EPOCHS, TURNS = 2_000, 400, 1_000, 50, 3
RECIPE = replace(RECIPES["small"], epochs=EPOCHS, patience=EPOCHS)
STRATEGY = find_strategy("frozen")
TOLERANCE, TAU = 1e-5, 1_000.0
"""Of the size of a loss; days."""


def data() -> SurvivalData:
    """Random records and outcomes of ``PATIENTS``, ``TUNED`` of them for tuning."""
    rng, store = np.random.default_rng(SEED), records(lengths(PATIENTS), N_CODES)
    valued = np.array(valued_codes(N_CODES))
    values = Standardiser(valued, np.zeros(len(valued)), np.ones(len(valued)), TokensConfig().value_clip)
    tokenizer = Tokenizer((*SPECIAL, *(f"C{i}" for i in range(N_CODES))), values, TokensConfig())
    time = rng.exponential(500, PATIENTS)
    rows = pl.DataFrame(
        {
            "subject_id": store.subject_id,
            "prediction_time": store.prediction_time,
            "duration": np.minimum(time, TAU),
            "event": ((time < TAU) & (rng.random(PATIENTS) < 0.5)).astype(np.int8),
            "split": np.where(np.arange(PATIENTS) < PATIENTS - TUNED, TRAIN, TUNING),
        }
    )
    store = replace(store, tokenizer_fingerprint=tokenizer.fingerprint)
    grid = TimeGrid(np.linspace(0, TAU, N_BINS + 1))
    return SurvivalData(rows, store, FeatureMatrix(np.zeros((PATIENTS, 1), np.float32), ["age"]), grid, tokenizer, "")


def start(of: SurvivalData, encoder: BEHRTModel, dropout: float | None) -> tuple[BEHRTForSurvival, FeatureCache]:
    """A model under ``frozen`` with its head as the product starts it, and the features it was started from."""
    model, cache = new_model(of, STRATEGY, encoder, SEED, dropouts(dropout, 0.0), None), FeatureCache()
    start_head(model, of, cache)
    return model, cache


def product(of: SurvivalData, encoder: BEHRTModel, dropout: float | None, epochs: int) -> list[float]:
    """Losses of each epoch; the one pass of the encoder is part of it."""
    model, cache = start(of, encoder, dropout)
    features = cache.get(model, of)
    return looped(model, of, lambda rows: model.hazards(features[torch.from_numpy(rows)]), epochs)


def encoded_anew(of: SurvivalData, encoder: BEHRTModel, dropout: float | None, epochs: int) -> list[float]:
    """The product's loop without its cache."""
    model, _ = start(of, encoder, dropout)
    return looped(model, of, lambda rows: model.hazards(encode(model, of.tokens, rows)), epochs)


def looped(model: BEHRTForSurvival, of: SurvivalData, forward: Callable[..., torch.Tensor], epochs: int) -> list[float]:
    schedule = replace(schedule_of(STRATEGY, RECIPE, SEED, model.config.num_hidden_layers), max_steps=steps(of, epochs))
    return [epoch.train_loss for epoch in train(model, SurvivalObjective(of, forward, RECIPE.lambda_rank), schedule)]


def steps(of: SurvivalData, epochs: int) -> int:
    return epochs * -(-len(of.index(TRAIN)) // RECIPE.batch_size)


def textbook(of: SurvivalData, encoder: BEHRTModel, dropout: float | None, epochs: int) -> list[float]:
    """Everything padded to 512 and in training mode, the tuning rows' logits looked at after each epoch."""
    model, _ = start(of, encoder, dropout)
    schedule = schedule_of(STRATEGY, RECIPE, SEED, model.config.num_hidden_layers)
    optimizer = make_optimizer(model, schedule.optimizer)
    factor = warmup_cosine(steps(of, epochs), schedule.optimizer.warmup_fraction)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rows, generator, found = of.index(TRAIN), np.random.default_rng(SEED), []
    torch.manual_seed(SEED)

    def logits(at: np.ndarray) -> torch.Tensor:
        return model(collate(of.tokens, at).widened(LONGEST))[:, 0]

    with patch.object(backends, "fitting", lambda *_: "padded"):
        for _ in range(epochs):
            model.train()
            model.behrt.train()  # the product holds a frozen encoder in eval mode
            losses = []
            for part in epoch_batches(len(rows), RECIPE.batch_size, generator):
                t = of.targets(rows[part])
                optimizer.zero_grad(set_to_none=True)
                own = logits(rows[part])
                loss = hybrid_loss(own, t.bin, t.fraction.to(own.dtype), t.event, t.duration, RECIPE.lambda_rank).loss
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip_norm)
                optimizer.step()
                rate.step()
                losses.append(float(loss.detach()))
            found.append(float(np.mean(losses)))
            with torch.no_grad():
                model.eval()
                for part in np.array_split(of.index(TUNING), -(-TUNED // RECIPE.batch_size)):
                    logits(part)
    return found


LOOPS: dict[str, tuple[Callable[..., list[float]], int]] = {
    "textbook: padded to 512, encoded in training mode in every epoch": (textbook, 1),
    "the product without its cache: encoded in eval mode in every epoch": (encoded_anew, 5),
    "the product: encoded once": (product, EPOCHS),
}
"""Each loop, and over how many epochs it is measured."""


def same_losses(of: SurvivalData, encoder: BEHRTModel) -> float:
    """The largest relative difference of two epochs' losses with dropout off."""
    losses = np.array([loop(of, encoder, 0.0, 2) for loop, _ in LOOPS.values()])
    apart = float((np.abs(losses - losses[0]) / losses[0]).max())
    if apart > TOLERANCE:
        raise RuntimeError(f"losses differ by {apart:.2g}: {losses.tolist()}")
    return apart


def race(architecture: str) -> dict[str, Any]:
    """CPU seconds of 50 epochs by loop and turn, and how far losses are apart with dropout off."""
    torch.manual_seed(SEED)
    config = BEHRTConfig.small(
        N_SPECIAL + N_CODES, architecture=architecture, value_codes=valued_codes(N_CODES), n_bins=N_BINS
    )
    of, encoder = data(), make_encoder(config)
    found: dict[str, Any] = {"apart": same_losses(of, encoder), "seconds": {name: [] for name in LOOPS}}
    once = FeatureCache()
    found["start"] = cpu(lambda: once.get(start(of, encoder, None)[0], of))[0] / 2
    for _ in range(TURNS):
        for name, (loop, epochs) in LOOPS.items():
            spent, _ = cpu(lambda loop=loop, epochs=epochs: loop(of, encoder, None, epochs))
            if loop is not product:  # their one pass for the head's start is not held against them
                spent = (spent - found["start"]) * EPOCHS / epochs
            found["seconds"][name].append(spent)
            print(f"{architecture}, {name}: {spent:.1f} s", flush=True)
    return found


def tables(found: dict[str, Any]) -> str:
    """For people."""
    parts = []
    for architecture, part in found["races"].items():
        spent = {name: np.array(values) for name, values in part["seconds"].items()}
        ours = spent[list(LOOPS)[-1]]
        lines = [[name, f"{np.median(s):,.1f}", f"{np.median(s / ours):,.1f}"] for name, s in spent.items()]
        parts += [f"`{architecture}`, small, {PATIENTS:,} patients ({TUNED} for tuning), {EPOCHS} epochs:"]
        parts += [readme.table(["loop", "CPU seconds", "times the product's"], lines)]
        parts += [f"With dropout off the losses of the three agree to {part['apart']:.0e} of their size."]
    measured = ", ".join(f"{epochs}" for _, epochs in LOOPS.values())
    parts += [f"Medians of {TURNS} turns; measured over {measured} epochs. {sentence(found['environment'])}"]
    return "\n\n".join(parts)


def main() -> None:
    """Run everything, write JSON and tables."""
    torch.set_num_threads(1)
    found = {"environment": environment(), "races": {name: race(name) for name in ("behrt", "hierarchical")}}
    (readme.RESULTS / "frozen.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    readme.publish("frozen", tables(found))
    print(tables(found))


if __name__ == "__main__":
    main()
