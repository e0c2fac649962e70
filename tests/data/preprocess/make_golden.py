"""Makes the images of this folder and what Pillow makes of them.

Written with Pillow 13.0.0 (libjpeg-turbo 3.2, libwebp 1.6) and numpy:

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install Pillow==13.0.0 numpy
    /tmp/golden/bin/python tests/data/preprocess/make_golden.py

`golden.json` holds four lists. `decode`: file -> convert("RGB"), as SHA-256 of the pixels (height, width, 3) and the
first of them in hex. `resize`: file + configuration -> pixels after pre-crop, resize and crop. `scaled`: the same of JPEGs whose size
Pillow's `draft` has divided first by as much as the resize allows, with the pixels in `expected/`. `tensor`: file +
configuration -> SHA-256 of the float32 tensor (3, height, width), little-endian. Lossy files also have their expected
pixels in `expected/`, so that a decoder which is not Pillow's can be compared with it.
"""

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
FILES, EXPECTED = HERE / "files", HERE / "expected"
golden = {"decode": [], "resize": [], "scaled": [], "tensor": []}


def picture(height, width, seed=0):
    """A gradient with shapes and noise: smooth parts, edges and saturated pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    rgb = np.stack([255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 255 - 255 * (x + y) / (height + width)], -1)
    rgb[(x - width / 3) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 4) ** 2] = [255, 0, 64]
    rgb[height // 4 : height // 2, width // 2 : width * 3 // 4] = [0, 255, 255]
    noisy = slice(height * 3 // 4, None)
    rgb[noisy] = rng.integers(0, 256, rgb[noisy].shape)
    return rgb.round().clip(0, 255).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, bits, color, extra=b""):
    """A PNG written by hand: Pillow does not write every kind that it reads. `samples` is (height, row bytes)."""
    height = len(samples)
    width = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    width = samples.shape[1] * 8 // bits // width
    raw = b"".join(b"\0" + row.tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra
            + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def decode(name, data, exif="ignore", lossy=False, **note):
    """Writes a file and records what Pillow reads from it."""
    if isinstance(data, bytes):
        (FILES / name).write_bytes(data)
    image = Image.open(FILES / name)
    mode = image.mode
    if exif == "apply":
        image = ImageOps.exif_transpose(image)
    pixels = np.array(image.convert("RGB"))
    if lossy:
        expected = f"{name}.{exif}.png" if exif == "apply" else f"{name}.png"
        Image.fromarray(pixels).save(EXPECTED / expected, optimize=True)
        note["expected"] = expected
    golden["decode"].append({
        "file": name, "mode": mode, "exif": exif, "height": pixels.shape[0], "width": pixels.shape[1],
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(), "head": pixels.tobytes()[:12].hex(), **note,
    })


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pngs(rgb, image, alpha, rgba):
    gray = image.convert("L")
    decode("rgb.png", saved(image, "PNG"))
    decode("rgba.png", saved(rgba, "PNG"))
    decode("gray.png", saved(gray, "PNG"))
    decode("gray_alpha.png", saved(Image.merge("LA", [gray, alpha]), "PNG"))
    decode("gray_transparent.png", saved(gray, "PNG", transparency=7))
    decode("bilevel.png", saved(image.convert("1"), "PNG"))
    decode("palette.png", saved(image.quantize(200), "PNG"))
    for colors in (2, 4, 16):
        decode(f"palette_{colors}.png", saved(image.quantize(colors), "PNG"))
    decode("palette_transparent.png", saved(image.quantize(100), "PNG", transparency=3))
    decode("palette_alpha.png", saved(image.quantize(100), "PNG", transparency=bytes(range(100))))
    rng = np.random.default_rng(1)
    for bits in (2, 4):
        decode(f"gray{bits}.png", png(rng.integers(0, 256, (9, 5), dtype=np.uint8), bits, 0))
    words = rng.integers(0, 65536, (9, 11 * 4)).astype(">u2")
    words[0, :12] = [0, 1, 127, 128, 254, 255, 256, 257, 383, 384, 65280, 65535]
    for name, color, channels in [("gray16", 0, 1), ("rgb16", 2, 3), ("gray_alpha16", 4, 2), ("rgba16", 6, 4)]:
        samples = np.ascontiguousarray(words[:, : 11 * channels]).view(np.uint8)
        decode(f"{name}.png", png(samples, 16, color))
    samples = np.ascontiguousarray(words[:, :11]).view(np.uint8)
    decode("gray16_transparent.png", png(samples, 16, 0, chunk(b"tRNS", b"\0\xff")))
    animation = [Image.fromarray(picture(29, 37, seed)) for seed in range(2)]
    decode("animated.png", saved(animation[0], "PNG", save_all=True, append_images=animation[1:]))


def frame_inside(data, left, top, canvas):
    """A GIF whose frame fills only a part of its canvas."""
    data = bytearray(data)
    data[6:10] = struct.pack("<HH", *canvas)
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 13
    while data[at] == 0x21:  # extensions
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    assert data[at] == 0x2C
    data[at + 1 : at + 5] = struct.pack("<HH", left, top)
    return bytes(data)


def gifs(image, rgba):
    decode("palette.gif", saved(image.quantize(64), "GIF"))
    decode("not_interlaced.gif", saved(image.quantize(64), "GIF", interlace=0))
    decode("gray.gif", saved(image.convert("L"), "GIF"))
    decode("transparent.gif", saved(image.quantize(64), "GIF", transparency=5))
    decode("rgba.gif", saved(rgba, "GIF"))
    frames = [Image.fromarray(picture(29, 37, seed)).quantize(32) for seed in range(3)]
    decode("animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40))
    decode("small_frame.gif", frame_inside(saved(image.quantize(64), "GIF"), 3, 5, (50, 40)))
    small = frame_inside(saved(image.quantize(64), "GIF", transparency=5), 3, 5, (50, 40))
    decode("small_transparent_frame.gif", small)


def webps(image, rgba):
    decode("lossless.webp", saved(image, "WEBP", lossless=True))
    decode("lossless_alpha.webp", saved(rgba, "WEBP", lossless=True, exact=True))
    decode("lossy.webp", saved(image, "WEBP", quality=80), lossy=True)
    decode("lossy_alpha.webp", saved(rgba, "WEBP", quality=80), lossy=True)
    frames = [Image.fromarray(picture(29, 37, seed)) for seed in range(2)]
    decode("animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    frames = [rgba, Image.fromarray(picture(29, 37, 1))]
    for name, options in {"": {"lossless": True, "exact": True}, "_lossy": {"quality": 80}}.items():
        data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], **options))
        # Blended into the canvas, in which there is nothing yet.
        data[data.index(b"ANMF") + 23] &= ~2
        decode(f"animated_alpha{name}.webp", bytes(data), lossy=bool(name))
    # A canvas larger than the frame, 40 x 31.
    data[24:30] = b"\x27\0\0\x1e\0\0"
    decode("animated_small_frame.webp", bytes(data), lossy=True)


def bmp_by_hand(width, height, bits, data, compression=0, palette=b"", masks=b""):
    offset = 54 + len(masks) + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 2835, 2835, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + masks + palette + data


def bmps(image, rgba):
    decode("rgb.bmp", saved(image, "BMP"))
    decode("gray.bmp", saved(image.convert("L"), "BMP"))
    decode("bilevel.bmp", saved(image.convert("1"), "BMP"))
    decode("palette.bmp", saved(image.quantize(32), "BMP"))
    decode("rgba.bmp", saved(rgba, "BMP"))
    rng = np.random.default_rng(2)
    words = rng.integers(0, 65536, (8, 10)).astype("<u2").tobytes()
    decode("rgb555.bmp", bmp_by_hand(10, 8, 16, words))
    decode("rgb555_masks.bmp", bmp_by_hand(10, 8, 16, words, 3, masks=struct.pack("<III", 0x7C00, 0x3E0, 0x1F)))
    decode("rgb565.bmp", bmp_by_hand(10, 8, 16, words, 3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)))
    palette = rng.integers(0, 256, (256, 4), dtype=np.uint8)
    palette[:, 3] = 0
    runs = b"".join(bytes([6, y, 4, 200 - y, 0, 0]) for y in range(8)) + b"\0\1"
    decode("rle8.bmp", bmp_by_hand(10, 8, 8, runs, 1, palette=palette.tobytes()))
    # Rows that end early, and steps to the right and up: what they leave out has the first colour.
    gaps = b"\4\7\0\0" + b"\2\5\0\2\3\2\3\x0b\0\0" + b"\0\2\4\0\6\x0d\0\0" + b"\x0a\1\0\0" * 4 + b"\0\1"
    decode("rle8_gaps.bmp", bmp_by_hand(10, 8, 8, gaps, 1, palette=palette.tobytes()))
    # The oldest header. Where later ones have the bits of a pixel stands a 16, in its first row.
    core = lambda bits, behind: b"BM" + struct.pack("<IHHIIHHHH", 26 + len(behind), 0, 0, 26, 12, 2, 1, 1, bits) + behind
    decode("core.bmp", core(24, bytes([100, 200, 16, 0, 60, 50, 0, 0])))
    decode("top_down.bmp", bmp_by_hand(4, -3, 24, rng.integers(0, 256, 36, dtype=np.uint8).tobytes()))


def tiff(size, bits, photometric, strips, compression=1, order="<", tile=None, **tags):
    """A TIFF written by hand, a strip for each plane, or tiles of this size. `tags` are numbers of two bytes, or bytes."""
    (width, height), samples = size, len(bits)
    entries = {
        256: [width], 257: [height], 258: bits, 259: [compression], 262: [photometric], 277: [samples], 278: [height],
        284: [2 if len(strips) > 1 and not tile else 1],
        **{int(tag[1:]): value for tag, value in tags.items()},
    }
    data = b"".join(strips)
    starts = np.cumsum([8] + [len(strip) for strip in strips[:-1]]).tolist()
    data += b"\0" * (len(data) % 2)
    where, lengths = (324, 325) if tile else (273, 279)
    entries[where], entries[lengths] = starts, [len(strip) for strip in strips]
    if tile:
        entries[322], entries[323] = [tile[0]], [tile[1]]
    directory, behind = struct.pack(order + "H", len(entries)), b""
    at = 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        kind, count = (1 if isinstance(value, bytes) else 4 if tag in (where, lengths) else 3), len(value)
        packed = value if kind == 1 else struct.pack(f"{order}{count}{'I' if kind == 4 else 'H'}", *value)
        if len(packed) > 4:
            packed += b"\0" * (len(packed) % 2)
            behind, packed = behind + packed, struct.pack(order + "I", at + len(behind))
        directory += struct.pack(order + "HHI", tag, kind, count) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + directory + b"\0\0\0\0" + behind


def reversed_bits(data):
    """Each byte with its bits the other way round: fill order 2."""
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()


DEFLATE = 8


def tiffs_by_hand(image):
    rng = np.random.default_rng(7)
    rgba = rng.integers(0, 256, (24, 19, 4), dtype=np.uint8)
    # Every alpha with every kind of colour: below it, above it, and none.
    rgba[:14, :, 3] = np.minimum(np.arange(14 * 19), 255).reshape(14, 19)
    decode("premultiplied.tiff", tiff((19, 24), [8] * 4, 2, [rgba.tobytes()], t338=[1]))
    planes = [zlib.compress(rgba[:, :, channel].tobytes()) for channel in range(4)]
    decode("premultiplied_planes.tiff", tiff((19, 24), [8] * 4, 2, planes, DEFLATE, t338=[1]))
    for order, name in (("<", "little"), (">", "big")):
        words = rng.integers(0, 65536, (24, 19, 4)).astype(order + "u2")
        words[:14, :, 3] = rgba[:14, :, 3].astype(int) * 256 + 255 - rgba[:14, :, 3]
        packed = zlib.compress(words.tobytes())
        decode(f"premultiplied16_{name}.tiff", tiff((19, 24), [16] * 4, 2, [packed], DEFLATE, order, t338=[1]))
    # Straight alpha, and a fourth channel that is none, are left alone.
    decode("straight.tiff", tiff((19, 24), [8] * 4, 2, [rgba.tobytes()], t338=[2]))
    decode("fourth_channel.tiff", tiff((19, 24), [8] * 4, 2, [rgba.tobytes()], t338=[0]))
    padded = np.pad(rgba, ((0, 8), (0, 13), (0, 0)))
    tiles = [padded[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
    for name, channels in (("tiled", 3), ("tiled_rgba", 4)):
        deflated = [zlib.compress(tile[:, :, :channels].tobytes()) for tile in tiles]
        alpha = {"t338": [2]} if channels == 4 else {}
        decode(f"{name}.tiff", tiff((19, 24), [8] * channels, 2, deflated, DEFLATE, tile=(16, 16), **alpha))
    words = rng.integers(0, 600, (9, 11)).astype("<u2")
    words[0] = [0, 1, 254, 255, 256, 65535, 65534, 65281, 65280, 32768, 300]
    decode("white_is_zero16.tiff", tiff((11, 9), [16], 0, [words.tobytes()]))
    decode("white_is_zero16_deflate.tiff", tiff((11, 9), [16], 0, [zlib.compress(words.tobytes())], DEFLATE))
    decode("white_is_zero.tiff", tiff((19, 24), [8], 0, [rgba[:, :, 0].tobytes()]))
    for bits in (1, 2, 4, 8):
        row_bytes = -(-19 * bits // 8)
        gray = rng.integers(0, 256, 24 * row_bytes, dtype=np.uint8).tobytes()
        decode(f"reversed_gray{bits}.tiff", tiff((19, 24), [bits], 1, [gray], t266=[2]))
    packed = reversed_bits(zlib.compress(rgba[:, :, :3].tobytes()))
    decode("reversed_deflate.tiff", tiff((19, 24), [8] * 3, 2, [packed], DEFLATE, t266=[2]))
    decode("reversed_rgb.tiff", tiff((19, 24), [8] * 3, 2, [rgba[:, :, :3].tobytes()], t266=[2]))
    group4 = Image.open(io.BytesIO(saved(image.convert("1"), "TIFF", compression="group4")))
    (start,), (length,) = group4.tag_v2[273], group4.tag_v2[279]
    group4.fp.seek(start)
    packed = reversed_bits(group4.fp.read(length))
    photometric = group4.tag_v2[262]
    decode("reversed_group4.tiff", tiff(image.size, [1], photometric, [packed], 4, t266=[2]))


def tiffs(image, rgba):
    decode("raw.tiff", saved(image, "TIFF"))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        decode(f"{compression}.tiff", saved(image, "TIFF", compression=compression))
    decode("gray.tiff", saved(image.convert("L"), "TIFF"))
    decode("bilevel.tiff", saved(image.convert("1"), "TIFF"))
    decode("group4.tiff", saved(image.convert("1"), "TIFF", compression="group4"))
    decode("rgba.tiff", saved(rgba, "TIFF"))
    decode("cmyk.tiff", saved(image.convert("CMYK"), "TIFF"))
    words = np.random.default_rng(3).integers(0, 600, (9, 11)).astype(np.uint16)
    decode("gray16.tiff", saved(Image.fromarray(words), "TIFF"))


def jpegs(image):
    smooth = Image.fromarray(picture(64, 80)[:, :, ::-1])
    for name, subsampling in [("420", 2), ("422", 1), ("444", 0)]:
        decode(f"{name}.jpg", saved(image, "JPEG", quality=90, subsampling=subsampling), lossy=True)
        decode(f"{name}_larger.jpg", saved(smooth, "JPEG", quality=75, subsampling=subsampling), lossy=True)
    decode("progressive.jpg", saved(image, "JPEG", quality=85, progressive=True), lossy=True)
    decode("restarts.jpg", saved(smooth, "JPEG", quality=75, restart_marker_rows=1), lossy=True)
    decode("gray.jpg", saved(image.convert("L"), "JPEG"), lossy=True)
    decode("plain_rgb.jpg", saved(image, "JPEG", keep_rgb=True), lossy=True)
    colours(image)
    cmyk = saved(image.convert("CMYK"), "JPEG", quality=90)
    decode("cmyk.jpg", cmyk, lossy=True)
    adobe = cmyk.index(b"Adobe")
    decode("ycck.jpg", cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :], lossy=True)
    decode("three_scans.jpg", three_scans(image), lossy=True)
    decode("behind_the_end.jpg", saved(image, "JPEG", quality=90) + b"more" * 9, lossy=True)


def three_scans(image):
    """A baseline JPEG with a scan for each component: three gray ones under one header."""
    parts = [saved(plane, "JPEG", quality=90) for plane in image.convert("YCbCr").split()]
    frame, scan = parts[0].index(b"\xff\xc0"), parts[0].index(b"\xff\xda")
    components = b"".join(bytes([name, 0x11, 0]) for name in (1, 2, 3))
    header = b"\xff\xc0\0\x11" + parts[0][frame + 4 : frame + 9] + b"\3" + components
    scans = [part[scan : scan + 5] + bytes([name]) + part[scan + 6 : -2] for name, part in enumerate(parts, 1)]
    return parts[0][:frame] + header + parts[0][frame + 13 : scan] + b"".join(scans) + b"\xff\xd9"


def colours(image):
    """What says whether three components are YCbCr or RGB: a JFIF marker, Adobe's, or their names, in this order."""
    def named(data, names=b"RGB"):
        data = bytearray(data)
        for marker, behind, step in ((0xC0, 10, 3), (0xDA, 5, 2)):
            at = data.index(bytes([0xFF, marker])) + behind
            data[at : at + 3 * step : step] = names
        return bytes(data)

    def without(data, marker):
        at = data.index(bytes([0xFF, marker]))
        return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]

    def with_adobe(data, transform):
        return data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + data[2:]

    rgb = without(saved(image, "JPEG", keep_rgb=True), 0xEE)
    for name, subsampling in (("444", 0), ("420", 2)):
        ycbcr = saved(image, "JPEG", quality=90, subsampling=subsampling)
        decode(f"named_rgb_jfif_{name}.jpg", named(ycbcr), lossy=True)
        decode(f"adobe0_jfif_{name}.jpg", with_adobe(ycbcr, 0), lossy=True)
        decode(f"named_rgb_adobe1_{name}.jpg", with_adobe(named(without(ycbcr, 0xE0)), 1), lossy=True)
        decode(f"named_else_{name}.jpg", named(without(ycbcr, 0xE0), b"YUV"), lossy=True)
    decode("named_rgb.jpg", rgb, lossy=True)
    decode("adobe0.jpg", with_adobe(named(rgb, b"\1\2\3"), 0), lossy=True)
    decode("named_rgb_jfif_behind.jpg", rgb[:-2] + b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + rgb[-2:], lossy=True)


def exifs():
    small = Image.fromarray(picture(6, 9, 4))
    blocks = Image.fromarray(np.kron(picture(2, 3, 5), np.ones((16, 16, 1), np.uint8)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        decode(f"exif{orientation}.png", saved(small, "PNG", exif=exif), "apply")
        decode(f"exif{orientation}.jpg", saved(blocks, "JPEG", exif=exif, subsampling=0), "apply", lossy=True)
    decode("exif6.png", None, "ignore")
    decode("exif6.webp", saved(small, "WEBP", lossless=True, exif=exif_of(6)), "apply")
    decode("exif8.tiff", saved(small, "TIFF", exif=exif_of(8)), "apply")
    decode("exif9.png", saved(small, "PNG", exif=exif_of(9)), "apply")
    # Compressed: of others Pillow 13 turns some kinds into noise. They are turned whoever asks.
    for orientation in range(1, 9):
        file = saved(small, "TIFF", exif=exif_of(orientation), compression="tiff_lzw")
        for exif in ("ignore", "apply"):
            decode(f"exif{orientation}_lzw.tiff", file, exif)
    gray = saved(small.convert("L"), "TIFF", exif=exif_of(6), compression="packbits")
    decode("exif6_gray.tiff", gray, "ignore")
    xmps(small, blocks)


def packet(orientation, as_element=False):
    said = f"><tiff:Orientation>{orientation}</tiff:Orientation>" if as_element else f' tiff:Orientation="{orientation}">'
    about = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{about}{said}</rdf:Description></rdf:RDF></x:xmpmeta>'.encode()


def with_chunks(png, *chunks, behind=False):
    """A PNG with chunks before or behind its pixels."""
    at = png.index(b"IEND") - 4 if behind else 33
    return png[:at] + b"".join(chunk(kind, data) for kind, data in chunks) + png[at:]


def xmps(small, blocks):
    """An orientation in XMP counts where EXIF has none."""
    plain, keyword = saved(small, "PNG"), b"XML:com.adobe.xmp\0"
    text = lambda xmp: (b"iTXt", keyword + b"\0\0\0\0" + xmp)
    exif = lambda orientation: (b"eXIf", exif_of(orientation).tobytes()[6:])
    other = Image.Exif()
    other[0x010F] = "a camera"
    without = (b"eXIf", other.tobytes()[6:])
    for name, chunks in {
        "xmp6": [text(packet(6))],
        "xmp5_element": [text(packet(5, as_element=True))],
        "xmp0": [text(packet(0))],
        "xmp_word": [text(b'tiff:Orientation=6 tiff:Orientation = "6" tiff:Orientation="x" tiff:Orientation="8"')],
        "xmp_deflated": [(b"iTXt", keyword + b"\1\0en\0XMP\0" + zlib.compress(packet(7)))],
        "xmp_plain_text": [(b"tEXt", keyword + packet(4))],
        "xmp_deflated_text": [(b"zTXt", keyword + b"\0" + zlib.compress(packet(2)))],
        "xmp_beside_exif1": [exif(1), text(packet(6))],
        "xmp_beside_exif9": [exif(9), text(packet(6))],
        "xmp_beside_exif": [without, text(packet(3))],
        "two_xmps": [text(packet(3)), text(packet(6))],
    }.items():
        decode(f"{name}.png", with_chunks(plain, *chunks), "apply")
    decode("xmp6.png", None, "ignore")
    decode("xmp_behind.png", with_chunks(plain, text(packet(8)), behind=True), "apply")
    decode("exif_behind.png", with_chunks(plain, exif(8), behind=True), "apply")
    for kind in ("tEXt", "zTXt"):
        block = exif_of(6).tobytes()
        digits = block.hex()
        lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
        profile = f"\nexif\n{len(block):8}\n{lines}\n".encode()
        profile = b"\0" + zlib.compress(profile) if kind == "zTXt" else profile
        chunks = [(kind.encode(), b"Raw profile type exif\0" + profile)]
        decode(f"exif_in_{kind}.png", with_chunks(plain, *chunks), "apply")
    for name, options in {
        "xmp6": {"xmp": packet(6)},
        "xmp7_element": {"xmp": packet(7, as_element=True)},
        "xmp_beside_exif": {"xmp": packet(8), "exif": other},
        "xmp_beside_exif3": {"xmp": packet(8), "exif": exif_of(3)},
    }.items():
        decode(f"{name}.jpg", saved(blocks, "JPEG", subsampling=0, **options), "apply", lossy=True)
        decode(f"{name}.webp", saved(small, "WEBP", lossless=True, **options), "apply")
    packed = [zlib.compress(small.tobytes())]
    decode("xmp6.tiff", tiff(small.size, [8] * 3, 2, packed, DEFLATE, t700=packet(6)), "ignore")
    decode("xmp6_beside_1.tiff", tiff(small.size, [8] * 3, 2, packed, DEFLATE, t700=packet(6), t274=[1]), "ignore")
    decode("xmp6_beside_9.tiff", tiff(small.size, [8] * 3, 2, packed, DEFLATE, t700=packet(6), t274=[9]), "ignore")


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILTERS = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}


def centered(image, height, width):
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def transformed(image, config):
    """The steps as torchvision does them on a PIL image."""
    if "pre_crop" in config:
        side = round(config["pre_crop"] * min(image.size))
        image = centered(image, side, side)
    resize = config.get("resize")
    if isinstance(resize, int):
        width, height = image.size
        short, long = min(width, height), max(width, height)
        new_long = int(resize * long / short)
        resize = [resize, new_long] if height <= width else [new_long, resize]
    if resize:
        image = image.resize((resize[1], resize[0]), FILTERS[config["interpolation"]])
    crop = config.get("crop")
    if crop:
        height, width = (crop, crop) if isinstance(crop, int) else crop
        image = centered(image, height, width)
    return np.array(image)


def target(config, width, height):
    """The size that `resize` gives an image of this size, after the pre-crop."""
    if "pre_crop" in config:
        width = height = round(config["pre_crop"] * min(width, height))
    resize = config["resize"]
    if isinstance(resize, int):
        long = int(resize * max(width, height) / min(width, height))
        resize = [resize, long] if height <= width else [long, resize]
    return (width, height), resize


def scaled():
    configs = [
        {"resize": [32, 40]}, {"resize": [16, 20]}, {"resize": [8, 10]}, {"resize": 20, "crop": 16}, {"resize": 11, "crop": 10},
        {"pre_crop": 0.75, "resize": 9}, {"resize": [5, 40]}, {"resize": 33, "crop": 32},
    ]
    for name in ["420_larger", "422_larger", "444_larger", "restarts", "gray", "progressive"]:
        for number, config in enumerate(configs):
            if name in ("gray", "progressive") and config["resize"] != 11:
                continue
            image = Image.open(FILES / f"{name}.jpg")
            (width, height), (new_height, new_width) = target(config, *image.size)
            times = min(width // new_width, height // new_height)
            reduction = next(n for n in (8, 4, 2, 1) if n <= times)
            full = image.size
            image.draft(image.mode, (full[0] // reduction, full[1] // reduction))
            assert image.size == tuple(-(-side // reduction) for side in full)
            # The target is that of the whole picture.
            config = {**config, "interpolation": "bilinear"}
            pixels = transformed(image.convert("RGB"), {**config, "resize": [new_height, new_width]})
            expected = f"{name}.scaled{number}.png"
            Image.fromarray(pixels).save(EXPECTED / expected, optimize=True)
            golden["scaled"].append({"file": f"{name}.jpg", "config": config, "reduction": reduction, "expected": expected})


def resizes():
    for name, (height, width) in {"landscape": (47, 61), "portrait": (150, 113), "wide": (2, 1001), "dot": (1, 1)}.items():
        Image.fromarray(picture(height, width, 6)).save(FILES / f"{name}.png", optimize=True)
    shapes = {
        "landscape": [
            {"resize": 36, "crop": 32}, {"resize": 35, "crop": 32}, {"resize": 33, "crop": [32, 31]}, {"resize": 100},
            {"resize": [23, 97]}, {"resize": [97, 23]}, {"resize": [47, 30]}, {"resize": [20, 61]}, {"resize": [47, 61]},
            {"resize": 47, "crop": 40}, {"crop": 33}, {"pre_crop": 0.875, "resize": 32}, {"pre_crop": 0.5, "resize": [64, 48]},
            {"pre_crop": 1.0}, {"pre_crop": 0.33, "resize": 16, "crop": 13}, {"resize": [1, 1]}, {"resize": [300, 200], "crop": 64},
            {"resize": [47, 120], "crop": [11, 90]}, {"resize": [90, 61], "crop": [77, 10]},
        ],
        "portrait": [
            {"resize": 36, "crop": 32}, {"resize": 64, "crop": 56}, {"resize": [7, 5]}, {"resize": 112}, {"resize": 200, "crop": 97},
            {"pre_crop": 0.875, "resize": 32}, {"resize": [151, 114]}, {"resize": [149, 112], "crop": [100, 101]},
        ],
        "wide": [{"resize": [2, 333]}, {"resize": [3, 777]}, {"resize": [1, 1000]}, {"resize": [2, 1002]}, {"resize": 8, "crop": 8}],
        "dot": [{"resize": 5}, {"resize": [3, 8], "crop": [2, 7]}, {"pre_crop": 0.6, "resize": 2}],
    }
    for name, configs in shapes.items():
        image = Image.open(FILES / f"{name}.png").convert("RGB")
        for config in configs:
            for interpolation in FILTERS:
                config = {**config, "interpolation": interpolation}
                pixels = transformed(image, config)
                golden["resize"].append({
                    "file": f"{name}.png", "config": config, "height": pixels.shape[0], "width": pixels.shape[1],
                    "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(), "head": pixels.tobytes()[:12].hex(),
                })
    for mean, std in [([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.5] * 3, [0.5] * 3), ([0.498039216] * 3, [0.501960784] * 3)]:
        config = {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": mean, "std": std}
        pixels = transformed(Image.open(FILES / "landscape.png").convert("RGB"), config)
        f32 = np.float32
        # torchvision's ToTensor and Normalize, each operation in float32.
        tensor = (pixels.transpose(2, 0, 1).astype(f32) / f32(255) - np.array(mean, f32)[:, None, None]) / np.array(std, f32)[:, None, None]
        tensor = np.ascontiguousarray(tensor.astype("<f4"))
        golden["tensor"].append({
            "file": "landscape.png", "config": config, "sha256": hashlib.sha256(tensor.tobytes()).hexdigest(),
            "head": [float(v) for v in tensor.ravel()[:4]],
        })


def main():
    for folder in (FILES, EXPECTED):
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
    rgb = picture(29, 37)
    image = Image.fromarray(rgb)
    alpha = Image.fromarray((np.arange(29 * 37) % 256).astype(np.uint8).reshape(29, 37))
    rgba = image.copy()
    rgba.putalpha(alpha)
    pngs(rgb, image, alpha, rgba)
    gifs(image, rgba)
    webps(image, rgba)
    bmps(image, rgba)
    tiffs(image, rgba)
    tiffs_by_hand(image)
    jpegs(image)
    exifs()
    scaled()
    resizes()
    lines = [f'  "{key}": [\n' + ",\n".join("    " + json.dumps(case) for case in cases) + "\n  ]" for key, cases in golden.items()]
    (HERE / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
