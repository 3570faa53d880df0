"""Runs a call every way there is and holds the answers against the contract: errors, results, and the memory around them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from cases import assert_copied, assert_same, replace, run
from fuzz.agreement import assert_agrees
from fuzz.calls import Call
from fuzz.invariants import assert_invariants
from torch import Tensor

import vtkernels as vt
from vtkernels import _checks, reference
from vtkernels._ops import ops, qualified
from vtkernels._schemas import OUT, SHAPES

_MODES = {"none": contextlib.nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def judge(call: Call) -> None:
    """Raises where the call breaks the contract."""
    with _MODES[call.mode]():
        expected = expected_error(call)
        if expected is None:
            _judge_good(call)
        else:
            _judge_bad(call, expected)


def expected_error(call: Call) -> Exception | None:
    """What the checks say, which know nothing of the native library."""
    try:
        getattr(_checks, call.op)(**call.arguments)
        if call.op in _checks.DATA and all(x.device.type == "cpu" for x in _tensors(call.arguments).values()):
            _checks.DATA[call.op](**call.arguments)
        if call.out is not None:
            first = next(iter(_tensors(call.arguments).values()))
            _checks.out(call.op, call.out, OUT[call.op], SHAPES[call.op](**call.arguments).shape, first)
            _checks.apart(call.op, call.out, **call.arguments)
    except (ValueError, TypeError) as error:
        return error
    except Exception as error:  # a check must not fail in other ways
        raise AssertionError(f"the checks of {call.op} failed with {type(error).__name__}: {error}") from error
    return None


# ------------------------------------------------------------------------------------------------ bad calls


def _judge_bad(call: Call, expected: Exception) -> None:
    assert call.broken is not None, f"a good call was refused: {expected}"
    named = str(expected).removeprefix(f"{qualified(call.op)}: ").split()[0]
    assert named in (*call.arguments, "out", "variant", "N"), f"names no argument: {expected}"
    memory = Memory({**call.arguments, "out": call.out})
    for direct in (False, True):
        try:
            _call(call, direct=direct)
        except (ValueError, TypeError, RuntimeError) as error:
            wrong_type = not direct and type(error) is not type(expected)
            wrong_words = str(error) != str(expected) if not direct else not _says(error, expected)
            if wrong_type or wrong_words:
                where = "a direct call" if direct else "the wrapper"
                raise AssertionError(f"{where} raised {error!r} instead of {expected!r}") from None
        else:
            raise AssertionError(f"accepted, though {expected}")
    memory.assert_unchanged()


def _says(error: Exception, expected: Exception) -> bool:
    """A direct call whose arguments do not fit the schema is refused by torch's own parser, in its words."""
    parser = "Expected a value of type" in str(error) or "Expected Tensor" in str(error)
    return str(expected) in str(error) or parser or "got NoneType" in str(expected)


# ------------------------------------------------------------------------------------------------ good calls


def _judge_good(call: Call) -> None:
    """Also of what was made bad but is taken: a free size, another float dtype, an optional tensor left out."""
    op, arguments = call.op, call.arguments
    if op == "compact_":
        return _judge_in_place(call)
    if any(x.is_meta for x in _tensors(arguments).values()):
        assert all(x.is_meta for x in run(op, arguments))
        return None

    memory = Memory(arguments)
    results = run(op, arguments)
    memory.assert_unchanged()
    _assert_shapes(op, arguments, results)
    assert_invariants(op, arguments, results)

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 3)
    again = getattr(ops, op).default(**arguments)
    torch.set_num_threads(threads)
    assert_same(again if isinstance(again, tuple) else (again,), results)

    if call.out is not None:
        memory = Memory({**arguments, "out": call.out})
        assert _call(call) is call.out
        assert_same((call.out,), results)
        memory.assert_unchanged(written="out")
    return assert_agrees(op, arguments, results)


def _judge_in_place(call: Call) -> None:
    tokens = call.arguments["tokens"]
    if tokens.is_meta:
        return vt.compact_(**call.arguments)
    want = tokens.detach().clone()
    reference.compact_(want, call.arguments["indices"])
    memory = Memory(call.arguments)
    vt.compact_(**call.arguments)
    assert_copied(tokens, want)
    memory.assert_unchanged(written="tokens")
    return None


def _assert_shapes(op: str, arguments: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    """Those of the shape function, by the way that tracing takes."""
    meta = run(op, replace(arguments, lambda x: x.detach().to("meta")))
    for got, want in zip(results, meta, strict=True):
        assert (got.shape, got.dtype, got.device.type) == (want.shape, want.dtype, "cpu")
        assert got.is_contiguous()


def _call(call: Call, *, direct: bool = False) -> Any:
    if not direct:
        return getattr(vt, call.op)(**call.arguments, **({} if call.out is None else {"out": call.out}))
    if call.out is not None:
        return getattr(ops, call.op).out(**call.arguments, out=call.out)
    return getattr(ops, call.op).default(**call.arguments)


# ------------------------------------------------------------------------------------------------ memory


def _tensors(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in arguments.items() if isinstance(x, Tensor)}


class Memory:
    """Every byte of the storages of a call's tensors, the gaps between elements and what lies around them included."""

    def __init__(self, arguments: dict[str, Any]):
        self.tensors = {name: x for name, x in _tensors(arguments).items() if not x.is_meta}
        self.before = {name: _storage(x).clone() for name, x in self.tensors.items()}

    def assert_unchanged(self, written: str | None = None) -> None:
        """Outside the elements of the tensor ``written``, which may lie in a gap of another one."""
        target = self.tensors.get(written)
        for name, x in self.tensors.items():
            memory = self.before[name], _storage(x)
            if target is not None and x.untyped_storage().data_ptr() == target.untyped_storage().data_ptr():
                memory = tuple(bytes_.clone() for bytes_ in memory)
                for bytes_ in memory:
                    _view(bytes_, target).fill_(0)
            assert torch.equal(*memory), f"memory of {name} changed{' around its elements' if name == written else ''}"


def _storage(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())


def _view(memory: Tensor, like: Tensor) -> Tensor:
    """The elements that ``like`` has in its storage, in a copy of that storage."""
    return torch.empty(0, dtype=like.dtype).set_(memory.untyped_storage(), like.storage_offset(), like.shape, like.stride())
