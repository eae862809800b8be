"""The jobs that `gpu.py` measures: each adds a row or two to the session's table."""

import copy
import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_session import (
    CATEGORIES,
    RATE,
    STRIDE,
    Session,
    Training,
    batch,
    cudnn,
    every_cell,
    flops_of,
    our_training,
    plain_training,
    start,
)
from peers import PlainFcrn
from torch import Tensor, nn

from pipeline.inference import for_inference, view_probabilities
from pipeline.memory import bytes_kept
from pipeline.models.fast import TapSum
from pipeline.models.fcrn import Fcrn
from pipeline.params_training import Augmentation
from pipeline.training import TrainingSet, batches, labelled_view, train_steps
from pipeline.transforms import normalise

TOLERANCE = 0.01  # of a loss in bf16 against the same in fp32, relative


def matrix_product(session: Session) -> None:
    side = session.sizes.product
    left, right = (
        torch.randn(side, side, device=session.device, dtype=torch.bfloat16) for _ in range(2)
    )
    ms = session.median_ms(lambda: left @ right)
    session.rate = 2 * side**3 / ms / 1e9
    session.add("matrix product, bf16", f"{side} x {side} x {side}", ms=ms, tflops=session.rate)


# --- training ------------------------------------------------------------------------------------
def add_training(session: Session, norm: str, way: str, ms: float, **values: Any) -> None:
    images, side = session.sizes.train
    job = f"training step, FCRN-{session.sizes.depth}/{STRIDE}, {images} of {side}x{side}"
    flops = flops_of(session.sizes, side, training=True)
    session.add_time(f"{job}, BatchNorm {norm}", way, ms, images, flops, **values)


def training_peer(session: Session, norm: str, precision: str) -> None:
    data = batch(session, 0, session.sizes.train)
    with cudnn(tf32=precision == "TF32", ours=False):
        training = plain_training(session, norm)
        ms = session.median_ms(lambda: training.step(*data))
    add_training(session, norm, f"peer {precision}", ms)


def training_ours(session: Session, norm: str, *, fixed_bits: bool = True) -> None:
    data = batch(session, 0, session.sizes.train)
    compiled = session.compiled if norm == "frozen" else None
    training = compiled or our_training(session, norm, compiles=True)
    begin = time.perf_counter()
    with cudnn(ours=fixed_bits):
        assert training.step(*data).isfinite()
        first = time.perf_counter() - begin
        ms = session.median_ms(lambda: training.step(*data))
    if norm == "frozen":
        session.compiled = training
    way = "ours" if fixed_bits else "ours, bits not fixed: cuDNN's fastest"
    asked = {"must": "2.5 x, 30 %", "stretch": "4 x, 45 %"}
    add_training(session, norm, way, ms, **asked, note=f"first step {first:.0f} s")


def started_anew(session: Session) -> Training:
    """What `training_ours` compiled, with the weights of `start`."""
    training = session.compiled
    if training is None or training.optimizer is None:
        raise RuntimeError("ours did not train")
    training.network.load_state_dict(start(session).state_dict())
    training.optimizer.state.clear()
    return training


def waits(session: Session) -> None:
    """How often a step makes the processor wait for the GPU, which then has nothing queued."""
    training, data = started_anew(session), batch(session, 0, session.sizes.train)
    training.step(*data)
    session.synchronize()
    with warnings.catch_warnings(record=True) as said, cudnn(ours=True):
        warnings.simplefilter("always")
        if session.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            training.step(*data)
        finally:
            if session.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    where = [f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchroni" in str(w.message)]
    session.add("waits for the GPU in a step", "ours", met=not where, note=", ".join(where))


def loss_curves(session: Session) -> None:
    def curve(training: Training, steps: int) -> Tensor:
        data = (batch(session, number, session.sizes.train) for number in range(steps))
        return torch.stack([training.step(*one) for one in data]).cpu()

    steps = session.sizes.curve
    with cudnn(tf32=False, ours=False):
        plain = curve(plain_training(session, "frozen"), steps)
    with cudnn(ours=True):
        fast = curve(started_anew(session), steps)
        again = [curve(started_anew(session), 3) for _ in range(2)]
    difference = ((fast - plain).abs() / plain).max().item()
    session.add(
        "loss curves",
        f"ours against peer fp32, {steps} steps",
        largest_relative_difference=difference,
        must=f"at most {TOLERANCE}",
        met=difference <= TOLERANCE,
        note=f"loss {plain[0]:.3f} to {plain[-1]:.3f}",
        curves={"ours": fast.tolist(), "peer": plain.tolist()},
    )
    equal = torch.equal(again[0], again[1])
    session.add("loss curves", "ours twice, 3 steps", met=equal, must="equal bits")


def with_loader(session: Session) -> None:
    """Steps of `train_steps` on views of images in memory, by the wall clock."""
    training, steps = started_anew(session), session.sizes.loader
    images, side = session.sizes.train
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (images, 375, 500, 3), generator=generator, dtype=torch.uint8)
    maps = torch.randint(0, CATEGORIES, (images, 375, 500), generator=generator, dtype=torch.uint8)
    sample_of = partial(
        labelled_view,
        image_of=lambda name: pictures[int(name)].numpy(),
        label_map_of=lambda name: maps[int(name)].numpy(),
        augmentation=Augmentation((side, side), (0.7, 1.3), "horizontal"),
        stride=STRIDE,
        grid="centres",
    )
    ids = [str(number) for number in range(images)]
    training_set = TrainingSet(ids=ids, sample_of=sample_of, batch=images, seed=0)
    on_gpu = session.device.type == "cuda"
    workers = min(len(os.sched_getaffinity(0)), 8) if on_gpu else 0  # as `fit` has them
    loader = batches(
        training_set, first_step=0, last_step=steps, workers=workers, device=session.device
    )
    warm_up, begin = steps // 3, [0.0]

    def timed() -> Iterator[tuple[Tensor, Tensor]]:
        for number, one in enumerate(loader):
            if number == warm_up:
                session.synchronize()
                begin[0] = time.perf_counter()
            yield one

    assert training.form is not None and training.optimizer is not None
    with cudnn(ours=True):
        train_steps(
            training.form,
            training.optimizer,
            timed(),
            first_step=0,
            steps_per_epoch=steps,
            rate=lambda step: RATE,
            loss=every_cell,
            image_ids=training_set.image_ids,
            batch=images,
            at_once=images,
            seed=0,
            device=session.device,
            precision="bf16",
            history=[],
            on_step=lambda done: False,
        )
    session.synchronize()
    ms = 1e3 * (time.perf_counter() - begin[0]) / (steps - warm_up)
    add_training(session, "frozen", f"ours, with the loader in {workers} processes", ms)


# --- testing -------------------------------------------------------------------------------------
def add_testing(session: Session, way: str, ms: float, **values: Any) -> None:
    images, side = session.sizes.test
    job = f"label maps, FCRN-{session.sizes.depth}/{STRIDE}, {images} of {side}x{side}"
    flops = flops_of(session.sizes, side + -side % STRIDE, training=False)
    session.add_time(job, way, ms, images, flops, **values)


def tested(session: Session) -> tuple[Fcrn, Tensor]:
    network = start(session).eval()
    nn.init.normal_(network.classifier.weight, std=0.01)
    return network, batch(session, 0, session.sizes.test)[0].to(session.device)


@torch.inference_mode()
def testing_peer(session: Session, precision: str) -> None:
    network, images = tested(session)
    peer = PlainFcrn(network).to(session.device).eval()
    side = images.shape[1]
    padded = F.pad(images, (0, 0, 0, -side % STRIDE, 0, -side % STRIDE))

    def run() -> Tensor:
        probabilities = peer(padded).softmax(1)
        wide = F.interpolate(probabilities, scale_factor=float(STRIDE), mode="bilinear")
        return wide[:, :, :side, :side].argmax(1)

    with cudnn(tf32=precision == "TF32", ours=False):
        add_testing(session, f"peer {precision}", session.median_ms(run))


@torch.inference_mode()
def testing_ours(session: Session, *, taps: bool, compiles: bool) -> None:
    form_name, layer_name = "compiled" if compiles else "eager", "taps" if taps else "convolution"
    way = f"ours, {form_name}, {layer_name}"
    network, images = tested(session)
    fast = for_inference(network, precision="bf16")
    layer = copy.deepcopy(network.classifier)
    layer = layer.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    fast.classifier = TapSum(layer) if taps else layer
    compiles = compiles and session.device.type == "cuda"
    form: Any = torch.compile(fast, dynamic=False) if compiles else fast

    def run() -> Tensor:
        return view_probabilities(form, normalise(images), precision="bf16").argmax(1)

    plain = view_probabilities(network, normalise(images), precision="fp32").argmax(1)
    equal = 100 * (run() == plain).float().mean().item()
    ms = session.median_ms(run)
    asked = {"must": "3 x", "stretch": "6 x, 50 %"}
    add_testing(session, way, ms, **asked, note=f"{equal:.2f} % of labels as in fp32")


# --- memory --------------------------------------------------------------------------------------
def memory(session: Session, norm: str, way: str) -> None:
    """The most that a step takes beside parameters and momentum. On a CPU: what autograd keeps."""
    images, side = session.sizes.memory
    data = batch(session, 0, session.sizes.memory)
    ours = way.startswith("ours")
    with cudnn(ours=True):  # a search for the fastest algorithm takes memory of its own
        if ours:
            training = our_training(session, norm, compiles=way == "ours, compiled")
        else:
            training = plain_training(session, norm)
        for _ in range(2):
            training.step(*data)
        training.network.zero_grad(set_to_none=True)
        if session.device.type == "cuda":
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            training.step(*data)
            taken = torch.cuda.max_memory_allocated() - before
        else:
            taken = bytes_kept(lambda: training.step(*data), training.network.parameters())
    job = f"memory of training, {images} of {side}x{side}, BatchNorm {norm}"
    values: dict[str, Any] = {"megabytes_per_image": taken / images / 1e6}
    if not ours:
        session.peers[job] = taken
    else:
        values |= {"must": "0.6 of peer", "stretch": "0.4 of peer"}
        if job in session.peers:
            values["of_peer"] = taken / session.peers[job]
    session.add(job, way, **values)


# --- a part alone --------------------------------------------------------------------------------
def classifier(session: Session, *, padded: bool) -> None:
    """The last convolution, forward and backward; or with channels up to a multiple of 8."""
    images, side = session.sizes.train
    layer = start(session).classifier.to(memory_format=torch.channels_last)
    cells, extra = side // STRIDE, -CATEGORIES % 8 if padded else 0
    features = torch.randn(images, layer.in_channels, cells, cells, device=session.device)
    features = features.bfloat16().to(memory_format=torch.channels_last).requires_grad_()

    def run() -> None:
        with torch.autocast(session.device.type, torch.bfloat16):
            weight = F.pad(layer.weight, (0, 0, 0, 0, 0, 0, 0, extra))
            bias = F.pad(layer.bias, (0, extra))
            scores = F.conv2d(features, weight, bias, 1, layer.padding, layer.dilation)
        scores[:, :CATEGORIES].float().square().sum().backward()

    with cudnn(ours=True):
        ms = session.median_ms(run)
    flops = 3 * 2 * cells**2 * layer.weight.numel()
    job = "classifier alone, forward and backward"
    session.add_time(job, f"ours, {CATEGORIES + extra} channels", ms, images, flops)


Job = Callable[[Session], None]
JOBS: list[tuple[str, Job, int]] = [  # with seconds that each may well take on an H200
    ("matrix product", matrix_product, 5),
    ("training, peer TF32", partial(training_peer, norm="frozen", precision="TF32"), 15),
    ("training, peer fp32", partial(training_peer, norm="frozen", precision="fp32"), 25),
    ("training, ours", partial(training_ours, norm="frozen"), 100),
    ("training, bits not fixed", partial(training_ours, norm="frozen", fixed_bits=False), 10),
    ("waits", waits, 5),
    ("loss curves", loss_curves, 20),
    ("training, with the loader", with_loader, 15),
    ("testing, peer TF32", partial(testing_peer, precision="TF32"), 5),
    ("testing, peer fp32", partial(testing_peer, precision="fp32"), 5),
    ("testing, eager convolution", partial(testing_ours, taps=False, compiles=False), 5),
    ("testing, eager taps", partial(testing_ours, taps=True, compiles=False), 5),
    ("memory, peer, frozen", partial(memory, norm="frozen", way="peer"), 5),
    ("memory, frozen", partial(memory, norm="frozen", way="ours, uncompiled"), 5),
    ("memory, peer, train", partial(memory, norm="train", way="peer"), 5),
    ("memory, train", partial(memory, norm="train", way="ours, uncompiled"), 5),
    ("classifier", partial(classifier, padded=False), 3),
    ("classifier, padded", partial(classifier, padded=True), 3),
    ("testing, compiled convolution", partial(testing_ours, taps=False, compiles=True), 40),
    ("memory, frozen, compiled", partial(memory, norm="frozen", way="ours, compiled"), 80),
    ("testing, compiled taps", partial(testing_ours, taps=True, compiles=True), 40),
    ("training, peer, train", partial(training_peer, norm="train", precision="TF32"), 15),
    ("training, ours, train", partial(training_ours, norm="train"), 100),
    ("memory, train, compiled", partial(memory, norm="train", way="ours, compiled"), 80),
]
