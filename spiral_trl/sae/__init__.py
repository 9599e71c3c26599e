"""Sparse-autoencoder features: how they pass, combine and specialise across layers, and what self-play changed.

Implements arXiv 2410.08869 for any causal language model of transformers. Needs the extra `sae`.
"""
