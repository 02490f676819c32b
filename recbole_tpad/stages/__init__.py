"""The stages of TPAD: knowledge, transition, alignment, encoding, over one resumable loop."""
