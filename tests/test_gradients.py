"""One gradient, however the batch is divided; what fits in memory; frozen BatchNorms."""

from functools import partial

import pytest
import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.gradients import compute_gradient, images_that_fit, learner, try_step
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.models.fcrn import fcrn
from pipeline.models.frozen import with_frozen_pairs
from pipeline.models.resnet import freeze_batch_norm
from pipeline.params_training import AllPixels, ThreshMinKept, TopK
from pipeline.transforms import normalise

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RULES = [
    AllPixels("off"),
    TopK("topk", 3, "crop"),
    TopK("topk", 20, "device_batch"),
    ThreshMinKept("thresh_minkept", 0.3, 5, "crop"),
    ThreshMinKept("thresh_minkept", 0.3, 5, "device_batch"),
]


def network(*, frozen: bool, dropout: tuple[float, ...] = ()) -> nn.Module:
    """Small, with statistics and a classifier as after some training."""
    torch.manual_seed(1)
    made = fcrn(depth=8, stride=8, kernel=3, dilation=2, num_categories=4, dropout=dropout)
    nn.init.normal_(made.classifier.weight, std=0.05)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    made.train()
    if frozen:
        freeze_batch_norm(made)
    return made


def batch(images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 32, 40, 3), generator=generator, dtype=torch.uint8)
    truth = torch.randint(0, 4, (images, 4, 5), generator=generator, dtype=torch.uint8)
    truth[0, :2] = 255
    return pixels, truth


def gradient(made: nn.Module, at_once: int, rule=RULES[0], seed: int = 7):
    made.zero_grad()
    value = compute_gradient(
        made,
        *batch(),
        batch=5,
        at_once=at_once,
        loss=partial(bootstrapped_cross_entropy, bootstrapping=rule),
        precision="fp32",
        seed=seed,
    )
    return value, {name: parameter.grad for name, parameter in made.named_parameters()}


def assert_alike(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(rule):
    made = network(frozen=True)
    loss, whole = gradient(made, 5, rule)
    assert sum(g.abs().sum() for g in whole.values()) > 1
    for at_once in (1, 2, 3):
        value, parts = gradient(made, at_once, rule)
        assert value.item() == pytest.approx(loss.item(), rel=1e-5)
        assert_alike(parts, whole)


def test_a_whole_batch_is_the_plain_backward_pass_bit_by_bit():
    made = network(frozen=False)
    value, ours = gradient(made, 5, RULES[1])
    plain = network(frozen=False)
    pixels, truth = batch()
    loss = bootstrapped_cross_entropy(plain(normalise(pixels)), truth, RULES[1])
    loss.backward()
    assert torch.equal(value, loss.detach()) and not value.requires_grad
    assert all(torch.equal(ours[name], p.grad) for name, p in plain.named_parameters())


def test_dropout_draws_by_the_seed_and_draws_the_same_in_both_passes():
    made = network(frozen=True, dropout=(0.5, 0.5))
    one, first = gradient(made, 2)
    torch.rand(3)
    again, second = gradient(made, 2)
    assert torch.equal(one, again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other, _ = gradient(made, 2, seed=8)
    assert other.item() != one.item()
    # the loss is of the first pass, the gradient of the second: a step along it must fit the loss
    size = sum((g**2).sum() for g in first.values())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter -= 1e-3 / size * first[name]
    after, _ = gradient(made, 2)
    assert (one - after).item() == pytest.approx(1e-3, rel=0.1)


def test_running_statistics_move_once_for_each_part():
    made, by_hand = network(frozen=False), network(frozen=False)
    gradient(made, 2)
    with torch.no_grad():
        for part in batch()[0].split(2):
            by_hand(normalise(part))
    for (name, ours), theirs in zip(made.named_buffers(), by_hand.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_fast_and_plain_training_have_one_loss_curve(norm):
    plain, ours = network(frozen=norm == "frozen"), network(frozen=False)
    form = with_frozen_pairs(ours).train() if norm == "frozen" else ours
    form.to(memory_format=torch.channels_last)
    slow, fast = (torch.optim.SGD(n.parameters(), lr=1e-3, momentum=0.9) for n in (plain, ours))
    loss = partial(bootstrapped_cross_entropy, bootstrapping=RULES[0])
    pixels, truth = batch()
    curves = []
    for _ in range(20):
        expected = loss(plain(normalise(pixels).contiguous()), truth)
        plain.zero_grad()
        expected.backward()
        slow.step()
        ours.zero_grad()
        value = compute_gradient(
            form, pixels, truth, batch=5, at_once=5, loss=loss, precision="bf16", seed=0
        )
        fast.step()
        curves.append((value.item(), expected.item()))
    assert curves[-1][1] < 0.5 * curves[0][1]
    assert any(value != expected for value, expected in curves)
    assert all(value == pytest.approx(expected, rel=0.02) for value, expected in curves)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch 2.11's own compiler
def test_the_compiled_form_has_the_same_gradients_in_parts_and_with_dropout():
    made = network(frozen=True, dropout=(0.5, 0.5))
    compiled = learner(with_frozen_pairs(made).train(), GPU)  # on a CPU here: the same compiler
    for at_once in (5, 2):
        value, ours = gradient(compiled, at_once, RULES[2])
        ours = {name.removeprefix("_orig_mod."): grad.clone() for name, grad in ours.items()}
        expected, theirs = gradient(with_frozen_pairs(made).train(), at_once, RULES[2])
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        assert_alike(ours, theirs)


# --- memory -------------------------------------------------------------------------------------
def test_as_many_images_at_once_as_fit():
    def attempt(most, tried, at_once):
        tried.append(at_once)
        if at_once > most:
            raise torch.OutOfMemoryError("out of memory")

    for most, expected in [(16, [16]), (15, [16, 8]), (3, [16, 8, 4, 2]), (1, [16, 8, 4, 2, 1])]:
        tried: list[int] = []
        assert images_that_fit(partial(attempt, most, tried), 16, GPU) == expected[-1]
        assert tried == expected
    with pytest.raises(BadInput, match="not even one image fits"):
        images_that_fit(partial(attempt, 0, []), 5, GPU)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_a_lack_of_memory_is_known_by_all_its_names(text):
    def attempt(at_once):
        if at_once > 2:
            raise RuntimeError(text)

    assert images_that_fit(attempt, 8, GPU) == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def attempt(text, at_once):
        raise RuntimeError(text)

    for text in ("wrong shape", "unable to find an engine"):
        with pytest.raises(RuntimeError, match=text):
            images_that_fit(partial(attempt, text), 4, GPU)


def test_a_compiler_names_the_lack_of_memory_that_it_met():
    def backend(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    compiled = torch.compile(lambda x: x + 1, backend=backend)
    with pytest.raises(BadInput, match="not even one image fits"):
        images_that_fit(lambda at_once: compiled(torch.ones(at_once)), 2, GPU)


def test_a_cpu_is_not_tried():
    assert images_that_fit(lambda at_once: pytest.fail("tried"), 4, CPU) == 4


def test_a_tried_step_leaves_no_trace():
    made = network(frozen=False)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    try_step(made, 2, crop=(32, 40), precision="bf16")
    assert all(parameter.grad is None for parameter in made.parameters())
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


# --- frozen BatchNorms --------------------------------------------------------------------------
def test_frozen_pairs_learn_as_frozen_batch_norms_do():
    plain = network(frozen=True)
    twin = with_frozen_pairs(plain).train()
    pixels, truth = batch()
    scores, ours = plain(normalise(pixels)), twin(normalise(pixels))
    torch.testing.assert_close(ours, scores, rtol=1e-4, atol=1e-4)
    assert scores.std() > 0.1
    bootstrapped_cross_entropy(scores, truth, RULES[0]).backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    plain.zero_grad()
    bootstrapped_cross_entropy(ours, truth, RULES[0]).backward()
    assert_alike({name: p.grad for name, p in plain.named_parameters()}, expected)


def test_frozen_pairs_share_all_parameters_and_statistics():
    plain = network(frozen=True)
    twin = with_frozen_pairs(plain)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in plain.parameters()}
    assert {id(b) for b in twin.buffers()} == {id(b) for b in plain.buffers()}
    assert not any(isinstance(m, nn.Identity) for m in plain.modules())
    other = network(frozen=True).state_dict()
    plain.load_state_dict({name: value * 1.1 for name, value in other.items()})
    pixels = normalise(batch()[0])
    torch.testing.assert_close(twin.eval()(pixels), plain.eval()(pixels), rtol=1e-4, atol=1e-3)


def test_frozen_pairs_keep_less_for_the_backward_pass():
    def kept(made: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made(torch.zeros(2, 3, 128, 128))
        return sum(sizes.values()) - sum(p.nbytes for p in made.parameters())

    plain = network(frozen=True)
    assert kept(with_frozen_pairs(plain).train()) < 0.75 * kept(plain)
