"""`kernels benchmark`: fused selection against its definition in plain PyTorch, at the shapes of LLaVA-1.5 and LLaVA-NeXT."""

from __future__ import annotations

import torch
from kernels.benchmark import Benchmark


class ScopeSelect(Benchmark):
    seed = 0

    def _draw(self, tokens: int) -> None:
        self.features = torch.randn(1, tokens, 1024, device=self.device)
        self.saliency = torch.rand(1, tokens, device=self.device)
        self.out = torch.empty(1, tokens // 9, dtype=torch.int64, device=self.device)

    def _select(self) -> None:
        self.kernel.scope_select(self.features, self.saliency, self.out.shape[1], out=self.out)

    def _define(self) -> torch.Tensor:
        return self.kernel.reference.scope_select(self.features, self.saliency, self.out.shape[1])

    def setup_llava(self) -> None:
        self._draw(576)

    def benchmark_llava(self) -> None:
        self._select()

    def verify_llava(self) -> torch.Tensor:
        return self._define()

    def setup_llava_next(self) -> None:
        self._draw(2880)

    def benchmark_llava_next(self) -> None:
        self._select()

    def verify_llava_next(self) -> torch.Tensor:
        return self._define()
