"""Images decoded to disk against images decoded while training: images/s, cores, memory.

    python benchmarks/feed.py [--quick] [--images=20000] [--paths=1000000] [--side=224]
    [--batch=128] [--seconds=20] [--step=-1] [--work=DIR] [--out=FILE]

Makes JPEGs of 500x375 pixels (crops of scikit-learn's two photographs, resized) in a temporary
directory below DIR, and empty files for the index of a folder. Every part is a process of its own:
its cores are the processor time of it and of its children a second, its memory what they hold
beside files (resident less shared), at most, looked at ten times a second. The files were just
written, so that reading them costs no disk. A feed is timed from its second batch on. --step is the
images/s of a training step to compare with; -1 times BYOL on ResNet-18 of width 16 with ImageNet's
stem at that side, 0 does without. --images=0 and --paths=0 leave out their parts.
"""

import functools
import io
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import finish, parse, read_config, say
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn.datasets import load_sample_images

from ssl_jax.data import folder
from ssl_jax.data.batches import make_feed
from ssl_jax.data.cache import files_digest
from ssl_jax.data.encoded import processors
from ssl_jax.data.records import Options
from ssl_jax.data.sources import describe, load_dataset
from ssl_jax.runtime.terminal import progress_bar

WIDTH, HEIGHT = 500, 375
IN_FOLDER = 1000  # files in each folder
EVERY = 0.1  # seconds between two looks at the memory


def main() -> None:
    args = parse(
        __doc__,
        images=20_000,
        paths=1_000_000,
        side=224,
        batch=128,
        seconds=20,
        step=-1.0,
        work=tempfile.gettempdir(),
    )
    if args.quick:
        args.images, args.paths, args.seconds = 1000, 20_000, 4
    with tempfile.TemporaryDirectory(dir=args.work, prefix="feed-") as base:
        os.environ["SSL_JAX_CACHE"] = f"{base}/cache"
        rows = pictures(args, f"{base}/pictures") if args.images else []
        rows += million(args.paths, f"{base}/paths") if args.paths else []
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    setting = {name: getattr(args, name) for name in ("images", "side", "batch", "seconds")}
    finish(args, "feed", rows, setting=setting, load=load)


def pictures(args: Any, base: str) -> list[dict]:
    """Every part on the pictures: a row each."""
    make_pictures(base, args.images)
    of_set = base, args.side
    rows = [
        {"part": "index and headers", **apart(index, *of_set)},
        {"part": "the same again", **apart(index, *of_set)},
        {"part": "decode into the cache", **apart(read, *of_set, False)},
        {"part": "read from the cache", **apart(read, *of_set, False)},
        {"part": "examine for encoded", **apart(read, *of_set, True)},
        {"part": "the same again", **apart(read, *of_set, True)},
        {"part": "feed, streamed", **apart(feed, *of_set, False, args.batch, args.seconds)},
    ]
    for workers in sorted({max(1, processors() - 1), processors()}):
        row = apart(feed, *of_set, True, args.batch, args.seconds, workers)
        rows.append({"part": f"feed, encoded, processes: {workers}", **row})
    row = apart(feed, *of_set, True, args.batch, args.seconds, 0)
    rows.append({"part": "feed, encoded, threads", **row})
    if args.step < 0:
        rows.append({"part": "BYOL's step", **apart(step, args.side, args.seconds)})
    elif args.step:
        rows.append({"part": "step, as given", "images_per_s": args.step})
    cache = Path(os.environ["SSL_JAX_CACHE"])
    rows[2]["mb_on_disk"] = sum(path.stat().st_size for path in cache.rglob("*.npy")) / 1e6
    rows[0]["mb_on_disk"] = sum(path.stat().st_size for path in Path(base).rglob("*.jpg")) / 1e6
    return rows


def million(count: int, base: str) -> list[dict]:
    """The index of a folder of so many empty files, and the digest of their contents."""
    make_empty(base, count)
    return [
        {"part": f"{what} of {count} empty files, {turn}", **apart(work, base)}
        for what, work in (("index", index_paths), ("digest", digest_paths))
        for turn in ("first", "second")
    ]


# --- Files ----------------------------------------------------------------------------------------


def make_pictures(base: str, count: int) -> None:
    """Write JPEGs of 500x375 pixels, a thousand in each folder."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]

    def make(number: int) -> None:
        rng = np.random.default_rng(number)
        photo = photos[number % len(photos)]
        width = int(rng.integers(250, min(photo.width, photo.height * WIDTH // HEIGHT)))
        height = width * HEIGHT // WIDTH
        left = int(rng.integers(photo.width - width + 1))
        top = int(rng.integers(photo.height - height + 1))
        box = left, top, left + width, top + height
        file = io.BytesIO()
        photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box).save(file, "JPEG", quality=90)
        place = Path(base) / f"{number // IN_FOLDER:04}" / f"{number:07}.jpg"
        place.write_bytes(file.getvalue())

    for start in range(0, count, IN_FOLDER):
        (Path(base) / f"{start // IN_FOLDER:04}").mkdir(parents=True)
    with (
        progress_bar(count, 0, "image", "making pictures") as bar,
        ThreadPoolExecutor(processors()) as pool,
    ):
        for _ in pool.map(make, range(count)):
            bar.update()


def make_empty(base: str, count: int) -> None:
    """Make empty files called .jpg, a thousand in each folder."""
    with progress_bar(count, 0, "file", "making empty files") as bar:
        for start in range(0, count, IN_FOLDER):
            place = f"{base}/{start // IN_FOLDER:04}"
            os.makedirs(place)
            stop = min(start + IN_FOLDER, count)
            for number in range(start, stop):
                os.close(os.open(f"{place}/{number:07}.jpg", os.O_CREAT | os.O_WRONLY))
            bar.update(stop - start)


# --- Parts ----------------------------------------------------------------------------------------


def index(base: str, side: int) -> dict:
    """Find the pictures, digest their contents and look at their headers."""
    about, seconds = timed(lambda: describe("folder", base, None, side, Options(labels="none")))
    return {"seconds": seconds, "images_per_s": about.train / seconds}


def read(base: str, side: int, encoded: bool) -> dict:
    """Load the set; pictures that stay encoded are all decoded once, for the damaged ones."""
    data, seconds = timed(lambda: load(base, side, encoded))
    return {"seconds": seconds, "images_per_s": len(data.train.label) / seconds}


def load(base: str, side: int, encoded: bool) -> Any:
    options = Options(labels="none", encoded=encoded)
    return load_dataset("folder", base, image_size=side, options=options)


def feed(
    base: str, side: int, encoded: bool, batch: int, seconds: float, workers: int | None = None
) -> dict:
    """Take batches for so many seconds; nothing is done with them."""
    image = load(base, side, encoded).pretrain.image
    batches = make_feed(image, batch, 0, False, workers=workers).batches(
        (first, 1) for first in itertools.count()
    )
    _, start = timed(lambda: next(batches))
    row = taken(lambda: next(batches), batch, seconds)
    batches.close()
    return {"first_batch_s": start} | row


def step(side: int, seconds: float) -> dict:
    """Take training steps for so many seconds, on images in memory."""
    from setup_step import compiled

    config = read_config("cifar10.py:byol")
    config.encoder.width, config.encoder.stem = 16, "imagenet"
    config.batch_size, config.steps_per_call = 32, "1"
    training = compiled(config, 1, size=4 * config.batch_size, side=side)
    training.run()
    return taken(training.run, config.batch_size, seconds)


def taken(take: Callable[[], Any], images: int, seconds: float) -> dict:
    """Call `take`, which takes so many images, for so many seconds: at least twice."""
    used, begin, calls = processor_seconds(), time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - begin < seconds:
        take()
        calls += 1
    spent = time.perf_counter() - begin
    return {
        "seconds": spent,
        "images_per_s": calls * images / spent,
        "cores": (processor_seconds() - used) / spent,
    }


def index_paths(base: str) -> dict:
    """Index a folder as `open_folder` does first."""
    found, seconds = timed(lambda: folder.read_index(Path(base), [cache()]))
    return {"seconds": seconds, "paths_per_s": len(found.pictures) / seconds}


def digest_paths(base: str) -> dict:
    """Digest the contents of all files of an indexed folder."""
    names = folder.read_index(Path(base), [cache()]).pictures
    paths = [os.path.join(base, name) for name in names]
    _, seconds = timed(lambda: files_digest(paths, [cache()]))
    return {"seconds": seconds, "paths_per_s": len(paths) / seconds}


def cache() -> Path:
    return Path(os.environ["SSL_JAX_CACHE"])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


# --- Processes ------------------------------------------------------------------------------------


def apart(work: Callable[..., dict], *args: Any) -> dict:
    """Call `work` in a new process; its row, with cores and memory of the process and its children.

    `cores` is over all of the part unless the row has its own.
    """
    say(f"{work.__name__} {' '.join(map(str, args))}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        row = pool.submit(watched, functools.partial(work, *args)).result()
    say("")
    return row


def watched(work: Callable[[], dict]) -> dict:
    peak, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(EVERY):
            peak[0] = max(peak[0], memory())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    used, begin = processor_seconds(), time.perf_counter()
    row = work()
    spent = time.perf_counter() - begin
    used = processor_seconds() - used
    done.set()
    watcher.join()
    row = {"cores": used / spent} | row | {"peak_mib": max(peak[0], memory()) / 2**20}
    # joblib's processes would wait five minutes for more to do, and this one for them
    get_reusable_executor().shutdown(kill_workers=True)
    return row


def processor_seconds() -> float:
    """Processor time so far of this process and its children, those that have ended included."""
    return sum(over_all(lambda process: sum(process.cpu_times()[:4])))


def memory() -> int:
    """Bytes that this process and its children hold beside files and shared memory."""
    return sum(over_all(lambda process: process.memory_info().rss - process.memory_info().shared))


def over_all(measure: Callable[[psutil.Process], Any]) -> list:
    """`measure` of this process and of all its children that are still there."""
    own, found = psutil.Process(), []
    for process in (own, *own.children(recursive=True)):
        try:
            found.append(measure(process))
        except psutil.NoSuchProcess:
            continue
    return found


if __name__ == "__main__":
    main()
