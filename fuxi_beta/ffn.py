"""MFFN, the multistage feed-forward network of FuXi-alpha that closes each block (section 5.4, equation 16).

Shapes: `T` packed tokens, `D` width, `C` = 2 D channels of the token mixer.
"""

from torch import Tensor, nn

from fuxi_beta import ops


class MultistageFFN(nn.Module):
    """Stage one joins the mixer's output with the residual stream, stage two is a SwiGLU of its norm.

    o = Linear(dropout(mixed)) + x;  m = dropout(RMSNorm(o));  y = W2(SiLU(W1 m) * W3 m) + o.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * dim, dim)
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias=False)  # W1 | W3
        self.down = nn.Linear(hidden, dim, bias=False)  # W2
        nn.init.xavier_uniform_(self.merge.weight)
        nn.init.xavier_uniform_(self.gate_and_up.weight[:hidden])
        nn.init.xavier_uniform_(self.gate_and_up.weight[hidden:])
        nn.init.xavier_uniform_(self.down.weight)

    def join(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Stage one. mixed: [T, C], after dropout; x: [T, D] -> o [T, D]."""
        return self.merge(mixed) + x

    def refine(self, normed: Tensor, joined: Tensor) -> Tensor:
        """Stage two. normed: m [T, D]; joined: o [T, D] -> y [T, D]."""
        return self.down(ops.swiglu(self.gate_and_up(normed))) + joined
