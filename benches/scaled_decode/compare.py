"""What `decode = "scaled"` costs, on real photos with EfficientNet-Lite0 and on the test icons of icons30.

    python compare.py --scaled-binary EQUIPOISE --exact-binary EQUIPOISE --lite0 DIR --icons DIR --work DIR

--scaled-binary is built with `--features turbojpeg`, --exact-binary without it (zune-jpeg). Photos are never part of the
repository: three come inside the wheel of scikit-image, the rest from Debian packages, fetched with `apt-get download` and
unpacked below --work; where there is no apt-get only the three are used. Their licences (CC0, CC BY, CC BY-SA, GPL-2+, public
domain) are in the packages.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SCIKIT_IMAGE = "scikit-image==0.26.0"
WHEEL_PHOTOS = ["skimage/data/astronaut.png", "skimage/data/hubble_deep_field.jpg", "skimage/data/retina.jpg"]
# Package: photos in it. The packages' other pictures are drawings, or patterns made by a program.
DEBIAN_PHOTOS = {
    "lomiri-wallpapers-16.04": [
        f"usr/share/backgrounds/{name}.jpg"
        for name in (
            "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Picture_0B_by_freespace", "Picture_1A_by_freespace",
            "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi", "free_by_Peter_Nerlich",
            "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich", "life_by_Aitzol_Berasategi",
            "picosdeeuropa_by_Aitzol_Berasategi", "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi",
        )
    ],
    "lomiri-wallpapers-20.04": ["usr/share/backgrounds/Kleiber_by_Lukas_Baubkus.jpg"],
    "mate-backgrounds": [
        f"usr/share/backgrounds/mate/nature/{name}.jpg"
        for name in (
            "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm",
            "TwoWings", "Wood", "YellowFlower",
        )
    ],
}  # fmt: skip

# What is cut out of each photo: the whole, and five overlapping windows of 0.6 of each side: left, top.
WINDOWS = {"whole": None, "middle": (0.2, 0.2), "nw": (0, 0), "ne": (0.4, 0), "sw": (0, 0.4), "se": (0.4, 0.4)}
WINDOW_SIDE = 0.6
QUALITIES = (90, 95)
SHOTS = ("many", "medium", "few")


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def fetch_photos(work):
    """The photos as `{name: path}`."""
    there = work / "photos"
    there.mkdir(parents=True, exist_ok=True)
    photos = {}
    wheels = work / "wheels"
    if not list(wheels.glob("scikit_image-*.whl")):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        run(*pip, "--only-binary=:all:", "--dest", wheels, SCIKIT_IMAGE)
    with zipfile.ZipFile(next(wheels.glob("scikit_image-*.whl"))) as wheel:
        for path in WHEEL_PHOTOS:
            photos[Path(path).stem] = Path(wheel.extract(path, there / "scikit-image"))
    for package, paths in DEBIAN_PHOTOS.items():
        folder = there / package
        if not folder.exists():
            if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
                print(f"no apt-get here: without the photos of {package}", file=sys.stderr)
                continue
            debs = work / "debs"
            debs.mkdir(exist_ok=True)
            # As root it warns otherwise that it cannot drop to a user of its own here.
            apt_get = ["apt-get", "download", "--quiet=2", "--option=APT::Sandbox::User=root"]
            subprocess.run([*apt_get, package], cwd=debs, check=True)
            run("dpkg-deb", "--extract", next(debs.glob(f"{package}_*.deb")), folder)
        photos |= {Path(path).stem: folder / path for path in paths}
    return photos


def encode(image, quality):
    bytes_ = io.BytesIO()
    image.save(bytes_, "JPEG", quality=quality, subsampling="4:2:0")
    return bytes_.getvalue()


def make_jpegs(photos, out):
    """All JPEGs of all photos, as `[(photo, window, turned, quality, path)]`; quality is None for a file as it came."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    made = []

    def write(photo, window, turned, quality, data):
        path = out / f"{len(made):05}.jpg"
        path.write_bytes(data)
        made.append((photo, window, turned, quality, path))

    for name, source in photos.items():
        if source.suffix == ".jpg":
            write(name, "whole", False, None, source.read_bytes())
        image = Image.open(source).convert("RGB")
        for window, corner in WINDOWS.items():
            part = image
            if corner is not None:
                left, top = (round(share * side) for share, side in zip(corner, image.size))
                part = image.crop((left, top, left + int(WINDOW_SIDE * image.width), top + int(WINDOW_SIDE * image.height)))
            for turned in (False, True):
                upright = part.transpose(Image.Transpose.ROTATE_90) if turned else part
                for quality in QUALITIES:
                    write(name, window, turned, quality, encode(upright, quality))
    return made


def model_with(decode, source, out):
    """A copy of a model directory that differs in `decode` alone."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("test", "features"))
    toml = (out / "model.toml").read_text()
    toml = re.sub(r"^decode\s*=.*\n", "", toml, flags=re.MULTILINE)
    toml, n = re.subn(r"^\[preprocess\]\n", f'[preprocess]\ndecode = "{decode}"\n', toml, flags=re.MULTILINE)
    assert n == 1, f"{source}: no [preprocess]"
    (out / "model.toml").write_text(toml)
    return out


def reduction(path, toml):
    """By how much a JPEG is decoded smaller, as docs/MODEL.md says: what the resize leaves of each side."""
    width, height = Image.open(path).size
    pre_crop = re.search(r"^pre_crop = ([\d.]+)", toml, re.MULTILINE)
    resize = re.search(r"^resize = \[?(\d+)", toml, re.MULTILINE)
    side = round(float(pre_crop.group(1)) * min(width, height)) if pre_crop else min(width, height)
    return next(times for times in (8, 4, 2, 1) if side // int(resize.group(1)) >= times)


def answers(binary, model, paths, work):
    """Top-1 class, its probability, and features of each file."""
    classes, probabilities = [], []
    for start in range(0, len(paths), 500):
        answered = run(binary, "classify", "--model", model, "--top-k", 1, "--json", *paths[start : start + 500])
        for image in json.loads(answered)["images"]:
            best = image["results"][0]["predictions"][0]
            classes.append(best["class"])
            probabilities.append(best["probability"])
    archive = work / "features.npz"
    run(binary, "extract", "--model", model, "--no-labels", "--output", archive, *paths)
    with np.load(archive) as features:
        return np.array(classes), np.array(probabilities), features["features"]


def table(header, rows):
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


COLUMNS = ["files", "photos", "top-1 the same", "where it had 0.5 or more", "top-1 probability, mean", "largest", "features"]


def compared(a, b, photos, keep_a, keep_b):
    """One row: how far the answers `b` are from `a`; of features, the mean difference in percent of the mean value."""
    class_a, top_a, features_a = (values[keep_a] for values in a)
    class_b, top_b, features_b = (values[keep_b] for values in b)
    n = len(class_a)
    if n == 0:
        return None
    same, sure = class_a == class_b, top_a >= 0.5
    off = np.abs(top_a - top_b)
    features = np.abs(features_a - features_b).mean() / np.abs(features_a).mean()
    n_photos = len({photos[index] for index in keep_a})
    return [
        n,
        n_photos,
        f"{same.sum()} ({100 * same.mean():.1f} %)",
        f"{(same & sure).sum()} of {sure.sum()}",
        f"{off.mean():.4f}",
        f"{off.max():.3f}",
        f"{100 * features:.1f} %",
    ]


def photos_with_lite0(args):
    photos = fetch_photos(args.work)
    made = make_jpegs(photos, args.work / "jpegs")
    toml = (args.lite0 / "model.toml").read_text()
    paths = [path for *_, path in made]
    times = np.array([reduction(path, toml) for path in paths])
    names = [photo for photo, *_ in made]
    kinds = np.array([quality is None for _, _, _, quality, _ in made])
    whole = np.array([window == "whole" and not turned for _, window, turned, _, _ in made])

    exact_model = model_with("exact", args.lite0, args.work / "exact")
    scaled_model = model_with("scaled", args.lite0, args.work / "scaled")
    exact = answers(args.scaled_binary, exact_model, paths, args.work)
    scaled = answers(args.scaled_binary, scaled_model, paths, args.work)
    other = answers(args.exact_binary, exact_model, paths, args.work)

    sizes = [Image.open(path).size for path in photos.values()]
    print(f"{len(photos)} photos, of {min(map(min, sizes))} to {max(map(min, sizes))} pixels on the shorter side, "
          f"median {int(np.median([min(size) for size in sizes]))}; {len(made)} JPEGs of them.")  # fmt: skip
    counts = {n: int((times == n).sum()) for n in (1, 2, 4, 8)}
    print(f"Decoded at 1/2: {counts[2]}, at 1/4: {counts[4]}, at 1/8: {counts[8]}, whole: {counts[1]} (left out below).\n")

    reduced = times > 1
    rows = []

    def of(which):
        return np.flatnonzero(which & reduced)

    def add(what, a, b, keep_a, keep_b=None):
        row = compared(a, b, names, keep_a, keep_a if keep_b is None else keep_b)
        if row is not None:
            rows.append([what, *row])

    add("exact / scaled, files as they came", exact, scaled, of(kinds))
    for quality in QUALITIES:
        encoded = np.array([q == quality for *_, q, _ in made])
        add(f"exact / scaled, whole photos, quality {quality}", exact, scaled, of(encoded & whole))
    for n in (2, 4, 8):
        add(f"exact / scaled at 1/{n}, all", exact, scaled, of(times == n))
    add("exact / scaled, all", exact, scaled, of(reduced))
    add("libjpeg-turbo / zune-jpeg, both exact, all", exact, other, of(reduced))
    low = of(np.array([q == QUALITIES[0] for *_, q, _ in made]))
    assert all(made[i][:3] == made[i + 1][:3] and made[i + 1][3] == QUALITIES[1] for i in low)
    add(f"quality {QUALITIES[0]} / {QUALITIES[1]}, both exact", exact, exact, low, low + 1)
    table(["EfficientNet-Lite0", *COLUMNS], rows)


def icons(args):
    """Accuracy, exact and scaled, on the labelled test icons as JPEGs."""
    exact_model = model_with("exact", args.icons, args.work / "icons-exact")
    scaled_model = model_with("scaled", args.icons, args.work / "icons-scaled")
    tests = sorted((args.icons / "test").glob("*/*.png"))
    rows, differences = [], []
    for quality in QUALITIES:
        folder = args.work / f"icons-{quality}"
        shutil.rmtree(folder, ignore_errors=True)
        for path in tests:
            jpeg = folder / path.parent.name / f"{path.stem}.jpg"
            jpeg.parent.mkdir(parents=True, exist_ok=True)
            jpeg.write_bytes(encode(Image.open(path).convert("RGB"), quality))
        jpegs = sorted(folder.glob("*/*.jpg"))
        toml = (args.icons / "model.toml").read_text()
        assert {reduction(path, toml) for path in jpegs} == {2}
        pipelines = {
            "exact": (args.scaled_binary, exact_model),
            "scaled": (args.scaled_binary, scaled_model),
            "exact, zune-jpeg": (args.exact_binary, exact_model),
        }
        got = {name: answers(*pipeline, jpegs, args.work) for name, pipeline in pipelines.items()}
        everything = np.arange(len(jpegs))
        for name in list(pipelines)[1:]:
            row = compared(got["exact"], got[name], [str(path) for path in jpegs], everything, everything)
            del row[1]
            differences.append([f"exact / {name}, quality {quality}", *row])
        for name, (binary, model) in pipelines.items():
            archive = args.work / "icons.npz"
            run(binary, "extract", "--model", model, "--output", archive, folder)
            for head in ("joint", "crt"):
                command = ["evaluate", "--features", archive, "--head", model / "heads" / f"{head}.safetensors", "--json"]
                report = json.loads(run(binary, *command, "--train-counts", model / "train_counts.csv"))
                rows.append([quality, head, name, *accuracies(report)])
    print(f"{len(tests)} test icons of icons30 as JPEGs, all decoded at 1/2.\n")
    table(["quality", "head", "decode", "top-1 %", *(f"{shot} %" for shot in SHOTS)], rows)
    table(["icons30", *(name for name in COLUMNS if name != "photos")], differences)


def accuracies(report):
    return [f"{100 * report[key]:.1f}" for key in ("micro", *SHOTS)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--scaled-binary", "--exact-binary", "--lite0", "--icons", "--work"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    for name, value in vars(args).items():
        setattr(args, name, value.absolute())
    args.work.mkdir(parents=True, exist_ok=True)
    icons(args)
    photos_with_lite0(args)


main()
