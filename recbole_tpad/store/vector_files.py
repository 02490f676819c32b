"""Vectors in other people's files: npy, npz, safetensors, parquet, and RecBole's text format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import atomic_path

Array = npt.NDArray[Any]
_ID_NAMES = ("item_ids", "item_id", "ids", "id", "item", "asin")


class VectorFile(NamedTuple):
    """What a file holds.

    Attributes:
        arrays: name → (N, dim) numbers; the only array of an unnamed format is called ``vectors``.
        ids: item ids from the file itself, None where it has none.
    """

    arrays: dict[str, Array]
    ids: list[str] | None


def read_vectors(path: Path, id_column: str | None = None) -> VectorFile:
    """Read vectors by the file's suffix; nothing in it is executed or unpickled.

    - ``.npy``: one array. ``.npz``: every two-dimensional numeric array.
    - ``.safetensors``: every two-dimensional tensor; ids from the metadata key ``item_ids`` (JSON).
      The format keeps no order of tensors, so they come by name.
    - ``.parquet``: an id column, and a column of lists or else all numeric columns; needs duckdb.
    - anything else: text with a line an item. With RecBole's header (``id:token``,
      ``vector:float_seq``) tab separated; without one, id and numbers separated by white space.

    Args:
        path: the file.
        id_column: array or column that holds the ids; None: one of the usual names.

    Raises:
        InputError: absent, damaged, or not of its format; the line or array is named.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file.")
    reader = _READERS.get(path.suffix.lower(), _read_text)
    try:
        found = reader(path, id_column)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix or 'text'}: {error}") from error
    if not found.arrays:
        raise InputError(f"{path} holds no two-dimensional array of numbers.")
    return found


def read_ids(path: Path) -> list[str]:
    """Read item ids: a line each (``.txt`` or anything else), a JSON list, or a ``.npy`` array.

    Raises:
        InputError: absent or unreadable.
    """
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, list):
                raise InputError(f"{path} must hold a JSON list of item ids.")
            return [str(i) for i in content]
        if path.suffix == ".npy":
            return _as_ids(np.load(path, allow_pickle=False))
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"Item ids {path} cannot be read: {error}") from error


def write_vectors(path: Path, ids: Sequence[str], arrays: Mapping[str, Array]) -> list[Path]:
    """Write vectors in the format of the suffix, atomically; return the files written.

    ``.npy`` puts the arrays side by side and the ids into ``<name>.ids.txt`` beside it; text
    formats put the arrays side by side; the others keep them apart.

    Raises:
        InputError: an unknown suffix, or parquet without duckdb.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise InputError(
            f"'{path.suffix}' is no known format.{nearest(path.suffix, _WRITERS)} "
            f"Known: {', '.join(_WRITERS)}."
        )
    with atomic_path(path) as temporary:
        writer(temporary, ids, arrays)
    if path.suffix.lower() != ".npy":
        return [path]
    names = path.with_suffix(".ids.txt")
    with atomic_path(names) as temporary:
        temporary.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    return [path, names]


def _as_ids(array: Array) -> list[str]:
    if array.ndim != 1:
        raise ValueError(f"ids have shape {array.shape}, expected one dimension")
    return [i.decode() if isinstance(i, bytes) else str(i) for i in array.tolist()]


def _is_vectors(array: Array) -> bool:
    return array.ndim == 2 and array.dtype.kind in "fiu"


# -- reading -----------------------------------------------------------------------------------


def _read_npy(path: Path, _: str | None) -> VectorFile:
    array = np.load(path, allow_pickle=False)
    if not _is_vectors(array):
        raise ValueError(f"it has shape {array.shape} of {array.dtype}, expected (items, dim)")
    return VectorFile({"vectors": array}, None)


def _read_npz(path: Path, id_column: str | None) -> VectorFile:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    name = _id_name(list(arrays), id_column)
    ids = None if name is None else _as_ids(arrays.pop(name))
    return VectorFile({n: a for n, a in arrays.items() if _is_vectors(a)}, ids)


def _read_safetensors(path: Path, _: str | None) -> VectorFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            listed = (file.metadata() or {}).get("item_ids")
    except (SafetensorError, TypeError) as error:
        raise ValueError(str(error)) from error
    ids = None if listed is None else [str(i) for i in json.loads(listed)]
    return VectorFile({n: a for n, a in arrays.items() if _is_vectors(a)}, ids)


def _read_parquet(path: Path, id_column: str | None) -> VectorFile:
    duckdb = _duckdb()
    try:
        with duckdb.connect() as connection:
            found = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            names = [column[0] for column in found.description]
            rows = found.fetchall()
    except duckdb.Error as error:
        raise ValueError(str(error)) from error
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    name = _id_name(names, id_column)
    ids = None if name is None else [str(i) for i in columns.pop(name, ())]
    arrays = {n: np.array(c) for n, c in columns.items() if isinstance(c[0], (list, tuple))}
    if not arrays:
        plain = [c for c in columns.values() if isinstance(c[0], (int, float, Decimal))]
        arrays = {"vectors": np.array(plain, dtype=np.float64).T} if plain else {}
    return VectorFile({n: a for n, a in arrays.items() if _is_vectors(a)}, ids)


def _read_text(path: Path, id_column: str | None) -> VectorFile:
    ids: list[str] = []
    vectors: list[Array] = []
    id_at, vector_at, separator = 0, None, None
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1 and ":token" in line:
                fields = [field.partition(":") for field in line.rstrip("\r\n").split("\t")]
                names, kinds = [f[0] for f in fields], [f[2] for f in fields]
                if "float_seq" not in kinds:
                    raise ValueError("its header has no column of type float_seq")
                id_at = names.index(id_column) if id_column else kinds.index("token")
                vector_at, separator = kinds.index("float_seq"), "\t"
                continue
            if not line.strip():
                continue
            cells = line.rstrip("\r\n").split(separator)
            try:
                numbers = cells[1:] if vector_at is None else cells[vector_at].split()
                vector = np.array(numbers, dtype=np.float64)
                ids.append(cells[id_at])
            except (ValueError, IndexError) as error:
                raise ValueError(f"line {number}: {error}") from error
            if not vector.size or (vectors and vector.size != vectors[0].size):
                wanted = vectors[0].size if vectors else "some"
                raise ValueError(f"line {number} has {vector.size} numbers, expected {wanted}")
            vectors.append(vector)
    return VectorFile({"vectors": np.stack(vectors)} if vectors else {}, ids)


def _id_name(names: list[str], wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in names:
            raise ValueError(
                f"no array or column '{wanted}'.{nearest(wanted, names)} It has: {', '.join(names)}"
            )
        return wanted
    return next((name for name in _ID_NAMES if name in names), None)


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise InputError("Parquet needs duckdb: pip install duckdb.") from error
    return duckdb


# -- writing -----------------------------------------------------------------------------------


def _side_by_side(arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    return np.concatenate([a.astype(np.float32) for a in arrays.values()], axis=1)


def _write_npy(path: Path, _: Sequence[str], arrays: Mapping[str, Array]) -> None:
    with path.open("wb") as stream:
        np.save(stream, _side_by_side(arrays), allow_pickle=False)


def _write_npz(path: Path, ids: Sequence[str], arrays: Mapping[str, Array]) -> None:
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, item_ids=np.array(ids, dtype=str), **dict(arrays))


def _write_safetensors(path: Path, ids: Sequence[str], arrays: Mapping[str, Array]) -> None:
    from safetensors.numpy import save_file

    copied = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(copied, path, metadata={"item_ids": json.dumps(list(ids))})


def _write_parquet(path: Path, ids: Sequence[str], arrays: Mapping[str, Array]) -> None:
    duckdb = _duckdb()
    columns = ", ".join(f'"{name}" FLOAT[]' for name in arrays)
    marks = ", ".join("?" * (1 + len(arrays)))
    rows = [
        [item_id, *(array[k].astype(np.float32).tolist() for array in arrays.values())]
        for k, item_id in enumerate(ids)
    ]
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE vectors (item_id VARCHAR, {columns})")
        connection.executemany(f"INSERT INTO vectors VALUES ({marks})", rows)
        target = str(path).replace("'", "''")
        connection.execute(f"COPY vectors TO '{target}' (FORMAT parquet)")


def _write_itememb(path: Path, ids: Sequence[str], arrays: Mapping[str, Array]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        # Not item_id: RecBole renumbers that name in the interactions only.
        stream.write("item_emb_id:token\titem_emb:float_seq\n")
        for item_id, row in zip(ids, _side_by_side(arrays), strict=True):
            stream.write(f"{item_id}\t{' '.join(f'{x:.7g}' for x in row)}\n")


Reader = Callable[[Path, "str | None"], VectorFile]
Writer = Callable[[Path, Sequence[str], Mapping[str, Array]], None]
_READERS: dict[str, Reader] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Writer] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
    ".itememb": _write_itememb,
}
