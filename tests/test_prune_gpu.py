"""``vt.prune`` on an NVIDIA GPU: small models choose and say the same as on the CPU, without waiting for the GPU."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers")

import models
from models import inputs

import vtkernels as vt

if not torch.cuda.is_available() or torch.version.hip is not None:
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

PROMPTS = [[3, "image", 4, 5], [6, "image", 7]]
METHODS = [vt.Scope(), vt.FoPru(), vt.HoloV(), vt.GPrune(), vt.TopAttention()]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
each_model = pytest.mark.parametrize(
    "build", [models.llava, models.llava_next, models.llava_onevision], ids=lambda b: b.__name__
)


@pytest.fixture(autouse=True)
def compiled_kernels(monkeypatch):
    """Neither TF32 nor reduced sums: the CPU is the judge."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(batch: dict) -> dict:
    return {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in batch.items()}


def kept(pruning) -> list[list[int]]:
    return [x.tolist() for x in pruning.last.indices]


@each_model
@each_method
def test_same_tokens_as_on_the_cpu(build, method):
    model = build(layers=3, side=6)
    batch = inputs(model, PROMPTS)
    with vt.prune(model, method, keep=0.5) as pruning:
        want = model.generate(**batch, max_new_tokens=6, do_sample=False)
        chosen = kept(pruning)
    model.cuda()
    with vt.prune(model, method, keep=0.5) as pruning:
        got = model.generate(**on_gpu(batch), max_new_tokens=6, do_sample=False)
        assert kept(pruning) == chosen
    assert torch.equal(got.cpu(), want)


@each_model
@each_method
def test_half_precision_runs_and_keeps_its_budget(build, method):
    model = build(layers=3, side=6, dtype=torch.bfloat16).cuda()
    batch = on_gpu(inputs(model, PROMPTS))
    batch = {name: x.bfloat16() if x.is_floating_point() else x for name, x in batch.items()}
    with torch.no_grad():
        whole = model(**batch).logits
        with vt.prune(model, method, keep=8) as pruning:
            logits = model(**batch).logits
            counts = [len(x) for x in pruning.last.indices]
    assert logits.isfinite().all() and logits.shape[1] < whole.shape[1]
    assert all(count > 0 for count in counts)


def test_static_cache_gives_the_same_tokens():
    model = models.llava(side=6).cuda()
    batch = on_gpu(inputs(model, PROMPTS))
    with vt.prune(model, vt.Scope(), keep=8):
        want = model.generate(**batch, max_new_tokens=6, do_sample=False)
        got = model.generate(**batch, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(got, want)


def test_compiled_language_model_gives_the_same_logits():
    model = models.llava(side=6).cuda()
    batch = on_gpu(inputs(model, PROMPTS))
    with torch.no_grad(), vt.prune(model, vt.Scope(), keep=8):
        want = model(**batch).logits
        language = model.model.language_model
        language.forward = torch.compile(language.forward)
        got = model(**batch).logits
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@each_method
def test_choice_never_waits_for_the_gpu(method, monkeypatch):
    """Only the method's own work is watched: transformers counts placeholders on the host."""
    model = models.llava(side=6).cuda()
    batch = on_gpu(inputs(model, PROMPTS))
    select, calls = type(method).select, []

    def watched(self, context, k):
        calls.append(k)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return select(self, context, k)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with torch.no_grad():
        with vt.prune(model, copy.copy(method), keep=8):
            model(**batch)  # kernels are loaded by their first call
        monkeypatch.setattr(type(method), "select", watched)
        with vt.prune(model, method, keep=8):
            model(**batch)
    assert calls
