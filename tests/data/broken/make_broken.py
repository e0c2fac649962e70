"""Makes files that lie, and `broken.json`: file -> reason of the refusal.

Written with Pillow 13.0.0:

    /tmp/golden/bin/python tests/data/broken/make_broken.py

Every file is small; what it claims to be is not. The server must answer each with a 4xx.
"""

import io
import json
import struct
import zlib
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
reasons = {}


def broken(name, data, reason):
    (HERE / name).write_bytes(bytes(data))
    reasons[name] = reason


def saved(format, size=(24, 20), mode="RGB", **options):
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, format, **options)
    return bytearray(out.getvalue())


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(width, height, data, bits=8, color=2, before=b""):
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", head) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def texts():
    broken("empty.jpg", b"", "empty")
    broken("one_byte.bin", b"\xff", "unknown_format")
    broken("text.txt", b"not an image\n", "unknown_format")
    broken("page.html", b"<!doctype html><title>404</title><p>Not found</p>\n", "unknown_format")
    broken("json.json", b'{"error": "not found"}\n', "unknown_format")
    broken("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>\n', "unknown_format")
    broken("zeros.bin", bytes(1000), "unknown_format")
    broken("avif_header.avif", b"\0\0\0\x20ftypavif" + bytes(40), "unknown_format")
    broken("pixmap.ppm", b"P6 2 2 255\n" + bytes(12), "unknown_format")
    broken("icon.ico", b"\0\0\1\0\1\0" + bytes(40), "unknown_format")


def truncations():
    """The first half of a good file, and its signature alone."""
    for format, keep in [("JPEG", 3), ("PNG", 8), ("GIF", 6), ("WEBP", 12), ("BMP", 2), ("TIFF", 4)]:
        data = saved(format)
        suffix = format.lower()
        broken(f"half.{suffix}", data[: len(data) // 2], "truncated")
        broken(f"signature.{suffix}", data[:keep], "truncated")
    jpeg = saved("JPEG")
    broken("no_end.jpeg", jpeg[:-2], "truncated")
    broken("half_an_end.jpeg", jpeg[:-1], "truncated")
    broken("half_progressive.jpeg", (lambda d: d[: len(d) * 2 // 3])(saved("JPEG", progressive=True)), "truncated")
    broken("half_gray_tiff.tiff", (lambda d: d[: len(d) - 100])(saved("TIFF", mode="L")), "truncated")
    broken("half_deflate.tiff", (lambda d: d[: len(d) // 2])(saved("TIFF", compression="tiff_adobe_deflate")), "truncated")
    broken("last_row.bmp", saved("BMP")[:-40], "truncated")


def jpegs():
    jpeg = saved("JPEG")
    frame = jpeg.index(b"\xff\xc0")

    def with_size(height, width, data=jpeg):
        at = data.index(b"\xff\xc0") if b"\xff\xc0" in data else data.index(b"\xff\xc2")
        return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]

    broken("bomb.jpeg", with_size(65535, 65535), "too_large")
    broken("bomb_progressive.jpeg", with_size(65500, 65500, saved("JPEG", progressive=True)), "too_large")
    broken("thin.jpeg", with_size(65535, 1), "too_large")
    broken("zero_height.jpeg", with_size(0, 24), "malformed")
    broken("zero_width.jpeg", with_size(20, 0), "malformed")
    broken("no_frame.jpeg", jpeg[:frame] + jpeg[frame + 2 + 17 :], "malformed")
    broken("two_frames.jpeg", jpeg[:frame] + jpeg[frame : frame + 19] + jpeg[frame:], "malformed")
    broken("no_scan.jpeg", b"\xff\xd8" + jpeg[frame : frame + 19] + b"\xff\xd9", "malformed")
    broken("no_tables.jpeg", b"\xff\xd8" + jpeg[frame:], "malformed")
    broken("long_segment.jpeg", b"\xff\xd8\xff\xe0\xff\xff" + jpeg[4:], "truncated")
    broken("twelve_bits.jpeg", jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], "unsupported")
    broken("arithmetic_lossless.jpeg", jpeg[: frame + 1] + b"\xcb" + jpeg[frame + 2 :], "unsupported")
    scan = jpeg.index(b"\xff\xda")
    broken("many_scans.jpeg", jpeg[:-2] + jpeg[scan : scan + 14] * 200 + b"\xff\xd9", "malformed")
    broken("only_markers.jpeg", b"\xff\xd8" + b"\xff" * 5000 + b"\xd9", "malformed")


def pngs():
    row = zlib.compress(bytes(10))
    broken("bomb.png", png(60000, 60000, zlib.compress(bytes(100000), 9)), "too_large")
    broken("huge_sides.png", png(0x7FFFFFFF, 0x7FFFFFFF, row), "too_large")
    broken("wide.png", png(16385, 1, row), "too_large")
    broken("zero_width.png", png(0, 3, row), "malformed")
    broken("zero_height.png", png(3, 0, row), "malformed")
    broken("few_rows.png", png(3, 300, zlib.compress(bytes(10))), "malformed")
    broken("bad_depth.png", png(3, 3, row, bits=7), "malformed")
    broken("bad_colour.png", png(3, 3, row, color=5), "malformed")
    broken("no_palette.png", png(3, 3, zlib.compress(bytes(12)), color=3), "malformed")
    good = saved("PNG")
    wrong_crc = bytearray(good)
    wrong_crc[30] ^= 1
    broken("header_crc.png", wrong_crc, "malformed")
    broken("long_chunk.png", SIGNATURE + b"\xff\xff\xff\xff" + good[12:], "malformed")
    broken("no_header.png", SIGNATURE + good[33:], "malformed")
    broken("no_data.png", bytes(good[:33]) + chunk(b"IEND", b""), "malformed")
    broken("not_zlib.png", png(3, 3, b"this is not zlib"), "malformed")
    profile = b"p\0\0" + zlib.compress(bytes(3_000_000), 9)
    broken("profile_bomb_then_cut.png", png(3, 3, row, before=chunk(b"iCCP", profile))[:-40], "truncated")


def gifs():
    gif = saved("GIF", mode="P")
    broken("huge_canvas.gif", gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:], "too_large")
    broken("zero_canvas.gif", gif[:6] + struct.pack("<HH", 0, 0) + gif[10:], "malformed")
    broken("frame_outside.gif", gif[:6] + struct.pack("<HH", 5, 5) + gif[10:], "malformed")
    at = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    while gif[at] == 0x21:  # extensions
        at += 2
        while gif[at]:
            at += gif[at] + 1
        at += 1
    broken("huge_frame.gif", gif[: at + 5] + struct.pack("<HH", 65535, 65535) + gif[at + 9 :], "malformed")
    broken("far_frame.gif", gif[: at + 1] + struct.pack("<HH", 60000, 60000) + gif[at + 5 :], "malformed")
    broken("no_frame.gif", gif[:at] + b";", "truncated")
    broken("bad_code_size.gif", gif[: at + 10] + b"\x0f" + gif[at + 11 :], "malformed")
    broken("few_pixels.gif", gif[: at + 11] + b"\3" + gif[at + 12 : at + 15] + b"\0;", "malformed")


def webps():
    webp = saved("WEBP", lossless=True)
    at = webp.index(b"VP8L")
    # 14 bits of width - 1, 14 of height - 1: 16383 each.
    huge = webp[at : at + 9] + b"\xfe\xbf\xff\x0f" + webp[at + 13 :]
    broken("huge.webp", b"RIFF" + struct.pack("<I", len(huge) + 4) + b"WEBP" + huge, "too_large")
    broken("wrong_length.webp", webp[: at + 4] + b"\xff\xff\xff\x7f" + webp[at + 8 :], "truncated")
    broken("no_picture.webp", b"RIFF\x0c\0\0\0WEBPJUNK\0\0\0\0", "malformed")
    lossy = saved("WEBP")
    at = lossy.index(b"VP8 ")
    broken("bad_start.webp", lossy[: at + 11] + b"\0\0\0" + lossy[at + 14 :], "malformed")


def bmps():
    bmp = saved("BMP")

    def with_size(width, height):
        return bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]

    broken("bomb.bmp", with_size(50000, 50000), "too_large")
    broken("lowest_height.bmp", with_size(5, -(2**31)), "malformed")
    broken("negative_width.bmp", with_size(-5, 5), "malformed")
    broken("zero.bmp", with_size(0, 5), "unsupported")
    broken("more_rows.bmp", with_size(24, 5000), "truncated")
    broken("far_data.bmp", bmp[:10] + struct.pack("<I", 0x7FFFFFFF) + bmp[14:], "truncated")
    broken("bad_depth.bmp", bmp[:28] + struct.pack("<H", 13) + bmp[30:], "malformed")
    masks = struct.pack("<III", 0x0F00, 0xF0, 0x0F)
    broken("other_masks.bmp", bmp[:18] + struct.pack("<iiHHI", 1, 1, 1, 16, 3) + bmp[34:54] + masks + bytes(4), "unsupported")
    broken("png_inside.bmp", bmp[:30] + struct.pack("<I", 5) + bmp[34:], "unsupported")


def tiff(entries, data=b""):
    """A little-endian TIFF of one directory; data follows the header."""
    out = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        out += struct.pack("<HHII", tag, kind, count, value)
    return out + struct.pack("<I", 0)


def tiff_of(mode):
    image = Image.linear_gradient("L").resize((24, 20)).convert("RGB" if mode in ("YCbCr", "LAB") else mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    elif mode == "YCbCr":
        image = image.convert(mode)
    out = io.BytesIO()
    image.save(out, "TIFF")
    return out.getvalue()


def tiffs():
    def gray(width, height, strip_bytes=12, rows=None, extra=()):
        entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
                   (277, 3, 1, 1), (278, 4, 1, rows or height), (279, 4, 1, strip_bytes)]
        by_tag = {entry[0]: entry for entry in [*entries, *extra]}
        return tiff([by_tag[tag] for tag in sorted(by_tag)], bytes(12))

    broken("bomb.tiff", gray(60000, 60000), "too_large")
    broken("most_pixels.tiff", gray(0xFFFFFFFF, 0xFFFFFFFF), "too_large")
    broken("zero.tiff", gray(0, 3), "malformed")
    broken("huge_strip.tiff", gray(4, 3, strip_bytes=0xFFFFFFF0, extra=[(273, 4, 1, 100000)]), "too_large")
    broken("many_strips.tiff", gray(4, 3, rows=1), "malformed")
    broken("many_offsets.tiff", gray(4, 3, extra=[(273, 4, 0x3FFFFFFF, 8)]), "too_large")
    broken("seven_bits.tiff", gray(4, 3, extra=[(258, 3, 1, 7)]), "unsupported")
    broken("jpeg_inside.tiff", gray(4, 3, extra=[(259, 3, 1, 7)]), "unsupported")
    for mode in ("P", "LA", "I", "F", "YCbCr", "LAB"):
        name = {"P": "palette", "LA": "gray_alpha", "I": "gray32", "F": "float", "YCbCr": "ycbcr", "LAB": "lab"}[mode]
        broken(f"{name}.tiff", tiff_of(mode), "unsupported")
    broken("fill_order3.tiff", gray(4, 3, extra=[(266, 3, 1, 3)]), "unsupported")
    # Four channels, of which the last is none of a colour, as differences of neighbours.
    four = [(258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 4), (317, 3, 1, 2), (338, 3, 1, 0)]
    broken("predictor_beside.tiff", gray(1, 3, extra=four), "unsupported")
    # Differences of neighbours where Pillow sees none.
    for name, compression in [("raw", 1), ("packbits", 32773)]:
        broken(f"predictor_{name}.tiff", gray(4, 3, extra=[(259, 3, 1, compression), (317, 3, 1, 2)]), "unsupported")

    def tiled(size, tile, data, samples=4):
        """Red, green, blue and channels that are no colour, in deflated tiles that all lie at the same place."""
        (width, height), (tile_width, tile_height) = size, tile
        n_tiles = -(-width // tile_width) * -(-height // tile_height)
        lists = [struct.pack(f"<{n_tiles}I", *[8] * n_tiles), struct.pack(f"<{n_tiles}I", *[len(data)] * n_tiles)]
        data += bytes(-len(data) % 4)
        at = 8 + len(data)
        places = [at, at + 4 * n_tiles] if n_tiles > 1 else [8, len(data)]
        extra = struct.pack(f"<{samples - 3}H", *[0] * (samples - 3))
        at_extra = at + 8 * n_tiles if samples > 5 else 0
        entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, samples),
                   (322, 4, 1, tile_width), (323, 4, 1, tile_height), (324, 4, n_tiles, places[0]), (325, 4, n_tiles, places[1]),
                   (338, 3, samples - 3, at_extra)]
        return tiff(entries, data + b"".join(lists) + extra)

    # Tiles far larger than the picture: one row is more than memory, or all of them together more than time.
    row = zlib.compress(bytes(1 << 22), 9)
    broken("huge_tile.tiff", tiled((8, 8), (0x7FFFFFFF, 8), row), "too_large")
    broken("wide_tiles.tiff", tiled((1, 1000), (1 << 20, 1), row), "too_large")
    broken("tiled_beside.tiff", tiled((3, 3), (16, 16), zlib.compress(bytes(16 * 16 * 4))), "unsupported")
    broken("many_channels.tiff", tiled((8, 8), (8, 8), zlib.compress(bytes(8 * 8 * 1003)), samples=1003), "unsupported")
    broken("no_directory.tiff", b"II*\0" + struct.pack("<I", 0), "truncated")
    broken("far_directory.tiff", b"II*\0" + struct.pack("<I", 0x7FFFFFFF), "truncated")
    # A directory whose next one is itself.
    looped = bytearray(gray(4, 3))
    looped[-4:] = struct.pack("<I", 20)
    broken("looped_and_short.tiff", looped[:8] + looped[14:], "malformed")


def main():
    for old in HERE.iterdir():
        if old.suffix != ".py":
            old.unlink()
    for part in (texts, truncations, jpegs, pngs, gifs, webps, bmps, tiffs):
        part()
    (HERE / "broken.json").write_text(json.dumps(reasons, indent=1) + "\n")


if __name__ == "__main__":
    main()
