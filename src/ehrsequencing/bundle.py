"""A trained run on disk, whole: weights, tokenizer, features, grid, task, and what is needed to predict again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float64, Int64
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from ehrsequencing.config import TaskConfig, parse
from ehrsequencing.errors import EhrError, Exit, nearest
from ehrsequencing.evaluation.recalibration import Recalibration
from ehrsequencing.events import rank_hash
from ehrsequencing.features import FeatureSpec
from ehrsequencing.files import staged, write_json
from ehrsequencing.model_card import Card, model_card
from ehrsequencing.models.adapter_files import load_adapter, save_adapter
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel, make_encoder
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.blend import blend
from ehrsequencing.models.lora import adapter_of, base_state
from ehrsequencing.models.pretraining import BEHRTForMaskedLM
from ehrsequencing.models.pretraining_heads import heads_like
from ehrsequencing.models.wide import RidgeHazard
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import Tokenizer

FORMAT = 1
MARKER = "bundle.json"
ENCODER_MARKER = "pretraining.json"
SEEN = "seen.safetensors"
HEADS = "heads.safetensors"


@dataclass(frozen=True)
class Row:
    """One way of reading a bundle: α · deep + (1 − α) · wide hazard logits, then the recalibration (or none)."""

    alpha: float
    recalibration: Recalibration | None

    def logits(
        self, deep: Float64[np.ndarray, "n K *R"] | None, wide: Float64[np.ndarray, "n K *R"] | None
    ) -> Float64[np.ndarray, "n K *R"]:
        """The row's own hazard logits; a part with no weight may be None."""
        if deep is None or wide is None:
            mixed = wide if deep is None else deep
            if mixed is None or self.alpha != (0 if deep is None else 1):
                raise ValueError(f"alpha {self.alpha} needs a part that was not given")
        else:
            mixed = blend(deep, wide, self.alpha)
        return mixed if self.recalibration is None else self.recalibration.apply(mixed)

    @property
    def unchanged(self) -> bool:
        """Whether the recalibration leaves logits as they are (too few tuning events)."""
        return self.recalibration is None or self.recalibration.unchanged

    @property
    def unadjusted(self) -> Row:
        """The same mixture without its recalibration."""
        return Row(self.alpha, None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the logits, for people."""
        if self.recalibration is None or self.unchanged:
            return ()
        return (f"recalibrated on tuning: {self.recalibration.note}",)

    def to_json(self) -> dict[str, Any]:
        recalibration = None if self.recalibration is None else self.recalibration.to_json()
        return {"alpha": self.alpha, "recalibration": recalibration}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        recalibration = data["recalibration"]
        return cls(data["alpha"], None if recalibration is None else Recalibration.from_json(recalibration))


@dataclass
class Bundle:
    """Everything a prediction needs, and how it came about.

    Attributes:
        rows: the ways of reading it by name, for instance ``lora``, ``wide``, ``lora+wide``; the first is the default.
        facts: plain data: strategy, seed, recipe, fingerprints, metrics on tuning, footprint.
        history: one record an epoch.
    """

    task: TaskConfig
    tokenizer: Tokenizer
    features: FeatureSpec
    grid: TimeGrid
    model: BEHRTForSurvival
    wide: RidgeHazard
    rows: dict[str, Row]
    facts: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of what its logits are hazards of: the task's outcome, then the competing events."""
        return self.task.causes

    @property
    def default_row(self) -> str:
        return next(iter(self.rows))

    def row(self, name: str | None) -> tuple[str, Row]:
        """The row of that name (None: the default); EhrError (exit 2) names the nearest."""
        name = self.default_row if name is None else name
        if name not in self.rows:
            close = nearest(name, self.rows, 1) or list(self.rows)
            raise EhrError(f"the bundle has no row '{name}'", "--row", f"try {', '.join(close)}", code=Exit.USAGE)
        return name, self.rows[name]

    def card(self) -> Card:
        """What its model card is written from."""
        notes = {
            name: (row.alpha, "" if row.recalibration is None else row.recalibration.note)
            for name, row in self.rows.items()
        }
        return Card(
            task=self.task.model_dump(mode="json", by_alias=True),
            tau=self.grid.tau,
            n_bins=self.grid.n_bins,
            causes=self.causes,
            rows=notes,
            vocabulary=self.tokenizer.vocab_size,
            max_tokens=self.tokenizer.config.max_tokens,
            facts=self.facts,
            environment=environment(),
        )

    def save(self, folder: Path | str) -> None:
        """Write the bundle; appears whole or not at all.

        LoRA is stored as an adapter over its base (``encoder/`` and ``adapter.safetensors``), other strategies as
        one model (``model/``). ``bundle.json`` lists every file with its blake2b.
        """
        with staged(folder, MARKER) as draft:
            if adapter_of(self.model.behrt) is None:
                self.model.save_pretrained(draft / "model")
            else:
                _save_base(self.model, draft / "encoder")
                save_adapter(self.model, draft / "adapter.safetensors")
                write_json(draft / "model.json", self.model.config.to_dict())
            save_file(self.wide.to_arrays(), draft / "wide.safetensors")
            self.tokenizer.save(draft / "tokenizer.json")
            write_json(draft / "features.json", self.features.to_json())
            write_json(draft / "grid.json", self.grid.to_json())
            write_json(draft / "task.json", self.task.model_dump(mode="json", by_alias=True))
            write_json(draft / "history.json", self.history)
            write_json(draft / "environment.json", environment())
            (draft / "MODEL_CARD.md").write_text(model_card(self.card()), encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "rows": {name: row.to_json() for name, row in self.rows.items()},
                "facts": self.facts,
                "files": _digests(draft),
            }
            write_json(draft / MARKER, manifest)

    @classmethod
    def load(cls, folder: Path | str) -> Bundle:
        """Read a bundle, running no code from it; EhrError (exit 13) where it is missing, altered or newer."""
        folder = Path(folder)
        manifest = _manifest(folder, MARKER, "bundle", "'ehrseq finetune' or 'ehrseq run'")
        with _whole(folder, "bundle"):
            return cls._read(folder, manifest)

    @classmethod
    def _read(cls, folder: Path, manifest: Mapping[str, Any]) -> Bundle:
        texts = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("features", "grid", "history")}
        return cls(
            task=parse(TaskConfig, json.loads((folder / "task.json").read_text()), str(folder / "task.json")),
            tokenizer=Tokenizer.load(folder / "tokenizer.json"),
            features=FeatureSpec.from_json(texts["features"]),
            grid=TimeGrid.from_json(texts["grid"]),
            model=_load_model(folder),
            wide=RidgeHazard.from_arrays(load_file(folder / "wide.safetensors")),
            rows={name: Row.from_json(row) for name, row in manifest["rows"].items()},
            facts=manifest["facts"],
            history=texts["history"],
        )


@dataclass
class Encoder:
    """A pretrained encoder with its objectives' heads, the tokenizer it reads through, and the record of its making."""

    masked_lm: BEHRTForMaskedLM
    tokenizer: Tokenizer
    record: dict[str, Any]
    seen: Float64[np.ndarray, " n"]
    """Hashes of the subjects it was pretrained on, sorted."""
    heads: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """Of the objectives beside masked codes, by their names."""

    @staticmethod
    def hashes(subject_ids: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """What is kept of subjects' ids: enough to recognise them, not to read them."""
        return rank_hash(subject_ids, 0, "pretraining")

    def refuse_seen(self, subject_ids: Int64[np.ndarray, " n"]) -> None:
        """EhrError (exit 15) where any of these subjects (tuning, held out) was pretrained on."""
        known = int(np.isin(self.hashes(subject_ids), self.seen).sum())
        if known:
            raise EhrError(
                f"the encoder was pretrained on {known:,} of {len(subject_ids):,} tuning and held-out subjects",
                "encoder",
                "use the splits it was pretrained with (--split-seed), or pretrain again",
                code=Exit.LEAKAGE,
            )

    @property
    def model(self) -> BEHRTModel:
        """The encoder alone: what fine-tuning starts from."""
        return self.masked_lm.behrt

    def save(self, folder: Path | str) -> None:
        """Write model, tokenizer and record; appears whole or not at all."""
        with staged(folder, ENCODER_MARKER) as draft:
            self.masked_lm.save_pretrained(draft)
            if self.heads:
                kept = {name: tensor.contiguous().numpy() for name, tensor in self.heads.state_dict().items()}
                save_file(kept, draft / HEADS)
            self.tokenizer.save(draft / "tokenizer.json")
            save_file({"seen": self.seen}, draft / SEEN)
            write_json(draft / ENCODER_MARKER, {**self.record, "format": FORMAT, "files": _digests(draft)})

    @classmethod
    def load(cls, folder: Path | str) -> Encoder:
        """Read what ``save`` wrote; EhrError (exit 13) where it is missing, altered or newer."""
        folder = Path(folder)
        record = _manifest(folder, ENCODER_MARKER, "encoder", "'ehrseq pretrain'")
        with _whole(folder, "encoder"):
            model = BEHRTForMaskedLM.from_pretrained(folder)
            model.eval()
            for part in (model, model.behrt):
                part.config._name_or_path = ""  # a bundle must not name the place its encoder came from
            facts = {name: value for name, value in record.items() if name not in ("format", "files")}
            seen = load_file(folder / SEEN)["seen"]
            kept = load_file(folder / HEADS) if (folder / HEADS).is_file() else {}
            heads = heads_like(
                cast(BEHRTConfig, model.config), {name: torch.from_numpy(tensor) for name, tensor in kept.items()}
            )
            tokenizer = Tokenizer.load(folder / "tokenizer.json")
            return cls(model, tokenizer, facts, seen, heads.eval())


def environment() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("ehrsequencing", "torch", "transformers", "peft", "numpy", "polars", "xgboost-cpu")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _save_base(model: BEHRTForSurvival, folder: Path) -> None:
    plain = make_encoder(BEHRTConfig(**{**model.config.to_dict(), "use_lora": False}))
    plain.load_state_dict(base_state(model.behrt), strict=True)
    plain.save_pretrained(folder)


def _load_model(folder: Path) -> BEHRTForSurvival:
    if (folder / "model").is_dir():
        model = BEHRTForSurvival.from_pretrained(folder / "model")
    else:
        config = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        names = ("n_bins", "n_causes", "head", "hazards", "head_hidden", "head_dropout", "predict_at", "attention")
        overrides = {name: config[name] for name in names if name in config}
        model = BEHRTForSurvival.from_encoder(BEHRTModel.from_pretrained(folder / "encoder"), **overrides)
        load_adapter(model, folder / "adapter.safetensors")
    model.eval()
    return model


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _manifest(folder: Path, marker: str, kind: str, verbs: str) -> dict[str, Any]:
    """The JSON that lists a folder's files with their blake2b, once all of them are there and unchanged."""
    path = folder / marker
    fix = f"give the folder that {verbs} wrote, whole"
    if not path.is_file():
        inside = sorted(each.parent.name for each in folder.glob(f"*/{marker}"))
        fix = f"give one of the folders in it: {', '.join(inside)}" if inside else fix
        raise EhrError(f"no {kind} here: {marker} is missing", str(folder), fix, code=Exit.BUNDLE)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, files = manifest["format"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"{marker} is damaged, or not of a {kind}: {type(error).__name__}: {error}"
        raise EhrError(what, str(folder), fix, code=Exit.BUNDLE) from None
    if found != FORMAT:
        what = f"the {kind} has format {found}, this version of the package reads {FORMAT}"
        raise EhrError(what, str(folder), "use the version that wrote it, or a newer one", code=Exit.BUNDLE)
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise EhrError(f"the {kind} lacks {name}", str(folder), fix, code=Exit.BUNDLE)
        if _digest(folder / name) != digest:
            raise EhrError(f"{name} was altered or cut short", str(folder), fix, code=Exit.BUNDLE)
    return dict(manifest)


@contextlib.contextmanager
def _whole(folder: Path, kind: str) -> Iterator[None]:
    """EhrError (exit 13) where a file is unchanged and yet cannot be made sense of."""
    try:
        yield
    except (EhrError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        told = error.what if isinstance(error, EhrError) else f"{type(error).__name__}: {error}"
        what = f"the {kind} cannot be read: {told.splitlines()[0]}"
        raise EhrError(what, str(folder), f"make the {kind} again", code=Exit.BUNDLE) from None
