"""Online bootstrapping: which cells are kept, and what is averaged."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.losses import bootstrapped_cross_entropy
from pipeline.params_training import AllPixels, ThreshMinKept, TopK

OFF = AllPixels("off")


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """Two categories: category 1 has the given probability. (B, 2, 1, w) from B lists."""
    p = torch.tensor(probabilities, dtype=torch.float64)[:, None]  # (B, 1, w)
    return torch.stack([torch.log(1 - p), torch.log(p)], dim=1)


ONES = torch.ones(1, 1, 4, dtype=torch.int64)


def test_keeps_only_the_hardest_pixels():
    loss = bootstrapped_cross_entropy(
        logits_of([[0.9, 0.2, 0.5, 0.8]]), ONES, TopK("topk", 2, "crop")
    )
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2)


def test_keeping_all_pixels_equals_plain_cross_entropy():
    logits, truth = torch.randn(3, 5, 6, 7), torch.randint(0, 5, (3, 6, 7))
    truth[:, 0] = 255
    plain = F.cross_entropy(logits, truth, ignore_index=255)
    for rule in (OFF, TopK("topk", 1000, "crop"), ThreshMinKept("thresh_minkept", 1.0, 0, "crop")):
        torch.testing.assert_close(bootstrapped_cross_entropy(logits, truth, rule), plain)


def test_threshold_keeps_hard_pixels_and_never_fewer_than_keep():
    logits = logits_of([[0.9, 0.2, 0.5, 0.8]])
    few = bootstrapped_cross_entropy(logits, ONES, ThreshMinKept("thresh_minkept", 0.6, 1, "crop"))
    assert few.item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2)
    more = bootstrapped_cross_entropy(logits, ONES, ThreshMinKept("thresh_minkept", 0.1, 3, "crop"))
    assert more.item() == pytest.approx(-(math.log(0.2) + math.log(0.5) + math.log(0.8)) / 3)


def test_scope_says_among_which_pixels_the_hardest_are_sought():
    logits = logits_of([[0.1, 0.2], [0.8, 0.9]])
    truth = torch.ones(2, 1, 2, dtype=torch.int64)
    per_crop = bootstrapped_cross_entropy(logits, truth, TopK("topk", 1, "crop"))
    assert per_crop.item() == pytest.approx(-(math.log(0.1) + math.log(0.8)) / 2)
    whole = bootstrapped_cross_entropy(logits, truth, TopK("topk", 2, "device_batch"))
    assert whole.item() == pytest.approx(-(math.log(0.1) + math.log(0.2)) / 2)


def test_division_is_by_all_kept_pixels_not_crop_by_crop():
    logits = logits_of([[0.1, 0.2, 0.3], [0.8, 0.9, 0.5]])
    truth = torch.tensor([[[1, 1, 1]], [[1, 255, 255]]])
    loss = bootstrapped_cross_entropy(logits, truth, TopK("topk", 2, "crop"))
    assert loss.item() == pytest.approx(-(math.log(0.1) + math.log(0.2) + math.log(0.8)) / 3)


def test_among_equal_pixels_exactly_keep_are_kept_the_first_ones():
    logits = torch.zeros(2, 2, 20, 30, requires_grad=True)
    truth = torch.ones(2, 20, 30, dtype=torch.int64)
    bootstrapped_cross_entropy(logits, truth, TopK("topk", 250, "crop")).backward()
    kept = (logits.grad[:, 0] != 0).flatten(1)
    assert kept.sum(1).tolist() == [250, 250]
    assert kept[:, :250].all()


def test_ignored_pixels_never_count():
    logits = logits_of([[0.001, 0.2, 0.5, 0.8]]).requires_grad_()
    truth = torch.tensor([[[255, 1, 1, 1]]])
    loss = bootstrapped_cross_entropy(logits, truth, TopK("topk", 1, "crop"))
    assert loss.item() == pytest.approx(-math.log(0.2))
    loss.backward()
    assert not logits.grad[..., 0].any()


@pytest.mark.parametrize(
    "rule", [OFF, TopK("topk", 3, "crop"), ThreshMinKept("thresh_minkept", 0.6, 3, "device_batch")]
)
def test_a_batch_without_labels_has_loss_zero_and_a_graph(rule):
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    loss = bootstrapped_cross_entropy(logits, torch.full((2, 2, 2), 255), rule)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_scores_are_computed_in_single_precision():
    logits, truth = torch.randn(2, 4, 5, 5).bfloat16(), torch.randint(0, 4, (2, 5, 5))
    loss = bootstrapped_cross_entropy(logits, truth, TopK("topk", 5, "crop"))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, bootstrapped_cross_entropy(logits.float(), truth, TopK("topk", 5, "crop"))
    )


def test_a_loss_that_is_no_number_shows():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0, 0, 3] = math.nan
    for rule in (OFF, TopK("topk", 1, "crop")):
        assert bootstrapped_cross_entropy(logits, ONES, rule).isnan()


def brute_force(logits: np.ndarray, truth: np.ndarray, rule) -> float:
    """Cell by cell in float64."""
    cells = []  # (crop, loss), in raster order
    for crop in range(truth.shape[0]):
        for y, x in np.ndindex(truth.shape[1:]):
            if truth[crop, y, x] != 255:
                scores = logits[crop, :, y, x]
                log_sum = math.log(sum(math.exp(s) for s in scores))
                cells.append((crop, log_sum - scores[truth[crop, y, x]]))
    if isinstance(rule, AllPixels):
        kept = [loss for _, loss in cells]
    else:
        kept = []
        groups = range(truth.shape[0]) if rule.scope == "crop" else [None]
        for group in groups:
            losses = sorted((v for c, v in cells if group in (None, c)), reverse=True)
            limit = -math.log(rule.threshold) if isinstance(rule, ThreshMinKept) else math.inf
            kept += [v for rank, v in enumerate(losses) if rank < rule.keep or v >= limit]
    return sum(kept) / max(len(kept), 1)


@pytest.mark.parametrize("keep", [1, 7, 20, 500])
@pytest.mark.parametrize("scope", ["crop", "device_batch"])
@pytest.mark.parametrize("kind", ["off", "topk", "thresh_minkept"])
def test_equals_a_loop_over_cells(kind, scope, keep):
    rng = np.random.default_rng([keep, len(kind), len(scope)])
    logits = rng.normal(size=(3, 4, 5, 6)) * 2
    truth = rng.integers(0, 4, (3, 5, 6))
    truth[rng.random(truth.shape) < 0.2] = 255
    truth[2, :, 1:] = 255  # a crop with fewer cells than most `keep`
    rules = {
        "off": OFF,
        "topk": TopK("topk", keep, scope),
        "thresh_minkept": ThreshMinKept("thresh_minkept", 0.3, keep, scope),
    }
    ours = bootstrapped_cross_entropy(
        torch.tensor(logits), torch.tensor(truth, dtype=torch.uint8), rules[kind]
    )
    assert ours.item() == pytest.approx(brute_force(logits, truth, rules[kind]), rel=1e-5)
