"""Writes the reference pages from the code while the site is built: verbs, settings, Python names, glossary."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.structure.files import File
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import ehrsequencing
from ehrsequencing import config as settings
from ehrsequencing.cli.verbs import app
from ehrsequencing.sources.mapping import MappingConfig

ROOT = Path(__file__).parent.parent
SETTINGS = {"TASK.yaml": settings.TaskConfig, "STUDY.yaml": settings.StudyConfig, "MAPPING.yaml": MappingConfig}


def on_files(files: Any, config: Any) -> Any:
    """The hook that the site's builder calls: adds the generated pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Every generated page, by its path in the site."""
    return {
        "reference/cli.md": cli_page(),
        "reference/configuration.md": configuration_page(),
        "reference/api.md": api_page(),
        "reference/glossary.md": (ROOT / "GLOSSARY.md").read_text(encoding="utf-8"),
        "changes.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }


def api_page() -> str:
    """The names of the package, each from its docstring."""
    homes = ehrsequencing._HOME
    blocks = [f"::: ehrsequencing.{homes[name]}.{name}" for name in ehrsequencing.__all__]
    head = "# Python\n\nThe public names: `import ehrsequencing as ehr`, then `ehr.<name>`. They load when first used."
    return "\n\n".join([head, *blocks]) + "\n"


def cli_page() -> str:
    """Every verb with its arguments, options and defaults."""
    head = (
        "# Command line\n\n`ehrseq` has one verb a step; each works alone on the files of the step before. "
        "`ehrseq --version` tells the version; `ehrseq --install-completion` teaches the shell to complete verbs, "
        "options and paths.\n\nVerbs that a script may read take `--json`: one document on standard output, with exact "
        "counts, and messages on standard error. Mistakes end with a message and an [exit code](exit-codes.md)."
    )
    return "\n\n".join([head, *(_verb(name, command) for name, command in verbs())]) + "\n"


def verbs() -> Iterator[tuple[str, Any]]:
    """Every verb's full name and its command, in the order of ``ehrseq --help``."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {sub}", each) for sub, each in inner.items()) if inner else [(name, command)]


def _verb(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(["ehrseq", name, *(p.name.upper() for p in arguments), "[OPTIONS]"])
    rows = [(f"`{p.name.upper()}`", p.help or "", "required") for p in arguments]
    rows += [(", ".join(f"`{o}`" for o in (*p.opts, *p.secondary_opts)), p.help or "", _default(p)) for p in options]
    example = (command.epilog or "").removeprefix("Example: ")
    return "\n\n".join(
        [f"## {name}", command.help or "", f"```sh\n{example}\n```" if example else f"`{usage}`", f"`{usage}`", _table(
            ("argument or option", "meaning", "default"), rows
        )]
    )  # fmt: skip


def _default(option: Any) -> str:
    if option.required:
        return "required"
    silent = option.default in (None, ()) or option.default is False or callable(option.default)
    return "" if silent else f"`{option.default}`"


def configuration_page() -> str:
    """Every key of every settings file: type, default, meaning."""
    head = (
        "# Settings\n\nA question is a TASK.yaml ([task language](task-language.md)), a whole run a STUDY.yaml, "
        "the columns of tables a MAPPING.yaml ([how to](../how-to/convert-csv.md)). "
        "Unknown keys are refused with the nearest known one; environment variables in a file expand."
    )
    return "\n\n".join([head, *(_file(name, model) for name, model in SETTINGS.items())]) + "\n"


def _file(name: str, model: type[BaseModel]) -> str:
    rows = [
        (f"`{key}`", _type(field.annotation), _field_default(field), field.description or _summary(field.annotation))
        for key, field in keys(model)
    ]
    return f"## {name}\n\n{(model.__doc__ or '').strip()}\n\n{_table(('key', 'type', 'default', 'meaning'), rows)}"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a settings model, nested ones dotted, with its field; what was unfolded above is not again."""
    seen = set(SETTINGS.values())
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        yield key, field
        inner = nested(field.annotation)
        if inner is not None and inner not in seen:
            seen.add(inner)
            yield from keys(inner, f"{key}.")


def nested(annotation: Any) -> type[BaseModel] | None:
    """The settings model that a key holds, where it holds one (itself, optional, or one of a list)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None if annotation in (settings.Predicate, settings.CodeMatch) else annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple):
        return next((found for part in typing.get_args(annotation) if (found := nested(part)) is not None), None)
    return None


def _summary(annotation: Any) -> str:
    """The first sentence of the settings model that a key holds."""
    model = nested(annotation)
    return "" if model is None else (model.__doc__ or "").split("\n")[0]


def _type(annotation: Any) -> str:
    if annotation is type(None):
        return "none"
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_type(part) for part in parts if part is not type(None)))
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"name → {_type(parts[1])}"
    return _NAMES.get(annotation.__name__, "settings")


_NAMES = {
    "str": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path", "datetime": "time",
    "date": "date",    "Predicate": "predicate", "CodeMatch": "codes", "DelayConfig": "delay",
}  # fmt: skip


def _field_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is None or value in ((), {}):
        return ""
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else str(value).lower()}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
