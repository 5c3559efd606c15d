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
from ehrsequencing.tokens.standardiser import Standardiser
from ehrsequencing.tokens.vocabulary import N_SPECIAL, SPECIAL, UNK, ancestors, fit_vocabulary


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

        Births and deaths are no tokens. See ``fit_vocabulary`` and ``Standardiser`` for the rules.

        >>> history = pl.DataFrame({"subject_id": [1, 2, 2], "code": ["A", "A", "B"], "numeric_value": [None] * 3},
        ...                        schema_overrides={"numeric_value": pl.Float32})
        >>> tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=2))
        >>> tokenizer.codes, tokenizer.encode("A"), tokenizer.encode("B")
        (('[PAD]', '[CLS]', '[MASK]', '[UNK]', 'A'), 4, 3)
        """
        events = history.filter(pl.col("code").is_not_null() & ~pl.col("code").is_in([BIRTH, DEATH]))
        pairs = events.select("subject_id", "code").unique()
        codes = (*SPECIAL, *fit_vocabulary(pairs, config.min_subjects, config.max_codes))
        ids = pl.DataFrame({"code": codes[N_SPECIAL:], "id": range(N_SPECIAL, len(codes))}, schema_overrides=_IDS)
        values = (
            events.filter(pl.col("numeric_value").is_finite())
            .select("code", pl.col("numeric_value").alias("value"))
            .join(ids, on="code", how="inner")
        )
        return cls(codes, Standardiser.fit(values, config.min_values, config.value_clip), config)

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
