"""Keyword annotators: where the visual keywords of stage 1 come from."""
