"""Synthea exports become MEDS: what is an event, what never is, and where every row went."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import os
from collections import Counter
from pathlib import Path

import meds
import polars as pl
import pyarrow.parquet as pq
import pytest

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH, check, hash_ids, private_folder
from ehrsequencing.sources import blocks
from ehrsequencing.sources.conversion import ConversionReport
from ehrsequencing.sources.synthea import convert_synthea

EXPORT = Path(os.environ.get("EHR_DATA", "../shared/data")) / "synthea_1k"
needs_export = pytest.mark.skipif(not EXPORT.is_dir(), reason=f"no real data at {EXPORT} (set EHR_DATA)")

TABLES = {
    "patients": """
        Id,BIRTHDATE,DEATHDATE,SSN,PASSPORT,FIRST,LAST,RACE,ETHNICITY,GENDER,ADDRESS,ZIP,LAT,LON,HEALTHCARE_EXPENSES
        p-one,1950-02-03,2012-05-06,999-11-11,X111X,Ada,Quux,white,hispanic,F,1 Elm Lane,01013,42.22,-72.56,271227.08
        p-two,1980-01-01,,999-22-22,X222X,Bob,Corge,black,,M,2 Oak Lane,02143,42.36,-71.12,793946.01
    """,
    "encounters": """
        Id,START,STOP,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION,BASE_ENCOUNTER_COST
        e-1,2010-01-01T10:00:00Z,2010-01-09T11:11:11Z,p-one,Inpatient,183452005,Hospital stay,129.16
        e-2,2011-01-01T10:00:00Z,2011-01-01T11:00:00Z,p-two,wellness,162673000,Check-up,129.16
        e-3,2012-05-08T10:00:00Z,2012-05-08T11:00:00Z,p-one,ambulatory,308646001,Death Certification,129.16
    """,
    "conditions": """
        START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION
        2010-01-01,2010-02-02,p-one,e-1,271737000,Anemia (disorder)
        2011-01-01,,p-two,e-2,271737000,Anemia (disorder)
    """,
    "medications": """
        START,STOP,PATIENT,PAYER,ENCOUNTER,CODE,DESCRIPTION,BASE_COST,DISPENSES,TOTALCOST
        2010-01-01T10:00:00Z,2010-03-03T10:00:00Z,p-one,pay,e-1,314231,Simvastatin 10 MG,12.5,77,962.5
    """,
    "procedures": """
        DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,BASE_COST
        2010-01-01T10:30:00Z,p-one,e-1,430193006,Medication Reconciliation,516.65
    """,
    "immunizations": """
        DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,BASE_COST
        2011-01-01T10:00:00Z,p-two,e-2,140,Influenza,140.52
    """,
    "observations": """
        DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE
        2010-01-01T10:00:00Z,p-one,e-1,laboratory,4548-4,Hemoglobin A1c,6.5,%,numeric
        2010-01-01T10:00:00Z,p-one,e-1,survey,72166-2,Tobacco smoking status,Never  smoker,,text
        2010-01-01T10:00:00Z,p-one,,,QALY,QALY,12.5,a,numeric
        2010-01-01T10:00:00Z,p-one,e-1,survey,9999-9,Grade,3,,text
        2010-01-01T10:00:00Z,p-one,e-1,laboratory,4548-4,Hemoglobin A1c,,%,numeric
    """,
}
SECRETS = ("p-one", "e-1", "999-11", "X111X", "Ada", "Quux", "Elm", "01013", "42.2", "72.56")
NEVER = (*SECRETS, "271227", "129.16", "962.5", "516.65", "2010-01-09", "2010-02-02", "2010-03-03")


def write(folder: Path, changes: dict[str, str | None] | None = None) -> Path:
    """The export of two patients, with some tables replaced or (None) left out."""
    folder.mkdir(exist_ok=True)
    for name, text in {**TABLES, **(changes or {})}.items():
        if text is not None:
            lines = [line.strip() for line in text.strip().splitlines()]
            (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def only(name: str, text: str) -> dict[str, str | None]:
    """Nothing but patients and the one table."""
    return {**dict.fromkeys(set(TABLES) - {"patients"}), name: text}


def convert(tmp_path: Path, changes: dict[str, str | None] | None = None, **options: int) -> ConversionReport:
    return convert_synthea(write(tmp_path / "export", changes), tmp_path / "meds", **options)


def rejects(report: ConversionReport, table: str) -> list[tuple[str, int, str]]:
    return pl.read_parquet(report.dataset.root / f"rejects/{table}.parquet").rows()


def balanced(report: ConversionReport) -> bool:
    rows = all(tally.rows == tally.events + tally.excluded + tally.rejected for tally in report.tallies)
    return rows and report.dataset.scan().collect().height == sum(tally.events for tally in report.tallies)


class TestEvents:
    def test_each_table_becomes_what_its_documentation_says(self, tmp_path: Path) -> None:
        table = convert(tmp_path).dataset.scan().collect()
        one, two = hash_ids(["p-one", "p-two"]).tolist()
        stay, check_up, certificate = hash_ids(["e-1", "e-2", "e-3"]).tolist()
        new_year, later = dt.datetime(2010, 1, 1, 10), dt.datetime(2011, 1, 1, 10)
        first = [
            (None, "ETHNICITY//hispanic", None, None, None),
            (None, "RACE//white", None, None, None),
            (None, "SEX//F", None, None, None),
            (dt.datetime(1950, 2, 3), BIRTH, None, None, None),
            (dt.datetime(2010, 1, 1), "SNOMED//271737000", None, None, stay),
            (new_year, "ENCOUNTER//inpatient//183452005", None, None, stay),
            (new_year, "LOINC//4548-4", 6.5, "%", stay),
            (new_year, "LOINC//4548-4", None, None, stay),
            (new_year, "LOINC//72166-2//Never smoker", None, None, stay),
            (new_year, "LOINC//9999-9//3", None, None, stay),
            (new_year, "RXNORM//314231", None, None, stay),
            (new_year, "SYNTHEA//QALY", 12.5, "a", None),
            (dt.datetime(2010, 1, 1, 10, 30), "SNOMED//430193006", None, None, stay),
            (dt.datetime(2012, 5, 6), DEATH, None, None, None),
            (dt.datetime(2012, 5, 8, 10), "ENCOUNTER//ambulatory//308646001", None, None, certificate),
        ]
        second = [
            (None, "RACE//black", None, None, None),
            (None, "SEX//M", None, None, None),
            (dt.datetime(1980, 1, 1), BIRTH, None, None, None),
            (dt.datetime(2011, 1, 1), "SNOMED//271737000", None, None, check_up),
            (later, "CVX//140", None, None, check_up),
            (later, "ENCOUNTER//wellness//162673000", None, None, check_up),
        ]
        assert table.columns == ["subject_id", "time", "code", "numeric_value", "unit", "visit_id"]
        for subject, expected in ((one, first), (two, second)):
            assert table.filter(pl.col("subject_id") == subject).drop("subject_id").rows() == expected
        assert table.height == len(first) + len(second)

    def test_identifiers_costs_and_later_dates_never_enter(self, tmp_path: Path) -> None:
        report = convert(tmp_path)
        files = [path for path in report.dataset.root.rglob("*") if path.is_file()]
        everything = "".join(pl.read_parquet(path).write_json() for path in files if path.suffix == ".parquet")
        assert "SNOMED//271737000" in everything
        assert [secret for secret in NEVER if secret in everything] == []
        raw = b"".join(path.read_bytes() for path in files)
        assert [secret for secret in SECRETS if len(secret) > 4 and secret.encode() in raw] == []
        text = report.text() + check(report.dataset).text()
        assert [secret for secret in SECRETS if secret in text] == []

    def test_the_way_back_lies_beside_the_dataset(self, tmp_path: Path) -> None:
        report = convert(tmp_path)
        assert report.private == private_folder(tmp_path / "meds") / "subject_ids.parquet"
        way_back = dict(pl.read_parquet(report.private).iter_rows())
        assert way_back == dict(zip(["p-one", "p-two"], hash_ids(["p-one", "p-two"]).tolist(), strict=True))

    def test_codes_are_described_and_know_what_is_above_them(self, tmp_path: Path) -> None:
        report = convert(tmp_path)
        codes = pl.read_parquet(report.dataset.root / "metadata/codes.parquet")
        rows = {code: (description, parents) for code, description, parents in codes.iter_rows()}
        assert rows["SNOMED//271737000"] == ("Anemia (disorder)", None)
        assert rows["LOINC//72166-2//Never smoker"] == ("Tobacco smoking status: Never smoker", ["LOINC//72166-2"])
        assert rows["ENCOUNTER//inpatient//183452005"] == ("Hospital stay", ["ENCOUNTER//inpatient"])
        assert rows["SEX//F"] == ("Sex: F", None)
        assert codes["description"].null_count() == 0

    def test_the_commonest_description_wins(self, tmp_path: Path) -> None:
        text = """
            START,PATIENT,CODE,DESCRIPTION
            2010-01-01,p-one,1,zeta
            2010-01-02,p-one,1,zeta
            2010-01-03,p-two,1,alpha
        """
        codes = convert(tmp_path, only("conditions", text)).dataset.codes()
        assert codes.filter(pl.col("code") == "SNOMED//1")["description"].to_list() == ["zeta"]

    def test_a_stated_system_names_the_vocabulary(self, tmp_path: Path) -> None:
        text = """
            START,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION
            2010-01-01,p-one,e-1,http://snomed.info/sct,1,a
            2010-01-02,p-one,e-1,ICD-10-CM,E11.65,b
            2010-01-03,p-one,e-1,,2,c
        """
        codes = convert(tmp_path, only("conditions", text)).dataset.scan().collect()["code"].to_list()
        assert {"SNOMED//1", "ICD10CM//E11.65", "SNOMED//2"} <= set(codes)

    def test_deaths_certified_without_a_date_are_told_not_made(self, tmp_path: Path) -> None:
        report = convert(tmp_path, {"patients": TABLES["patients"].replace("2012-05-06", "")})
        assert DEATH not in report.dataset.scan().collect()["code"].to_list()
        assert "1 encounters certify a death" in report.text()
        assert f"1 of their patients have no DEATHDATE and so no {DEATH}" in report.text()

    def test_records_after_death_stay_and_are_reported(self, tmp_path: Path) -> None:
        found = {problem.what: problem.count for problem in check(convert(tmp_path).dataset).problems}
        assert found[f"events after {DEATH}"] == 1


class TestFurtherTables:
    def test_each_becomes_an_event_at_its_start_and_nothing_later_enters(self, tmp_path: Path) -> None:
        more = {
            "allergies": """
                START,STOP,PATIENT,ENCOUNTER,CODE,SYSTEM,DESCRIPTION,TYPE,CATEGORY,REACTION1,DESCRIPTION1,SEVERITY1
                2010-01-01,2010-09-09,p-one,e-1,300916003,SNOMED-CT,Latex allergy,allergy,environment,1,Rash,MILD
                2010-01-01,,p-one,e-1,7984,RxNorm,Penicillin V,allergy,medication,,,
                2010-01-01,,p-one,e-1,419474003,Unknown,Allergy to mould,allergy,environment,,,
            """,
            "careplans": """
                Id,START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION
                plan-9,2010-01-02,2010-09-09,p-one,e-1,53950000,Respiratory therapy,10509002,Acute bronchitis
            """,
            "devices": """
                START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,UDI
                2010-01-03T08:00:00Z,2010-09-09T08:00:00Z,p-one,e-1,72506001,Defibrillator,(01)67677988606464
            """,
            "supplies": """
                DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,QUANTITY
                2010-01-04,p-one,e-1,337388004,Blood glucose testing strips,50
            """,
            "imaging_studies": """
                Id,DATE,PATIENT,ENCOUNTER,UID,BODYSITE_CODE,BODYSITE_DESCRIPTION,MODALITY_CODE,MODALITY_DESCRIPTION,SOP_CODE
                study-9,2010-01-05T08:00:00Z,p-one,e-1,1.2.840.99,40983000,Arm,DX,Digital Radiography,1.2.840.10008
                study-9,2010-01-05T08:00:00Z,p-one,e-1,1.2.840.99,,,DX,,1.2.840.10008
            """,
        }
        report = convert(tmp_path, {**dict.fromkeys(set(TABLES) - {"patients"}), **more})
        dated = report.dataset.scan().filter(pl.col("visit_id").is_not_null()).collect()
        assert dated.select(pl.col("time").dt.day(), "code").rows() == [
            (1, "ALLERGY//RXNORM//7984"),
            (1, "ALLERGY//SNOMED//300916003"),
            (1, "ALLERGY//SNOMED//419474003"),
            (2, "SNOMED//53950000"),
            (3, "SNOMED//72506001"),
            (4, "SNOMED//337388004"),
            (5, "IMAGING//DX"),
            (5, "IMAGING//DX//40983000"),
        ]
        assert set(dated["visit_id"]) == set(hash_ids(["e-1"]).tolist())
        assert balanced(report)
        described = dict(report.dataset.codes().select("code", "description").iter_rows())
        assert described["IMAGING//DX//40983000"] == "Digital Radiography: Arm"
        tables = [pl.read_parquet(path) for path in report.dataset.root.rglob("*.parquet")]
        everything = "".join(table.write_json() for table in tables)
        later = ("2010-09-09", "plan-9", "study-9", "67677988606464", "1.2.840", "10509002", "MILD", "Rash")
        assert [word for word in later if word in everything] == []

    def test_encounters_of_an_export_without_classes(self, tmp_path: Path) -> None:
        text = """
            ID,DATE,PATIENT,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION
            e-1,2010-01-01,p-one,185345009,Encounter for symptom,,
        """
        codes = convert(tmp_path, only("encounters", text)).dataset.scan().collect()["code"].to_list()
        assert "ENCOUNTER//unknown//185345009" in codes


class TestEncodings:
    def test_bytes_that_are_no_utf8_are_read_as_windows_1252_and_told(self, tmp_path: Path) -> None:
        write(tmp_path / "export")
        rows = (
            b"START,PATIENT,CODE,DESCRIPTION\n\xe4\n2010-01-01,p-one,1,An\xe4mie \x96 schwer\n2010-01-02,p-one,2,ok\n"
        )
        (tmp_path / "export/conditions.csv").write_bytes(rows)
        report = convert_synthea(tmp_path / "export", tmp_path / "meds")
        described = dict(report.dataset.codes().select("code", "description").iter_rows())
        assert described["SNOMED//1"] == "Anämie – schwer"
        assert "3 bytes are no UTF-8 and were read as Windows-1252" in report.text()
        assert balanced(report)

    def test_a_header_that_is_no_utf8(self, tmp_path: Path) -> None:
        write(tmp_path / "export")
        rows = b"\xef\xbb\xbfSTART,PATIENT,CODE,\xe4\n2010-01-01,p-one,1,x\n"
        (tmp_path / "export/conditions.csv").write_bytes(rows)
        assert "SNOMED//1" in convert_synthea(tmp_path / "export", tmp_path / "meds").dataset.codes()["code"]

    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_a_header_alone_ends_as_it_likes(self, tmp_path: Path, end: str) -> None:
        write(tmp_path / "export")
        (tmp_path / "export/conditions.csv").write_bytes(b"START,PATIENT,CODE" + end.encode())
        report = convert_synthea(tmp_path / "export", tmp_path / "meds")
        assert [tally.rows for tally in report.tallies if tally.table == "conditions"] == [0]


class TestForms:
    @pytest.mark.parametrize("missing", sorted(set(TABLES) - {"patients"}))
    def test_any_table_but_patients_may_be_missing(self, tmp_path: Path, missing: str) -> None:
        report = convert(tmp_path, {missing: None})
        assert missing not in {tally.table for tally in report.tallies}
        assert balanced(report)

    def test_patients_alone(self, tmp_path: Path) -> None:
        report = convert(tmp_path, dict.fromkeys(set(TABLES) - {"patients"}))
        assert report.dataset.scan().collect().height == 8

    def test_gzipped_upper_lower_and_marked_headers_say_the_same(self, tmp_path: Path) -> None:
        plain = convert_synthea(write(tmp_path / "a"), tmp_path / "plain")
        other = tmp_path / "b"
        other.mkdir()
        for name, text in TABLES.items():
            lines = [line.strip() for line in text.strip().splitlines()]
            lines[0] = "\ufeff" + lines[0].lower().replace("start", "date")
            with gzip.open(other / f"{name.upper()}.CSV.gz", "wt", encoding="utf-8", newline="") as file:
                file.write("\r\n".join(lines))
        assert convert_synthea(other, tmp_path / "zipped").dataset.fingerprint() == plain.dataset.fingerprint()

    @pytest.mark.parametrize("block", [64, 200])
    def test_small_blocks_and_small_shards_change_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
    ) -> None:
        whole = convert_synthea(write(tmp_path / "export"), tmp_path / "whole")
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block + 250)
        parted = convert_synthea(tmp_path / "export", tmp_path / "parted", subjects_per_shard=1)
        columns = ["subject_id", "time", "code", "numeric_value"]
        rows = [report.dataset.scan().collect().sort(columns) for report in (whole, parted)]
        assert rows[0].equals(rows[1])
        assert len(parted.dataset.shards()) >= 1
        assert balanced(parted)
        assert parted.dataset.codes().equals(whole.dataset.codes())

    def test_ignored_tables_are_named(self, tmp_path: Path) -> None:
        write(tmp_path / "export")
        (tmp_path / "export/payers.csv").write_text("Id\n1\n")
        assert convert_synthea(tmp_path / "export", tmp_path / "meds").ignored == ("payers.csv",)

    def test_an_earlier_conversion_is_replaced_by_the_same_bytes(self, tmp_path: Path) -> None:
        first = convert(tmp_path).dataset.fingerprint()
        assert convert(tmp_path).dataset.fingerprint() == first
        assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "meds", "meds.private"]


class TestRejects:
    def test_each_bad_row_is_set_aside_with_its_number_and_reason(self, tmp_path: Path) -> None:
        text = """
            START,PATIENT,ENCOUNTER,CODE,DESCRIPTION
            2010-01-01,p-one,e-1,1,good
            01/02/2010,p-one,e-1,1,bad date
            2010-02-30,p-one,e-1,1,no such day
            ,p-one,e-1,1,no date
            2010-01-01,,e-1,1,no patient
            2010-01-01,p-six,e-1,1,unknown patient
            2010-01-01,p-one,e-1,,no code
            2010-01-01,p-one,e-1,1,too,many
            2010-01-01,p-one
            2010-01-01,p-two,,1,good
        """
        report = convert(tmp_path, only("conditions", text))
        assert rejects(report, "conditions") == [
            ("conditions.csv", 3, "the date cannot be read"),
            ("conditions.csv", 4, "the date cannot be read"),
            ("conditions.csv", 5, "the date is empty"),
            ("conditions.csv", 6, "PATIENT is empty"),
            ("conditions.csv", 7, "the patient is not in the patients table"),
            ("conditions.csv", 8, "CODE is empty"),
            ("conditions.csv", 9, "the row has another number of fields than the header"),
            ("conditions.csv", 10, "the row has another number of fields than the header"),
        ]
        tally = report.tallies[-1]
        assert (tally.rows, tally.events, tally.rejected) == (10, 2, 8)
        assert balanced(report)
        assert check(report.dataset).facts["rows_set_aside"] == 8
        assert "set aside 2: the date cannot be read" in report.text()

    def test_row_numbers_hold_across_blocks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 400)
        bad = {7, 8, 23, 60, 99, 101}
        rows = ["2010-01-01,p-one" if row in bad else f"2010-01-01,p-one,{row}" for row in range(2, 102)]
        rows[30] = "never,p-one,30"
        report = convert(tmp_path, only("conditions", "START,PATIENT,CODE\n" + "\n".join(rows)))
        assert [row for _, row, _ in rejects(report, "conditions")] == sorted({*bad, 32})
        codes = {f"SNOMED//{row}" for row in range(2, 102) if row not in bad and row != 32}
        assert {code for code in report.dataset.scan().collect()["code"] if code.startswith("SNOMED")} == codes

    def test_a_quoted_line_break_is_one_row(self, tmp_path: Path) -> None:
        text = 'START,PATIENT,CODE,DESCRIPTION\n2010-01-01,p-one,1,"two\nlines, one row"\nx,p-one,1,\n2010-01-01,p-one'
        report = convert(tmp_path, only("conditions", text))
        assert [row for _, row, _ in rejects(report, "conditions")] == [3, 4]
        assert "two\nlines, one row" in report.dataset.codes()["description"].to_list()

    def test_observations_that_should_be_numbers(self, tmp_path: Path) -> None:
        text = """
            DATE,PATIENT,CODE,VALUE,UNITS,TYPE
            2010-01-01,p-one,1-1,high,mg,numeric
            2010-01-01,p-one,1-1,inf,mg,numeric
            2010-01-01,p-one,1-1,1e300,mg,
            2010-01-01,p-one,1-1,7,mg,
            2010-01-01,p-one,1-1,positive,,
        """
        report = convert(tmp_path, only("observations", text))
        reason = "the value is not a finite number"
        assert [(row, why) for _, row, why in rejects(report, "observations")] == [
            (2, reason),
            (3, reason),
            (4, reason),
        ]
        found = report.dataset.scan().filter(pl.col("code").str.starts_with("LOINC")).collect()
        assert found.select("code", "numeric_value", "unit").rows() == [
            ("LOINC//1-1", 7.0, "mg"),
            ("LOINC//1-1//positive", None, None),
        ]

    def test_patients_that_cannot_be_read_take_their_rows_along(self, tmp_path: Path) -> None:
        people = """
            Id,BIRTHDATE,DEATHDATE,GENDER
            good,1950-01-01,,F
            bad-birth,1950-15-01,,F
            bad-death,1950-01-01,soon,F
            ,1950-01-01,,F
            twice,1950-01-01,,F
            twice,1950-01-01,,F
            torn,1950-01-01,,F
            torn,1951-01-01,,F
            unborn,,,M
        """
        names = ("good", "bad-birth", "bad-death", "twice", "torn", "unborn")
        visits = "START,PATIENT,ENCOUNTERCLASS\n" + "\n".join(f"2010-01-01,{name},wellness" for name in names)
        report = convert(tmp_path, {**only("encounters", visits), "patients": people})
        assert rejects(report, "patients") == [
            ("patients.csv", 3, "BIRTHDATE cannot be read"),
            ("patients.csv", 4, "DEATHDATE cannot be read"),
            ("patients.csv", 5, "ID is empty"),
            ("patients.csv", 7, "the patient stands in an earlier row, too"),
            ("patients.csv", 8, "the patient's rows contradict each other"),
            ("patients.csv", 9, "the patient's rows contradict each other"),
        ]
        lost = "the patient's own row was set aside"
        assert [(row, why) for _, row, why in rejects(report, "encounters")] == [(3, lost), (4, lost), (6, lost)]
        assert report.subjects == 3
        assert balanced(report)
        assert pl.read_parquet(report.private)["source_id"].sort().to_list() == ["good", "twice", "unborn"]
        found = {problem.what: problem.count for problem in check(report.dataset).problems}
        assert found[f"no {BIRTH}"] == 1


class TestMistakes:
    def fails(self, tmp_path: Path, changes: dict[str, str | None]) -> EhrError:
        with pytest.raises(EhrError) as caught:
            convert(tmp_path, changes)
        assert [path.name for path in tmp_path.iterdir()] == ["export"]
        return caught.value

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match="does not exist") as caught:
            convert_synthea(tmp_path / "nowhere", tmp_path / "meds")
        assert caught.value.code == Exit.DATA

    def test_a_file_instead_of_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "export")
        with pytest.raises(EhrError, match="expected the export's folder, found a file") as caught:
            convert_synthea(tmp_path / "export/patients.csv", tmp_path / "meds")
        assert str(tmp_path / "export") in caught.value.fix

    def test_no_patients(self, tmp_path: Path) -> None:
        error = self.fails(tmp_path, {"patients": None})
        assert "patients.csv" in error.what
        assert error.code == Exit.DATA

    def test_the_folder_above(self, tmp_path: Path) -> None:
        write(tmp_path / "csv")
        with pytest.raises(EhrError, match=r"did you mean .*csv\?"):
            convert_synthea(tmp_path, tmp_path / "meds")

    def test_missing_column_names_the_nearest(self, tmp_path: Path) -> None:
        error = self.fails(tmp_path, {"conditions": TABLES["conditions"].replace("PATIENT", "Patients")})
        assert error.what == "column PATIENT is missing"
        assert error.fix == "did you mean 'Patients'? Rename it"
        assert error.where.endswith("conditions.csv")
        assert error.code == Exit.DATA

    def test_neither_start_nor_date(self, tmp_path: Path) -> None:
        error = self.fails(tmp_path, {"conditions": TABLES["conditions"].replace("START", "ONSET")})
        assert error.what == "column START or DATE is missing"

    def test_all_dates_of_the_patients_unreadable(self, tmp_path: Path) -> None:
        people = "Id,BIRTHDATE,DEATHDATE,GENDER\na,03.02.1950,,F\n"
        assert self.fails(tmp_path, {"patients": people}).what == "no patient's row can be read"

    def test_header_without_rows(self, tmp_path: Path) -> None:
        assert "no patient" in self.fails(tmp_path, {"patients": "Id,BIRTHDATE,DEATHDATE,GENDER\n"}).what

    def test_an_empty_file(self, tmp_path: Path) -> None:
        write(tmp_path / "export")
        (tmp_path / "export/conditions.csv").write_bytes(b"")
        with pytest.raises(EhrError, match="the file is empty"):
            convert_synthea(tmp_path / "export", tmp_path / "meds")

    def test_a_table_with_a_header_only(self, tmp_path: Path) -> None:
        report = convert(tmp_path, {"conditions": "START,PATIENT,CODE\n"})
        assert [tally.rows for tally in report.tallies if tally.table == "conditions"] == [0]

    def test_a_quote_opened_in_the_last_row_sets_that_row_aside(self, tmp_path: Path) -> None:
        report = convert(tmp_path, only("conditions", 'START,PATIENT,CODE\n2010-01-01,p-one,1\n2010-01-01,"p-one,1'))
        assert [row for _, row, _ in rejects(report, "conditions")] == [3]

    def test_damaged_files(self, tmp_path: Path) -> None:
        content = b'START,PATIENT,CODE\n2010-01-01,p-one,1\n"2010-01-01,p-one,2\n2010-01-01,p-one,3\n'
        write(tmp_path / "export")
        (tmp_path / "export/conditions.csv").write_bytes(content)
        with pytest.raises(EhrError) as caught:
            convert_synthea(tmp_path / "export", tmp_path / "meds")
        assert caught.value.code == Exit.DATA
        assert "conditions.csv" in caught.value.where
        assert [path.name for path in tmp_path.iterdir()] == ["export"]

    def test_a_gzip_cut_short(self, tmp_path: Path) -> None:
        write(tmp_path / "export", {"conditions": None})
        body = "START,PATIENT,CODE\n" + "".join(f"2010-01-01,p-one,{code}\n" for code in range(5_000))
        (tmp_path / "export/conditions.csv.gz").write_bytes(gzip.compress(body.encode())[:-2_000])
        with pytest.raises(EhrError, match="cannot be read") as caught:
            convert_synthea(tmp_path / "export", tmp_path / "meds")
        assert caught.value.code == Exit.DATA

    def test_two_files_of_one_table(self, tmp_path: Path) -> None:
        write(tmp_path / "export")
        (tmp_path / "export/conditions.csv.gz").write_bytes(gzip.compress(b"START,PATIENT,CODE\n"))
        with pytest.raises(EhrError, match=r"conditions\.csv, conditions\.csv\.gz, expected one"):
            convert_synthea(tmp_path / "export", tmp_path / "meds")

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        error = self.fails(tmp_path, {"conditions": "START,PATIENT,CODE,Code\n2010-01-01,p-one,1,2\n"})
        assert error.what == "several columns are called CODE"

    def test_unwritable_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "export")
        (tmp_path / "file").write_text("")
        with pytest.raises(EhrError, match="cannot be written") as caught:
            convert_synthea(tmp_path / "export", tmp_path / "file" / "meds")
        assert caught.value.code == Exit.ENVIRONMENT

    def test_a_folder_that_holds_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match="holds something else") as caught:
            convert_synthea(write(tmp_path / "export"), tmp_path / "export")
        assert caught.value.code == Exit.ENVIRONMENT
        assert (tmp_path / "export/patients.csv").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> ConversionReport:
    return convert_synthea(EXPORT, tmp_path_factory.mktemp("real") / "meds", subjects_per_shard=300)


@needs_export
class TestRealExport:
    def test_no_row_is_lost(self, real: ConversionReport) -> None:
        rows = {tally.name: (tally.rows, tally.rejected) for tally in real.tallies}
        assert rows == {
            **{f"patients: {part}": (1_171, 0) for part in ("birth", "death", "sex", "race", "ethnicity")},
            "encounters": (53_346, 0),
            "conditions": (8_376, 0),
            "medications": (42_989, 0),
            "immunizations": (15_478, 0),
            "allergies": (597, 0),
            "careplans": (3_483, 0),
            "devices": (78, 0),
            "supplies": (0, 0),
            "imaging_studies": (855, 0),
        }
        deaths = next(tally for tally in real.tallies if tally.name == "patients: death")
        assert (deaths.rows, deaths.events, deaths.left_out) == (1_171, 171, {"DEATHDATE is empty": 1_000})
        assert balanced(real)

    def test_it_is_meds(self, real: ConversionReport) -> None:
        report = check(real.dataset)
        assert report.ok
        assert {problem.what for problem in report.problems if problem.severity != "note"} == {f"events after {DEATH}"}
        assert report.facts["subjects"] == 1_171
        assert report.facts["subjects_with_birth"] == 1_171
        assert report.facts["subjects_with_death"] == 171
        assert len(real.dataset.shards()) == 4
        for shard in real.dataset.shards():
            meds.DataSchema.validate(pq.read_table(shard))

    def test_against_a_plain_reading_of_the_files(self, real: ConversionReport) -> None:
        expected: Counter[tuple[str, str, str]] = Counter()
        for table, prefix, time in (
            ("conditions", "SNOMED", "START"),
            ("medications", "RXNORM", "START"),
            ("immunizations", "CVX", "DATE"),
            ("allergies", "ALLERGY//SNOMED", "START"),
            ("careplans", "SNOMED", "START"),
            ("devices", "SNOMED", "START"),
        ):
            with (EXPORT / f"{table}.csv").open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    expected[
                        row["PATIENT"],
                        row[time].removesuffix("Z").removesuffix("T00:00:00"),
                        f"{prefix}//{row['CODE']}",
                    ] += 1
        way_back = pl.read_parquet(real.private)
        found = real.dataset.scan().filter(pl.col("code").str.contains("^(ALLERGY//|)(SNOMED|RXNORM|CVX)//")).collect()
        found = found.join(way_back, on="subject_id").with_columns(
            pl.when(pl.col("time").dt.truncate("1d") == pl.col("time"))
            .then(pl.col("time").dt.strftime("%Y-%m-%d"))
            .otherwise(pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%S"))
            .alias("written")
        )
        assert Counter(found.select("source_id", "written", "code").iter_rows()) == expected

    def test_no_identifier_of_a_patient_is_in_the_stream(self, real: ConversionReport) -> None:
        people = pl.read_csv(EXPORT / "patients.csv", infer_schema=False)
        private = ("Id", "SSN", "DRIVERS", "PASSPORT", "FIRST", "LAST", "ADDRESS", "LAT", "LON", "HEALTHCARE_EXPENSES")
        secrets = {value for column in private for value in people[column].drop_nulls()}
        table = real.dataset.scan().collect()
        words = {*table["code"].unique(), *table["unit"].drop_nulls().unique()}
        parts = {part for word in words for part in word.split("//")}
        assert parts & secrets == set()
        assert table.schema["visit_id"] == pl.Int64
        assert set(table.columns) == {"subject_id", "time", "code", "numeric_value", "unit", "visit_id"}

    def test_visits_are_the_exports_encounters(self, real: ConversionReport) -> None:
        table = real.dataset.scan().collect()
        visits = table.filter(pl.col("code").str.starts_with("ENCOUNTER"))["visit_id"]
        assert visits.n_unique() == 53_346
        assert table["visit_id"].drop_nulls().is_in(visits.implode()).all()
