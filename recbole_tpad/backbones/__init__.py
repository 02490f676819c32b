"""Backbones turn an item (image and text) into the states of its two summary tokens."""
