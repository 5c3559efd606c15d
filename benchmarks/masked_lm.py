"""Masked-code steps on 20,000 codes against transformers' BertForMaskedLM of the same sizes: masked_lm.py [--quick].

Both take the same 32 records a step, BERT padded to the longest of them (dynamic padding), 15% of the codes selected,
AdamW, clipping. CPU seconds of one thread, tokens counted are real ones. Writes results/masked_lm.json and the table of
README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import readme
import torch
from machine import environment, sentence
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from workload import BATCH, LONGEST, SEED, cpu, gemm_rate, lengths, records, valued_codes

from ehrsequencing.batches import collate
from ehrsequencing.config import OptimizerConfig, PretrainConfig
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.pretraining import BEHRTForMaskedLM, mask_tokens
from ehrsequencing.tokens import N_SPECIAL, TokenStore
from ehrsequencing.training.pacing import make_optimizer
from ehrsequencing.training.pretrain import Mixture
from ehrsequencing.training.pretraining_parts import Training

N_CODES, SIZE, TURNS = 20_000, "small", 5
BERT = "transformers' BertForMaskedLM, dynamic padding"
Loss = Callable[[np.ndarray], torch.Tensor]


def ours(store: TokenStore, architecture: str, **settings: Any) -> tuple[nn.Module, Loss, torch.optim.Optimizer]:
    """The product's objective of masked codes, records whole."""
    torch.manual_seed(SEED)
    config = BEHRTConfig.of_size(
        SIZE, N_SPECIAL + N_CODES, value_codes=valued_codes(N_CODES), architecture=architecture, **settings
    )
    model = BEHRTForMaskedLM(config)
    asked = PretrainConfig(objectives={"masked-codes": 1.0}, cut_fraction=0.0)
    training = Training(
        model, store, asked, SEED, np.arange(config.vocab_size) >= N_SPECIAL, N_SPECIAL, np.arange(len(store))
    )
    every = np.arange(len(store))
    mixture = Mixture(training, nn.ModuleDict(), every, store, every)
    return model, mixture.loss, make_optimizer(model, OptimizerConfig())


def theirs(store: TokenStore) -> tuple[nn.Module, Loss, torch.optim.Optimizer]:
    """BERT as it comes; only the sizes are set."""
    torch.manual_seed(SEED)
    sizes = BEHRTConfig.of_size(SIZE, N_SPECIAL + N_CODES)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            intermediate_size=sizes.intermediate_size,
            max_position_embeddings=LONGEST,
        )
    )
    masks = torch.Generator().manual_seed(SEED)

    def loss(rows: np.ndarray) -> torch.Tensor:
        shown, targets = mask_tokens(collate(store, rows), sizes.vocab_size, masks)
        found = model(input_ids=shown.code, attention_mask=shown.mask.long(), labels=targets)
        result: torch.Tensor = found.loss
        return result

    return model, loss, torch.optim.AdamW(model.parameters(), lr=1e-3)


def race(turns: int, uniform: bool) -> dict[str, Any]:
    """Each contender on each turn's records."""
    store = records(lengths(BATCH * turns, uniform), N_CODES)
    contenders = {
        BERT: theirs(store),
        "ours, behrt, every head reads the whole record": ours(store, "behrt", relations=()),
        "ours, behrt": ours(store, "behrt"),
        "ours, hierarchical, the default": ours(store, "hierarchical"),
    }
    found: dict[str, Any] = {"tokens": [], "gemm": [], "cpu": {}, "loss": {}}
    for turn in range(-1, turns):  # the first, on four records, warms up
        rows = np.arange(4) if turn < 0 else np.arange(turn * BATCH, (turn + 1) * BATCH)
        found["gemm"].append(gemm_rate())
        for name, (model, loss, optimizer) in contenders.items():
            model.train()
            spent, _ = cpu(lambda m=model, a=loss, o=optimizer, r=rows: step(m, a, o, r))
            if turn >= 0:
                found["cpu"].setdefault(name, []).append(spent)
        if turn >= 0:
            found["tokens"].append(int(store.lengths[rows].sum()))
    spent, tokens = {name: np.array(value) for name, value in found["cpu"].items()}, np.array(found["tokens"])
    found["summary"] = {
        name: {"tokens_per_second": float(np.median(tokens / value)), "times": float(np.median(spent[BERT] / value))}
        for name, value in spent.items()
    }
    return found


def step(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, rows: np.ndarray) -> None:
    """Forward, backward, clipping, AdamW."""
    optimizer.zero_grad(set_to_none=True)
    loss(rows).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def tables(found: dict[str, Any]) -> str:
    """For people."""
    parts = []
    for case, part in found["cases"].items():
        lines = [[n, f"{v['tokens_per_second']:,.0f}", f"{v['times']:.1f}"] for n, v in part["summary"].items()]
        heads = ["step", "useful tokens a CPU second", "times BertForMaskedLM"]
        parts += [
            f"{SIZE}, {N_CODES:,} codes, {case} lengths, {len(part['tokens'])} turns:",
            readme.table(heads, lines),
        ]
    return "\n\n".join([*parts, sentence(found["environment"])])


def main(quick: bool) -> None:
    """Run, write JSON and table."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"environment": environment(("ehrsequencing", "torch", "transformers", "numpy"))}
    found["cases"] = {
        "log-normal": race(1 if quick else TURNS, uniform=False),
        "uniform": race(1 if quick else 3, uniform=True),
    }
    readme.RESULTS.mkdir(exist_ok=True)
    (readme.RESULTS / "masked_lm.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    readme.publish("masked_lm", tables(found))
    print(tables(found))


if __name__ == "__main__":
    main("--quick" in sys.argv)
