"""Shortening a prompt: rows, sides, and everything that runs along the ids."""

import pytest
import torch

from vtkernels.integrations.transformers.prompt import Placeholders, shorten

X, P = 9, 0  # placeholder, padding


def images(before, after):
    return Placeholders("images", X, list(before), list(after))


def cut(ids, mask=None, sizes=(3,), keep=2, **more):
    arguments = {"input_ids": torch.tensor(ids)} | {k: torch.tensor(v) for k, v in more.items()}
    if mask is not None:
        arguments["attention_mask"] = torch.tensor(mask)
    given = {k: v.clone() for k, v in arguments.items()}
    short = shorten(arguments, name="input_ids", kinds=[images(sizes, [keep] * len(sizes))], pad=P).arguments
    assert all(arguments[k].equal(v) for k, v in given.items()), "the caller's tensors were written"
    return {k: v.tolist() for k, v in short.items()}


def test_one_row():
    assert cut([[1, X, X, X, 2]]) == {"input_ids": [[1, X, X, 2]]}


def test_touching_images_and_images_of_unequal_size():
    assert cut([[X, X, X, X, X, 2]], sizes=(3, 2), keep=1) == {"input_ids": [[X, X, 2]]}


def test_a_whole_prompt_comes_back_as_it_is():
    arguments = {"input_ids": torch.tensor([[1, X, X, X]])}
    short = shorten(arguments, name="input_ids", kinds=[images([3], [3])], pad=P)
    assert short.arguments is arguments and short.columns is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_taken_off_and_put_back_on_its_side(side):
    """The text row is the longer one afterwards: the row with the image is padded now."""
    flip = (lambda row: row) if side == "left" else (lambda row: row[::-1])
    ids = [flip([1, X, X, X, 2]), flip([P, P, 3, 4, 5])]
    mask = [flip([1] * 5), flip([0, 0, 1, 1, 1])]
    short = cut(ids, mask, keep=1)
    assert short["input_ids"] == [flip([1, X, 2]), flip([3, 4, 5])]
    assert short["attention_mask"] == [[1] * 3] * 2
    ids[1], mask[1] = flip([P, 3, 4, 5, 6]), flip([0, 1, 1, 1, 1])
    short = cut(ids, mask, keep=1)
    assert short["input_ids"] == [flip([P, 1, X, 2]), flip([3, 4, 5, 6])]
    assert short["attention_mask"] == [flip([0, 1, 1, 1]), [1] * 4]


def test_each_row_keeps_its_own_side():
    ids = [[P, X, X, X, 1, 2], [3, X, X, X, 4, P], [1, 2, 3, 4, 5, 6]]
    mask = [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1] * 6]
    short = cut(ids, mask, sizes=(3, 3), keep=1)
    assert short["input_ids"] == [[P, P, P, X, 1, 2], [3, X, 4, P, P, P], [1, 2, 3, 4, 5, 6]]
    assert short["attention_mask"] == [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1] * 6]


def test_without_a_mask_unequal_rows_are_padded_left_and_get_one():
    short = cut([[X, X, X, 1], [2, 3, 4, 5]], keep=1)
    assert short == {"input_ids": [[P, P, X, 1], [2, 3, 4, 5]], "attention_mask": [[0, 0, 1, 1], [1] * 4]}


def test_without_a_mask_equal_rows_need_none():
    assert cut([[X, X, X, 1], [2, X, X, X]], sizes=(3, 3), keep=1) == {"input_ids": [[X, 1], [2, X]]}


def test_masked_holes_stay():
    short = cut([[P, 1, 2, X, X, X, 3]], [[0, 1, 0, 1, 1, 1, 1]], keep=1)
    assert short == {"input_ids": [[1, 2, X, 3]], "attention_mask": [[1, 0, 1, 1]]}


def test_a_row_of_padding_alone_stays_one():
    short = cut([[X, X, X, 1], [P, P, P, P]], [[1] * 4, [0] * 4], keep=1)
    assert short == {"input_ids": [[X, 1], [P, P]], "attention_mask": [[1, 1], [0, 0]]}


def test_what_follows_the_ids():
    short = cut(
        [[P, 1, X, X, X, 2], [3, X, X, X, 4, 5]],
        [[0, 1, 1, 1, 1, 1], [1] * 6],
        sizes=(3, 3),
        labels=[[-100, 1, -100, -100, -100, 2], [3, -100, -100, -100, 4, 5]],
        position_ids=[[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]],
        mm_token_type_ids=[[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]],
        cache_position=[0, 1, 2, 3, 4, 5],
    )
    assert short["labels"] == [[-100, 1, -100, -100, 2], [3, -100, -100, 4, 5]]
    assert short["position_ids"] == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert short["mm_token_type_ids"] == [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    assert short["cache_position"] == [0, 1, 2, 3, 4]


def test_the_first_placeholders_stay():
    assert cut([[1, X, X, X, 2]], labels=[[1, 5, 6, 7, 2]])["labels"] == [[1, 5, 6, 2]]


def test_shared_positions_and_new_padding():
    short = cut(
        [[X, X, X, 1], [2, 3, 4, 5]], keep=1, position_ids=[[7, 8, 9, 10]], labels=[[-100, -100, -100, 1], [2, 3, 4, 5]]
    )
    assert short["position_ids"] == [[0, 0, 7, 8], [7, 8, 9, 10]]
    assert short["labels"] == [[-100, -100, -100, 1], [2, 3, 4, 5]]


def test_a_mask_over_a_cache_keeps_its_front():
    short = cut([[1, X, X, X]], [[0, 1, 1, 1, 1, 1]], keep=1)
    assert short == {"input_ids": [[1, X]], "attention_mask": [[0, 1, 1, 1]]}


@pytest.mark.parametrize(
    ("ids", "sizes", "message"),
    [
        ([[1, X, X]], (3,), r"row 0 has 2 placeholders \(9\), but 1 images of 3 tokens"),
        ([[X, X, X, 1], [X, 2, 2, 2]], (3, 3), "row 1 has 1 placeholders"),
        ([[X, X, X, X, X, X]], (3,), "row 0 has 6 placeholders"),
        ([[X, X, X, 1]], (3, 3), r"placeholders \(9\) for 1 images, but 2 were given"),
        ([[1, 2]], (3,), "for 0 images, but 1 were given"),
    ],
)
def test_placeholders_that_do_not_match_the_images(ids, sizes, message):
    with pytest.raises(ValueError, match=f"input_ids does not match the images: .*{message}.*expand the prompt"):
        cut(ids, sizes=sizes)


def test_what_cannot_be_shortened():
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[B, L\] with L = 4"):
        cut([[1, X, X, X]], [[[[1]]]])
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[B, L\] with L = 4"):
        cut([[1, X, X, X]], [[1, 1]])
    with pytest.raises(ValueError, match="logits_to_keep must be an int"):
        cut([[1, X, X, X]], logits_to_keep=[3])
    with pytest.raises(ValueError, match=r"input_ids must have shape \[B, L\], got \[4\]"):
        cut([1, X, X, X])
