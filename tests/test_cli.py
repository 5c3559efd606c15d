"""The command line as a person meets it: help with examples, exit codes, one clear message, nothing half-written."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import polars as pl
import pytest
import torch

from ehrsequencing.cli import main
from ehrsequencing.cli.progress import ProgressDisplay
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.config import load_task
from ehrsequencing.progress import Tick

VERBS = ["simulate", "check", "cohort", "advise", "pretrain", "finetune", "predict", "explain", "evaluate", "validate"]
VERBS += ["run", "merge"]
MAPPING = "name: small\nfiles:\n  - {file: events.csv, subject: who, time: when, code: what}\n"
TASK = "name: t\nindex: {labels: labels/prediction_times.parquet}\noutcome: ICD10CM//I50.9\nhorizon_days: 1826\n"


@pytest.fixture
def ehrseq(monkeypatch, capfd):
    """Runs a command; gives exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ehrseq", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def assert_clear(result, code: int, *words: str) -> None:
    found, _, err = result
    assert found == code, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize("verb", [*VERBS, "convert synthea", "convert omop", "convert csv"])
def test_every_verb_has_help_with_an_example(ehrseq, verb):
    code, out, _ = ehrseq(*verb.split(), "--help")
    assert code == 0
    assert f"Example: ehrseq {verb}" in " ".join(out.split())


def test_a_calendar_split_needs_both_dates(ehrseq, tmp_path):
    words = ("cohort", tmp_path, tmp_path / "task.yaml", tmp_path / "out")
    assert_clear(ehrseq(*words, "--tuning-from", "2012-01-01"), 2, "--held-out-from is missing")
    both = ("--tuning-from", "2012-01-01", "--held-out-from", "2011-01-01")
    assert_clear(ehrseq(*words, *both), 10, "tuning must come before held_out")


HEAVY = (
    *("numpy", "polars", "pyarrow", "pandas", "scipy", "torch", "transformers", "peft", "accelerate", "safetensors"),
    *("numba", "xgboost", "lifelines", "sksurv", "captum", "matplotlib", "jinja2", "pydantic", "yaml", "meds"),
)
"""What costs a tenth of a second or more to load, and is of no use to whoever only asks what there is."""


@pytest.mark.parametrize(
    ("program", "loaded"),
    [
        ("import ehrsequencing as ehr; dir(ehr)", ()),
        ("from ehrsequencing.cli.verbs import app; import typer.main; typer.main.get_command(app)", ()),
        ("import sys; sys.argv = ['ehrseq', '--help']\nfrom ehrsequencing.cli import main\nmain()", ()),
        (
            "import sys; sys.argv = ['ehrseq', 'pretrain', '--help']\nfrom ehrsequencing.cli import main\nmain()",
            ("pydantic",),
        ),  # typer's own doing
        (
            "import ehrsequencing.study.cohorts",  # a cohort is made without anything that trains or draws
            ("numpy", "polars", "pyarrow", "scipy", "pydantic", "yaml", "meds"),
        ),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(program, loaded):
    found = f"print(sorted(set({HEAVY}) & sys.modules.keys()))"
    told = f"import sys\ntry:\n    exec({program!r})\nexcept SystemExit:\n    pass\n{found}"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout.splitlines()[-1])) <= set(loaded)


def test_without_a_bar_a_long_job_says_now_and_then_how_far_it_is(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("ehrsequencing.cli.progress.time.monotonic", lambda: float(next(clock)))
    with ProgressDisplay() as display:
        for done in range(11):
            display(Tick("reading", done, 10))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 9
    assert all(re.fullmatch(r"reading: \d+%  \(at most .* left\)", line) for line in lines)


def test_the_package_gives_its_names_lazily():
    import ehrsequencing as ehr

    assert 20 <= len(ehr.__all__) <= 32
    for name in ehr.__all__:
        assert getattr(ehr, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ehr.nothing


def test_advise_says_the_recipe_and_why(ehrseq):
    code, out, _ = ehrseq("advise", "--patients", 4000, "--events", 600)
    assert code == 0
    assert "lora" in out
    assert "because" in out
    assert "4,000 patients with 600 outcomes support about 40 freely estimated parameters" in out
    assert "better 200, are advised: met" in out
    assert "is left out" in out
    assert_clear(ehrseq("advise", "--patients", 10, "--events", 60), 2, "60 events among 10 patients")


def test_advise_checks_the_sample_size(ehrseq):
    known = ("--parameters", 30, "--follow-up-years", 2.07, "--horizon-years", 2)
    code, out, _ = ehrseq("advise", "--patients", 5143, "--events", 692, *known, "--c", 0.69)
    assert code == 0
    assert "For 30 candidate parameters (23.1 outcomes each) that is enough." in out
    assert "left out" not in out
    found = document(ehrseq("advise", "--patients", 400, "--events", 40, *known, "--json"))["sample_size"]
    assert [criterion["met"] for criterion in found["development"]["criteria"]] == [False, False, True]
    assert found["validation"]["enough"] is False
    assert_clear(ehrseq("advise", "--patients", 40, "--events", 6, "--c", 0.4), 2, "a C of 0.4")
    assert_clear(ehrseq("advise", "--patients", 40, "--events", 6, "--horizon-years", 0), 2, "a horizon of 0.0 years")


def test_one_step_at_a_time_from_records_to_figures(ehrseq, dataset, tmp_path):
    task = dataset.root / "task.yaml"
    assert ehrseq("check", dataset.root)[0] == 0
    code, out, err = ehrseq("cohort", dataset.root, task, tmp_path / "cohort")
    assert code == 0
    assert "removed" in out
    assert err == f"next: ehrseq pretrain {dataset.root} {tmp_path / 'encoder'} --task {task}\n"
    assert ehrseq("pretrain", dataset.root, tmp_path / "encoder", "--epochs", 1, "--quiet")[0] == 0
    code, out, _ = ehrseq(
        *("finetune", dataset.root, task, tmp_path / "bundle", "--encoder", tmp_path / "encoder"),
        *("--strategy", "auto", "--max-epochs", 1, "--quiet"),
    )
    assert code == 0
    assert "is kept" in out
    code, out, err = ehrseq("predict", tmp_path / "bundle", dataset.root, tmp_path / "p.parquet")
    assert code == 0
    assert "240 predictions" in out
    assert err == f"next: ehrseq evaluate {tmp_path / 'p.parquet'} {tmp_path / 'cohort'}\n"
    code, out, _ = ehrseq("evaluate", tmp_path / "p.parquet", tmp_path / "cohort", "--bootstrap", 50)
    assert code == 0
    for figure in ("Harrell C", "Uno C", "IBS", "Brier score at 5 years"):
        assert figure in out
    found = document(ehrseq("evaluate", tmp_path / "p.parquet", tmp_path / "cohort", "--bootstrap", 50, "--json"))
    uno = found["metrics"]["uno_c"]
    assert uno["low"] <= uno["value"] <= uno["high"]
    assert f"{uno['value']:.4f}" in out
    found = document(ehrseq("predict", tmp_path / "bundle", dataset.root, tmp_path / "p.parquet", "--json"))
    assert found["n"] == pl.read_parquet(found["path"]).height
    assert found["row"] not in found["other_rows"]


def document(result) -> dict:
    """Standard output of a verb under --json: one document and nothing else, no suggestion on stderr."""
    code, out, err = result
    assert code == 0, err
    assert "next:" not in err
    return json.loads(out)


def test_the_cohort_as_json_agrees_with_its_files(ehrseq, dataset, tmp_path):
    found = document(ehrseq("cohort", dataset.root, dataset.root / "task.yaml", tmp_path / "cohort", "--json"))
    made = Cohort.read(Path(found["cohort"]))
    assert found["fingerprint"] == made.fingerprint
    assert found["attrition"] == made.attrition.to_dicts()
    assert sum(split["patients"] for split in found["splits"].values()) == made.table.height
    within = made.table.filter((pl.col("event") == 1) & (pl.col("duration") <= made.task.horizon_days))
    assert sum(split["outcomes"] for split in found["splits"].values()) == within.height


def test_check_and_advise_as_json(ehrseq, dataset):
    found = document(ehrseq("check", dataset.root, "--json"))
    assert found["ok"]
    assert found["facts"]["subjects"] == len(dataset.subject_ids())
    found = document(ehrseq("advise", "--patients", 4000, "--events", 600, "--json"))
    assert found["recipe"]["strategy"] == "lora"
    assert found["recipe"]["epochs"] == 100


def test_errors_under_json_leave_standard_output_empty(ehrseq, tmp_path):
    result = ehrseq("check", tmp_path / "nothing", "--json")
    assert_clear(result, 11, "nothing")
    assert result[1] == ""


def test_the_next_command_is_suggested_unless_quiet(ehrseq, dataset, tmp_path):
    cohort = tmp_path / "a b" / "cohort"
    words = ("cohort", dataset.root, dataset.root / "task.yaml", cohort, "--split-seed", 3)
    suggested = ehrseq(*words)[2].removeprefix("next: ehrseq ")
    verb, meds, encoder, *options = shlex.split(suggested)
    assert (verb, meds, encoder) == ("pretrain", str(dataset.root), str(cohort.parent / "encoder"))
    assert options == ["--task", str(dataset.root / "task.yaml"), "--split-seed", "3"]
    assert ehrseq(*words, "--quiet")[2] == ""


def test_the_version(ehrseq):
    assert ehrseq("--version")[:2] == (0, f"ehrseq {version('ehrsequencing')}\n")


def test_a_shell_completes_verbs_and_options():
    program = "import sys; sys.argv = ['ehrseq']; from ehrsequencing.cli import main; main()"
    for words, wanted in (("ehrseq co", {"convert", "cohort"}), ("ehrseq advise --pat", {"--patients"})):
        ask = {"_EHRSEQ_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | ask)
        assert set(done.stdout.split()) == wanted


def test_an_encoder_of_other_splits_is_refused(ehrseq, dataset, encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    task = dataset.root / "task.yaml"
    result = ehrseq(
        *("finetune", dataset.root, task, tmp_path / "bundle", "--encoder", tmp_path / "encoder", "--split-seed", 5)
    )
    assert_clear(result, 15, "was pretrained on")


def test_a_missing_file(ehrseq, dataset, tmp_path):
    assert_clear(ehrseq("cohort", dataset.root, tmp_path / "none.yaml", tmp_path / "c"), 10, "none.yaml")
    assert_clear(ehrseq("check", tmp_path / "nothing"), 11, "nothing")
    assert_clear(ehrseq("predict", tmp_path / "nothing", dataset.root, tmp_path / "p.parquet"), 13, "bundle.json")
    assert_clear(ehrseq("run", tmp_path / "none.yaml", tmp_path / "out"), 10, "none.yaml")
    assert_clear(ehrseq("convert", "synthea", tmp_path / "nothing", tmp_path / "out"), 11, "nothing")


def synthea(folder: Path, patients: str, conditions: str | None = None) -> Path:
    folder.mkdir()
    (folder / "patients.csv").write_text(patients)
    if conditions is not None:
        (folder / "conditions.csv").write_text(conditions)
    return folder


PATIENTS = "Id,BIRTHDATE,DEATHDATE,GENDER,RACE,ETHNICITY\np1,1950-01-02,,F,white,nonhispanic\n"


def test_a_missing_column_is_named(ehrseq, tmp_path):
    source = synthea(tmp_path / "src", PATIENTS.replace("BIRTHDATE", "BIRTH"))
    assert_clear(ehrseq("convert", "synthea", source, tmp_path / "out"), 11, "BIRTHDATE", "patients.csv")
    assert not (tmp_path / "out").exists()


def test_an_unparsable_date_is_set_aside_and_counted(ehrseq, tmp_path):
    rows = "START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n2001-02-03,,p1,e1,1,one\nyesterday,,p1,e1,2,two\n"
    source = synthea(tmp_path / "src", PATIENTS, rows)
    code, out, _ = ehrseq("convert", "synthea", source, tmp_path / "out")
    assert code == 0
    assert "conditions" in out
    rejects = pl.concat([pl.read_parquet(file) for file in (tmp_path / "out" / "rejects").glob("*.parquet")])
    assert rejects.height == 1


def test_an_unknown_key_names_the_nearest(ehrseq, dataset, tmp_path):
    (tmp_path / "task.yaml").write_text(TASK.replace("horizon_days", "horizon_day"))
    assert_clear(ehrseq("cohort", dataset.root, tmp_path / "task.yaml", tmp_path / "c"), 10, "horizon_days")
    assert not (tmp_path / "c").exists()


def test_an_empty_cohort_shows_where_everybody_went(ehrseq, dataset, tmp_path):
    (tmp_path / "task.yaml").write_text(TASK + "require: {age_min: 140}\n")
    assert_clear(ehrseq("cohort", dataset.root, tmp_path / "task.yaml", tmp_path / "c"), 12, "age_min")
    assert not (tmp_path / "c").exists()


def test_an_outcome_that_occurs_nowhere_suggests_near_codes(ehrseq, dataset, tmp_path):
    (tmp_path / "task.yaml").write_text(TASK.replace("I50.9", "I50.8"))
    assert_clear(ehrseq("cohort", dataset.root, tmp_path / "task.yaml", tmp_path / "c"), 12, "ICD10CM//I50.9")


def test_no_events_in_the_training_split(ehrseq, dataset, tmp_path):
    (tmp_path / "task.yaml").write_text(TASK.replace("1826", "0.001"))
    assert_clear(ehrseq("cohort", dataset.root, tmp_path / "task.yaml", tmp_path / "c"), 12, "training")
    assert not (tmp_path / "c").exists()


def test_a_horizon_past_the_data_is_refused_and_leaves_no_cohort(ehrseq, dataset, tmp_path):
    (tmp_path / "task.yaml").write_text(TASK.replace("1826", "100000"))
    assert_clear(ehrseq("cohort", dataset.root, tmp_path / "task.yaml", tmp_path / "c"), 12, "horizon")
    assert not (tmp_path / "c").exists()


def test_an_output_folder_that_holds_something_else_is_left_alone(ehrseq, dataset, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    task, place = dataset.root / "task.yaml", tmp_path / "mine"
    for words in (("cohort", dataset.root, task, place), ("simulate", place), ("pretrain", dataset.root, place)):
        assert_clear(ehrseq(*words), 14, "mine")
    assert (place / "thesis.txt").read_text() == "years of work"
    assert len(list(place.iterdir())) == 1


def test_an_output_below_a_file_cannot_be_written(ehrseq, dataset, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out"
    for words in (("simulate", place, "--patients", 20), ("cohort", dataset.root, dataset.root / "task.yaml", place)):
        assert_clear(ehrseq(*words), 14)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_cannot_be_written(ehrseq, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_clear(ehrseq("simulate", tmp_path / "locked" / "out", "--patients", 20), 14)


def test_predictions_that_are_no_predictions(ehrseq, dataset, tmp_path):
    ehrseq("cohort", dataset.root, dataset.root / "task.yaml", tmp_path / "cohort")
    pl.DataFrame({"subject_id": [1]}).write_parquet(tmp_path / "p.parquet")
    assert_clear(ehrseq("evaluate", tmp_path / "p.parquet", tmp_path / "cohort"), 13, "prediction_time")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_missing(ehrseq, dataset, tmp_path):
    assert_clear(ehrseq("pretrain", dataset.root, tmp_path / "e", "--device", "cuda"), 14, "cuda", "--device cpu")
    assert_clear(ehrseq("run", tmp_path / "study.yaml", tmp_path / "r", "--compile"), 14, "CUDA")
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_is_a_usage_error(ehrseq):
    assert ehrseq("run", "--nonsense")[0] == 2
    assert ehrseq("no-such-verb")[0] == 2


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (("simulate", "{out}", "--patients", 20), "simulating patients"),
        (("simulate", "{out}", "--patients", 20, "--question", "every_visit"), "simulating patients"),
        (("check", "{meds}"), "checking events"),
        (("cohort", "{meds}", "{meds}/task.yaml", "{out}"), "reading events"),
        (("convert", "csv", "{src}", "{out}", "--mapping", "{src}/map.yaml"), "reading events.csv"),
        (("convert", "csv", "{src}", "{out}", "--mapping", "{src}/map.yaml"), "writing subjects"),
        (("evaluate", "{p}", "{cohort}", "--bootstrap", 5), "resampling patients"),
    ],
)
def test_long_verbs_tell_how_far_they_are(ehrseq, dataset, tmp_path, monkeypatch, words, title):
    heard = []
    monkeypatch.setattr("ehrsequencing.cli.progress.ProgressDisplay.__call__", lambda self, tick: heard.append(tick))
    where = places(dataset, tmp_path)
    assert ehrseq(*(str(word).format(**where) for word in words))[0] == 0
    own = [tick for tick in heard if tick.title == title]
    assert own[0].done == 0 < own[-1].done == own[-1].total
    assert [tick.done for tick in own[:2]] == sorted(tick.done for tick in own[:2])


def places(dataset, folder: Path) -> dict[str, Path]:
    """A small table with its mapping, a cohort with predictions that know nothing, and somewhere to write."""
    source = folder / "src"
    source.mkdir()
    (source / "events.csv").write_text("who,when,what\n1,2001-02-03,A\n2,2001-02-04,B\n")
    (source / "map.yaml").write_text(MAPPING)
    cohort = build_cohort(dataset, load_task(dataset.root / "task.yaml"))
    cohort.write(folder / "cohort")
    rows, days = cohort.table, [365.0 * year for year in range(1, 6)]
    told = rows.select("subject_id", "prediction_time", risk=pl.col("subject_id").cast(pl.Float64))
    curves = {"horizon_days": [days] * rows.height, "survival": [[0.9, 0.8, 0.7, 0.6, 0.5]] * rows.height}
    told.with_columns(**{name: pl.Series(lists) for name, lists in curves.items()}).write_parquet(folder / "p.parquet")
    mine = {"cohort": folder / "cohort", "p": folder / "p.parquet", "out": folder / "o"}
    return {"meds": dataset.root, "src": source, **mine}
