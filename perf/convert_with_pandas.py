"""DIMO's data recipe as a plain script with gzip, json and pandas: what `convert` is compared to.

Usage: convert_with_pandas.py REVIEWS META FOLDER NAME. Writes RecBole's files only.
"""

from __future__ import annotations

import gzip
import html
import json
import sys
from pathlib import Path

import pandas as pd

DAY = 86_400


def read_reviews(path: Path) -> pd.DataFrame:
    users, items, times = [], [], []
    with gzip.open(path, "rb") as lines:
        for line in lines:
            review = json.loads(line)
            users.append(review["reviewerID"])
            items.append(review["asin"])
            times.append(review["unixReviewTime"])
    return pd.DataFrame({"user": users, "item": items, "time": times})


def clean(text: str) -> str:
    return " ".join(html.unescape(text).split())


def read_items(path: Path) -> dict[str, tuple[str, str, str, float]]:
    """Items with a title, brand, category and large image."""
    items = {}
    with gzip.open(path, "rb") as lines:
        for line in lines:
            item = json.loads(line)
            title, brand = clean(item["title"]), clean(item["brand"])
            category = clean(item["category"][-1]) if item["category"] else ""
            if title and brand and category and item["imageURLHighRes"]:
                price = float(item["price"].strip("$").replace(",", ""))
                items[item["asin"]] = (title, brand, category, price)
    return items


def keep_long(frame: pd.DataFrame) -> pd.DataFrame:
    sizes = frame.groupby("user", sort=False)["item"].transform("size")
    return frame[sizes >= 2]


def write_rows(path: Path, frame: pd.DataFrame) -> None:
    with path.open("w") as out:
        out.write("session_id:token\titem_id_list:token_seq\titem_id:token\n")
        for user, items in frame.groupby("user", sort=False)["item"].agg(list).items():
            out.write(f"{user}\t{' '.join(items[:-1])}\t{items[-1]}\n")


def main(reviews: Path, meta: Path, folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    contents = read_items(meta)
    frame = read_reviews(reviews)
    frame = frame[frame["item"].isin(contents.keys())]
    first = frame.groupby("user")["time"].transform("min")
    frame = frame[frame["time"] < first + DAY]
    frame = frame.sort_values(["user", "time"], kind="stable")
    frame["number"] = pd.factorize(frame["user"])[0]
    border = int(0.9 * frame["number"].max())
    frame = keep_long(frame)
    counts = frame["item"].map(frame["item"].value_counts())
    frame = keep_long(frame[counts >= 5])
    frame = frame[frame.groupby("user").cumcount() < 20]
    training, test = frame[frame["number"] < border], frame[frame["number"] >= border]
    test = keep_long(test[test["item"].isin(training["item"].unique())])
    users = training["user"].unique()
    held = set(users[len(users) - int(len(users) * 0.1) :])
    is_held = training["user"].isin(held)
    parts = {"train": training[~is_held], "valid": training[is_held], "test": test}
    everything = pd.concat(list(parts.values()))
    everything[["user", "item", "time"]].to_csv(
        folder / f"{name}.inter",
        sep="\t",
        index=False,
        header=["session_id:token", "item_id:token", "timestamp:float"],
    )
    for part, rows in parts.items():
        write_rows(folder / f"{name}.{part}.inter", rows)
    with (folder / f"{name}.item").open("w") as out:
        out.write("item_id:token\ttitle:token_seq\tbrand:token\tcategory:token\tprice:float\n")
        for item in sorted(everything["item"].unique()):
            title, brand, category, price = contents[item]
            out.write(f"{item}\t{title}\t{brand}\t{category}\t{price!r}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
