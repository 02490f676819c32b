"""Raw files in, data set folder out: the lowest layer, importable without torch or RecBole."""
