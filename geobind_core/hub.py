"""Pretrained weights on the Hugging Face Hub: known to be there, or a clear word at once."""

from __future__ import annotations

from collections.abc import Sequence

from geobind_core.errors import WeightsError

_SECONDS_TO_ANSWER = 5.0


def require_hub_files(repository: str, alternatives: Sequence[str]) -> None:
    """Makes sure that a file can be had, without the minute of retries that a download would take.

    Args:
        repository: Such as `laion/clap-htsat-unfused`.
        alternatives: Names of files of which one is enough.

    Raises:
        WeightsError: None is in the local cache, and the Hub does not answer.
    """
    import huggingface_hub
    from huggingface_hub import constants

    for filename in alternatives:
        if isinstance(huggingface_hub.try_to_load_from_cache(repository, filename), str):
            return
    if not constants.HF_HUB_OFFLINE:
        try:
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_SECONDS_TO_ANSWER)
            return
        except Exception as error:  # whatever the client in use raises: there is no way to the Hub
            reason = f"the Hub does not answer ({type(error).__name__})"
    else:
        reason = "HF_HUB_OFFLINE is set"
    raise WeightsError(
        f"the weights {repository} are not in the local cache, and {reason}.",
        hint=f"Where there is a network, run `hf download {repository}` and bring the cache folder "
        f"({constants.HF_HUB_CACHE}) here, or set `pretrained` to a local file or folder.",
    )
