"""Maps on disk: a draft that survives being killed, cloud-optimised GeoTIFF and GeoParquet from it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio
import rasterio.shutil
import shapely
from pyarrow import parquet
from rasterio.windows import Window

from ringmoe_jax import files
from ringmoe_jax.deploy.scenes import CACHE
from ringmoe_jax.errors import DataError
from ringmoe_jax.geo import Grid

BLOCK_BYTES = 2**23  # of all bands of a COG's block, at most, where it may be made smaller
GEOPARQUET = "1.1.0"
ROWS = 2**13  # of a row group
SETTINGS = "SETTINGS"  # in the metadata of a map: which command made it


@dataclasses.dataclass(frozen=True)
class Layers:
    """What the cells of a map hold.

    Attributes:
        names: of the bands.
        dtype: of all of them, a NumPy name.
        no_data: value where nothing is known.
        colours: [n, 3] 0..255 by value, for maps of classes.
        tags: further facts, text by name.
    """

    names: tuple[str, ...]
    dtype: str
    no_data: float
    colours: np.ndarray | None = None
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)


def draft_folder(out: Path) -> Path:
    """Where the rows of a map lie until it is whole."""
    return out.with_name(f"{out.name}.draft")


class Draft:
    """The rows of a map so far, in a folder beside it.

    A strip of rows is on disk before the journal counts it, so a program that is killed at any time loses the strip
    it was at, and nothing else. Rows that are not what the journal says, by length or checksum, are computed again. One
    process writes a draft, until it leaves its `with`.

    Attributes:
        folder: `<out>.draft`.
        settings: of the command that makes it.
        strips: how many are there.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], width: int, channels: int, dtype: str):
        """Begins a draft, or goes on with the one that is there.

        Args:
            out: the map.
            settings: JSON types; all that decides what is written.
            width: cells of a row.
            channels: numbers of a cell.
            dtype: of all of them.

        Raises:
            DataError: the draft that is there is another command's, another process writes it, or it cannot be written.
        """
        self.folder = draft_folder(out)
        self._journal, self._pixels = self.folder / "journal.json", self.folder / "pixels"
        self.settings, self._shape, self._dtype = dict(settings), (width, channels), np.dtype(dtype)
        self.strips = self._rows = self._checksum = 0
        with contextlib.ExitStack() as held, files.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            held.enter_context(files.locked(self.folder, out))
            if self._journal.exists():
                self._resume()
            elif any(self.folder.iterdir()):
                raise DataError(f"{self.folder} holds no draft of a map: move it away, or give another --out")
            self._write_journal()
            self._pixels.touch()
            os.truncate(self._pixels, self._rows * self._row_bytes)  # what the journal does not count
            self._held = held.pop_all()

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *error) -> None:
        self._held.close()

    def _resume(self) -> None:
        """Takes over the strips that the journal counts, if they are on the disk as they were written."""
        journal = files.read_json(self._journal, "the journal of a draft; delete the folder")
        try:
            settings, strips, rows, checksum = (journal[key] for key in ("settings", "strips", "rows", "crc32"))
        except (KeyError, TypeError) as error:
            raise DataError(f"{self._journal} is no journal of a draft ({error!r}): delete the folder") from error
        _check_same(self.folder, settings, self.settings)
        if self._pixels.exists() and checksum == self._crc32(rows):
            self.strips, self._rows, self._checksum = strips, rows, checksum

    def _crc32(self, rows: int) -> int | None:
        """Of so many rows on the disk; None where there are fewer."""
        checksum, left = 0, rows * self._row_bytes
        with self._pixels.open("rb") as file:
            while left and (part := file.read(min(left, 2**24))):
                checksum, left = zlib.crc32(part, checksum), left - len(part)
        return None if left else checksum

    @property
    def _row_bytes(self) -> int:
        return math.prod(self._shape) * self._dtype.itemsize

    def append(self, rows: np.ndarray) -> None:
        """Adds a strip: [n, width, channels], n may be 0."""
        content = np.ascontiguousarray(rows, self._dtype).tobytes()
        with files.writing(self._pixels), self._pixels.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.strips, self._rows = self.strips + 1, self._rows + len(rows)
        self._checksum = zlib.crc32(content, self._checksum)
        self._write_journal()

    def read(self, first: int, rows: int) -> np.ndarray:
        """Rows from `first` on, at most `rows` of them: [n, width, channels]."""
        with self._pixels.open("rb") as file:
            file.seek(first * self._row_bytes)
            content = file.read(rows * self._row_bytes)
        return np.frombuffer(content, self._dtype).reshape(-1, *self._shape)

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder)

    def _write_journal(self) -> None:
        counted = {"strips": self.strips, "rows": self._rows, "crc32": self._checksum}
        files.write_text(self._journal, json.dumps({"settings": self.settings} | counted, indent=1) + "\n")


def identity(settings: Mapping[str, Any]) -> str:
    """A short text that differs where settings do; a map carries it."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def is_finished(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a map is there already.

    Raises:
        DataError: something is there that these settings did not make.
    """
    if not out.exists():
        if not out.parent.is_dir():
            raise DataError(f"{out.parent} does not exist: make the folder of --out first")
        return False
    if _stored_identity(out) != identity(settings):
        raise DataError(f"{out} is there already, from another command: delete it, or give another --out")
    return True


def write_cog(draft: Draft, out: Path, grid: Grid, layers: Layers) -> None:
    """A cloud-optimised GeoTIFF (tiled, with overviews) of a draft, complete or absent.

    Args:
        draft: all rows of the map.
        out: the file.
        grid: of the map.
        layers: what it holds.
    """
    tiled, final = draft.folder / "tiled.tif", draft.folder / "final.tif"
    block = _block(len(layers.names), np.dtype(layers.dtype).itemsize)
    profile = dict(
        driver="GTiff", height=grid.height, width=grid.width, count=len(layers.names), dtype=layers.dtype, crs=grid.crs,
        transform=grid.transform, nodata=layers.no_data, tiled=True, blockxsize=block, blockysize=block,
        interleave="pixel", bigtiff="if_safer",
    )  # fmt: skip
    with files.writing(out), rasterio.Env(GDAL_CACHEMAX=CACHE):
        with rasterio.open(tiled, "w", **profile) as file:
            file.descriptions = layers.names
            file.update_tags(**layers.tags, **{SETTINGS: identity(draft.settings)})
            if layers.colours is not None:
                file.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(layers.colours)})
            for first in range(0, grid.height, block):
                rows = draft.read(first, block)
                file.write(np.moveaxis(rows, -1, 0), window=Window(0, first, grid.width, len(rows)))
        resampling = "AVERAGE" if layers.colours is None else "MODE"
        options = dict(BLOCKSIZE=block, COMPRESS="DEFLATE", PREDICTOR="YES", BIGTIFF="IF_SAFER")
        rasterio.shutil.copy(tiled, final, driver="COG", OVERVIEW_RESAMPLING=resampling, **options)
        _check_written(final, draft, block)
        final.replace(out)


def write_geoparquet(draft: Draft, out: Path, grid: Grid, tags: Mapping[str, str]) -> int:
    """A GeoParquet 1.1 table of the known cells of a draft, row by row, in the memory of one row group.

    Columns: `geometry` (WKB polygon, the cell), `embedding` (list of D float32), `valid` (float32, the share of the
    cell's pixels that was observed), `row` and `column` (int32, of the cell).

    Args:
        draft: D float32 a cell, then the share that is valid.
        out: the file, complete or absent.
        grid: of the cells.
        tags: further facts in the metadata, text by name.

    Returns:
        Number of cells that were left out, for none of their pixels was observed.
    """
    left_out, width = 0, draft.read(0, 1).shape[-1] - 1
    fields = {
        "embedding": pa.list_(pa.float32(), width),
        "valid": pa.float32(),
        "row": pa.int32(),
        "column": pa.int32(),
    }
    step = max(1, ROWS // grid.width)

    def tables() -> Iterator[dict]:
        nonlocal left_out
        for first in range(0, grid.height, step):
            cells = draft.read(first, step)
            rows, columns = np.nonzero(cells[..., -1] > 0)
            known = cells[rows, columns]
            left_out += cells.shape[0] * cells.shape[1] - len(known)
            values = pa.array(np.ascontiguousarray(known[:, :-1]).ravel())
            yield {
                "geometry": shapely.to_wkb(_polygons(grid, rows + first, columns)),
                "embedding": pa.FixedSizeListArray.from_arrays(values, width),
                "valid": np.ascontiguousarray(known[:, -1]),
                "row": (rows + first).astype(np.int32),
                "column": columns.astype(np.int32),
            }

    write_table(draft, out, geo(grid), fields, tables(), tags)
    return left_out


def write_table(
    draft: Draft,
    out: Path,
    place: Mapping[str, Any],
    fields: Mapping[str, pa.DataType],
    tables: Iterable[Mapping[str, Any]],
    tags: Mapping[str, str],
) -> None:
    """A GeoParquet 1.1 table, a row group a part, complete or absent.

    Args:
        draft: of whose folder and settings it is.
        out: the file.
        place: of `geo`.
        fields: columns beside `geometry`.
        tables: parts, columns by name; `geometry` is WKB.
        tags: further facts in the metadata, text by name.
    """
    final = draft.folder / "final.parquet"
    metadata = {"geo": json.dumps(place), **tags, SETTINGS: identity(draft.settings)}
    schema = pa.schema({"geometry": pa.binary()} | dict(fields), metadata=metadata)
    with files.writing(out):
        with parquet.ParquetWriter(final, schema, compression="zstd") as file:
            for columns in tables:
                file.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
        final.replace(out)


def _check_written(path: Path, draft: Draft, block: int) -> None:
    """Raises an `OSError` unless a GeoTIFF holds a draft: GDAL does not always say that a disk is full."""
    with rasterio.open(path) as file:
        for first in range(0, file.height, block):
            rows = np.moveaxis(draft.read(first, block), -1, 0)
            stored = file.read(window=Window(0, first, file.width, rows.shape[1]))
            if not np.array_equal(stored, rows, equal_nan=stored.dtype.kind == "f"):
                raise OSError(f"what is on the disk differs from row {first} on")


def geo(grid: Grid, *, bounded: bool = True) -> dict[str, Any]:
    """Value of the metadata key "geo" (GeoParquet 1.1); `bounded`: nothing lies outside the grid."""
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": grid.crs.to_dict(projjson=True) if grid.crs else None,
        "orientation": "counterclockwise",
        "edges": "planar",
    }
    if bounded:
        xs, ys = grid.coordinates(np.array([0, 0, 1, 1]) * grid.height, np.array([0, 1, 0, 1]) * grid.width)
        column["bbox"] = [float(edge) for edge in (xs.min(), ys.min(), xs.max(), ys.max())]
    return {"version": GEOPARQUET, "primary_column": "geometry", "columns": {"geometry": column}}


def _polygons(grid: Grid, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The cells as polygons, counterclockwise."""
    turn = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])  # (row, column): down the rows first
    if grid.transform.determinant > 0:  # rows go up
        turn = turn[::-1]
    x, y = grid.coordinates(rows[:, None] + turn[:, 0], columns[:, None] + turn[:, 1])
    return shapely.polygons(np.stack([x, y], -1))


def _block(bands: int, itemsize: int) -> int:
    """Side of a block: a power of two from 128 to 512."""
    return next((side for side in (512, 256) if side * side * bands * itemsize <= BLOCK_BYTES), 128)


def _stored_identity(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet:
            return (parquet.read_schema(path).metadata or {}).get(SETTINGS.encode(), b"").decode()
        with rasterio.open(path) as file:
            return file.tags().get(SETTINGS)
    except (rasterio.errors.RasterioError, pa.ArrowException, OSError):
        return None


def _check_same(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for key, value in json.loads(json.dumps(asked)).items():
        if stored.get(key) != value:
            raise DataError(
                f"{folder} was begun with {key} = {stored.get(key)!r}, this command says {value!r}: "
                "run the old command again, delete the folder, or give another --out"
            )
