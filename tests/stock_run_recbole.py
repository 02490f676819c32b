"""A script as RecBole's users have it: nothing in it knows of this package."""

import argparse

from recbole.quick_start import run_recbole

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="BPR")
    parser.add_argument("--dataset", default="ml-100k")
    known, _ = parser.parse_known_args()
    run_recbole(model=known.model, dataset=known.dataset, config_dict={"data_path": "dataset"})
