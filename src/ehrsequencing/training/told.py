"""What a pretraining learned, in one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def learned(record: Mapping[str, Any], *, brackets: bool = False) -> str:
    """Of each objective its validation figure beside what needs no model.

    >>> learned({"accuracy": 0.25, "most_frequent_code": 0.1})
    'masked codes guessed 25.0% of the time, the most frequent code alone 10.0%'
    """
    told = []
    if "accuracy" in record:
        alone = f"the most frequent code alone{':' if brackets else ''} {record['most_frequent_code']:.1%}"
        joined = f" ({alone})" if brackets else f", {alone}"
        told.append(f"masked codes guessed {record['accuracy']:.1%} of the time{joined}")
    told += [
        f"{name} {record[loss]:.3f} ({beside} {record[base]:.3f})"
        for name, loss, beside, base in (
            ("masked values", "masked_values_loss", "the median alone", "masked_values_median"),
            ("next visit", "next_visit_loss", "its biases alone", "next_visit_marginal"),
            ("time to event", "time_to_event_loss", "its biases alone", "time_to_event_biases"),
            ("record summary", "record_summary_loss", "its biases alone", "record_summary_biases"),
        )
        if loss in record and base in record
    ]
    if "code_vectors" in record:
        given = record["code_vectors"]
        told.append(
            f"{given['codes_covered']:,} codes started from given vectors ({given['share_of_vocabulary']:.0%} of the "
            f"vocabulary, {given['share_of_tokens']:.0%} of the tokens; {given['unknown_codes']:,} given codes unknown)"
        )
    return "; ".join(told)
