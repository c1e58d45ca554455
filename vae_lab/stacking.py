"""Which systems may be stacked: those that differ in nothing but the numbers in their parameters and buffers.

Stacked runs share one module and bring their own tensors, so that whatever else a module keeps would be that of the first
run. Hence everything is compared, private attributes too, by value; what cannot be compared keeps its run apart.
"""

import functools
import hashlib
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import Enum
from itertools import count
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, range, slice, PurePath)
CONTAINERS = (dict, OrderedDict, types.MappingProxyType, list, tuple, torch.Size, deque, set, frozenset)
_unique = count()
_classes: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()  # numbered as they are met


def stack_key(system: nn.Module) -> str:
    """Equal for two systems exactly when they may be stacked.

    A number that a class keeps as an attribute and not as a buffer is part of the key: forgetting the buffer costs speed,
    never truth. Two calls for a system with something incomparable give two keys.
    """
    return hashlib.sha256("\n".join(describe(system).values()).encode()).hexdigest()


def describe(system: nn.Module) -> dict[str, str]:
    """All that `stack_key` compares: a text for each module, tensor and attribute, by its path."""
    return _Description(system).lines()


def incomparable(system: nn.Module) -> list[str]:
    """What keeps a system from being stacked with any other, as 'objective.stream (a Generator)'."""
    description = _Description(system)
    description.lines()
    return description.incomparable


class _Description:
    """A text for every value that a system keeps, equal for equal values."""

    def __init__(self, system: nn.Module):
        self.system = system
        tensors = [
            *system.named_parameters(remove_duplicate=False),
            *system.named_buffers(remove_duplicate=False),
        ]
        self.own = {id(value): name for name, value in [*tensors, *system.named_modules()]}
        self.tensors = tensors
        self.open: list[int] = []  # containers around the value that is looked at, by id
        self.incomparable: list[str] = []

    def lines(self) -> dict[str, str]:
        lines = {
            f"{name}:": f"{name}: {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}" for name, tensor in self.tensors
        }
        for name, module in self.system.named_modules():
            lines[name] = f"{name}: {_class(type(module))}"
            for key, value in _plain(module).items():
                path = f"{name}.{key}".lstrip(".")
                lines[path] = f"{path} = {self.of(value, path)}"
        return lines

    def of(self, value: Any, path: str) -> str:
        """One value; `path` names it in messages."""
        if id(value) in self.own:
            return f"<{self.own[id(value)]}>"
        if id(value) in self.open:
            return f"<around {len(self.open) - self.open.index(id(value))}>"
        self.open.append(id(value))
        try:
            inside = self._inside(value, path)
        finally:
            self.open.pop()
        if inside is None:
            self.incomparable.append(f"{path} (a {type(value).__name__})")
            return f"<unique {next(_unique)}>"
        return f"{_class(type(value))}({inside})"

    def _inside(self, value: Any, path: str) -> str | None:
        """What tells a value from others of its type; None where nothing does."""
        if value is None or isinstance(value, bool | int | str | bytes | complex):
            return repr(value)
        if isinstance(value, float):
            return value.hex()
        if isinstance(value, Tensor):
            return _bytes(value)
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            return None if array.dtype.hasobject else _digest(array.dtype, array.shape, array.tobytes())
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, NAMED):
            return repr(value)
        if isinstance(value, type):
            return _class(value)
        if isinstance(value, types.ModuleType):
            return _name(value)
        if isinstance(value, weakref.ref):
            return self.of(value(), path)
        if isinstance(value, functools.partial):
            return self._all([value.func, value.args, value.keywords], path)
        if isinstance(value, types.MethodType):
            return self._all([value.__func__, value.__self__], path)
        if isinstance(value, types.FunctionType):
            code, cells = value.__code__, value.__closure__ or ()
            parts = [code, value.__defaults__, value.__kwdefaults__, *(cell.cell_contents for cell in cells)]
            return _name(value) + self._all(parts, path)
        if isinstance(value, types.CodeType):
            return self._all([value.co_code, value.co_consts, value.co_names], path)
        if isinstance(value, types.BuiltinFunctionType):
            bound = not isinstance(value.__self__, types.ModuleType | type | None)
            return None if bound else _name(value)
        if not _is_all_in_attributes(value):
            return None
        return self._contents(value, path) + self._attributes(value, path)

    def _contents(self, value: Any, path: str) -> str:
        """The elements of a container."""
        if isinstance(value, dict | types.MappingProxyType):
            return self._all([part for item in value.items() for part in item], path)
        if isinstance(value, set | frozenset):
            return "".join(sorted(self.of(part, path) for part in value))
        return self._all(value, path) if isinstance(value, list | tuple | deque) else ""

    def _attributes(self, value: Any, path: str) -> str:
        slots = [name for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)]
        kept = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
        return "".join(f"{name}={self.of(part, f'{path}.{name}')}" for name, part in kept.items())

    def _all(self, values: Iterable[Any], path: str) -> str:
        return ",".join(self.of(value, path) for value in values)


def _plain(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside its tensors and children; of torch's own attributes the hooks that are set."""
    own, torchs = {**vars(module)}, vars(nn.Module())
    for name in torchs:
        kept = own.pop(name, None)
        if "hooks" in name and kept:
            own[name] = kept
    return dict(sorted(own.items()))


def _is_all_in_attributes(value: Any) -> bool:
    """Whether all that an object keeps is in its attributes and elements, and nothing in memory of its own."""
    cls = type(value)
    if cls in (*CONTAINERS, types.SimpleNamespace):
        return True
    if (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
        return False  # it needs more than its attributes to be made again
    try:
        value.__reduce_ex__(2)  # refused for what Python does not see
    except Exception:
        return False
    return True


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _class(cls: type) -> str:
    """A class as such: one function may make several of the same name, whose methods differ."""
    if cls not in _classes:
        _classes[cls] = next(_unique)
    return f"{_name(cls)} {_classes[cls]}"


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _bytes(tensor: Tensor) -> str | None:
    try:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return _digest(tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes())
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantised, on no real device
        return None


def _digest(kind: object, shape: object, data: bytes) -> str:
    return f"{kind} {shape} {hashlib.sha256(data).hexdigest()}"
