"""The objects of an image: what trained networks say of it whole, and objects found in that.

C categories, T of them with objects ("things"), N objects, H x W pixels, h x w cells of the grid.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pipeline.box_targets import Standard
from pipeline.categories import things_of
from pipeline.checkpoints import SemanticNetwork, is_localizer, standard_of
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.inference import Cells, Size, for_inference, label_map_of_cells, stride_of
from pipeline.instance_maps import box_maps, semantic_maps, true_box_maps, true_semantic_maps
from pipeline.instances import Instances, component_instances, find_instances
from pipeline.object_maps import ObjectMap, object_map
from pipeline.params import BoxInstances, ComponentInstances, Views
from pipeline.params_file import build
from pipeline.params_networks import Precision
from pipeline.params_training import Targets
from pipeline.post_processing import ROOM
from pipeline.tiles import CPU_ROOM, GPU_NUMBERS, VIEW_BYTES, is_out_of_memory

MAP_COPIES = 3  # of the maps at a time: their mean so far, and what a view adds to it
GPU_CHANNELS = 64  # numbers of a layer by pixel of the view, at most
# Finding the objects of 20 things took 39 to 43 bytes by pixel of the image in all.
PIXEL_BYTES = 10
THING_BYTES = 2  # for each thing
COARSEST = 64  # pixels from vote to vote


class Maps(NamedTuple):
    """What is said of an image, on one grid over it: see `pipeline.instance_maps`."""

    probabilities: np.ndarray  # (C, h, w) float32
    boxes: np.ndarray | None  # (T, 4, h, w) float32, corners in pixels; None for components
    things: np.ndarray  # (T,) int64, the categories of these rows; those that may have objects
    stride: int  # pixels per cell
    size: Size  # H, W of the image


@dataclass(frozen=True)
class Asked:
    """A trained network, ready to be asked as its run computed.

    Attributes:
        network: in `eval()`, on `device`, as `for_inference` gives it.
        threads: of the processor.
        standard, targets: of a localisation network; None of a semantic one.
    """

    network: nn.Module
    device: torch.device
    precision: Precision
    threads: int
    standard: Standard | None = None
    targets: Targets | None = None


def asked(network: SemanticNetwork, saved: Mapping[str, Any], device: torch.device) -> Asked:
    """A trained network made ready.

    Args:
        network, saved: as `load_model` gives them.
    """
    run = saved["run"]
    standard = targets = None
    if is_localizer(saved):
        standard = standard_of(network)  # in full precision: before the copy for inference
        targets = build(Targets, run["targets"], "the checkpoint", "targets")
    fast = for_inference(network, precision=run["precision"])
    threads = run["threads"] or torch.get_num_threads()
    return Asked(fast, device, run["precision"], threads, standard, targets)


@dataclass(frozen=True)
class Finder:
    """Finds the objects of images, one image after another.

    Attributes:
        categories: names.
        semantic: None: the true categories stand in for it.
        localizer: None: the true boxes stand in for it; of no use for connected components.
    """

    categories: tuple[str, ...]
    rule: BoxInstances | ComponentInstances
    views: Views
    semantic: Asked | None
    localizer: Asked | None

    @property
    def asks_truth(self) -> bool:
        """Whether the true objects stand in for a network."""
        return isinstance(self.rule, BoxInstances) and None in (self.semantic, self.localizer)

    def maps(self, image: np.ndarray, objects: ObjectMap | None) -> Maps:
        """What is said of an image, by the networks or by the truth.

        The truth is on the grid of pixels, and then so is what a network says beside it. Boxes are
        asked for of true objects' categories only then: others cannot become objects.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: the true ones, where these stand in for a network.

        Raises:
            BadInput: the image does not fit whole, or a network says NaN.
            ValueError: the truth is asked for, and not there.
        """
        size, things = image.shape[:2], np.array(things_of(self.categories), np.int64)
        if isinstance(self.rule, ComponentInstances):
            if self.semantic is None:
                raise ValueError("components are those of a network's label map")
            stride = stride_of(self.semantic.network)
            self._need_room(size, stride, len(self.categories))
            return Maps(self._probabilities(image, stride, None), None, things, stride, size)
        stride, rows = self.rule.vote_stride, np.arange(len(things))
        if self.asks_truth:
            if objects is None:
                raise ValueError("the true objects stand in for a network, and are not given")
            stride, rows = 1, np.unique(objects.things)
        self._need_room(size, stride, len(self.categories) + 4 * len(rows))
        probabilities = self._probabilities(image, stride, objects)
        boxes = self._boxes(image, stride, rows.tolist(), objects)
        return Maps(probabilities, boxes, things[rows], stride, size)

    def instances(self, maps: Maps) -> Instances:
        """The objects in the maps of one image. May run in several threads."""
        if isinstance(self.rule, ComponentInstances):
            return component_instances(
                maps.probabilities, maps.things, size=maps.size, stride=maps.stride, rule=self.rule
            )
        assert maps.boxes is not None
        return find_instances(
            maps.probabilities,
            maps.boxes,
            maps.things,
            size=maps.size,
            stride=maps.stride,
            rule=self.rule,
        )

    def _probabilities(
        self, image: np.ndarray, stride: int, objects: ObjectMap | None
    ) -> np.ndarray:
        """(C, h, w), of the network or else of the objects."""
        if self.semantic is None:
            assert objects is not None
            return true_semantic_maps(objects, self.categories)
        call = partial(semantic_maps, self.semantic.network, image, vote_stride=stride)
        return self._ask(self.semantic, image.shape[:2], call)

    def _boxes(
        self, image: np.ndarray, stride: int, rows: Sequence[int], objects: ObjectMap | None
    ) -> np.ndarray:
        """(rows, 4, h, w), of the network or else of the objects."""
        if self.localizer is None:
            assert objects is not None
            return true_box_maps(objects, rows)
        localizer = self.localizer
        assert localizer.targets is not None and localizer.standard is not None
        call = partial(
            box_maps,
            localizer.network,
            image,
            targets=localizer.targets,
            standard=localizer.standard,
            vote_stride=stride,
            rows=rows,
        )
        return self._ask(localizer, image.shape[:2], call)

    def _ask(self, network: Asked, size: Size, call: Callable[..., np.ndarray]) -> np.ndarray:
        """What a network says. BadInput where it cannot look at the image whole."""
        device, views = network.device, self.views
        (height, width), largest = size, max(views.scales)
        pixels = GPU_NUMBERS / GPU_CHANNELS if device.type == "cuda" else CPU_ROOM / VIEW_BYTES
        most = math.sqrt(pixels / (height * width * (1 + views.flip)))
        if largest > most:
            raise BadInput(
                f"{height} x {width} pixels (height x width) at scale {largest:g} do not fit in "
                f"one pass on {device}, and objects are found in images whole; give views.scales "
                f"of at most {math.floor(most * 100) / 100:g}, or smaller images"
            )
        torch.set_num_threads(network.threads)
        try:
            return call(views=views, device=device, precision=network.precision)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if device.type == "cuda":  # here, where the exception holds no arrays any more
            torch.cuda.empty_cache()
        raise BadInput(
            f"{height} x {width} pixels (height x width) at scale {largest:g} do not fit in one "
            f"pass on {device}, and objects are found in images whole; give smaller views.scales, "
            "or smaller images"
        )

    def _need_room(self, size: Size, stride: int, numbers: int) -> None:
        """BadInput where maps of so many numbers for every cell are too large."""

        def fits(step: int) -> bool:
            cells = math.ceil(size[0] / step) * math.ceil(size[1] / step)
            return 4 * numbers * cells * MAP_COPIES <= ROOM

        if fits(stride):
            return
        enough = next((step for step in range(stride, COARSEST + 1) if fits(step)), None)
        can_be_coarser = isinstance(self.rule, BoxInstances) and not self.asks_truth
        coarser = f"an instances.vote_stride of {enough}, or " if enough and can_be_coarser else ""
        raise BadInput(
            f"{size[0]} x {size[1]} pixels (height x width) with {numbers} numbers for every "
            f"{stride} x {stride} of them do not fit in memory, and objects are found in images "
            f"whole; give {coarser}smaller images"
        )


def maps_of(finder: Finder, data: Prepared, image_id: str) -> Maps:
    """What is said of an image of a prepared dataset, which gives the truth where it is asked."""
    things = things_of(data.categories)
    objects = object_map(data, image_id, things) if finder.asks_truth else None
    return finder.maps(data.image(image_id), objects)


def label_map_of(maps: Maps) -> np.ndarray:
    """The most probable category of every pixel: (H, W) uint8.

    Of one view of a network of this stride, whose cells lie on centres, the same as
    `predict_label_map` gives on a CPU.
    """
    cells = Cells(torch.from_numpy(maps.probabilities)[None], maps.size, (0, 0))
    return label_map_of_cells([cells], stride=maps.stride, size=maps.size)


def bytes_of_finding(maps: Maps) -> int:
    """What finding the objects in the maps of one image is counted as."""
    kept = maps.probabilities.nbytes + (0 if maps.boxes is None else maps.boxes.nbytes)
    return 2 * kept + (PIXEL_BYTES + THING_BYTES * len(maps.things)) * math.prod(maps.size)
