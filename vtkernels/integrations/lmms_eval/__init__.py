"""lmms-eval: ``lmms-eval --model llava_hf_vtkernels --model_args pretrained=...,method=scope,keep=64``; see docs/lmms-eval.md.

An entry point of the group ``lmms_eval.models`` names :func:`manifests`, so lmms-eval knows the model wherever both packages
are installed. Nothing here imports lmms-eval before it asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["manifests"]


def manifests() -> list[ModelManifest]:
    """The model, as lmms-eval registers it: a class for tasks with messages and one for ``--force_simple``, as of llava_hf."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "vtkernels.integrations.lmms_eval.models"
    return [
        ModelManifest(
            model_id="llava_hf_vtkernels",
            simple_class_path=f"{module}.PrunedLlavaHf",
            chat_class_path=f"{module}.PrunedLlavaHfChat",
        )
    ]
