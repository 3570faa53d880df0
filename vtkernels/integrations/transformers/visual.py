"""One kind of visual input of a model, images or videos: from its placeholders in the prompt to the tokens that are kept."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.transformers import prompt, selection
from vtkernels.integrations.transformers.attach import Attachments, named_arguments
from vtkernels.integrations.transformers.budget import check
from vtkernels.integrations.transformers.capture import ENCODING, Encoding, Tower
from vtkernels.integrations.transformers.layout import Geometry, Layout, lay_out
from vtkernels.integrations.transformers.selection import Captures, Kept, Plan
from vtkernels.methods import Method, Policy

if TYPE_CHECKING:
    from vtkernels.integrations.transformers.pruning import Pruning

_CAPTURES = ("features", "projected", "saliency", "class_attention", "attention_profile", "prompt")
_OF_A_LAYER = frozenset({"saliency", "class_attention", "attention_profile"})
UNHOOKED = (
    "the projector ran without the pruning's hooks, because torch.compile left them out: leave the projector uncompiled, or "
    "set torch._dynamo.config.skip_nnmodule_hook_guards = False first"
)


class Visual(ABC):
    """Images (or videos) of a pruned model.

    The model's ``encode`` method is wrapped for the length of a call, in which hooks on the projector find what to do in
    ``ENCODING``. A method that needs no projected tokens chooses before the projector, which then sees kept tokens alone.
    """

    noun = "images"
    kind = "image"
    encode = "get_image_features"
    pixels: tuple[str, ...] = ("pixel_values",)
    tower_name = "vision_tower"
    projector_name = "multi_modal_projector"
    budgets: tuple[str, ...] = ("per_crop", "per_branch", "joint")

    def __init__(self, pruning: Pruning) -> None:
        self.pruning = pruning
        self.tower = Tower(getattr(self.core, self.tower_name))
        self._layouts: dict[Any, Layout] = {}
        self._said = False

    # ---------------------------------------------------------------------------------------------- the model

    @property
    def core(self) -> Any:
        """The model without its head, of a class that has members of its own."""
        return self.pruning.model.model

    @property
    def config(self) -> Any:
        return self.pruning.model.config

    @property
    def method(self) -> Method:
        return self.pruning.method

    @property
    def token(self) -> int:
        """Id of the placeholder."""
        token: int = getattr(self.config, f"{self.kind}_token_id")
        return token

    def feature_layer(self, arguments: dict[str, Any]) -> int | Sequence[int]:
        """The layer, or layers, whose output the model takes."""
        given: int | Sequence[int] | None = arguments.get("vision_feature_layer")
        own: int | Sequence[int] = self.config.vision_feature_layer
        return own if given is None else given

    def strategy(self, arguments: dict[str, Any]) -> str:
        """``"default"``: the first token of the tower is dropped; ``"full"``: all are taken."""
        strategy: str = arguments.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        return strategy

    def class_tokens(self, strategy: str) -> int:
        """Class tokens among the visual tokens of a crop: always kept."""
        return self.tower.prefix if strategy == "full" else 0

    def patches(self, strategy: str) -> int:
        """Candidates that the tower gives per crop."""
        rows, columns = self.tower.grid
        # "default" drops the first token of the tower, which is a patch where there is no class token
        dropped = 1 if strategy == "default" else 0
        return self.tower.prefix + rows * columns - dropped - self.class_tokens(strategy)

    def grid(self, strategy: str) -> tuple[int, int] | None:
        """Rows and columns of the candidates of a crop, if they fill a grid."""
        rows, columns = self.tower.grid
        return (rows, columns) if rows * columns == self.patches(strategy) else None

    # ---------------------------------------------------------------------------------------------- what a family says

    def check(self) -> None:
        """What can be refused before anything is attached.

        Raises:
            ValueError: the method needs what the model does not have, or cannot keep that many of its tokens.
        """
        name = type(self.method).__name__
        unknown = sorted(set(self.method.needs) - set(_CAPTURES))
        if unknown:
            raise ValueError(f"method {name} needs {unknown}, but this model offers {', '.join(_CAPTURES)}")
        if "class_attention" in self.method.needs and not self.tower.prefix:
            raise ValueError(
                f"method {name} needs the attention of a class token, which {self.tower.name} does not have; a method that "
                f"needs 'saliency' gets the attention received instead"
            )
        if self.needs_layer:
            self.tower.layer_of(self.feature_layer({}))
        if "budget" in self.pruning.options.given and self.pruning.options.budget not in self.budgets:
            own = getattr(self.method, "policy", Policy()).budgets
            both = [budget for budget in self.budgets if budget in own] or self.budgets
            raise ValueError(
                f"budget must be {' or '.join(map(repr, both))} with {name} for the {self.noun} of "
                f"{type(self.pruning.model).__name__}, got {self.pruning.options.budget!r}"
            )
        self.check_keep()

    def check_keep(self) -> None:
        """That ``keep`` can be kept, as far as that is known before there is an image."""
        check(self.pruning.keep)

    def count(self, arguments: dict[str, Any]) -> int:
        """Images whose pixels come with a call."""
        given = [arguments[name] for name in self.pixels if arguments.get(name) is not None]
        return len(given[0]) if given else 0

    @abstractmethod
    def layouts(self, arguments: dict[str, Any], count: int) -> list[Layout] | None:
        """The layout of each of ``count`` images, or None where ``arguments`` do not say it."""

    def check_frames(self, videos: Tensor) -> None:
        """That videos have a dimension of frames.

        Raises:
            ValueError: they have not.
        """
        if videos.dim() != 5:
            raise ValueError(f"{self.pixels[0]} must have shape [videos, frames, 3, H, W], got {list(videos.shape)}")

    # ---------------------------------------------------------------------------------------------- the prompt

    @property
    def needs_layer(self) -> bool:
        return not _OF_A_LAYER.isdisjoint(self.method.needs)

    def layout(self, key: Any, geometry: Callable[[], Geometry], *, clip: bool = True) -> Layout:
        """The layout of a geometry; made once for each ``key``."""
        if key not in self._layouts:
            options = self.pruning.options
            if options.budget not in self.budgets:
                options = options.with_budget(self.budgets[0])
            self._layouts[key] = lay_out(geometry(), self.method, self.pruning.keep, options, clip=clip)
        layout = self._layouts[key]
        if clip and self.pruning.keep > layout.most and not self._said:
            self._said = True
            warnings.warn(
                f"keep = {self.pruning.keep} is more than the {layout.most} patch tokens that the prompt has for one of the "
                f"{self.noun}: that one keeps {layout.most} (said once)",
                stacklevel=2,
            )
        return layout

    def placeholders(self, arguments: dict[str, Any], name: str, count: int) -> prompt.Placeholders:
        """The placeholders of ``count`` images; where the call does not say their sizes, of all that the prompt holds.

        Raises:
            ValueError: the prompt holds images of unknown size.
        """
        layouts = self.layouts(arguments, count)
        if layouts is None:
            layouts = self._seen(arguments[name])
        return prompt.Placeholders(self.noun, self.token, [x.before for x in layouts], [x.after for x in layouts])

    def _seen(self, ids: Tensor) -> list[Layout]:
        """The images of a prompt, told by the lengths of their placeholders from those that came before."""
        sizes = {layout.before: layout for layout in self._layouts.values()}
        found: list[Layout] = []
        for run in prompt.runs(ids, self.token):
            split = _split(run, sorted(sizes, reverse=True))
            if split is None:
                raise ValueError(
                    f"the prompt has {run} placeholders ({self.token}) in a row, which are no whole number of {self.noun} seen "
                    f"so far ({', '.join(map(str, sorted(sizes))) or 'none'} tokens each); give the {self.noun} with the prompt"
                )
            found += [sizes[size] for size in split]
        return found

    # ---------------------------------------------------------------------------------------------- the pixels

    def attach(self, attachments: Attachments) -> None:
        """Wrap and hook what this kind of input goes through."""
        # torch.compile would leave out the hooks on which the choice depends
        attachments.wrap(self.core, self.encode, self._encode, compiled=False)
        if self.needs_layer:
            self.tower.watch(self.tower.layer_of(self.feature_layer({})), attachments)

    def _encode(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.pruning.attached:
            return original(*args, **kwargs)
        arguments = named_arguments(original, args, kwargs)
        layouts = self.layouts(arguments, self.count(arguments))
        if layouts is None:
            raise ValueError(f"{self.encode} needs {' or '.join(self.pixels)}")
        encoding = Encoding(self, arguments, tuple(layouts))
        if self.needs_layer:
            encoding.layer = self.tower.layer_of(self.feature_layer(arguments))
            self.tower.watch(encoding.layer, self.pruning.attachments)
        hook_projector(getattr(self.core, self.projector_name), self.pruning.attachments)
        token = ENCODING.set(encoding)
        try:
            result = original(*args, **kwargs)
        finally:
            ENCODING.reset(token)
        return self.finish(encoding, result)

    def before_projector(self, encoding: Encoding, features: Tensor) -> Tensor:
        """What the projector gets of ``features`` [R, V, D]: those that are kept of all images, [1, M, D]."""
        if "projected" in self.method.needs:
            encoding.features = features
            return features
        fixed = self._fixed(encoding, features)
        encoding.rows, encoding.visible = features.shape[:2]
        plan = selection.plan(encoding.layouts, features.device)
        encoding.kept = self._choose(encoding, plan, features[:, fixed:], features, None)
        parts = []
        for image, kept in enumerate(encoding.kept):
            parts.append(kept.tokens)
            if fixed:
                parts.append(self._class_tokens(plan, image, features, fixed))
        return torch.cat(parts).unsqueeze(0)

    def after_projector(self, encoding: Encoding, projected: Tensor) -> Tensor:
        """Arrange what is kept; the model goes on with a stand-in of the shape that it expects."""
        plan = selection.plan(encoding.layouts, projected.device)
        if encoding.kept is None:
            assert encoding.features is not None  # before_projector has left them
            fixed = self._fixed(encoding, projected)
            encoding.rows, encoding.visible = projected.shape[:2]
            encoding.kept = self._choose(encoding, plan, projected[:, fixed:], encoding.features, projected)
            tokens = [kept.tokens for kept in encoding.kept]
            own = [self._class_tokens(plan, i, projected, fixed) if fixed else None for i in range(len(tokens))]
        else:
            sizes = [n for layout in encoding.layouts for n in (len_kept(layout), self._class_count(layout))]
            pieces = projected.squeeze(0).split(sizes)
            tokens, own = list(pieces[::2]), [x if len(x) else None for x in pieces[1::2]]
        encoding.tokens = []
        for image, (kept, x, extras) in enumerate(zip(encoding.kept, tokens, own, strict=True)):
            layout = encoding.layouts[image]
            self.arrange(encoding, plan, image, kept, x, self.newlines(layout, x) if extras is None else extras)
        return projected.new_zeros(()).expand(encoding.rows, encoding.visible, projected.shape[-1])

    def finish(self, encoding: Encoding, result: Any) -> Any:
        """Put the kept tokens where the model's result holds the visual tokens.

        Raises:
            RuntimeError: a compiled projector ran without its hooks.
        """
        if encoding.tokens is None:
            raise RuntimeError(UNHOOKED)
        self.pruning.keep_record(self, encoding)
        return replace_features(result, encoding.tokens)

    def flatten(self, encoding: Encoding, scores: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Scores [C, P] of the tower's patches as scores [M] of the candidates of ``layouts``."""
        return scores.flatten()

    def arrange(self, encoding: Encoding, plan: Plan, image: int, kept: Kept, tokens: Tensor, extras: Tensor | None) -> None:
        """Add the tokens of an image to the encoding, in the order of the prompt."""
        layout = plan.layouts[image]
        assert encoding.tokens is not None  # the caller has begun
        if layout.in_order:
            encoding.tokens.append(tokens)
            if self.pruning.options.positions == "original":
                encoding.ranks.append(selection.ranks(plan, image, kept))
            return
        tokens, ranks = selection.arrange(plan, image, kept, tokens, extras)
        encoding.tokens.append(tokens)
        encoding.ranks.append(ranks)

    # ---------------------------------------------------------------------------------------------- inside

    def _choose(self, encoding: Encoding, plan: Plan, tokens: Tensor, features: Tensor, projected: Tensor | None) -> list[Kept]:
        fixed = features.shape[1] - tokens.shape[1]
        return selection.choose(
            self.method,
            plan,
            tokens,
            self.captures(
                encoding,
                tokens.device,
                features[:, fixed:].detach() if "features" in self.method.needs else None,
                None if projected is None else projected[:, fixed:].detach(),
            ),
        )

    def captures(self, encoding: Encoding, device: torch.device, features: Tensor | None, projected: Tensor | None) -> Captures:
        """Everything that the method asked for."""
        needs, query, queries, key, prefix = self.method.needs, None, None, None, 0
        if self.needs_layer:
            all_queries, key = (x.to(device) for x in self.tower.attention(encoding))
            prefix = key.shape[2] - self.patches(self.strategy(encoding.arguments))
            one = self.tower.prefix and not needs.isdisjoint({"saliency", "class_attention"})
            query = all_queries[:, :, 0] if one else None
            queries = None if one and "attention_profile" not in needs else all_queries
        return Captures(
            features=features,
            projected=projected,
            query=query,
            queries=queries,
            key=key,
            prefix=prefix,
            flatten=lambda scores, layouts: self.flatten(encoding, scores, layouts),
            prompt=self.pruning.prompt_of(self, len(encoding.layouts), device) if "prompt" in needs else {},
        )

    def _fixed(self, encoding: Encoding, tokens: Tensor) -> int:
        """Class tokens in front of the candidates, after a look at the shape."""
        strategy = self.strategy(encoding.arguments)
        fixed, candidates = self.class_tokens(strategy), encoding.layouts[0].geometry.patches
        crops = sum(layout.geometry.crops for layout in encoding.layouts)
        if tokens.shape[:2] != (crops, fixed + candidates):
            raise ValueError(
                f"the vision tower gave {tokens.shape[0]} crops of {tokens.shape[1]} tokens, but the model's config and "
                f"{self.pixels[0]} promise {crops} of {fixed + candidates}; vt.prune needs {self.noun} of the size in the "
                f"config"
            )
        return fixed

    def newlines(self, layout: Layout, like: Tensor) -> Tensor | None:
        """The newline tokens that a layout keeps, [E, D]."""
        return self.core.image_newline.to(like).expand(layout.newlines, -1) if layout.newlines else None

    def _class_count(self, layout: Layout) -> int:
        return len(layout.extras) - layout.newlines

    def _class_tokens(self, plan: Plan, image: int, tokens: Tensor, fixed: int) -> Tensor:
        start = sum(layout.geometry.crops for layout in plan.layouts[:image])
        return tokens[start : start + plan.layouts[image].geometry.crops, :fixed].flatten(0, 1)


def len_kept(layout: Layout) -> int:
    """Candidates that a layout keeps."""
    return layout.after - len(layout.extras)


def hook_projector(projector: nn.Module, attachments: Attachments) -> None:
    """The hooks hold no reference to the pruning: a copy of the projector, inside an adapter, may carry them."""
    if attachments.first(projector):
        attachments.hook(projector.register_forward_pre_hook, _before_projector)
        attachments.hook(projector.register_forward_hook, _after_projector)


def hooked_projectors(projector: nn.Module) -> list[nn.Module]:
    """Where these hooks are: not on the projector itself, if an adapter has wrapped or copied it since."""
    return [part for part in projector.modules() if _before_projector in part._forward_pre_hooks.values()]


def _before_projector(projector: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    encoding = ENCODING.get()
    if encoding is None or encoding.entered:  # an adapter around the projector carries the hooks, too
        return None
    encoding.entered = True
    return (encoding.visual.before_projector(encoding, args[0]), *args[1:])


def _after_projector(projector: nn.Module, args: tuple[Tensor, ...], projected: Tensor) -> Tensor | None:
    encoding = ENCODING.get()
    if encoding is None or encoding.left:
        return None
    encoding.left = True
    return encoding.visual.after_projector(encoding, projected)


def features_of(result: Any) -> Any:
    """What a model's ``get_*_features`` returns holds: transformers 5 in an output object, 4 as it is (maybe with a count)."""
    if hasattr(result, "pooler_output"):
        return result.pooler_output
    return result[0] if isinstance(result, tuple) and isinstance(result[-1], int) else result


def replace_features(result: Any, tokens: list[Tensor]) -> Any:
    """The result with ``tokens`` [after, D] of each image in place of the visual tokens."""
    before = features_of(result)
    if isinstance(before, Tensor):
        after: Any = torch.stack(tokens)
    else:
        extra = before[0].dim() - 2 if len(before) else 0
        after = [x.view(*[1] * extra, *x.shape) for x in tokens]
    if hasattr(result, "pooler_output"):
        result.pooler_output = after
        return result
    return (after, *result[1:]) if isinstance(result, tuple) and isinstance(result[-1], int) else after


def _split(total: int, sizes: Sequence[int]) -> list[int] | None:
    """``total`` as a sum of ``sizes``, the greatest first, or None."""
    if not total:
        return []
    for size in sizes:
        if size <= total and (rest := _split(total - size, sizes)) is not None:
            return [size, *rest]
    return None
