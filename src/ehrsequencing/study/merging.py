"""A bundle for deployment: adapters added to the weights beneath them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ehrsequencing.bundle import MARKER, Bundle
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import refuse_unwritable
from ehrsequencing.models.lora import adapter_of, merge_lora


def merge_bundle(bundle: Path, out: Path) -> str:
    """``ehrseq merge``: the same bundle with plain layers, which predicts the same to rounding; says what was merged.

    Raises:
        EhrError: a bundle without adapters (exit 13).
    """
    if Path(out).resolve().is_relative_to(Path(bundle).resolve()):
        raise EhrError("the output lies in the input", str(out), "choose another place", code=Exit.ENVIRONMENT)
    refuse_unwritable(Path(out), MARKER)
    loaded = Bundle.load(bundle)
    found = adapter_of(loaded.model.behrt)
    if found is None:
        fix = "use the bundle as it is: only a LoRA strategy leaves adapters"
        raise EhrError("the bundle has no adapters to merge", str(bundle), fix, code=Exit.BUNDLE)
    merge_lora(loaded.model.behrt)
    loaded.model.config.use_lora = False
    notes = [*loaded.facts.get("notes", []), f"{found}: merged into the weights"]
    was = loaded.facts["parameters"]
    now = {**was, "total": was["total"] - was["lora"]} if "lora" in was else was
    replace(loaded, facts={**loaded.facts, "notes": notes, "parameters": now}).save(out)
    return f"bundle in {out}: {found}, merged into the weights; it predicts as before, to rounding"
