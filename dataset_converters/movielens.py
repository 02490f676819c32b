"""Converts MovieLens ratings, titles, genres and posters to a data set folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb

from dataset_converters.errors import InputError
from dataset_converters.folder import ConversionSummary, ItemContent, target_path
from dataset_converters.table import convert_tables
from dataset_converters.table_options import ColumnNames, TableOptions
from dataset_converters.table_reading import (
    Table,
    describe_relation,
    open_table,
    sql_text,
    tables_connection,
    text_relation,
)

# Ratings and movies of each published layout.
_LAYOUTS = (("ratings.csv", "movies.csv"), ("ratings.dat", "movies.dat"), ("u.data", "u.item"))
_IMAGE_FOLDERS = ("images", "posters")
_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")
# The genres of u.item, one column each after the first five (u.genre of the 100K release).
_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)
_NO_GENRE = frozenset({"(no genres listed)", "unknown"})


def convert_movielens(
    name: str,
    folder: Path,
    data_path: Path,
    *,
    images: Path | None = None,
    options: TableOptions | None = None,
    overwrite: bool = False,
) -> ConversionSummary:
    """Convert a MovieLens folder as published to ``<data_path>/<name>/``.

    A movie's genres become its category path, ordered from the one with the most movies to the
    rarest, so that the category is its most specific genre (assumption: the source does not order
    them). Options left open: one session a user, leave-one-out.

    Args:
        folder: has ``ratings.csv`` and ``movies.csv`` (latest, 20M and later), ``ratings.dat`` and
            ``movies.dat`` (1M, 10M), or ``u.data`` and ``u.item`` (100K).
        images: posters named ``<movieId>.<extension>``; None takes the folder's own ``images`` or
            ``posters``, where there is one.

    Raises:
        InputError: no such files; otherwise see `convert_table`.
    """
    target_path(data_path, name, overwrite=overwrite)
    options = options or TableOptions()
    if options.split is None:
        options = replace(options, split="leave-one-out")
    found = [pair for pair in _LAYOUTS if all((folder / file).is_file() for file in pair)]
    if not found:
        raise InputError(
            f"{folder} has no MovieLens files: neither "
            + " nor ".join(" and ".join(pair) for pair in _LAYOUTS)
            + "."
        )
    if images is None:
        images = next((folder / n for n in _IMAGE_FOLDERS if (folder / n).is_dir()), None)
    elif not images.is_dir():
        raise InputError(f"{images} is not a folder: name the folder that holds the posters.")
    ratings, movies = (folder / file for file in found[0])
    with tables_connection() as connection:
        return convert_tables(
            connection,
            name,
            _open(connection, ratings, _RATINGS),
            _open(connection, movies, _MOVIES),
            data_path,
            release="movielens",
            named=ColumnNames(
                user="userId",
                item="movieId",
                time="timestamp",
                rating="rating",
                title="title",
                category="genres",
            ),
            options=options,
            images=images,
            overwrite=overwrite,
            refine=order_genres,
        )


def _open(connection: duckdb.DuckDBPyConnection, path: Path, columns: tuple[str, ...]) -> Table:
    """Open a published file; those before 2014 have no header and are Latin-1."""
    if path.suffix == ".csv":
        return open_table(connection, path)
    genres: tuple[str, ...] = ()
    if path.name == "u.item":
        genres = tuple(f"genre{k}" for k in range(len(_GENRES_100K)))
        columns = ("movieId", "title", "released", "video", "page", *genres)
    delimiter = {"u.data": "\t", "u.item": "|"}.get(path.name, "::")
    relation = text_relation(path, columns, delimiter=delimiter, encoding="latin-1")
    if genres:
        listed = ", ".join(
            f"CASE WHEN {flag} = '1' THEN {sql_text(genre)} END"
            for flag, genre in zip(genres, _GENRES_100K, strict=True)
        )
        relation = f"(SELECT movieId, title, concat_ws('|', {listed}) AS genres FROM {relation})"
    return describe_relation(connection, path, relation)


def order_genres(contents: dict[str, ItemContent]) -> dict[str, ItemContent]:
    """Order each movie's genres by how many of these movies have them, most first."""
    counts = Counter(genre for item in contents.values() for genre in item.category_path)
    return {
        item_id: replace(
            item,
            category_path=tuple(
                sorted(
                    (genre for genre in item.category_path if genre not in _NO_GENRE),
                    key=lambda genre: (-counts[genre], genre),
                )
            ),
        )
        for item_id, item in contents.items()
    }
