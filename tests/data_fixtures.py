"""Tiny data sets in the real formats, archives good and evil, and a web server that misbehaves on purpose."""

import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import multiprocessing
import os
import pickle
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from localnorm.data import fetch, prepare, sources

CONTAINERS = ("folder", "zip", "tar", "tar.gz", "tar.xz")


def enter_project(folder: Path, monkeypatch) -> Path:
    """An empty project that is the working folder, without any data of this machine; returns its data/raw."""
    (folder / "dvc.yaml").touch()
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LOCALNORM_DATA", raising=False)
    monkeypatch.setenv("LOCALNORM_OFFLINE", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return raw


def picture(seed: int, size: tuple[int, int] = (6, 6), format: str = "PNG", mode: str = "RGB") -> bytes:
    """A noisy image of (width, height), encoded."""
    bands = {"L": (), "RGB": (3,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *bands), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, quality=95)
    return buffer.getvalue()


def image_files(classes: int = 3, train: int = 6, test: int = 2, size: tuple[int, int] = (6, 6)) -> dict[str, bytes]:
    """split/class/file -> bytes."""
    return {
        f"{split}/class{label}/{i}.png": picture(1000 * label + 100 * (split == "test") + i, size)
        for split, count in (("train", train), ("test", test))
        for label in range(classes)
        for i in range(count)
    }


def write_container(path: Path, kind: str, files: dict[str, bytes]) -> Path:
    """Write `files`, in their order, to `path` (for a folder) or to `path`.<kind>."""
    if kind == "folder":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path
    path = path.with_name(f"{path.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name, (2020, 5, 17, 0, 0, 0)), data)
        return path
    with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
        for name, data in files.items():
            archive.addfile(member(name, len(data)), io.BytesIO(data))
    return path


def member(name: str, size: int = 0, type: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mtime = size, type, linkname, 1589673600  # 2020-05-17
    return info


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def redefine(
    monkeypatch, name: str, title: str, format: str, files: dict[str, Path], counts: dict[str, int], **changes
):
    """Let the table hold these tiny files as the one source of `name`, with their own checksums."""
    entries = tuple(
        sources.File(each, f"sha256:{sha256(path)}" if path.is_file() else "") for each, path in files.items()
    )
    source = sources.Source(title, format, entries, counts, released="2009")
    monkeypatch.setitem(sources.DATASETS, name, replace(sources.DATASETS[name], sources=(source,), **changes))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Official formats


def cifar_batches(images: int = 20, seed: int = 0) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The members of a tiny cifar-10-python.tar.gz; pixels (N, 3, 32, 32) and labels of the six batches in order."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6 * images, 3072), dtype=np.uint8)
    labels = np.tile(np.arange(10), 6 * images // 10)
    files = {}
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = slice(i * images, (i + 1) * images)
        batch = {
            "batch_label": name,
            "labels": labels[rows].tolist(),
            "data": pixels[rows],
            "filenames": [f"{name}_{row}.png" for row in range(images)],
        }
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)  # protocol 2, as in the official archive
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"num_cases_per_batch": images, "label_names": names}, 2)
    return files, pixels.reshape(-1, 3, 32, 32), labels


def write_parquet(path: Path, column: str, images: list[bytes], labels: list[int], classes: list[str]) -> Path:
    """As Hugging Face's datasets write it: struct column, integer column, class names in the schema's metadata."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    info = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
    table = pyarrow.table({column: rows, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    return path


def cars_files(classes: int = 3, train: int = 9, test: int = 6, size: tuple[int, int] = (90, 60)) -> dict[str, bytes]:
    """Stanford Cars in torchvision's layout: black photographs, the car's box white; every third is grey."""
    from scipy.io import savemat

    def mat(**values) -> bytes:
        buffer = io.BytesIO()
        savemat(buffer, values)
        return buffer.getvalue()

    sides = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    files = {"devkit/cars_meta.mat": mat(class_names=np.array([f"Car {i}" for i in range(classes)], object))}
    for split, count in (("train", train), ("test", test)):
        rows = []
        for i in range(count):
            pixels = np.zeros((size[1], size[0]), np.uint8)
            box = (31, 25, 50, 40)  # counted from 1, both ends inside
            pixels[box[1] - 1 : box[3], box[0] - 1 : box[2]] = 255
            image = Image.fromarray(pixels) if i % 3 == 0 else Image.fromarray(np.dstack([pixels] * 3))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=95)
            files[f"cars_{split}/{i + 1:05}.jpg"] = buffer.getvalue()
            rows.append((*box, i % classes + 1, f"{i + 1:05}.jpg"))
        dtype = [*((side, object) for side in sides), ("class", object), ("fname", object)]
        table = mat(annotations=np.array([rows], dtype=dtype))
        files["devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"] = table
    return files


def mnist_files(train: int = 30, test: int = 10) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The four files of MNIST, and their pixels (N, 28, 28) and labels, training images first."""
    pixels = np.random.default_rng(3).integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    files = {}
    for part, rows in (("train", slice(0, train)), ("t10k", slice(train, None))):
        for kind, array in (("images-idx3", pixels[rows]), ("labels-idx1", labels[rows])):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            files[f"MNIST/raw/{part}-{kind}-ubyte.gz"] = gzip.compress(header + array.tobytes(), mtime=0)
    return files, pixels, labels


def zeros_xz(size: int) -> bytes:
    """A tar.xz of one member of that many zeros."""
    buffer = io.BytesIO()
    with lzma.open(buffer, "w", preset=0) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        archive.addfile(member("train/cat/1.png", size), io.BytesIO(bytes(size)))
    return buffer.getvalue()


# A web server


@dataclass
class Route:
    """What the server does with one address.

    Args:
        content: the bytes of the file.
        status: anything but 200 is answered at once.
        ranges: whether it understands the Range header.
        cuts: position in the file at which each connection in turn breaks; later ones deliver.
        stall_at: position at which every connection stops sending and stays open.
        piece, pause: bytes sent at once, and seconds of rest after them.
        length: announced instead of the real one.
        headers: further headers.
        seen: the Range header of each request so far.
    """

    content: bytes = b""
    status: int = 200
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    stall_at: int | None = None
    piece: int = 1 << 16
    pause: float = 0
    length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[str | None] = field(default_factory=list)


class Server:
    """`with Server({"a": Route(...)}) as server: server.url("a")`; on 127.0.0.1 only."""

    def __init__(self, routes: dict[str, Route]):
        self.routes = routes
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        route = self.routes[handler.path.lstrip("/")]
        wanted = handler.headers.get("Range")
        route.seen.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and route.ranges else 0
        total = len(route.content)
        if route.status != 200 or start >= total > 0:
            handler.send_response(route.status if route.status != 200 else 416)
            for name, value in route.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str((route.length or total) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{route.length or total}")
        for name, value in route.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        end = route.cuts.pop(0) if route.cuts else total
        try:
            while start < end:
                if route.stall_at is not None and start >= route.stall_at:
                    self.closing.wait(20)
                    return
                stop = min(
                    start + route.piece, end, total if route.stall_at is None else max(route.stall_at, start + 1)
                )
                handler.wfile.write(route.content[start:stop])
                start = stop
                time.sleep(route.pause)
        except OSError:  # the client has gone, as it may
            pass
        handler.close_connection = True


# Processes to be killed

PRELOADED = (  # what the functions to be killed import; each child would take seconds to import it again
    "localnorm.answers",
    "localnorm.data.fetch",
    "localnorm.data.prepare",
    "localnorm.evaluators",
    "localnorm.figures.accuracy",
    "localnorm.noise.draw",
    "localnorm.streams",
    "localnorm.strengths",
    "localnorm.train.loop",
    "requests",
)
for module in PRELOADED:
    assert importlib.util.find_spec(module), f"{module} is gone, and multiprocessing would say nothing"
_processes = multiprocessing.get_context("forkserver")  # forks of a process without threads, its slow imports done
_processes.set_forkserver_preload(list(PRELOADED))


def kill_after(seconds: float | None, target: Callable, *args) -> bool:
    """Run `target` in a process and kill it so long after it began (None: let it end); whether it died of a signal."""
    began = _processes.Event()
    child = _processes.Process(target=_begin, args=(began, target, *args))
    child.start()
    assert began.wait(60)
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode < 0


def _begin(began, target: Callable, *args) -> None:
    began.set()
    target(*args)


def fetch_in_child(file: sources.File, folder: Path) -> None:
    fetch.fetch(file, folder)


def prepare_in_child(project: Path, name: str, kill_at: int | None = None) -> None:
    """Prepare in that project; dies by SIGKILL just before its `kill_at`-th fsync, rename or removal."""
    os.chdir(project)
    os.environ["LOCALNORM_OFFLINE"] = "1"
    os.environ.pop("LOCALNORM_DATA", None)
    steps = 0

    def counted(call):
        def step(*args, **options):
            nonlocal steps
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return step

    os.fsync, Path.rename, shutil.rmtree = counted(os.fsync), counted(Path.rename), counted(shutil.rmtree)
    prepare(name, project / "out")
    (project / "steps").write_text(str(steps))


# Folders as people have them


def photograph(format: str, size: tuple[int, int] = (24, 18), seed: int = 0, **options) -> bytes:
    """A noisy coloured image in any format that Pillow writes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def sixteen_bit_tiff(value: int) -> bytes:
    """A grey TIFF with 16 bits per pixel, as microscopes and scanners write it."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 12), value, np.uint16)).save(buffer, "TIFF")
    return buffer.getvalue()


# the beginning of a photograph of an iPhone: its container's first box
HEIC = bytes.fromhex("000000186674797068656963000000006d69663168656963") + bytes(200)


def mixed_folder() -> dict[str, bytes]:
    """class/file -> bytes: images of many formats and shapes, and what lies between them on people's disks."""
    files = {f"robin/{i}.jpg": photograph("JPEG", (24, 18), i) for i in range(6)}
    files |= {f"wren/{i}.PNG": photograph("PNG", (18, 18), i) for i in range(6)}
    files |= {
        "robin/moving.gif": photograph("GIF"),
        "robin/web.webp": photograph("WEBP"),
        "wren/scan.tiff": photograph("TIFF"),
        "wren/saved from the web.jfif": photograph("JPEG"),
        "Ro\u0308tel/1.bmp": photograph("BMP"),  # a class of one image, named as macOS spells an umlaut
    }
    return files | {
        "robin/.DS_Store": b"\0\0\0\1Bud1",
        "wren/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "wren/notes.txt": b"seen in May",
        "wren/film.mov": b"\0\0\0\x14ftypqt  ",
        "list.csv": b"name,place\n",
    }


BAD_FILES = {
    "robin/empty.jpg": b"",
    "robin/cut off.jpg": photograph("JPEG", (64, 64))[:-900],
    "wren/page.jpg": b"<html>404 not found</html>",
}
BAD_NAMES = ("robin/empty.jpg is empty (0 bytes)", "robin/cut off.jpg is damaged", "wren/page.jpg is no image")


def write_zip_without_flag(path: Path, files: dict[str, bytes], encoding: str) -> Path:
    """A zip whose names are in `encoding` and that does not say so, as many programs write it."""

    class Unflagged(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):  # zipfile itself sets the flag for every name beyond ASCII
            return self.filename.encode(encoding), self.flag_bits & ~0x800

    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(Unflagged(name), data)
    return path
