from __future__ import annotations

import dataclasses

import pytest

from ortkit import Bundle
from ortkit.exporters import pipeline
from ortkit.exporters.certification.probe import probe_texts


def test_results_of_other_probe_texts_are_not_resumed(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ortkit of the same version may have other texts in a development tree: reference logits are of these."""
    before = pipeline._key_of(tiny_bundle.manifest, None)
    monkeypatch.setattr(pipeline, "probe_texts", lambda: dataclasses.replace(probe_texts(), sha256="0" * 64))

    assert pipeline._key_of(tiny_bundle.manifest, None) != before
    assert pipeline._key_of(tiny_bundle.manifest, 0.1) != pipeline._key_of(tiny_bundle.manifest, None)
