"""RoBERTa and XLM-R: BERT's layers under another name, positions counted from two."""

from __future__ import annotations

from hasten.models.bert import BertLike

ROBERTA = BertLike(family="roberta", body="roberta")
XLM_ROBERTA = BertLike(family="xlm-roberta", body="roberta")
