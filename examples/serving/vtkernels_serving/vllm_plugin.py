"""What vLLM calls in every process (entry point ``vllm.general_plugins``): names of models, imported only when one is used."""


def register() -> None:
    from vllm import ModelRegistry

    for name, module in (
        ("VtkernelsLlavaForConditionalGeneration", "vllm_llava"),
        ("VtkernelsQwen2_5_VLForConditionalGeneration", "vllm_qwen2_5_vl"),
    ):
        ModelRegistry.register_model(name, f"vtkernels_serving.{module}:{name}")
