"""Which tiles are taken, by a clock that says what it is told, and calls what it measures many times as a real one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton.testing
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError

from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.triton import loss, token_mixer, top_k, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
TOO_LARGE = [OutOfResources(300_000, 232_448, "shared memory"), CompileTimeAssertionFailure(None, None), PTXASError("")]  # type: ignore[arg-type]
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


class Card:
    """Takes some choices, each in its time."""

    def __init__(self, times: dict[str, float | Exception]) -> None:
        self.times, self.called, self.measured, self.last = times, [], [], ""

    def call(self, choice: str) -> str:
        self.called.append(choice)
        self.last = choice
        if isinstance(found := self.times[choice], Exception):
            raise found
        return f"by {choice}, call {len(self.called)}"

    def bench(self, call: Callable[[], object], **options: Any) -> float:
        assert options.pop("return_mode") == "median"
        for _ in range(3):
            call()
        self.measured.append(self.last)
        return self.times[self.last]  # type: ignore[return-value]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Card]:
    """A function that makes a card that measures, of the times of its choices in ms, or what they fail with."""

    def make(**times: float | Exception) -> Card:
        made = Card(times)
        monkeypatch.setattr(tuning, "INTERPRETED", False)
        monkeypatch.setattr(tuning, "_chosen", {})
        monkeypatch.setattr(triton.testing, "do_bench", made.bench)
        return made

    return make


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(card: Card, key: str = "key") -> str:
    return tuning.run(key, list(card.times), card.call)


def test_the_fastest_is_measured_once_and_its_own_last_call_is_what_comes_back(card):
    of = card(a=3.0, b=1.0, c=2.0)
    assert run(of) == "by b, call 10"
    assert of.measured == ["a", "b", "c"]
    assert run(of) == "by b, call 11"
    assert run(of, "another") == "by b, call 21"
    assert set(tuning.chosen().values()) == {"b"}


def test_of_those_as_fast_the_first_is_taken(card):
    assert run(card(a=1.3, b=1.01, c=1.0)) == "by b, call 10"


@pytest.mark.parametrize("error", TOO_LARGE)
def test_what_does_not_fit_is_passed_over(card, error):
    of = card(a=error, b=2.0, c=1.0, d=error)
    assert run(of) == "by c, call 9"
    assert of.measured == ["b", "c"]


@pytest.mark.parametrize("error", TOO_LARGE)
def test_if_nothing_fits_the_error_comes_out_each_time(card, error):
    of = card(a=error, b=error)
    for _ in range(2):
        with pytest.raises(type(error)):
            run(of)
    assert not tuning.chosen()


def test_any_other_error_comes_out_at_once(card):
    of = card(a=RuntimeError("an illegal memory access"), b=1.0)
    with pytest.raises(RuntimeError, match="illegal"):
        run(of)
    assert of.called == ["a"]


def test_without_memory_to_measure_in_the_first_that_fits_is_taken_and_kept(card, monkeypatch):
    of = card(a=TOO_LARGE[0], b=2.0, c=1.0)

    def bench(call: Callable[[], object], **_: Any) -> float:
        call()
        raise NO_MEMORY  # for what clears the card's cache

    monkeypatch.setattr(triton.testing, "do_bench", bench)
    assert run(of).startswith("by b")
    of.called.clear()
    assert run(of) == "by b, call 1"


def test_a_choice_without_memory_is_not_taken_and_one_that_needs_it_says_so(card):
    assert run(card(a=NO_MEMORY, b=1.0)).startswith("by b")
    with pytest.raises(torch.OutOfMemoryError):
        run(card(a=NO_MEMORY, b=NO_MEMORY))


@pytest.mark.usefixtures("_deterministic")
def test_nothing_is_measured_where_equal_inputs_must_give_equal_bits(card):
    of = card(a=TOO_LARGE[0], b=2.0, c=1.0)
    assert [run(of), run(of)] == ["by b, call 2", "by b, call 3"]
    torch.use_deterministic_algorithms(False)
    assert run(of).startswith("by c")  # what was fixed for the one is not kept for the other
    torch.use_deterministic_algorithms(True)
    assert run(of).startswith("by b")


def test_a_choice_without_alternative_is_not_measured(card):
    of = card(a=1.0)
    assert [run(of), run(of)] == ["by a, call 1", "by a, call 2"]
    assert not of.measured


def test_nothing_is_measured_or_kept_while_a_graph_is_captured(card, monkeypatch):
    of = card(a=2.0, b=1.0)
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_available", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert run(of) == "by a, call 1"
        assert not of.measured
    assert run(of).startswith("by b")


@pytest.fixture
def everything(make_batch) -> Callable[[], list[torch.Tensor]]:
    """Results and gradients of every kernel that has a choice."""
    batch = make_batch([40, 0, 3]).to(DEVICE)
    torch.manual_seed(0)
    projected, by_lag, states = (torch.randn(*shape, device=DEVICE) for shape in ((43, 48), (40,), (43, 16)))
    scale, decay = torch.tensor(0.4, device=DEVICE), torch.tensor(0.3, device=DEVICE)
    target, drawn = (torch.randint(43, shape, device=DEVICE) for shape in ((43,), (43, 30)))
    inputs = [tensor.requires_grad_() for tensor in (projected, by_lag, scale, decay, states)]
    candidates = torch.ones(43, dtype=torch.bool, device=DEVICE)

    def compute() -> list[torch.Tensor]:
        times = token_mixer.PackedTimes(batch)
        mixed = times.token_mixer(projected, by_lag, (scale, decay), Mask(target, 0.2))
        bare = times.apply_maps(projected, by_lag, (scale, decay))
        value = loss.sampled_softmax(states, states, target, drawn, drawn == target[:, None], 0.1)
        lists = top_k.search(states.detach(), top_k.prepare(states.detach(), candidates), k=5)
        total = mixed.square().sum() + bare.sum() + value
        return [
            mixed.detach(),
            bare.detach(),
            value.detach(),
            lists.items,
            lists.scores,
            *torch.autograd.grad(total, inputs),
        ]

    return compute


def test_kernels_that_were_measured_leave_what_the_fastest_computes(everything, take_choice, monkeypatch):
    run, measured = tuning.run, []
    take_choice(1)
    expected = everything()

    def run_anew(key: Any, choices: Any, call: Any) -> Any:
        measured.append([])
        return run(key, choices, call)

    def bench(call: Callable[[], object], **_: Any) -> float:
        call()
        call()
        measured[-1].append(1)
        return 1.0 if len(measured[-1]) == 2 else 2.0

    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "run", run_anew)
    monkeypatch.setattr(triton.testing, "do_bench", bench)
    found = everything()
    assert sum(map(len, measured)) > 20
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    count = len(measured)
    found = everything()
    assert not any(measured[count:])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
