"""LLaVA-1.5: one image, one grid of patches, projected as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtkernels import ops
from vtkernels.integrations.transformers.attach import named_arguments
from vtkernels.integrations.transformers.capture import ENCODING, Encoding, Tower
from vtkernels.integrations.transformers.pruning import Pruning
from vtkernels.methods import Context, Method

_CAPTURES = ("features", "projected", "class_attention", "attention_profile", "prompt")
_OF_A_LAYER = frozenset({"class_attention", "attention_profile"})


class LlavaPruning(Pruning):
    """Pruning of a ``LlavaForConditionalGeneration``: between the vision tower and the projector."""

    def __init__(self, model: nn.Module, method: Method, keep: int | float) -> None:
        super().__init__(model, method, keep)
        self._tower = Tower(model.model.vision_tower)
        self._check_needs()
        strategy = model.config.vision_feature_select_strategy
        self._budget(self._candidates(strategy), self._grid(strategy))

    def _check_needs(self) -> None:
        name = type(self.method).__name__
        unknown = sorted(set(self.method.needs) - set(_CAPTURES))
        if unknown:
            raise ValueError(f"method {name} needs {unknown}, but this model offers {', '.join(_CAPTURES)}")
        if "class_attention" in self.method.needs and not self._tower.prefix:
            raise ValueError(
                f"method {name} needs the attention of a class token, which {self._tower.name} does not have; use "
                f"vt.FoPru(), vt.GPrune(), vt.Random(), vt.Uniform() or a method of your own that needs 'features' or "
                f"'projected'"
            )
        if self._needs_layer:
            self._tower.layer_of(self.model.config.vision_feature_layer)

    @property
    def _needs_layer(self) -> bool:
        return not _OF_A_LAYER.isdisjoint(self.method.needs)

    def _attach(self) -> None:
        projector = self.model.model.multi_modal_projector
        self._attachments.wrap(self.model.model, "get_image_features", self._get_image_features)
        if "projected" in self.method.needs:
            self._attachments.hook(projector.register_forward_hook, self._after_projector)
        else:
            self._attachments.hook(projector.register_forward_pre_hook, self._before_projector)
        if self._needs_layer:
            self._tower.watch(self._tower.layer_of(self.model.config.vision_feature_layer), self._attachments)

    def _fixed(self, strategy: str) -> int:
        """Class tokens among the visual tokens: always kept, in front."""
        return self._tower.prefix if strategy == "full" else 0

    def _candidates(self, strategy: str) -> int:
        rows, columns = self._tower.grid
        # "default" drops the first token of the tower, which is a patch where there is no class token
        dropped = 1 if strategy == "default" else 0
        return self._tower.prefix + rows * columns - dropped - self._fixed(strategy)

    def _grid(self, strategy: str) -> tuple[int, int] | None:
        rows, columns = self._tower.grid
        return (rows, columns) if rows * columns == self._candidates(strategy) else None

    def _sizes(self, arguments: dict[str, Any], ids: Tensor, images: int | None) -> tuple[list[int], list[int]]:
        strategy = self._strategy(arguments)
        candidates, fixed = self._candidates(strategy), self._fixed(strategy)
        if images is None:
            images = int((ids == self.model.config.image_token_id).sum()) // (candidates + fixed)
        return [candidates + fixed] * images, [self._budget(candidates, self._grid(strategy)) + fixed] * images

    def _strategy(self, arguments: dict[str, Any]) -> str:
        return arguments.get("vision_feature_select_strategy") or self.model.config.vision_feature_select_strategy

    def _get_image_features(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._attached:
            return original(*args, **kwargs)
        arguments = named_arguments(original, args, kwargs)
        encoding = Encoding(layer=None, strategy=self._strategy(arguments))
        if self._needs_layer:
            feature_layer = arguments.get("vision_feature_layer")
            if feature_layer is None:
                feature_layer = self.model.config.vision_feature_layer
            encoding.layer = self._tower.layer_of(feature_layer)
            self._tower.watch(encoding.layer, self._attachments)
        token = ENCODING.set(encoding)
        try:
            return original(*args, **kwargs)
        finally:
            ENCODING.reset(token)

    def _before_projector(self, projector: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        encoding = ENCODING.get()
        if encoding is None:
            return None
        return (self._prune(encoding, args[0], args[0], None), *args[1:])

    def _after_projector(self, projector: nn.Module, args: tuple[Tensor, ...], projected: Tensor) -> Tensor | None:
        encoding = ENCODING.get()
        if encoding is None:
            return None
        return self._prune(encoding, projected, args[0], projected)

    def _prune(self, encoding: Encoding, tokens: Tensor, features: Tensor, projected: Tensor | None) -> Tensor:
        """Kept rows of ``tokens`` [B, fixed + N, D], the class token in front where the strategy keeps it."""
        fixed, candidates = self._fixed(encoding.strategy), self._candidates(encoding.strategy)
        visible = tokens.shape[1]
        if visible != fixed + candidates:
            raise ValueError(
                f"the vision tower gave {visible} tokens per image, but its config promises {fixed + candidates}; "
                f"vt.prune needs images of the size in the model's config"
            )
        k = self._budget(candidates, self._grid(encoding.strategy))
        selection = self._select(self._context(encoding, features, projected, fixed, candidates), k)
        assignment = getattr(selection, "assignment", None)
        if assignment is None:
            kept = ops.gather_tokens(tokens[:, fixed:], selection.indices)
        else:
            kept = ops.merge_tokens(tokens[:, fixed:], selection.indices, assignment)
        if fixed:
            kept = torch.cat([tokens[:, :fixed], kept], dim=1)
        self._keep_record(selection, visible, k + fixed)
        return kept

    def _context(self, encoding: Encoding, features: Tensor, projected: Tensor | None, fixed: int, candidates: int) -> Context:
        needs = self.method.needs
        captured: dict[str, Any] = {}
        if "features" in needs:
            captured["features"] = features[:, fixed:].detach()
        if projected is not None:
            captured["projected"] = projected[:, fixed:].detach()
        if self._needs_layer:
            queries, key = (x.to(features.device) for x in self._tower.attention(encoding))
            captured |= {"key": key, "prefix": key.shape[2] - candidates}
            if "class_attention" in needs:
                captured["query"] = queries[:, :, 0]
            if "attention_profile" in needs:
                captured["queries"] = queries
        if "prompt" in needs:
            captured |= self._prompt(features.shape[0], features.device)
        return Context(features.shape[0], candidates, features.device, self._grid(encoding.strategy), **captured)
