"""MFFN, the multistage feed-forward network of FuXi-alpha that closes each block (section 5.4, equation 16).

Shapes: `T` packed tokens, `D` width, `C` channels of the token mixer: 2 D in FuXi-beta, 3 D in FuXi-alpha.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.layers.precision import operand_dtype, product
from fuxi_beta.ops import reference


class MultistageFFN(nn.Module):
    """Stage one joins the mixer's output with the residual stream, stage two is a SwiGLU of its norm.

    o = Linear(dropout(mixed)) + x;  m = dropout(RMSNorm(o));  y = W2(SiLU(W1 m) * W3 m) + o.
    """

    def __init__(self, dim: int, hidden: int, *, channels: int = 2) -> None:
        super().__init__()
        self.merge = nn.Linear(channels * dim, dim)
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias=False)  # W1 | W3
        self.down = nn.Linear(hidden, dim, bias=False)  # W2
        self.bf16 = False  # the three products
        nn.init.xavier_uniform_(self.merge.weight)
        nn.init.xavier_uniform_(self.gate_and_up.weight[:hidden])
        nn.init.xavier_uniform_(self.gate_and_up.weight[hidden:])
        nn.init.xavier_uniform_(self.down.weight)

    def forward(self, mixed: Tensor, x: Tensor, mask: Mask | None) -> Tensor:
        """mixed: [T, C], after dropout; x: [T, D]; mask: of the dropout between the stages -> y [T, D]."""
        # A compiler fuses plain torch, and cannot look into kernels.
        operators = reference if torch.compiler.is_compiling() else ops
        joined = product(self.merge, mixed, bf16=self.bf16) + x
        normed = operators.rms_norm(joined, mask, mixed.dtype)
        inner = operators.swiglu(product(self.gate_and_up, normed, bf16=self.bf16))
        return product(self.down, inner, bf16=self.bf16) + joined


def compile_all(layers: Sequence[MultistageFFN], dropout: float) -> None:
    """Compile both passes of all layers, once for every number of tokens. dropout: its rate. Takes 10 to 20 s.

    Where that fails there is one warning and the layers stay as they are.
    """
    try:
        compiled = [_compiled(layer.forward) for layer in layers]
        for forward, layer in zip(compiled, layers, strict=True):
            _try(forward, layer, dropout)
    except Exception as error:  # whatever a compiler fails with must not stop a run
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(f"train.compile has no effect: the MFFN could not be compiled ({reason})", stacklevel=2)
        return
    for forward, layer in zip(compiled, layers, strict=True):
        layer.forward = forward


def _compiled(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(plain, dynamic=True)

    def forward(mixed: Tensor, x: Tensor, mask: Mask | None) -> Tensor:
        # None or one token, or no gradient, would each be compiled anew in the midst of a run.
        return (compiled if len(x) > 1 and torch.is_grad_enabled() else plain)(mixed, x, mask)

    return forward


def _try(forward: Callable[..., Tensor], layer: MultistageFFN, dropout: float) -> None:
    """Both passes, so that a run has nothing left to compile, hence nothing to fail at."""
    dim, channels = layer.merge.weight.shape
    device = layer.merge.weight.device
    for tokens in (8, 8192):  # the compiler sums more than 4096 of them in another way
        mask = Mask(torch.arange(tokens, device=device), dropout) if dropout else None
        x = torch.ones(tokens, dim, device=device, requires_grad=True)
        dtype = operand_dtype(x, bf16=layer.bf16)
        mixed = torch.ones(tokens, channels, device=device, dtype=dtype, requires_grad=True)
        torch.autograd.grad(forward(mixed, x, mask).sum(), [mixed, x, *layer.parameters()])
