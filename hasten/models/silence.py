"""transformers without its warnings and bars: what it says of loading is said by hasten, or is no concern of users."""

from __future__ import annotations


def silence_transformers() -> None:
    """For this process, from now on."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
