"""Measuring what was trained: metrics, the independent ASR judge, the report, the model card."""
