"""What a type checker is promised; the check itself is part of `make lint`."""

import ast
from pathlib import Path

import models
import pytest
import torch
import typed_user

import vtkernels

PACKAGE = Path(vtkernels.__file__).parent


def test_annotations_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


def test_the_users_code_that_is_type_checked_runs():
    features, saliency = torch.randn(1, 4, 8), torch.rand(1, 4)
    typed_user.ops(features, saliency)
    typed_user.pruned(models.llava())


@pytest.mark.parametrize("path", sorted((PACKAGE / "triton").glob("*.py")), ids=lambda path: path.name)
def test_everything_but_a_kernel_is_annotated(path):
    """mypy is told not to ask for annotations in these files, because of the kernels."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        if any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list):
            continue
        given = function.args
        parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        bare = [parameter.arg for parameter in parameters if parameter.annotation is None]
        assert not bare and function.returns is not None, f"{function.name}, line {function.lineno}: {bare or 'result'}"
