"""Errors shared by every layer; defined in `dataset_converters`, the lowest one."""

from dataset_converters.errors import InputError, nearest

__all__ = ["InputError", "nearest"]
