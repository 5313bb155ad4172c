"""Elapsed time over long histories: `python -m benchmarks.long_sequences [--quick] [--channels 100]`.

16,384 tokens in each case, as histories of n events: forward and backward of the temporal channel, fp32. Ours is
`temporal_linear`; the baseline is the dense map in torch, with the logarithms of the gaps computed beforehand.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib.timing import Row, interleaved, report
from fuxi_beta.ops.elapsed import log_elapsed
from fuxi_beta.ops.linear import linear_applies, temporal_linear

TOKENS = 16_384
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16_384)
LONGEST_QUICK = 4096
MAP_CELLS = 2**26  # of the dense map at once: its temporaries stay below 3 GB

Times = tuple[Tensor, Tensor, Tensor]


def histories(n: int) -> Times:
    """(timestamp, next_timestamp, offsets): songs minutes apart, and one in five after a pause of up to a day."""
    shape = (TOKENS // n, n + 1)
    pause = torch.exp(torch.rand(shape) * math.log(86_400)).long()
    seen = 1_650_000_000 + torch.where(torch.rand(shape) < 0.2, pause, torch.randint(1, 300, shape)).cumsum(1)
    return seen[:, :-1].flatten(), seen[:, 1:].flatten(), torch.arange(0, TOKENS + 1, n)


def linear(value: Tensor, upstream: Tensor, times: Times, scale: Tensor, decay: Tensor) -> Callable[[], None]:
    """A step of ours."""
    assert linear_applies(*times, decay)

    def step() -> None:
        value.grad = None
        temporal_linear(value, *times, scale, decay).backward(upstream)

    return step


def dense(value: Tensor, upstream: Tensor, times: Times, scale: Tensor, decay: Tensor) -> Callable[[], None]:
    """A step of the baseline, over as many histories, or rows of one, as fit `MAP_CELLS`."""
    n = int(times[2][1])
    batch, height = max(1, MAP_CELLS // n**2), min(n, MAP_CELLS // n)
    timestamp, next_timestamp = (time.view(-1, n) for time in times[:2])
    blocks = [(first, top) for first in range(0, TOKENS // n, batch) for top in range(0, n, height)]
    gaps = [
        log_elapsed(
            next_timestamp[first : first + batch, top : top + height, None],
            timestamp[first : first + batch, None, :],
            value.dtype,
        )
        for first, top in blocks
    ]

    def step() -> None:
        value.grad = None
        for (first, top), gap in zip(blocks, gaps, strict=True):
            power = torch.exp(gap * -decay).tril(top)
            rows = value.view(-1, n, value.shape[1])[first : first + batch]
            above = upstream.view(-1, n, value.shape[1])[first : first + batch, top : top + height]
            (scale * torch.bmm(power, rows)).backward(above)

    return step


def peak_bytes(step: Callable[[], None]) -> int:
    """Peak memory of a step beyond what was allocated before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held, most = 0, 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def measure(n: int, channels: int, rounds: int) -> Row:
    """Both on the same histories. Of the longest, the dense baseline has one round only."""
    torch.manual_seed(n)
    seconds = histories(n)
    value = torch.randn(TOKENS, channels, requires_grad=True)
    scale, decay = torch.tensor(0.1, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    upstream = torch.randn(TOKENS, channels)
    ours = linear(value, upstream, seconds, scale, decay)
    memory = peak_bytes(ours)
    once = n == LENGTHS[-1]
    steps = {"ours": ours, "baseline": dense(value, upstream, seconds, scale, decay)}
    times = interleaved(steps, rounds=1 if once else rounds, warm_up=0 if once else 1)
    if once:
        times["ours"] += interleaved({"ours": ours}, rounds=rounds - 1, warm_up=0)["ours"]
    return Row(f"n={n}", times["ours"], times["baseline"], note=f"{memory / TOKENS / 1024:.1f} KiB a token at most")


def plot(lengths: list[int], rows: list[Row], file: str) -> None:
    """Microseconds a token against the length of a history."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, marker in (("baseline", "s"), ("ours", "o")):
        medians = [statistics.median(getattr(row, name)) * 1e3 / TOKENS for row in rows]
        axes.plot(lengths, medians, marker=marker, label={"ours": "linear", "baseline": "dense torch"}[name])
    axes.set(xscale="log", yscale="log", xlabel="events in a history", ylabel="µs a token, forward + backward")
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"fewer rounds, n up to {LONGEST_QUICK}")
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--plot", metavar="FILE", help="write a PNG")
    options = parser.parse_args()
    lengths = [n for n in LENGTHS if not options.quick or n <= LONGEST_QUICK]
    rows = [measure(n, options.channels, 3 if options.quick else 5) for n in lengths]
    if options.plot:
        plot(lengths, rows, options.plot)
    report("long_sequences", rows, ours="linear", baseline="dense torch")


if __name__ == "__main__":
    main()
