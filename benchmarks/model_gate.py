"""What has to hold of a model that is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vtkernels as vt
from vtkernels.cli._model import side_of

from . import models, selectors
from .harness import SAME, UNCOMPARED, RedGate, reason


def check(model: Any, batch: dict[str, Tensor], methods: dict[str, Any], keeps: list[int]) -> dict[tuple[str, int], str]:
    """Every choice that will be timed, on the batch it will be timed on, as :class:`selectors.Gate` compares it.

    (method, budget) -> ``same``, or ``red:`` or ``not compared:`` and why.
    """
    verdicts: dict[tuple[str, int], str] = {}
    for keep in keeps:
        for gate in selectors.gates(methods):
            failed = ""
            try:
                with models.without_language_layers(model), torch.no_grad(), vt.prune(model, gate, keep):
                    model(**batch, use_cache=False, logits_to_keep=1)
            except Exception as error:  # of this gate: too little memory for its reference, say
                failed = f"{UNCOMPARED}: {reason(error)}"
            verdicts |= {(name, keep): failed or gate.verdicts[name] for name in gate.members}
    return verdicts


def by_hand(model: Any, batch: dict[str, Tensor], keep: int) -> str:
    """``check_by_hand`` as a verdict."""
    try:
        check_by_hand(model, batch, keep)
    except RedGate as error:
        return f"red: {error}"
    except Exception as error:
        return f"{UNCOMPARED}: {reason(error)}"
    return SAME


def check_by_hand(model: Any, batch: dict[str, Tensor], keep: int) -> None:
    """A pruned prompt is the unpruned model's features at the kept places, without newlines, between the same words.

    Compared for the first request: what the language model is given, token by token, and the logits it answers with.

    Raises:
        RedGate: they differ.
    """
    one = {name: tensor[:1] for name, tensor in batch.items()}
    ids, core = one["input_ids"][0], model.model
    exact = next(model.parameters()).dtype == torch.float32
    given: list[Tensor] = []
    hook = core.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: given.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            with vt.prune(model, vt.Scope(), keep) as pruning:
                logits = model(**one, use_cache=False, logits_to_keep=1).logits
            words = model.get_input_embeddings()(ids)
            images = {name: tensor for name, tensor in one.items() if name in ("pixel_values", "image_sizes")}
            features = core.get_image_features(**images)
            features = getattr(features, "pooler_output", features)[0]  # transformers 4 returns the list itself
            places = _places(model.config).to(ids.device)[pruning.last.indices[0]].sort().values
            image = (ids == model.config.image_token_id).nonzero().squeeze(1)
            hand = torch.cat([words[: image[0]], features[places], words[image[-1] + 1 :]])[None]
            mask = torch.ones(hand.shape[:2], dtype=torch.int64, device=ids.device)
            expected = model(inputs_embeds=hand, attention_mask=mask, use_cache=False, logits_to_keep=1).logits
    finally:
        hook.remove()
    pairs = {"the prompt": (given[0], hand), "the logits": (logits, expected)}
    for what, (got, want) in pairs.items():
        if got.shape != want.shape:
            raise RedGate(f"pruned by hand, {what} is {list(want.shape)}, not {list(got.shape)}")
        off = ((got - want).float().norm(dim=-1) / want.float().norm(dim=-1).clamp_min(1e-12)).max().item()
        if not off <= (1e-3 if exact else 5e-2):
            raise RedGate(f"pruned by hand, {what} differs by {off:.1%}")


def _places(config: Any) -> Tensor:
    """int64 [candidates]: where each stands among the unpruned visual tokens. A row of LLaVA-NeXT's grid ends in a newline."""
    side = side_of(config)
    if models.crops(config) == 1:
        return torch.arange(side**2)
    grid = torch.arange(2 * side * (2 * side + 1)).view(2 * side, 2 * side + 1)[:, :-1]
    tiles = grid.unflatten(0, (2, side)).unflatten(2, (2, side)).transpose(1, 2)
    return torch.cat([torch.arange(side**2), side**2 + tiles.flatten()])
