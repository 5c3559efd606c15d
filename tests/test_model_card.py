"""The model card: front matter that parses, user text that stays text, figures only where they exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from ehrsequencing.model_card import SECTIONS, Card, model_card

FACTS = {
    "strategy": "lora", "seed": 0, "trained_on": "1,145 patients with 404 outcomes", "notes": ["at most 2 epochs"],
    "footprint": "Trainable: 65,452 / 503,852 parameters (13.0%)", "cohort_fingerprint": "9fe0",
    "tuning": {"tuning_c": 0.651, "tuning_brier": 0.157, "tuning_nll": float("nan"), "score": 0.651},
    "casemix": {"patients": "1145", "observed_risk": 0.44, "tau_days": 1826.25, "age_years": [57.0, 63.0, 69.0],
                "sex": {"SEX//M": 0.52}},
}  # fmt: skip
CARD = Card(
    task={"name": "heart_failure", "index": {"age": 50}, "outcome": {"code": "ICD10CM//I50.9"}},
    tau=1826.25,
    n_bins=20,
    causes=("outcome",),
    rows={"lora+wide": (0.4, "slope 1.098, 1 intercept, 85 tuning events"), "lora": (1.0, "")},
    vocabulary=332,
    max_tokens=512,
    facts=FACTS,
    environment={"python": "3.11.7", "torch": "2.13.0"},
)


def front(text: str) -> dict[str, Any]:
    opening, matter, _ = text.split("---\n", 2)
    assert opening == ""
    return dict(yaml.safe_load(matter))


def test_front_matter_is_hugging_faces() -> None:
    matter = front(model_card(CARD))
    assert matter["library_name"] == "ehrsequencing"
    assert matter["license"] == "other"
    assert {"survival-analysis", "lora"} <= set(matter["tags"])
    (result,) = matter["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["c-index", "integrated-brier-score"]
    assert result["dataset"]["split"] == "tuning"


def test_no_figures_no_index() -> None:
    text = model_card(replace(CARD, facts={}))
    assert "model-index" not in front(text)
    assert "None were recorded." in text
    assert "nan" not in text


def test_every_part_is_there_and_says_what_it_should() -> None:
    text = model_card(CARD)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    for wanted in (
        "# heart\\_failure: lora+wide",
        "- Prediction is made: on the 50th birthday",
        "- Outcome: first event ICD10CM//I50.9, within 5 years",
        "- Trained on: 1,145 patients with 404 outcomes.",
        "- Age, years: median 63, quartiles 57 and 69",
        "- Row lora+wide: 0.4 of the transformer's hazard logits, 0.6 of the linear model's (the default)",
        "- Row lora: not recalibrated",
        "- Row lora+wide: slope 1.098, 1 intercept, 85 tuning events",
        "| Harrell C at the horizon (tuning patients) | 0.6510 |",
        "ehrseq predict THIS_FOLDER MEDS OUT.parquet",
        "- at most 2 epochs",
    ):
        assert wanted in text


def test_what_users_wrote_stays_text() -> None:
    evil = "x\n---\n# <script>alert(1)</script> [a](b) `c` | d"
    task = {"name": evil, "outcome": {"code": evil}, "competing": {evil: {"code": evil}}}
    facts = {**FACTS, "notes": [evil], "casemix": {"sex": {evil: 0.5}}, "strategy": evil}
    text = model_card(replace(CARD, task=task, facts=facts, causes=("outcome", evil), rows={evil: (1.0, evil)}))
    matter = front(text)
    assert matter["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(evil.split())
    body = text.split("---\n", 2)[2]
    assert "<script" not in body
    assert "[a](b)" not in body
    assert "`c`" not in body.replace("\\`c\\`", "")
    assert [line for line in body.splitlines() if line.startswith("# ")] == [body.strip().splitlines()[0]]
