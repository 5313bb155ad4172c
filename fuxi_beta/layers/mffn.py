"""MFFN, the multistage feed-forward network of FuXi-alpha that closes each block (section 5.4, equation 16).

Shapes: `T` packed tokens, `R` of them, `D` width, `C` channels of the token mixer: 2 D in FuXi-beta, 3 D in FuXi-alpha.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.layers.precision import operand_dtype, product
from fuxi_beta.ops import reference


class MFFN(nn.Module):
    """Stage one joins the mixer's output with the residual stream, stage two is a SwiGLU of its norm.

    o = Linear(dropout(mixed)) + x;  m = dropout(RMSNorm(o));  y = W2(SiLU(W1 m) * W3 m) + o.
    """

    def __init__(self, dim: int, hidden: int, *, channels: int = 2) -> None:
        super().__init__()
        self.merge = nn.Linear(channels * dim, dim)
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias=False)  # W1 | W3
        self.down = nn.Linear(hidden, dim, bias=False)  # W2
        self.bf16 = False  # the three products
        for weight in (self.merge.weight, *self.gate_and_up.weight.split(hidden), self.down.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, mixed: Tensor, x: Tensor, mask: Mask | None) -> Tensor:
        """mixed: [T, C], after dropout; x: [T, D]; mask: of the dropout between the stages -> y [T, D]."""
        # torch.compile fuses plain torch, but not kernels.
        operators = reference if torch.compiler.is_compiling() else ops
        joined = product(self.merge, mixed, bf16=self.bf16) + x
        normed = operators.rms_norm(joined, mask, mixed.dtype)
        inner = operators.swiglu(product(self.gate_and_up, normed, bf16=self.bf16))
        return product(self.down, inner, bf16=self.bf16) + joined

    def pull_back(self, towards: Tensor, mixed: Tensor, x: Tensor) -> Tensor:
        """<towards, y> as a linear function of stage one's sum o, with SiLU(W1 m) and the norm held at their values.

        towards: [R, K, D] for the tokens mixed [R, C] and x [R, D]. It equals <result, o>, and so the sum of
        <result, Linear(mixed)> and <result, x>. [R, K, D].
        """
        joined = self.merge(mixed) + x
        scale = (joined.square().mean(-1, keepdim=True) + reference.RMS_EPS).rsqrt()
        gate, up = self.gate_and_up.weight.chunk(2)
        gate = F.silu(joined * scale @ gate.t()) * scale  # of W3 o, where W3 m = W3 o / rms(o)
        return towards + (towards @ self.down.weight * gate[:, None]) @ up


def compile_all(layers: Sequence[MFFN], dropout: float) -> None:
    """Compile forward and backward of all layers, for any number of tokens. dropout: its rate. Takes 10 to 20 s.

    If that fails there is one warning and the layers stay as they are.
    """
    try:
        compiled = [_compile(layer.forward) for layer in layers]
        for forward, layer in zip(compiled, layers, strict=True):
            _run_once(forward, layer, dropout)
    except Exception as error:  # no failure of the compiler may stop a run
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(f"train.compile has no effect: the MFFN could not be compiled ({reason})", stacklevel=2)
        return
    for forward, layer in zip(compiled, layers, strict=True):
        layer.forward = forward


def _compile(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(plain, dynamic=True)

    def forward(mixed: Tensor, x: Tensor, mask: Mask | None) -> Tensor:
        # Zero tokens, one token and no gradient would each compile again in the middle of a run.
        return (compiled if len(x) > 1 and torch.is_grad_enabled() else plain)(mixed, x, mask)

    return forward


def _run_once(forward: Callable[..., Tensor], layer: MFFN, dropout: float) -> None:
    """Run forward and backward, so that nothing is left to compile, and to fail, in the middle of a run."""
    dim, channels = layer.merge.weight.shape
    device = layer.merge.weight.device
    for tokens in (8, 8192):  # the compiler has another kernel for sums of more than 4096
        mask = Mask(torch.arange(tokens, device=device), dropout) if dropout else None
        x = torch.ones(tokens, dim, device=device, requires_grad=True)
        dtype = operand_dtype(x, bf16=layer.bf16)
        mixed = torch.ones(tokens, channels, device=device, dtype=dtype, requires_grad=True)
        torch.autograd.grad(forward(mixed, x, mask).sum(), [mixed, x, *layer.parameters()])
