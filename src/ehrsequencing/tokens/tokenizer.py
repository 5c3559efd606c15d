"""The fitted tokenizer: vocabulary, value standardiser and the rules of truncation; it travels with the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.config import TokensConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH
from ehrsequencing.files import staged_file
from ehrsequencing.tokens.numbers import distinct, numbered, stretches
from ehrsequencing.tokens.standardiser import Standardiser
from ehrsequencing.tokens.vocabulary import N_SPECIAL, SPECIAL, UNK, SubjectCounts, ancestors


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Maps codes to ids and values to standardised values, as fitted on the training split.

    Attributes:
        codes: the name of every id, ``[PAD] [CLS] [MASK] [UNK]`` first, then by falling number of training subjects.
        standardiser: location and scale of the codes that carry values.
        config: the settings it was fitted under (``max_tokens``, ``visit_column`` …).
    """

    codes: tuple[str, ...]
    standardiser: Standardiser
    config: TokensConfig

    @classmethod
    def fit(cls, history: pl.DataFrame, config: TokensConfig) -> Tokenizer:
        """Fit on the cut histories of training subjects: ``subject_id, code, numeric_value``.

        Births and deaths are no tokens. See ``SubjectCounts`` and ``Standardiser`` for the rules.

        >>> history = pl.DataFrame({"subject_id": [1, 2, 2], "code": ["A", "A", "B"], "numeric_value": [None] * 3},
        ...                        schema_overrides={"numeric_value": pl.Float32})
        >>> tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=2))
        >>> tokenizer.codes, tokenizer.encode("A"), tokenizer.encode("B")
        (('[PAD]', '[CLS]', '[MASK]', '[UNK]', 'A'), 4, 3)
        """
        fitting = Fitting(config)
        fitting.add(history)
        return fitting.tokenizer()

    @property
    def vocab_size(self) -> int:
        return len(self.codes)

    @property
    def value_codes(self) -> tuple[int, ...]:
        """The ids that carry values, ascending."""
        return tuple(self.standardiser.ids.tolist())

    def encode(self, code: str) -> int:
        """The id of ``code``, of its nearest ancestor that has one, or ``UNK``."""
        return next((self._ids[known] for known in (code, *ancestors(code)) if known in self._ids), UNK)

    def lookup(self, codes: pl.Series) -> pl.DataFrame:
        """Distinct codes with their ids: ``code, id (i32), exact (no fallback), rank (order by name)``."""
        names = codes.unique().drop_nulls().sort().to_list()
        columns = {
            "code": names,
            "id": [self.encode(name) for name in names],
            "exact": [name in self._ids for name in names],
            "rank": range(len(names)),
        }
        return pl.DataFrame(columns, schema_overrides=_IDS | {"exact": pl.Boolean, "rank": pl.Int32})

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {code: number for number, code in enumerate(self.codes) if number >= N_SPECIAL}

    @cached_property
    def fingerprint(self) -> str:
        """blake2b of the content (32 hexadecimal digits)."""
        return hashlib.blake2b(self._text().encode(), digest_size=16).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The tokenizer as plain data for a JSON file; exact."""
        values = self.standardiser
        return {
            "config": self.config.model_dump(mode="json"),
            "codes": list(self.codes[N_SPECIAL:]),
            "values": {"ids": values.ids.tolist(), "median": values.median.tolist(), "scale": values.scale.tolist()},
        }

    def _text(self) -> str:
        return json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tokenizer:
        """The tokenizer of ``to_json``; EhrError (exit 13) where ``data`` is something else."""
        try:
            config = TokensConfig.model_validate(data["config"])
            values = data["values"]
            ids = np.array(values["ids"], dtype=np.int64)
            median, scale = (np.array(values[key], dtype=np.float64) for key in ("median", "scale"))
            codes = (*SPECIAL, *data["codes"])
        except (ValueError, KeyError, TypeError) as error:
            raise EhrError(
                f"not a tokenizer: {error}", "tokenizer.json", "use the file of the bundle", code=Exit.BUNDLE
            ) from None
        return cls(codes, Standardiser(ids, median, scale, config.value_clip), config)

    def save(self, path: Path | str) -> None:
        """Write as JSON; whole, or not at all."""
        with staged_file(path) as draft:
            draft.write_text(self._text(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a tokenizer; EhrError (exit 13) where there is none."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise EhrError(
                f"the tokenizer cannot be read: {error}", str(path), "check the bundle's folder", code=Exit.BUNDLE
            ) from None


_IDS = {"code": pl.String, "id": pl.Int32}


class Fitting:
    """A tokenizer on its way: cut histories of training subjects are added group by group, and are not kept.

    What is kept of them is a count a code, who has the rare ones, and every value, in 8 bytes.
    """

    def __init__(self, config: TokensConfig) -> None:
        self.config = config
        self._subjects = SubjectCounts(config.min_subjects)
        self._numbers: dict[str, int] = {}
        self._values: list[pl.DataFrame] = []

    def add(self, history: pl.DataFrame) -> None:
        """``subject_id, code, numeric_value`` of subjects that were in no group before."""
        number, names = numbered(history["code"])
        known = np.array([0, *(name not in (BIRTH, DEATH) for name in names)], dtype=bool)[number]
        subjects = history.select(pl.col("subject_id").rle_id()).to_series().to_numpy()  # a subject has one or more
        pair = distinct(subjects[known].astype(np.int64) * (len(names) + 1) + number[known])
        stretch = history["subject_id"].gather(stretches(history, ("subject_id",))).to_numpy()
        owner, code = np.divmod(pair, len(names) + 1)
        subject = stretch[owner]
        if len(distinct(stretch)) < len(stretch):  # not all events of a subject stand together
            subject, code = np.unique(np.stack([subject, code]), axis=1)
        self._subjects.add(subject, code - 1, names)
        own = np.array([0, *(self._numbers.setdefault(name, len(self._numbers)) for name in names)], dtype=np.int32)
        value = history["numeric_value"].cast(pl.Float32)
        valued = value.is_finite().fill_null(False) & pl.Series(known)
        self._values.append(pl.DataFrame({"number": own[number[valued.to_numpy()]], "value": value.filter(valued)}))

    def tokenizer(self) -> Tokenizer:
        """Fitted on all that was added."""
        codes = (*SPECIAL, *self._subjects.codes(self.config.max_codes))
        id_of = {code: number for number, code in enumerate(codes)}
        ids = np.array([id_of.get(name, -1) for name in self._numbers], dtype=np.int32)
        values = pl.concat(self._values)
        values = values.select(id=pl.Series(ids[values["number"].to_numpy()]), value="value").filter(pl.col("id") >= 0)
        return Tokenizer(codes, Standardiser.fit(values, self.config.min_values, self.config.value_clip), self.config)
