"""Visual token pruning inside serving engines: an engine-independent core, and thin adapters for vLLM and SGLang."""
