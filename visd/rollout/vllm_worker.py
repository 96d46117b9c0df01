"""What runs inside vLLM's workers: taking over new weights, by reference in process or from the network on a server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from visd.rollout.weight_stream import receive_weights


def load_weights(worker: Any, weights: Iterable[tuple[str, Tensor]], keep_features: bool) -> bool:
    """Replace the named weights of a worker's model.

    vLLM empties the worker's cache of vision features whatever is reloaded; where the tower is frozen they are put back.

    Args:
        worker: vLLM's.
        weights: whole tensors by their names in a Hugging Face folder.
        keep_features: the weights do not change what the vision tower makes of a video.

    Returns:
        Whether the features were kept.
    """
    cache = getattr(worker.model_runner, "encoder_cache", None)
    kept = dict(cache) if keep_features and cache is not None else None
    try:
        worker.reload_weights(weights_iterator=weights)
    except BaseException:
        _leave_reloading(worker)
        raise
    _pack_tied_weights_again(worker.model_runner)
    if cache is None or kept is None:
        return False
    cache.update(kept)
    return True


def _pack_tied_weights_again(runner: Any) -> None:
    """Have layers that share a weight compute with the new one.

    An output head that is tied to the embeddings is given no weight of its own, so that vLLM does not process it again; on a
    CPU it would go on with a packed copy of the old one.
    """
    if runner.device.type != "cpu":
        return
    layers: dict[int, list[Any]] = {}
    for module in runner.get_model().modules():
        if hasattr(module, "cpu_linear") and module.weight.numel():
            layers.setdefault(module.weight.data_ptr(), []).append(module)
    for shared in layers.values():
        for layer in shared if len(shared) > 1 else ():
            layer.quant_method.process_weights_after_loading(layer)


def _leave_reloading(worker: Any) -> None:
    """After a stream that broke off: have the layers count the tensors of the next one from the start."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    with set_current_vllm_config(worker.vllm_config):
        finalize_layerwise_reload(worker.model_runner.get_model(), worker.vllm_config.model_config)


class WeightReceiver:
    """Added to the workers of a server (`--worker-extension-cls`). Arguments come as text, through HTTP."""

    def visd_receive_weights(self, host: str, port: str, token: str, keep_features: str) -> str:
        """Fetch weights from the trainer that listens there; "kept" if the cache of vision features was kept."""
        with receive_weights(host, int(port), token) as weights:
            return "kept" if load_weights(self, weights, keep_features == "keep") else "emptied"
