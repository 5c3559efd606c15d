"""On the simulator, where the truth is known: attributions point at what the prediction rests on, and at what is true.

The wide row is fitted to outcomes; the deep part is taught the true log hazard (``tests/taught.py``), so that it has
learned something within seconds. Measured when written, 100 patients, area ± standard error: deep .06 ± .01, wide
.31 ± .01, blend .19 ± .01; share of pairs (a raising code, a noise code) in the right order: deep .85, wide .99.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ehrsequencing.attribution import explain
from ehrsequencing.attribution.deletion import deletion_test
from ehrsequencing.config import MIN_CELL
from ehrsequencing.synthetic import vocabulary as v
from ehrsequencing.synthetic.hazard import EFFECTS
from taught import taught_bundle

RAISING = [code for code, _ in EFFECTS.chronic] + [code for code, *_ in EFFECTS.acute]
STRONG = [v.DIABETES, v.CORONARY, v.COPD, v.INFARCTION]
LOWERING = v.STATIN
PATIENTS, BOTH = 100, ["taught", "wide"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    bundle, dataset, learned = taught_bundle(tmp_path_factory.mktemp("taught"))
    assert learned > 0.45
    return bundle, dataset, {row: explain(bundle, dataset, row=row, patients=PATIENTS) for row in bundle.rows}


@pytest.mark.slow
@pytest.mark.parametrize("row", ["taught", "taught+wide", "wide"])
def test_deleting_what_is_pointed_at_moves_the_risk_most(taught, row):
    bundle, dataset, found = taught
    deletion = deletion_test(bundle, dataset, found[row])
    for higher, lower in (("bottom", "top"), ("random", "top"), ("bottom", "random")):
        areas = deletion.areas(higher, lower)
        assert areas.mean() > 2 * areas.std() / np.sqrt(PATIENTS), (higher, lower)
    assert deletion.areas().mean() > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("row", BOTH)
def test_codes_that_truly_raise_the_hazard_stand_above_those_that_do_nothing(taught, row):
    mean = means(taught[2][row])
    noise = [value for code, value in mean.items() if code.startswith((v.NOISE, "VISIT//"))]
    raising = [mean[code] for code in RAISING if code in mean]
    assert len(noise) >= 5
    assert len(raising) >= 6
    above = np.mean([(a > b) + 0.5 * (a == b) for a in raising for b in noise])
    assert above > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("row", BOTH)
def test_signs_are_those_of_the_truth_where_it_is_strong(taught, row):
    mean = means(taught[2][row])
    assert min(mean[code] for code in STRONG) > 0
    assert mean[LOWERING] < min(mean[code] for code in STRONG)


def means(found) -> dict[str, float]:
    table = found.by_code().filter(pl.col("patients") >= MIN_CELL)
    return dict(table.select("code", "mean").iter_rows())
