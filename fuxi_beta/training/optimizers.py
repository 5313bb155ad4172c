"""Row-wise Adagrad, and AdamW whose state exists before the first step.

Checkpoints address every optimizer tensor by name, so the state must exist before a checkpoint is loaded; PyTorch's
optimizers create it in the first step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.config import TrainConfig


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row, exactly as FBGEMM's `EXACT_ROWWISE_ADAGRAD` without weight decay.

    For every row with gradient g: `accumulator += mean(g^2)`, then `row -= lr * g / (sqrt(accumulator) + eps)`.
    Takes dense gradients and sparse ones (which update only their rows). Like PyTorch's fused optimizers it changes
    nothing if the tensor `found_inf` is set and not 0, which it reads on the device without waiting.
    """

    found_inf: Tensor | None = None

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["accumulator"] = torch.zeros(parameter.shape[0], device=parameter.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("RowwiseAdagrad.step takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["eps"])

    def _update(self, parameter: nn.Parameter, lr: float, eps: float) -> None:
        accumulator, gradient = self.state[parameter]["accumulator"], parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()  # [R], [R, D]
            ops.rowwise_adagrad(parameter, accumulator, rows, values, lr=lr, eps=eps, skip=self.found_inf)
            return
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf == 0, gradient, 0.0)
        accumulator += gradient.square().mean(dim=1)
        parameter -= lr * gradient / (accumulator.sqrt() + eps).unsqueeze(1)


def adamw(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.AdamW:
    """AdamW with the paper's settings from `train`; its moments and step counts exist before the first step.

    On a GPU it is one kernel for all parameters and takes `found_inf`.
    """
    parameters = list(parameters)
    fused = bool(parameters) and all(parameter.device.type == "cuda" for parameter in parameters)
    optimizer = torch.optim.AdamW(
        parameters, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=fused or None
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def named_state(optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """The live tensors of an optimizer's state as "<state>.<parameter name>"; writing into them changes the state."""
    return {f"{key}.{name}": value for name, parameter in named for key, value in optimizer.state[parameter].items()}
