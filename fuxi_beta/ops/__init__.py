"""The operators that have kernels. `dispatch` chooses the implementation by device, dtype and what could be built.

| implementation | where                             | what                                                      |
| -------------- | --------------------------------- | --------------------------------------------------------- |
| `reference`    | any device, any dtype             | plain torch, the definition                               |
| `cpu`          | float32 on the CPU                | C++, compiled on first use; one warning where that fails  |
| `triton`       | float32, bf16 and fp16 on a GPU   | Triton; one warning where it cannot be used               |
| `linear`       | very long histories, no Triton    | the temporal map as a sum of exponentials, the other by FFT |

| operator                                             | here          | C++               | Triton                |
| ---------------------------------------------------- | ------------- | ----------------- | --------------------- |
| token_mixer, apply_maps, with times by prepare_times | `token_mixer` | `token_mixer.cpp` | `triton.token_mixer`  |
| block, last_rows                                     | `inference`   | `block.cpp`       |                       |
| retention, retained                                  | `retention`   | `retention.cpp`   | `triton.content`      |
| periodic, waves                                      | `periodic`    | `periodic.cpp`    | `triton.damped_waves` |
| rms_norm, swiglu, dropout                            | `tokenwise`   | `tokenwise.cpp`   | `triton.tokenwise`    |
| combine, integers                                    | `tokenwise`   | `random.cpp`      | `triton.tokenwise`    |
| sampled_softmax                                      | `loss`        | `loss.cpp`        | `triton.loss`         |
| rowwise_adagrad                                      | `optimizer`   |                   | `triton.optimizer`    |
| TopKSearch                                           | `search`      | `search.cpp`      | `triton.top_k`        |
| top_k_of_scores                                      | `search`      | `top_k.cpp`       |                       |
| strongest_plays                                      | `attribution` | `attribution.cpp` |                       |

`use("reference")` forces an implementation, `use("auto")` is the default. All compute the same functions, so the
choice is no hyperparameter: it changes results by rounding only.
"""

from fuxi_beta.ops.attribution import strongest_plays
from fuxi_beta.ops.block import BlockWeights, LastRows
from fuxi_beta.ops.contributions import Term
from fuxi_beta.ops.damped_waves import channel_bounds
from fuxi_beta.ops.dispatch import (
    CHOICES,
    describe,
    in_linear_time,
    prepare_times,
    takes_triton,
    use,
    why_no_cpu_kernels,
)
from fuxi_beta.ops.inference import block, last_rows
from fuxi_beta.ops.loss import sampled_softmax
from fuxi_beta.ops.optimizer import rowwise_adagrad
from fuxi_beta.ops.periodic import periodic, waves
from fuxi_beta.ops.retention import CHUNK, Packed, retained, retention
from fuxi_beta.ops.search import TopKSearch, top_k_of_scores
from fuxi_beta.ops.token_mixer import PreparedTimes, apply_maps, token_mixer
from fuxi_beta.ops.tokenwise import combine, dropout, integers, rms_norm, swiglu

__all__ = [
    "CHOICES",
    "CHUNK",
    "BlockWeights",
    "LastRows",
    "Packed",
    "PreparedTimes",
    "Term",
    "TopKSearch",
    "apply_maps",
    "block",
    "channel_bounds",
    "combine",
    "describe",
    "dropout",
    "in_linear_time",
    "integers",
    "last_rows",
    "periodic",
    "prepare_times",
    "retained",
    "retention",
    "rms_norm",
    "rowwise_adagrad",
    "sampled_softmax",
    "strongest_plays",
    "swiglu",
    "takes_triton",
    "token_mixer",
    "top_k_of_scores",
    "use",
    "waves",
    "why_no_cpu_kernels",
]
