"""The documentation is true: every block runs or parses, every link leads somewhere, every page can be reached."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import typer.main
import yaml
from pydantic import ValidationError

from ehrsequencing import config
from ehrsequencing.cli import main
from ehrsequencing.cli.verbs import app
from ehrsequencing.config import StudyConfig, TaskConfig
from ehrsequencing.sources.mapping import MappingConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "adr" not in page.parts]
RUN = ["tutorial.md", "how-to/explain.md", "how-to/own-predictions.md", "how-to/external-validation.md"]
"""Pages whose commands and Python are run, in this order, in one folder."""
SMALLER = {
    "--patients 2000": "--patients 240",
    "--epochs 5": "--epochs 1",
    "--strategy frozen": "--strategy frozen-ridge",
}
"""Numbers that the pages give and the test cannot afford."""
UsageError = typer.BadParameter.__base__
SMALL_TASK = {"name": "small", "index": {"age": 50}, "outcome": "A"}
SMALL_STUDY = {"name": "small", "data": "out/meds", "task": "task.yaml"}
"""What a block with some keys only is completed by."""
SHELL, SETTINGS = ("sh", "bash", "shell", "console"), ("yaml", "yml")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of every command, continued lines joined, comments and leading variables left out."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words:
                yield words


def blocks(page: Path) -> list[Block]:
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)).removeprefix("docs/")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(name, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in found]


ALL = [block for page in PAGES for block in blocks(page)]


def of(languages: tuple[str, ...]) -> list[Block]:
    return [block for block in ALL if block.language in languages]


def parse_command(words: list[str]) -> None:
    """Raise UsageError unless the command line takes these words, without running anything."""
    command = typer.main.get_command(app)
    context = command.make_context("ehrseq", words, resilient_parsing=False)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("block", of(SHELL), ids=str)
def test_every_command_is_one_that_the_program_takes(block):
    for words in block.commands():
        assert words[0] in ("ehrseq", "make", "pip"), words
        if words[0] == "ehrseq":
            parse_command(words[1:])
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words


def test_a_command_that_does_not_exist_would_be_noticed():
    for wrong in (["chekc", "out"], ["check", "out", "--nonsense"], ["advise", "--patients", "many", "--events", "1"]):
        with pytest.raises(UsageError):
            parse_command(wrong)


@pytest.mark.parametrize("block", of(SETTINGS), ids=str)
def test_every_settings_block_is_valid(block):
    data = yaml.safe_load(block.text)
    whole = any(_fits(model, data) for model in (TaskConfig, StudyConfig, MappingConfig))
    some_keys = _fits(TaskConfig, SMALL_TASK | data) or _fits(StudyConfig, SMALL_STUDY | data)
    assert whole or some_keys, block.text


def test_settings_that_do_not_exist_would_be_noticed():
    for wrong in ({"horizon_day": 3}, {"index": {"age": "old"}}, {"folds": 1}):
        assert not _fits(TaskConfig, SMALL_TASK | wrong)
        assert not _fits(StudyConfig, SMALL_STUDY | wrong)


def _fits(model: type[config.Strict], data: dict) -> bool:
    try:
        model.model_validate(data)
    except ValidationError:
        return False
    return True


@pytest.mark.slow
def test_the_tutorial_and_the_how_tos_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    names: dict = {}
    for page in RUN:
        for block in blocks(ROOT / "docs" / page):
            if block.language in SETTINGS and "data" in yaml.safe_load(block.text):
                Path("study.yaml").write_text(block.text)
            if block.language == "python":
                exec(compile(block.text, str(block), "exec"), names)
            if block.language in SHELL:
                run_block(block, monkeypatch)
    capfd.readouterr()
    assert Path("out/predictions.parquet").is_file()


def run_block(block: Block, monkeypatch) -> None:
    text = block.text
    for given, smaller in SMALLER.items():
        text = text.replace(given, smaller)
    for words in Block(block.page, block.line, block.language, text).commands():
        if words[:2] == ["ehrseq", "run"] or {"--size", "--tuning-from"} & set(words):
            continue  # whole studies, large models and calendar splits have tests of their own
        fewer = ["--bootstrap", "20"] if words[1] in ("evaluate", "validate") else []
        monkeypatch.setattr(sys, "argv", words + fewer)
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, f"{block}: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    generated = {(ROOT / "docs" / path).resolve() for path in site().pages()}
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            place = (page.parent / target).resolve()
            assert place.exists() or (place in generated and page.name != "README.md"), target


def site():
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_menu_and_the_pages_are_the_same():
    def files(entry) -> Iterator[str]:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from [value] if isinstance(value, str) else files(value)

    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = list(files(menu))
    assert len(set(listed)) == len(listed)
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name != "README.md"}
    assert set(listed) == pages | set(site().pages())


def test_the_reference_names_every_verb_option_and_key():
    pages = site().pages()
    names = [name for name, _ in site().verbs()]
    assert {"simulate", "convert synthea", "run"} <= set(names)
    for name, command in site().verbs():
        section = pages["reference/cli.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        for option in (opt for p in command.params if p.param_type_name == "option" for opt in p.opts):
            assert f"`{option}`" in section or option == "--help"
    assert not re.findall(r"^\| `.*\|  \|$", pages["reference/configuration.md"], re.MULTILINE), "a key without meaning"
    for key in ("index.after_history_days", "input.from", "pretrain.optimizer.learning_rate", "budget.patience"):
        assert f"| `{key}` |" in pages["reference/configuration.md"]
