"""What samples are compared with: a folder of pictures, whose features are kept, or statistics from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..formats.files import user_path
from ..runs.processes import Workers
from .extractors import Extractor
from .feature_metrics import some_rows
from .metrics import moments
from .shards import Shards, same_answers
from .stats_files import ReferenceError, Statistics, read_npz, read_own

PICTURES = (".png", ".jpg", ".jpeg")
MODES = ("1", "L", "P", "RGB", "CMYK")  # what becomes colours without a choice: no transparency, no 16 bits


def fixed_picture(shape: Sequence[int]) -> Tensor:
    """(1, 3, H, W) of 8-bit noise: what an extractor makes of it tells it from others."""
    return torch.randint(256, (1, *shape), generator=torch.Generator().manual_seed(0)) / 255


def load_reference(
    source: Path, extractor: Extractor, picture: tuple[int, ...], keep: Path, most: int, workers: Workers
) -> Statistics:
    """The statistics of a reference.

    Args:
        source: a folder of PNG or JPG pictures (folders inside it count, too), a `.npz` with `mu` and `sigma`, or a
            file that `write_statistics` wrote.
        extractor: of the samples, and of the folder's pictures.
        picture: (3, H, W) of the samples.
        keep: folder in which the features of a folder are kept.
        most: features that are held for KID, precision and recall.

    Raises:
        ReferenceError: for what is none of these, pictures of another size, or features of another extractor.
    """
    source = user_path(source)
    probe = workers.together(lambda: extractor(fixed_picture(picture))[0])
    if source.is_dir():
        found = _of_folder(source, extractor, picture, keep, workers, probe)
        if len(found) > 1 and bool((found == found[0]).all()):
            raise ReferenceError(
                f"the features {extractor.name} are the same for all {len(found)} pictures of {source}, and so would "
                "be those of any samples: mend the extractor, or give other pictures"
            )
        return Statistics(moments(found), len(found), some_rows(found, most), probe, picture)
    return workers.together(lambda: _of_file(source, extractor.name, picture, probe))


def _of_file(source: Path, name: str, picture: tuple[int, ...], probe: Tensor) -> Statistics:
    """The statistics in a file, proven to be of this extractor as far as the file says."""
    if source.suffix not in (".npz", ".safetensors"):
        raise ReferenceError(
            f"{source} is no reference: give a folder of pictures, a .npz with mu and sigma, or a .safetensors that "
            "--save-reference wrote; pickles are not opened"
        )
    statistics = read_npz(source) if source.suffix == ".npz" else read_own(source)
    width = len(statistics.moments.mean)
    if width != len(probe):
        raise ReferenceError(
            f"{source} is of {width} features, {name} has {len(probe)}: give the extractor that it was made "
            "with"
        )
    if statistics.picture is not None and statistics.picture != picture:
        raise ReferenceError(
            f"{source} is of pictures {_size(statistics.picture)}, the model's are {_size(picture)}: make a reference "
            "of pictures of that size"
        )
    if statistics.probe is not None and not same_answers(statistics.probe, probe):
        raise ReferenceError(f"{source} was made with other features than {name}: give those, or make it anew")
    return statistics


def _of_folder(
    folder: Path, extractor: Extractor, picture: tuple[int, ...], keep: Path, workers: Workers, probe: Tensor
) -> Tensor:
    """Features (N, F) of all pictures in a folder, in the order of their names."""
    paths, files = workers.together(lambda: _listed(folder))
    identity = {"reference": str(folder), "files": files, "pictures": len(paths), **extractor.identity()}
    name = hashlib.sha256(json.dumps({**identity, "reference": ""}).encode()).hexdigest()[:12]
    shards = Shards(keep / f"reference-{name}", len(paths))
    workers.together(lambda: None if workers.rank else shards.begin(identity, {"features": probe}))

    def work(part: range) -> dict[str, Tensor]:
        return {"features": extractor(torch.stack([read_picture(paths[i], picture) for i in part]))}

    shards.fill(work, workers, "reference")
    return workers.together(shards.read)["features"]


def _listed(folder: Path) -> tuple[list[Path], str]:
    """The pictures in a folder, in the order of their names, and a digest of which they are."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    if len(paths) < 2:
        raise ReferenceError(f"{folder} holds {len(paths)} pictures: a reference has two .png or .jpg files at least")
    paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    listed = [[path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return paths, hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]


def read_picture(path: Path, picture: tuple[int, ...]) -> Tensor:
    """(3, H, W) float32 in [0, 1] of a file of exactly that size.

    Raises:
        ReferenceError: for another size, transparency, 16 bits, or a file that is no picture.
    """
    try:
        with Image.open(path) as image:
            if (image.height, image.width) != picture[1:]:
                raise ReferenceError(
                    f"{path} is {image.width} x {image.height}, the model's pictures are {picture[2]} x {picture[1]}: "
                    "resize the folder as the model's training data were; how it is done changes FID (arXiv 2104.11222)"
                )
            if image.mode not in MODES:
                raise ReferenceError(f"{path} is of mode {image.mode}: save it as 8-bit colours, without transparency")
            rows = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReferenceError(f"{path} is no picture that can be read ({error}): take it out of the folder") from error
    return torch.tensor(rows).permute(2, 0, 1).float() / 255


def _size(picture: Sequence[int]) -> str:
    return f"{picture[2]} x {picture[1]}"
