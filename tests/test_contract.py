"""What torch is promised about every op: schemas, tracing, export, shapes without data, autograd; and what users are."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest
import torch
from cases import EXAMPLES, Draw, arrange, assert_same, example, on_ops, replace, run
from torch import Tensor

import vtkernels as vt
import vtkernels.backends
import vtkernels.ops
from vtkernels import _checks, reference
from vtkernels._ops import ops
from vtkernels._schemas import DIFFERENTIABLE, OUT, SCHEMAS

PUBLIC = {
    "__version__",
    "attention_profile",
    "attention_topk",
    "backend",
    "cls_attention",
    "cluster_topk",
    "compact_",
    "coverage_select",
    "crop_topk",
    "gather_tokens",
    "graph_propagate",
    "merge_tokens",
    "prompt_relevance",
    "reference",
    "route_tokens",
    "row_topk",
    "scope_select",
    "status",
    "token_clusters",
    "topk_select",
    "which",
}
each_op = pytest.mark.parametrize("op", SCHEMAS)
each_example = pytest.mark.parametrize("op", EXAMPLES)


# ------------------------------------------------------------------------------------------------ the public surface


def test_public_names_are_pinned():
    assert set(vt.__all__) >= PUBLIC
    assert len(vt.__all__) == len(set(vt.__all__))
    for name in vt.__all__:
        assert hasattr(vt, name), name


def test_every_op_has_its_row():
    assert set(SCHEMAS) == set(vt.ops.__all__) == set(reference.__all__)
    assert set(SCHEMAS) <= set(vt.__all__)
    for op in SCHEMAS:
        assert getattr(vt, op) is getattr(vt.ops, op)
        assert callable(getattr(_checks, op))


def parameter(argument) -> tuple:
    """What a schema says of an argument, in the words of ``inspect``."""
    default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
    return argument.name, argument.kwarg_only, default


@each_op
def test_out_overload_exists_exactly_where_the_catalogue_says(op):
    packet = getattr(ops, op)
    assert packet.overloads() == (["default", "out"] if op in OUT else ["default"])
    returns = packet.default._schema.returns
    assert (op in OUT) == (len(returns) == 1 and op not in DIFFERENTIABLE)  # whose dtype is that of the tokens
    if op in OUT:
        out = packet.out._schema.arguments[-1]
        assert (out.name, out.kwarg_only, out.alias_info.is_write) == ("out", True, True)
        assert packet.out._schema.returns == []
        assert [parameter(a) for a in packet.out._schema.arguments[:-1]] == [
            parameter(a) for a in packet.default._schema.arguments
        ]


@each_op
def test_schema_tells_what_is_written(op):
    schema = getattr(ops, op).default._schema
    assert [a.name for a in schema.arguments if a.is_write] == (["tokens"] if op == "compact_" else [])
    assert torch.Tag.pt2_compliant_tag in getattr(ops, op).default.tags


@each_op
def test_wrapper_reference_and_checks_have_the_arguments_of_the_schema(op):
    arguments = getattr(ops, op).default._schema.arguments
    want = [parameter(a) for a in arguments]
    for function in (getattr(vt, op), getattr(reference, op), getattr(_checks, op)):
        parameters = inspect.signature(function).parameters.values()
        got = [(p.name, p.kind is p.KEYWORD_ONLY, p.default) for p in parameters if p.name != "out"]
        assert got == want
    assert ("out" in inspect.signature(getattr(vt, op)).parameters) == (op in OUT)


@each_op
def test_docstring_has_every_section_and_argument(op):
    text = inspect.getdoc(getattr(vt, op))
    for section in ("Args:", "Raises:", "Complexity:", "Example:") + (("Returns:",) if op != "compact_" else ()):
        assert section in text, section
    for name in inspect.signature(getattr(vt, op)).parameters:
        assert re.search(rf"^    {name}(, \w+)*: ", text, re.MULTILINE), name
    assert ">>> " in text


@pytest.mark.parametrize("module", [vtkernels.ops, vtkernels.backends], ids=lambda m: m.__name__)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# ------------------------------------------------------------------------------------------------ torch


def overloads(arguments: dict, op: str):
    """The overloads of an op, each with its arguments."""
    yield getattr(ops, op).default, arguments
    if op in OUT:
        like = getattr(ops, op).default(**arguments).detach()
        yield getattr(ops, op).out, {**arguments, "out": arrange(torch.zeros_like(like), "sliced")}


@on_ops()
@pytest.mark.parametrize("layout", ["sliced", "requires_grad"])
def test_opcheck(op, backend, layout):
    if op == "compact_" and layout == "requires_grad":
        layout = "transposed"
    arguments = replace(example(op, n=5, lengths=True), lambda x: arrange(x, layout))
    for overload, call in overloads(arguments, op):
        torch.library.opcheck(overload, (), call)


def traced(op: str):
    """The op between two others, so that the graph has something to get wrong; what it writes is an output."""

    def function(arguments):
        arguments = replace(arguments, lambda x: x * 1)
        return tuple(x + 0 for x in run(op, arguments))

    return function


@each_example
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_graph_breaks(op, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(traced(op), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for batch, n in ((3, 17), (2, 9)):
        arguments = example(op, batch=batch, n=n, lengths=True)
        assert_same(compiled(arguments), run(op, arguments))


@pytest.mark.parametrize("op", [op for op in EXAMPLES if op in OUT])
def test_compiled_out_writes_into_the_buffer(op):
    torch._dynamo.reset()
    arguments = example(op)
    (want,) = run(op, arguments)
    out = torch.zeros_like(want)

    def function(arguments, out):
        getattr(vt, op)(**arguments, out=out)
        return out + 1

    assert_same((torch.compile(function, backend="aot_eager", fullgraph=True)(arguments, out),), (want + 1,))
    assert_same((out,), (want,))


class Prune(torch.nn.Module):
    """A selector as a serving engineer would export it."""

    def forward(self, query: Tensor, key: Tensor, tokens: Tensor) -> Tensor:
        saliency = vt.cls_attention(query, key, reduce="sum")
        return vt.gather_tokens(tokens, vt.scope_select(tokens, saliency, 4))


def prune_inputs(batch: int) -> tuple[Tensor, ...]:
    draw = Draw(batch)
    return draw.normal(batch, 2, 8), draw.normal(batch, 2, 10, 8), draw.normal(batch, 9, 6)


def test_compiles_with_inductor_and_trains_through_it():
    torch._dynamo.reset()
    query, key, tokens = prune_inputs(2)
    tokens.requires_grad_()
    compiled = torch.compile(Prune(), fullgraph=True)
    results = []
    for module in (Prune(), compiled):
        tokens.grad = None
        kept = module(query, key, tokens)
        kept.backward(torch.ones_like(kept))
        results.append((kept.detach(), tokens.grad))
    assert_same(results[1], results[0])
    assert results[0][1].sum() == 2 * 4 * 6


def test_exports_with_a_dynamic_batch():
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Prune(), prune_inputs(2), dynamic_shapes=({0: batch},) * 3)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {f"vtkernels.{name}.default" for name in ("cls_attention", "scope_select", "gather_tokens")} <= names
    for size in (2, 5):
        assert_same((program.module()(*prune_inputs(size)),), (Prune()(*prune_inputs(size)),))


@each_example
@pytest.mark.parametrize(("batch", "n"), [(3, 17), (0, 5), (2, 0)])
def test_shape_without_data_is_the_shape_with_data(op, batch, n):
    arguments = example(op, batch=batch, n=n, lengths=True, dtype=torch.float16)
    real, meta = run(op, arguments), run(op, replace(arguments, lambda x: x.to("meta")))
    for a, b in zip(real, meta, strict=True):
        assert b.is_meta
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.stride() == b.stride() or a.numel() == 0


@on_ops()
def test_only_moved_tokens_have_a_gradient(op, backend):
    if op == "compact_":
        return  # refuses such a target: test_compact_.py
    arguments = replace(example(op), lambda x: arrange(x, "requires_grad"))
    assert [x.requires_grad for x in run(op, arguments)] == [op in DIFFERENTIABLE] * len(run(op, arguments))
