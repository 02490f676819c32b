"""Which column of a table is what: named by the user, or recognised by a common name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_converters.errors import InputError, nearest

# Role → common names, preferred first, compared without case and punctuation.
INTERACTION_COLUMNS: Mapping[str, Sequence[str]] = {
    "session": ("sessionid", "session"),
    "user": ("userid", "user", "uid", "reviewerid", "customerid", "visitorid", "accountid"),
    "item": (
        *("itemid", "item", "iid", "productid", "product", "parentasin", "asin", "articleid"),
        *("movieid", "trackid", "songid", "bookid", "isbn", "newsid", "sku"),
    ),
    "time": (
        *("timestamp", "time", "unixreviewtime", "unixtime", "eventtime", "datetime", "date"),
        *("createdat", "ts"),
    ),
    "rating": ("rating", "overall", "stars", "score"),
}
ITEM_COLUMNS: Mapping[str, Sequence[str]] = {
    "item": (*INTERACTION_COLUMNS["item"], "id"),
    "title": (
        "title",
        "itemtitle",
        "producttitle",
        "movietitle",
        "name",
        "itemname",
        "productname",
    ),
    "brand": ("brand", "manufacturer", "store", "artist", "author", "publisher"),
    "category": (
        *("categorypath", "categories", "category", "maincategory", "productcategory"),
        *("genres", "genre", "class"),
    ),
    "description": ("description", "desc", "itemdescription", "overview", "summary", "text"),
    "price": ("price", "itemprice", "unitprice"),
    "image_url": (
        *("imageurls", "imageurl", "images", "image", "imurl", "posterurl", "picture", "img"),
    ),
}


def choose_columns(
    path: Path,
    columns: Sequence[str],
    known: Mapping[str, Sequence[str]],
    named: Mapping[str, str | None],
    *,
    required: Sequence[str] = (),
) -> dict[str, str]:
    """Return role → column name, for the roles that the table has.

    Args:
        columns: of the table.
        known: role → common names, preferred first.
        named: role → the user's choice, or None to look for a common name.

    Raises:
        InputError: a named column is absent, two columns have the same common name, or a required
            role has no column. The columns found are listed.
    """
    listed = f"Columns found: {', '.join(columns) or 'none'}."
    plain: dict[str, list[str]] = {}
    for column in columns:
        plain.setdefault(re.sub(r"[\W_]+", "", column).lower(), []).append(column)
    chosen: dict[str, str] = {}
    for role, names in known.items():
        wanted = named.get(role)
        if wanted is not None:
            if wanted not in columns:
                raise InputError(
                    f"{path} has no column '{wanted}'.{nearest(wanted, columns)} {listed}"
                )
            chosen[role] = wanted
            continue
        fitting = next((plain[name] for name in names if name in plain), [])
        if len(fitting) > 1:
            raise InputError(
                f"{path}: the columns {' and '.join(fitting)} could both be the {role} column. "
                f"Name one with --{role}_column. {listed}"
            )
        if fitting:
            chosen[role] = fitting[0]
    for role in required:
        if role not in chosen:
            raise InputError(
                f"{path}: no column looks like the {role} column. Name it with --{role}_column. "
                f"{listed}"
            )
    return chosen
