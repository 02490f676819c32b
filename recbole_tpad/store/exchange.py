"""Import of vectors made elsewhere, export for others, and checks of a store against its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recbole_tpad.data import AtomicFolder, DatasetFolder, open_items
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import sha256_file
from recbole_tpad.store.item_embeddings import ItemEmbeddings, open_store
from recbole_tpad.store.lock import recover
from recbole_tpad.store.vector_files import Array, read_ids, read_vectors, write_vectors
from recbole_tpad.store.writing import write_store

_NAMED = 5


def import_embeddings(
    data_path: str | Path,
    dataset: str,
    name: str,
    vectors: str | Path,
    *,
    ids: str | Path | None = None,
    id_column: str | None = None,
    drop_extra: bool = False,
    allow_zero: bool = False,
    overwrite: bool = False,
) -> ItemEmbeddings:
    """Make a store from a file of vectors, in the order of the data set's items.

    The data set is a converted folder, or one of plain RecBole: there every item of the
    interactions needs a vector, and those that only the ``.item`` file lists may have one.

    The store has role ``other`` and no split: what made the vectors is not known, so whether they
    saw test sessions is not either.

    Args:
        data_path: folder of data set folders.
        dataset: data set name.
        name: the store's name; each array becomes a modality (an unnamed one: ``vectors``).
        vectors: see `read_vectors`.
        ids: file of item ids in the order of the rows (see `read_ids`); None: the ids in `vectors`.
        id_column: array or column of `vectors` that holds the ids.
        drop_extra: leave out vectors of items the data set does not have.
        allow_zero: accept rows of zeros.
        overwrite: replace a store of that name.

    Raises:
        InputError: unreadable files, or ids and rows that do not fit; every problem found is
            named with its count and first items.
    """
    folder = open_items(data_path, dataset)
    path = store_path(folder.path, name)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already. Choose another --name, or give --overwrite.")
    source = Path(vectors)
    found = read_vectors(source, id_column)
    if ids is not None and found.ids is not None and read_ids(Path(ids)) != found.ids:
        raise InputError(
            f"{ids} and the ids inside {source} differ, in content or order; which one names the "
            "rows? Give a file without ids, or leave --ids out."
        )
    item_ids = found.ids if ids is None else read_ids(Path(ids))
    if item_ids is None:
        raise InputError(f"{source} holds no item ids. Give --ids FILE with one id a row.")
    others = folder.other_item_ids if isinstance(folder, AtomicFolder) else []
    wanted = folder.item_ids
    _check_rows(source, item_ids, found.arrays, wanted, others, drop_extra, allow_zero)
    position = {item_id: k for k, item_id in enumerate(item_ids)}
    wanted = sorted([*wanted, *(i for i in others if i in position)]) if others else wanted
    order = [position[item_id] for item_id in wanted]
    inputs = {"vectors": sha256_file(source)}
    if ids is not None:
        inputs["ids"] = sha256_file(Path(ids))
    return write_store(
        path,
        wanted,
        {modality: array[order] for modality, array in found.arrays.items()},
        role="other",
        generator="import",
        dataset=dataset,
        split_fingerprint=None,
        inputs=inputs,
    )


def export_embeddings(
    store: ItemEmbeddings, output: str | Path, modalities: Sequence[str] | None = None
) -> list[Path]:
    """Write a store's vectors for other programs; see `write_vectors` for the formats.

    A ``.itememb`` file named ``<data set>.itememb`` is loaded by plain RecBole with
    ``additional_feat_suffix: [itememb]``, ``load_col: {itememb: [item_emb_id, item_emb]}``,
    ``alias_of_item_id: [item_emb_id]`` and ``preload_weight: {item_emb_id: item_emb}``.

    Returns:
        The files written.

    Raises:
        InputError: an unknown modality or format.
    """
    names = list(store.manifest.modalities) if modalities is None else list(modalities)
    arrays: dict[str, Array] = {name: np.asarray(store.array(name)) for name in names}
    return write_vectors(Path(output), store.item_ids, arrays)


def verify_embeddings(store: ItemEmbeddings, folder: DatasetFolder | AtomicFolder) -> list[str]:
    """Recompute a store's hashes and compare it with a data set.

    Returns:
        What was found to be right, a sentence each.

    Raises:
        InputError: a changed file, items without a vector, another split, or bad rows.
    """
    store.verify()
    missing = store.missing(folder.item_ids)
    if missing:
        raise InputError(
            f"{store.path} has no vector for {_listed(missing)} of the {len(folder.item_ids)} "
            f"items of '{folder.name}'."
        )
    fingerprint = store.manifest.split_fingerprint
    if fingerprint not in (None, folder.split_fingerprint):
        raise InputError(
            f"{store.path} was made from another training part than that of '{folder.name}' "
            f"({str(fingerprint)[:12]}… instead of {str(folder.split_fingerprint)[:12]}…)."
        )
    for modality in store.manifest.modalities:
        for place, rows in store.array(modality).shards():
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if bad.size:
                named = _listed([store.item_ids[place.start + k] for k in bad])
                raise InputError(f"{store.path} has NaN or infinite values for {named}.")
    extra = len(store.item_ids) - len(folder.item_ids)
    return [
        f"{len(store.manifest.files)} files are what the manifest says",
        f"every one of {len(folder.item_ids)} items of '{folder.name}' has a vector"
        + (f" ({extra} more are not in the data set)" if extra else ""),
        "made without sessions" if fingerprint is None else "made from this training part",
    ]


def find_store(folder: Path, name: str) -> ItemEmbeddings:
    """Open a store of a data set folder by name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    path = store_path(folder, name)
    recover(path)
    if not path.is_dir():
        known = sorted(p.parent.name for p in (folder / "embeddings").glob("*/manifest.json"))
        listed = f" Stores there: {', '.join(known)}." if known else " There are none yet."
        raise InputError(f"No store '{name}' in {folder}.{nearest(name, known)}{listed}")
    return open_store(path)


def store_path(folder: Path, name: str) -> Path:
    """Return where a store of a data set folder lives.

    Raises:
        InputError: the name is not a plain one.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(
            f"'{name}' cannot be a store's name: give a plain name, without folders and without a "
            "leading dot."
        )
    return folder / "embeddings" / name


def _check_rows(
    source: Path,
    ids: list[str],
    arrays: dict[str, Array],
    wanted: list[str],
    others: list[str],
    drop_extra: bool,
    allow_zero: bool,
) -> None:
    problems = []
    for name, array in arrays.items():
        if len(array) != len(ids):
            raise InputError(
                f"{source}: '{name}' has {len(array)} rows for {len(ids)} item ids; they must be "
                "in the same order, one id a row."
            )
        with np.errstate(over="ignore"):  # named below
            half = array.astype(np.float16)
        finite = np.isfinite(half).all(axis=1)
        bad = [ids[k] for k in np.flatnonzero(~finite)]
        if bad:
            problems.append(f"'{name}' is NaN, infinite or beyond fp16 for {_listed(bad)}")
        zero = [ids[k] for k in np.flatnonzero(finite & ~half.any(axis=1))]
        if zero and not allow_zero:
            problems.append(f"'{name}' is all zero for {_listed(zero)} (--allow_zero accepts them)")
    twice = [i for i, count in Counter(ids).items() if count > 1]
    if twice:
        problems.append(f"ids occur more than once: {_listed(twice)}")
    here, there = set(ids), {*wanted, *others}
    missing = [i for i in wanted if i not in here]
    if missing:
        problems.append(f"no vector for {_listed(missing)} of the data set's {len(wanted)} items")
    extra = [i for i in ids if i not in there]
    if extra and not drop_extra:
        problems.append(f"not in the data set: {_listed(extra)} (--drop_extra leaves them out)")
    if problems:
        raise InputError(f"{source} does not fit: " + "; ".join(problems) + ".")


def _listed(items: Sequence[str]) -> str:
    more = ", …" if len(items) > _NAMED else ""
    return f"{len(items)} ({', '.join(items[:_NAMED])}{more})"
