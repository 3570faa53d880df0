"""The choice: sets of candidates of equal shape go through the method together, and come back image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vtkernels import ops
from vtkernels.integrations.transformers.layout import Layout
from vtkernels.methods import Context, Method, Selection


@dataclass(frozen=True)
class Captures:
    """What was captured of some images; None where the method did not ask.

    Attributes:
        features, projected: of the candidates, [R, P, D] (R crops) or flat [M, D].
        query, queries, key, prefix: as in :class:`vtkernels.methods.Context`, for the C calls of the tower.
        flatten: takes scores [C', T - prefix] of the calls that belong to the given layouts to [M'] of their candidates.
        prompt: the fields ``prompt``, ``prompt_ids``, ``prompt_lengths`` of the context, one row per image.
    """

    features: Tensor | None
    projected: Tensor | None
    query: Tensor | None
    queries: Tensor | None
    key: Tensor | None
    prefix: int
    flatten: Callable[[Tensor, Sequence[Layout]], Tensor]
    prompt: dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """What is kept of one image.

    Attributes:
        tokens: [k, D], set by set.
        candidates: int64 [k], which they are; -1 for a zero vector.
        scores: float32 [crops * patches] or None.
    """

    tokens: Tensor
    candidates: Tensor
    scores: Tensor | None


@dataclass(frozen=True, eq=False)
class _Group:
    """Sets of equal size, budget and grid.

    images: the image of each set. layouts: of those images, each once. candidates: int64 [G, n] or None where every set is an
    image of one crop. crops: int64 [G], if each set is a whole crop; index: int64 [G, n] into all candidates of the call, and
    local into those of ``layouts``, otherwise. calls: int64 [C'], calls of the tower that ``layouts`` come from. A tensor that
    would just count up is None.
    """

    n: int
    k: int
    grid: tuple[int, int] | None
    whole: bool
    images: tuple[int, ...]
    layouts: tuple[Layout, ...]
    candidates: Tensor | None
    crops: Tensor | None
    index: Tensor | None
    local: Tensor | None
    calls: Tensor | None
    image_rows: Tensor | None


@dataclass(frozen=True, eq=False)
class Plan:
    """The groups of a call, and for every image where its sets went, with its ranks and extras on the device."""

    layouts: tuple[Layout, ...]
    groups: tuple[_Group, ...]
    places: tuple[tuple[tuple[int, int], ...], ...]  # image -> (group, row) of each part
    ranks: tuple[Tensor, ...]
    extras: tuple[Tensor, ...]


@lru_cache(maxsize=64)
def plan(layouts: tuple[Layout, ...], device: torch.device) -> Plan:
    """The :class:`Plan` of a call with these images. Everything that has to be copied to the device is copied once."""
    first_candidate, first_crop, first_call = _starts(layouts)
    keys: dict[Any, list[tuple[int, int]]] = {}
    for image, layout in enumerate(layouts):
        for number, part in enumerate(layout.parts):
            whole = part.crop is not None and not layout.geometry.pooled
            keys.setdefault((len(part.candidates), part.k, part.grid, whole), []).append((image, number))

    groups: list[_Group] = []
    places = [[(0, 0)] * len(layout.parts) for layout in layouts]
    for (n, k, grid, whole), members in keys.items():
        for row, (image, number) in enumerate(members):
            places[image][number] = (len(groups), row)
        parts = [layouts[image].parts[number] for image, number in members]
        images = tuple(image for image, _ in members)
        own = sorted(set(images))
        candidates = torch.stack([part.candidates for part in parts])
        single = whole and all(layouts[image].geometry.crops == 1 for image in images)
        start_of = dict(zip(own, _starts([layouts[i] for i in own])[0], strict=False))
        crops = torch.tensor([first_crop[i] + (p.crop or 0) for i, p in zip(images, parts, strict=True)])
        calls = torch.cat([torch.arange(first_call[i], first_call[i] + layouts[i].geometry.calls) for i in own])
        groups.append(
            _Group(
                n=n,
                k=k,
                grid=grid,
                whole=whole,
                images=images,
                layouts=tuple(layouts[i] for i in own),
                candidates=None if single else candidates.to(device),
                crops=_unless_counting(crops, first_crop[-1], device) if whole else None,
                index=None if whole else (candidates + torch.tensor([[first_candidate[i]] for i in images])).to(device),
                local=None if whole else (candidates + torch.tensor([[start_of[i]] for i in images])).to(device),
                calls=_unless_counting(calls, first_call[-1], device),
                image_rows=_unless_counting(torch.tensor(images), len(layouts), device),
            )
        )
    return Plan(
        layouts,
        tuple(groups),
        tuple(map(tuple, places)),
        tuple(layout.rank.to(device) for layout in layouts),
        tuple(layout.extras.to(device) for layout in layouts),
    )


def choose(method: Method, plan: Plan, tokens: Tensor, captures: Captures) -> list[Kept]:
    """What ``method`` keeps of every image; ``tokens`` like ``captures.features``."""
    answers = []
    for group in plan.groups:
        selection = _select(method, _context(group, captures, tokens.device), group.k)
        own, indices = _take(tokens, group), selection.indices
        assignment = getattr(selection, "assignment", None)
        kept = ops.gather_tokens(own, indices) if assignment is None else ops.merge_tokens(own, indices, assignment)
        if group.candidates is not None:
            named = group.candidates.gather(1, indices.clamp_min(0))
            indices = torch.where(indices < 0, indices, named)
        answers.append((kept, indices, selection.scores))
    return [_of_image(plan, image, answers) for image in range(len(plan.layouts))]


def ranks(plan: Plan, image: int, kept: Kept) -> Tensor:
    """int64 [k]: where each kept token stands in the prompt's order; zero vectors go last, but before a newline at the end."""
    own, geometry = plan.ranks[image][kept.candidates.clamp_min(0)], plan.layouts[image].geometry
    return own.masked_fill(kept.candidates < 0, len(geometry.order) - geometry.newline_is_end)


def arrange(plan: Plan, image: int, kept: Kept, tokens: Tensor, extras: Tensor | None) -> tuple[Tensor, Tensor]:
    """The visual tokens of an image in the order of the prompt [after, D], and their ranks int64 [after].

    Args:
        tokens: [k, D], those of ``kept``, projected.
        extras: [E, D], the newlines or class tokens of the layout.
    """
    where = ranks(plan, image, kept)
    if extras is not None:
        where, tokens = torch.cat([where, plan.extras[image]]), torch.cat([tokens, extras])
    where, order = where.sort(stable=True)
    return tokens[order], where


def _starts(layouts: Sequence[Layout]) -> tuple[list[int], list[int], list[int]]:
    """First candidate, crop and call of every image, and the totals at the end."""
    starts = ([0], [0], [0])
    for layout in layouts:
        geometry = layout.geometry
        for start, size in zip(starts, (geometry.crops * geometry.patches, geometry.crops, geometry.calls), strict=True):
            start.append(start[-1] + size)
    return starts


def _unless_counting(x: Tensor, total: int, device: torch.device) -> Tensor | None:
    return None if x.equal(torch.arange(total)) else x.to(device)


def _take(x: Tensor, group: _Group) -> Tensor:
    """[G, n, D]: the candidates of a group."""
    if group.whole:
        return x if group.crops is None else x[group.crops]
    return (x.flatten(0, 1) if x.dim() == 3 else x)[group.index]


def _context(group: _Group, captures: Captures, device: torch.device) -> Context:
    def rows(x: Tensor | None, index: Tensor | None) -> Tensor | None:
        return x if x is None or index is None else x[index]

    calls = group.crops if group.whole else group.calls
    flatten = captures.flatten
    return Context(
        batch=len(group.images),
        tokens=group.n,
        device=device,
        grid=group.grid,
        features=None if captures.features is None else _take(captures.features, group),
        projected=None if captures.projected is None else _take(captures.projected, group),
        query=rows(captures.query, calls),
        queries=rows(captures.queries, calls),
        key=rows(captures.key, calls),
        prefix=captures.prefix,
        arrange=None if group.whole else lambda scores: flatten(scores, group.layouts)[group.local],
        **{name: rows(x, group.image_rows) for name, x in captures.prompt.items()},
    )


def _of_image(plan: Plan, image: int, answers: list[tuple[Tensor, Tensor, Tensor | None]]) -> Kept:
    places, layout = plan.places[image], plan.layouts[image]
    parts = [_of_set(*answers[group], row) for group, row in places]
    if len(parts) == 1 and plan.groups[places[0][0]].candidates is None:
        return parts[0]
    scores = None
    own = [part.scores for part in parts if part.scores is not None]
    if own and len(own) == len(parts):
        total = layout.geometry.crops * layout.geometry.patches
        scores = torch.full((total,), torch.nan, device=own[0].device)
        for (group, row), part_scores in zip(places, own, strict=True):
            candidates = plan.groups[group].candidates
            assert candidates is not None  # but for an image that is one set
            scores[candidates[row]] = part_scores
    return Kept(torch.cat([part.tokens for part in parts]), torch.cat([part.candidates for part in parts]), scores)


def _of_set(tokens: Tensor, candidates: Tensor, scores: Tensor | None, row: int) -> Kept:
    return Kept(tokens[row], candidates[row], None if scores is None else scores[row])


def _select(method: Method, context: Context, k: int) -> Selection:
    """The method's answer, checked as far as it can be without reading it."""
    with torch.no_grad():
        selection = method.select(context, k)
    who = f"{type(method).__name__}.select"
    indices = getattr(selection, "indices", None)
    if not isinstance(indices, Tensor):
        raise TypeError(f"{who} must return vt.Selection(indices, scores), got {type(selection).__name__}")
    if indices.dtype != torch.int64 or indices.shape != (context.batch, k):
        raise ValueError(
            f"{who} must return int64 indices of shape {[context.batch, k]}, got {indices.dtype} {list(indices.shape)}"
        )
    assignment = getattr(selection, "assignment", None)
    if assignment is not None and (assignment.dtype != torch.int64 or assignment.shape != (context.batch, context.tokens)):
        raise ValueError(
            f"{who} must return an int64 assignment of shape {[context.batch, context.tokens]} or None, got "
            f"{assignment.dtype} {list(assignment.shape)}"
        )
    return selection
