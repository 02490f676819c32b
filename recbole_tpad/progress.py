"""Progress bars of every layer; defined in `dataset_converters`, the lowest one."""

from dataset_converters.progress import progress

__all__ = ["progress"]
