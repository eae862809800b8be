"""Our decoding of index PNGs: the same numbers as Pillow's, or none."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets import png

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)


def saved(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def file_of(stream: bytes, shape: tuple[int, int], *header: int, pieces: int = 1) -> bytes:
    """A PNG file around a zlib stream; header: bits, colour, then three zeros as a rule."""
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], *header))
    step = -(-len(stream) // pieces)
    parts = [chunk(b"IDAT", stream[i : i + step]) for i in range(0, len(stream), step)]
    return png.START + first + b"".join(parts) + chunk(b"IEND", b"")


def filtered(pixels: np.ndarray, kinds: np.ndarray) -> bytes:
    """The rows of a map (H, W) uint8 or uint16 with filter kinds[y] each, by the definition."""
    size = pixels.itemsize
    rows = np.frombuffer(pixels.astype(f">u{size}").tobytes(), np.uint8).reshape(len(pixels), -1)
    height, width = rows.shape
    padded = np.zeros((height + 1, width + size), int)
    padded[1:, size:] = rows
    packed = bytearray()
    for y in range(height):
        packed.append(kinds[y])
        for x in range(width):
            a, b, c = padded[y + 1, x], padded[y, x + size], padded[y, x]
            p = a + b - c
            nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            guess = (0, a, b, (a + b) // 2, nearest)[kinds[y]]
            packed.append((int(rows[y, x]) - int(guess)) % 256)
    return bytes(packed)


@st.composite
def label_maps(draw) -> np.ndarray:
    """Blocks of few values with some noise, or pure noise."""
    kind = draw(st.sampled_from((np.uint8, np.uint16)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 16), st.integers(1, 50)))
    values = rng.integers(0, np.iinfo(kind).max + 1, 6).astype(kind)
    block = draw(st.integers(1, 30))
    coarse = rng.choice(values, (shape[0] // block + 1, shape[1] // block + 1))
    pixels = coarse.repeat(block, 0).repeat(block, 1)[: shape[0], : shape[1]].copy()
    noise = rng.random(shape) < draw(st.sampled_from((0, 0.02, 1)))
    pixels[noise] = rng.integers(0, np.iinfo(kind).max + 1, int(noise.sum()))
    return pixels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(label_maps(), st.integers(0, 9), st.integers(0, 2**32))
def test_maps_of_any_filters_and_packing_are_read(pixels, level, seed):
    kinds = np.random.default_rng(seed).integers(0, 5, len(pixels))
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE):
        packer = zlib.compressobj(level, strategy=strategy)
        stream = packer.compress(filtered(pixels, kinds)) + packer.flush()
        data = file_of(stream, pixels.shape, 8 * pixels.itemsize, 0, 0, 0, 0, pieces=1 + seed % 3)
        found = png.decode(data)
        assert found is not None and found.dtype == pixels.dtype
        np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(pillow(data), pixels)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(label_maps(), st.integers(0, 9))
def test_files_of_other_programs_are_read(pixels, level):
    np.testing.assert_array_equal(png.decode(saved(pixels, compress_level=level)), pixels)
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, level])
    assert ok
    np.testing.assert_array_equal(png.decode(data.tobytes()), pixels)


def test_a_palette_is_not_applied():
    image = Image.fromarray(np.array([[0, 3, 255]], np.uint8))
    image.putpalette(list(range(256)) * 3)
    for bits in (None, 8):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", **({"bits": bits} if bits else {}))
        assert png.decode(buffer.getvalue()).tolist() == [[0, 3, 255]]


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (3, 2)),
        Image.new("RGBA", (3, 2)),
        Image.new("LA", (3, 2)),
        Image.new("1", (3, 2)),
    ],
    ids=lambda image: image.mode,
)
def test_other_kinds_are_left_to_pillow(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert png.decode(buffer.getvalue()) is None


@pytest.mark.parametrize(
    "header", [(4, 0, 0, 0, 0), (8, 0, 0, 0, 1), (8, 0, 1, 0, 0), (8, 0, 0, 1, 0), (16, 3, 0, 0, 0)]
)
def test_headers_of_other_kinds_are_left_to_pillow(header):
    stream = zlib.compress(bytes(2 * (1 + 3)))
    assert png.decode(file_of(stream, (2, 3), 8, 0, 0, 0, 0)) is not None
    assert png.decode(file_of(stream, (2, 3), *header)) is None


@pytest.mark.parametrize("size", [0, 1, 7, 9, 1000])
def test_rows_of_another_length_than_the_header_says_are_refused(size):
    assert png.decode(file_of(zlib.compress(bytes(size)), (2, 3), 8, 0, 0, 0, 0)) is None


def test_an_unknown_filter_is_refused():
    stream = zlib.compress(bytes([5, 0, 0, 0]))
    assert png.decode(file_of(stream, (1, 3), 8, 0, 0, 0, 0)) is None


def test_a_file_cut_off_anywhere_is_refused():
    data = saved(np.arange(200, dtype=np.uint8).reshape(10, 20) % 7)
    assert png.decode(data) is not None
    assert all(png.decode(data[:end]) is None for end in range(len(data)))


def test_a_changed_byte_is_noticed():
    data = saved(np.arange(200, dtype=np.uint8).reshape(10, 20) % 7)
    for at in range(len(data)):
        assert png.decode(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(label_maps(), st.integers(0, 2**32))
def test_damaged_streams_are_refused_or_read_as_zlib_does(pixels, seed):
    rng = np.random.default_rng(seed)
    stream = bytearray(zlib.compress(filtered(pixels, rng.integers(0, 5, len(pixels)))))
    for _ in range(int(rng.integers(1, 4))):
        stream[int(rng.integers(2, len(stream)))] ^= 1 << int(rng.integers(8))
    data = file_of(bytes(stream), pixels.shape, 8 * pixels.itemsize, 0, 0, 0, 0)
    found = png.decode(data)
    if found is not None:
        raw = zlib.decompressobj(-15).decompress(bytes(stream[2:]))
        again = file_of(zlib.compress(raw), pixels.shape, 8 * pixels.itemsize, 0, 0, 0, 0)
        np.testing.assert_array_equal(found, pillow(again))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not here")
def test_real_label_maps_are_read_as_pillow_reads_them():
    paths = sorted(REAL.rglob("*_gtFine_*Ids.png"))[::5]
    paths += sorted((REAL / "VOCdevkit").rglob("SegmentationClass/*.png"))
    paths += sorted((REAL / "PennFudanPed").rglob("*_mask.png"))
    read = 0
    for path in paths:
        data = path.read_bytes()
        found = png.decode(data)
        if found is not None:
            read += 1
            np.testing.assert_array_equal(found, pillow(data))
    assert read >= 0.9 * len(paths) > 0
