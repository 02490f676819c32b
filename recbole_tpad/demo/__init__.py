"""A small shop made from a seed: raw files to run the whole line on, with known truth."""
