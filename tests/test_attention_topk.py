"""attention_topk: cls_attention and topk_select as one op. What each computes is proved in their own files."""

import math

import pytest
import torch
from cases import bits, each_dtype, each_int, ragged
from oracles import array, topk, valid_count
from test_cls_attention import assert_close, attention, inputs, plain

import vtkernels as vt

OP = "attention_topk"


def check(query, key, k, *, prefix=1, lengths=None, **options):
    """The indices must rank exactly the scores that come with them, and those are cls_attention bit for bit."""
    for sort in (True, False):
        indices, scores = vt.attention_topk(query, key, k, prefix=prefix, lengths=lengths, sort=sort, **options)
        alone = vt.cls_attention(query, key, prefix=prefix, lengths=lengths, **options)
        assert torch.equal(bits(scores), bits(alone))
        t = key.shape[2]
        for b, row in enumerate(array(scores).tolist()):
            valid = max(valid_count(lengths, b, t) - prefix, 0)
            assert indices[b].tolist() == topk(row, k, valid=valid, sort=sort)
    return indices, scores


@each_dtype
@pytest.mark.parametrize(("heads", "t", "d"), [(1, 2, 1), (3, 16, 2), (2, 18, 15), (5, 64, 17), (16, 130, 64), (2, 152, 80)])
def test_best_patches_and_their_attention(backend, heads, t, d, dtype):
    query, key = inputs(heads, t, d, dtype=dtype)
    for prefix, k in ((1, (t - 1) // 2), (0, t), (t, 0), (t // 2, t - t // 2)):
        _, scores = check(query, key, k, prefix=prefix)
        assert_close(scores, attention(query, key, prefix=prefix), plain(query, key, prefix=prefix))


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale_multiplies_the_logits(backend, scale):
    query, key = inputs(3, 33, 16)
    _, scores = check(query, key, 12, scale=scale)
    assert_close(scores, attention(query, key, scale=scale), plain(query, key, scale=scale))


def test_indices_count_from_the_first_token_after_the_prefix(backend):
    key = torch.zeros(1, 1, 9, 2)
    key[0, 0, [0, 6]] = 5.0
    indices, _ = vt.attention_topk(torch.ones(1, 1, 2), key, 2, prefix=4, sort=False)
    assert indices.tolist() == [[2, 0]]


def test_equal_attention_gives_the_first_patches(backend):
    query, _ = inputs(3, 1, 16)
    indices, _ = check(query, torch.zeros(2, 3, 151, 16), 12)
    assert indices.tolist() == [list(range(12))] * 2


def test_patches_without_mass_are_chosen_last_but_are_chosen(backend):
    query, key = inputs(2, 18, 8)
    key[0, :, [3, 9, 17]] = math.nan
    key[1] = math.inf
    indices, _ = check(query, key, 17)
    assert indices[0, -3:].tolist() == [2, 8, 16]
    assert indices[1].tolist() == list(range(17))


@each_int
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_lengths_count_all_tokens(backend, prefix, int_dtype):
    query, key = inputs(3, 33, 16, batch=7)
    lengths = ragged(7, 33, int_dtype)
    for b, length in enumerate(lengths.tolist()):
        key[b, :, max(length, 0) :] = math.nan
    indices, _ = check(query, key, 20, prefix=prefix, lengths=lengths)
    assert (indices[1] >= 0).sum() == 16 - prefix
    assert (indices[[2, 4]] == -1).all()


@each_int
def test_any_length_is_clamped(backend, int_dtype):
    query, key = inputs(2, 17, 8)
    limits = torch.iinfo(int_dtype)
    check(query, key, 9, lengths=torch.tensor([limits.min, limits.max], dtype=int_dtype))
