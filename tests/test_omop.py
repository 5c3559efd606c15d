"""OMOP tables become MEDS: in any of their forms, with every row accounted for."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import os
from collections import Counter
from pathlib import Path

import meds
import polars as pl
import pyarrow.parquet as pq
import pytest

from ehrsequencing.cli import main
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import DataConfig, StudyConfig, TaskConfig, load_yaml
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH, check
from ehrsequencing.sources import blocks
from ehrsequencing.sources.conversion import ConversionReport
from ehrsequencing.sources.omop import convert_omop
from ehrsequencing.study.data import open_data

CDM = Path(os.environ.get("EHR_DATA", "../shared/data")) / "omop_gibleed"
needs_cdm = pytest.mark.skipif(not CDM.is_dir(), reason=f"no real data at {CDM} (set EHR_DATA)")

TABLES = {
    "person": """
        person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime,race_concept_id,ethnicity_concept_id,person_source_value,gender_source_value,race_source_value,ethnicity_source_value
        1,8532,1950,2,3,1950-02-03 06:30:00,8527,0,secret-one,F,white,west indian
        2,8507,1980,,,,0,38003564,secret-two,M,,
        -3,0,1990,7,4,,8516,0,secret-three,diverse,black,
    """,
    "concept": """
        concept_id,concept_name,domain_id,vocabulary_id,concept_class_id,standard_concept,concept_code
        201826,Type 2 diabetes mellitus,Condition,SNOMED,Clinical Finding,S,44054006
        45542411,Type 2 diabetes,Condition,ICD10CM,4-char billing code,,E11.9
        9201,Inpatient Visit,Visit,Visit,Visit,S,IP
        8717,Inpatient Hospital,Visit,CMS Place of Service,Visit,S,21
        8536,Home,Visit,CMS Place of Service,Visit,S,12
        1112807,"aspirin, oral",Drug,RxNorm,Ingredient,S,1191
        4107731,Cast,Procedure,SNOMED,Procedure,S,180256009
        3004410,Hemoglobin A1c,Measurement,LOINC,Lab Test,S,4548-4
        8554,percent,Unit,UCUM,Unit,S,%
        3051227,Occult blood,Measurement,LOINC,Lab Test,S,2335-8
        4126681,Detected,Meas Value,SNOMED,Qualifier Value,S,260373001
        45877994,Yes,Meas Value,LOINC,Answer,S,LA33-6
        4005823,Tobacco user,Observation,SNOMED,Clinical Finding,S,110483000
        4217646,Pacemaker,Device,SNOMED,Physical Object,S,14106009
        312327,Acute myocardial infarction,Condition,SNOMED,Clinical Finding,S,57054005
    """,
    "visit_occurrence": """
        visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,visit_end_datetime,visit_source_value,visit_source_concept_id,admitted_from_concept_id,discharged_to_concept_id,discharged_to_source_value
        70,1,9201,2010-01-01,2010-01-01 10:00:00,2010-01-05,2010-01-05 12:00:00,enc-123,0,0,8536,HOME
        71,2,0,2011-01-01,,,,Outpatient,0,8717,0,
        72,2,0,2012-01-01,,2012-01-01,,enc-124,0,,0,DIED
    """,
    "condition_occurrence": """
        condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_start_datetime,condition_end_date,stop_reason,visit_occurrence_id,condition_source_value,condition_source_concept_id
        1,1,201826,2010-01-01,2010-01-01T11:00:00,2010-02-02,better,70,E11.9,45542411
        2,1,0,2010-01-02,,,,70.0,E11.9,45542411
        3,2,0,2011-01-01,,,,70,own  code,0
        4,2,999999,2011-01-02,,,,555,x,0
    """,
    "drug_exposure": """
        drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date,drug_exposure_end_date,quantity,days_supply,lot_number,sig,visit_occurrence_id,drug_source_value
        1,1,1112807,2010-01-03,2010-03-03,30,30,lot-77,take one,70,asp
    """,
    "procedure_occurrence": """
        procedure_occurrence_id,person_id,procedure_concept_id,procedure_date,procedure_datetime,visit_occurrence_id
        1,1,4107731,2010-01-04,2010-01-04 09:00:00,70
    """,
    "measurement": """
        measurement_id,person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,value_as_concept_id,unit_concept_id,visit_occurrence_id,unit_source_value,value_source_value
        1,1,3004410,2010-01-02,2010-01-02 07:00:00,6.5,0,8554,70,pct,6.5
        2,1,3004410,2010-01-02,2010-01-02 08:00:00,7,4126681,0,70,percent,7
        3,1,3051227,2010-01-02,2010-01-02 09:00:00,,4126681,0,70,,Mr Smith positive
        4,1,3004410,2010-01-02,2010-01-02 10:00:00,,0,8554,70,%,
        5,1,3004410,2010-01-02,2010-01-02 10:00:00,much,0,8554,70,%,much
        6,1,3004410,2010-01-02,2010-01-02 10:00:00,inf,0,8554,70,%,
    """,
    "observation": """
        observation_id,person_id,observation_concept_id,observation_date,value_as_number,value_as_string,value_as_concept_id,visit_occurrence_id,unit_concept_id
        1,2,4005823,2011-01-03,,says Jane Doe,45877994,71,0
    """,
    "device_exposure": """
        device_exposure_id,person_id,device_concept_id,device_exposure_start_date,unique_device_id,visit_occurrence_id
        1,2,4217646,2011-01-04,(01)0001,71
    """,
    "observation_period": """
        observation_period_id,person_id,observation_period_start_date,observation_period_end_date
        1,1,2009-01-01,2012-12-31
        2,99,2009-01-01,2012-12-31
    """,
    "death": """
        person_id,death_date,death_datetime,cause_concept_id,cause_source_value
        1,2012-05-06,2012-05-06 03:04:05,312327,
        1,2012-05-07,,0,
        2,2013-01-01,,0,I21
    """,
}
SECRETS = (
    "secret-",
    "enc-12",
    "lot-77",
    "(01)0001",
    "Smith",
    "Jane Doe",
    "take one",
    "2010-02-02",
    "2010-03-03",
    "better",
)


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(line.strip() for line in text.strip().splitlines()))


def delimited(rows: list[list[str]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


def write(folder: Path, changes: dict[str, str | None] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in {**TABLES, **(changes or {})}.items():
        if text is not None:
            (folder / f"{name}.csv").write_text(delimited(rows_of(text)), encoding="utf-8")
    return folder


def only(**tables: str) -> dict[str, str | None]:
    """Persons and concepts, and these tables."""
    return {**dict.fromkeys(set(TABLES) - {"person", "concept"}), **tables}


def convert(tmp_path: Path, changes: dict[str, str | None] | None = None, **options: int) -> ConversionReport:
    return convert_omop(write(tmp_path / "cdm", changes), tmp_path / "meds", **options)


def events(report: ConversionReport, subject: int) -> list[tuple[object, ...]]:
    table = report.dataset.scan().filter(pl.col("subject_id") == subject).collect()
    return table.select("time", "code", "numeric_value", "unit", "visit_id").rows()


def rejects(report: ConversionReport, table: str) -> list[tuple[str, int, str]]:
    return pl.read_parquet(report.dataset.root / f"rejects/{table}.parquet").rows()


def balanced(report: ConversionReport) -> bool:
    rows = all(tally.rows == tally.events + tally.excluded + tally.rejected for tally in report.tallies)
    return rows and report.dataset.scan().collect().height == sum(tally.events for tally in report.tallies)


def at(day: int, hour: int = 0, minute: int = 0) -> dt.datetime:
    return dt.datetime(2010, 1, day, hour, minute)


class TestEvents:
    def test_each_table_becomes_what_its_documentation_says(self, tmp_path: Path) -> None:
        report = convert(tmp_path)
        assert events(report, 1) == [
            (None, "Gender//F", None, None, None),
            (None, "Race//5", None, None, None),
            (None, "SOURCE//ETHNICITY//west indian", None, None, None),
            (dt.datetime(1950, 2, 3, 6, 30), BIRTH, None, None, None),
            (dt.datetime(2009, 1, 1), "OBSERVATION_PERIOD//START", None, None, None),
            (at(1, 10), "Visit//IP", None, None, 70),
            (at(1, 11), "SNOMED//44054006", None, None, 70),
            (at(2), "ICD10CM//E11.9", None, None, 70),
            (at(2, 7), "LOINC//4548-4", 6.5, "%", 70),
            (at(2, 8), "LOINC//4548-4", 7.0, "percent", 70),
            (at(2, 9), "LOINC//2335-8//SNOMED//260373001", None, None, 70),
            (at(2, 10), "LOINC//4548-4", None, None, 70),
            (at(3), "RxNorm//1191", None, None, 70),
            (at(4, 9), "SNOMED//180256009", None, None, 70),
            (at(5, 12), "DISCHARGED_TO//CMS Place of Service//12", None, None, 70),
            (at(5, 12), "VISIT_END//Visit//IP", None, None, 70),
            (dt.datetime(2012, 5, 6, 3, 4, 5), "DEATH_CAUSE//SNOMED//57054005", None, None, None),
            (dt.datetime(2012, 5, 6, 3, 4, 5), DEATH, None, None, None),
            (dt.datetime(2012, 12, 31), "OBSERVATION_PERIOD//END", None, None, None),
        ]
        assert events(report, 2) == [
            (None, "Ethnicity//Not Hispanic", None, None, None),
            (None, "Gender//M", None, None, None),
            (dt.datetime(1980, 1, 1), BIRTH, None, None, None),
            (dt.datetime(2011, 1, 1), "ADMITTED_FROM//CMS Place of Service//21", None, None, 71),
            (dt.datetime(2011, 1, 1), "SOURCE//CONDITION//own code", None, None, None),
            (dt.datetime(2011, 1, 1), "SOURCE//VISIT//Outpatient", None, None, 71),
            (dt.datetime(2011, 1, 2), "OMOP//999999", None, None, None),
            (dt.datetime(2011, 1, 3), "SNOMED//110483000//LOINC//LA33-6", None, None, 71),
            (dt.datetime(2011, 1, 4), "SNOMED//14106009", None, None, 71),
            (dt.datetime(2012, 1, 1), "SOURCE//DISCHARGED_TO//DIED", None, None, 72),
            (dt.datetime(2012, 1, 1), "SOURCE//VISIT//unknown", None, None, 72),
            (dt.datetime(2012, 1, 1), "SOURCE//VISIT_END//unknown", None, None, 72),
            (dt.datetime(2013, 1, 1), DEATH, None, None, None),
            (dt.datetime(2013, 1, 1), "SOURCE//DEATH_CAUSE//I21", None, None, None),
        ]
        assert events(report, -3) == [
            (None, "Race//3", None, None, None),
            (None, "SOURCE//GENDER//diverse", None, None, None),
            (dt.datetime(1990, 7, 4), BIRTH, None, None, None),
        ]

    def test_rows_in_are_events_rejects_and_what_the_documentation_leaves_out(self, tmp_path: Path) -> None:
        report = convert(tmp_path)
        found = {tally.name: (tally.rows, tally.events, tally.excluded, tally.rejected) for tally in report.tallies}
        assert found == {
            "person: birth": (3, 3, 0, 0),
            "person: gender": (3, 3, 0, 0),
            "person: race": (3, 2, 1, 0),
            "person: ethnicity": (3, 2, 1, 0),
            "visit_occurrence: start": (3, 3, 0, 0),
            "visit_occurrence: admitted from": (3, 1, 2, 0),
            "visit_occurrence: end": (3, 2, 1, 0),
            "visit_occurrence: discharged to": (3, 2, 1, 0),
            "condition_occurrence": (4, 4, 0, 0),
            "drug_exposure": (1, 1, 0, 0),
            "procedure_occurrence": (1, 1, 0, 0),
            "measurement": (6, 4, 0, 2),
            "observation": (1, 1, 0, 0),
            "device_exposure": (1, 1, 0, 0),
            "observation_period: start": (2, 1, 0, 1),
            "observation_period: end": (1, 1, 0, 0),
            "death: death": (3, 2, 1, 0),
            "death: cause": (2, 2, 0, 0),
        }
        assert balanced(report)
        text = report.text()
        assert "rows in = events + left out + rejects" in text
        assert "left out 1: the person's death stands in another row, too" in text
        assert "1 have concept 0 and are coded by their source value (SOURCE//…)" in text
        assert "1 have concept 0 and are coded by the source's own concept" in text
        assert "2 name a visit that visit_occurrence does not have for their person: grouped by day" in text
        assert "1 births are known by their year or month only" in text
        assert "1 have a number and a concept as value: the number is kept" in text
        assert rejects(report, "measurement") == [
            ("measurement.csv", row, "the value is not a finite number") for row in (6, 7)
        ]
        assert rejects(report, "observation_period") == [
            ("observation_period.csv", 3, "the person is not in the person table")
        ]

    def test_codes_are_described_flagged_and_know_what_is_above_them(self, tmp_path: Path) -> None:
        report = convert(tmp_path)
        table = pl.read_parquet(report.dataset.root / "metadata/codes.parquet")
        rows = {row["code"]: row for row in table.iter_rows(named=True)}
        assert rows["SNOMED//44054006"]["description"] == "Type 2 diabetes mellitus"
        assert rows["RxNorm//1191"]["description"] == "aspirin, oral"
        assert rows["LOINC//2335-8//SNOMED//260373001"]["description"] == "Occult blood: Detected"
        assert rows["LOINC//2335-8//SNOMED//260373001"]["parent_codes"] == ["LOINC//2335-8"]
        assert rows["VISIT_END//Visit//IP"]["description"] == "Visit end: Inpatient Visit"
        assert rows["OMOP//999999"]["description"] is None
        flagged = {code for code, row in rows.items() if row["unmapped"]}
        assert flagged == {code for code in rows if code.startswith("SOURCE//")}
        assert "SOURCE//CONDITION//own code" in flagged
        assert "the concept table lacks 1" in report.text()

    def test_no_identifier_and_nothing_known_later_enters(self, tmp_path: Path) -> None:
        report = convert(tmp_path)
        frames = [pl.read_parquet(path) for path in report.dataset.root.rglob("*.parquet")]
        everything = "".join(frame.write_json() for frame in frames) + report.text()
        assert "SNOMED//44054006" in everything
        assert [secret for secret in SECRETS if secret in everything] == []

    def test_without_a_concept_table_ids_stand_for_themselves(self, tmp_path: Path) -> None:
        report = convert(tmp_path, {"concept": None})
        table = report.dataset.scan().collect()
        codes = set(table["code"])
        assert {"OMOP//201826", "OMOP//9201", "VISIT_END//OMOP//9201", "OMOP//3051227//OMOP//4126681"} <= codes
        assert {"Gender//F", "SOURCE//CONDITION//own code"} <= codes
        assert set(table["unit"].drop_nulls()) == {"OMOP//8554", "percent"}
        assert "there is no concept table" in report.text()
        assert balanced(report)

    def test_a_valid_dataset(self, tmp_path: Path) -> None:
        report = convert(tmp_path, subjects_per_shard=1)
        for shard in report.dataset.shards():
            meds.DataSchema.validate(pq.read_table(shard))
        assert check(report.dataset).ok
        assert report.subjects == 3
        assert report.private is None


def same_events(tmp_path: Path, other: ConversionReport) -> bool:
    plain = convert_omop(write(tmp_path / "plain"), tmp_path / "plain-meds")
    order = ["subject_id", "time", "code", "numeric_value", "visit_id"]
    frames = [report.dataset.scan().collect().sort(order) for report in (plain, other)]
    return frames[0].equals(frames[1])


class TestForms:
    def test_upper_case_and_tabs_and_gzip(self, tmp_path: Path) -> None:
        folder = tmp_path / "cdm"
        folder.mkdir()
        for name, text in TABLES.items():
            header, *rows = rows_of(text)
            lines = delimited([[column.upper() for column in header], *rows], "\t")
            (folder / f"{name.upper()}.CSV.GZ").write_bytes(gzip.compress(("\ufeff" + lines).encode()))
        assert same_events(tmp_path, convert_omop(folder, tmp_path / "meds"))

    def test_parquet_parts_with_types(self, tmp_path: Path) -> None:
        folder = tmp_path / "cdm"
        for name, text in TABLES.items():
            header, *rows = rows_of(text)
            frame = pl.DataFrame(rows, schema=header, orient="row").with_columns(pl.all().replace("", None))
            typed = [
                pl.col(column).str.replace(r"\.0$", "").cast(pl.Int64)
                if column.endswith(("_id", "_of_birth"))
                and not column.startswith(("unique_", "domain_", "vocabulary_", "concept_class_"))
                else pl.col(column).str.replace(" ", "T").str.to_datetime(time_zone="UTC")
                if column.endswith("_datetime")
                else pl.col(column).str.to_date()
                if column.endswith("_date")
                else pl.col(column)
                for column in header
            ]
            frame = frame.with_columns(typed)
            if name == "condition_occurrence":
                frame = frame.with_columns(pl.col("visit_occurrence_id").cast(pl.Float64))
            (folder / name).mkdir(parents=True)
            (folder / name / "_SUCCESS").write_text("")
            for number, part in enumerate((frame[:1], frame[1:])):
                part.write_parquet(folder / name / f"part-{number}.parquet")
        report = convert_omop(folder, tmp_path / "meds")
        assert same_events(tmp_path, report)
        assert rejects(report, "measurement") == [
            ("measurement/part-1.parquet", row, "the value is not a finite number") for row in (4, 5)
        ]
        assert balanced(report)

    def test_csv_parts_in_a_folder_named_like_a_file(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "cdm")
        header, *rows = rows_of(TABLES["condition_occurrence"])
        (folder / "condition_occurrence.csv").unlink()
        (folder / "condition_occurrence.csv").mkdir()
        for number, row in enumerate(rows):
            (folder / f"condition_occurrence.csv/part-{number}.csv").write_text(delimited([header, row]))
        assert same_events(tmp_path, convert_omop(folder, tmp_path / "meds"))

    def test_names_of_the_older_model(self, tmp_path: Path) -> None:
        text = (TABLES["visit_occurrence"] or "").replace("admitted_from_", "admitting_source_")
        text = text.replace("discharged_to_concept_id", "discharge_to_concept_id")
        text = text.replace("discharged_to_source_value", "discharge_to_source_value")
        assert same_events(tmp_path, convert(tmp_path, {"visit_occurrence": text}))

    @pytest.mark.parametrize("missing", sorted(set(TABLES) - {"person"}))
    def test_any_table_but_person_may_be_missing(self, tmp_path: Path, missing: str) -> None:
        assert balanced(convert(tmp_path, {missing: None}))

    def test_small_blocks_and_shards_change_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 450)
        assert same_events(tmp_path, convert(tmp_path, subjects_per_shard=1))

    def test_a_vocabulary_file_that_does_not_quote(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "cdm", {"concept": None})
        header, *rows = rows_of(TABLES["concept"])
        rows[0][1] = '"Sugar" 2" type'
        (folder / "CONCEPT.csv").write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
        described = dict(
            convert_omop(folder, tmp_path / "meds").dataset.codes().select("code", "description").iter_rows()
        )
        assert described["SNOMED//44054006"] == '"Sugar" 2" type'
        assert described["RxNorm//1191"] == "aspirin, oral"

    def test_an_empty_death_table(self, tmp_path: Path) -> None:
        report = convert(tmp_path, {"death": "person_id,death_date,death_datetime,death_type_concept_id"})
        assert DEATH not in set(report.dataset.scan().collect()["code"])
        assert balanced(report)

    def test_tables_that_are_not_read_are_named(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "cdm", {"condition_era": "person_id\n1", "cost": "cost_id\n1", "note": "note_id\n1"})
        ignored = convert_omop(folder, tmp_path / "meds").ignored
        assert ignored == ("condition_era.csv (derived from other tables)", "cost.csv", "note.csv (free text)")


class TestRejects:
    def test_each_bad_row_is_set_aside_with_file_row_and_reason(self, tmp_path: Path) -> None:
        text = """
            person_id,condition_concept_id,condition_start_date,condition_start_datetime,condition_source_value
            1,201826,2010-01-01,,good
            1,201826,2010-02-30,,no such day
            1,201826,,,no date
            77,201826,2010-01-01,,unknown person
            ,201826,2010-01-01,,no person
            abc,201826,2010-01-01,,person by name
            1,0,2010-01-01,,
            1,,2010-01-01,,
            1,diabetes,2010-01-01,,a word for a concept
            1,201826,2010-01-01,noon,the date still stands
            1,201826
        """
        report = convert(tmp_path, only(condition_occurrence=text))
        assert [(row, why) for _, row, why in rejects(report, "condition_occurrence")] == [
            (3, "the date cannot be read"),
            (4, "the date is empty"),
            (5, "the person is not in the person table"),
            (6, "person_id is empty"),
            (7, "person_id is no whole number"),
            (8, "the concept is 0 or empty, and so is the source value"),
            (9, "the concept is 0 or empty, and so is the source value"),
            (10, "the concept id is no whole number"),
            (12, "the row has another number of fields than the header"),
        ]
        tally = report.tallies[-1]
        assert (tally.rows, tally.events, tally.rejected) == (11, 2, 9)
        assert check(report.dataset).facts["rows_set_aside"] == 9

    def test_persons_that_cannot_be_read_take_their_rows_along(self, tmp_path: Path) -> None:
        people = """
            person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth
            1,8507,1950,1,1
            2,8507,1950,13,1
            3,8507,1950,1,1
            3,8507,1951,1,1
            4,8507,1950,1,1
            4,8507,1950,1,1
            five,8507,1950,1,1
            ,8507,1950,1,1
            6,8507,,,
        """
        rows = "person_id,condition_concept_id,condition_start_date\n" + "\n".join(
            f"{person},201826,2010-01-01" for person in (1, 2, 3, 4, 6)
        )
        report = convert(tmp_path, {**only(condition_occurrence=rows), "person": people})
        assert [(row, why) for _, row, why in rejects(report, "person")] == [
            (3, "the birth cannot be read"),
            (4, "the person's rows contradict each other"),
            (5, "the person's rows contradict each other"),
            (7, "the person stands in an earlier row, too"),
            (8, "person_id is no whole number"),
            (9, "person_id is empty"),
        ]
        lost = "the person's own row was set aside"
        assert [(row, why) for _, row, why in rejects(report, "condition_occurrence")] == [(3, lost), (4, lost)]
        births = next(tally for tally in report.tallies if tally.name == "person: birth")
        assert births.left_out == {"the row states no birth": 1}
        assert report.subjects == 3
        assert balanced(report)

    def test_ends_before_starts_and_deaths_of_nobody(self, tmp_path: Path) -> None:
        visits = """
            visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_end_date
            1,1,9201,2010-01-05,2010-01-04
            2,1,9201,2010-02-05,soon
        """
        deaths = "person_id,death_date\n9,2010-01-01\n1,"
        report = convert(tmp_path, only(visit_occurrence=visits, death=deaths))
        assert [(row, why) for _, row, why in rejects(report, "visit_occurrence")] == [
            (2, "'end' lies before the start"),
            (3, "the date of 'end' cannot be read"),
        ]
        assert [(row, why) for _, row, why in rejects(report, "death")] == [
            (2, "the person is not in the person table"),
            (3, "the date is empty"),
        ]
        assert balanced(report)


class TestMistakes:
    def fails(self, tmp_path: Path, changes: dict[str, str | None]) -> EhrError:
        with pytest.raises(EhrError) as caught:
            convert(tmp_path, changes)
        assert [path.name for path in tmp_path.iterdir()] == ["cdm"]
        assert caught.value.code == Exit.DATA
        return caught.value

    def test_no_person_table(self, tmp_path: Path) -> None:
        assert "the person table" in self.fails(tmp_path, {"person": None}).what

    def test_a_person_table_of_another_name(self, tmp_path: Path) -> None:
        error = self.fails(tmp_path, {"person": None, "persons": TABLES["person"]})
        assert error.fix == "is it 'persons.csv'? Rename it"

    def test_nobody_can_be_read(self, tmp_path: Path) -> None:
        error = self.fails(tmp_path, {"person": "person_id,year_of_birth\nx,1950"})
        assert error.what == "no person's row can be read"

    def test_missing_column_names_the_nearest(self, tmp_path: Path) -> None:
        text = (TABLES["drug_exposure"] or "").replace("drug_exposure_start_date", "drug_exposure_startdate")
        error = self.fails(tmp_path, {"drug_exposure": text})
        assert "drug_exposure_start_date" in error.what
        assert "drug_exposure_startdate" in error.fix

    def test_a_table_twice(self, tmp_path: Path) -> None:
        (write(tmp_path / "cdm") / "person").mkdir()
        assert "found person, person.csv" in self.fails(tmp_path, {}).what

    def test_a_file_instead_of_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "cdm")
        with pytest.raises(EhrError, match="found a file"):
            convert_omop(tmp_path / "cdm/person.csv", tmp_path / "meds")

    def test_a_truncated_parquet_file(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "cdm", {"death": None})
        pl.DataFrame({"person_id": [1]}).write_parquet(folder / "death.parquet")
        (folder / "death.parquet").write_bytes((folder / "death.parquet").read_bytes()[:-20])
        with pytest.raises(EhrError, match="cannot be read") as caught:
            convert_omop(folder, tmp_path / "meds")
        assert "death.parquet" in caught.value.where


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> ConversionReport:
    return convert_omop(CDM, tmp_path_factory.mktemp("real") / "meds", subjects_per_shard=700)


@needs_cdm
class TestRealModel:
    def test_no_row_is_lost(self, real: ConversionReport) -> None:
        found = {tally.name: (tally.rows, tally.events, tally.excluded, tally.rejected) for tally in real.tallies}
        for table, rows in {
            "person: birth": 2_694,
            "person: gender": 2_694,
            "visit_occurrence: start": 1_037,
            "visit_occurrence: end": 1_037,
            "condition_occurrence": 65_332,
            "drug_exposure": 67_707,
            "procedure_occurrence": 37_409,
            "measurement": 44_053,
            "observation": 1_477,
        }.items():
            assert found[table] == (rows, rows, 0, 0)
        assert found["observation_period: start"] == (5_343, 2_694, 0, 2_649)
        assert found["death: death"] == (0, 0, 0, 0)
        assert balanced(real)

    @pytest.mark.slow
    def test_against_a_plain_reading_of_the_files(self, real: ConversionReport) -> None:
        def read(table: str) -> list[dict[str, str]]:
            with gzip.open(CDM / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))

        codes = {row["concept_id"]: f"{row['vocabulary_id']}//{row['concept_code']}" for row in read("concept")}
        expected: Counter[tuple[str, str, str]] = Counter()
        for table, stem, day in (
            ("condition_occurrence", "condition", "condition_start_date"),
            ("drug_exposure", "drug", "drug_exposure_start_date"),
            ("procedure_occurrence", "procedure", "procedure_date"),
            ("measurement", "measurement", "measurement_date"),
            ("observation", "observation", "observation_date"),
        ):
            for row in read(table):
                expected[row["person_id"], row[day], codes[row[f"{stem}_concept_id"]]] += 1
        found = real.dataset.scan().filter(pl.col("code").str.contains("^(SNOMED|RxNorm|CVX|NDC|LOINC)//")).collect()
        rows = found.select(
            pl.col("subject_id").cast(pl.String), pl.col("time").dt.date().cast(pl.String), "code"
        ).iter_rows()
        assert Counter(rows) == expected

    def test_visits_resolve_where_they_can(self, real: ConversionReport) -> None:
        table = real.dataset.scan().collect()
        visits = table.filter(pl.col("code") == "Visit//IP")["visit_id"]
        assert visits.n_unique() == 1_037
        assert table["visit_id"].drop_nulls().is_in(visits.implode()).all()
        conditions = 551
        others = 217 + 517 + 6 + 157
        assert table["visit_id"].count() == 2 * 1_037 + conditions + others

    def test_it_is_meds_and_every_code_is_described(self, real: ConversionReport) -> None:
        report = check(real.dataset)
        assert report.ok
        assert report.facts["subjects_with_birth"] == 2_694
        described = real.dataset.codes().filter(pl.col("description").is_null())["code"].to_list()
        assert described == ["OBSERVATION_PERIOD//END", "OBSERVATION_PERIOD//START"] or described == []

    def test_no_identifier_is_in_the_stream(self, real: ConversionReport) -> None:
        people = pl.read_csv(CDM / "person.csv.gz", infer_schema=False)
        visits = pl.read_csv(CDM / "visit_occurrence.csv.gz", infer_schema=False)
        secrets = {*people["person_source_value"], *visits["visit_source_value"].drop_nulls()}
        parts = {part for code in real.dataset.codes()["code"] for part in code.split("//")}
        assert parts & secrets == set()


def test_the_verb_says_the_account_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write(tmp_path / "cdm"))
    monkeypatch.setattr("sys.argv", ["ehrseq", "convert", "omop", source, str(tmp_path / "meds")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert "rows in = events + left out + rejects" in out
    assert err == f"next: ehrseq check {tmp_path / 'meds'}\n"


def test_a_study_names_its_omop_folder(tmp_path: Path) -> None:
    dataset, said = open_data(DataConfig(omop=str(write(tmp_path / "cdm"))), tmp_path / "meds")
    assert len(dataset.subject_ids()) == 3
    assert "rows in = events" in said


@pytest.mark.parametrize("name", ["gibleed", "mimic_readmission"])
def test_studies_are_valid(name: str) -> None:
    study = load_yaml(StudyConfig, Path(__file__).parent.parent / f"studies/{name}.yaml")
    assert study.name == name


@needs_cdm
def test_the_cohort_of_the_study(real: ConversionReport) -> None:
    study = load_yaml(StudyConfig, Path(__file__).parent.parent / "studies/gibleed.yaml")
    assert isinstance(study.task, TaskConfig)
    table = build_cohort(real.dataset, study.task).table
    bleeds = table.filter((pl.col("event") == 1) & (pl.col("duration") <= 3652.5))
    assert (table.height, bleeds.height) == (2_620, 411)
