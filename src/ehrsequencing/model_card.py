"""The model card of a bundle: Markdown with Hugging Face front matter, from plain facts; users' text is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ehrsequencing.cohort.words import in_days, read_in_words, task_in_words

PIPELINE = "tabular-regression"
"""The nearest of Hugging Face's kinds: it has none for survival curves."""
TAGS = ("survival-analysis", "time-to-event", "electronic-health-records", "meds", "behrt")
FIGURES = {
    "tuning_c": ("c-index", "Harrell C at the horizon (tuning patients)"),
    "tuning_brier": ("integrated-brier-score", "Integrated Brier score (tuning patients)"),
    "tuning_nll": ("negative-log-likelihood", "Negative log likelihood a patient (tuning patients)"),
}
PAPERS = (
    "Li Y et al. BEHRT: transformer for electronic health records. Sci Rep 2020;10:7155.",
    "Hu EJ et al. LoRA: low-rank adaptation of large language models. ICLR 2022.",
    "Kvamme H, Borgan Ø. Continuous and discrete-time survival prediction with neural networks. "
    "Lifetime Data Anal 2021;27:710.",
    "Mitchell M et al. Model cards for model reporting. FAT* 2019:220.",
    "Collins GS et al. TRIPOD+AI statement. BMJ 2024;385:e078378.",
)
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|!~])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


@dataclass(frozen=True)
class Card:
    """What a card is written from.

    Attributes:
        task: TASK.yaml as JSON.
        tau: the horizon in days; ``n_bins`` of the time grid up to it.
        causes: the outcome, then the competing events.
        rows: each way of reading the bundle, the default first: α of the transformer, and the recalibration's note
            (empty for none).
        vocabulary, max_tokens: of the tokenizer.
        facts: of the bundle; counts in it are suppressed already.
        environment: package → version.
    """

    task: Mapping[str, Any]
    tau: float
    n_bins: int
    causes: tuple[str, ...]
    rows: Mapping[str, tuple[float, str]]
    vocabulary: int
    max_tokens: int
    facts: Mapping[str, Any]
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.task.get('name') or 'task'}: {next(iter(self.rows))}"


def model_card(card: Card) -> str:
    """The whole card as text."""
    return f"---\n{front_matter(card)}---\n\n" + "\n".join([f"# {plain(card.name)}", "", *_body(card)]) + "\n"


def front_matter(card: Card) -> str:
    """Hugging Face's metadata as YAML; figures only where they exist."""
    matter: dict[str, Any] = {
        "license": "other",
        "license_name": "to-be-set-by-the-holder-of-the-data",
        "library_name": "ehrsequencing",
        "pipeline_tag": PIPELINE,
        "tags": [*TAGS, one_line(card.facts.get("strategy", "bundle"))],
    }
    metrics = [{"type": kind, "name": name, "value": round(value, 4)} for (kind, name), value in _figures(card).items()]
    if metrics:
        dataset = {"name": one_line(card.task.get("name") or "task"), "type": "meds", "split": "tuning"}
        asked = {"type": PIPELINE, "name": "Time-to-event prediction"}
        matter["model-index"] = [
            {"name": one_line(card.name), "results": [{"task": asked, "dataset": dataset, "metrics": metrics}]}
        ]
    return str(yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=10_000))


def _figures(card: Card) -> dict[tuple[str, str], float]:
    found = card.facts.get("tuning") or {}
    known = {labels: found.get(key) for key, labels in FIGURES.items()}
    return {labels: float(value) for labels, value in known.items() if value is not None and math.isfinite(value)}


def one_line(value: Any) -> str:
    """Text without line breaks: no line of the front matter can end it."""
    return " ".join(str(value).split())


def plain(value: Any) -> str:
    r"""Text on one line that Markdown and HTML show as it is.

    >>> plain("a_b <script>\n`x`")
    'a\\_b &lt;script&gt; \\`x\\`'
    """
    text = _SPECIAL.sub(r"\\\1", one_line(value))
    return "".join(_HTML.get(letter, letter) for letter in text)


def _body(card: Card) -> Iterator[str]:
    yield (
        f"Predicts, for a patient at a prediction\\_time, the probability of the outcome by each day up to "
        f"{in_days(card.tau)} from the coded records up to then. {_risk(card.causes)}: higher means sooner."
    )
    for title, lines in SECTIONS.items():
        yield from ("", f"## {title}", "")
        yield from lines(card)


def _risk(causes: tuple[str, ...]) -> str:
    if len(causes) == 1:
        return "Its risk is minus the restricted mean survival time to the horizon"
    rivals = ", ".join(plain(cause) for cause in causes[1:])
    return f"Competing events: {rivals}. Its risk is the restricted time lost to the outcome before the horizon"


def _question(card: Card) -> Iterator[str]:
    said = task_in_words(card.task, card.tau)
    for label, text in [*said["eligibility"], *said["outcome"], *read_in_words(card.task)]:
        yield f"- {label}: {plain(text)}"


def _intended(card: Card) -> Iterator[str]:
    yield "- Research on patients like those it was trained on, and a starting point for validation elsewhere."
    yield "- Ranking patients by risk, and estimating the share of a group that will have the outcome."


def _out_of_scope(card: Card) -> Iterator[str]:
    yield "- Decisions about a person by itself. It is no medical device."
    yield "- Other outcomes, horizons, prediction times, code systems or populations without validation there."
    yield "- Reading causes into it: it says who has the outcome more often, not what would prevent it."


def _training_data(card: Card) -> Iterator[str]:
    mix = card.facts.get("casemix") or {}
    yield f"- Trained on: {plain(card.facts.get('trained_on', 'not recorded'))}. Counts under 10 are suppressed."
    if mix.get("observed_risk") is not None:
        yield f"- Observed risk of the outcome by {in_days(float(mix['tau_days']))}: {mix['observed_risk']:.1%}"
    for key, label in (
        ("age_years", "Age, years"),
        ("follow_up_days", "Follow-up, days"),
        ("events_per_patient", "Events read a patient"),
    ):
        if mix.get(key):
            low, middle, high = mix[key]
            yield f"- {label}: median {middle:,.0f}, quartiles {low:,.0f} and {high:,.0f}"
    for code, share in (mix.get("sex") or {}).items():
        yield f"- {plain(code)}: {share:.1%}"
    yield f"- Cohort fingerprint: {plain(card.facts.get('cohort_fingerprint', 'not recorded'))}"


def _reading(card: Card) -> Iterator[str]:
    yield f"- {card.vocabulary:,} codes, at most {card.max_tokens:,} tokens a patient: the most recent whole visits."
    yield "- Unknown codes are read as their parent code where there is one, otherwise as one placeholder."
    yield "- Values are standardised a code by quantiles of the training patients, clipped, and kept continuous."
    yield "- Nothing is imputed: what is not recorded is read as not recorded."


def _parameters(card: Card) -> Iterator[str]:
    yield f"- Strategy: {plain(card.facts.get('strategy', 'not recorded'))}; seed {card.facts.get('seed', 'unknown')}"
    yield f"- {plain(card.facts.get('footprint', 'Parameters: not recorded'))}"
    yield f"- Hazard logits on {card.n_bins} bins of time up to {in_days(card.tau)}"
    yield f"- Attention: {plain(card.facts.get('attention', 'bidirectional'))}"
    for position, (name, (alpha, _)) in enumerate(card.rows.items()):
        yield f"- Row {plain(name)}: {_alpha(alpha)}{' (the default)' if position == 0 else ''}"


def _alpha(alpha: float) -> str:
    if alpha in (0.0, 1.0):
        return "the transformer alone" if alpha else "the penalised linear model on counts, recency and values alone"
    return f"{alpha:.1f} of the transformer's hazard logits, {1 - alpha:.1f} of the linear model's"


def _tuning(card: Card) -> Iterator[str]:
    figures = _figures(card)
    if not figures:
        yield "None were recorded."
        return
    yield "Of the tuning patients, on whom epoch, blend and recalibration were chosen: too good for new patients."
    yield ""
    yield "| Figure | Value |"
    yield "| --- | --- |"
    for (_, name), value in figures.items():
        yield f"| {name} | {value:.4f} |"


def _calibration(card: Card) -> Iterator[str]:
    for name, (_, note) in card.rows.items():
        yield f"- Row {plain(name)}: {plain(note) if note else 'not recalibrated (too few tuning events)'}"
    yield "- On other patients recalibrate first: `ehrseq validate` shows figures before and after."


def _limitations(card: Card) -> Iterator[str]:
    yield "- One training run on one dataset; other seeds and other patients give other figures."
    yield "- Records show what was written down in routine care; a missing code does not mean health."
    yield "- Performance by subgroup is in the report of the study, where it was examined; it is not implied here."
    for note in card.facts.get("notes") or ():
        yield f"- {plain(note)}"


def _loading(card: Card) -> Iterator[str]:
    yield from (
        "```bash", "ehrseq predict THIS_FOLDER MEDS OUT.parquet", "```", "",
        "```python",
        "from ehrsequencing.bundle import Bundle",
        "from ehrsequencing.events import MedsDataset",
        "from ehrsequencing.inference import predict",
        "",
        'predictions = predict(Bundle.load("THIS_FOLDER"), MedsDataset.open("MEDS"))',
        "predictions.survival  # one row a patient, at predictions.horizon_days",
        "```", "",
        "Loading runs no code from this folder. Made with "
        + ", ".join(f"{plain(name)} {plain(version)}" for name, version in card.environment.items()) + ".",
    )  # fmt: skip


def _papers(card: Card) -> Iterator[str]:
    yield from (f"- {paper.replace('*', chr(92) + '*')}" for paper in PAPERS)


SECTIONS = {
    "The question": _question,
    "Intended use": _intended,
    "Out of scope": _out_of_scope,
    "Training data": _training_data,
    "How records are read": _reading,
    "Model": _parameters,
    "Figures": _tuning,
    "Calibration": _calibration,
    "Limitations": _limitations,
    "How to load it": _loading,
    "Methods": _papers,
}
"""The card's parts in order."""
