"""Which device computes, how precisely and in what portions: chosen once for a process, read wherever it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ehrsequencing.config import TOKEN_BUDGET
from ehrsequencing.errors import EhrError, Exit

AUTO, INDUCTOR, RECOMPILE_LIMIT = "auto", "inductor", 64


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    Attributes:
        present: whether this machine has one.
        half: whether it computes faster in bfloat16, which ``precision: auto`` then takes.
        token_budget: tokens in one micro-batch: bounds memory, never the size of an optimiser step.
    """

    why: str
    present: Callable[[], bool]
    half: Callable[[], bool]
    token_budget: int


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "cuda": Kind(
            "many times the arithmetic, idle unless it is given much at once and never waited for",
            torch.cuda.is_available,
            lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            32_768,
        ),
        "cpu": Kind("every machine has one; results repeat to the byte", lambda: True, lambda: False, TOKEN_BUDGET),
    }
)
"""Devices by name; ``auto`` takes the first that is present."""
PRECISIONS = (AUTO, "fp32", "bf16")


@dataclass(frozen=True)
class Compute:
    """A choice of device and of how it is used.

    Attributes:
        half: encoders run under bfloat16 autocast; hazard heads and losses stay in float32.
        compiler: the back-end of torch.compile for the encoder's blocks; None runs them as they are written.
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009
    half: bool = False
    compiler: str | None = None

    @property
    def token_budget(self) -> int:
        """Tokens in one micro-batch."""
        return KINDS[self.device.type].token_budget

    def autocast(self) -> AbstractContextManager[object]:
        """Where an encoder's arithmetic belongs."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()


def choose(device: str = AUTO, precision: str = AUTO, *, compiled: bool = False) -> Compute:
    """The computation that is asked for: ``auto``, ``cpu`` or ``cuda``; ``auto``, ``fp32`` or ``bf16``.

    Raises:
        EhrError: a name that is none of these (exit 10), or something this machine does not have (exit 14).

    >>> choose("cpu")
    Compute(device=device(type='cpu'), half=False, compiler=None)
    """
    name = _device_name(device)
    if precision not in PRECISIONS:
        raise EhrError(f"unknown precision '{precision}'", "--precision", f"one of {', '.join(PRECISIONS)}",
                       code=Exit.CONFIG)  # fmt: skip
    if name == "cuda" and precision == "bf16" and not KINDS[name].half():
        what = f"{torch.cuda.get_device_name()} has no bfloat16 arithmetic"
        raise EhrError(what, "--precision", "use fp32, or leave it out", code=Exit.ENVIRONMENT)
    if compiled and name != "cuda":
        what = "compiling is for CUDA: on a CPU it costs more than it saves"
        raise EhrError(what, "--compile", "leave it out", code=Exit.ENVIRONMENT)
    place = torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)
    half = KINDS[name].half() if precision == AUTO else precision == "bf16"
    return Compute(place, half, INDUCTOR if compiled else None)


def _device_name(asked: str) -> str:
    if asked == AUTO:
        return next(name for name, kind in KINDS.items() if kind.present())
    if asked not in KINDS:
        known = ", ".join((AUTO, *KINDS))
        raise EhrError(f"unknown device '{asked}'", "--device", f"one of {known}", code=Exit.CONFIG)
    if not KINDS[asked].present():
        what = f"no {asked} device is found on this machine"
        fix = "use --device cpu (or auto), or a torch that is built for this machine's GPU"
        raise EhrError(what, "--device", fix, code=Exit.ENVIRONMENT)
    return asked


_chosen: list[Compute] = []


def use(choice: Compute) -> None:
    """Compute so from now on in this process."""
    _chosen[:] = [choice]


def compute() -> Compute:
    """The choice in force; ``choose()`` where nobody has chosen."""
    return _chosen[0] if _chosen else _automatic()


@cache
def _automatic() -> Compute:
    return choose()


def compute_on(device: torch.device) -> Compute:
    """The choice in force for tensors on a device: plain arithmetic on one that was not chosen."""
    chosen = compute()
    return chosen if chosen.device.type == device.type else Compute(device)


@contextmanager
def computing(choice: Compute) -> Iterator[Compute]:
    """Compute so within the block."""
    before = list(_chosen)
    use(choice)
    try:
        yield choice
    finally:
        _chosen[:] = before


def compiled(function: Callable[..., Any], compiler: str) -> Callable[..., Any]:
    """By torch.compile, anew for each of the few sizes of packs: they are more than torch expects."""
    compile_: Any = torch.compile  # the stub knows no recompile_limit
    made: Callable[..., Any] = compile_(function, backend=compiler, dynamic=False, recompile_limit=RECOMPILE_LIMIT)
    return made


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are."""
    return next(module.parameters()).device


@contextmanager
def at_work(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on ``device`` within the block, and then where it was before."""
    home = device_of(module)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def moved(x: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """The tensor on a device; on the way to CUDA, from pinned memory, nobody waits for it."""
    if x.device == device:
        return x
    ahead = device.type == "cuda" and x.device.type == "cpu"
    return (x.pin_memory() if ahead else x).to(device, non_blocking=ahead)


def on_host(module: nn.Module, buffer: str) -> Tensor:
    """A module's buffer as the host reads it, fetched from a device once."""
    tensor: Tensor = getattr(module, buffer)
    if tensor.device.type == "cpu":
        return tensor
    kept = module.__dict__.setdefault("_on_host", {})
    if buffer not in kept or kept[buffer][0] is not tensor:
        kept[buffer] = (tensor, tensor.cpu())
    found: Tensor = kept[buffer][1]
    return found


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of these numbers, moved to a device once."""
    return torch.tensor(values, dtype=dtype, device=device)
