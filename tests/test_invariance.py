"""What every op promises: the answer depends on the values of a row and on nothing else, and lands where it should."""

from __future__ import annotations

import pytest
import torch
from cases import (
    EXAMPLES,
    LAYOUTS,
    arrange,
    assert_same,
    each_dtype,
    each_int,
    example,
    on_ops,
    replace,
    rows_of,
    run,
    takes_lengths,
)
from torch import Tensor

import vtkernels as vt
from vtkernels._ops import ops
from vtkernels._schemas import DIFFERENTIABLE, OUT, SCHEMAS

RAGGED = [op for op in EXAMPLES if takes_lengths(op)]
FUNCTIONAL = [op for op in EXAMPLES if op != "compact_"]
BUDGET = [op for op in EXAMPLES if "SymInt k" in SCHEMAS[op]]


def test_every_op_has_an_example():
    assert set(EXAMPLES) == set(SCHEMAS)
    assert RAGGED and BUDGET and OUT and len(FUNCTIONAL) == len(EXAMPLES) - 1


@on_ops()
@each_dtype
@pytest.mark.parametrize("n", [1, 17, pytest.param(129, marks=pytest.mark.large)])
def test_row_gives_the_same_bits_alone_and_anywhere_in_a_batch(op, backend, n, dtype):
    sizes = {"batch": 7, "n": n, "dtype": dtype, "lengths": True}
    whole = run(op, example(op, **sizes))
    for b in (0, 3, 4, 6):
        alone = run(op, rows_of(example(op, **sizes), [b]))
        assert_same(alone, tuple(x[b : b + 1] for x in whole), backend)
    order = [6, 2, 2, 0, 5]
    moved = run(op, rows_of(example(op, **sizes), order))
    assert_same(moved, tuple(x[order] for x in whole), backend)


@pytest.mark.large
@on_ops()
@pytest.mark.parametrize("batch", [1, 3])
def test_thread_count_does_not_change_a_bit(op, backend, batch, threads):
    results = []
    for count in (1, 2) if backend == "reference" else (1, 2, 5):
        threads(count)
        results.append(run(op, example(op, batch=batch, n=151)))
    for other in results[1:]:
        assert_same(other, results[0], backend)


@on_ops()
@each_dtype
def test_same_input_same_bits(op, backend, dtype):
    first, again = (run(op, example(op, n=65, dtype=dtype)) for _ in range(2))
    assert_same(again, first)


@on_ops()
def test_one_bad_row_does_not_spoil_the_others(op, backend):
    clean = run(op, example(op, batch=4))
    arguments = example(op, batch=4)
    for x in arguments.values():
        if isinstance(x, Tensor) and x.is_floating_point():
            x[1], x[2] = float("nan"), float("inf")
    assert_same(tuple(x[[0, 3]] for x in run(op, arguments)), tuple(x[[0, 3]] for x in clean))


@on_ops(*FUNCTIONAL)
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_and_gradients_do_not_matter(op, backend, layout, dtype):
    arguments = replace(example(op, dtype=dtype, lengths=True), lambda x: arrange(x, layout))
    got = run(op, arguments)
    want = run(op, replace(arguments, lambda x: x.detach().clone(memory_format=torch.contiguous_format)))
    assert_same(tuple(x.detach() for x in got), want, backend)
    assert all(x.is_contiguous() for x in got)
    assert any(x.requires_grad for x in got) == (op in DIFFERENTIABLE and layout == "requires_grad")


@on_ops(*FUNCTIONAL)
def test_inputs_are_not_written(op, backend):
    arguments = example(op, lengths=True)
    run(op, arguments)
    for name, x in example(op, lengths=True).items():
        assert not isinstance(x, Tensor) or torch.equal(arguments[name], x), name


@on_ops()
@pytest.mark.parametrize(("batch", "n"), [(0, 9), (0, 0), (3, 0)])
def test_empty_batch_and_no_tokens(op, backend, batch, n):
    for k in {0, n}:
        for result in run(op, example(op, batch=batch, n=n, k=k, lengths=True)):
            assert result.shape[0] == batch and (result.numel() == 0 or result.shape[1] == n)


@on_ops(*BUDGET)
def test_no_budget_gives_no_indices(op, backend):
    result = run(op, example(op, k=0))
    assert result[0].shape == (3, 0)
    assert all(x.shape[0] == 3 for x in result)


@on_ops(*BUDGET)
@pytest.mark.parametrize("n", [1, 2, 15, 33])
def test_whole_budget_gives_every_token(op, backend, n):
    assert torch.equal(run(op, example(op, n=n, k=n))[0], torch.arange(n).expand(3, n))


@on_ops(*RAGGED)
@each_int
def test_length_of_any_int_dtype_and_value(op, backend, int_dtype):
    """Clamped to [0, N]: what is beyond the ends is the end."""
    limits = torch.iinfo(int_dtype)
    arguments = example(op, batch=4)
    far, near = [limits.min, -1, 2**20, limits.max], [0, 0, 18, 18]  # no op has more tokens in a row
    want = run(op, {**arguments, "lengths": torch.tensor(near)})
    assert_same(run(op, {**arguments, "lengths": torch.tensor(far, dtype=int_dtype)}), want)
    whole = run(op, arguments)
    assert_same(tuple(x[2:] for x in want), tuple(x[2:] for x in whole))


@on_ops(*OUT)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "misaligned"])
def test_out_receives_the_result(op, backend, layout):
    (want,) = run(op, example(op, lengths=True))
    out = arrange(torch.full_like(want, 77), layout)
    assert getattr(vt, op)(**example(op, lengths=True), out=out) is out
    assert_same((out,), (want,))


@on_ops(*OUT)
def test_out_overload_writes_nothing_else_and_returns_nothing(op, backend):
    (want,) = run(op, example(op))
    buffer = torch.full([s + 2 for s in want.shape], 77, dtype=want.dtype)
    version = buffer._version
    assert getattr(ops, op).out(**example(op), out=buffer[1:-1, 1:-1]) is None
    assert buffer._version > version
    assert_same((buffer[1:-1, 1:-1],), (want,))
    assert (buffer == 77).sum() == buffer.numel() - want.numel()


@on_ops(*OUT)
def test_empty_out_is_accepted(op, backend):
    (want,) = run(op, example(op, batch=0))
    assert getattr(vt, op)(**example(op, batch=0), out=torch.empty_like(want)).shape == want.shape


@on_ops(*OUT)
def test_out_that_requires_grad_is_an_error(op, backend):
    if OUT[op].is_floating_point:
        (want,) = run(op, example(op))
        with pytest.raises(RuntimeError, match=rf"{op}.out: out is written in place and cannot require grad"):
            getattr(vt, op)(**example(op), out=want.clone().requires_grad_())


@on_ops(*OUT)
def test_out_in_overlapping_memory_is_refused(op, backend):
    (want,) = run(op, example(op))
    with pytest.raises(ValueError, match="expanded view"):
        getattr(vt, op)(**example(op), out=want[:1].clone().expand_as(want))
