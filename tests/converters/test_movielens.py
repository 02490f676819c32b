"""MovieLens in its published layouts, and the real sample with posters."""

from __future__ import annotations

from pathlib import Path

import pytest
from picture_server import picture
from raw_amazon import SHARED, rows

from dataset_converters.errors import InputError
from dataset_converters.movielens import convert_movielens
from dataset_converters.table_options import TableOptions
from recbole_tpad.bridge.runner import run
from recbole_tpad.data import DatasetFolder

RATINGS = [(u, m, 3 + m % 3, 1000 + 10 * m + u) for u in range(1, 9) for m in range(1, 6)]
MOVIES = {
    1: ("Café Noir (1995)", ["Comedy", "Drama"]),
    2: ('"Quoted", The (1996)', ["Drama"]),
    3: ("Plain (1997)", ["Comedy", "Drama", "War"]),
    4: ("Empty (1998)", []),
    5: ("Last, The (1999)", ["Children's", "Comedy"]),
}


def write_layout(folder: Path, layout: str) -> Path:
    folder.mkdir(parents=True)
    if layout == "csv":
        cells = [
            (str(m), '"' + t.replace('"', '""') + '"', "|".join(g) or "(no genres listed)")
            for m, (t, g) in MOVIES.items()
        ]
        movies = "movieId,title,genres\r\n" + "".join(",".join(c) + "\r\n" for c in cells)
        (folder / "movies.csv").write_bytes(movies.encode())
        ratings = "userId,movieId,rating,timestamp\n" + "".join(
            f"{u},{m},{r}.0,{t}\n" for u, m, r, t in RATINGS
        )
        (folder / "ratings.csv").write_text(ratings)
    elif layout == "1m":
        movies = "".join(f"{m}::{t}::{'|'.join(g)}\n" for m, (t, g) in MOVIES.items())
        (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
        (folder / "ratings.dat").write_text("".join("::".join(map(str, r)) + "\n" for r in RATINGS))
    else:
        names = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"]
        names += ["Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"]
        names += ["Romance", "Sci-Fi", "Thriller", "War", "Western"]
        lines = []
        for m, (t, genres) in MOVIES.items():
            flags = [str(int(name in genres)) for name in names]
            lines.append("|".join([str(m), t, "01-Jan-1995", "", "http://imdb", *flags]) + "\n")
        (folder / "u.item").write_bytes("".join(lines).encode("latin-1"))
        (folder / "u.data").write_text("".join("\t".join(map(str, r)) + "\n" for r in RATINGS))
    return folder


@pytest.mark.parametrize("layout", ["csv", "1m", "100k"])
def test_every_layout_gives_the_same_folder(tmp_path: Path, layout: str) -> None:
    made = convert_movielens("x", write_layout(tmp_path / layout, layout), tmp_path)
    assert made.counts["interactions"] == len(RATINGS)
    assert rows(made.path / "x.test.inter")[0] == ["1", "1 2 3 4", "5"]
    items = {item.item_id: item for item in DatasetFolder.open(tmp_path, "x").items}
    assert items["1"].title == "Café Noir (1995)"
    assert items["2"].title == '"Quoted", The (1996)'
    # The rarest genre is the most specific one.
    categories = [items[k].category for k in "12345"]
    assert categories == ["Drama", "Drama", "War", "", "Children's"]


def test_posters_are_attached(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "raw", "csv")
    (folder / "posters").mkdir()
    (folder / "posters" / "3.jpg").write_bytes(picture())
    (folder / "posters" / "4.jpg").write_bytes(picture()[:300])
    convert_movielens("x", folder, tmp_path)
    items = DatasetFolder.open(tmp_path, "x").items
    assert [item.item_id for item in items if item.image] == ["3"]
    options = TableOptions(min_rating=5, split="temporal", train_share=0.5, valid_share=0.25)
    made = convert_movielens("y", folder, tmp_path, options=options)
    assert made.counts["interactions"] == 16
    with pytest.raises(InputError, match=r"neither ratings\.csv and movies\.csv nor ratings\.dat"):
        convert_movielens("z", tmp_path, tmp_path)
    with pytest.raises(InputError, match="holds the posters"):
        convert_movielens("z", folder, tmp_path, images=tmp_path / "absent")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
def test_the_real_sample_with_posters(tmp_path: Path) -> None:
    made = convert_movielens("movies", SHARED / "movie_posters", tmp_path)
    counts = made.counts
    assert (counts["users"], counts["items"], counts["interactions"]) == (666, 2032, 64540)
    folder = DatasetFolder.open(tmp_path, "movies")
    folder.verify_split()
    assert sum(item.image is not None for item in folder.items) == 2032
    assert {item.category for item in folder.items} > {"Western", "War"}
    result = run({"model": "Popularity", "dataset": "movies", "data_path": str(tmp_path)})
    assert len(result.ranks) == 666
