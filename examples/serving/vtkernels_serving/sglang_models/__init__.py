"""Models for ``SGLANG_EXTERNAL_MODEL_PACKAGE=vtkernels_serving.sglang_models``: SGLang imports every module of this package."""
