"""The entry point by which an installed lmms-eval finds the model class `visd`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """lmms-eval's `ModelManifest` of the model class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="visd", chat_class_path="eval.bridges.lmms_model.VisdModel")
