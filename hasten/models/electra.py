"""ELECTRA: BERT's layers, with embeddings that may be narrower than the hidden size."""

from __future__ import annotations

from hasten.models.bert import BertLike

ELECTRA = BertLike(family="electra", body="electra")
