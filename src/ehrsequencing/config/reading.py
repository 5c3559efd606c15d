"""Settings from files and mappings; what is wrong is told once, with the nearest known key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ehrsequencing.config.base import Strict
from ehrsequencing.config.task import TaskConfig
from ehrsequencing.errors import EhrError, Exit, nearest

Config = TypeVar("Config", bound=Strict)


def parse(model: type[Config], data: Any, where: str) -> Config:
    """Validate ``data`` as ``model``; the first problem is told as an EhrError (exit 10) with the nearest known key."""
    if not isinstance(data, dict):
        raise EhrError(
            f"expected a mapping of settings, found {type(data).__name__}",
            where,
            f"known keys: {', '.join(model.model_fields)}",
            code=Exit.CONFIG,
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, model, where) from None


class _OnceOnly(yaml.SafeLoader):
    """Plain data only, like the safe loader; a key given twice is refused rather than overwritten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(model: type[Config], path: Path | str) -> Config:
    """Read a YAML file into ``model``; environment variables in it expand, and paths in ``task`` stay as written."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EhrError("the file does not exist", str(path), "check the path", code=Exit.CONFIG) from None
    except (OSError, UnicodeDecodeError) as error:
        raise EhrError(f"the file cannot be read: {error}", str(path), "check the file", code=Exit.CONFIG) from None
    try:
        data = yaml.load(os.path.expandvars(text), _OnceOnly)
    except (yaml.YAMLError, ValueError) as error:
        raise EhrError(f"not valid YAML: {error}", str(path), "mend the syntax", code=Exit.CONFIG) from None
    return parse(model, data, str(path))


def load_task(path: Path | str) -> TaskConfig:
    """Read a TASK.yaml."""
    return load_yaml(TaskConfig, path)


def _explain(error: ValidationError, model: type[Strict], where: str) -> EhrError:
    problem = max(error.errors(), key=_tells_most)
    key = ".".join(str(part) for part in problem["loc"] if not _is_branch(part))
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        close = nearest(str(problem["loc"][-1]), known, 1)
        fix = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return EhrError(f"unknown key '{key}'", where, fix, code=Exit.CONFIG)
    found = "" if problem["type"] == "missing" or not key else f" (found {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return EhrError(f"{key or 'settings'}: {message}{found}", where, "correct this setting", code=Exit.CONFIG)


def _tells_most(problem: Any) -> tuple[bool, bool, int]:
    """Of the problems with each of several possible forms, that of the form which was meant: found deepest.

    An unknown key goes before a missing one: it is mostly that very key, misspelt.
    """
    another_form = problem["type"] in (
        "string_type",
        "literal_error",
        "model_type",
        "dict_type",
        "model_attributes_type",
    )
    return not another_form, problem["type"] != "missing", len(problem["loc"])


def _is_branch(part: Any) -> bool:
    """True where a part of a problem's place names one of several possible forms, not a key."""
    return isinstance(part, str) and (part == "str" or "[" in part or _is_model(part))


def _is_model(part: Any) -> bool:
    return part in _models(Strict)


def _models(kind: type[Strict]) -> dict[Any, type[Strict]]:
    """Every settings object by its name."""
    found: dict[Any, type[Strict]] = {}
    for model in kind.__subclasses__():
        found |= {model.__name__: model, **_models(model)}
    return found


def _known_keys(model: type[Strict], path: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in path:
        if _is_model(part):
            current = _models(Strict)[part]
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        current = models[0] if models else current
    return [field.alias or name for name, field in current.model_fields.items()]
