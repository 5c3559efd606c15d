"""Long tables become MEDS by a mapping file."""

from __future__ import annotations

import datetime as dt
import gzip
import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.cli import main
from ehrsequencing.config import DataConfig, parse
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH, check, hash_ids
from ehrsequencing.sources import blocks
from ehrsequencing.sources.conversion import ConversionReport
from ehrsequencing.sources.mapped import convert_csv
from ehrsequencing.sources.mapping import MappingConfig
from ehrsequencing.study.data import open_data

PAGE = Path(__file__).parent.parent / "docs/how-to/convert-csv.md"
ONE, TWO = hash_ids(["A-1", "B-2"]).tolist()
DAY = dt.datetime(2010, 1, 31)


def write(folder: Path, **files: str | bytes) -> Path:
    """Files of an export; ``__`` in a name stands for its dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = (
            content if isinstance(content, bytes) else "\n".join(map(str.strip, content.strip().splitlines())).encode()
        )
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder


def convert(folder: Path, *files: dict[str, object]) -> ConversionReport:
    return convert_csv(folder, folder.parent / "meds", parse(MappingConfig, {"files": list(files)}, "mapping"))


def found(report: ConversionReport, *columns: str) -> list[tuple[object, ...]]:
    table = report.dataset.scan().collect().sort("subject_id", "time", "code", nulls_last=False)
    return table.select(columns or ("time", "code", "numeric_value", "unit")).rows()


def rejects(report: ConversionReport, table: str) -> list[tuple[str, int, str]]:
    return pl.read_parquet(report.dataset.root / f"rejects/{table}.parquet").rows()


def balanced(report: ConversionReport) -> bool:
    rows = all(tally.rows == tally.events + tally.excluded + tally.rejected for tally in report.tallies)
    return rows and report.dataset.scan().collect().height == sum(tally.events for tally in report.tallies)


class TestEvents:
    def test_codes_of_a_column_of_several_and_fixed(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "src", labs__csv="id,when,test,kit,kg\nA-1,2010-01-31,HB,x,80\nA-1,2010-01-31,HB,,\n")
        events = [{"code": ["test", "kit"], "prefix": "LAB//"}, {"fixed": "WEIGHT", "value": "kg"}]
        report = convert(folder, {"file": "labs.csv", "subject": "id", "time": "when", "events": events})
        assert found(report) == [
            (DAY, "LAB//HB", None, None),
            (DAY, "LAB//HB//x", None, None),
            (DAY, "WEIGHT", 80.0, None),
        ]
        assert {tally.name: tally.left_out for tally in report.tallies} == {
            "labs: test + kit": Counter(),
            "labs: WEIGHT": Counter({"the column is empty": 1}),
        }
        assert balanced(report)

    def test_a_claims_extract_with_a_column_for_each_diagnosis(self, tmp_path: Path) -> None:
        text = "member,from,dx1,dx2,DX3,poa1\nA-1,01/31/2010,E11.9,I10,,Y\nB-2,01/31/2010,I10,,,N\n"
        entry = {"file": "claims.csv", "subject": "member", "each": "dx*", "prefix": "ICD10CM//"}
        report = convert(
            write(tmp_path / "src", claims__csv=text), {**entry, "time": {"column": "from", "formats": "%m/%d/%Y"}}
        )
        assert Counter(row[1] for row in found(report)) == {"ICD10CM//E11.9": 1, "ICD10CM//I10": 2}
        counts = {tally.name: (tally.rows, tally.events, tally.excluded) for tally in report.tallies}
        assert counts == {"claims: dx1": (2, 2, 0), "claims: dx2": (2, 1, 1), "claims: DX3": (2, 0, 2)}
        assert balanced(report)

    def test_persons_once_although_they_stand_in_every_row(self, tmp_path: Path) -> None:
        text = """
            id,born,died,sex,code
            A-1,1950-02-03,,F,x
            A-1,1950-02-03,2012-05-06,F,y
            B-2,,,M,x
            A-1,1951-01-01,,F,z
        """
        entry = {
            "file": "people.csv",
            "subject": "id",
            "birth": "born",
            "death": "died",
            "code": "sex",
            "prefix": "SEX//",
        }
        report = convert(write(tmp_path / "src", people__csv=text), entry)
        assert set(found(report, "subject_id", "time", "code")) == {
            (ONE, None, "SEX//F"),
            (ONE, dt.datetime(1950, 2, 3), BIRTH),
            (ONE, dt.datetime(2012, 5, 6), DEATH),
            (TWO, None, "SEX//M"),
        }
        assert rejects(report, "people") == [("people.csv", 5, "an earlier row states another date")]
        left = {tally.name: dict(tally.left_out) for tally in report.tallies}
        assert left == {
            "people: birth": {"an earlier row states the same": 1, "the column is empty": 1},
            "people: death": {"the column is empty": 3},
            "people: sex": {"an earlier row states the same": 2},
        }
        assert balanced(report)

    def test_values_as_numbers_as_text_and_as_either(self, tmp_path: Path) -> None:
        text = "id;when;test;result;unit\n" + "\n".join(
            f"A-1;2010-01-31;{test};{result};mg" for test, result in enumerate(("1.234,5", "positive", "", "inf"))
        )
        folder = write(tmp_path / "src", labs__csv=text)
        entry = {"file": "labs.csv", "subject": "id", "time": "when", "code": "test", "value": "result", "unit": "unit"}
        number = convert(folder, {**entry, "decimal": ","})
        assert found(number) == [(DAY, "0", 1234.5, "mg"), (DAY, "2", None, None)]
        reason = "the value is not a finite number"
        assert rejects(number, "labs") == [("labs.csv", 3, reason), ("labs.csv", 5, reason)]
        assert balanced(number)
        mixed = convert(folder, {**entry, "decimal": ",", "values": "mixed"})
        assert found(mixed) == [(DAY, "0", 1234.5, "mg"), (DAY, "1//positive", None, None), (DAY, "2", None, None)]
        worded = convert(folder, {**entry, "values": "text"})
        assert [row[1] for row in found(worded)] == ["0//1.234,5", "1//positive", "2", "3//inf"]
        assert balanced(worded)

    def test_formats_are_tried_in_order_and_zones_become_utc(self, tmp_path: Path) -> None:
        times = (
            "31.01.2010",
            "31.01.2010 08:30",
            "2010-01-31T10:00:00+02:00",
            "31/Jan/2010:10:00 +0200",
            "13.13.2010",
            "",
        )
        text = "id\tday\tx\n" + "\n".join(f"A-1\t{time}\tc" for time in times)
        formats = ["%d.%m.%Y", "%d.%m.%Y %H:%M", "iso", "%d/%b/%Y:%H:%M %z"]
        entry = {"file": "t.tsv", "subject": "id", "time": {"column": "day", "formats": formats}, "code": "x"}
        report = convert(write(tmp_path / "src", t__tsv=text), entry)
        eight = DAY.replace(hour=8)
        assert [row[0] for row in found(report)] == [DAY, eight, eight, eight.replace(minute=30)]
        assert rejects(report, "t") == [("t.tsv", 6, "the date cannot be read"), ("t.tsv", 7, "the date is empty")]

    def test_date_and_clock_in_two_columns(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "src", t__csv="id,day,clock,x\nA-1,2010-01-31,08:15,c\nA-1,2010-01-31,,c\n")
        report = convert(folder, {"file": "t.csv", "subject": "id", "time": ["day", "clock"], "code": "x"})
        assert [row[0] for row in found(report)] == [DAY, DAY.replace(hour=8, minute=15)]

    def test_visits_extra_columns_and_descriptions(self, tmp_path: Path) -> None:
        folder = write(
            tmp_path / "src",
            a__csv="id,when,code,label,stay,ward\nA-1,2010-01-31,x,An x,stay-9,W1\n",
            b__csv="id,when,code\nA-1,2010-01-31,y\n",
        )
        plain = {"subject": "id", "time": "when", "code": "code"}
        more = {"description": "label", "visit": "stay", "extra": {"ward": "ward"}}
        report = convert(folder, {"file": "a.csv", **plain, **more}, {"file": "b.csv", **plain})
        stay = hash_ids(["stay-9"]).item()
        assert found(report, "code", "visit_id", "ward") == [("x", stay, "W1"), ("y", None, None)]
        assert dict(report.dataset.codes().select("code", "description").iter_rows()) == {"x": "An x", "y": None}

    def test_a_source_that_calls_its_columns_as_ours(self, tmp_path: Path) -> None:
        text = "subject_id,time,code,numeric_value,unit,row,file,visit_id,reason\nA-1,2010-01-31,x,2,mg,r,f,v,why\n"
        entry = {"file": "t.csv", "subject": "subject_id", "time": "time", "code": ["code", "row", "file", "reason"]}
        report = convert(
            write(tmp_path / "src", t__csv=text),
            {**entry, "value": "numeric_value", "unit": "unit", "visit": "visit_id"},
        )
        assert found(report) == [(DAY, "x//r//f//why", 2.0, "mg")]

    def test_identifiers_stay_out_and_the_way_back_lies_beside(self, tmp_path: Path) -> None:
        folder = write(
            tmp_path / "src", t__csv="id,when,x,name\nA-1,2010-01-31,c,Jane\n77,2010-01-31,c,Joe\n77.0,,c,Joe\n"
        )
        report = convert(folder, {"file": "t.csv", "subject": "id", "time": "when", "code": "x"})
        text = "".join(pl.read_parquet(path).write_json() for path in report.dataset.root.rglob("*.parquet"))
        assert not any(secret in text + report.text() for secret in ("A-1", "Jane", "Joe"))
        assert report.private is not None
        assert set(pl.read_parquet(report.private)["source_id"]) == {"A-1", "77"}

    def test_two_identifiers_of_one_hash_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import numpy as np

        from ehrsequencing.sources import mapped

        monkeypatch.setattr(mapped, "hash_ids", lambda ids, where: np.full(len(ids), 7, dtype=np.int64))
        folder = write(tmp_path / "src", a__csv="id,x\nA-1,c\n", b__csv="id,x\nB-2,c\n")
        with pytest.raises(EhrError, match="two identifiers have the same hash"):
            convert(folder, *({"file": f"{name}.csv", "subject": "id", "code": "x"} for name in "ab"))


class TestForms:
    def test_the_same_from_every_form(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [("A-1", dt.date(2010, 1, 1 + number), f"c{number}", number / 2) for number in range(20)]
        frame = pl.DataFrame(rows, schema=["id", "day", "x", "v"], orient="row")
        folder = tmp_path / "src"
        (folder / "parts").mkdir(parents=True)
        frame.write_csv(folder / "t.csv")
        (folder / "t.csv.gz").write_bytes(gzip.compress(frame.write_csv().encode()))
        frame.write_csv(folder / "bar.txt", separator="|")
        frame.write_parquet(folder / "t.parquet")
        (folder / "wide.csv").write_bytes(frame.write_csv().encode("utf-16"))
        for number in (0, 1):
            frame[number::2].write_csv(folder / f"parts/p{number}.csv")
        entry = {"subject": "ID", "time": "day", "code": "x", "value": "v"}
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 200)
        tables = [
            found(convert(folder, {"file": name, **entry, **({"encoding": "utf-16"} if name == "wide.csv" else {})}))
            for name in ("t.csv", "t.csv.gz", "bar.txt", "t.parquet", "wide.csv", "parts/*.csv")
        ]
        assert len(tables[0]) == 20
        assert all(table == tables[0] for table in tables)

    def test_bytes_of_another_encoding(self, tmp_path: Path) -> None:
        raw = "id;x\nA-1;Anämie\n".encode("cp1252")
        entry = {"file": "t.csv", "subject": "id", "code": "x"}
        told = convert(write(tmp_path / "src", t__csv=raw), {**entry, "encoding": "windows-1252"})
        guessed = convert(tmp_path / "src", entry)
        assert found(told, "code") == found(guessed, "code") == [("Anämie",)]
        assert "1 bytes are no UTF-8" in guessed.text()

    def test_a_header_alone(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "src", a__csv="id,x", b__csv="id,x\nA-1,c")
        report = convert(folder, *({"file": f"{name}.csv", "subject": "id", "code": "x"} for name in "ab"))
        assert {tally.name: tally.rows for tally in report.tallies} == {"a: x": 0, "b: x": 1}


class TestRejects:
    def test_each_bad_row_is_set_aside_once(self, tmp_path: Path) -> None:
        rows = ("A-1,2010-01-31,c,1", ",2010-01-31,c,1", "A-1,2010-01-31,,1", "A-1,2010-01-31", "A-1,2010-01-31,c,much")
        text = "\n".join(("id,day,x,v", *rows))
        events = [{"code": "x"}, {"fixed": "V", "value": "v"}]
        report = convert(
            write(tmp_path / "src", t__csv=text), {"file": "t.csv", "subject": "id", "time": "day", "events": events}
        )
        assert rejects(report, "t") == [
            ("t.csv", 3, "the subject is empty"),
            ("t.csv", 4, "the code is empty"),
            ("t.csv", 5, "the row has another number of fields than the header"),
            ("t.csv", 6, "the value is not a finite number"),
        ]
        assert {tally.name: (tally.rows, tally.events, tally.rejected) for tally in report.tallies} == {
            "t: x": (5, 2, 3),
            "t: V": (3, 2, 1),
        }
        assert balanced(report)
        assert check(report.dataset).ok


class TestMistakes:
    def mapping(self, **changes: object) -> EhrError:
        data = {"files": [{"file": "t.csv", "subject": "id", "code": "x", **changes}]}
        with pytest.raises(EhrError) as caught:
            parse(MappingConfig, data, "mapping.yaml")
        assert caught.value.code == Exit.CONFIG
        return caught.value

    def test_an_unknown_key_names_the_nearest(self) -> None:
        assert self.mapping(prefx="A//").fix == "did you mean 'prefix'?"
        assert self.mapping(events=[{"code": "x", "tme": "y"}]).fix == "did you mean 'time'?"

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"fixed": "A"}, "exactly one of code, each, fixed"),
            ({"events": [{"prefix": "A"}]}, "exactly one of code, each, fixed"),
            ({"code": None}, "say what its rows are"),
            ({"time": {"column": "t", "formats": "DD.MM"}}, "names no year"),
            ({"encoding": "utf-9"}, "is no encoding"),
            ({"extra": {"unit": "u"}}, "meaning of its own"),
        ],
    )
    def test_settings_that_cannot_be_meant(self, changes: dict[str, object], told: str) -> None:
        assert told in self.mapping(**changes).what

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match=r"no file is called diagnosis\.csv") as caught:
            convert(
                write(tmp_path / "src", diagnoses__csv="id,x\n"),
                {"file": "diagnosis.csv", "subject": "id", "code": "x"},
            )
        assert caught.value.fix == "did you mean 'diagnoses.csv'?"
        assert [path.name for path in tmp_path.iterdir()] == ["src"]

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match="column patient is missing") as caught:
            convert(
                write(tmp_path / "src", t__csv="patients,x\n1,2\n"),
                {"file": "t.csv", "subject": "patient", "code": "x"},
            )
        assert caught.value.fix == "did you mean 'patients'? Rename it"

    def test_a_file_instead_of_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "src", t__csv="id,x\n1,2\n")
        with pytest.raises(EhrError, match="found a file"):
            convert_csv(tmp_path / "src/t.csv", tmp_path / "meds", tmp_path / "mapping.yaml")

    def test_nothing_but_rejects(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match="no event to write"):
            convert(write(tmp_path / "src", t__csv="id,x\n,2\n"), {"file": "t.csv", "subject": "id", "code": "x"})


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    for text in blocks_of(PAGE, "csv"):
        name, _, content = text.partition("\n")
        (folder / name.removeprefix("# ")).write_text(content, encoding="utf-8")
    (mapping,) = blocks_of(PAGE, "yaml")[:1]
    (tmp_path / "registry.yaml").write_text(mapping, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (command,) = blocks_of(PAGE, "sh")[:1]
    monkeypatch.setattr("sys.argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out, _ = capsys.readouterr()
    (shown,) = blocks_of(PAGE, "text")[:1]
    assert out.strip() == shown.strip()
    dataset, _ = open_data(
        DataConfig.model_validate({"csv": {"src": "registry", "mapping": "registry.yaml"}}), tmp_path / "again"
    )
    assert len(dataset.subject_ids()) == 3
